//! Pages for one device alone, and pages found by their frame.
//!
//! **Exclusive access** ([`Engine::make_exclusive`], the kernel's `make_device_exclusive`): a device that can't do atomic operations on pages that
//! others map has a page for itself for a while. The page is taken out, as at the beginning of a migration, and stays where it then is: a frame of
//! the pool, or the page's own frame of a coherent device, both of which have an address that the device can use. A touch moves it back in, after the
//! device was told ([`Event::Exclusive`] of nobody). The bytes never move.
//!
//! **Eviction** ([`Engine::pages_in`]): a frame's descriptor says which page it holds, so a device's frames can be emptied without
//! knowing an address; what the descriptor says is checked against the slots, which are searched where it is wrong.

use crate::engine::Engine;
use crate::frames::{FrameRun, restate};
use crate::home::Home;
use crate::migrate::{Collected, Request, Select, Target};
use crate::notifier::Event;
use crate::outcome::KeptReason;
use crate::physmap::Owner;
use crate::port::Host;
use crate::slot::{Frame, SYSTEM_POOL, Slot};
use crate::units::{DeviceId, PageCount, PageRange, VirtAddr};

/// Out of the program's reach, and nowhere else.
pub(super) const OUT: Target = Target::Device(SYSTEM_POOL);

impl Request {
    /// What mirrors are told of the request.
    pub(crate) fn event(&self) -> Event {
        if self.target == OUT { Event::Exclusive(self.owner) } else { Event::Migrate(self.owner) }
    }
}

impl<H: Host> Engine<H> {
    /// Takes `page` for `owner` alone, and says at which address it is for it. The caller has the range trapped, and finds out by its
    /// subscription whether the page is its own still when it begins to use it.
    ///
    /// # Errors
    ///
    /// Why not: the page is a hole, in a frame that has no address ([`KeptReason::NotSelected`]), or can't be taken out. A touch for writing may
    /// help.
    pub fn make_exclusive(&self, page: VirtAddr, owner: Owner) -> Result<VirtAddr, KeptReason> {
        let one = PageRange::page_of(page);
        let (_, region) = self.space.region_at(page).ok_or(KeptReason::Unmanaged)?;
        if region.home != Home::Anonymous {
            return Err(KeptReason::Unsupported);
        }
        self.make_room(PageCount::ONE);
        let select = Select::SYSTEM.union(Select::DEVICE_COHERENT);
        let request = Request { target: OUT, select, owner: Some(owner) };
        if !region.pinned {
            self.lift_for(page.block(), region.path, request)?;
        }
        let mut out = Collected::collect(self, one, region, request);
        let Some(piece) = out.batch.pieces.pop() else {
            let outcome = out.batch.outcomes.as_slice().first().copied();
            return Err(outcome.and_then(crate::outcome::PageOutcome::kept).unwrap_or(KeptReason::Raced));
        };
        // It stays out: at rest there, no longer busy.
        let _shared = self.space.gate.share();
        let mut state = out.batch.block.lock();
        let (ours, _) = piece.same_fate(&state);
        if ours {
            restate(&mut state, one, piece.bytes.frames(), |frame| Slot::Unmapped { frame, busy: false });
        }
        self.release_waiters(&out.batch.block, &mut state, out.batch.path, one);
        drop(state);
        if ours { piece.bytes.address().ok_or(KeptReason::Unsupported) } else { Err(KeptReason::Raced) }
    }

    /// The pages that the frames of `device` hold, as far as they are in `frames`: sorted, each run once.
    #[must_use]
    pub fn pages_in(&self, device: DeviceId, frames: FrameRun) -> Vec<PageRange> {
        let Some(table) = self.device(device).map(|device| &device.pagemap().frames) else { return Vec::new() };
        // Events that were read are applied before anybody sees the gate open, and no block is forgotten meanwhile.
        let _shared = self.space.gate.share();
        let held_by =
            |page: VirtAddr| self.space.existing_block(page.block())?.lock().slot(page.index_in_block()).frame();
        let (mut pages, mut lost) = (Vec::new(), false);
        for (index, page) in table.in_use(frames) {
            // A frame that a batch is filling is in no slot yet.
            if held_by(page) == Some(Frame { device, index }) { pages.push(page) } else { lost = true }
        }
        if lost {
            let wanted = |frame: Frame| frame.device == device && frames.contains(frame.index);
            for (no, block) in self.space.blocks() {
                let state = block.lock();
                let found =
                    no.range().iter().filter(|page| state.slot(page.index_in_block()).frame().is_some_and(wanted));
                pages.extend(found);
            }
        }
        pages.sort_unstable();
        pages.dedup();
        let mut runs: Vec<PageRange> = Vec::new();
        for page in pages.into_iter().map(PageRange::page_of) {
            match runs.last_mut() {
                Some(last) if last.end() == page.start() => {
                    *last = PageRange::between(last.start(), page.end()).unwrap_or(*last)
                }
                _ => runs.push(page),
            }
        }
        runs
    }
}

//! Blocks of device memory that are laid over the program's: coherent devices whose pages can be mapped, but not moved.
//!
//! Device-DAX memory takes no part in userfaultfd: a page of it is neither moved into the program's mappings nor out of them. But it can be mapped in their
//! place, shared, a whole block at a time, and that is one step to whoever touches the block:
//!
//! ```text
//!          collect, copy                 Engine::lay                        Engine::lift
//! System ────────────────► busy, trapped ────────────► laid: Mapped, all 512 ────────────► Unmapped, in the same frames
//!                          copies in a block of frames  in frames 0, 1, … of the block     a touch brings them home, by copying
//! ```
//!
//! Whatever takes one page of a laid block out lifts the block first. Then its pages are as those of a private device. They are laid again when they are migrated
//! to the device again, all 512, to another block of frames.
//!
//! Each step is a change of the program's mappings, of which the kernel tells the handler thread as of any other and waits until it has read that. So it is
//! made with no lock held, while the block's pages are busy. [`Engine::is_own_change`] tells it from the program's.
//! From before that until the slots say what came of it, the block is `exchanging`: also pages that the program drops meanwhile, which are busy no longer,
//! are left alone. A touch of one waits for the end, as what it would write now would be mapped over; no migration takes one out.
//!
//! A removal can be announced when the block it began in is laid already, and what it then finds is shared memory, which keeps its bytes: it changes nothing in the
//! slots. One that comes earlier and is carried out while the block is laid leaves zeros or the old bytes. What is written after it is never lost.
//!
//! Nothing tells who refers to a laid page, as `EBUSY` of a MOVE does of others. So a block of which a part is pinned by advice stays laid, and who pins it waits for
//! changes under way ([`Engine::await_exchanges`]).
//!
//! A child has no mapping where a block is laid: who forks lifts all first, and lays none until it is done ([`Engine::hold_overlays`]).
//!
//! *Limits:* nobody else may map, unmap or protect what is there ([`Region::owned`]). In a laid block `MADV_DONTNEED` keeps the bytes. To lay a block that was
//! lifted again, the device needs a second, free block of frames.

use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::frames::{Frames, restate};
use crate::migrate::copy::Filled;
use crate::migrate::{Batch, Piece, Request, Target};
use crate::notifier::Event;
use crate::outcome::{KeptReason, PageOutcome};
use crate::port::{FaultPath, Host};
use crate::slot::{SYSTEM_POOL, Slot};
use crate::space::{Region, kept_by_advice};
use crate::sync::{Arc, Condvar, Mutex, lock};
use crate::transfer::FrameCopy;
use crate::units::{BLOCK_PAGES, BlockNo, DeviceId, PageCount, PageRange, VirtAddr};

/// The pages of a block.
pub(crate) const BLOCK: PageCount = PageCount::new(BLOCK_PAGES);

/// Which blocks are laid, or about to be.
#[derive(Default)]
pub(crate) struct Overlays {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// Each with its device.
    laid: BTreeMap<BlockNo, DeviceId>,
    /// Blocks that are being laid or lifted.
    changing: Vec<BlockNo>,
    /// How many blocks ever were.
    begun: u64,
    /// While there are such, no block is laid.
    holds: u32,
}

impl Overlays {
    fn laid_on(&self, no: BlockNo) -> Option<DeviceId> {
        lock(&self.state).laid.get(&no).copied()
    }

    fn end(&self, no: BlockNo, laid_on: Option<DeviceId>) {
        let mut state = lock(&self.state);
        state.changing.retain(|changing| *changing != no);
        match laid_on {
            Some(device) => _ = state.laid.insert(no, device),
            None => _ = state.laid.remove(&no),
        }
        self.ended.notify_all();
    }

    /// Waits until no block that `overlaps` is being changed. The result is how many changes of any block have begun.
    fn settle(&self, overlaps: impl Fn(BlockNo) -> bool) -> u64 {
        let mut state = lock(&self.state);
        while state.changing.iter().any(|no| overlaps(*no)) {
            state = self.ended.wait(state).expect("no thread panicked while it held this lock");
        }
        state.begun
    }

    pub(crate) fn forget(&self, range: PageRange) {
        lock(&self.state).laid.retain(|no, _| !no.range().overlaps(range));
    }
}

impl<H: Host> Engine<H> {
    /// Whether pages come to be on the device by being laid over.
    #[must_use]
    pub fn lays(&self, id: DeviceId) -> bool {
        self.has_overlays && self.device(id).is_some_and(|device| device.reach().laid().is_some())
    }

    /// Whether some device's frames are laid over the program's pages.
    #[must_use]
    pub const fn has_overlays(&self) -> bool {
        self.has_overlays
    }

    /// The laid blocks that overlap `range`, in order.
    #[must_use]
    pub fn laid_in(&self, range: PageRange) -> Vec<PageRange> {
        if !self.has_overlays {
            return Vec::new();
        }
        let state = lock(&self.overlays.state);
        let from = state.laid.range(range.start().block()..).map(|(no, _)| no.range());
        from.take_while(|block| block.start() < range.end()).collect()
    }

    /// Whether the block at `addr` is laid. Allocates nothing.
    #[must_use]
    pub fn is_laid(&self, addr: VirtAddr) -> bool {
        self.overlays.laid_on(addr.block()).is_some()
    }

    /// Whether a change of the mappings of just this range is hetmem's own, and no event of the program's.
    #[must_use]
    pub fn is_own_change(&self, range: PageRange) -> bool {
        self.has_overlays && lock(&self.overlays.state).changing.iter().any(|no| no.range() == range)
    }

    /// From here until [`Engine::release_overlays`] no block is laid, and those that were being laid are. The caller holds no lock.
    pub fn hold_overlays(&self) {
        lock(&self.overlays.state).holds += 1;
        self.overlays.settle(|_| true);
    }

    /// Ends [`Engine::hold_overlays`].
    pub fn release_overlays(&self) {
        lock(&self.overlays.state).holds -= 1;
    }

    /// Lays nothing over `range` any more: it is about to be another's. The caller holds no lock.
    pub fn end_overlays(&self, range: PageRange) {
        if self.has_overlays {
            self.space.change_region(range, |region| region.owned = false);
            self.await_exchanges(range);
        }
    }

    /// Waits until no block of `range` is being laid or lifted, and returns how many were so far. The caller holds no lock.
    ///
    /// Meanwhile a page can be touched already that is on its way by the books, and Linux 6.18 lists no mapping there for a moment (`PROCMAP_QUERY`
    /// no longer waits for who changes others), although a touch finds one at any time.
    pub fn await_exchanges(&self, range: PageRange) -> u64 {
        if self.has_overlays { self.overlays.settle(|no| no.range().overlaps(range)) } else { 0 }
    }

    /// Why pages of `parts` of the block numbered `no` can't be laid, if so. A block of that device that is laid already is no matter.
    pub(crate) fn refuses_to_lay(
        &self,
        no: BlockNo,
        parts: impl Iterator<Item = PageRange>,
        region: Region,
        target: Target,
    ) -> Option<KeptReason> {
        match target {
            Target::Device(device) if self.lays(device) && self.overlays.laid_on(no) != Some(device) => {
                let pages: PageCount = parts.map(PageRange::pages).sum();
                if !region.owned {
                    Some(KeptReason::Unsupported)
                } else if pages < BLOCK {
                    Some(KeptReason::PartOfBlock)
                } else {
                    None
                }
            }
            Target::System | Target::Device(_) => None,
        }
    }

    /// Lifts the block numbered `no` if it is laid and `request` takes pages of it elsewhere. The caller holds no lock.
    ///
    /// # Errors
    ///
    /// Why it is still laid.
    pub(crate) fn lift_for(&self, no: BlockNo, path: FaultPath, request: Request) -> Result<(), KeptReason> {
        if !self.has_overlays || self.overlays.laid_on(no).is_none() {
            return Ok(());
        }
        let range = no.range();
        // Mirrors that use the frames are told of the whole block, as all of it goes.
        let (installing, notice) = self.install_noticed(range, Event::Migrate(None));
        let Some(block) = self.space.existing_block(no) else { return Ok(()) };
        let mut state = block.lock();
        let Slot::Mapped(first) = state.slot(0) else { return Ok(()) };
        // Others may have lifted it and moved its pages since the look above.
        if !self.lays(first.device) || self.selects(first, request).is_err() {
            return Ok(());
        }
        match self.begin(no, None) {
            Err(KeptReason::Raced) => return Ok(()),
            begun => begun?,
        }
        let refs = self.refer_to(Frames::new(first, BLOCK));
        let frames = refs.frames();
        restate(&mut state, range, frames, |frame| Slot::Unmapped { frame, busy: true });
        state.exchanging = true;
        drop(state);
        drop(installing);
        drop(notice);
        let lifted = self.host.lift(path, range);
        let installing = self.space.gate.install();
        let mut state = block.lock();
        for (i, page) in (0..).zip(range.iter()) {
            let (page, frame) = (PageRange::page_of(page), frames.slice(PageCount::new(i), PageCount::ONE));
            let slot = state.slot(page.start().index_in_block());
            // What the program has dropped meanwhile is the system's, or is mapped still.
            match (slot.frame() == Some(frame.frame(PageCount::ZERO)) && slot.is_busy(), lifted) {
                (true, Ok(())) => restate(&mut state, page, frame, |frame| Slot::Unmapped { frame, busy: false }),
                (true, Err(_)) => restate(&mut state, page, frame, Slot::Mapped),
                (false, Ok(())) => {}
                (false, Err(_)) => self.occupy(&mut state, page, self.refer_to(frame), Slot::Mapped),
            }
        }
        state.exchanging = false;
        self.overlays.end(no, lifted.is_err().then_some(frames.device));
        self.release_waiters(&block, &mut state, path, range);
        drop(state);
        drop(installing);
        drop(refs);
        lifted
    }

    /// Claims the block for a change of its mapping. One that is to be laid must be hetmem's alone, and touches of it served by that path; one that is to be
    /// lifted must not be pinned, not even a part of it.
    fn begin(&self, no: BlockNo, lay_in: Option<FaultPath>) -> Result<(), KeptReason> {
        let mut state = lock(&self.overlays.state);
        match lay_in {
            Some(path) => {
                let is_owned = |region: &Region| region.owned && region.path == path;
                if state.holds > 0 || !self.space.is_all(no.range(), is_owned) {
                    return Err(KeptReason::Raced);
                }
            }
            // Under the lock: whoever pins it waits for changes under way, and then relies on there being none.
            None if !self.space.is_all(no.range(), |region| kept_by_advice(region, Target::System).is_none()) => {
                return Err(KeptReason::Advised);
            }
            None => {}
        }
        if state.changing.contains(&no) {
            return Err(KeptReason::Raced);
        }
        state.changing.push(no);
        state.begun += 1;
        Ok(())
    }

    fn overlay_address(&self, frames: Frames) -> VirtAddr {
        let start = self.device_of(frames.device).reach().laid().expect("the device's frames are laid");
        start.add_pages(PageCount::new(u64::from(frames.run.first.get())))
    }
}

impl<H: Host> Engine<H> {
    /// Checks that the laid blocks are those whose pages are all in a block of frames, in order; nothing may be in flight.
    pub(crate) fn check_overlays(&self) {
        let laid = {
            let overlays = lock(&self.overlays.state);
            assert!(overlays.changing.is_empty(), "no block is being laid or lifted");
            overlays.laid.clone()
        };
        for (no, block) in self.space.blocks() {
            let state = block.lock();
            assert!(!state.exchanging, "nothing is about to take the block's place");
            let first = match state.slot(0) {
                Slot::Mapped(frame) if self.lays(frame.device) => Some(frame),
                Slot::Mapped(_) | Slot::System | Slot::Unmapped { .. } => None,
            };
            let device = first.map(|frame| frame.device);
            assert_eq!(laid.get(&no).copied(), device, "a laid block is mapped from its first page on");
            for index in 0..512 {
                let Slot::Mapped(frame) = state.slot(index) else {
                    assert_eq!(first, None, "a laid block is mapped whole");
                    continue;
                };
                let expected = first.map_or(frame.index.index(), |first| first.index.index() + index);
                assert!(first.is_some() || !self.lays(frame.device), "a laid block is mapped whole");
                assert_eq!(frame.index.index(), expected, "its frames are in order");
            }
        }
    }
}

impl<'e, H: Host> Batch<'e, H> {
    /// The device whose frames are to be laid over the batch's block, if that is what is asked for.
    pub(crate) fn overlay(&self) -> Option<DeviceId> {
        match self.request.target {
            Target::Device(device) if device != SYSTEM_POOL && self.engine.lays(device) => Some(device),
            Target::System | Target::Device(_) => None,
        }
    }

    /// Fills a block of frames of `device` with all pages of the batch's block.
    pub(crate) fn fill_block(&mut self, device: DeviceId) -> Result<Vec<Filled<'e, H>>, KeptReason> {
        let engine = self.engine;
        let pages: PageCount = self.pieces.iter().map(|piece| piece.at.pages()).sum();
        if pages < BLOCK {
            return Err(KeptReason::PartOfBlock);
        }
        let mut frames = engine.allocate_block(device, self.range.start()).ok_or(KeptReason::NoFrame)?;
        let start = self.range.start();
        let place = |at: PageRange| frames.frames().slice(at.start().pages_since(start), at.pages());
        let mut copies: Vec<_> =
            self.pieces.iter().map(|piece| FrameCopy::new(piece.bytes.frames(), place(piece.at))).collect();
        engine.copy_all(&mut copies);
        if let Some(error) = copies.iter().find_map(|copy| copy.result.err()) {
            return Err(error.into());
        }
        // All pages are there, in order.
        let mut fill = |piece: Piece<'e, H>| {
            let copy = Some(frames.take_front(piece.at.pages()));
            Filled { piece, copy }
        };
        Ok(std::mem::take(&mut self.pieces).into_iter().map(&mut fill).collect())
    }

    /// Lays the frames that were filled over the block.
    pub(crate) fn lay(&mut self, mut filled: Vec<Filled<'e, H>>) {
        let engine = self.engine;
        let no = self.range.start().block();
        let block = Arc::clone(&self.block);
        let first = filled.first().and_then(|Filled { copy, .. }| Some(copy.as_ref()?.frame(PageCount::ZERO)));
        let (Some(first), Some(device)) = (first, self.overlay()) else { return };
        let begun = {
            let _installing = engine.space.gate.install();
            let mut state = block.lock();
            let ours = |Filled { piece, .. }: &Filled<'e, H>| piece.same_fate(&state) == (true, piece.at.pages());
            let begun = filled.iter().all(ours) && engine.begin(no, Some(self.path)).is_ok();
            state.exchanging = begun;
            begun
        };
        let laid = match begun {
            true => engine.host.lay(self.range, engine.overlay_address(Frames::new(first, BLOCK))),
            false => Err(KeptReason::Raced),
        };
        if begun {
            let _installing = engine.space.gate.install();
            let mut state = block.lock();
            if laid.is_ok() {
                for Filled { piece, copy } in filled.drain(..) {
                    // What the program has dropped meanwhile is what the frame holds, as of a block that was laid before.
                    if let Some(copy) = copy {
                        engine.occupy(&mut state, piece.at, copy, Slot::Mapped);
                    }
                }
            }
            state.exchanging = false;
            engine.overlays.end(no, laid.is_ok().then_some(device));
            engine.release_waiters(&block, &mut state, self.path, self.range);
        }
        match laid {
            Ok(()) => self.set_outcome(self.range, PageOutcome::Moved),
            Err(reason) => {
                for Filled { piece, copy } in filled {
                    drop(copy);
                    self.roll_back(piece, reason);
                }
            }
        }
    }
}

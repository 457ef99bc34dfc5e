//! What the program does to its own mappings, applied to the slots.
//!
//! Each is called with the gate held alone, right after the event was read and before anything else is installed. Mirrors are told
//! before it is applied, which is after the program's change was made: their callbacks may not wait for accesses by address.

use crate::engine::Engine;
use crate::fault::DEVICE_TRIES;
use crate::frames::{Frames, Left, Purpose};
use crate::notifier::Event;
use crate::port::{FaultPath, Host, TransferError};
use crate::slot::{Frame, Slot};
use crate::space::Events;
use crate::units::{PageCount, PageRange, VirtAddr};

impl<H: Host> Engine<H> {
    /// `range` was unmapped: its pages and its management are gone.
    pub fn unmapped(&self, events: &Events<'_>, range: PageRange) {
        if self.is_own_change(range) {
            return;
        }
        if self.has_overlays() {
            self.overlays.forget(range);
        }
        let _notice = self.notifiers.start_if_any(range, Event::Unmap, false);
        self.drop_pages(events, range, |_| false);
        self.space.remove_region(range);
        self.space.forget_removals(range);
        self.space.forget_blocks(events, range);
    }

    /// The contents of `range` are about to be dropped (`MADV_DONTNEED`, `MADV_FREE`): it will read as zeros.
    ///
    /// The program drops them only after this event was read, at a time that nobody announces. Until that is known
    /// to be over, migrations leave the range alone: a page that was taken out before and put back after would come
    /// back from the dead.
    pub fn removed(&self, events: &Events<'_>, range: PageRange) {
        if self.space.regions_in(range).iter().all(|(_, region)| region.is_none()) {
            return;
        }
        let _notice = self.notifiers.start_if_any(range, Event::Clear, false);
        // If a block was laid since the program began, it is shared memory that the removal finds, which keeps its bytes.
        self.drop_pages(events, range, |frame| self.lays(frame.device));
        self.space.add_removal(range);
    }

    /// The program has installed guard markers in `range`, or is about to remove some: what pages held that have one is discarded, and would
    /// come back once the marker is gone. The kernel raises no event for either, so it is the page map that is asked.
    pub fn guarded(&self, events: &Events<'_>, range: PageRange) {
        for (part, _) in self.space.regions_in(range).into_iter().filter(|(_, region)| region.is_some()) {
            for guarded in self.host.guarded_parts(part) {
                let _notice = self.notifiers.start_if_any(guarded, Event::Clear, false);
                // A block that is laid is shared memory, which keeps its bytes.
                self.drop_pages(events, guarded, |frame| self.lays(frame.device));
            }
        }
    }

    /// The pages of `from` are now at `to` (`mremap`).
    pub fn remapped(&self, events: &Events<'_>, from: PageRange, to: VirtAddr) {
        let Some(target) = PageRange::new(to, from.pages()) else { return };
        if self.is_own_change(target) {
            return;
        }
        let _notices = [from, target].map(|range| self.notifiers.start_if_any(range, Event::Unmap, false));
        self.drop_pages(events, target, |_| false);
        for (no, block) in self.space.blocks_in(from) {
            let Some(part) = from.intersect(no.range()) else { continue };
            for page in part.iter() {
                let Some((slot, frame)) = self.take_slot(&mut block.lock(), page) else { continue };
                let new = to.add_pages(page.pages_since(from.start()));
                frame.set_page(new);
                let block = self.space.block(new.block());
                self.occupy(&mut block.lock(), PageRange::page_of(new), frame, |frame| match slot {
                    Slot::Mapped(_) => Slot::Mapped(frame),
                    // Whoever worked on the page finds it gone and gives up only its own reference.
                    Slot::Unmapped { .. } | Slot::System => Slot::Unmapped { frame, busy: false },
                });
            }
            self.wake_all(&block, part);
        }
        self.space.move_regions(from, target);
        self.space.forget_removals(from);
        self.space.forget_blocks(events, from);
    }

    /// The program forked: what pages of it allow has changed, as the child has them too.
    pub fn forked(&self, _events: &Events<'_>) {
        drop(self.notifiers.start_if_any(PageRange::ALL, Event::ProtectionPage, false));
    }

    /// Calls `put` with each stretch of pages that the program does not map, and with an address at which their bytes are. Allocates
    /// nothing: whoever forks by the C library holds the locks of its `malloc` until this is done.
    ///
    /// # Errors
    ///
    /// [`TransferError`] if a device does not give its pages; `put` was called for some.
    pub fn for_each_unmapped(
        &self,
        _events: &Events<'_>,
        mut put: impl FnMut(PageRange, VirtAddr),
    ) -> Result<(), TransferError> {
        let mut after = None;
        while let Some((no, block)) = self.space.block_after(after) {
            after = Some(no);
            let state = block.lock();
            if state.unmapped() == 0 {
                continue;
            }
            for page in no.range().iter() {
                let Slot::Unmapped { frame, .. } = state.slot(page.index_in_block()) else { continue };
                let bytes = Frames::single(frame);
                let one = PageRange::page_of(page);
                if let Some(address) = self.address(bytes) {
                    put(one, address);
                    continue;
                }
                let via = self.take_stocked(PageCount::ONE, page, Purpose::Fault).ok_or(TransferError::Transient)?;
                // Each page is owed, as nobody can ask for it again: the child's memory is a copy of this moment.
                let copied = (0..DEVICE_TRIES).any(|_| self.copy_owed(bytes, via.frames()).is_ok());
                if !copied {
                    return Err(TransferError::Transient);
                }
                put(one, via.address().ok_or(TransferError::Transient)?);
            }
        }
        Ok(())
    }

    /// Drops the pages of `range`, but for those that are mapped in frames which `keep` theirs.
    fn drop_pages(&self, _events: &Events<'_>, range: PageRange, keep: impl Fn(Frame) -> bool) {
        for (no, block) in self.space.blocks_in(range) {
            let Some(part) = range.intersect(no.range()) else { continue };
            let mut state = block.lock();
            if state.unmapped() == 0 && state.mapped() == 0 {
                continue;
            }
            for page in part.iter() {
                match state.slot(page.index_in_block()) {
                    Slot::System => {}
                    Slot::Mapped(frame) if keep(frame) => {}
                    Slot::Mapped(_) => self.vacate(&mut state, PageRange::page_of(page), Left::Nothing),
                    Slot::Unmapped { .. } => self.vacate(&mut state, PageRange::page_of(page), Left::Page),
                }
            }
            drop(state);
            self.wake_all(&block, part);
        }
    }

    /// Threads that wait for pages of `part` look again.
    fn wake_all(&self, block: &crate::space::Block, part: PageRange) {
        if block.lock().take_waited() {
            self.host.wake(FaultPath::Thread, part);
            block.notify_settled();
        }
    }
}

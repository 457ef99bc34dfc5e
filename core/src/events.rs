//! What the program does to its own mappings, applied to the slots.
//!
//! Each is called with the gate held alone, right after the event was read and before anything else is installed. Mirrors are told
//! before it is applied, which is after the program's change was made: their callbacks may not wait for accesses by address.

use crate::engine::Engine;
use crate::notifier::Event;
use crate::port::{FaultPath, Host};
use crate::slot::Slot;
use crate::space::Events;
use crate::units::{PageRange, VirtAddr};

impl<H: Host> Engine<H> {
    /// `range` was unmapped: its pages and its management are gone.
    pub fn unmapped(&self, events: &Events<'_>, range: PageRange) {
        if self.is_own_change(range) {
            return;
        }
        if self.may_exchange() {
            self.exchanges.forget(range);
        }
        let _notice = self.notifiers.start_if_any(range, Event::Unmap, false);
        self.discard_pages(events, range, |_| false);
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
        self.discard_pages(events, range, |frame| self.lays(frame.device));
        self.space.add_removal(range);
    }

    /// The program has installed guard markers in `range`, or is about to remove some: what pages held that have one is discarded, and would
    /// come back once the marker is gone. The kernel raises no event for either, so it is the page map that is asked.
    pub fn guarded(&self, events: &Events<'_>, range: PageRange) {
        for (part, _) in self.space.regions_in(range).into_iter().filter(|(_, region)| region.is_some()) {
            for guarded in self.host.guarded_parts(part) {
                let _notice = self.notifiers.start_if_any(guarded, Event::Clear, false);
                // A block that is laid is shared memory, which keeps its bytes.
                self.discard_pages(events, guarded, |frame| self.lays(frame.device));
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
        self.discard_pages(events, target, |_| false);
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
        if self.may_exchange() {
            self.exchanges.moved(from, target);
        }
        self.space.move_regions(from, target);
        self.space.forget_removals(from);
        self.space.forget_blocks(events, from);
    }

    /// The program forked: what pages of it allow has changed, as the child has them too.
    pub fn forked(&self, _events: &Events<'_>) {
        drop(self.notifiers.start_if_any(PageRange::ALL, Event::ProtectionPage, false));
    }

    /// Threads that wait for pages of `part` look again.
    pub(crate) fn wake_all(&self, block: &crate::space::Block, part: PageRange) {
        if block.lock().take_waited() {
            self.host.wake(FaultPath::Thread, part);
            block.notify_settled();
        }
    }
}

//! Blocks of a device's frames in place of the program's pages, as `mremap` exchanges them.

use hetmem_core::outcome::KeptReason;
use hetmem_core::units::{PageRange, VirtAddr};

use super::inject::Failure;
use super::{Event, Memory, Model, Page, StepKind, nth};

/// Where a new mapping lies before it takes a block's place.
pub(super) const TEMPORARY: VirtAddr = VirtAddr::new(1 << 42);

impl Page {
    /// Whether a touch needs nobody's help.
    pub(crate) fn is_present(&self) -> bool {
        self.content.is_some() || self.laid.is_some()
    }

    /// Whether a touch sleeps.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.registered && !self.is_present() && !self.guarded
    }
}

impl Memory {
    /// Notes what a removal drops of a block that is about to be laid.
    pub(crate) fn note_dropped(&mut self, page: VirtAddr) {
        let missing = self.pages.get(&page.get()).is_some_and(|entry| !entry.is_present());
        if missing && self.exchanging.iter().any(|block| block.contains(page)) {
            self.dropped.entry(page.get()).or_insert_with(|| self.truth[&page.get()].clone());
        }
    }

    pub(crate) fn is_laid(&self, page: VirtAddr) -> bool {
        self.pages.get(&page.get()).is_some_and(|entry| entry.laid.is_some())
    }

    /// Whether the program is changing its mappings, which the kernel lets nobody's pages pass.
    pub(crate) fn is_changing(&self) -> bool {
        !self.events.is_empty() || !self.late.is_empty()
    }

    /// Maps the frames from `frames` on over `block`.
    pub(crate) fn lay(&mut self, block: PageRange, frames: VirtAddr) {
        for (i, page) in (0..).zip(block.iter()) {
            let entry = self.pages.get_mut(&page.get()).unwrap_or_else(|| panic!("{page}, to be laid, is not mapped"));
            assert!(entry.registered, "{page}, to be laid, is not watched");
            assert_eq!(entry.content, None, "the page at {page} is mapped over");
            (entry.laid, entry.registered, entry.written) = (Some(nth(frames, i)), false, true);
            // A removal that comes now finds shared memory, which keeps its bytes.
            self.no_longer_sure(page);
            let truth = self.truth.get_mut(&page.get()).expect("what is mapped has a truth");
            self.dropped.remove(&page.get()).into_iter().flat_map(|dropped| dropped.0).for_each(|old| truth.also(old));
        }
        self.queue(Event::Unmap(block));
    }

    /// Maps nothing over what is laid over `block`, and watches that.
    pub(crate) fn lift(&mut self, block: PageRange) {
        for page in block.iter() {
            let entry =
                self.pages.get_mut(&page.get()).unwrap_or_else(|| panic!("{page}, to be lifted, is not mapped"));
            assert!(entry.laid.take().is_some(), "{page}, to be lifted, is not laid");
            entry.registered = true;
        }
        let from = PageRange::new(TEMPORARY, block.pages()).expect("the place is valid");
        self.queue(Event::Remap { from, to: block.start() });
        self.queue(Event::Unmap(from));
    }
}

impl Model {
    /// Raises the events of [`Model::remove_late`].
    pub(crate) fn raise_late(&self) {
        let mut memory = self.lock();
        for event in std::mem::take(&mut memory.late) {
            memory.queue(event);
        }
        self.changed.notify_all();
    }

    /// Changes the mappings as `change` says, and returns when the handler thread knows. The program acts before and after.
    pub(crate) fn exchange(
        &self,
        kind: StepKind,
        block: PageRange,
        change: impl FnOnce(&mut Memory),
    ) -> Result<(), KeptReason> {
        self.lock().exchanging.push(block);
        let result = self.exchange_now(kind, change);
        self.lock().exchanging.retain(|other| *other != block);
        result
    }

    fn exchange_now(&self, kind: StepKind, change: impl FnOnce(&mut Memory)) -> Result<(), KeptReason> {
        if let Some(Failure::NotExchanged(reason)) = self.step(kind) {
            return Err(reason);
        }
        let queued = {
            let mut memory = self.lock();
            change(&mut memory);
            self.changed.notify_all();
            memory.events_queued
        };
        if self.threaded {
            self.wait_until_read_to(queued);
        } else {
            self.deliver();
        }
        self.raise_late();
        self.step(StepKind::Exchanged);
        Ok(())
    }
}

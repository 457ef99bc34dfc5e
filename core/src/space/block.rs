//! One block: its lock, its pages' states, and what else is known of them.

use super::slots::{Counts, Slots};
use crate::heat::{BlockHeat, Warmth};
use crate::slot::Slot;
use crate::sync::{Condvar, Mutex, MutexGuard, lock};
use crate::units::{PageCount, PageRange};

/// The pages of one 2 MiB block.
#[derive(Default)]
pub struct Block {
    state: Mutex<BlockState>,
    settled: Condvar,
}

/// What a block's lock guards.
#[derive(Default)]
pub struct BlockState {
    pub(super) slots: Slots,
    /// Whether a thread was told to wait for a busy page since the block last had none.
    waited: bool,
    /// Another mapping is about to take the place of the block's ([`crate::exchange`]): touches of all its pages wait.
    pub(crate) exchanging: bool,
    /// Of which chunks touches have brought something home.
    pub(crate) warmth: Warmth,
    /// How warm its pages are; `None` until one is taken out as a sample.
    pub(crate) heat: Option<Box<BlockHeat>>,
    /// Where the last fault's run ended, and how long the next one may be: the fault-around's memory.
    pub(crate) stream: Stream,
}

/// Sequential touches are recognised by the page at which the next one would fall.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stream {
    /// The index in the block that continues the stream.
    pub(crate) next: u16,
    /// Pages that the stream's last fault brought home.
    pub(crate) window: u16,
}

impl Block {
    /// Locks the block.
    pub fn lock(&self) -> MutexGuard<'_, BlockState> {
        lock(&self.state)
    }

    /// Waits, with the lock let go, until some page of the block is no longer busy.
    pub fn wait_settled<'a>(&'a self, mut state: MutexGuard<'a, BlockState>) -> MutexGuard<'a, BlockState> {
        state.waited = true;
        self.settled.wait(state).expect("no thread panicked while it held this lock")
    }

    /// Wakes those who wait in [`Block::wait_settled`].
    pub fn notify_settled(&self) {
        self.settled.notify_all();
    }
}

impl BlockState {
    /// The state of page `index` (0 to 511).
    #[inline]
    #[must_use]
    pub fn slot(&self, index: usize) -> Slot {
        self.slots.get(index)
    }

    /// Sets the state of page `index`.
    ///
    /// # Panics
    ///
    /// If the page may not come from its state to that one: a page would be lost or doubled ([`Slot::may_become`]).
    #[inline]
    pub fn set(&mut self, index: usize, slot: Slot) {
        let was = self.slots.get(index);
        assert!(was.may_become(slot), "a page that is {was:?} does not become {slot:?}");
        self.slots.set(index, was, slot);
    }

    /// Sets the states of the pages `at`, all of this block, to those of one run that begins with `first`: all the system's, or alike in frames that
    /// follow one another. `was` is told in which states they were, by runs.
    ///
    /// # Panics
    ///
    /// As [`BlockState::set`].
    pub(crate) fn set_run(&mut self, at: PageRange, first: Slot, mut was: impl FnMut(Slot, PageCount)) {
        let mut done = PageCount::ZERO;
        while done < at.pages() {
            let rest = at.slice(done, at.pages());
            let (before, pages) = self.slot_run(rest);
            let slot = first.behind(done);
            // If one frame is kept, so are those behind it, and all else is said of the device.
            assert!(before.may_become(slot), "a page that is {before:?} does not become {slot:?}");
            self.slots.set_run(rest.start().index_in_block(), pages, before, slot);
            was(before, pages);
            done += pages;
        }
    }

    /// `pages` pages of the system's are about to get other states: where those are many, room is made for all at once.
    pub(crate) fn expect(&mut self, pages: PageCount) {
        self.slots.expect(pages.as_usize());
    }

    /// Takes no more room than is of use for what the pages are now. Not where nothing may allocate or free.
    pub(crate) fn shrink(&mut self) {
        self.slots.shrink();
    }

    /// Forgets what is known of pages that are all the system's, but not who waits, nor for what.
    pub(super) fn forget(&mut self) {
        self.slots = Slots::default();
        (self.heat, self.warmth, self.stream) = (None, Warmth::default(), Stream::default());
    }

    /// Notes that a touch has brought `pages` home, or is about to, of which there might have been `window`; whether that had left lately.
    pub(crate) fn note_touch(&mut self, pages: PageRange, window: u16, now: u32) -> bool {
        let first = pages.start().index_in_block();
        self.warmth.touch(first);
        let is_refault = self.note_use(first, now);
        let next = u16::try_from(first + pages.pages().as_usize()).expect("a block has 512 pages");
        self.stream = Stream { next, window };
        is_refault
    }

    /// Notes that `pages` were taken out of the program.
    pub(crate) fn note_taken_out(&mut self, pages: PageRange) {
        if let Some(heat) = &mut self.heat {
            pages.iter().for_each(|page| heat.taken_out(page.index_in_block()));
        }
    }

    /// Notes that page `index` was touched; whether it is known to have been seen lately.
    pub(crate) fn note_use(&mut self, index: usize, now: u32) -> bool {
        self.heat.as_mut().is_some_and(|heat| heat.touched(index, now))
    }

    /// Notes that a thread waits for a busy page.
    #[inline]
    pub fn note_waiter(&mut self) {
        self.waited = true;
    }

    /// Whether somebody may wait for pages that were busy; forgotten once no page is, and none waits for an exchange.
    #[inline]
    pub fn take_waited(&mut self) -> bool {
        let waited = self.waited;
        if self.slots.counts().busy() == 0 && !self.exchanging {
            self.waited = false;
        }
        waited
    }

    /// Pages whose bytes lie in a frame that the program doesn't map.
    #[inline]
    #[must_use]
    pub fn unmapped(&self) -> u16 {
        self.slots.counts().unmapped()
    }

    /// Pages that lie in a mapped frame of a coherent device.
    #[inline]
    #[must_use]
    pub fn mapped(&self) -> u16 {
        self.slots.counts().mapped()
    }

    /// Whether all pages are the system's.
    pub(super) fn is_system(&self) -> bool {
        self.slots.counts() == Counts::default()
    }

    /// Checks the books of the slots.
    ///
    /// # Panics
    ///
    /// If they disagree with the slots.
    pub fn check(&self) {
        self.slots.check();
    }
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Block>() <= 48, "sixteen of these are made together");

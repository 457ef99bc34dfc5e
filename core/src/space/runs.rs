//! Pages of a block whose slots are alike, found without a look at each: what breaks runs is counted as slots change.

use super::BlockState;
use crate::frames::Frames;
use crate::slot::Slot;
use crate::units::{PageCount, PageRange};

impl BlockState {
    /// How many of page `index` and the one behind it do not go on where the page before them ends.
    #[inline]
    pub(super) fn breaks_around(&self, index: usize) -> u16 {
        let around = &self.slots[index.saturating_sub(1)..self.slots.len().min(index + 2)];
        around.windows(2).map(|pair| u16::from(!pair[0].goes_on_with(pair[1]))).sum()
    }

    /// The first slot of the pages `range`, and how many of them from there on are one run: the system's, or alike in frames that follow one another.
    #[inline]
    #[must_use]
    pub fn slot_run(&self, range: PageRange) -> (Slot, PageCount) {
        let first = range.start().index_in_block();
        let pages = if self.breaks == 0 { range.pages() } else { self.run_in(first, range.pages()) };
        (self.slot(first), pages)
    }

    /// How many of the `pages` pages from index `first` on are one run.
    #[inline]
    fn run_in(&self, first: usize, pages: PageCount) -> PageCount {
        let slots = &self.slots[first..][..pages.as_usize()];
        let going_on = slots.windows(2).take_while(|pair| pair[0].goes_on_with(pair[1])).count();
        PageCount::new(going_on as u64 + 1)
    }

    /// The frames of the pages `range` from the first on that rest in frames which follow one another, not in the program.
    pub(crate) fn resting_run(&self, range: PageRange) -> Option<Frames> {
        match self.slot_run(range) {
            (Slot::Unmapped { frame, busy: false }, pages) => Some(Frames::new(frame, pages)),
            (Slot::Unmapped { .. } | Slot::Mapped(_) | Slot::System, _) => None,
        }
    }
}

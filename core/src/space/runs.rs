//! Pages of a block whose slots are alike, found without a look at each: what breaks runs is counted as slots change.

use super::BlockState;
use crate::frames::Frames;
use crate::slot::Slot;
use crate::units::{PageCount, PageRange};

impl BlockState {
    /// The first slot of the pages `range`, and how many of them from there on are one run: the system's, or alike in frames that follow one another.
    #[inline]
    #[must_use]
    pub fn slot_run(&self, range: PageRange) -> (Slot, PageCount) {
        let first = range.start().index_in_block();
        let pages = if self.slots.is_one_run() {
            range.pages()
        } else {
            PageCount::new(self.slots.run(first, range.pages().as_usize()) as u64)
        };
        (self.slot(first), pages)
    }

    /// The frames of the pages `range` from the first on that rest in frames which follow one another, not in the program.
    pub(crate) fn resting_run(&self, range: PageRange) -> Option<Frames> {
        match self.slot_run(range) {
            (Slot::Unmapped { frame, busy: false }, pages) => Some(Frames::new(frame, pages)),
            (Slot::Unmapped { .. } | Slot::Mapped(_) | Slot::System, _) => None,
        }
    }
}

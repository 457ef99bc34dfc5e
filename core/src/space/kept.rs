//! What keeps pages of a range from leaving for a while: exclusions, and removals that were announced.

use super::Space;
use crate::range_map::RangeMap;
use crate::sync::{RwLockReadGuard, lock, read, try_read, write};
use crate::units::PageRange;

/// The number of exclusions of a range that stays excluded.
const FOR_GOOD: u32 = u32::MAX;

/// A `MADV_DONTNEED` that was announced and may not be over: until it is, pages of its range stay.
#[derive(Clone, Copy)]
pub(super) struct Removal {
    /// The range as it was announced.
    announced: PageRange,
    looks: u32,
}

impl Space {
    /// Keeps the pages of `range` from being taken out, until [`Space::include`] has been called as often as this. On return no migration that began
    /// earlier can still take one; a page that is out already comes home with its next touch, and stays.
    pub fn exclude(&self, range: PageRange) {
        write(&self.excluded).raise(range);
    }

    /// Keeps the pages of `range` from being taken out, for good.
    pub fn exclude_for_good(&self, range: PageRange) {
        write(&self.excluded).insert(range, FOR_GOOD);
    }

    /// Ends one exclusion of `range`.
    pub fn include(&self, range: PageRange) {
        write(&self.excluded).lower(range);
    }

    /// The excluded ranges, in order.
    #[must_use]
    pub fn exclusions(&self) -> Vec<PageRange> {
        read(&self.excluded).iter().map(|(range, _)| range).collect()
    }

    /// The excluded ranges, in order, unless somebody is about to change them.
    #[must_use]
    pub fn try_exclusions(&self) -> Option<Vec<PageRange>> {
        Some(try_read(&self.excluded)?.iter().map(|(range, _)| range).collect())
    }

    /// What is excluded, unless somebody is about to change it: with the gate held nobody may wait for him. He may run on memory that is away, whose
    /// touch is served only when the gate is let go.
    pub(crate) fn excluded(&self) -> Option<RwLockReadGuard<'_, RangeMap<u32>>> {
        try_read(&self.excluded)
    }

    /// Announced removals that are not known to be over.
    pub fn removals(&self) -> Vec<PageRange> {
        lock(&self.removals).iter().map(|(range, _)| range).collect()
    }

    /// A removal of `range` was announced, perhaps to another who watched the range before.
    pub fn add_removal(&self, range: PageRange) {
        lock(&self.removals).insert(range, Removal { announced: range, looks: 0 });
    }

    pub(crate) fn forget_removals(&self, range: PageRange) {
        lock(&self.removals).remove(range);
    }

    /// The parts of `range` that are still subject to an announced removal. `present` says which pages of a range are there: one
    /// that is not was removed already, or has nothing to be removed. `over` says whether a removal is known to be over.
    pub(crate) fn being_removed(
        &self,
        range: PageRange,
        present: impl Fn(PageRange) -> Vec<PageRange>,
        over: impl Fn(PageRange, u32) -> bool,
    ) -> RangeMap<()> {
        let mut suspects = RangeMap::default();
        let mut removals = lock(&self.removals);
        for (part, mut removal) in removals.remove(range) {
            let there = present(part);
            if there.is_empty() || over(removal.announced, removal.looks) {
                continue;
            }
            removal.looks = removal.looks.saturating_add(1);
            for there in there {
                removals.insert(there, removal);
                suspects.insert(there, ());
            }
        }
        suspects
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{PAGE_SIZE, PageCount, VirtAddr};

    fn range(page: u64, pages: u64) -> PageRange {
        PageRange::new(VirtAddr::new(page * PAGE_SIZE), PageCount::new(pages)).unwrap()
    }

    fn excluded(space: &Space) -> Vec<u64> {
        space.exclusions().into_iter().flat_map(PageRange::iter).map(|page| page.get() / PAGE_SIZE).collect()
    }

    #[test]
    fn each_exclusion_holds_until_it_ends_whatever_overlaps_it() {
        let space = Space::default();
        space.exclude(range(10, 8));
        space.exclude(range(14, 8));
        space.exclude(range(12, 1));
        space.include(range(10, 8));
        assert_eq!(excluded(&space), [12, 14, 15, 16, 17, 18, 19, 20, 21]);
        space.include(range(14, 8));
        space.include(range(12, 1));
        assert_eq!(excluded(&space), [0; 0]);
        // One too many is none.
        space.include(range(12, 1));
        space.exclude(range(12, 1));
        assert_eq!(excluded(&space), [12]);
    }

    #[test]
    fn what_is_excluded_for_good_stays_so() {
        let space = Space::default();
        space.exclude(range(10, 4));
        space.exclude_for_good(range(12, 4));
        space.include(range(10, 8));
        assert_eq!(excluded(&space), [12, 13, 14, 15]);
        space.exclude(range(12, 1));
        space.include(range(12, 1));
        assert_eq!(excluded(&space), [12, 13, 14, 15]);
    }
}

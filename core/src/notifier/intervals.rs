//! The subscribed ranges, which may overlap, in classes by length: in a class all lengths are within a factor of two, so those that can reach
//! into a range begin in a window around it, found by bisection.

use super::Subscriber;
use crate::sync::Arc;
use crate::units::PageRange;

/// A class for each power of two that a number of pages can be.
const CLASSES: usize = 53;

/// Subscriptions by the ranges that they are of.
pub(super) struct Intervals {
    // Invariant: sorted by start; class k has ranges of 2^k up to but without 2^(k+1) pages.
    classes: [Vec<Arc<Subscriber>>; CLASSES],
    /// Which classes have a range: bit k for class k.
    used: u64,
}

impl Default for Intervals {
    fn default() -> Self {
        Self { classes: [const { Vec::new() }; CLASSES], used: 0 }
    }
}

/// How far a walk has come.
#[derive(Clone, Copy, Default)]
pub(super) struct Cursor {
    class: usize,
    index: usize,
}

impl Intervals {
    /// The class of ranges as long as `range`, which has a page.
    fn class_of(range: PageRange) -> usize {
        (range.pages().get().ilog2() as usize).min(CLASSES - 1)
    }

    pub(super) fn insert(&mut self, subscriber: Arc<Subscriber>) {
        let k = Self::class_of(subscriber.range);
        let class = &mut self.classes[k];
        let at = class.partition_point(|s| s.range.start() <= subscriber.range.start());
        class.insert(at, subscriber);
        self.used |= 1 << k;
    }

    /// Removes `subscriber`, if it is there.
    pub(super) fn remove(&mut self, subscriber: &Arc<Subscriber>) {
        let k = Self::class_of(subscriber.range);
        self.classes[k].retain(|s| !Arc::ptr_eq(s, subscriber));
        if self.classes[k].is_empty() {
            self.used &= !(1 << k);
        }
    }

    /// The first subscription from `cursor` on that shares a page with `range`, and where the walk goes on.
    pub(super) fn next(&self, range: PageRange, cursor: Cursor) -> Option<(Arc<Subscriber>, Cursor)> {
        let mut left = self.used & u64::MAX << cursor.class;
        while left != 0 {
            let k = left.trailing_zeros() as usize;
            left &= left - 1;
            let class = &self.classes[k];
            // No range of the class reaches from before this to `range`.
            let reach = (2u64 << k).saturating_mul(crate::units::PAGE_SIZE);
            let lowest = range.start().get().saturating_sub(reach);
            let mut index = class.partition_point(|s| s.range.start().get() < lowest);
            if k == cursor.class {
                index = index.max(cursor.index);
            }
            while let Some(subscriber) = class.get(index).filter(|s| s.range.start() < range.end()) {
                index += 1;
                if subscriber.range.overlaps(range) {
                    return Some((Arc::clone(subscriber), Cursor { class: k, index }));
                }
            }
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::atomic::AtomicU64;
    use crate::units::{PAGE_SIZE, PageCount, VirtAddr};
    use proptest::prelude::*;

    fn subscriber(start: u64, pages: u64) -> Arc<Subscriber> {
        let range = PageRange::new(VirtAddr::new(start * PAGE_SIZE), PageCount::new(pages)).unwrap();
        Arc::new(Subscriber { range, seq: AtomicU64::new(1), callback: Box::new(|_| {}) })
    }

    proptest! {
        /// Against a list that is searched from end to end.
        #[test]
        fn finds_what_overlaps_once(
            ops in prop::collection::vec((any::<bool>(), 0u64..3000, 1u64..900), 1..60),
            queries in prop::collection::vec((0u64..3000, 1u64..900), 1..20),
        ) {
            let (mut intervals, mut list) = (Intervals::default(), Vec::<Arc<Subscriber>>::new());
            for (remove, start, pages) in ops {
                if remove && !list.is_empty() {
                    let gone = list.swap_remove(usize::try_from(start).unwrap() % list.len());
                    intervals.remove(&gone);
                } else {
                    let new = subscriber(start, pages);
                    intervals.insert(Arc::clone(&new));
                    list.push(new);
                }
            }
            for (start, pages) in queries {
                let range = subscriber(start, pages).range;
                let (mut found, mut cursor) = (Vec::new(), Cursor::default());
                while let Some((one, next)) = intervals.next(range, cursor) {
                    found.push(Arc::as_ptr(&one) as usize);
                    cursor = next;
                }
                let mut expected: Vec<usize> =
                    list.iter().filter(|s| s.range.overlaps(range)).map(|s| Arc::as_ptr(s) as usize).collect();
                found.sort_unstable();
                expected.sort_unstable();
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn the_whole_address_space_can_be_subscribed_to() {
        let mut intervals = Intervals::default();
        let all = subscriber(0, (1 << 52) - 1);
        intervals.insert(Arc::clone(&all));
        assert!(intervals.next(subscriber(1 << 51, 1).range, Cursor::default()).is_some());
        intervals.remove(&all);
        assert!(intervals.next(all.range, Cursor::default()).is_none());
    }
}

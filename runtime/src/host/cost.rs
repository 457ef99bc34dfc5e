//! What a MOVE costs here and now: mostly the wait until other processors have forgotten the old translation. Where the program's other threads
//! sleep there is no such wait; where they run it is ten times as long as a page takes by itself, and more in a virtual machine.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use hetmem_core::units::PageCount;

/// What each page adds to a MOVE, in nanoseconds.
const MOVED: u32 = 400;
/// What a page costs that the kernel takes for a copy, and that is given back for it later, in nanoseconds; without the copy. It is from 500 to
/// 2000, the more the further away the memory is that the machine itself gets it from.
const TAKEN: u32 = 1500;
/// As many pages move sooner until it is known; longer runs tell nothing.
const FEW: u32 = 16;
/// The part of the estimate that the newest MOVE is.
const WEIGHT: u32 = 8;

/// An estimate from the MOVEs of few pages that were made lately.
pub(crate) struct MoveCost(AtomicU32);

impl Default for MoveCost {
    fn default() -> Self {
        Self(AtomicU32::new(TAKEN * FEW))
    }
}

impl MoveCost {
    /// The clock, for a MOVE of so many pages, if that would tell something.
    pub(crate) fn begin(pages: PageCount) -> Option<Instant> {
        (pages.get() <= u64::from(FEW)).then(Instant::now)
    }

    /// Takes a MOVE of `pages` pages that [`began`](Self::begin) so into account.
    pub(crate) fn note(&self, began: Instant, pages: PageCount) {
        let took = u32::try_from(began.elapsed().as_nanos()).unwrap_or(u32::MAX);
        self.learn(took, pages);
    }

    fn learn(&self, took: u32, pages: PageCount) {
        let pages = u32::try_from(pages.get()).unwrap_or(FEW).min(FEW);
        // Who is kept from running meanwhile learns nothing of the MOVE.
        let cost = took.saturating_sub(pages * MOVED).min(2 * TAKEN * FEW);
        // Relaxed: a guess. Two that learn at once may forget one of the two.
        let known = self.0.load(Ordering::Relaxed);
        self.0.store(known - known / WEIGHT + cost / WEIGHT, Ordering::Relaxed);
    }

    /// Whether a MOVE of pages that are there costs less than as many that the kernel takes.
    pub(crate) fn is_worth_it(&self, pages: PageCount) -> bool {
        u64::from(self.0.load(Ordering::Relaxed)) <= pages.get().saturating_mul(u64::from(TAKEN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: PageCount = PageCount::ONE;

    #[test]
    fn pages_alone_move_where_nobody_waits_for_other_processors_and_are_copied_where_somebody_does() {
        let cost = MoveCost::default();
        assert!(!cost.is_worth_it(ONE) && cost.is_worth_it(PageCount::new(16)));
        (0..64).for_each(|_| cost.learn(1_000, ONE));
        assert!(cost.is_worth_it(ONE));
        // Longer than it ever takes: whoever was kept from running that long still moves runs soon.
        (0..64).for_each(|_| cost.learn(u32::MAX, ONE));
        assert!(!cost.is_worth_it(PageCount::new(16)) && cost.is_worth_it(PageCount::new(64)));
        (0..64).for_each(|_| cost.learn(14_000, ONE));
        assert!(!cost.is_worth_it(ONE) && !cost.is_worth_it(PageCount::new(4)) && cost.is_worth_it(PageCount::new(16)));
    }

    #[test]
    fn long_runs_tell_nothing() {
        assert!(MoveCost::begin(PageCount::new(16)).is_some() && MoveCost::begin(PageCount::new(17)).is_none());
    }
}

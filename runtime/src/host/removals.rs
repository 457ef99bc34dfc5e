//! Which announced removals are over (`MADV_DONTNEED` and its like).
//!
//! The kernel announces a removal before the pages go, and does not say when they are gone. It is over once every thread that may have been in the
//! call was seen outside: at rest, gone, or coming back from a call that is interposed. One that enters it later announces itself anew.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::PageRange;

/// Removals that are followed at a time. Of the oldest nothing is known again when there are more: it is asked for anew.
const MOST: usize = 64;
/// Threads whose returns are remembered; two that share a place forget each other's.
const RETURNS: usize = 256;

/// A removal that may not be over.
struct Pending {
    announced: PageRange,
    /// When its threads were listed.
    moment: u32,
    /// Those of them that have not been seen outside since.
    threads: Vec<u32>,
}

/// Which threads have come back from calls that remove pages, and when.
pub(crate) struct Returns {
    moment: AtomicU32,
    /// The number of a thread, and below it the moment at which it has come back.
    of: [AtomicU64; RETURNS],
}

/// Those of this process: threads say so whether or not anybody asks at the moment, and hold nothing for it.
pub(crate) static RETURNED: Returns = Returns::new();

impl Returns {
    const fn new() -> Self {
        Self { moment: AtomicU32::new(0), of: [const { AtomicU64::new(0) }; RETURNS] }
    }

    /// Thread `tid`, the caller, has come back from a call that removes pages.
    pub(crate) fn returned(&self, tid: u32) {
        // SeqCst, here and below: a moment that begins after this load is later than this return.
        let moment = self.moment.load(Ordering::SeqCst);
        self.of[tid as usize % RETURNS].store(u64::from(tid) << 32 | u64::from(moment), Ordering::SeqCst);
    }

    fn has_returned_since(&self, tid: u32, moment: u32) -> bool {
        let word = self.of[tid as usize % RETURNS].load(Ordering::SeqCst);
        let seen = u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
        word >> 32 == u64::from(tid) && seen.wrapping_sub(moment) <= u32::MAX / 2
    }
}

/// Announced removals that are not known to be over, each with the threads that may still be at it.
pub(crate) struct Removals {
    pending: Mutex<Vec<Pending>>,
    returns: &'static Returns,
}

impl Default for Removals {
    fn default() -> Self {
        Self { pending: Mutex::default(), returns: &RETURNED }
    }
}

impl Removals {
    /// Whether the removal that was announced for `range` is known to be over. `looks` counts the questions before; `threads` lists all threads but
    /// the caller, if that is possible, and `is_at_rest` looks at one.
    pub(super) fn is_over(
        &self,
        range: PageRange,
        looks: u32,
        threads: impl FnOnce() -> Option<Vec<u32>>,
        is_at_rest: impl Fn(u32) -> bool,
    ) -> bool {
        let mut pending = lock(&self.pending);
        pending.retain(|removal| looks > 0 || removal.announced != range);
        if !pending.iter().any(|removal| removal.announced == range) {
            let moment = self.returns.moment.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
            // Without the list nothing is known.
            let Some(threads) = threads() else { return false };
            if pending.len() == MOST {
                pending.remove(0);
            }
            pending.push(Pending { announced: range, moment, threads });
        }
        let Some(at) = pending.iter().position(|removal| removal.announced == range) else { return false };
        let Pending { moment, threads, .. } = &mut pending[at];
        threads.retain(|tid| !self.returns.has_returned_since(*tid, *moment) && !is_at_rest(*tid));
        if threads.is_empty() {
            pending.remove(at);
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hetmem_core::units::{PAGE_SIZE, PageCount, VirtAddr};

    fn range(page: u64) -> PageRange {
        PageRange::new(VirtAddr::new(page * PAGE_SIZE), PageCount::ONE).unwrap()
    }

    /// With returns of its own.
    fn apart() -> Removals {
        Removals { pending: Mutex::default(), returns: Box::leak(Box::new(Returns::new())) }
    }

    #[test]
    fn a_thread_that_runs_is_outside_once_it_has_come_back() {
        let removals = apart();
        let ask = |looks, at_rest: &[u32]| {
            removals.is_over(range(1), looks, || Some(vec![7, 9]), |tid| at_rest.contains(&tid))
        };
        // What it did before the question says nothing.
        removals.returns.returned(7);
        assert!(!ask(0, &[9]));
        // Another's return in the same place neither.
        removals.returns.returned(7 + 256);
        assert!(!ask(1, &[]));
        removals.returns.returned(7);
        assert!(ask(2, &[]));
        // A new announcement begins anew.
        assert!(!ask(0, &[9]));
    }

    #[test]
    fn without_a_list_nothing_is_over() {
        let removals = apart();
        assert!(!removals.is_over(range(1), 0, || None, |_| true));
        assert!(removals.is_over(range(1), 1, || Some(Vec::new()), |_| true));
    }

    #[test]
    fn of_many_the_last_is_followed() {
        let removals = apart();
        for page in 0..1000 {
            assert!(!removals.is_over(range(page), 0, || Some(vec![7]), |_| false));
        }
        assert!(removals.is_over(range(999), 1, || None, |_| true));
        // Of the first nothing is known any more.
        assert!(!removals.is_over(range(0), 1, || Some(vec![7]), |_| false));
        assert!(removals.is_over(range(0), 2, || None, |_| true));
    }
}

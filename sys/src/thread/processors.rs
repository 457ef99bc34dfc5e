//! Processors, and which of them a thread runs on.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::errno::Errno;

/// A set of processors, in the order of their numbers.
#[derive(Clone, Copy, Debug)]
pub struct Processors(CpuSet);

impl Processors {
    /// Those that the calling thread may run on; none where the kernel knows more of them than there is room for.
    #[must_use]
    pub fn of_this_thread() -> Self {
        Self(sched_getaffinity(None).unwrap_or_default())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.count() as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The calling thread runs on any of them from now on.
    ///
    /// # Errors
    ///
    /// As [`Self::stay_on`].
    pub fn stay_anywhere(&self) -> Result<(), Errno> {
        sched_setaffinity(None, &self.0)
    }

    /// The calling thread runs on none but the `nth` of them from now on.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there are not as many, or it may no longer run there; what sched_setaffinity(2) says.
    pub fn stay_on(&self, nth: usize) -> Result<(), Errno> {
        let mut members = (0..CpuSet::MAX_CPU).filter(|cpu| self.0.is_set(*cpu));
        let mut one = CpuSet::new();
        one.set(members.nth(nth).ok_or(Errno::INVAL)?);
        sched_setaffinity(None, &one)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stays_where_it_was_put() {
        let all = Processors::of_this_thread();
        assert!(!all.is_empty());
        for nth in 0..all.len() {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    all.stay_on(nth).unwrap();
                    let here = Processors::of_this_thread();
                    assert_eq!(here.len(), 1);
                    assert_eq!(here.stay_on(1), Err(Errno::INVAL));
                });
            });
        }
        assert_eq!(Processors::of_this_thread().len(), all.len(), "the others stay where they may run");
    }
}

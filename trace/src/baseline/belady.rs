//! Belady's optimum, in one pass, without knowing the future.
//!
//! A touch at `t` of a page that was touched last at `p` is a hit if the page had a place from `p` to `t`. So each pair of touches is an interval
//! that wants one of the places that are left beside that of the page just touched, and the most hits are the most intervals that fit. Intervals are
//! met in order of their ends; for them it is best to give each the place that became free last before it began, if there is one (Faigle and Nawijn;
//! Carlisle and Lloyd). That is known at `t`: a place is the time since which it is free, and what is asked for is the latest of these that is not
//! after `p`.
//!
//! Times are bits in a word of words of words. They are numbered anew when they run out: only those matter at which a page was touched last, or a
//! place became free.

use super::{Baseline, Misses, Op, What, reach};
use crate::space::NONE;

pub(crate) struct Belady {
    /// Places that were never used.
    unused: usize,
    free: Times,
    /// When each page was touched last.
    last: Vec<u32>,
    now: u32,
    misses: Misses,
}

/// The first number of times.
const FIRST_TIMES: usize = 1 << 20;

impl Belady {
    pub(crate) fn new(limit: usize) -> Self {
        let unused = limit.saturating_sub(1);
        Self { unused, free: Times::new(FIRST_TIMES), last: Vec::new(), now: 0, misses: Misses::NONE }
    }

    /// Whether the page that was touched at `last` had a place until now.
    #[inline]
    fn hits(&mut self, last: u32) -> bool {
        if last == self.now.wrapping_sub(1) {
            return true;
        }
        match self.free.latest(last) {
            Some(since) => self.free.remove(since),
            None if self.unused > 0 => self.unused -= 1,
            None => return false,
        }
        // Until the touch before this one somebody else could not have it.
        self.free.add(self.now - 1);
        true
    }

    /// Numbers the times anew that matter; there are twice as many after it at least.
    fn renumber(&mut self) {
        let mut used = Times::new(self.free.len());
        self.last.iter().filter(|time| **time != NONE).for_each(|time| used.add(*time));
        self.free.each(|time| used.add(time));
        // How many come before each word.
        let mut before = Vec::with_capacity(used.words().len());
        let mut count = 0;
        for word in used.words() {
            before.push(count);
            count += word.count_ones();
        }
        let new = |time: u32| {
            let (word, bit) = (time as usize / 64, time % 64);
            before[word] + (used.words()[word] & ((1 << bit) - 1)).count_ones()
        };
        let mut free = Times::new((count as usize * 2).next_power_of_two().max(FIRST_TIMES));
        self.free.each(|time| free.add(new(time)));
        self.last.iter_mut().filter(|time| **time != NONE).for_each(|time| *time = new(*time));
        (self.free, self.now) = (free, count);
    }
}

impl Baseline for Belady {
    fn run(&mut self, ops: &[Op]) {
        for op in ops {
            let at = reach(&mut self.last, op.page, NONE);
            if op.what == What::Forget {
                self.last[at] = NONE;
                continue;
            }
            if self.now as usize >= self.free.len() {
                self.renumber();
            }
            let last = self.last[at];
            if last == NONE || !self.hits(last) {
                self.misses.count(*op);
            }
            self.last[at] = self.now;
            self.now += 1;
        }
    }

    fn misses(&self) -> &Misses {
        &self.misses
    }
}

/// A set of times.
struct Times {
    /// A bit for each time; then one for each word before, and so on.
    levels: Vec<Vec<u64>>,
}

impl Times {
    /// None of `len` times, which is a multiple of 64.
    fn new(len: usize) -> Self {
        let mut levels = vec![vec![0; len / 64]];
        while let Some(last) = levels.last().filter(|last| last.len() > 1) {
            let next = vec![0; last.len().div_ceil(64)];
            levels.push(next);
        }
        Self { levels }
    }

    fn len(&self) -> usize {
        self.levels[0].len() * 64
    }

    fn words(&self) -> &[u64] {
        &self.levels[0]
    }

    #[inline]
    fn add(&mut self, time: u32) {
        let mut at = time as usize;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            let was = *word;
            *word |= 1 << (at % 64);
            if was != 0 {
                break;
            }
            at /= 64;
        }
    }

    #[inline]
    fn remove(&mut self, time: u32) {
        let mut at = time as usize;
        for level in &mut self.levels {
            let word = &mut level[at / 64];
            *word &= !(1 << (at % 64));
            if *word != 0 {
                break;
            }
            at /= 64;
        }
    }

    /// The latest that is not after `time`.
    #[inline]
    fn latest(&self, time: u32) -> Option<u32> {
        // Up to where there is one, not after at first, and before from then on.
        let mut at = time as usize;
        let mut mask = u64::MAX >> (63 - at % 64);
        let mut height = 0;
        let mut found = loop {
            let word = self.levels.get(height)?[at / 64] & mask;
            if word != 0 {
                break at / 64 * 64 + word.ilog2() as usize;
            }
            at /= 64;
            mask = (1 << (at % 64)) - 1;
            height += 1;
        };
        for level in self.levels[..height].iter().rev() {
            found = found * 64 + level[found].ilog2() as usize;
        }
        u32::try_from(found).ok()
    }

    fn each(&self, mut visit: impl FnMut(u32)) {
        for (at, word) in (0_u32..).zip(self.words()) {
            let mut rest = *word;
            while rest != 0 {
                visit(at * 64 + rest.trailing_zeros());
                rest &= rest - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn times_are_a_set(ops in prop::collection::vec((0..3_u8, 0..70_000_u32), 1..400)) {
            let (mut times, mut set) = (Times::new(1 << 17), BTreeSet::new());
            for (what, time) in ops {
                match what {
                    0 => { times.add(time); set.insert(time); }
                    1 => { times.remove(time); set.remove(&time); }
                    _ => prop_assert_eq!(times.latest(time), set.range(..=time).next_back().copied()),
                }
            }
            let mut all = Vec::new();
            times.each(|time| all.push(time));
            prop_assert_eq!(all, set.into_iter().collect::<Vec<_>>());
        }
    }
}

//! Textbook policies over single pages, to compare with: they see every touch, and move pages at no cost.
//!
//! ```text
//! lru      the page that was not touched for longest leaves
//! clock    a hand goes round, and passes over what was touched since it came by
//! s3fifo   three queues: new pages, pages that were touched again, pages that have left
//! belady   the page leaves whose next touch is farthest away: no policy has fewer misses
//! ```

mod belady;
mod clock;
mod lru;
mod s3fifo;

use crate::space::GROUPS;

/// What happens to a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// It is touched.
    Touch,
    /// It is touched, and nothing was in it before.
    First,
    /// It comes, or is there, without having been touched.
    Along,
    /// It is gone.
    Forget,
}

/// Something that happens to page number `page`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) page: u32,
    pub(crate) group: u8,
    pub(crate) what: What,
}

/// Touches that found their page elsewhere than in system memory, by [groups](GROUPS).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Misses(pub(crate) [u64; GROUPS]);

impl Misses {
    pub(crate) const NONE: Self = Self([0; GROUPS]);

    /// Counts the touch that `op` is.
    #[inline]
    fn count(&mut self, op: Op) {
        self.0[usize::from(op.group)] += u64::from(op.what == What::Touch);
    }

    #[cfg(test)]
    fn sum(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// A policy at some limit.
pub(crate) trait Baseline {
    /// Has all of this happen.
    fn run(&mut self, ops: &[Op]);

    /// What it has missed so far.
    fn misses(&self) -> &Misses;
}

/// Makes one for a limit in pages.
type Make = fn(usize) -> Box<dyn Baseline>;

/// All of them: their names, how they are made, and what they keep of a page, in bytes.
pub(crate) const BASELINES: [(&str, Make, u64); 4] = [
    ("CLOCK", |limit| Box::new(clock::Clock::new(limit)), 9),
    ("LRU", |limit| Box::new(lru::Lru::new(limit)), 8),
    ("S3-FIFO", |limit| Box::new(s3fifo::S3Fifo::new(limit)), 24),
    ("Belady", |limit| Box::new(belady::Belady::new(limit)), 6),
];

/// Makes `of` long enough for index `at`.
#[inline]
fn reach<T: Clone>(of: &mut Vec<T>, at: u32, fill: T) -> usize {
    let at = at as usize;
    if at >= of.len() {
        of.resize((at + 1).next_power_of_two().max(1024), fill);
    }
    at
}

#[cfg(test)]
mod tests;

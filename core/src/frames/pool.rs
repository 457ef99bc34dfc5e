//! The pool of system pages: where pages rest on their way out, and where pages on their way home come from.
//!
//! The pool is a stretch of address space that is never the program's. A place in it is *empty* (nothing populated: room for a page
//! on its way out), *stocked* (a populated page with no content that matters: the destination of the next page home), or in
//! use. Populated pages are recycled: allocation and zeroing stay off the hot path. What a page leaves in stock rests there with its bytes until it
//! is used again or cleared ([`SystemPool::clear_old`]). The pool *grows* block by block, as more is needed: what is beyond counts as none of the
//! process's memory.
//!
//! *Limits:* the last [`FAULT_RESERVE`] places are kept for faults, so that a CPU touch never waits for migrations, nor for memory that the host does
//! not give.

use super::clearing::Clearing;
use super::references::{References, Released};
use super::run::FrameRun;
use super::run_set::RunSet;
use crate::sync::{Mutex, lock};
use crate::units::{BLOCK_PAGES, BLOCK_SIZE, FrameIndex, PageCount, VirtAddr};

/// Places that only faults may use; one in the tiny pools that the model checker can bear.
pub const FAULT_RESERVE: PageCount = PageCount::new(if cfg!(loom) { 1 } else { 128 });

/// Who asks for a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A CPU fault, which may use the reserve.
    Fault,
    /// A migration.
    Migration,
}

struct Sets {
    empty: RunSet,
    stocked: RunSet,
    /// Places below this are there.
    grown: PageCount,
}

/// System pages at rest, and room for pages in transit.
pub struct SystemPool {
    start: VirtAddr,
    places: Box<[References]>,
    stock_limit: PageCount,
    sets: Mutex<Sets>,
    /// Of the stock.
    clearing: Clearing,
}

impl SystemPool {
    /// A pool from `start` on of `grown` empty places, which may become `capacity`, and which keeps at most `stock_limit` populated pages in stock.
    ///
    /// # Panics
    ///
    /// If `start` is not a multiple of 2 MiB (huge pages could not pass whole) or the pool is smaller than twice its reserve.
    #[must_use]
    pub fn new(start: VirtAddr, grown: PageCount, capacity: PageCount, stock_limit: PageCount) -> Self {
        assert!(start.get().is_multiple_of(BLOCK_SIZE), "the pool starts at a 2 MiB boundary");
        assert!(grown.get() >= 2 * FAULT_RESERVE.get(), "the pool is larger than its reserve");
        let places = (0..capacity.get()).map(|_| References::default()).collect();
        let mut empty = RunSet::empty(capacity);
        empty.insert_all(PageCount::ZERO, grown);
        let sets = Mutex::new(Sets { empty, stocked: RunSet::empty(capacity), grown });
        Self { start, places, stock_limit, sets, clearing: Clearing::default() }
    }

    /// Grows by what is missing to a block, or by a block, if `open` can make that part of the address space usable; it may be asked for a part
    /// again, by another thread too. `false` if it can't, or the pool has its capacity.
    pub fn grow(&self, open: impl FnOnce(VirtAddr, PageCount) -> bool) -> bool {
        let from = lock(&self.sets).grown;
        let to = (from.get() / BLOCK_PAGES + 1) * BLOCK_PAGES;
        let to = PageCount::new(to.min(self.places.len() as u64));
        // Without the lock, as the host may have to wait.
        if from == to || !open(self.start.add_pages(from), to - from) {
            return false;
        }
        let mut sets = lock(&self.sets);
        if sets.grown == from {
            sets.empty.insert_all(from, to);
            sets.grown = to;
        }
        true
    }

    /// The address of place `run.first`.
    #[must_use]
    pub fn address(&self, run: FrameRun) -> VirtAddr {
        self.start.add_pages(PageCount::new(u64::from(run.first.get())))
    }

    /// Takes a run of at most `want` empty places, with one reference each, for pages on their way out.
    #[must_use]
    pub fn take_empty(&self, want: PageCount) -> Option<FrameRun> {
        self.take_spare(want, |sets| &mut sets.empty)
    }

    /// Takes a run of at most `want` stocked places for a migration to copy pages into, with one reference each, if there are any.
    #[must_use]
    pub fn take_populated(&self, want: PageCount) -> Option<FrameRun> {
        self.take_spare(want, |sets| &mut sets.stocked)
    }

    fn take_spare(&self, want: PageCount, from: impl Fn(&mut Sets) -> &mut RunSet) -> Option<FrameRun> {
        self.take(|sets| {
            let spare = sets.empty.len() + sets.stocked.len();
            if spare <= FAULT_RESERVE {
                return None;
            }
            from(sets).take(want.min(spare - FAULT_RESERVE))
        })
    }

    /// Takes a whole chunk of empty places that small pages have not used, if there is one, for a huge page on its way out.
    #[must_use]
    pub fn take_empty_whole(&self) -> Option<FrameRun> {
        self.take_whole(|sets| &mut sets.empty)
    }

    /// Takes a stocked huge page for a migration to copy one into, if there is one.
    #[must_use]
    pub fn take_stocked_whole(&self) -> Option<FrameRun> {
        self.take_whole(|sets| &mut sets.stocked)
    }

    fn take_whole(&self, from: impl Fn(&mut Sets) -> &mut RunSet) -> Option<FrameRun> {
        self.take(|sets| {
            if sets.empty.len() + sets.stocked.len() < FAULT_RESERVE + PageCount::new(BLOCK_PAGES) {
                return None;
            }
            from(sets).take_whole()
        })
    }

    /// Takes what `from` takes, with one reference each.
    fn take(&self, from: impl Fn(&mut Sets) -> Option<FrameRun>) -> Option<FrameRun> {
        let take = || {
            let mut sets = lock(&self.sets);
            let taken = from(&mut sets);
            (taken, sets.stocked.has_claimed())
        };
        let run = self.clearing.or_once_back(take)?;
        self.allocate(run);
        Some(run)
    }

    /// Takes a run of at most `want` places to copy pages into, with one reference each: stocked ones if there are any, else
    /// empty ones, which the host populates when they are written.
    #[must_use]
    pub fn take_stocked(&self, want: PageCount, purpose: Purpose) -> Option<FrameRun> {
        self.take(|sets| {
            let spare = sets.empty.len() + sets.stocked.len();
            let want = match purpose {
                Purpose::Fault => want,
                Purpose::Migration if spare > FAULT_RESERVE => want.min(spare - FAULT_RESERVE),
                Purpose::Migration => return None,
            };
            sets.stocked.take(want).or_else(|| sets.empty.take(want))
        })
    }

    fn allocate(&self, run: FrameRun) {
        run.iter().for_each(|place| self.places[place.index()].allocate());
    }

    /// How many refer to `place`.
    pub(crate) fn references(&self, place: FrameIndex) -> u64 {
        self.places[place.index()].count().into()
    }

    /// Takes another reference to each place of `run`, which the caller knows to be in use.
    ///
    /// # Panics
    ///
    /// If one of them is not.
    pub fn acquire(&self, run: FrameRun) {
        for frame in run.iter() {
            assert!(self.places[frame.index()].acquire(), "the place is in use");
        }
    }

    /// Lets go of a reference to each place of `run`, in which pages are; places without any become stocked, and rest there.
    pub fn release(&self, run: FrameRun) {
        self.release_by(run, |sets, run| {
            sets.stocked.insert_resting(run);
            // Small pages came to the chunk while it was empty.
            if sets.empty.is_divided(run.first) {
                sets.stocked.divide(run.first);
            }
        });
    }

    /// Lets go of a reference to each place of `run`, whose page was moved away; places without any become empty.
    pub fn release_empty(&self, run: FrameRun) {
        self.release_by(run, |sets, run| sets.empty.insert(run));
    }

    fn release_by(&self, run: FrameRun, give: impl Fn(&mut Sets, FrameRun)) {
        let mut start = None;
        for offset in 0..=run.pages.get() {
            let offset = PageCount::new(offset);
            let last = offset < run.pages && self.places[run.frame(offset).index()].release() == Released::Last;
            match (last, start) {
                (true, None) => start = Some(offset),
                (false, Some(from)) => {
                    give(&mut lock(&self.sets), run.slice(from, offset - from));
                    start = None;
                }
                (true, Some(_)) | (false, None) => {}
            }
        }
    }

    /// Takes a run of stocked pages above the limit out of the stock, to be discarded and given back with
    /// [`SystemPool::release_empty`]; `None` if the stock is within its limit.
    #[must_use]
    pub fn take_surplus(&self) -> Option<FrameRun> {
        let mut sets = lock(&self.sets);
        let surplus = sets.stocked.len().get().checked_sub(self.stock_limit.get()).filter(|s| *s > 0)?;
        let run = sets.stocked.take(PageCount::new(surplus))?;
        drop(sets);
        self.allocate(run);
        Some(run)
    }

    /// Takes a run of stocked pages out of the stock if fewer than `room` places are empty, to be discarded and given back with
    /// [`SystemPool::release_empty`].
    #[must_use]
    pub fn take_for_room(&self, room: PageCount) -> Option<FrameRun> {
        let mut sets = lock(&self.sets);
        if sets.empty.len() >= room {
            return None;
        }
        let run = sets.stocked.take(room)?;
        drop(sets);
        self.allocate(run);
        Some(run)
    }

    /// Whether a page of the stock rests.
    #[must_use]
    pub fn has_resting(&self) -> bool {
        lock(&self.sets).stocked.has_resting()
    }

    /// All pages of the stock that rest are old from now on.
    pub fn age(&self) {
        lock(&self.sets).stocked.age();
    }

    /// Has `clear` clear some old pages of the stock, unless somebody takes or waits for them just then; `false` if there is none.
    pub fn clear_old(&self, clear: impl FnOnce(FrameRun)) -> bool {
        self.clearing.clear_old(|change| change(&mut lock(&self.sets).stocked), clear)
    }

    /// How many populated pages are in stock.
    #[must_use]
    pub fn stocked(&self) -> PageCount {
        lock(&self.sets).stocked.len()
    }

    /// How many places are in use.
    #[must_use]
    pub fn in_use(&self) -> PageCount {
        let sets = lock(&self.sets);
        sets.grown - sets.empty.len() - sets.stocked.len()
    }

    /// How many places are empty.
    #[must_use]
    pub fn empty(&self) -> PageCount {
        lock(&self.sets).empty.len()
    }

    /// Checks that exactly the places without references are empty or stocked.
    ///
    /// # Panics
    ///
    /// If that does not hold.
    pub fn check(&self) {
        let _all_back = self.clearing.all_back();
        let sets = lock(&self.sets);
        let grown = &self.places[..sets.grown.as_usize()];
        let unreferenced = grown.iter().filter(|d| d.count() == 0).count() as u64;
        sets.empty.check();
        sets.stocked.check();
        assert_eq!((sets.empty.len() + sets.stocked.len()).get(), unreferenced, "places without references are free");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(pool: &SystemPool, purpose: Purpose) -> PageCount {
        let all = std::iter::from_fn(|| pool.take_stocked(PageCount::new(BLOCK_PAGES), purpose));
        PageCount::new(all.map(|run| run.pages.get()).sum())
    }

    #[test]
    fn a_pool_that_may_not_grow_serves_faults_from_its_reserve() {
        let (block, capacity) = (PageCount::new(BLOCK_PAGES), PageCount::new(3 * BLOCK_PAGES));
        let pool = SystemPool::new(VirtAddr::new(BLOCK_SIZE), block, capacity, block);
        assert!(!pool.grow(|at, pages| {
            assert_eq!((at.get(), pages), (2 * BLOCK_SIZE, block));
            false
        }));
        assert_eq!(take_all(&pool, Purpose::Migration), block - FAULT_RESERVE);
        assert_eq!(take_all(&pool, Purpose::Fault), FAULT_RESERVE);
        // Another thread grows it meanwhile: by one block, not by two.
        assert!(pool.grow(|_, _| pool.grow(|_, _| true)));
        assert_eq!(pool.empty(), block);
        assert_eq!(take_all(&pool, Purpose::Fault), block);
        assert!(pool.grow(|_, _| true));
        assert!(!pool.grow(|_, _| panic!("it has its capacity")));
        assert_eq!(pool.in_use(), block + block);
        pool.check();
    }
}

//! The pool of system pages: where pages rest on their way out, and where pages on their way home come from.
//!
//! The pool is a stretch of address space that is never the program's. A place in it is *empty* (nothing populated: room for a page
//! on its way out), *stocked* (a populated page with no content that matters: the destination of the next page home), or in
//! use. Populated pages are recycled: allocation and zeroing stay off the hot path.
//!
//! *Limits:* the last [`FAULT_RESERVE`] places are kept for faults, so that a CPU touch never waits for migrations.

use crate::frame::{FrameDescriptor, Put};
use crate::run_set::{FrameRun, RunSet};
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

/// What is in a place that was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    /// Nothing yet.
    Empty,
    /// A page.
    Populated,
}

struct Sets {
    empty: RunSet,
    stocked: RunSet,
}

/// See the module.
pub struct SystemPool {
    start: VirtAddr,
    descriptors: Box<[FrameDescriptor]>,
    stock_limit: PageCount,
    sets: Mutex<Sets>,
}

impl SystemPool {
    /// A pool of `capacity` empty places from `start` on, which keeps at most `stock_limit` populated pages in stock.
    ///
    /// # Panics
    ///
    /// If `start` is not a multiple of 2 MiB (huge pages could not pass whole) or the pool is smaller than twice its reserve.
    #[must_use]
    pub fn new(start: VirtAddr, capacity: PageCount, stock_limit: PageCount) -> Self {
        assert!(start.get().is_multiple_of(BLOCK_SIZE), "the pool starts at a 2 MiB boundary");
        assert!(capacity.get() >= 2 * FAULT_RESERVE.get(), "the pool is larger than its reserve");
        let descriptors = (0..capacity.get()).map(|_| FrameDescriptor::default()).collect();
        let sets = Mutex::new(Sets { empty: RunSet::full(capacity), stocked: RunSet::empty(capacity) });
        Self { start, descriptors, stock_limit, sets }
    }

    /// The address of place `run.first`.
    #[must_use]
    pub fn address(&self, run: FrameRun) -> VirtAddr {
        self.start.add_pages(PageCount::new(u64::from(run.first.get())))
    }

    /// Takes a run of at most `want` empty places, with one reference each, for pages on their way out.
    #[must_use]
    pub fn take_empty(&self, want: PageCount, page: VirtAddr) -> Option<FrameRun> {
        let mut sets = lock(&self.sets);
        let spare = sets.empty.len() + sets.stocked.len();
        if spare <= FAULT_RESERVE {
            return None;
        }
        let run = sets.empty.take(want.min(spare - FAULT_RESERVE))?;
        drop(sets);
        self.allocate(run, page);
        Some(run)
    }

    /// The same for a huge page on its way out: a whole chunk that small pages have not used, if there is one.
    #[must_use]
    pub fn take_empty_whole(&self, page: VirtAddr) -> Option<FrameRun> {
        self.take_whole(page, |sets| &mut sets.empty)
    }

    /// Takes a stocked huge page for a migration to copy one into, if there is one.
    #[must_use]
    pub fn take_stocked_whole(&self, page: VirtAddr) -> Option<FrameRun> {
        self.take_whole(page, |sets| &mut sets.stocked)
    }

    fn take_whole(&self, page: VirtAddr, from: impl FnOnce(&mut Sets) -> &mut RunSet) -> Option<FrameRun> {
        let mut sets = lock(&self.sets);
        if sets.empty.len() + sets.stocked.len() < FAULT_RESERVE + PageCount::new(BLOCK_PAGES) {
            return None;
        }
        let run = from(&mut sets).take_whole()?;
        drop(sets);
        self.allocate(run, page);
        Some(run)
    }

    /// Takes a run of at most `want` places to copy pages into, with one reference each: stocked ones if there are any, else
    /// empty ones, which the host opens, and populates when they are written. Says which.
    #[must_use]
    pub fn take_stocked(&self, want: PageCount, page: VirtAddr, purpose: Purpose) -> Option<(FrameRun, Fill)> {
        let mut sets = lock(&self.sets);
        let spare = sets.empty.len() + sets.stocked.len();
        let want = match purpose {
            Purpose::Fault => want,
            Purpose::Migration if spare > FAULT_RESERVE => want.min(spare - FAULT_RESERVE),
            Purpose::Migration => return None,
        };
        let stocked = sets.stocked.take(want).map(|run| (run, Fill::Populated));
        let (run, fill) = stocked.or_else(|| sets.empty.take(want).map(|run| (run, Fill::Empty)))?;
        drop(sets);
        self.allocate(run, page);
        Some((run, fill))
    }

    fn allocate(&self, run: FrameRun, page: VirtAddr) {
        for (i, frame) in (0..).zip(run.iter()) {
            self.descriptors[frame.index()].allocate(page.add_pages(PageCount::new(i)));
        }
    }

    pub(crate) fn descriptor(&self, place: FrameIndex) -> &FrameDescriptor {
        &self.descriptors[place.index()]
    }

    /// Takes another reference to each place of `run`, which the caller knows to be in use.
    ///
    /// # Panics
    ///
    /// If one of them is not.
    pub fn get(&self, run: FrameRun) {
        for frame in run.iter() {
            assert!(self.descriptors[frame.index()].get(), "the place is in use");
        }
    }

    /// Gives a reference back; places without any become stocked.
    pub fn put_populated(&self, run: FrameRun) {
        self.put(run, |sets, run| {
            sets.stocked.insert(run);
            // Small pages came to the chunk while it was empty.
            if sets.empty.is_divided(run.first) {
                sets.stocked.divide(run.first);
            }
        });
    }

    /// Gives a reference to places back whose page was moved away; places without any become empty.
    pub fn put_hole(&self, run: FrameRun) {
        self.put(run, |sets, run| sets.empty.insert(run));
    }

    fn put(&self, run: FrameRun, give: impl Fn(&mut Sets, FrameRun)) {
        let mut start = None;
        for offset in 0..=run.pages.get() {
            let offset = PageCount::new(offset);
            let last = offset < run.pages && self.descriptors[run.frame(offset).index()].put() == Put::Last;
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
    /// [`SystemPool::put_hole`]; `None` if the stock is within its limit.
    #[must_use]
    pub fn take_surplus(&self) -> Option<FrameRun> {
        let mut sets = lock(&self.sets);
        let surplus = sets.stocked.len().get().checked_sub(self.stock_limit.get()).filter(|s| *s > 0)?;
        let run = sets.stocked.take(PageCount::new(surplus))?;
        drop(sets);
        self.allocate(run, VirtAddr::default());
        Some(run)
    }

    /// Takes a run of stocked pages out of the stock if fewer than `room` places are empty, to be discarded and given back with
    /// [`SystemPool::put_hole`].
    #[must_use]
    pub fn take_for_room(&self, room: PageCount) -> Option<FrameRun> {
        let mut sets = lock(&self.sets);
        if sets.empty.len() >= room {
            return None;
        }
        let run = sets.stocked.take(room)?;
        drop(sets);
        self.allocate(run, VirtAddr::default());
        Some(run)
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
        PageCount::new(self.descriptors.len() as u64) - sets.empty.len() - sets.stocked.len()
    }

    /// Checks that exactly the places without references are empty or stocked.
    ///
    /// # Panics
    ///
    /// If that does not hold.
    pub fn check(&self) {
        let unreferenced = self.descriptors.iter().filter(|d| d.count() == 0).count() as u64;
        let sets = lock(&self.sets);
        sets.empty.check();
        sets.stocked.check();
        assert_eq!((sets.empty.len() + sets.stocked.len()).get(), unreferenced, "places without references are free");
    }
}

//! The pool of system pages: where pages rest on their way out, and where pages on their way home come from.
//!
//! The pool is a stretch of address space that is never the program's. A place in it is *empty* (nothing populated: room for a page
//! on its way out), *stocked* (a populated page with no content that matters: the destination of the next page home), or in
//! use. Populated pages are recycled: allocation and zeroing stay off the hot path. What a page leaves in stock rests there with its bytes until it
//! is used again or cleared ([`SystemPool::clear_old`]). The pool *grows* block by block, as more is needed: what is beyond counts as none of the
//! process's memory.
//!
//! The stock has a *limit*, up to which it is kept for good. Beyond it so many pages as are said to stay *warm* ([`SystemPool::keep_warm`]) are kept
//! while pages come and go: memory that is given back has to be allocated and zeroed again, which costs more than to migrate it. When the pool has
//! been left alone for a while ([`SystemPool::look_for_use`]), they are given back. What may be warm is said from time to time, and much may be asked
//! for in between: so from one time to the next it is twice what was there, and 512 MiB, at most.
//!
//! *Limits:* the last [`FAULT_RESERVE`] places are kept for faults, so that a CPU touch never waits for migrations, nor for memory that the host does
//! not give. Beyond [`PoolSize::ready`] places there are books only as migrations need them, and faults, which allocate nothing, do not go there.

use super::clearing::Clearing;
use super::descriptor::ByChunk;
use super::references::{References, Released};
use super::run::FrameRun;
use super::run_set::RunSet;
use crate::sync::{Mutex, lock};
use crate::units::{BLOCK_PAGES, BLOCK_SIZE, FrameIndex, PageCount, VirtAddr};

/// Places that only faults may use; one in the tiny pools that the model checker can bear.
pub const FAULT_RESERVE: PageCount = PageCount::new(if cfg!(loom) { 1 } else { 128 });

/// By how much what is warm may become more than twice as much, from one look at how much may be to the next (512 MiB).
const GROWTH: PageCount = PageCount::new(256 * BLOCK_PAGES);

/// Who asks for a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A CPU fault, which may use the reserve.
    Fault,
    /// A migration.
    Migration,
}

/// How large a pool is, and may become.
#[derive(Clone, Copy, Debug)]
pub struct PoolSize {
    /// Places that are there at the start.
    pub grown: PageCount,
    /// Places whose books are there at the start.
    pub ready: PageCount,
    /// Places that there may be.
    pub capacity: PageCount,
}

/// What is kept of the stock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// As much as is kept for good.
    Limit,
    /// What is warm besides.
    Warm,
}

struct Sets {
    empty: RunSet,
    stocked: RunSet,
    /// Places below this are there.
    grown: PageCount,
    /// The stock that is kept for good.
    limit: PageCount,
    /// Pages beyond the limit of the stock that may stay for a while.
    warm: PageCount,
    /// The largest stock since that was said.
    peak: PageCount,
    usage: Usage,
}

/// Whether pages come and go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Usage {
    /// Some have since somebody looked.
    Used,
    /// None has since.
    Looked,
    /// None has from one look to the next, nor since.
    Idle,
}

/// System pages at rest, and room for pages in transit.
pub struct SystemPool {
    start: VirtAddr,
    places: ByChunk<References>,
    ready: PageCount,
    /// The stock that is kept at most.
    most_stock: PageCount,
    sets: Mutex<Sets>,
    /// Of the stock.
    clearing: Clearing,
}

impl SystemPool {
    /// A pool from `start` on, of empty places, which keeps at most `stock_limit` populated pages in stock for good.
    ///
    /// # Panics
    ///
    /// If `start` is not a multiple of 2 MiB (huge pages could not pass whole) or the pool is smaller than twice its reserve.
    #[must_use]
    pub fn new(start: VirtAddr, size: PoolSize, stock_limit: PageCount) -> Self {
        let PoolSize { grown, ready, capacity } = size;
        assert!(start.get().is_multiple_of(BLOCK_SIZE), "the pool starts at a 2 MiB boundary");
        assert!(grown.get() >= 2 * FAULT_RESERVE.get(), "the pool is larger than its reserve");
        assert!(grown <= ready && ready <= capacity, "what is there has books, and room");
        let places = ByChunk::new(capacity);
        places.make(PageCount::ZERO, ready);
        let mut empty = RunSet::empty(ready).with_room_for(capacity);
        empty.insert_all(PageCount::ZERO, grown);
        let sets = Sets {
            empty,
            stocked: RunSet::empty(ready).with_room_for(capacity),
            grown,
            limit: stock_limit,
            warm: PageCount::ZERO,
            peak: PageCount::ZERO,
            usage: Usage::Looked,
        };
        let sets = Mutex::new(sets);
        Self { start, places, ready, most_stock: stock_limit, sets, clearing: Clearing::default() }
    }

    /// Grows by what is missing to a block, or by a block, if `open` can make that part of the address space usable; it may be asked for a part
    /// again, by another thread too. `false` if it can't, or the pool has what there may be for that purpose.
    pub fn grow(&self, purpose: Purpose, open: impl FnOnce(VirtAddr, PageCount) -> bool) -> bool {
        let from = lock(&self.sets).grown;
        let most = match purpose {
            Purpose::Fault => self.ready.max(from),
            Purpose::Migration => self.places.capacity(),
        };
        let to = PageCount::new((from.get() / BLOCK_PAGES + 1) * BLOCK_PAGES).min(most);
        // Without the lock, as the host may have to wait.
        if from == to || !open(self.start.add_pages(from), to - from) {
            return false;
        }
        if to > self.ready {
            self.places.make(from, to);
        }
        let mut sets = lock(&self.sets);
        if sets.grown == from {
            // Both, as who gives a place back may not allocate.
            sets.empty.extend(to);
            sets.stocked.extend(to);
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
            sets.usage = Usage::Used;
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
        run.iter().for_each(|place| self.places.of(place).allocate());
    }

    /// How many refer to `place`.
    pub(crate) fn references(&self, place: FrameIndex) -> u64 {
        self.places.of(place).count().into()
    }

    /// Takes another reference to each place of `run`, which the caller knows to be in use.
    ///
    /// # Panics
    ///
    /// If one of them is not.
    pub fn acquire(&self, run: FrameRun) {
        for frame in run.iter() {
            assert!(self.places.of(frame).acquire(), "the place is in use");
        }
    }

    /// Lets go of a reference to each place of `run`, in which pages are; places without any become stocked, and rest there.
    pub fn release(&self, run: FrameRun) {
        self.release_by(run, |sets, run| {
            sets.stocked.insert_resting(run);
            if sets.empty.is_divided(run.first) {
                // Small pages came to the chunk while it was empty.
                sets.stocked.divide(run.first);
            } else if run.pages == PageCount::BLOCK {
                // A huge page, whatever was in stock there before.
                sets.stocked.unite(run.first);
            }
            sets.peak = sets.peak.max(sets.stocked.len());
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
            let last = offset < run.pages && self.places.of(run.frame(offset)).release() == Released::Last;
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

    /// From now on of what was said at the start to be kept in stock for good as large a part is kept as `part` is of `whole`. Whether less is than
    /// before, and than is there.
    pub fn limit_stock(&self, part: PageCount, whole: PageCount) -> bool {
        let kept = u128::from(self.most_stock.get()) * u128::from(part.get()) / u128::from(whole.get().max(1));
        let limit = u64::try_from(kept).map_or(self.most_stock, PageCount::new).min(self.most_stock);
        let mut sets = lock(&self.sets);
        let was = std::mem::replace(&mut sets.limit, limit);
        let is_less = sets.limit < was && sets.stocked.len() > sets.limit;
        if is_less && sets.usage == Usage::Idle {
            // There is reason to look again.
            sets.usage = Usage::Looked;
        }
        is_less
    }

    /// So many populated pages beyond the limit of the stock may stay while the pool is used; for now no more than twice what there was since this was
    /// said last, and 512 MiB.
    pub fn keep_warm(&self, pages: PageCount) {
        let mut sets = lock(&self.sets);
        let most = sets.peak + sets.peak + GROWTH;
        sets.warm = pages.min(most);
        sets.peak = sets.stocked.len();
    }

    /// Says whether the pool is used. Called again and again, from time to time: if from one call to the next nobody took a place, the pool is idle,
    /// until somebody does.
    pub fn look_for_use(&self) {
        let mut sets = lock(&self.sets);
        sets.usage = if sets.usage == Usage::Used { Usage::Looked } else { Usage::Idle };
    }

    /// Whether more is in stock than is kept for good, and there is reason to look again. When the pool is idle it has been looked at: what is left then
    /// is what the host does not take.
    #[must_use]
    pub fn has_surplus(&self) -> bool {
        let sets = lock(&self.sets);
        sets.usage != Usage::Idle && sets.stocked.len() > sets.limit
    }

    /// Takes a run of what is in stock beyond what is kept out of it, to be discarded and given back with [`SystemPool::release_empty`]; `None` if
    /// there is no more. While the pool is used some more are taken, so that it is not asked for again at once: a run costs the host much, and a page
    /// of it little. Empty places may be among them.
    #[must_use]
    pub fn take_surplus(&self, keep: Keep) -> Option<FrameRun> {
        let mut sets = lock(&self.sets);
        let kept = match keep {
            Keep::Warm if sets.usage != Usage::Idle => sets.limit + sets.warm,
            Keep::Warm | Keep::Limit => sets.limit,
        };
        let surplus = sets.stocked.len().get().checked_sub(kept.get()).filter(|s| *s > 0)?;
        let more = if keep == Keep::Warm && sets.usage != Usage::Idle { kept.get() / 2 } else { 0 };
        let Sets { empty, stocked, .. } = &mut *sets;
        let run = stocked.take_with(empty, PageCount::new(surplus + more.min(BLOCK_PAGES)))?;
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

    /// Runs `f`, which may have places out of the stock that nobody uses, at no time at which somebody checks the pool.
    pub(crate) fn in_turn<R>(&self, f: impl FnOnce() -> R) -> R {
        let _turn = self.clearing.all_back();
        f()
    }

    /// Checks that exactly the places without references are empty or stocked; how many others there are, which are in use.
    ///
    /// # Panics
    ///
    /// If that does not hold.
    pub fn check(&self) -> PageCount {
        let _all_back = self.clearing.all_back();
        let sets = lock(&self.sets);
        sets.empty.check();
        sets.stocked.check();
        let free = sets.empty.len() + sets.stocked.len();
        let used = self.places.iter().filter(|place| place.count() > 0).count() as u64;
        assert_eq!(used, (sets.grown - free).get(), "places without references are free");
        PageCount::new(used)
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
    fn a_huge_page_of_the_stock_is_one_again_whatever_was_taken_of_its_place_before() {
        let block = PageCount::new(BLOCK_PAGES);
        let size = PoolSize { grown: block + block, ready: block + block, capacity: block + block };
        let pool = SystemPool::new(VirtAddr::new(BLOCK_SIZE), size, PageCount::ZERO);
        for _ in 0..2 {
            let place = pool.take_empty_whole().unwrap();
            pool.release(place);
            let surplus = pool.take_surplus(Keep::Limit).unwrap();
            assert_eq!(surplus, place);
            pool.release_empty(surplus);
        }
        pool.release(pool.take_empty_whole().unwrap());
        assert!(pool.take_stocked_whole().is_some());
    }

    #[test]
    fn a_pool_that_may_not_grow_serves_faults_from_its_reserve() {
        let (block, capacity) = (PageCount::new(BLOCK_PAGES), PageCount::new(3 * BLOCK_PAGES));
        let pool = SystemPool::new(
            VirtAddr::new(BLOCK_SIZE),
            PoolSize { grown: block, ready: block + block, capacity },
            block,
        );
        assert!(!pool.grow(Purpose::Fault, |at, pages| {
            assert_eq!((at.get(), pages), (2 * BLOCK_SIZE, block));
            false
        }));
        assert_eq!(take_all(&pool, Purpose::Migration), block - FAULT_RESERVE);
        assert_eq!(take_all(&pool, Purpose::Fault), FAULT_RESERVE);
        // Another thread grows it meanwhile: by one block, not by two.
        assert!(pool.grow(Purpose::Fault, |_, _| pool.grow(Purpose::Fault, |_, _| true)));
        assert_eq!(pool.empty(), block);
        assert_eq!(take_all(&pool, Purpose::Fault), block);
        assert!(!pool.grow(Purpose::Fault, |_, _| panic!("there are no books for more")));
        assert!(pool.grow(Purpose::Migration, |_, _| true));
        assert!(!pool.grow(Purpose::Migration, |_, _| panic!("it has its capacity")));
        assert!(!pool.grow(Purpose::Fault, |_, _| panic!("it has its capacity")));
        assert_eq!(pool.in_use(), block + block);
        // There are books of what grew later, empty or not.
        pool.release(pool.take_empty(block).unwrap());
        assert_eq!(pool.stocked(), block - FAULT_RESERVE);
        pool.check();
    }

    #[test]
    fn of_the_stock_a_part_is_kept_and_what_is_beyond_is_given_back() {
        let all = PageCount::new(2 * BLOCK_PAGES);
        let pool = SystemPool::new(
            VirtAddr::new(BLOCK_SIZE),
            PoolSize { grown: all, ready: all, capacity: all },
            PageCount::new(100),
        );
        pool.release(pool.take_empty(PageCount::new(80)).unwrap());
        let pages = PageCount::new;
        assert!(!pool.limit_stock(pages(900), pages(1000)) && !pool.has_surplus(), "no less than is there");
        pool.look_for_use();
        assert!(pool.limit_stock(pages(300), pages(1000)) && pool.has_surplus());
        assert_eq!(
            pool.take_surplus(Keep::Warm).map(|run| run.pages),
            Some(pages(50 + 15)),
            "half of what is kept goes with it"
        );
        assert!(!pool.limit_stock(pages(5000), pages(1000)));
        assert!(
            pool.take_surplus(Keep::Limit).is_none(),
            "never more than was said at the start, and that is not there"
        );
    }

    #[test]
    fn what_is_warm_stays_while_pages_come_and_go() {
        let all = PageCount::new(3 * BLOCK_PAGES);
        let size = PoolSize { grown: all, ready: all, capacity: all };
        let pool = SystemPool::new(VirtAddr::new(BLOCK_SIZE), size, PageCount::new(10));
        let surplus = |keep| {
            let all: Vec<FrameRun> = std::iter::from_fn(|| pool.take_surplus(keep)).collect();
            all.iter().for_each(|run| pool.release_empty(*run));
            all.iter().map(|run| run.pages.get()).sum::<u64>()
        };
        let put_in = || {
            let run = pool.take_empty(PageCount::new(100)).expect("there are empty places");
            pool.release(run);
        };
        put_in();
        assert_eq!(surplus(Keep::Warm), 95, "nothing is warm that nobody said is, and some more goes with it");
        pool.keep_warm(PageCount::new(50));
        put_in();
        assert_eq!((surplus(Keep::Warm), pool.has_surplus()), (75, true));
        pool.look_for_use();
        assert_eq!(surplus(Keep::Warm), 0);
        let run = pool.take_populated(PageCount::new(20)).expect("there is a stock");
        pool.look_for_use();
        pool.release(run);
        assert_eq!(surplus(Keep::Warm), 0, "it was used between two looks");
        pool.look_for_use();
        assert!(!pool.has_surplus(), "nobody need look again: now all goes that can");
        assert_eq!((surplus(Keep::Warm), pool.stocked()), (20, PageCount::new(10)), "it was not");
        put_in();
        assert_eq!((surplus(Keep::Warm), surplus(Keep::Limit)), (80, 20), "it is in use again");
        pool.check();
    }

    #[test]
    fn what_is_warm_grows_by_so_much_from_one_look_to_the_next() {
        let all = PageCount::new(5 * GROWTH.get());
        let size = PoolSize { grown: all, ready: all, capacity: all };
        let pool = SystemPool::new(VirtAddr::new(BLOCK_SIZE), size, PageCount::ZERO);
        let kept = || {
            let runs: Vec<FrameRun> =
                std::iter::from_fn(|| pool.take_empty(PageCount::new(BLOCK_PAGES))).take(4 * 256).collect();
            runs.iter().for_each(|run| pool.release(*run));
            while let Some(run) = pool.take_surplus(Keep::Warm) {
                pool.release_empty(run);
            }
            let stocked = pool.stocked();
            while let Some(run) = pool.take_populated(PageCount::new(BLOCK_PAGES)) {
                pool.release_empty(run);
            }
            stocked.get().div_ceil(GROWTH.get())
        };
        pool.keep_warm(all);
        assert_eq!(kept(), 1, "nothing was there");
        pool.keep_warm(all);
        assert!(kept() > 3, "all that came was there, before it was given back");
        pool.keep_warm(PageCount::ZERO);
        assert_eq!(kept(), 0);
        pool.look_for_use();
        pool.keep_warm(all);
        pool.keep_warm(all);
        assert_eq!(kept(), 1, "not for long");
    }
}

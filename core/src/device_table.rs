//! A device's page table: where the device finds each page of the program, looked up in nanoseconds by many threads and emptied by a
//! notifier's callback.
//!
//! An entry is one word: how the page is reached, what is allowed, and who is using it at this moment. A lookup that finds what it needs
//! counts itself in with the same step ([`Leaf::enter`]), so that whoever erases the entry afterwards knows of it and can wait.
//!
//! | reached | [`Route`] | an erasure waits for its users |
//! | --- | --- | --- |
//! | in a frame, at an address of hetmem's | `Frame` | always: the frame goes to another page; such a use never blocks |
//! | in place, at the program's own address | `InPlace` | if told to: it is an access like that of any other thread, which finds the page wherever it went, and may have to wait for a fault |
//!
//! The table is filled under the rule of [`crate::notifier`]: [`DeviceTable::program`] asks whether the range has changed, with the
//! lock held that [`DeviceTable::erase`] takes for a notice.
//!
//! *Limits:* 2047 users of a kind on one page at a time; addresses below 2^48; a leaf (4 KiB for 2 MiB), once made, stays.

use std::collections::BTreeMap;

use crate::notifier::{Notice, Seq, Subscription};
use crate::port::Access;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Condvar, Mutex, RwLock, lock, read, write};
use crate::units::{BLOCK_PAGES, BlockNo, PAGE_SHIFT, PageRange, VirtAddr};

const VALID: u64 = 1 << 63;
const WRITE: u64 = 1 << 62;
const FRAME: u64 = 1 << 61;
const EXCLUSIVE: u64 = 1 << 60;
/// Somebody waits for the users.
const AWAITED: u64 = 1 << 59;
const ONE_IN_PLACE: u64 = 1 << 47;
const ONE_IN_FRAME: u64 = 1 << 36;
const USERS: u64 = (1 << 11) - 1;
const IN_PLACE: u64 = USERS * ONE_IN_PLACE;
const IN_FRAME: u64 = USERS * ONE_IN_FRAME;
const PAGE: u64 = ONE_IN_FRAME - 1;

/// How a device reaches a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// At the program's own address.
    InPlace,
    /// At this address, which is a frame's.
    Frame(VirtAddr),
}

/// What a device may do with a page, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// How the page is reached.
    pub route: Route,
    /// Whether it may be written.
    pub writable: bool,
    /// Whether nobody else reaches it meanwhile.
    pub exclusive: bool,
}

impl Entry {
    const fn pack(self) -> u64 {
        let route = match self.route {
            Route::InPlace => 0,
            Route::Frame(at) => FRAME | at.get() >> PAGE_SHIFT & PAGE,
        };
        VALID | route | if self.writable { WRITE } else { 0 } | if self.exclusive { EXCLUSIVE } else { 0 }
    }

    const fn unpack(word: u64) -> Option<Self> {
        if word & VALID == 0 {
            return None;
        }
        let frame = VirtAddr::new((word & PAGE) << PAGE_SHIFT);
        let route = if word & FRAME == 0 { Route::InPlace } else { Route::Frame(frame) };
        Some(Self { route, writable: word & WRITE != 0, exclusive: word & EXCLUSIVE != 0 })
    }
}

/// Whose uses an erasure waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Await {
    /// Those in frames.
    Frames,
    /// All. The caller must not be one whom a fault waits for.
    All,
}

#[derive(Default)]
struct Waiting {
    lock: Mutex<()>,
    left: Condvar,
}

/// The entries of one block.
pub struct Leaf {
    entries: Box<[AtomicU64]>,
    waiting: Arc<Waiting>,
}

/// A use of a page, which lasts until it is dropped. Nothing that could wait for the program's memory is done meanwhile, if it is in a frame.
#[must_use]
pub struct Use<'a> {
    leaf: &'a Leaf,
    index: usize,
    entry: Entry,
}

impl Use<'_> {
    /// The entry by which the page is used.
    #[must_use]
    pub const fn entry(&self) -> Entry {
        self.entry
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        let (one, all) = match self.entry.route {
            Route::InPlace => (ONE_IN_PLACE, IN_PLACE),
            Route::Frame(_) => (ONE_IN_FRAME, IN_FRAME),
        };
        // Release pairs with the Acquire in `settle`: what was done to the page is done.
        let was = self.leaf.entries[self.index].fetch_sub(one, Ordering::Release);
        if was & AWAITED != 0 && was & all == one {
            drop(lock(&self.leaf.waiting.lock));
            self.leaf.waiting.left.notify_all();
        }
    }
}

impl Leaf {
    fn new(waiting: Arc<Waiting>) -> Self {
        let pages = if cfg!(loom) { 1 } else { BLOCK_PAGES };
        Self { entries: (0..pages).map(|_| AtomicU64::new(0)).collect(), waiting }
    }

    /// Begins a use of page `index`, if the device may access it so.
    pub fn enter(&self, index: usize, access: Access) -> Option<Use<'_>> {
        let needed = if access == Access::Write { VALID | WRITE } else { VALID };
        let word = &self.entries[index];
        // Relaxed: only a hint of what to try.
        let mut now = word.load(Ordering::Relaxed);
        loop {
            let entry = Entry::unpack(now).filter(|_| now & needed == needed)?;
            let one = if now & FRAME == 0 { ONE_IN_PLACE } else { ONE_IN_FRAME };
            // Acquire pairs with the Release in `set`: the page is where the entry says. All changes are of one word, so an erasure either
            // sees this use or comes before it.
            match word.compare_exchange_weak(now, now + one, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(Use { leaf: self, index, entry }),
                Err(other) => now = other,
            }
        }
    }

    /// The entry of page `index`, without using it.
    #[must_use]
    pub fn entry(&self, index: usize) -> Option<Entry> {
        Entry::unpack(self.entries[index].load(Ordering::Relaxed))
    }

    /// Sets an entry that nobody relies on to be another; who uses the page goes on as he began.
    fn set(&self, index: usize, entry: Entry) {
        let new = |now: u64| {
            // What is held exclusively stays so until that is taken away.
            let stays = now & (VALID | EXCLUSIVE) == VALID | EXCLUSIVE && !entry.exclusive;
            (!stays).then(|| now & (IN_PLACE | IN_FRAME | AWAITED) | entry.pack())
        };
        // Release pairs with the Acquire in `enter`.
        let _ = self.entries[index].fetch_update(Ordering::Release, Ordering::Relaxed, new);
    }

    /// Erases an entry: nobody begins to use it any more. Returns whether somebody whom `wait` names still does.
    fn erase(&self, index: usize, wait: Await) -> bool {
        let word = &self.entries[index];
        // Relaxed: entries that were never set have no users. One that is being set is set by who asks for changes afterwards.
        if word.load(Ordering::Relaxed) == 0 {
            return false;
        }
        // Acquire pairs with the Release of the last use.
        let was = word.fetch_and(!(VALID | WRITE | EXCLUSIVE), Ordering::Acquire);
        was & awaited(wait) != 0
    }

    /// Waits until nobody whom `wait` names uses page `index`, whose entry was erased.
    fn settle(&self, index: usize, wait: Await) {
        let mut guard = lock(&self.waiting.lock);
        // Acquire pairs with the Release of the last use.
        while self.entries[index].fetch_or(AWAITED, Ordering::Acquire) & awaited(wait) != 0 {
            guard = self.waiting.left.wait(guard).expect("no thread panicked while it held this lock");
        }
        self.entries[index].fetch_and(!AWAITED, Ordering::Relaxed);
        // Others may wait for other uses: they look, and ask again to be woken.
        self.waiting.left.notify_all();
    }
}

const fn awaited(wait: Await) -> u64 {
    match wait {
        Await::Frames => IN_FRAME,
        Await::All => IN_FRAME | IN_PLACE,
    }
}

/// A device's page table: where the pages are that it uses.
#[derive(Default)]
pub struct DeviceTable {
    leaves: RwLock<BTreeMap<BlockNo, Arc<Leaf>>>,
    /// Held while entries are set or a notice is accepted.
    filling: Mutex<()>,
    waiting: Arc<Waiting>,
}

impl DeviceTable {
    /// The leaf of block `no`, made if need be. It stays the same, so a thread may keep those that it uses.
    #[must_use]
    pub fn leaf(&self, no: BlockNo) -> Arc<Leaf> {
        if let Some(leaf) = read(&self.leaves).get(&no) {
            return Arc::clone(leaf);
        }
        let new = || Arc::new(Leaf::new(Arc::clone(&self.waiting)));
        Arc::clone(write(&self.leaves).entry(no).or_insert_with(new))
    }

    /// The entry of `page`, without using it.
    #[must_use]
    pub fn entry(&self, page: VirtAddr) -> Option<Entry> {
        read(&self.leaves).get(&page.block())?.entry(page.index_in_block())
    }

    /// Whether some entry of `range` is as `is` says.
    pub fn any(&self, range: PageRange, is: impl Fn(Entry) -> bool) -> bool {
        read(&self.leaves)
            .range(range.start().block()..)
            .map_while(|(no, leaf)| Some((no.range().intersect(range)?, leaf)))
            .any(|(part, leaf)| {
                part.iter().map(VirtAddr::index_in_block).any(|index| leaf.entry(index).is_some_and(&is))
            })
    }

    /// Sets the `entries` of the pages from `first` on, unless the subscribed range has changed since `seq`: then it returns
    /// `false`, and whoever asked begins anew.
    #[must_use]
    pub fn program(
        &self,
        subscription: &Subscription,
        seq: Seq,
        entries: impl Iterator<Item = (VirtAddr, Entry)>,
    ) -> bool {
        let _filling = lock(&self.filling);
        if subscription.read_retry(seq) {
            return false;
        }
        let mut last: Option<(BlockNo, Arc<Leaf>)> = None;
        for (page, entry) in entries {
            let (_, leaf) = match last.take() {
                Some(known) if known.0 == page.block() => last.insert(known),
                _ => last.insert((page.block(), self.leaf(page.block()))),
            };
            leaf.set(page.index_in_block(), entry);
        }
        true
    }

    /// Accepts a notice: erases what lies in its range, and waits for uses. For a callback.
    pub fn invalidate(&self, notice: &Notice<'_>, wait: Await) {
        {
            let _filling = lock(&self.filling);
            notice.set_seq();
        }
        self.erase(notice.range(), wait);
    }

    /// Erases the entries of `range`, and waits for uses as `wait` says.
    pub fn erase(&self, range: PageRange, wait: Await) {
        let mut at = range.start().block();
        // Leaf by leaf: nothing is allocated here, and the lock is let go while uses are waited for.
        let next = |at: BlockNo| read(&self.leaves).range(at..).next().map(|(no, leaf)| (*no, Arc::clone(leaf)));
        while let Some((no, leaf)) = next(at) {
            let Some(part) = no.range().intersect(range) else { break };
            for index in part.iter().map(VirtAddr::index_in_block) {
                if leaf.erase(index, wait) {
                    leaf.settle(index, wait);
                }
            }
            at = BlockNo::after(no);
        }
    }
}

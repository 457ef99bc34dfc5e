//! The ranges of hetmem's own arenas in this process, which the agent never adopts.
//!
//! *Limits:* [`CAPACITY`] arenas at a time.
#![expect(unsafe_code, reason = "a system call that rustix has for pointers only")]

use std::sync::atomic::{AtomicU64, Ordering};

use hetmem_core::units::{PageCount, PageRange, VirtAddr};

use super::arena::OnFork;
use crate::errno::Errno;

const CAPACITY: usize = 256;

/// Set in `pages` where a forked child doesn't have the arena.
const OMITTED: u64 = 1 << 63;

struct Entry {
    /// 0 while the entry is free.
    start: AtomicU64,
    pages: AtomicU64,
}

impl Entry {
    fn clear(&self) {
        self.pages.store(0, Ordering::SeqCst);
        self.start.store(0, Ordering::SeqCst);
    }
}

// SeqCst throughout: rare, and read by those who must not miss an entry.
static TABLE: [Entry; CAPACITY] = [const { Entry { start: AtomicU64::new(0), pages: AtomicU64::new(0) } }; CAPACITY];

pub(super) fn add(range: PageRange, on_fork: OnFork) -> Result<(), Errno> {
    let flag = match on_fork {
        OnFork::Inherit => 0,
        OnFork::Omit => OMITTED,
    };
    let free = |entry: &&Entry| {
        entry.start.compare_exchange(0, range.start().get(), Ordering::SeqCst, Ordering::SeqCst).is_ok()
    };
    let entry = TABLE.iter().find(free).ok_or(Errno::NOSPC)?;
    entry.pages.store(range.pages().get() | flag, Ordering::SeqCst);
    Ok(())
}

pub(super) fn remove(range: PageRange) {
    if let Some(entry) = TABLE.iter().find(|entry| entry.start.load(Ordering::SeqCst) == range.start().get()) {
        entry.clear();
    }
}

/// The ranges of hetmem's arenas.
pub fn set_aside() -> impl Iterator<Item = PageRange> {
    TABLE.iter().filter_map(|entry| {
        let start = VirtAddr::new(entry.start.load(Ordering::SeqCst));
        let pages = PageCount::new(entry.pages.load(Ordering::SeqCst) & !OMITTED);
        PageRange::new(start, pages).filter(|range| !range.is_empty())
    })
}

/// Undoes what `mlockall(2)` does to hetmem's own memory.
pub fn unlock_set_aside() {
    for range in set_aside() {
        let args = [crate::copy::address(range.start()), range.pages().as_usize() * 4096, 0, 0, 0];
        // SAFETY: contents and access stay. What can't be unlocked stays in memory, no more.
        let _ = unsafe { crate::raw::syscall5(libc::SYS_munlock, args) };
    }
}

/// In a forked child: forgets the arenas that it doesn't have.
pub fn forget_omitted() {
    TABLE.iter().filter(|entry| entry.pages.load(Ordering::SeqCst) & OMITTED != 0).for_each(Entry::clear);
}

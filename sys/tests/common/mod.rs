//! What the tests share: memory with known contents, touches that a sanitizer of references can't object to, and the
//! report of a test that can't run here.
#![allow(unsafe_code, reason = "touches memory named by number")]
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(unreachable_pub, reason = "a module of each test file")]
#![allow(clippy::missing_panics_doc, reason = "tests panic")]

use std::io::Write as _;
use std::os::fd::AsFd;
use std::process::{Command, ExitStatus};

use hetmem_core::units::{BLOCK_PAGES, PageCount, PageRange, VirtAddr};
use hetmem_sys::mapping::{Arena, ArenaOptions, HugePages, OnFork, Prefault};
use hetmem_sys::pagemap::{PagemapEntry, PagemapScanner};
use hetmem_sys::uffd::{Access, Event, EventBuffer, Features, Userfaultfd};
use rustix::event::{PollFd, PollFlags};
use rustix::mm::MprotectFlags;

/// Says why a test ends without having tried; not by a macro, whose output the test harness would swallow.
pub fn skip(why: &dyn std::fmt::Display) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("test");
    std::io::stderr().write_all(format!("skipped {test}: {why}\n").as_bytes()).unwrap();
}

/// Opens a context, or says on stderr why the test is skipped.
pub fn open(features: Features) -> Option<Userfaultfd> {
    match Userfaultfd::open(features, Access::Full) {
        Ok(uffd) => Some(uffd),
        Err(error) => {
            skip(&error);
            None
        }
    }
}

/// The features of a context that moves pages and is told of faults only.
pub const MOVES: Features = Features::MOVE.union(Features::PAGEFAULT_FLAG_WP);
/// The features of a context that is told of changes of the mappings. Whoever makes such a change waits until the event
/// is read, so memory registered with it outlives it.
pub const WATCH: Features =
    MOVES.union(Features::EVENT_REMAP).union(Features::EVENT_REMOVE).union(Features::EVENT_UNMAP);

/// Small pages that no forked child of another test shares.
pub fn pages(count: u64) -> Arena {
    let options = ArenaOptions { huge_pages: HugePages::Never, on_fork: OnFork::Omit, ..ArenaOptions::default() };
    Arena::reserve(PageCount::new(count), &options).unwrap()
}

/// Small pages that are there.
pub fn populated_pages(count: u64) -> Arena {
    let arena = pages(count);
    arena.populate(arena.range()).unwrap();
    arena
}

/// One present huge page; `None`, with a report, if the machine has none to give.
pub fn huge_page() -> Option<Arena> {
    let options = ArenaOptions {
        huge_pages: HugePages::Prefer,
        on_fork: OnFork::Omit,
        prefault: Prefault::All,
        ..ArenaOptions::default()
    };
    let arena = Arena::reserve(PageCount::new(BLOCK_PAGES), &options).ok();
    let huge = arena.filter(|arena| is_huge(arena.range()));
    if huge.is_none() {
        skip(&"the machine gives no transparent huge page");
    }
    huge
}

pub fn is_huge(range: PageRange) -> bool {
    PagemapScanner::open().unwrap().is_huge(range).unwrap()
}

/// The page map's word for each page of `range`.
pub fn entries(range: PageRange) -> Vec<PagemapEntry> {
    let mut found = vec![PagemapEntry::default(); range.pages().as_usize()];
    assert_eq!(PagemapScanner::open().unwrap().entries(range, &mut found), Ok(found.len()));
    found
}

/// Which pages of `range` are there.
pub fn present(range: PageRange) -> Vec<bool> {
    entries(range).into_iter().map(PagemapEntry::is_present).collect()
}

/// Changes the protection of a test's own memory.
pub fn protect(range: PageRange, flags: MprotectFlags) {
    let start = std::ptr::with_exposed_provenance_mut(usize::try_from(range.start().get()).unwrap());
    // SAFETY: memory of the test's own.
    unsafe { rustix::mm::mprotect(start, range.pages().as_usize() * 4096, flags) }.unwrap();
}

fn word(page: VirtAddr, index: u64) -> *mut u64 {
    std::ptr::with_exposed_provenance_mut(usize::try_from(page.get() + index * 8).unwrap())
}

/// Reads the first word of a page, as the program would.
pub fn read(page: VirtAddr) -> u64 {
    // SAFETY: the tests pass mapped pages.
    unsafe { word(page, 0).read_volatile() }
}

/// Writes the first word of a page, as the program would.
pub fn write(page: VirtAddr, value: u64) {
    // SAFETY: the tests pass mapped, writable pages.
    unsafe { word(page, 0).write_volatile(value) }
}

/// Fills `range` with words that depend on `seed` and on their place in the range.
pub fn fill(range: PageRange, seed: u64) {
    for (n, page) in (0..).zip(range.iter()) {
        for i in 0..512 {
            // SAFETY: the tests pass mapped, writable pages.
            unsafe { word(page, i).write_volatile(expected(seed, n, i)) };
        }
    }
}

/// Compares `range` with what [`fill`] wrote into a range with its first page at page `first` of this one.
#[track_caller]
pub fn check(range: PageRange, seed: u64) {
    for (n, page) in (0..).zip(range.iter()) {
        for i in 0..512 {
            // SAFETY: the tests pass mapped pages.
            let found = unsafe { word(page, i).read_volatile() };
            assert_eq!(found, expected(seed, n, i), "word {i} of page {n}");
        }
    }
}

const fn expected(seed: u64, page: u64, word: u64) -> u64 {
    (seed << 48 ^ page << 16 ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The page `n` of `range`.
pub fn page(range: PageRange, n: u64) -> PageRange {
    range.slice(PageCount::new(n), PageCount::ONE)
}

/// Waits until there is an event to read.
pub fn wait_readable(uffd: &Userfaultfd) {
    let mut polled = [PollFd::from_borrowed_fd(uffd.as_fd(), PollFlags::IN)];
    while !polled[0].revents().contains(PollFlags::IN) {
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut polled, None)).unwrap();
    }
}

/// Waits for the next event and takes it.
pub fn next_event(uffd: &Userfaultfd, buffer: &mut EventBuffer) -> Event {
    loop {
        if let Some(event) = buffer.take().next() {
            return event;
        }
        wait_readable(uffd);
        uffd.read_events(buffer).unwrap();
    }
}

/// Runs the test `name` of this file again in a process of its own, where `body` runs, and returns how that ended. In
/// that process itself this runs `body` and doesn't return.
pub fn in_own_process(name: &str, body: impl FnOnce()) -> ExitStatus {
    const MARK: &str = "HETMEM_TEST_OWN_PROCESS";
    if std::env::var_os(MARK).is_some_and(|value| value == name) {
        body();
        // Not by `std::process::exit`, which unmaps the stack that another thread may just handle a signal on: the one by which the C library
        // has every thread give up privileges.
        // SAFETY: ends the process, which has nothing left to write.
        unsafe { libc::_exit(0) }
    }
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(MARK, name)
        .status()
        .unwrap()
}

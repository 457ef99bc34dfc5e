//! The program's memory through userfaultfd: the one place where errno becomes an outcome.
//!
//! Key types: [`UserMemory`] answers [`Host`]. It owns three contexts:
//!
//! | context | registered in it | why apart |
//! | --- | --- | --- |
//! | `window` | hetmem's own arenas, for write protection only | `UFFDIO_MOVE` wants its destination registered; no events, and touching a hole populates it as ever |
//! | `thread` | the program's ranges | events; faults are served by the handler thread |
//! | `sigbus` | the program's ranges that asked for it | the same with `UFFD_FEATURE_SIGBUS` |
//!
//! So a page leaves the program by a MOVE of `window` and comes back by one of `thread` or `sigbus`. Only the latter fail while an event is
//! unread, which is what the gate of [`hetmem_core::space`] is about.
#![expect(unsafe_code, reason = "moves and copies pages that are named by number")]

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hetmem_core::outcome::KeptReason;
use hetmem_core::port::{FaultPath, Host, Install, PutIn, PutStop, Taken};
use hetmem_core::sync::{Condvar, Mutex, lock};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::copy::copy_pages;
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{discard, is_mapped};
use hetmem_sys::pagemap::{Categories, PagemapScanner, Region as Scanned, ScanQuery};
use hetmem_sys::uffd::{Access, CopyFlags, Features, Mode, MoveFlags, OpenError, Progress, Userfaultfd, Wake};

use crate::traps::Traps;

/// What every program context reports.
const EVENTS: Features = Features::EVENT_REMAP.union(Features::EVENT_REMOVE).union(Features::EVENT_UNMAP);
const PROGRAM: Features = Features::PAGEFAULT_FLAG_WP.union(Features::MOVE).union(EVENTS);
const WINDOW: Features = Features::PAGEFAULT_FLAG_WP.union(Features::MOVE);

/// How long one wait for an event lasts at most: the time after which it is worth trying again.
const EVENT_WAIT: Duration = Duration::from_millis(1);

/// The system calls that announce a removal and then carry it out.
const REMOVING_CALLS: [i64; 2] = [libc::SYS_madvise, libc::SYS_process_madvise];

/// The userfaultfd contexts of a runtime.
pub(crate) struct Contexts {
    pub(crate) window: Userfaultfd,
    pub(crate) thread: Userfaultfd,
    pub(crate) sigbus: Option<Userfaultfd>,
    /// Whether children of a fork that nobody announced can be served.
    pub(crate) fork_events: bool,
}

impl Contexts {
    /// Opens them; `sigbus` says whether regions will be served by SIGBUS.
    pub(crate) fn open(sigbus: bool) -> Result<Self, OpenError> {
        let window = Userfaultfd::open(WINDOW, Access::Full)?;
        let program = |extra: Features| match Userfaultfd::open(PROGRAM | extra | Features::EVENT_FORK, Access::Full) {
            Ok(uffd) => Ok((uffd, true)),
            Err(OpenError::ForkEventNotPermitted) => {
                Userfaultfd::open(PROGRAM | extra, Access::Full).map(|uffd| (uffd, false))
            }
            Err(error) => Err(error),
        };
        let (thread, fork_events) = program(Features::NONE)?;
        let sigbus = if sigbus { Some(program(Features::SIGBUS)?.0) } else { None };
        Ok(Self { window, thread, sigbus, fork_events })
    }

    pub(crate) fn program(&self, path: FaultPath) -> &Userfaultfd {
        match (path, &self.sigbus) {
            (FaultPath::Sigbus, Some(uffd)) => uffd,
            (FaultPath::Sigbus | FaultPath::Thread, _) => &self.thread,
        }
    }
}

/// Counts the batches of events that were applied, so that others can wait for the next.
#[derive(Default)]
pub(crate) struct EventCount {
    count: Mutex<u64>,
    grew: Condvar,
}

impl EventCount {
    pub(crate) fn advance(&self) {
        *lock(&self.count) += 1;
        self.grew.notify_all();
    }

    fn wait(&self) {
        let count = lock(&self.count);
        let before = *count;
        // The result says only which of the two it was.
        let _ = self
            .grew
            .wait_timeout_while(count, EVENT_WAIT, |count| *count == before)
            .expect("no thread panicked while it held this lock");
    }
}

/// See the module.
pub(crate) struct UserMemory {
    pub(crate) contexts: Contexts,
    pub(crate) traps: Traps,
    pub(crate) events: EventCount,
    scanner: PagemapScanner,
    /// Announced removals, and the threads that may still be at them.
    removals: Mutex<Vec<(PageRange, Vec<u32>)>>,
    on_fatal: fn(&str),
    stopping: AtomicBool,
}

impl UserMemory {
    pub(crate) fn new(contexts: Contexts, on_fatal: fn(&str)) -> Result<Self, Errno> {
        Ok(Self {
            contexts,
            traps: Traps::default(),
            events: EventCount::default(),
            scanner: PagemapScanner::open()?,
            removals: Mutex::default(),
            on_fatal,
            stopping: AtomicBool::new(false),
        })
    }

    /// Lets pages be moved into `range`, which is hetmem's own.
    pub(crate) fn open_window(&self, range: PageRange) -> Result<(), Errno> {
        self.contexts.window.register(range, Mode::WP)
    }

    /// The number of pages from the start of `range` on that are there, or that are not.
    fn same_presence(&self, range: PageRange) -> (bool, PageCount) {
        let query = ScanQuery {
            any_of: Categories::PRESENT | Categories::SWAPPED,
            report: Categories::PRESENT | Categories::SWAPPED,
            ..ScanQuery::default()
        };
        let mut found = [Scanned::default(); 1];
        match self.scanner.scan(range, query, &mut found) {
            Ok((1, _)) if found[0].range().start() == range.start() => (true, found[0].range().pages()),
            Ok((1, _)) => (false, found[0].range().start().pages_since(range.start())),
            Ok(_) => (false, range.pages()),
            // Without the scan each page is tried by itself.
            Err(_) => (true, PageCount::ONE),
        }
    }

    /// How many pages of `range` are in memory and mapped.
    pub(crate) fn present(&self, range: PageRange) -> PageCount {
        let query = ScanQuery { any_of: Categories::PRESENT, report: Categories::PRESENT, ..ScanQuery::default() };
        let mut found = [Scanned::default(); 64];
        let (mut pages, mut rest) = (PageCount::ZERO, range);
        while !rest.is_empty() {
            let Ok((n, end)) = self.scanner.scan(rest, query, &mut found) else { break };
            pages += found[..n].iter().map(|r| r.range().pages()).sum();
            match PageRange::between(end, range.end()) {
                Some(next) if next.pages() < rest.pages() => rest = next,
                _ => break,
            }
        }
        pages
    }

    fn has_present_page(&self, range: PageRange) -> bool {
        let (present, pages) = self.same_presence(range);
        present || pages < range.pages()
    }

    fn put_stop(&self, page: VirtAddr, errno: Errno) -> PutStop {
        match errno {
            Errno::AGAIN => PutStop::EventsPending,
            Errno::EXIST => PutStop::Occupied,
            Errno::NOMEM => PutStop::NoMemory,
            Errno::NOENT | Errno::SRCH | Errno::INVAL | Errno::FAULT if !is_mapped(PageRange::page_of(page)) => {
                PutStop::Gone
            }
            _ => PutStop::Refused,
        }
    }

    fn put_in_result(&self, at: PageRange, progress: Progress) -> PutIn {
        let stop = progress.stop.map(|errno| self.put_stop(at.start().add_pages(progress.done), errno));
        PutIn { pages: progress.done, stop }
    }
}

impl Host for UserMemory {
    fn take_out(&self, from: PageRange, to: VirtAddr) -> Taken {
        let mut done = PageCount::ZERO;
        let mut cleared = None;
        while done < from.pages() {
            let rest = from.slice(done, from.pages());
            let target = to.add_pages(done);
            // SAFETY: the engine takes pages out of trapped ranges only, so that touches wait until the page is back; the
            // destination is hetmem's own.
            let moved =
                unsafe { self.contexts.window.move_pages(target, rest.start(), rest.pages(), MoveFlags::DONT_WAKE) };
            done += moved.done;
            let stop = match moved.stop {
                None => break,
                Some(Errno::NOENT) => {
                    let (present, pages) = self.same_presence(from.slice(done, from.pages()));
                    // Present after all: it came between the two looks.
                    if present { (KeptReason::Raced, PageCount::ONE) } else { (KeptReason::Hole, pages) }
                }
                Some(Errno::EXIST) if cleared != Some(done) => {
                    // The place is populated, as the kernel fills up huge pages; its content is nobody's.
                    self.discard(to.add_pages(done), PageCount::ONE);
                    cleared = Some(done);
                    continue;
                }
                Some(Errno::BUSY) => {
                    // After a fork whole runs are shared.
                    let (_, pages) = self.same_presence(from.slice(done, from.pages()));
                    (KeptReason::Shared, pages)
                }
                Some(Errno::AGAIN) => (KeptReason::Raced, PageCount::ONE),
                Some(Errno::NOMEM) => (KeptReason::NoMemory, PageCount::ONE),
                Some(_) => (KeptReason::Unsupported, from.pages() - done),
            };
            return Taken { pages: done, stop: Some(stop) };
        }
        Taken { pages: done, stop: None }
    }

    fn put_in(&self, path: FaultPath, to: PageRange, from: VirtAddr, how: Install) -> PutIn {
        let uffd = self.contexts.program(path);
        let progress = match how {
            Install::Move => {
                // SAFETY: the source is a frame of hetmem's that the engine has references to; the destination is a page whose
                // bytes these are, in a trapped range.
                unsafe { uffd.move_pages(to.start(), from, to.pages(), MoveFlags::NONE) }
            }
            Install::Copy => {
                // SAFETY: as above.
                unsafe { uffd.copy(to.start(), from, to.pages(), CopyFlags::NONE) }
            }
        };
        self.put_in_result(to, progress)
    }

    fn zero_fill(&self, path: FaultPath, range: PageRange) -> PutIn {
        // SAFETY: the engine asks for pages of which nothing was ever taken out.
        let progress = unsafe { self.contexts.program(path).zeropage(range, Wake::Now) };
        self.put_in_result(range, progress)
    }

    fn wake(&self, path: FaultPath, range: PageRange) {
        // The only error is a malformed range.
        let _ = self.contexts.program(path).wake(range);
    }

    fn copy(&self, from: VirtAddr, to: VirtAddr, pages: PageCount) {
        // SAFETY: the engine has references to the frames on both sides.
        unsafe { copy_pages(to, from, pages) };
    }

    fn discard(&self, at: VirtAddr, pages: PageCount) {
        let Some(range) = PageRange::new(at, pages) else { return };
        // SAFETY: the pages are hetmem's own and hold nothing that matters. A failure leaves memory in use, no more.
        let _ = unsafe { discard(range) };
    }

    fn await_events(&self) {
        self.events.wait();
    }

    fn removal_is_over(&self, range: PageRange, looks: u32) -> bool {
        let mut pending = lock(&self.removals);
        pending.retain(|(r, _)| looks > 0 || *r != range);
        // A page that is absent was removed already, or will be found absent: nothing can come back.
        if !self.has_present_page(range) {
            pending.retain(|(r, _)| *r != range);
            return true;
        }
        // One that is present is either not yet removed or written anew. The removal is over once every thread was seen
        // outside the system call: one that enters it later announces itself anew.
        if !pending.iter().any(|(r, _)| *r == range) {
            let own = hetmem_sys::thread::current_tid();
            pending.push((range, hetmem_sys::thread::threads().into_iter().filter(|tid| *tid != own).collect()));
        }
        let Some(at) = pending.iter().position(|(r, _)| *r == range) else { return false };
        pending[at].1.retain(|tid| !hetmem_sys::thread::is_outside(*tid, &REMOVING_CALLS));
        if pending[at].1.is_empty() {
            pending.swap_remove(at);
            return true;
        }
        false
    }

    fn stop_the_program(&self, page: VirtAddr, why: &'static str) -> ! {
        if !self.stopping.swap(true, Ordering::SeqCst) {
            let mut line = [0; 160];
            (self.on_fatal)(format_line(&mut line, page, why));
        }
        hetmem_sys::process::die()
    }
}

/// `page 0x…: why`, without an allocation.
fn format_line<'a>(line: &'a mut [u8; 160], page: VirtAddr, why: &'a str) -> &'a str {
    use std::io::Write as _;
    let capacity = line.len();
    let mut rest = &mut line[..];
    // What does not fit is cut off.
    let _ = write!(rest, "page {page} can't be given back to the program: {why}");
    let left = rest.len();
    std::str::from_utf8(&line[..capacity - left]).unwrap_or(why)
}

impl UserMemory {
    /// The descriptors to poll: faults and events arrive on each.
    pub(crate) fn program_contexts(&self) -> impl Iterator<Item = (&Userfaultfd, FaultPath)> {
        let sigbus = self.contexts.sigbus.as_ref().map(|uffd| (uffd, FaultPath::Sigbus));
        std::iter::once((&self.contexts.thread, FaultPath::Thread)).chain(sigbus)
    }

    /// Makes the pages of `range` this process's own again, as far as they are shared with a forked child. The caller holds
    /// no lock: a missing page on the way is served like any other.
    pub(crate) fn unshare(range: PageRange) {
        // A failure shows when the page still can't be moved.
        let _ = hetmem_sys::mapping::populate_write(range);
    }
}

impl AsFd for UserMemory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.contexts.thread.as_fd()
    }
}

//! The program's memory through userfaultfd: the one place where errno becomes an outcome.
//!
//! Key types: [`UserMemory`] answers [`Host`]. It owns up to two contexts:
//!
//! | context | registered in it | faults are served |
//! | --- | --- | --- |
//! | `thread` | the program's ranges, and hetmem's arenas (for write protection, which nobody uses) | by the handler thread |
//! | `sigbus` | the program's ranges that asked for it | in the faulting thread (`UFFD_FEATURE_SIGBUS`) |
//!
//! `UFFDIO_MOVE` wants its destination registered with the context that is asked. So a page leaves the program by a MOVE of
//! `thread` into an arena, and comes back by a MOVE of the context that its range is registered with. Either fails with `EAGAIN`
//! from the moment at which the program changes a registered mapping until the event of that was read: no page is ever taken from a
//! mapping, or put into one, that is not the one the books speak of.
//!
//! The arenas are registered too, so dropping pages of them raises an event that the handler thread must read: it is done with
//! no lock held, and never by that thread.
//!
//! *Limits:* a page of a range served by SIGBUS is taken out by `thread`, which doesn't know of changes to that range: a program that
//! maps other memory over such a range while another thread migrates it has that race itself.
#![expect(unsafe_code, reason = "moves and copies pages that are named by number")]

pub(crate) mod contexts;
mod cost;
mod events;
mod exchange;
mod registered;
pub(crate) mod removals;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use hetmem_core::home::{FileHome, FileId};
use hetmem_core::outcome::KeptReason;
use hetmem_core::port::{Arrived, Backing, FaultPath, Host, How, InstallStop, Taken};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::copy::{clear_pages, copy_pages};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Arena, ArenaOptions, HugePages, OnFork, discard, is_mapped, split_huge};
use hetmem_sys::pagemap::{Categories, PagemapEntry, PagemapScanner, Region as Scanned, ScanQuery};
use hetmem_sys::process;
use hetmem_sys::procmap::MappingQuery;
use hetmem_sys::thread::Tasks;
use hetmem_sys::uffd::{CopyFlags, Mode, MoveFlags, OwnSide, Progress, Userfaultfd, Wake, WriteProtect};

use crate::files::Files;
use crate::traps::Traps;
use contexts::Contexts;
use cost::MoveCost;
use events::EventCount;
use removals::Removals;

/// What `/proc/<pid>/maps` calls memory of `Runtime::map`.
pub(crate) const MAPPING_NAME: &std::ffi::CStr = c"hetmem:mapping";

/// The part of `RLIMIT_DATA` that the pool may be: the rest is the program's to use.
const POOL_SHARE: u64 = 16;

/// How often a frame is moved in that the kernel says is busy.
const BUSY_TRIES: u32 = 32;

/// How often the kernel is asked to make small pages of a huge one: that fails while somebody looks at the page, too.
const SPLIT_TRIES: u32 = 3;

/// The program's memory through userfaultfd: what the engine asks of its host is answered here.
pub(crate) struct UserMemory {
    pub(crate) contexts: Contexts,
    pub(crate) traps: Traps,
    pub(crate) events: EventCount,
    pub(crate) scanner: PagemapScanner,
    pub(crate) tasks: Tasks,
    /// Mappings by address; `None` before Linux 6.11.
    pub(crate) mappings: Option<MappingQuery>,
    /// What its MOVEs cost.
    move_cost: MoveCost,
    /// Whether the kernel comes back from a MOVE of a part of a huge page that can't be split.
    splits_end: bool,
    /// Announced removals, and the threads that may still be at them.
    pub(crate) removals: Removals,
    /// Files that are managed.
    pub(crate) files: Files,
    /// Address space that is never populated.
    nowhere: Arena,
    /// The pool's memory.
    pub(crate) pool: Arena,
    /// The error behind the last [`InstallStop::Refused`].
    refusal: AtomicI32,
    on_fatal: fn(&str),
    stopping: AtomicBool,
}

impl UserMemory {
    pub(crate) fn new(contexts: Contexts, pool: Arena, on_fatal: fn(&str)) -> Result<Self, Errno> {
        let nowhere = ArenaOptions {
            huge_pages: HugePages::Never,
            on_fork: OnFork::Omit,
            name: Some(c"hetmem:nowhere"),
            ..ArenaOptions::default()
        };
        Ok(Self {
            contexts,
            traps: Traps::default(),
            events: EventCount::default(),
            scanner: PagemapScanner::open()?,
            tasks: Tasks::open()?,
            mappings: MappingQuery::open().ok(),
            move_cost: MoveCost::default(),
            splits_end: hetmem_sys::uffd::ends_where_nothing_can_be_split(),
            removals: Removals::default(),
            files: Files::default(),
            refusal: AtomicI32::new(0),
            nowhere: Arena::reserve(PageCount::BLOCK, &nowhere)?,
            pool,
            on_fatal,
            stopping: AtomicBool::new(false),
        })
    }

    /// Lets pages be moved into `range`, which is hetmem's own.
    pub(crate) fn open_window(&self, range: PageRange) -> Result<(), Errno> {
        self.contexts.thread.register(range, Mode::WP)
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
        let mut pages = PageCount::ZERO;
        self.each_present(range, |part| pages += part.pages());
        pages
    }

    /// Whether the first page of `range`, which is there, is mapped by other processes as well, and how many pages from there on are alike. Where the page
    /// map can't be read, none is.
    pub(crate) fn mapped_by_others(&self, range: PageRange) -> (bool, PageCount) {
        let mut entries = [PagemapEntry::default(); 64];
        let read = self.scanner.entries(range, &mut entries).unwrap_or(0);
        let by_others = |entry: &PagemapEntry| entry.is_present() && !entry.is_mapped_once();
        let first = entries[..read].first().is_some_and(by_others);
        match entries[..read].iter().take_while(|entry| by_others(entry) == first).count() {
            0 => (false, range.pages()),
            alike => (first, PageCount::new(alike as u64)),
        }
    }

    /// How many pages of `range` are in memory, mapped, and mapped by no other process.
    pub(crate) fn present_here_only(&self, range: PageRange) -> PageCount {
        let mut pages = PageCount::ZERO;
        self.each_present(range, |part| {
            let mut rest = part;
            while !rest.is_empty() {
                let (by_others, alike) = self.mapped_by_others(rest);
                if !by_others {
                    pages += alike;
                }
                rest = rest.slice(alike, rest.pages() - alike);
            }
        });
        pages
    }

    /// Calls `visit` with each run of pages of `range` that are in memory and mapped. Where the page map can't be read, all
    /// are.
    fn each_present(&self, range: PageRange, mut visit: impl FnMut(PageRange)) {
        let query = ScanQuery { any_of: Categories::PRESENT, report: Categories::PRESENT, ..ScanQuery::default() };
        let mut found = [Scanned::default(); 64];
        let mut rest = range;
        while !rest.is_empty() {
            let Ok((n, end)) = self.scanner.scan(rest, query, &mut found) else { return visit(rest) };
            found[..n].iter().for_each(|part| visit(part.range()));
            match PageRange::between(end, range.end()) {
                Some(next) if next.pages() < rest.pages() => rest = next,
                _ => return,
            }
        }
    }

    fn install_stop(&self, path: FaultPath, page: VirtAddr, errno: Errno) -> InstallStop {
        match errno {
            Errno::AGAIN => InstallStop::EventsPending,
            // Looked at before anybody is told that a page is there twice. If nothing is there any more, a marker was: while a page is away, none
            // but hetmem's own comes there, and it stays.
            Errno::EXIST if self.scanner.is_page(page) == Ok(false) => InstallStop::Guarded,
            Errno::EXIST => InstallStop::Occupied,
            Errno::NOMEM => InstallStop::NoMemory,
            // The kernel looks for changes under way, then waits for them, and finds no mapping, or another: the page may belong elsewhere now.
            _ if self.contexts.is_changing(path) => InstallStop::EventsPending,
            Errno::NOENT | Errno::SRCH | Errno::INVAL | Errno::FAULT if !is_mapped(PageRange::page_of(page)) => {
                InstallStop::Gone
            }
            _ => {
                self.note_refusal(errno);
                InstallStop::Refused
            }
        }
    }

    /// Copies up to the first guard marker: the kernel copies over them, which it takes for its own.
    fn copy_beside_guards(&self, uffd: &Userfaultfd, to: PageRange, from: VirtAddr, flags: CopyFlags) -> Progress {
        let (guarded, alike) = self.scanner.first_guarded(to);
        if guarded {
            return Progress { done: PageCount::ZERO, stop: Some(Errno::EXIST) };
        }
        // SAFETY: the source are frames that the engine has references to; the destination is pages whose bytes these are, in a trapped range.
        unsafe { uffd.copy(to.start(), from, alike.min(to.pages()), flags) }
    }

    /// Fills `to`, or its first half, quarter, and so on: the kernel fills one mapping at a time, and refuses a run that goes on into
    /// the next as a whole.
    fn in_one_mapping(&self, path: FaultPath, to: PageRange, fill: impl Fn(PageRange) -> Progress) -> Arrived {
        let mut part = to;
        loop {
            let progress = fill(part);
            let refused = matches!(progress.stop, Some(Errno::INVAL | Errno::NOENT));
            if progress.done.is_zero() && refused && part.pages() > PageCount::ONE {
                part = part.slice(PageCount::ZERO, PageCount::new(part.pages().get() / 2));
                continue;
            }
            let stop = progress.stop.map(|errno| self.install_stop(path, part.start().add_pages(progress.done), errno));
            return Arrived { pages: progress.done, stop };
        }
    }
}

impl Host for UserMemory {
    fn trapped(&self, path: FaultPath, range: PageRange) -> Result<PageCount, KeptReason> {
        let pages = self.registered_prefix(path, range)?;
        // Registered for missing pages, or only watched? The latter answers a request that has no effect.
        let watched = range.slice(PageCount::ZERO, PageCount::ONE);
        match self.contexts.program(path).write_protect(watched, WriteProtect::ResolveNoWake) {
            Err(Errno::NOENT) => Ok(pages),
            Ok(()) | Err(_) => Err(KeptReason::Raced),
        }
    }

    fn can_be_split(&self, part: PageRange) -> bool {
        let is_huge = || self.scanner.is_huge(part).unwrap_or(true);
        self.splits_end || !is_huge() || (0..SPLIT_TRIES).any(|_| split_huge(part.start()).is_ok() && !is_huge())
    }

    fn moves_sooner(&self, pages: PageCount) -> bool {
        self.move_cost.is_worth_it(pages)
    }

    fn take_out(&self, _path: FaultPath, from: PageRange, to: VirtAddr) -> Taken {
        let began = MoveCost::begin(from.pages());
        // SAFETY: touches of the range wait until the page is back, as the engine asked; the destination is hetmem's own.
        let moved = unsafe {
            let (uffd, own) = (&self.contexts.thread, OwnSide::Destination);
            uffd.move_pages_settled(&self.scanner, own, to, from.start(), from.pages(), MoveFlags::DONT_WAKE)
        };
        if let Some(began) = began.filter(|_| moved.is_complete()) {
            self.move_cost.note(began, from.pages());
        }
        let rest = from.slice(moved.done, from.pages());
        let stop = moved.stop.map(|errno| match errno {
            Errno::NOENT => match self.same_presence(rest) {
                (false, pages) => (KeptReason::Hole, pages),
                // Present after all: it came between the two looks.
                (true, _) => (KeptReason::Raced, PageCount::ONE),
            },
            // Whether the page has moved is told by its place, if that can be looked at; else its bytes may be in the pool by now,
            // and the program would read zeros.
            Errno::EXIST | Errno::AGAIN if self.scanner.is_there(PageRange::page_of(rest.start())).is_err() => {
                self.stop_the_program(rest.start(), "the page map can't be read")
            }
            Errno::EXIST => (KeptReason::Occupied, PageCount::ONE),
            // After a fork whole runs are shared.
            Errno::BUSY => (KeptReason::Shared, self.same_presence(rest).1),
            Errno::AGAIN => (KeptReason::Raced, PageCount::ONE),
            Errno::NOMEM => (KeptReason::NoMemory, PageCount::ONE),
            // What is there is neither a page, in memory or in swap, nor a hole.
            Errno::FAULT => match self.scanner.first_guarded(rest) {
                (true, pages) if self.scanner.tells_guards() => (KeptReason::Guarded, pages),
                (true, _) => (KeptReason::Guarded, PageCount::ONE),
                (false, _) => (KeptReason::Poisoned, PageCount::ONE),
            },
            _ => {
                // It may be the place: one that was emptied is registered no longer if that failed (`discard`). The next page finds it so.
                let _ = self.open_window(PageRange::page_of(to.add_pages(moved.done)));
                (KeptReason::Unsupported, PageCount::ONE)
            }
        });
        Taken { pages: moved.done, stop }
    }

    fn install(&self, path: FaultPath, to: PageRange, from: VirtAddr, how: How) -> Arrived {
        let uffd = self.contexts.program(path);
        self.in_one_mapping(path, to, |to| match how {
            How::Move => {
                // SAFETY: the source is a frame of hetmem's that the engine has references to; the destination is a page whose
                // bytes these are, in a trapped range.
                let once = || unsafe {
                    let own = OwnSide::Source;
                    uffd.move_pages_settled(&self.scanner, own, to.start(), from, to.pages(), MoveFlags::NONE)
                };
                // A frame is mapped once and pinned by nobody: what is busy is the kernel, with the huge page around it, and that passes.
                let busy = |progress: &Progress| progress.done.is_zero() && progress.stop == Some(Errno::BUSY);
                (1..BUSY_TRIES).map(|_| once()).find(|progress| !busy(progress)).unwrap_or_else(once)
            }
            How::Copy => {
                // A hole would be copied as zeros. The engine copies where a page can't be moved, so it may be that there is none.
                let source = PageRange::new(from, to.pages()).unwrap_or(to);
                if !source.iter().all(|page| self.scanner.is_there(PageRange::page_of(page)) == Ok(true)) {
                    self.stop_the_program(to.start(), "its frame has no page");
                }
                self.copy_beside_guards(uffd, to, from, CopyFlags::NONE)
            }
            How::Fetch => self.copy_beside_guards(uffd, to, from, CopyFlags::DONT_WAKE),
            // The look would cost a sixth of the fault, and a marker that is put there beside the touch might be missed all the same.
            // SAFETY: as in `copy_beside_guards`.
            How::FetchTouched => unsafe { uffd.copy(to.start(), from, to.pages(), CopyFlags::DONT_WAKE) },
        })
    }

    fn zero_fill(&self, path: FaultPath, range: PageRange) -> Arrived {
        // SAFETY: the engine asks for pages of which nothing was ever taken out.
        self.in_one_mapping(path, range, |range| unsafe { self.contexts.program(path).zeropage(range, Wake::Now) })
    }

    fn wake(&self, path: FaultPath, range: PageRange) {
        // The only error is a malformed range.
        let _ = self.contexts.program(path).wake(range);
    }

    fn copy(&self, from: VirtAddr, to: VirtAddr, pages: PageCount) {
        // SAFETY: the engine has references to the frames on both sides.
        unsafe { copy_pages(to, from, pages) };
    }

    fn clear(&self, at: VirtAddr, pages: PageCount) {
        // SAFETY: the pages are hetmem's own, and nobody refers to their frames any more.
        unsafe { clear_pages(at, pages) };
    }

    fn populate_huge(&self, block: PageRange) {
        // What is not populated is when it is written.
        let _ = hetmem_sys::mapping::populate_huge(block);
    }

    fn discard(&self, at: VirtAddr, pages: PageCount) -> bool {
        let Some(range) = PageRange::new(at, pages) else { return false };
        // Of a registered range it would be announced: whoever asks would wait until a handler thread, which may be who asks, has read that, and no
        // page would move meanwhile.
        let unregistered = self.contexts.thread.unregister(range);
        // SAFETY: the pages are hetmem's own and hold nothing that matters.
        let discarded = unregistered.is_ok() && unsafe { discard(range) }.is_ok();
        // Whatever came of it. Places that can't be registered stay in stock, for which they need not be; `take_out` tries again.
        self.open_window(range).is_ok() && discarded
    }

    fn open_places(&self, at: VirtAddr, pages: PageCount) -> bool {
        let Some(places) = PageRange::new(at, pages) else { return false };
        let size = places.end().pages_since(self.pool.range().start()).bytes();
        size.get() <= process::data_limit() / POOL_SHARE && self.pool.open(places).is_ok()
    }

    fn await_events(&self) {
        self.events.wait();
    }

    fn is_huge(&self, block: PageRange) -> bool {
        // Without the scan pages count as small, which is right for their contents.
        self.scanner.is_huge(block).unwrap_or(false)
    }

    fn present_parts(&self, range: PageRange) -> Vec<PageRange> {
        let mut parts = Vec::new();
        self.each_present(range, |part| parts.push(part));
        parts
    }

    fn guarded_parts(&self, range: PageRange) -> Vec<PageRange> {
        let (mut parts, mut rest) = (Vec::new(), range);
        let mut found = [Scanned::default(); 64];
        while !rest.is_empty() {
            // Without the scan none is known.
            let Ok((n, end)) = self.scanner.guarded(rest, &mut found) else { break };
            parts.extend(found[..n].iter().map(|part| part.range()));
            match PageRange::between(end, range.end()) {
                Some(next) if next.pages() < rest.pages() => rest = next,
                _ => break,
            }
        }
        parts
    }

    fn removal_is_over(&self, range: PageRange, looks: u32) -> bool {
        let others = || {
            let own = hetmem_sys::thread::current_tid();
            let mut threads = self.tasks.list().ok().filter(|threads| threads.contains(&own))?;
            threads.retain(|tid| *tid != own);
            Some(threads)
        };
        self.removals.is_over(range, looks, others, |tid| self.tasks.is_at_rest(tid))
    }

    fn exchange(&self, path: FaultPath, block: PageRange, backing: Backing<'_>) -> Result<(), KeptReason> {
        self.is_as_booked(block, backing)?;
        match backing {
            Backing::Device(frames) => exchange::lay(block, frames),
            Backing::Anonymous => self.lift(path, block),
            Backing::StandIn(instead, pages) => self.stand_in(path, block, instead, pages),
            Backing::File(home) => self.map_file_again(block, home),
        }
        .map_err(|errno| self.exchange_failed(block, errno))
    }

    fn is_unwritten(&self, file: FileId) -> Result<(), KeptReason> {
        self.files.get(file).map_or(Err(KeptReason::NoLease), |file| file.is_unwritten())
    }

    fn read_file(&self, home: FileHome, page: VirtAddr, to: VirtAddr, pages: PageCount) -> Result<(), KeptReason> {
        let file = self.files.get(home.file).ok_or(KeptReason::FileUnreadable)?;
        // SAFETY: the pages are hetmem's own, and the engine has references to them.
        unsafe { file.shadow.read_pages(home.offset_at(page), to, pages) }.map_err(|errno| {
            self.note_refusal(errno);
            KeptReason::FileUnreadable
        })
    }

    fn stop_the_program(&self, page: VirtAddr, why: &'static str) -> ! {
        if !self.stopping.swap(true, Ordering::SeqCst) {
            let mut line = [0; 240];
            (self.on_fatal)(format_line(&mut line, page, why, self.refusal.load(Ordering::Relaxed)));
        }
        process::die()
    }
}

/// `page 0x…: why`, without an allocation.
fn format_line<'a>(line: &'a mut [u8; 240], page: VirtAddr, why: &'a str, errno: i32) -> &'a str {
    use std::io::Write as _;
    let capacity = line.len();
    let mut rest = &mut line[..];
    // What does not fit is cut off.
    let _ = write!(rest, "was stopped: page {page} can't be given back to the program: {why} (last errno {errno})");
    let left = rest.len();
    std::str::from_utf8(&line[..capacity - left]).unwrap_or(why)
}

impl UserMemory {
    /// What the last word names, if the program is stopped next.
    pub(crate) fn note_refusal(&self, errno: Errno) {
        // Relaxed: a hint for the last word.
        self.refusal.store(errno.raw_os_error(), Ordering::Relaxed);
    }

    /// The descriptors to poll: faults and events arrive on each.
    pub(crate) fn program_contexts(&self) -> impl Iterator<Item = (&Userfaultfd, FaultPath)> {
        let sigbus = self.contexts.sigbus.as_ref().map(|uffd| (uffd, FaultPath::Sigbus));
        std::iter::once((&self.contexts.thread, FaultPath::Thread)).chain(sigbus)
    }

    /// A thread on which touches depend has panicked: whoever touches what is away would wait for ever. Ends the process, with one line.
    pub(crate) fn end_after_panic(&self, thread: &str, panic: &(dyn std::any::Any + Send)) -> ! {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        if !self.stopping.swap(true, Ordering::SeqCst) {
            (self.on_fatal)(&format!("{thread} has panicked, so the program is stopped: {text}"));
        }
        process::die()
    }

    /// Whether others map the page at `page`, too, as far as the page map tells.
    pub(crate) fn is_shared(&self, page: PageRange) -> bool {
        let mut entry = [PagemapEntry::default()];
        let known = self.scanner.entries(page, &mut entry) == Ok(1);
        known && entry[0].is_present() && !entry[0].is_mapped_once()
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

#[cfg(test)]
mod tests;

//! The program's memory, as the host lets hetmem change it: [`Host`], and [`MirrorHost`] for mirrors.

use crate::fault::MAX_COPIED;
use crate::home::{FileHome, FileId};
use crate::outcome::KeptReason;
use crate::units::{PageCount, PageRange, VirtAddr};

/// How touches of missing pages of a region are served.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum FaultPath {
    /// By the handler thread; system calls on missing pages are served too.
    #[default]
    Thread,
    /// In the faulting thread, by SIGBUS: faster, but a system call on a missing page fails with `EFAULT`.
    Sigbus,
}

/// What [`Host::take_out`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Pages from the start of the range that are out now.
    pub pages: PageCount,
    /// Why it stopped before the end: the reason, and how many pages it holds for from there on (at least one).
    pub stop: Option<(KeptReason, PageCount)>,
}

/// What [`Host::install`] and [`Host::zero_fill`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Arrived {
    /// Pages from the start of the range that are in place now.
    pub pages: PageCount,
    /// Why it stopped before the end.
    pub stop: Option<InstallStop>,
}

impl Arrived {
    /// All `pages` are in place.
    #[must_use]
    pub const fn all(pages: PageCount) -> Self {
        Self { pages, stop: None }
    }
}

/// Why a page could not be installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InstallStop {
    /// The program changed its mappings and the event is unread: let go of the gate, [`Host::await_events`], look again.
    EventsPending,
    /// A page is there already.
    Occupied,
    /// A guard marker is there, or was when it was tried: the program has discarded the page, whatever it held.
    Guarded,
    /// Nothing is mapped at that address any more.
    Gone,
    /// The mapping accepts no page by moving: read-only, locked, or of other protection; copying may do.
    Refused,
    /// The host has no memory for it now.
    NoMemory,
}

/// How a page is installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum How {
    /// The page itself: afterwards it is missing where it came from.
    Move,
    /// Its bytes: afterwards it is still where it came from.
    Copy,
    /// Its bytes, from a frame of a device, which keeps its page. Nobody is woken: that is for the caller to do.
    Fetch,
    /// The same of one page that somebody touches just now, where no guard marker was when he did: a host that would have to look for one may leave that.
    FetchTouched,
}

/// What a block, or a part of one, can be backed by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing<'a> {
    /// Anonymous memory without a page: touches are trapped.
    Anonymous,
    /// Memory of a device, which hetmem has mapped from this address on, and which is mapped a second time.
    Device(VirtAddr),
    /// Anonymous memory that can be read, in place of a file's: in it are these pages, each moved there from a frame with an address, and touches of
    /// the others are trapped. A forked child has none of it.
    StandIn(Instead, &'a [(PageRange, VirtAddr)]),
    /// A file, as it was mapped before something stood in for it; who waits for a page is to be woken.
    File(FileHome),
}

/// What is mapped where something is to stand in for a file's mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Instead {
    /// The file, unless the program has changed that unseen, which the host looks for.
    OfFile(FileHome),
    /// What stands in for it already.
    OfStandIn(FileHome),
}

/// The program's memory, as the host lets hetmem change it.
pub trait Host: Send + Sync {
    /// From how many pages of `range`, counted from its start, pages can be taken out: touches of missing ones certainly wait. Asked
    /// with the gate held, so that no event can make the answer stale before the pages are out.
    ///
    /// # Errors
    ///
    /// The reason why the first page must stay.
    fn trapped(&self, path: FaultPath, range: PageRange) -> Result<PageCount, KeptReason>;

    /// Makes sure that the `pages` places from `at` on, by which the pool would grow, can be used: `false` if the process may have no more memory
    /// now, or the program should have it. Asked twice is the same as once.
    fn open_places(&self, _at: VirtAddr, _pages: PageCount) -> bool {
        true
    }

    /// Whether the huge page that `part` may be of can be made small pages of: asked before pages of `part` alone are taken out, or all of them to
    /// places that small pages have used. A kernel may not come back from such a move otherwise.
    fn can_be_split(&self, _part: PageRange) -> bool {
        true
    }

    /// Makes the pages of `from` missing in the program and puts their bytes at `to`, page by page atomically: a touch
    /// by the program finds the page before or waits after.
    ///
    /// While an event is unread it takes none ([`KeptReason::Raced`]): what lies in `from` may have come there after the
    /// change that the event tells of, and would be dropped with what was there before.
    fn take_out(&self, path: FaultPath, from: PageRange, to: VirtAddr) -> Taken;

    /// Whether `pages` pages are sooner in the program by a move of pages that hetmem has than by a copy, for which the kernel takes others.
    fn moves_sooner(&self, pages: PageCount) -> bool {
        pages > MAX_COPIED
    }

    /// Makes the bytes at `from` present at `to`, where pages are missing, and wakes who waits for them, unless `how` says otherwise.
    fn install(&self, path: FaultPath, to: PageRange, from: VirtAddr, how: How) -> Arrived;

    /// Makes missing, never written pages of `range` read as zeros, and wakes who waits for them.
    fn zero_fill(&self, path: FaultPath, range: PageRange) -> Arrived;

    /// Wakes who waits for pages of `range`; they look again.
    fn wake(&self, path: FaultPath, range: PageRange);

    /// Copies `pages` pages between frames that are not the program's.
    fn copy(&self, from: VirtAddr, to: VirtAddr, pages: PageCount);

    /// Makes pages that are not the program's read as zeros, and populates holes among them.
    fn clear(&self, at: VirtAddr, pages: PageCount);

    /// Populates `block`, which has no page and is not the program's, with a huge page if it can: what is copied there next is to be one.
    fn populate_huge(&self, _block: PageRange) {}

    /// Gives the memory of pages that are not the program's back to the host; they read as zeros afterwards. `false` if that can't be done: pages of
    /// locked memory stay. The caller holds no lock.
    fn discard(&self, at: VirtAddr, pages: PageCount) -> bool;

    /// Returns after an event that was pending at the call has been read, or after a bounded while. The caller holds no lock.
    fn await_events(&self);

    /// Whether `block` is mapped as one huge page, as far as the host can tell.
    fn is_huge(&self, _block: PageRange) -> bool {
        false
    }

    /// The parts of `range` that have pages. More may be named than have.
    fn present_parts(&self, range: PageRange) -> Vec<PageRange> {
        vec![range]
    }

    /// The parts of `range` that have guard markers. A page in swap may be named, too: no bytes of it are hetmem's.
    fn guarded_parts(&self, _range: PageRange) -> Vec<PageRange> {
        Vec::new()
    }

    /// Whether a `MADV_DONTNEED` of `range`, announced before, is known to be over. `looks` counts the questions before.
    fn removal_is_over(&self, range: PageRange, looks: u32) -> bool;

    /// Maps `backing` in place of `block`, in one step: a touch finds what was there before, or waits, and finds or waits for what is there after.
    /// All pages of the block are missing before, or mapped from frames that stay; touches of it are served by `path`. The caller holds no lock.
    ///
    /// # Errors
    ///
    /// Why the block is as it was. (Of the frames of a stand-in pages may be lost.)
    fn exchange(&self, _path: FaultPath, _block: PageRange, _backing: Backing<'_>) -> Result<(), KeptReason> {
        Err(KeptReason::Unsupported)
    }

    /// Whether what devices have of `file` stays as it is: nobody can write to it before all of that is home ([`Engine::bring_files_home`]).
    ///
    /// # Errors
    ///
    /// Why not.
    ///
    /// [`Engine::bring_files_home`]: crate::engine::Engine::bring_files_home
    fn is_unwritten(&self, _file: FileId) -> Result<(), KeptReason> {
        Err(KeptReason::Unsupported)
    }

    /// Reads the bytes of the `pages` pages from `page` on, whose home this is, to pages that are not the program's. What lies behind the end of the
    /// file in its last page is zeros.
    ///
    /// # Errors
    ///
    /// [`KeptReason::FileUnreadable`] if some can't be read.
    fn read_file(&self, _home: FileHome, _page: VirtAddr, _to: VirtAddr, _pages: PageCount) -> Result<(), KeptReason> {
        Err(KeptReason::FileUnreadable)
    }

    /// A page's bytes can't be put back: stops the program with `why`.
    fn stop_the_program(&self, page: VirtAddr, why: &'static str) -> !;
}

/// A mapping of the program, and what it allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappedRange {
    /// Its pages.
    pub range: PageRange,
    /// Whether they can be read.
    pub readable: bool,
    /// Whether they can be written.
    pub writable: bool,
    /// Whether writes reach others who map the same.
    pub shared: bool,
    /// Whether it is of no file, so that all its pages are the process's own or the page of zeros.
    pub anonymous: bool,
    /// Its pages are mapped 2^order at a time, whatever is seen of them.
    pub order: u8,
}

/// Pages that are present, as far as the host can tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Present {
    /// Which.
    pub range: PageRange,
    /// Whether a write needs no fault.
    pub writable: bool,
    /// Whether they are the page of zeros that all share.
    pub zero: bool,
    /// They are mapped 2^order at a time.
    pub order: u8,
}

/// A kind of touch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
}

/// A touch would end in a signal, or there is no memory for the page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the page can't be faulted in")]
pub struct CannotFault;

/// What mirrors ask of the program's memory, managed or not.
pub trait MirrorHost: Host {
    /// The mapping at `addr`, or the next one after it.
    fn mapping_from(&self, addr: VirtAddr) -> Option<MappedRange>;

    /// Calls `visit` with each run of present pages of `range`, which lies in `mapping`, in order.
    fn presence(&self, mapping: &MappedRange, range: PageRange, visit: &mut dyn FnMut(Present));

    /// Does what touches of all pages of `range` do. The caller holds no lock; other threads serve what is away.
    ///
    /// # Errors
    ///
    /// If one of them would end in a signal; those before it may have been done.
    fn fault_in(&self, range: PageRange, access: Access) -> Result<(), CannotFault>;
}

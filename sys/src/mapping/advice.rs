//! `madvise(2)` on ranges that are named by number.
#![expect(unsafe_code, reason = "memory named by number is changed")]

use std::ffi::c_void;

use hetmem_core::units::{PageRange, VirtAddr};
use rustix::mm::Advice;

use crate::copy::address;
use crate::errno::Errno;

/// The address as a pointer for the kernel.
pub(super) fn pointer(addr: VirtAddr) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(address(addr))
}

/// `madvise(2)`.
///
/// # Safety
///
/// The advice must be one that the caller may give on the range.
pub(super) unsafe fn advise(range: PageRange, advice: Advice) -> Result<(), Errno> {
    // SAFETY: the caller's.
    unsafe { rustix::mm::madvise(pointer(range.start()), range.pages().bytes().as_usize(), advice) }
}

/// Makes every page of `range` present and writable as by a write that changes nothing (`MADV_POPULATE_WRITE`): holes
/// get zero pages, copy-on-write pages become this process's own. The call waits like a write would, so no page of the
/// range may be missing in a registered range that the calling thread serves.
///
/// `ENOMEM` where the range is not mapped, `EINVAL` where it is not writable, `EFAULT` where a touch would raise
/// SIGBUS, `EHWPOISON` on memory that the hardware lost. Pages before such a place may be present by then.
pub fn populate_write(range: PageRange) -> Result<(), Errno> {
    // SAFETY: the contents of the range stay as they are.
    rustix::io::retry_on_intr(|| unsafe { advise(range, Advice::LinuxPopulateWrite) })
}

/// Makes every page of `range` present as by a read (`MADV_POPULATE_READ`): never written pages of private memory become the
/// zero page. It waits and fails as [`populate_write`] does.
pub fn populate_read(range: PageRange) -> Result<(), Errno> {
    // SAFETY: the contents of the range stay as they are.
    rustix::io::retry_on_intr(|| unsafe { advise(range, Advice::LinuxPopulateRead) })
}

/// Has the kernel write the pages of `range` to swap, as far as there is room, and have their memory back (`MADV_PAGEOUT`).
pub fn page_out(range: PageRange) -> Result<(), Errno> {
    // SAFETY: the contents of the range stay as they are.
    unsafe { advise(range, Advice::LinuxPageOut) }
}

/// Keeps huge pages from being made of `range` from now on (`MADV_NOHUGEPAGE`). A kernel without huge pages has none to make.
pub fn forbid_huge_pages(range: PageRange) -> Result<(), Errno> {
    // SAFETY: the contents of the range stay as they are.
    match unsafe { advise(range, Advice::LinuxNoHugepage) } {
        Err(Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// Leaves `range` out of forked children and of core dumps.
///
/// # Safety
///
/// It is hetmem's own, and nothing of hetmem's looks for it in a child.
pub unsafe fn keep_to_this_process(range: PageRange) -> Result<(), Errno> {
    // SAFETY: the caller's; who dumps the process misses nothing of the program's.
    unsafe { advise(range, Advice::LinuxDontDump) }?;
    // SAFETY: the caller's.
    unsafe { advise(range, Advice::LinuxDontFork) }
}

/// Populates `block`, which has no page and of which [`forbid_huge_pages`] was said, with a huge page if the kernel has one, else with small ones. The
/// mapping around it is as before when this returns, and is several meanwhile.
pub fn populate_huge(block: PageRange) -> Result<(), Errno> {
    // SAFETY: the contents of the range stay as they are.
    unsafe { advise(block, Advice::LinuxHugepage) }?;
    let populated = populate_write(block);
    forbid_huge_pages(block)?;
    populated
}

/// Whether the page of private anonymous memory at `page` is locked (`mlock(2)`): the kernel takes no advice then that it is cold. Elsewhere the page
/// counts as a little older afterwards.
#[must_use]
pub fn is_locked(page: VirtAddr) -> bool {
    split_huge(page) == Err(Errno::INVAL)
}

/// Has the kernel make small pages of the huge page around `page`, which it tries once (`MADV_COLD`; `mm/madvise.c`,
/// `madvise_cold_or_pageout_pte_range`): not of one that is shared, or that somebody has references to. Whether it did is told by
/// [`PagemapScanner::is_huge`](crate::pagemap::PagemapScanner::is_huge). `EINVAL` on locked memory.
pub fn split_huge(page: VirtAddr) -> Result<(), Errno> {
    // SAFETY: the contents stay as they are.
    unsafe { advise(PageRange::page_of(page), Advice::LinuxCold) }
}

/// What is done with guard markers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guard {
    /// Pages are discarded, and touches end in SIGSEGV (`MADV_GUARD_INSTALL`, Linux 6.13).
    Install,
    /// Where a marker is there is nothing afterwards; pages stay (`MADV_GUARD_REMOVE`).
    Remove,
}

impl Guard {
    /// The advice's number.
    #[must_use]
    pub const fn advice(self) -> i32 {
        match self {
            Self::Install => 102,
            Self::Remove => 103,
        }
    }

    /// What `advice` does with guard markers, if anything.
    #[must_use]
    pub const fn from_advice(advice: i32) -> Option<Self> {
        match advice {
            102 => Some(Self::Install),
            103 => Some(Self::Remove),
            _ => None,
        }
    }
}

/// Installs or removes guard markers in `len` bytes from `start` on, whatever the kernel thinks of such a range. No userfaultfd is told.
///
/// # Safety
///
/// What [`Guard::Install`] discards nobody counts on.
pub unsafe fn guard(start: u64, len: u64, what: Guard) -> Result<(), Errno> {
    let advice = usize::try_from(what.advice()).map_err(|_| Errno::INVAL)?;
    let [start, len] = [start, len].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    // SAFETY: the caller gives the contents up.
    unsafe { crate::raw::syscall5(libc::SYS_madvise, [start, len, advice, 0, 0]) }.map(|_| ())
}

/// Drops the pages of `range` (`MADV_DONTNEED`): private anonymous memory becomes holes. `EINVAL` on locked memory.
/// In a range that is registered with `EVENT_REMOVE` the call waits until the event is read.
///
/// # Safety
///
/// The contents of the range are lost: nobody may count on them any more, or they are kept somewhere else and touches
/// of the range are trapped.
pub unsafe fn discard(range: PageRange) -> Result<(), Errno> {
    // SAFETY: the caller gives the contents up.
    rustix::io::retry_on_intr(|| unsafe { advise(range, Advice::LinuxDontNeed) })
}

/// The same of locked memory, too (`MADV_DONTNEED_LOCKED`, Linux 5.18), which stays locked.
///
/// # Safety
///
/// As for [`discard`].
pub unsafe fn discard_locked_too(range: PageRange) -> Result<(), Errno> {
    // rustix has no name for it.
    const DONTNEED_LOCKED: usize = 24;
    let (start, len) = (address(range.start()), range.pages().bytes().as_usize());
    // SAFETY: the caller gives the contents up.
    let dropped = || unsafe { crate::raw::syscall5(libc::SYS_madvise, [start, len, DONTNEED_LOCKED, 0, 0]) };
    rustix::io::retry_on_intr(dropped).map(|_| ())
}

//! Mappings of every kind that a program may have.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hetmem_core::units::{PAGE_SIZE, PageRange};

use crate::case::Case;
use crate::common::{self, Raw};

/// The pages of a small mapping.
pub(crate) const FEW: u64 = 4;

/// What a page that nobody may touch is (`MADV_GUARD_INSTALL`, Linux 6.13).
const MADV_GUARD_INSTALL: i32 = 102;

pub(crate) fn anonymous(case: &Case) -> Option<Raw> {
    Some(case.written(1024))
}

pub(crate) fn hole(case: &Case) -> Option<Raw> {
    Some(case.empty(1024))
}

/// Read, and never written: the zero page, or the huge one.
pub(crate) fn zero(case: &Case) -> Option<Raw> {
    let memory = case.empty(1024);
    (0..1024).for_each(|i| assert_eq!(memory.get(i), 0));
    Some(memory)
}

fn protected(memory: Raw, prot: i32) -> Option<Raw> {
    memory.protect(0, memory.range().pages().get(), prot);
    Some(memory)
}

pub(crate) fn read_only(case: &Case) -> Option<Raw> {
    protected(case.written(1024), libc::PROT_READ)
}

pub(crate) fn read_only_hole(case: &Case) -> Option<Raw> {
    protected(case.empty(1024), libc::PROT_READ)
}

pub(crate) fn no_access(case: &Case) -> Option<Raw> {
    protected(case.written(1024), libc::PROT_NONE)
}

pub(crate) fn write_only(case: &Case) -> Option<Raw> {
    protected(case.written(1024), libc::PROT_WRITE)
}

pub(crate) fn read_only_for_a_while(case: &Case) -> Option<Raw> {
    protected(read_only(case)?, libc::PROT_READ | libc::PROT_WRITE)
}

pub(crate) fn locked(case: &Case) -> Option<Raw> {
    let memory = case.written(FEW);
    // SAFETY: the test's own memory.
    let result = unsafe { libc::mlock(memory.pointer(0).cast(), common::bytes(FEW)) };
    if result != 0 {
        eprintln!("skipped: locked memory ({})", std::io::Error::last_os_error());
        return None;
    }
    Some(memory)
}

pub(crate) fn guarded(case: &Case) -> Option<Raw> {
    let memory = case.written(FEW);
    // SAFETY: the test's own memory, whose contents it gives up.
    if unsafe { libc::madvise(memory.pointer(0).cast(), common::bytes(FEW), MADV_GUARD_INSTALL) } != 0 {
        eprintln!("skipped: guard pages ({})", std::io::Error::last_os_error());
        return None;
    }
    Some(memory)
}

/// A huge page that is mapped page by page: a part of it had another protection once.
pub(crate) fn divided(case: &Case) -> Option<Raw> {
    let memory = case.written(512);
    memory.protect(7, 1, libc::PROT_READ);
    memory.protect(7, 1, libc::PROT_READ | libc::PROT_WRITE);
    assert!(!memory.is_huge());
    Some(memory)
}

/// `MADV_PAGEOUT` writes pages to swap, if there is any.
pub(crate) fn swapped(case: &Case) -> Option<Raw> {
    let memory = case.written(FEW);
    memory.advise(libc::MADV_PAGEOUT);
    let swapped = memory.has(hetmem_sys::pagemap::Categories::SWAPPED);
    if !swapped {
        eprintln!("skipped: swapped pages (the host has no swap)");
    }
    swapped.then_some(memory)
}

/// Whether a file mapping is shared, and what was done to it before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Nothing,
    Read,
    Written,
}

fn of_file(file: &impl AsRawFd, shared: bool, done: Done) -> Raw {
    let memory = Raw::map(FEW, if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE }, file.as_raw_fd());
    match done {
        Done::Nothing => {}
        Done::Read => (0..FEW).for_each(|i| assert_eq!(memory.get(i), 0)),
        Done::Written => memory.fill(),
    }
    memory
}

pub(crate) fn memfd(shared: bool, done: Done) -> Raw {
    let file = rustix::fs::memfd_create(c"semantics", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, FEW * PAGE_SIZE).unwrap();
    of_file(&file, shared, done)
}

/// A file of a file system: the running program's directory has one.
pub(crate) fn file(shared: bool, done: Done) -> Raw {
    let directory = std::env::current_exe().unwrap();
    let file = rustix::fs::open(
        directory.parent().unwrap(),
        rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
    );
    let file = file.unwrap();
    rustix::io::pwrite(&file, &vec![0; usize::try_from(FEW * PAGE_SIZE).unwrap()], 0).unwrap();
    of_file(&file, shared, done)
}

pub(crate) fn shared_anonymous(done: Done) -> Raw {
    let memory = Raw::map(FEW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
    if done == Done::Written {
        memory.fill();
    }
    memory
}

/// Beyond the end of its file.
pub(crate) fn beyond_the_end(shared: bool) -> Raw {
    let file = rustix::fs::memfd_create(c"short", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    of_file(&file, shared, Done::Nothing)
}

/// The ring of an io_uring: the kernel's own pages, put into a mapping by its driver.
pub(crate) fn special() -> Option<Raw> {
    let ring = io_uring()?;
    // SAFETY: a new mapping of the ring's queues, of one page.
    // The kernel maps it where it chooses only.
    Some(Raw::anywhere(1, libc::MAP_SHARED | libc::MAP_POPULATE, ring.as_raw_fd()))
}

/// The kernel's clock data: `VM_PFNMAP`, without page descriptors.
pub(crate) fn without_descriptors() -> Option<PageRange> {
    let mut found = None;
    let look = |mapping: &hetmem_sys::maps::Mapping<'_>| {
        if mapping.name == b"[vvar]" {
            found = Some(mapping.range);
        }
        std::ops::ControlFlow::Continue(())
    };
    hetmem_sys::maps::for_each_mapping(&mut [0; hetmem_sys::maps::BUFFER_SIZE], look).unwrap();
    found
}

fn io_uring() -> Option<OwnedFd> {
    let mut params = [0u8; 120];
    // SAFETY: makes a ring of one entry; the parameters have the size that the kernel writes.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    let Some(ring) = i32::try_from(ring).ok().filter(|fd| *fd >= 0) else {
        eprintln!("skipped: pinned pages and rings (io_uring: {})", std::io::Error::last_os_error());
        return None;
    };
    // SAFETY: a new descriptor that nobody else owns.
    Some(unsafe { OwnedFd::from_raw_fd(ring) })
}

/// Pins `range` for DMA as a registered buffer of an io_uring, for as long as that is open.
pub(crate) fn pin(range: PageRange) -> Option<OwnedFd> {
    const IORING_REGISTER_BUFFERS: i32 = 0;
    let ring = io_uring()?;
    let buffer = [range.start().get(), range.pages().bytes().get()];
    // SAFETY: one `struct iovec` that names memory of the test's own.
    let done = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), IORING_REGISTER_BUFFERS, buffer.as_ptr(), 1)
    };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    Some(ring)
}

/// Two pages of hugetlb, reserved for the test where the host has none to spare, and given back by its drop.
pub(crate) struct Hugetlb {
    before: Option<u64>,
    /// One test at a time has them.
    _alone: MutexGuard<'static, ()>,
}

const NR_HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

impl Hugetlb {
    pub(crate) const PAGES: u64 = 1024;

    pub(crate) fn reserve() -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let free = || {
            let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
            let line = meminfo.split_once("HugePages_Free:").map_or("0", |(_, rest)| rest);
            line.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        let mut reserved = Self { before: None, _alone: alone };
        if free() < 2 {
            let before = std::fs::read_to_string(NR_HUGEPAGES).ok().and_then(|n| n.trim().parse::<u64>().ok());
            reserved.before = before.filter(|n| std::fs::write(NR_HUGEPAGES, (n + 2).to_string()).is_ok());
        }
        if free() < 2 {
            eprintln!("skipped: hugetlb (the host has no page of it to spare)");
            return None;
        }
        Some(reserved)
    }

    /// Private anonymous memory of the pages.
    pub(crate) fn map(&self) -> Raw {
        Raw::map(Self::PAGES, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB, -1)
    }

    /// The same right behind `memory`.
    pub(crate) fn map_behind(&self, memory: Raw) -> Raw {
        memory.continued(Self::PAGES, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB)
    }
}

impl Drop for Hugetlb {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // The host keeps two pages more if it does not take them back.
            let _ = std::fs::write(NR_HUGEPAGES, before.to_string());
        }
    }
}

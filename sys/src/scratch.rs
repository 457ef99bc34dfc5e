//! Unnamed files for pages that a process keeps on a disk: direct I/O to and from pages that are named by number.
//!
//! A file of [`Scratch::create`] has no name and can be given none (`O_TMPFILE` with `O_EXCL`, open(2)): the file system has its room back when the last
//! descriptor is closed, however its process ends, and also when the machine does. What is read and written goes past the page cache (`O_DIRECT`), from
//! and to whole pages, which it takes no copy of.
//!
//! A file that would become longer than `RLIMIT_FSIZE` is refused by `EFBIG` *and* SIGXFSZ, which ends a program that knows nothing of the file. It is
//! sent to the thread that asked: [`NoSizeSignal`] holds it back there.
#![expect(unsafe_code, reason = "reads and writes memory that is named by number, and changes the mask of signals")]

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use hetmem_core::units::{ByteLen, PAGE_SIZE, PageCount, VirtAddr};
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, StatxFlags};

use crate::errno::Errno;
use crate::raw;

/// Why no such file can be made in a folder.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ScratchError {
    /// It can't be reached, or nothing can be made there.
    #[error("no file can be made in {path}: {source}{hint}")]
    Open {
        /// The folder.
        path: String,
        /// What the kernel said.
        source: Errno,
        /// What may help.
        hint: &'static str,
    },
    /// Its files are memory.
    #[error("the files of {0} are memory (tmpfs); give a folder on a disk, such as /var/tmp")]
    Memory(String),
    /// The file system doesn't have what is needed.
    #[error("the file system of {path} has no {what}; give a folder on another, such as ext4 or XFS")]
    Lacks {
        /// The folder.
        path: String,
        /// What it lacks.
        what: &'static str,
    },
}

/// `f_type` of statfs(2) of tmpfs and ramfs.
const MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58F6];

/// An unnamed file, of which whole pages are read and written past the page cache.
#[derive(Debug)]
pub struct Scratch(OwnedFd);

/// Pages in memory, as a part of what is read or written at once: `struct iovec`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Piece {
    base: u64,
    len: u64,
}

impl Piece {
    /// The most that the kernel takes at once (`IOV_MAX`) is far beyond this; what is kept of a request under way is as large as this says.
    pub const MOST: usize = 16;
    /// No pages.
    pub const NONE: Self = Self { base: 0, len: 0 };

    /// The `pages` pages from `at` on.
    #[must_use]
    pub fn new(at: VirtAddr, pages: PageCount) -> Self {
        Self { base: at.get(), len: pages.bytes().get() }
    }

    /// Where they are.
    #[must_use]
    pub const fn at(self) -> VirtAddr {
        VirtAddr::new(self.base)
    }

    /// How many.
    #[must_use]
    pub const fn pages(self) -> PageCount {
        PageCount::new(self.len / PAGE_SIZE)
    }
}

impl Scratch {
    /// Makes one in the folder `path`, without room for anything.
    ///
    /// # Errors
    ///
    /// Why there can't be one.
    pub fn create(path: &str) -> Result<Self, ScratchError> {
        let folder = CString::new(path).map_err(|_| open_error(path, Errno::INVAL))?;
        let lacks = |what| ScratchError::Lacks { path: path.to_owned(), what };
        // Never linked into a folder.
        let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&folder, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => file,
            Err(Errno::OPNOTSUPP | Errno::ISDIR) => return Err(lacks("unnamed files (O_TMPFILE)")),
            Err(source) => return Err(open_error(path, source)),
        };
        let found = rustix::fs::fstatfs(&file).map_err(|source| open_error(path, source))?;
        if MEMORY.contains(&u64::try_from(found.f_type).unwrap_or(0)) {
            return Err(ScratchError::Memory(path.to_owned()));
        }
        rustix::fs::fcntl_setfl(&file, OFlags::DIRECT).map_err(|_| lacks("direct I/O (O_DIRECT)"))?;
        let aligned = rustix::fs::statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
        if let Ok(aligned) = aligned
            && aligned.stx_mask & StatxFlags::DIOALIGN.bits() != 0
        {
            let good = |to: u32| to > 0 && PAGE_SIZE.is_multiple_of(u64::from(to));
            if !good(aligned.stx_dio_mem_align) || !good(aligned.stx_dio_offset_align) {
                return Err(lacks("direct I/O of single pages"));
            }
        }
        Ok(Self(file))
    }

    /// What the process may still have there: what the file system has left for it.
    ///
    /// # Errors
    ///
    /// Where the file system doesn't say.
    pub fn room(&self) -> Result<ByteLen, Errno> {
        let found = rustix::fs::fstatvfs(&self.0)?;
        Ok(ByteLen::new(found.f_bavail.saturating_mul(found.f_frsize)))
    }

    /// Has the file end no sooner than at byte `to`, with room on the disk from byte `from` on: what is there reads as zeros.
    ///
    /// # Errors
    ///
    /// `ENOSPC`, `EDQUOT` or `EFBIG` where there is no room; `EOPNOTSUPP` where the file system can't see to it.
    pub fn reserve(&self, from: u64, to: u64) -> Result<(), Errno> {
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.0, FallocateFlags::empty(), from, to - from))
    }

    /// Fills the pages of `pieces` from byte `at` on; the result is how many bytes came.
    ///
    /// # Errors
    ///
    /// As preadv(2).
    ///
    /// # Safety
    ///
    /// The pages may be stored to, and nobody accesses them meanwhile.
    pub unsafe fn read(&self, pieces: &[Piece], at: u64) -> Result<usize, Errno> {
        // SAFETY: the caller's.
        unsafe { self.call(libc::SYS_preadv, pieces, at) }
    }

    /// Writes the pages of `pieces` from byte `at` on; the result is how many bytes are there.
    ///
    /// # Errors
    ///
    /// As pwritev(2).
    ///
    /// # Safety
    ///
    /// The pages may be loaded from, and nobody stores to them meanwhile.
    pub unsafe fn write(&self, pieces: &[Piece], at: u64) -> Result<usize, Errno> {
        // SAFETY: the caller's.
        unsafe { self.call(libc::SYS_pwritev, pieces, at) }
    }

    unsafe fn call(&self, number: libc::c_long, pieces: &[Piece], at: u64) -> Result<usize, Errno> {
        let offset = usize::try_from(at).map_err(|_| Errno::INVAL)?;
        let file = self.0.as_raw_fd().cast_unsigned() as usize;
        // SAFETY: the kernel reads the pieces, which live; of the pages the caller has answered.
        let call = || unsafe {
            raw::syscall6(number, [file, pieces.as_ptr().expose_provenance(), pieces.len(), offset, 0, 0])
        };
        rustix::io::retry_on_intr(call)
    }
}

impl AsFd for Scratch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open_error(path: &str, source: Errno) -> ScratchError {
    let hint = match source {
        Errno::NOENT => "; give a folder that is there",
        Errno::NOTDIR => "; give a folder, not a file or a device in it",
        Errno::ACCESS | Errno::PERM => "; give one in which this user may make files, such as /var/tmp",
        _ => "",
    };
    ScratchError::Open { path: path.to_owned(), source, hint }
}

/// While this lives, SIGXFSZ of the calling thread's own doing does not reach it.
#[derive(Debug)]
#[must_use]
pub struct NoSizeSignal {
    blocked_before: bool,
}

/// SIGXFSZ in a set of signals as the kernel has it.
const SIZE_SIGNAL: u64 = 1 << (libc::SIGXFSZ - 1);

impl NoSizeSignal {
    /// From now on, in this thread.
    pub fn hold() -> Self {
        Self { blocked_before: change_mask(libc::SIG_BLOCK) & SIZE_SIGNAL != 0 }
    }
}

impl Drop for NoSizeSignal {
    fn drop(&mut self) {
        // Threads of an agent's have it blocked for good, and may not wait for signals.
        if self.blocked_before {
            return;
        }
        let now = [0_u64; 2];
        let set = SIZE_SIGNAL;
        let args =
            [std::ptr::from_ref(&set).expose_provenance(), 0, now.as_ptr().expose_provenance(), size_of::<u64>(), 0, 0];
        // What is there was sent to this thread while this lived, or came to the process from somebody who may see that it has not ended it.
        // SAFETY: the kernel reads the set and the time.
        let _ = unsafe { raw::syscall6(libc::SYS_rt_sigtimedwait, args) };
        change_mask(libc::SIG_UNBLOCK);
    }
}

/// Adds SIGXFSZ to the signals that the calling thread has blocked, or removes it; the result are those that it had.
fn change_mask(how: libc::c_int) -> u64 {
    let (set, mut before) = (SIZE_SIGNAL, 0_u64);
    let args = [
        how.cast_unsigned() as usize,
        std::ptr::from_ref(&set).expose_provenance(),
        std::ptr::from_mut(&mut before).expose_provenance(),
        size_of::<u64>(),
        0,
        0,
    ];
    // SAFETY: reads one mask and writes the other, which live through the call. It fails for wrong arguments only.
    let _ = unsafe { raw::syscall6(libc::SYS_rt_sigprocmask, args) };
    before
}

//! Files that are mapped to be read, and leases on them: as long as one is held nobody has the file open for writing (`F_SETLEASE` of fcntl(2)).
//!
//! Who opens the file for writing, or truncates it, waits then until the lease is given up, which the holder is asked for by a signal, sent to one
//! thread ([`Keeper`]). The kernel waits so long as `/proc/sys/fs/lease-break-time` says (45 seconds, mostly), and takes the lease then. A lease is
//! its description's, as opened here, and ends with that: when the last descriptor is closed, a process that has died is no holder any more.
//!
//! *Limits:* one who opens the file with `O_NONBLOCK` is refused (`EWOULDBLOCK`) as long as it is held. It takes the file's owner, or `CAP_LEASE`.
#![expect(unsafe_code, reason = "system calls that rustix does not have, and reads to memory that is named by number")]

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::time::Duration;

use hetmem_core::units::{BLOCK_PAGES, PAGE_SIZE, PageCount, PageRange, VirtAddr};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::access::copy_from;
use crate::copy::{address, copy_pages};
use crate::errno::Errno;
use crate::mapping::{discard, map_again_over, map_once_more, map_once_more_over};
use crate::raw;
use crate::thread::current_tid;

/// `F_SETLEASE`, `F_GETLEASE`, `F_SETSIG`, and `F_SETOWN_EX` of a thread.
const SET_LEASE: libc::c_int = 1024;
const GET_LEASE: libc::c_int = 1025;
const SET_SIGNAL: libc::c_int = 10;
const SET_OWNER: libc::c_int = 15;
const OWNER_THREAD: libc::c_int = 0;

/// File systems of this machine, whose files nobody writes past the kernel that gives the lease (`f_type` of statfs(2)): ext2 to 4, XFS, Btrfs, F2FS,
/// tmpfs, bcachefs, ZFS. Not overlayfs: what is read of a file there is its copy once somebody has written it, and what is mapped is not.
const LOCAL: [u64; 7] = [0xEF53, 0x5846_5342, 0x9123_683E, 0xF2F5_2010, 0x0102_1994, 0xCA45_1A4E, 0x2FC1_2FC1];

/// A regular file that a thread has open to be read, for others of its process to open it, too, whatever tables of descriptors they have.
#[derive(Debug)]
pub struct OpenFile {
    path: PathBuf,
    /// The number of its device, and its own.
    identity: (u64, u64),
    size: u64,
}

impl OpenFile {
    /// What descriptor `fd` of the calling thread is. `EINVAL` if it is no regular file, `EACCES` if it can't be read by that, `EBUSY` if there is a lease
    /// on it that ends when the file is opened once more.
    pub fn behind(fd: impl AsFd) -> Result<Self, Errno> {
        let fd = fd.as_fd();
        let known = rustix::fs::fstat(fd)?;
        if FileType::from_raw_mode(known.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        let flags = rustix::fs::fcntl_getfl(fd)?;
        if flags.contains(OFlags::PATH) || flags & OFlags::ACCMODE == OFlags::WRONLY {
            return Err(Errno::ACCESS);
        }
        // One for writing is granted where there is no other description, and others are told of the next: so it is this one's, if there is one.
        if control(fd, GET_LEASE, 0) == Ok(libc::F_WRLCK.cast_unsigned() as usize) {
            return Err(Errno::BUSY);
        }
        let thread = rustix::fs::readlink("/proc/thread-self", Vec::new())?;
        let mut path = PathBuf::from("/proc");
        path.extend([OsStr::from_bytes(thread.as_bytes()), OsStr::new("fd")]);
        path.push(fd.as_raw_fd().to_string());
        let size = u64::try_from(known.st_size).unwrap_or(0);
        Ok(Self { path, identity: (known.st_dev, known.st_ino), size })
    }

    /// What of it a program may have managed that has mapped it by descriptor `fd` of the calling thread. `ETXTBSY` if the descriptor is for writing, too,
    /// `EOPNOTSUPP` if somebody may write the file past this machine's kernel; and as [`OpenFile::behind`].
    pub fn mapped_by(fd: impl AsFd) -> Result<Self, Errno> {
        let fd = fd.as_fd();
        if rustix::fs::fcntl_getfl(fd)? & OFlags::ACCMODE != OFlags::RDONLY {
            return Err(Errno::TXTBSY);
        }
        if !is_local(fd) {
            return Err(Errno::OPNOTSUPP);
        }
        Self::behind(fd)
    }

    /// How many bytes it has.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The number of its device, and its own.
    #[must_use]
    pub const fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Opens it once more, to be read, in the calling thread's table: `ELOOP`, `EACCES` and others as open(2) has them.
    fn open(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::io::retry_on_intr(|| rustix::fs::open(&self.path, flags, Mode::empty()))?;
        let found = rustix::fs::fstat(&opened)?;
        if (found.st_dev, found.st_ino) == self.identity { Ok(opened) } else { Err(Errno::STALE) }
    }
}

/// A mapping of a file that is hetmem's own: by it the file's bytes are read, and mapped elsewhere, without a descriptor. It is the file's, of which it keeps
/// no lease.
#[derive(Debug)]
pub struct Shadow {
    // Invariant: mapped by this value, to be read, and known to nobody else; shared, unless it is as a program has mapped it.
    range: PageRange,
    /// Which byte of the file is its first.
    offset: u64,
    /// Whether it is mapped as the program has mapped the file itself.
    is_as_mapped: bool,
}

impl Shadow {
    /// Maps what a program has mapped of a file in `range`, from byte `offset` on, as it has. `EFAULT` if that is not one mapping.
    pub fn of_mapping(range: PageRange, offset: u64) -> Result<Self, Errno> {
        let range = PageRange::new(map_once_more(range)?, range.pages()).ok_or(Errno::INVAL)?;
        // INVARIANT: mapped just now.
        Ok(Self { range, offset, is_as_mapped: true })
    }

    /// Where it is.
    #[must_use]
    pub const fn range(&self) -> PageRange {
        self.range
    }

    /// Maps `pages` pages of `file` from byte `offset` on.
    pub fn of(file: &OpenFile, offset: u64, pages: PageCount) -> Result<Self, Errno> {
        let opened = file.open()?;
        let (len, flags) = (pages.as_usize() * 4096, MapFlags::SHARED);
        // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
        let mapped = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, flags, &opened, offset) }?;
        let start = VirtAddr::new(mapped.expose_provenance() as u64);
        let range = PageRange::new(start, pages).ok_or(Errno::INVAL)?;
        // INVARIANT: mapped just now.
        Ok(Self { range, offset, is_as_mapped: false })
    }

    /// Where it has the `pages` pages from byte `offset` of the file on.
    fn part(&self, offset: u64, pages: PageCount) -> Result<PageRange, Errno> {
        let skip = offset.checked_sub(self.offset).ok_or(Errno::INVAL)? / PAGE_SIZE;
        let part = self.range.slice(PageCount::new(skip), pages);
        if part.pages() == pages { Ok(part) } else { Err(Errno::INVAL) }
    }

    /// Maps all of it once more, at a multiple of 2 MiB.
    pub fn map(&self) -> Result<PageRange, Errno> {
        let (pages, wide) = (self.range.pages(), self.range.pages() + PageCount::BLOCK);
        // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
        let reserved = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), wide.as_usize() * 4096, ProtFlags::empty(), flags)
        }?;
        let start = VirtAddr::new(reserved.expose_provenance() as u64);
        let reserved = PageRange::new(start, wide).ok_or(Errno::INVAL)?;
        let ahead = (BLOCK_PAGES - start.index_in_block() as u64) % BLOCK_PAGES;
        let range = reserved.slice(PageCount::new(ahead), pages);
        // SAFETY: the range was reserved just now.
        let mapped = unsafe { map_again_over(self.range, range.start()) };
        let unused = match mapped {
            Ok(()) => [PageRange::between(start, range.start()), PageRange::between(range.end(), reserved.end())],
            Err(_) => [Some(reserved), None],
        };
        for rest in unused.into_iter().flatten().filter(|rest| !rest.is_empty()) {
            // What can't be given back stays reserved.
            // SAFETY: reserved just now, and nothing is mapped there.
            let _ = unsafe { unmap(rest) };
        }
        mapped.map(|()| range)
    }

    /// Maps it from byte `offset` on, in place of what is mapped at `over`.
    ///
    /// # Safety
    ///
    /// Whatever is mapped there may go.
    pub unsafe fn map_over(&self, over: PageRange, offset: u64) -> Result<(), Errno> {
        let part = self.part(offset, over.pages())?;
        match self.is_as_mapped {
            // SAFETY: the caller gives up what is there.
            true => unsafe { map_once_more_over(part, over.start()) },
            // SAFETY: as above.
            false => unsafe { map_again_over(part, over.start()) },
        }
    }

    /// Copies the `pages` pages from byte `offset` on to `to`. Behind the end of the file, in its last page, are zeros.
    ///
    /// `EFAULT` if the file ends before the last page begins, or can't be read.
    ///
    /// # Safety
    ///
    /// The pages at `to` are memory that can be written and that nobody else uses meanwhile.
    pub unsafe fn read_pages(&self, offset: u64, to: VirtAddr, pages: PageCount) -> Result<(), Errno> {
        let part = self.part(offset, pages)?;
        // SAFETY: as the caller promised.
        let copied = match unsafe { copy_from(part.start(), to, pages.as_usize() * 4096) } {
            // A sandbox forbids it. Who cuts a file short has its pages come home before, but where the lease was lost.
            Err(Errno::PERM | Errno::NOSYS) => {
                // SAFETY: as the caller promised; nobody writes the file.
                unsafe { copy_pages(to, part.start(), pages) };
                Ok(())
            }
            copied => copied,
        };
        // The page cache may go where memory is short, whose pages are mapped nowhere. A failure leaves them mapped.
        // SAFETY: a file's mapping, which can only be read.
        let _ = unsafe { discard(part) };
        copied
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        // SAFETY: by the invariant this value's, and nobody else's.
        let unmapped = unsafe { unmap(self.range) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

/// A description of a file, for a lease on it, in the table of descriptors of the thread that opened it: no other may use it. Nothing is mapped by it, so
/// that the lease ends when this is dropped.
#[derive(Debug)]
pub struct LeaseFile(OwnedFd);

impl LeaseFile {
    /// Opens `file` for that.
    pub fn open(file: &OpenFile) -> Result<Self, Errno> {
        file.open().map(Self)
    }

    /// That which a thread of this process has opened so, in its own table of descriptors, as number `fd`: the thread waits until it is known here. What is
    /// told of its lease from now on is told to `keeper`, this thread. Linux 6.9.
    pub fn of_thread(tid: u32, fd: u32, keeper: Keeper) -> Result<Self, Errno> {
        // PIDFD_THREAD
        let thread = [tid as usize, libc::O_EXCL.cast_unsigned() as usize, 0, 0, 0];
        // SAFETY: the kernel makes a new descriptor.
        let thread = own(unsafe { raw::syscall5(libc::SYS_pidfd_open, thread) }?);
        let args = [thread.as_raw_fd().cast_unsigned() as usize, fd as usize, 0, 0, 0];
        // SAFETY: as above.
        let file = Self(own(unsafe { raw::syscall5(libc::SYS_pidfd_getfd, args) }?));
        // Of whoever opened it signals may not be sent to this thread, whose ids may be others by now.
        let owner = [OWNER_THREAD, keeper.thread.cast_signed()];
        control(&file.0, SET_OWNER, owner.as_ptr().expose_provenance())?;
        Ok(file)
    }

    /// Its number in the table of the thread that has opened it.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.0.as_raw_fd().cast_unsigned()
    }

    /// How many bytes the file has.
    pub fn size(&self) -> Result<u64, Errno> {
        Ok(u64::try_from(rustix::fs::fstat(&self.0)?.st_size).unwrap_or(0))
    }

    /// Takes a read lease; `keeper` is woken when it is to be given up.
    ///
    /// `EAGAIN` if somebody has the file open for writing, `EACCES` if it is neither the process's nor has that `CAP_LEASE`, `EINVAL` if its file system has no
    /// leases, or others than this machine's kernel may write to it.
    pub fn take_lease(&self, keeper: Keeper) -> Result<(), Errno> {
        if !is_local(&self.0) {
            return Err(Errno::INVAL);
        }
        let owner = [OWNER_THREAD, keeper.thread.cast_signed()];
        control(&self.0, SET_OWNER, owner.as_ptr().expose_provenance())?;
        control(&self.0, SET_SIGNAL, WAKE.cast_unsigned() as usize)?;
        control(&self.0, SET_LEASE, libc::F_RDLCK.cast_unsigned() as usize).map(|_| ())
    }

    /// Whether the lease is held, and nobody waits for its end.
    #[must_use]
    pub fn has_lease(&self) -> bool {
        control(&self.0, GET_LEASE, 0) == Ok(libc::F_RDLCK.cast_unsigned() as usize)
    }

    /// Gives the lease up; who waits for that goes on.
    ///
    /// `EACCES` if the thread may not have it any more. `EAGAIN` if there is none.
    pub fn give_lease_up(&self) -> Result<(), Errno> {
        control(&self.0, SET_LEASE, libc::F_UNLCK.cast_unsigned() as usize).map(|_| ())
    }
}

/// Whether nobody writes the file behind `fd` past this machine's kernel.
fn is_local(fd: impl AsFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|found| LOCAL.contains(&u64::try_from(found.f_type).unwrap_or(0)))
}

/// A descriptor that the kernel has made just now.
fn own(fd: usize) -> OwnedFd {
    // SAFETY: nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).unwrap_or(-1)) }
}

fn control(fd: impl AsFd, command: libc::c_int, argument: usize) -> Result<usize, Errno> {
    let fd = fd.as_fd().as_raw_fd().cast_unsigned() as usize;
    // SAFETY: an owner is read from the argument, which lives; nothing of the process's memory is written.
    unsafe { raw::syscall6(libc::SYS_fcntl, [fd, command.cast_unsigned() as usize, argument, 0, 0, 0]) }
}

/// Unmaps `range`.
///
/// # Safety
///
/// Nobody uses what is mapped there.
pub unsafe fn unmap(range: PageRange) -> Result<(), Errno> {
    let at = std::ptr::with_exposed_provenance_mut(address(range.start()));
    // SAFETY: the caller's.
    unsafe { rustix::mm::munmap(at, range.pages().as_usize() * 4096) }
}

/// What a keeper is woken by: a signal that the C library has for itself (nptl(7)), so that no program blocks it, ignores it, or waits for it.
const WAKE: libc::c_int = 32;

/// A wake-up may be lost: where too many signals are queued (`RLIMIT_SIGPENDING`) the kernel sends SIGIO instead. So a keeper looks this often, too.
const AT_LEAST_EACH: Duration = Duration::from_secs(1);

/// What has ended a keeper's wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Woken {
    /// Somebody has [roused](Keeper::rouse) it.
    Roused,
    /// Somebody may wait for a lease.
    ToLook,
}

/// A thread that gives leases up when others wait for that.
#[derive(Clone, Copy, Debug)]
pub struct Keeper {
    process: u32,
    thread: u32,
}

impl Keeper {
    /// The calling thread, which has left the program's signals to others ([`crate::process::leave_signals_to_others`]).
    #[must_use]
    pub fn of_this_thread() -> Self {
        Self { process: std::process::id(), thread: current_tid() }
    }

    /// Waits, as this thread, until it is asked to give a lease up, or [`Keeper::rouse`]d; or until it is time to look anyway.
    pub fn wait(self) -> Woken {
        // As the kernel has sets, and `siginfo_t`: number, error, code.
        let set: u64 = 1 << (WAKE - 1);
        let mut told = [0_i32; 32];
        let limit = [AT_LEAST_EACH.as_secs(), 0];
        let args = [
            std::ptr::from_ref(&set).expose_provenance(),
            told.as_mut_ptr().expose_provenance(),
            std::ptr::from_ref(&limit).expose_provenance(),
            size_of::<u64>(),
            0,
            0,
        ];
        // SAFETY: the kernel reads the set and the time, and writes what it tells, which is as large as the kernel has it.
        let ended = unsafe { raw::syscall6(libc::SYS_rt_sigtimedwait, args) };
        // Whatever ends the wait is a reason to look.
        if ended.is_ok() && told[2] == libc::SI_TKILL { Woken::Roused } else { Woken::ToLook }
    }

    /// Ends the keeper's wait, this one or the next.
    pub fn rouse(self) {
        let args = [self.process as usize, self.thread as usize, WAKE.cast_unsigned() as usize, 0, 0, 0];
        // SAFETY: a signal that the thread has blocked.
        let _ = unsafe { raw::syscall6(libc::SYS_tgkill, args) };
    }
}

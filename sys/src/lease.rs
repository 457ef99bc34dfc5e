//! Files that are mapped to be read, and leases on them: as long as one is held nobody has the file open for writing (`F_SETLEASE` of fcntl(2)).
//!
//! Who opens the file for writing, or truncates it, waits then until the lease is given up, which the holder is asked for by a signal, sent to one
//! thread ([`Keeper`]). The kernel waits so long as `/proc/sys/fs/lease-break-time` says (45 seconds, mostly), and takes the lease then. A lease is
//! its description's, as opened here, and ends with that: when the last descriptor is closed, a process that has died is no holder any more.
//!
//! *Limits:* one who opens the file with `O_NONBLOCK` is refused (`EWOULDBLOCK`) as long as it is held. It takes the file's owner, or `CAP_LEASE`.
#![expect(unsafe_code, reason = "system calls that rustix does not have, and reads to memory that is named by number")]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use hetmem_core::units::{BLOCK_PAGES, PAGE_SIZE, PageCount, PageRange, VirtAddr};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::copy::{address, clear_pages};
use crate::errno::Errno;
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

/// How a file is mapped. Both show what others write to it, if it can only be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// `MAP_SHARED`.
    Shared,
    /// `MAP_PRIVATE`.
    Private,
}

/// A file, opened to be read.
#[derive(Debug)]
pub struct MappedFile(OwnedFd);

impl MappedFile {
    /// Opens the file behind `fd` once more, by `/proc`: `ELOOP`, `EACCES` and others as open(2) has them; `EINVAL` if it is no regular file.
    pub fn open(fd: impl AsFd) -> Result<Self, Errno> {
        let fd = fd.as_fd();
        let known = rustix::fs::fstat(fd)?;
        if FileType::from_raw_mode(known.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::fs::open(path, flags, Mode::empty())?;
        let found = rustix::fs::fstat(&opened)?;
        if (found.st_dev, found.st_ino) != (known.st_dev, known.st_ino) {
            return Err(Errno::STALE);
        }
        Ok(Self(opened))
    }

    /// The number of its device, and its own.
    pub fn identity(&self) -> Result<(u64, u64), Errno> {
        rustix::fs::fstat(&self.0).map(|stat| (stat.st_dev, stat.st_ino))
    }

    /// How many bytes it has.
    pub fn size(&self) -> Result<u64, Errno> {
        rustix::fs::fstat(&self.0).map(|stat| u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Whether nobody but this machine's kernel writes to it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        rustix::fs::fstatfs(&self.0).is_ok_and(|found| LOCAL.contains(&u64::try_from(found.f_type).unwrap_or(0)))
    }

    /// Maps `pages` pages from byte `offset` on, to be read, at a multiple of 2 MiB.
    pub fn map(&self, pages: PageCount, offset: u64, sharing: Sharing) -> Result<PageRange, Errno> {
        let wide = (pages + PageCount::BLOCK).as_usize() * 4096;
        // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
        let reserved = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), wide, ProtFlags::empty(), flags)
        }?;
        let start = VirtAddr::new(reserved.expose_provenance() as u64);
        let reserved = PageRange::new(start, pages + PageCount::BLOCK).ok_or(Errno::INVAL)?;
        let ahead = (BLOCK_PAGES - start.index_in_block() as u64) % BLOCK_PAGES;
        let range = reserved.slice(PageCount::new(ahead), pages);
        // SAFETY: the range was reserved just now.
        let mapped = unsafe { self.map_over(range, offset, sharing) };
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

    /// Maps it from byte `offset` on, to be read, in place of what is mapped at `over`.
    ///
    /// # Safety
    ///
    /// Whatever is mapped there may go.
    pub unsafe fn map_over(&self, over: PageRange, offset: u64, sharing: Sharing) -> Result<(), Errno> {
        let at = std::ptr::with_exposed_provenance_mut(address(over.start()));
        let flags = flags_of(sharing) | MapFlags::FIXED;
        // SAFETY: the caller gives up what is there.
        unsafe { rustix::mm::mmap(at, over.pages().as_usize() * 4096, ProtFlags::READ, flags, &self.0, offset) }
            .map(|_| ())
    }

    /// Reads the `pages` pages from byte `offset` on to `to`. Behind the end of the file, in its last page, are zeros.
    ///
    /// `ENODATA` if the file ends before the last page begins.
    ///
    /// # Safety
    ///
    /// The pages at `to` are memory that can be written and that nobody else uses meanwhile.
    pub unsafe fn read_pages(&self, offset: u64, to: VirtAddr, pages: PageCount) -> Result<(), Errno> {
        let len = pages.bytes().get();
        let mut done = 0;
        while done < len {
            let at = std::ptr::with_exposed_provenance_mut::<u8>(address(to))
                .wrapping_add(usize::try_from(done).unwrap_or(0));
            let rest = usize::try_from(len - done).unwrap_or(0);
            let args = [
                self.0.as_raw_fd().cast_unsigned() as usize,
                at.expose_provenance(),
                rest,
                usize::try_from(offset + done).unwrap_or(usize::MAX),
                0,
                0,
            ];
            // SAFETY: the kernel writes `rest` bytes there at most, which are the caller's.
            match unsafe { raw::syscall6(libc::SYS_pread64, args) } {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(0) => break,
                Ok(read) => done += read as u64,
            }
        }
        let last = (pages.get() - 1) * PAGE_SIZE;
        if done == len {
            return Ok(());
        }
        if done <= last {
            return Err(Errno::NODATA);
        }
        // The end lies in the last page, of which a part was read.
        let mut page = [0; 4096];
        let kept = usize::try_from(done - last).unwrap_or(0);
        let from =
            std::ptr::with_exposed_provenance::<u8>(address(to)).wrapping_add(usize::try_from(last).unwrap_or(0));
        // SAFETY: a page of the caller's, of which so much was read just now.
        unsafe { std::ptr::copy_nonoverlapping(from, page.as_mut_ptr(), kept) };
        // SAFETY: as above.
        unsafe { clear_pages(to.add_pages(PageCount::new(pages.get() - 1)), PageCount::ONE) };
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), from.cast_mut(), kept) };
        Ok(())
    }

    /// Takes a read lease; `keeper` is woken when it is to be given up.
    ///
    /// `EAGAIN` if somebody has the file open for writing, `EACCES` if it is neither the process's nor has that `CAP_LEASE`, `EINVAL` if its file system has no
    /// leases.
    pub fn take_lease(&self, keeper: Keeper) -> Result<(), Errno> {
        let owner = [OWNER_THREAD, keeper.0.cast_signed()];
        self.control(SET_OWNER, owner.as_ptr().expose_provenance())?;
        self.control(SET_SIGNAL, WAKE.cast_unsigned() as usize)?;
        self.control(SET_LEASE, libc::F_RDLCK.cast_unsigned() as usize).map(|_| ())
    }

    /// Whether the lease is held, and nobody waits for its end.
    #[must_use]
    pub fn has_lease(&self) -> bool {
        self.control(GET_LEASE, 0) == Ok(libc::F_RDLCK.cast_unsigned() as usize)
    }

    /// Gives the lease up; who waits for that goes on.
    ///
    /// `EACCES` if the thread may not have it any more. `EAGAIN` if there is none.
    pub fn give_lease_up(&self) -> Result<(), Errno> {
        self.control(SET_LEASE, libc::F_UNLCK.cast_unsigned() as usize).map(|_| ())
    }

    fn control(&self, command: libc::c_int, argument: usize) -> Result<usize, Errno> {
        let args = [self.0.as_raw_fd().cast_unsigned() as usize, command.cast_unsigned() as usize, argument, 0, 0, 0];
        // SAFETY: an owner is read from the argument, which lives; nothing of the process's memory is written.
        unsafe { raw::syscall6(libc::SYS_fcntl, args) }
    }

    /// In a forked child: closes the descriptor, which is its parent's too, and must not keep the lease when that has died.
    pub fn close_in_child(&self) {
        // SAFETY: nobody uses it any more in this process, in which no value that owns it is dropped.
        let _ = unsafe { raw::syscall6(libc::SYS_close, [self.0.as_raw_fd().cast_unsigned() as usize, 0, 0, 0, 0, 0]) };
    }
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

const fn flags_of(sharing: Sharing) -> MapFlags {
    match sharing {
        Sharing::Shared => MapFlags::SHARED,
        Sharing::Private => MapFlags::PRIVATE,
    }
}

/// What a keeper is woken by: a signal that the C library has for itself (nptl(7)), so that no program blocks it, ignores it, or waits for it.
const WAKE: libc::c_int = 32;

/// A wake-up may be lost: where too many signals are queued (`RLIMIT_SIGPENDING`) the kernel sends SIGIO instead. So a keeper looks this often, too.
const AT_LEAST_EACH: Duration = Duration::from_secs(1);

/// A thread that gives leases up when others wait for that.
#[derive(Clone, Copy, Debug)]
pub struct Keeper(u32);

impl Keeper {
    /// The calling thread, which has left the program's signals to others ([`crate::process::leave_signals_to_others`]).
    #[must_use]
    pub fn of_this_thread() -> Self {
        Self(current_tid())
    }

    /// Waits, as this thread, until it is asked to give a lease up, or [`Keeper::rouse`]d; or until it is time to look anyway.
    pub fn wait(self) {
        // As the kernel has sets.
        let set: u64 = 1 << (WAKE - 1);
        let limit = [AT_LEAST_EACH.as_secs(), 0];
        let args = [
            std::ptr::from_ref(&set).expose_provenance(),
            0,
            std::ptr::from_ref(&limit).expose_provenance(),
            size_of::<u64>(),
            0,
            0,
        ];
        // Whatever ends the wait is a reason to look.
        // SAFETY: the kernel reads the set and the time.
        let _ = unsafe { raw::syscall6(libc::SYS_rt_sigtimedwait, args) };
    }

    /// Ends the keeper's wait, this one or the next.
    pub fn rouse(self) {
        let args = [std::process::id() as usize, self.0 as usize, WAKE.cast_unsigned() as usize, 0, 0, 0];
        // SAFETY: a signal that the thread has blocked.
        let _ = unsafe { raw::syscall6(libc::SYS_tgkill, args) };
    }
}

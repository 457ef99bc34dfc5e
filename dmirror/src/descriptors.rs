//! Which descriptor is an open device's.
//!
//! A device's descriptor is that of a file in memory, sealed and empty, so that it can be duplicated, passed on, polled and closed like any other.
//! The open file is known by the file's identity, not by the descriptor's number: whichever way a descriptor came about, `fstat(2)` tells.
//!
//! *Limits:* the program can tell: `fstat` says that it is a regular file, and `read` that it is empty.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use hetmem_sys::errno::Errno;
use rustix::fs::{FileType, MemfdFlags, OFlags, SealFlags};

use crate::mappings::NAME;

/// Names a file for as long as it is open somewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    inode: u64,
}

/// The device number of the file system that files in memory are on; 0 until one was made.
static FILES_IN_MEMORY: AtomicU64 = AtomicU64::new(0);

/// A descriptor for an open of `minor`.
pub(crate) fn make(minor: u8, flags: OFlags) -> Result<(OwnedFd, Identity), Errno> {
    let cloexec = if flags.contains(OFlags::CLOEXEC) { MemfdFlags::CLOEXEC } else { MemfdFlags::empty() };
    let file = rustix::fs::memfd_create(format!("{NAME}{minor}"), MemfdFlags::ALLOW_SEALING | cloexec)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::WRITE | SealFlags::SEAL)?;
    rustix::fs::fcntl_setfl(&file, flags & (OFlags::NONBLOCK | OFlags::APPEND))?;
    let stat = rustix::fs::fstat(&file)?;
    // Relaxed: the same number whoever stores it.
    FILES_IN_MEMORY.store(stat.st_dev, Ordering::Relaxed);
    Ok((file, Identity { inode: stat.st_ino }))
}

/// The identity of the file behind `fd`, if it may be a device's. No lock is taken: this is asked of every descriptor that is closed.
pub(crate) fn identity(fd: BorrowedFd<'_>) -> Option<Identity> {
    let stat = rustix::fs::fstat(fd).ok()?;
    let plausible = stat.st_dev == FILES_IN_MEMORY.load(Ordering::Relaxed)
        && stat.st_size == 0
        && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    plausible.then_some(Identity { inode: stat.st_ino })
}

/// Whether `fd` is a device's that another process has opened, such as this one's parent.
pub(crate) fn is_of_another_process(fd: RawFd) -> bool {
    let link = rustix::fs::readlink(format!("/proc/self/fd/{fd}"), Vec::new());
    link.is_ok_and(|link| {
        link.to_bytes().strip_prefix(b"/memfd:").is_some_and(|name| name.starts_with(NAME.as_bytes()))
    })
}

/// Those of `files` of which this process has no descriptor any more.
pub(crate) fn closed(files: &[Identity]) -> Result<Vec<Identity>, Errno> {
    let mut left = files.to_vec();
    let folder = rustix::fs::open(
        "/proc/self/fd",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    for entry in rustix::fs::Dir::read_from(&folder)? {
        let Some(fd) = entry?.file_name().to_str().ok().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        if let Some(found) = borrow(fd).and_then(|fd| identity(fd.as_fd())) {
            left.retain(|file| *file != found);
        }
    }
    Ok(left)
}

/// The descriptor as a program names it, which may be closed at any time: then questions about it fail.
#[expect(unsafe_code, reason = "descriptors of a program are numbers")]
pub(crate) fn borrow<'a>(fd: RawFd) -> Option<BorrowedFd<'a>> {
    // SAFETY: used for questions that fail on a closed descriptor, and change nothing on another one.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

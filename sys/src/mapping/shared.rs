//! Memory that several processes map: a sealed memfd with one value in it.
#![expect(unsafe_code, reason = "memory that other processes write is given a type")]

use std::ffi::CStr;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::errno::Errno;

/// A type that may live in memory which other processes write at any time.
///
/// # Safety
///
/// The type is `repr(C)` and made of atomic integers only, directly or in arrays and structs of such, so that any bytes
/// are a valid value, all-zero bytes are the empty one, and every access is atomic. It has no padding that matters, no
/// `Drop`, and an alignment of at most a page.
pub unsafe trait SharedLayout: Sync + 'static {}

// SAFETY: `repr(C)`, made of `AtomicU64` in arrays and `repr(C)` structs, as its module promises; zeros are a valid,
// empty set.
unsafe impl SharedLayout for hetmem_core::stats::Counters {}

// SAFETY: a `repr(C, align(8))` integer, valid for any bytes.
unsafe impl SharedLayout for std::sync::atomic::AtomicU64 {}

/// A value of `T` in shared memory, unmapped on drop.
#[derive(Debug)]
pub struct SharedMemory<T: SharedLayout> {
    // Invariant: points to the start of a shared, readable and writable mapping of at least `size_of::<T>()` bytes,
    // owned by this value, of a file that can't shrink.
    value: NonNull<T>,
}

// SAFETY: the mapping belongs to the process and not to a thread.
unsafe impl<T: SharedLayout> Send for SharedMemory<T> {}
// SAFETY: shared access is access to a `&T`, and `T` is `Sync`.
unsafe impl<T: SharedLayout> Sync for SharedMemory<T> {}

impl<T: SharedLayout> SharedMemory<T> {
    /// Makes a new memory file that holds an all-zero `T`, and maps it. The descriptor is closed on exec; another
    /// process reaches the file by `/proc/<pid>/fd/<n>` while it is open.
    pub fn create(name: &CStr) -> Result<(Self, OwnedFd), Errno> {
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, size_of::<T>().next_multiple_of(4096) as u64)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Self::map(&fd)?, fd))
    }

    /// Maps the memory file at `path` that another process made with [`SharedMemory::create`] and the same `T`.
    /// `EINVAL` if the file is too small, `EPERM` if it could shrink under the mapping.
    pub fn open(path: &CStr) -> Result<Self, Errno> {
        Self::map(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Maps the memory file behind `fd`; like [`SharedMemory::open`].
    pub fn map(fd: impl AsFd) -> Result<Self, Errno> {
        const { assert!(align_of::<T>() <= 4096 && size_of::<T>() > 0 && !std::mem::needs_drop::<T>()) };
        if !rustix::fs::fcntl_get_seals(&fd)?.contains(SealFlags::SHRINK) {
            return Err(Errno::PERM);
        }
        if u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or(0) < size_of::<T>() as u64 {
            return Err(Errno::INVAL);
        }
        // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
        let mapped = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                size_of::<T>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )?
        };
        // INVARIANT: fresh, shared, large enough, and sealed against shrinking.
        Ok(Self { value: NonNull::new(mapped.cast()).ok_or(Errno::NOMEM)? })
    }
}

impl<T: SharedLayout> Deref for SharedMemory<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: by the invariant the mapping holds the bytes of a `T`, all of which are valid, and every access to
        // them is atomic (`SharedLayout`).
        unsafe { self.value.as_ref() }
    }
}

impl<T: SharedLayout> Drop for SharedMemory<T> {
    fn drop(&mut self) {
        // SAFETY: by the invariant the mapping is this value's; references into it have ended with the borrow of
        // `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.value.as_ptr().cast(), size_of::<T>()) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use hetmem_core::stats::Counters;

    #[test]
    fn two_mappings_of_one_file_see_the_same_counters() {
        let (here, fd) = SharedMemory::<Counters>::create(c"hetmem-test").unwrap();
        let path = std::ffi::CString::new(format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())).unwrap();
        let there = SharedMemory::<Counters>::open(&path).unwrap();
        here.cpu_faults.fetch_add(3, Relaxed);
        there.devices[1].add(4096);
        assert_eq!(there.cpu_faults.load(Relaxed), 3);
        assert_eq!(here.devices[1].used_bytes.load(Relaxed), 4096);
    }

    #[test]
    fn a_file_that_could_shrink_or_is_too_small_is_refused() {
        let open = rustix::fs::memfd_create(c"hetmem-test", MemfdFlags::ALLOW_SEALING).unwrap();
        assert_eq!(SharedMemory::<AtomicU64>::map(&open).err(), Some(Errno::PERM));
        rustix::fs::fcntl_add_seals(&open, SealFlags::SHRINK).unwrap();
        assert_eq!(SharedMemory::<AtomicU64>::map(&open).err(), Some(Errno::INVAL));
    }
}

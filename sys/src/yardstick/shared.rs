//! Words in shared memory.
#![expect(unsafe_code, reason = "memory is mapped, and lent as atomic words")]

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags};

use crate::errno::Errno;

/// Words in shared anonymous memory, zero at first, unmapped on drop. hetmem manages private memory only: so they are where the program that
/// measures keeps what is to be there at any time, and is no part of what is measured.
#[derive(Debug)]
pub struct SharedWords {
    // Invariant: the start of a shared, readable and writable mapping of so many words, at least one, owned by this value.
    first: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the mapping belongs to the process and not to a thread.
unsafe impl Send for SharedWords {}
// SAFETY: shared access is access to atomic words.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// `count` words, `EINVAL` if that is none, `ENOMEM` if they are more than there can be.
    pub fn new(count: usize) -> Result<Self, Errno> {
        let bytes = count.checked_mul(size_of::<AtomicU64>()).ok_or(Errno::NOMEM)?;
        // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )?
        };
        // INVARIANT: fresh, shared, and of that length, which is not zero, as the kernel refuses that.
        Ok(Self { first: NonNull::new(mapped.cast()).ok_or(Errno::NOMEM)?, count })
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: by the invariant; any bytes are a value, and all accesses are atomic.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: by the invariant the mapping is this value's; what was lent of it has ended with the borrow of `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.first.as_ptr().cast(), self.count * size_of::<AtomicU64>()) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn words_are_zeros_and_keep_what_is_written() {
        let words = SharedWords::new(1000).unwrap();
        assert!(words.iter().all(|word| word.load(Relaxed) == 0));
        words[999].store(7, Relaxed);
        assert_eq!((words.len(), words[999].load(Relaxed)), (1000, 7));
        assert_eq!(SharedWords::new(0).err(), Some(Errno::INVAL));
    }
}

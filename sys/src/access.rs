//! Loads, stores and copies at addresses of this process that other threads use at the same time, or may take away.
//!
//! *Directly*: as the processor does it, word by word, each word whole. *Checked*: by `process_vm_readv(2)` and `process_vm_writev(2)`
//! on this process, where an address that can't be accessed is `EFAULT` and no signal. Both wait for userfaultfd as any touch does;
//! a checked access to a page that is missing in a range served by SIGBUS is `EFAULT`.
//!
//! *Limits:* a checked access is a copy by the kernel, which promises nothing of words that change meanwhile.
#![expect(unsafe_code, reason = "reads and writes memory that is named by number")]

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use hetmem_core::units::VirtAddr;

use crate::copy::address;
use crate::errno::Errno;
use crate::raw;
use crate::thread::current_tid;

/// The word at `at`.
///
/// # Safety
///
/// `at` is a multiple of eight, and the eight bytes there may be loaded and stored until this returns; nobody accesses them as other than
/// atomic words meanwhile.
#[must_use]
pub unsafe fn word<'a>(at: VirtAddr) -> &'a AtomicU64 {
    debug_assert!(at.get().is_multiple_of(8));
    let pointer = std::ptr::with_exposed_provenance_mut(address(at));
    // SAFETY: as the caller promised.
    unsafe { AtomicU64::from_ptr(pointer) }
}

/// Splits `len` bytes from `at` on into the bytes before the first whole word, the words' bytes, and those after.
fn split(at: VirtAddr, len: usize) -> (usize, usize) {
    let head = (address(at).wrapping_neg() % 8).min(len);
    (head, (len - head) / 8 * 8)
}

/// Copies the bytes at `at` to `out`, words whole.
///
/// # Safety
///
/// The bytes may be loaded, and nobody accesses them otherwise than atomically or with plain stores of the machine.
pub unsafe fn read(at: VirtAddr, out: &mut [u8]) {
    let (head, words) = split(at, out.len());
    let (first, rest) = out.split_at_mut(head);
    let (middle, last) = rest.split_at_mut(words);
    let at = |i: usize| VirtAddr::new(at.get() + i as u64);
    // Relaxed, here and below: the device's order of accesses is its kernels' affair.
    for (i, byte) in first.iter_mut().enumerate() {
        // SAFETY: as the caller promised.
        *byte = unsafe { byte_at(at(i)) }.load(Ordering::Relaxed);
    }
    for (i, bytes) in middle.chunks_exact_mut(8).enumerate() {
        // SAFETY: as the caller promised; a multiple of eight by the split.
        bytes.copy_from_slice(&unsafe { word(at(head + i * 8)) }.load(Ordering::Relaxed).to_ne_bytes());
    }
    for (i, byte) in last.iter_mut().enumerate() {
        // SAFETY: as the caller promised.
        *byte = unsafe { byte_at(at(head + words + i)) }.load(Ordering::Relaxed);
    }
}

/// Copies `from` to the bytes at `at`, words whole.
///
/// # Safety
///
/// As [`read`], for stores.
pub unsafe fn write(at: VirtAddr, from: &[u8]) {
    let (head, words) = split(at, from.len());
    let (first, rest) = from.split_at(head);
    let (middle, last) = rest.split_at(words);
    let at = |i: usize| VirtAddr::new(at.get() + i as u64);
    for (i, byte) in first.iter().enumerate() {
        // SAFETY: as the caller promised.
        unsafe { byte_at(at(i)) }.store(*byte, Ordering::Relaxed);
    }
    for (i, bytes) in middle.chunks_exact(8).enumerate() {
        let value = u64::from_ne_bytes(std::array::from_fn(|j| bytes[j]));
        // SAFETY: as the caller promised; a multiple of eight by the split.
        unsafe { word(at(head + i * 8)) }.store(value, Ordering::Relaxed);
    }
    for (i, byte) in last.iter().enumerate() {
        // SAFETY: as the caller promised.
        unsafe { byte_at(at(head + words + i)) }.store(*byte, Ordering::Relaxed);
    }
}

/// # Safety
///
/// As [`word`], for one byte.
unsafe fn byte_at<'a>(at: VirtAddr) -> &'a AtomicU8 {
    // SAFETY: as the caller promised.
    unsafe { AtomicU8::from_ptr(std::ptr::with_exposed_provenance_mut(address(at))) }
}

/// Copies between `local`, which is this function's to use, and the bytes at `at`, by `call`.
///
/// # Safety
///
/// `call` is `process_vm_readv(2)` with a `local` that may be written, or `process_vm_writev(2)` with one that may be read and an `at` that the
/// caller may write.
unsafe fn copy_checked(call: libc::c_long, local: *mut u8, at: VirtAddr, len: usize) -> Result<(), Errno> {
    let vector = |base: usize| [base, len];
    let (local, remote) = (vector(local.expose_provenance()), vector(address(at)));
    // By the number of this thread: that of the process names its first, which may have ended.
    let own = current_tid() as usize;
    let args = [own, local.as_ptr().expose_provenance(), 1, remote.as_ptr().expose_provenance(), 1, 0];
    // SAFETY: the two vectors live through the call; the rest is the caller's.
    match unsafe { raw::syscall6(call, args) } {
        Ok(done) if done == len => Ok(()),
        // Cut short where the next byte can't be accessed.
        Ok(_) => Err(Errno::FAULT),
        Err(errno) => Err(errno),
    }
}

/// Copies the bytes at `at` to `out`; `EFAULT` if one can't be loaded, `EPERM` or `ENOSYS` where a sandbox forbids the call.
pub fn read_checked(at: VirtAddr, out: &mut [u8]) -> Result<(), Errno> {
    // SAFETY: the kernel writes to `out` only, and checks the other side as it copies.
    unsafe { copy_checked(libc::SYS_process_vm_readv, out.as_mut_ptr(), at, out.len()) }
}

/// The same, to the `len` bytes at `to`.
///
/// # Safety
///
/// The bytes at `to` may be written, and nobody else uses them meanwhile.
pub unsafe fn copy_from(at: VirtAddr, to: VirtAddr, len: usize) -> Result<(), Errno> {
    // SAFETY: as the caller promised; the kernel checks the other side as it copies.
    unsafe { copy_checked(libc::SYS_process_vm_readv, std::ptr::with_exposed_provenance_mut(address(to)), at, len) }
}

/// Copies `from` to the bytes at `at`; `EFAULT` if one can't be stored, and those before it may have been.
///
/// # Safety
///
/// If the bytes can be stored, the caller may store them.
pub unsafe fn write_checked(at: VirtAddr, from: &[u8]) -> Result<(), Errno> {
    // SAFETY: the kernel only reads `from`; the caller answers for the other side.
    unsafe { copy_checked(libc::SYS_process_vm_writev, from.as_ptr().cast_mut(), at, from.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_copy_what_is_asked_for_and_nothing_beside_it() {
        let source: Vec<u8> = (0..64).collect();
        for start in 0..9 {
            for len in 0..40 {
                let from = &source[start..start + len];
                for checked in [false, true] {
                    let mut words = [u64::MAX; 12];
                    let base = words.as_mut_ptr().expose_provenance() as u64;
                    let at = VirtAddr::new(base + 8 + start as u64);
                    let mut back = vec![0; len];
                    if checked {
                        // SAFETY: inside `words`.
                        unsafe { write_checked(at, from) }.unwrap();
                        read_checked(at, &mut back).unwrap();
                    } else {
                        // SAFETY: inside `words`.
                        unsafe { write(at, from) };
                        // SAFETY: inside `words`.
                        unsafe { read(at, &mut back) };
                    }
                    assert_eq!(back, from);
                    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
                    assert!(bytes[..8 + start].iter().chain(&bytes[8 + start + len..]).all(|b| *b == 0xFF));
                }
            }
        }
    }

    #[test]
    fn a_checked_access_to_nothing_is_an_error() {
        assert_eq!(read_checked(VirtAddr::new(4096), &mut [0; 8]), Err(Errno::FAULT));
        // SAFETY: nothing is mapped there.
        assert_eq!(unsafe { write_checked(VirtAddr::new(4096), &[0; 8]) }, Err(Errno::FAULT));
    }
}

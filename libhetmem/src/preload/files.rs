//! Files that the program maps to be read, and what it does to their mappings otherwise than by touches.
//!
//! With `--files` such mappings are managed, from here on: here the file is known. And as nobody is told when the mapping of a file is changed, whatever
//! changes one comes by here, or by `munmap`, `mremap`, `madvise` and `mlockall` of [`memory`](super::memory): what is mapped there is the file again
//! before, and the program's alone from then on.
//!
//! *Limits:* who maps a file by the C library, and changes the mapping past it, finds its change undone, or something else of it (docs/limits.md).

use std::ffi::{c_int, c_void};
use std::os::fd::BorrowedFd;

use hetmem_core::units::PageRange;
use hetmem_interpose::cancel::uncancelled;
use hetmem_interpose::errno::keeping_errno;
use hetmem_interpose::next;
use hetmem_interpose::next::pages_of;

use super::direct::make;

/// From how many bytes on a file's mapping is managed: what is smaller is not worth a lease.
const SMALLEST_FILE: usize = 64 << 10;

/// Before a filter is put on system calls of a thread, which might end at one that files need: none is managed any more.
pub(super) fn leave_to_filters() {
    // Not noted to be off where it never was on: nothing costs more for it then.
    if agent::manages_files() {
        agent::give_all_files_up();
    }
}

/// `mmap(2)`: what is mapped over of files is home before, and a file that is mapped to be read is managed.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn mmap(
    start: *mut c_void,
    size: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    let word = |number: c_int| (number as isize).cast_unsigned();
    let offset = isize::try_from(offset).unwrap_or(-1).cast_unsigned();
    let args = [start.expose_provenance(), size, word(prot), word(flags), word(fd), offset];
    // Not the C library's, which adds nothing: looking for it would allocate, in the middle of an allocator, maybe.
    // SAFETY: as the caller promised.
    let call = || std::ptr::with_exposed_provenance_mut(unsafe { make(libc::SYS_mmap, args) }.cast_unsigned());
    if !agent::manages_files() || !agent::is_running() {
        return call();
    }
    uncancelled(|| {
        if flags & libc::MAP_FIXED != 0 {
            change(start, size);
        }
        let mapped: *mut c_void = call();
        let is_of_files = matches!(flags & libc::MAP_TYPE, libc::MAP_SHARED | libc::MAP_PRIVATE)
            && flags & (libc::MAP_ANONYMOUS | libc::MAP_LOCKED | libc::MAP_HUGETLB | libc::MAP_GROWSDOWN) == 0;
        let is_to_be_read = is_of_files && prot == libc::PROT_READ && size >= SMALLEST_FILE;
        if mapped != libc::MAP_FAILED && is_to_be_read && agent::takes_files() {
            let range = pages_of(mapped, size);
            // SAFETY: the kernel has just mapped what it names.
            let file = unsafe { BorrowedFd::borrow_raw(fd) };
            keeping_errno(|| range.into_iter().for_each(|range| agent::file_mapped(range, file, offset as u64)));
        }
        mapped
    })
}

/// `mmap(2)` by another name.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn mmap64(
    start: *mut c_void,
    size: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: as the caller promised.
    unsafe { mmap(start, size, prot, flags, fd, offset) }
}

/// `fcntl(2)`: who asks for a lease for writing is to be the only one who has the file open.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    let next = next!(fcntl(_, _, _));
    before_fcntl(command, argument);
    // SAFETY: as the caller promised; it takes one argument at most, which is a word.
    unsafe { next(fd, command, argument) }
}

/// `fcntl(2)` by another name.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: as the caller promised; they are one where addresses have 64 bits.
    unsafe { fcntl(fd, command, argument) }
}

/// Looks up now what is behind `fcntl(2)`, which forked children call of whose parent's threads one may have had the loader's lock.
pub(super) fn find_next() {
    let next = next!(fcntl(_, _, _));
    keeping_errno(|| {
        // SAFETY: no descriptor is named.
        let _ = unsafe { next(-1, libc::F_GETFD, 0) };
    });
}

/// Before `fcntl(2)` of any file: the mappings of all are given up before one is leased for writing, as it would have to be looked for whose those are.
pub(super) fn before_fcntl(command: c_int, argument: usize) {
    if command == libc::F_SETLEASE && argument == libc::F_WRLCK as usize && agent::manages_files() {
        uncancelled(|| keeping_errno(|| agent::give_files_up(PageRange::ALL)));
    }
}

/// The program is about to change what is mapped from `start` on: what is a file's there is the program's alone on return.
pub(super) fn change(start: *mut c_void, size: usize) {
    if let Some(range) = pages_of(start, size) {
        keeping_errno(|| agent::give_files_up(range));
    }
}

/// The same, before a call that changes as much by `number` as the C library's does.
///
/// # Safety
///
/// As for that call.
unsafe fn changing(number: libc::c_long, start: *mut c_void, size: usize, rest: [usize; 3]) -> c_int {
    if agent::manages_files() && agent::is_running() {
        uncancelled(|| change(start, size));
    }
    let [third, fourth, fifth] = rest;
    // SAFETY: as the caller promised.
    let made = unsafe { make(number, [start.expose_provenance(), size, third, fourth, fifth, 0]) };
    if made == 0 { 0 } else { -1 }
}

/// Before the program changes what is mapped from `start` on.
pub(super) fn before_change(start: *mut c_void, size: usize) {
    if agent::manages_files() {
        uncancelled(|| change(start, size));
    }
}

/// `mprotect(2)`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn mprotect(start: *mut c_void, size: usize, prot: c_int) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { changing(libc::SYS_mprotect, start, size, [(prot as isize).cast_unsigned(), 0, 0]) }
}

/// `pkey_mprotect(2)`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn pkey_mprotect(
    start: *mut c_void,
    size: usize,
    prot: c_int,
    key: c_int,
) -> c_int {
    let word = |number: c_int| (number as isize).cast_unsigned();
    // As the C library, which asks for no key where the kernel may know of none.
    let (number, key) = if key == -1 { (libc::SYS_mprotect, 0) } else { (libc::SYS_pkey_mprotect, word(key)) };
    // SAFETY: as the caller promised.
    unsafe { changing(number, start, size, [word(prot), key, 0]) }
}

/// `mlock(2)`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn mlock(start: *const c_void, size: usize) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { changing(libc::SYS_mlock, start.cast_mut(), size, [0; 3]) }
}

/// `mlock2(2)`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn mlock2(start: *const c_void, size: usize, flags: libc::c_uint) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { changing(libc::SYS_mlock2, start.cast_mut(), size, [flags as usize, 0, 0]) }
}

/// `mseal(2)`, which the C library has since 2.42.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn mseal(start: *mut c_void, size: usize, flags: usize) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { changing(SYS_MSEAL, start, size, [flags, 0, 0]) }
}

/// Linux 6.10.
pub(super) const SYS_MSEAL: libc::c_long = 462;

/// `remap_file_pages(2)`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn remap_file_pages(
    start: *mut c_void,
    size: usize,
    prot: c_int,
    page: usize,
    flags: c_int,
) -> c_int {
    let rest = [(prot as isize).cast_unsigned(), page, (flags as isize).cast_unsigned()];
    // SAFETY: as the caller promised.
    unsafe { changing(libc::SYS_remap_file_pages, start, size, rest) }
}

/// Whether this advice is about pages alone, and to memory that stands in for a file's mapping what it is to that.
pub(super) const fn is_a_hint(advice: c_int) -> bool {
    matches!(
        advice,
        libc::MADV_NORMAL
            | libc::MADV_RANDOM
            | libc::MADV_SEQUENTIAL
            | libc::MADV_WILLNEED
            | libc::MADV_DONTNEED
            | libc::MADV_COLD
            | libc::MADV_PAGEOUT
            | libc::MADV_POPULATE_READ
    )
}

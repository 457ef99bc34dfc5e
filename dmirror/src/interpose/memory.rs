//! What the program does to its mappings: devices are told before, and the device's own memory can be mapped.
#![expect(unsafe_code, reason = "takes the place of C functions")]

use std::ffi::{c_int, c_void};

use hetmem::mirror::Event;
use hetmem_core::sync::{RwLock, RwLockWriteGuard, read, write};
use hetmem_core::units::{PageCount, PageRange};
use hetmem_interpose::cancel::uncancelled;
use hetmem_interpose::divided;
use hetmem_interpose::errno::{keeping_errno, set_errno};
use hetmem_interpose::next;
use hetmem_interpose::next::pages_of;
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::populate_read;
use rustix::fs::MemfdFlags;
use std::os::fd::AsRawFd;

use crate::file::Devices;
use crate::mappings::NAME;
use crate::{descriptors, process};

use super::transparently;

/// Held shared by who changes mappings, and alone by who changes them for a moment and back.
static CHANGES: RwLock<()> = RwLock::new(());

/// Keeps the program from changing its mappings. The caller is inside ([`process::enter`]).
pub(crate) fn hold_still() -> RwLockWriteGuard<'static, ()> {
    write(&CHANGES)
}

/// Makes a `change` of `ranges`, of which devices are told before.
fn announced<R: Copy>(ranges: [Option<PageRange>; 2], event: Event, change: impl FnOnce() -> R) -> R {
    announced_to(ranges, event, |_| change())
}

/// Makes a `change` of `ranges`, of which devices are told before. It is given the devices, as it asks something of their runtime.
fn announced_to<R: Copy>(
    ranges: [Option<PageRange>; 2],
    event: Event,
    change: impl FnOnce(Option<&Devices>) -> R,
) -> R {
    uncancelled(|| {
        if !process::is_active() {
            return change(None);
        }
        transparently(change, |change| within(ranges, event, change))
    })
}

fn within<R>(ranges: [Option<PageRange>; 2], event: Event, change: impl FnOnce(Option<&Devices>) -> R) -> R {
    let Some(inside) = process::enter() else { return change(None) };
    let Some(devices) = inside.devices() else { return change(None) };
    let _changing = read(&CHANGES);
    let runtime = &devices.runtime;
    match ranges {
        [Some(first), Some(second)] => {
            runtime.announce(first, event, || runtime.announce(second, event, || change(Some(&devices))))
        }
        [Some(one), None] | [None, Some(one)] => runtime.announce(one, event, || change(Some(&devices))),
        [None, None] => change(Some(&devices)),
    }
}

type MmapFn = unsafe extern "C-unwind" fn(*mut c_void, usize, c_int, c_int, c_int, libc::off64_t) -> *mut c_void;

/// `mmap(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn mmap(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off64_t,
) -> *mut c_void {
    // SAFETY: as the caller promised.
    unsafe { mmap64(addr, len, prot, flags, fd, offset) }
}

/// `mmap(2)`, for large files; on 64-bit machines the same.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn mmap64(
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: libc::off64_t,
) -> *mut c_void {
    let next = next!(mmap64(_, _, _, _, _, _));
    let of_a_file = flags & libc::MAP_ANONYMOUS == 0;
    let of_a_device = of_a_file && uncancelled(|| is_a_devices(fd));
    let call = || {
        if of_a_device {
            // SAFETY: as the caller promised.
            return unsafe { map_device(next, addr, len, prot, flags) };
        }
        if of_a_file && process::may_have_inherited() && descriptors::is_of_another_process(fd) {
            set_errno(libc::ENODEV);
            return libc::MAP_FAILED;
        }
        // SAFETY: as the caller promised.
        unsafe { next(addr, len, prot, flags, fd, offset) }
    };
    if flags & libc::MAP_FIXED == 0 {
        return uncancelled(call);
    }
    announced([pages_of(addr, len), None], Event::Unmap, call)
}

fn is_a_devices(fd: c_int) -> bool {
    let may_be = || descriptors::borrow(fd).is_some_and(|fd| descriptors::identity(fd).is_some());
    process::is_active() && may_be() && process::is_open(fd)
}

/// Memory of the device: pages of zeros, all there from the start.
///
/// # Safety
///
/// As for `mmap(2)`.
unsafe fn map_device(next: MmapFn, addr: *mut c_void, len: usize, prot: c_int, flags: c_int) -> *mut c_void {
    let fail = |errno: Errno| {
        set_errno(errno.raw_os_error());
        libc::MAP_FAILED
    };
    let Some(size) = len.checked_next_multiple_of(4096) else { return fail(Errno::NOMEM) };
    let pages = || {
        let file = rustix::fs::memfd_create(NAME, MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, size as u64)?;
        Ok(file)
    };
    let file = match pages() {
        Ok(file) => file,
        Err(errno) => return fail(errno),
    };
    // SAFETY: as the caller promised.
    let at = unsafe { next(addr, len, prot, flags, file.as_raw_fd(), 0) };
    keeping_errno(|| drop(file));
    if at == libc::MAP_FAILED {
        return at;
    }
    let unmap = |errno| {
        // SAFETY: mapped above, and nobody has the address yet.
        let _ = unsafe { rustix::mm::munmap(at, size) };
        fail(errno)
    };
    match pages_of(at, size) {
        Some(range) if prot & libc::PROT_READ != 0 => match populate_read(range) {
            Ok(()) => at,
            Err(_) => unmap(Errno::NOMEM),
        },
        _ => at,
    }
}

/// `munmap(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn munmap(addr: *mut c_void, len: usize) -> c_int {
    let next = next!(munmap(_, _));
    // SAFETY: as the caller promised.
    announced([pages_of(addr, len), None], Event::Unmap, || unsafe { next(addr, len) })
}

/// `mprotect(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn mprotect(addr: *mut c_void, len: usize, prot: c_int) -> c_int {
    let next = next!(mprotect(_, _, _));
    // SAFETY: as the caller promised.
    announced([pages_of(addr, len), None], Event::ProtectionVma, || unsafe { next(addr, len, prot) })
}

/// `pkey_mprotect(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn pkey_mprotect(addr: *mut c_void, len: usize, prot: c_int, key: c_int) -> c_int {
    let next = next!(pkey_mprotect(_, _, _, _));
    // SAFETY: as the caller promised.
    announced([pages_of(addr, len), None], Event::ProtectionVma, || unsafe { next(addr, len, prot, key) })
}

/// `madvise(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int {
    let next = next!(madvise(_, _, _));
    // SAFETY: as the caller promised.
    let call = || unsafe { next(addr, len, advice) };
    match advice {
        libc::MADV_DONTNEED | libc::MADV_FREE | libc::MADV_REMOVE | libc::MADV_DONTNEED_LOCKED => {
            announced([pages_of(addr, len), None], Event::Clear, call)
        }
        _ => call(),
    }
}

/// `mremap(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn mremap(
    old: *mut c_void,
    old_size: usize,
    new_size: usize,
    flags: c_int,
    new: *mut c_void,
) -> *mut c_void {
    let call = divided::Call { next: next!(mremap(_, _, _, _, _)), old, old_size, new_size, flags, new };
    let target = pages_of(new, new_size).filter(|_| flags & libc::MREMAP_FIXED != 0);
    announced_to([pages_of(old, old_size), target], Event::Unmap, |devices| {
        let Some(devices) = devices else {
            // SAFETY: as the caller promised.
            return unsafe { call.make() };
        };
        let undivided = |range, call: &mut dyn FnMut()| {
            // What can't be let go of stays divided, and the kernel says so.
            let _ = devices.runtime.release(around(range));
            call();
        };
        // SAFETY: as the caller promised.
        unsafe { call.make_undivided(undivided, last_word) }
    })
}

/// The range with a page on either side: what is registered beside it divides the mapping, too.
fn around(range: PageRange) -> PageRange {
    let page = PageCount::ONE.bytes().get();
    let start = hetmem_core::units::VirtAddr::new(range.start().get().saturating_sub(page));
    let end = hetmem_core::units::VirtAddr::new(range.end().get().saturating_add(page));
    PageRange::between(start, end).unwrap_or(range)
}

#[expect(clippy::print_stderr, reason = "the program is about to be stopped; this is the last word")]
fn last_word(line: &str) {
    eprintln!("hetmem: {line}");
}

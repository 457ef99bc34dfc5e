//! Opening, closing and asking the device.
#![expect(unsafe_code, reason = "takes the place of C functions")]

use std::ffi::{c_char, c_int, c_uint, c_ulong, c_void};
use std::os::fd::IntoRawFd;

use hetmem_core::units::VirtAddr;
use hetmem_interpose::cancel::uncancelled;
use hetmem_interpose::errno::{errno, set_errno};
use hetmem_interpose::next;
use hetmem_sys::access::read_checked;
use hetmem_sys::errno::Errno;
use libc::mode_t;
use rustix::fs::OFlags;

use crate::abi::{self, Command, Operation};
use crate::descriptors;
use crate::file::DEVICES;
use crate::memory::{copy_in, copy_out};
use crate::process;

use super::transparently;

/// Requests that the kernel answers before a driver is asked.
const OF_EVERY_FILE: [c_ulong; 4] = [libc::FIOCLEX, libc::FIONCLEX, libc::FIONBIO, libc::FIOASYNC];

/// The result as a C function gives it.
fn answer(result: Result<c_int, Errno>) -> c_int {
    result.unwrap_or_else(|errno| {
        set_errno(errno.raw_os_error());
        -1
    })
}

/// The device that `path` names, if it does.
fn device(path: *const c_char) -> Option<u8> {
    // Checked, as a bad pointer is EFAULT to the kernel. A path that ends before is none of the device's, and may lie at the end of a mapping.
    let mut text = [0; abi::PATH.len() + 2];
    read_checked(VirtAddr::new(path.addr() as u64), &mut text).ok()?;
    let [minor, 0] = *text.strip_prefix(abi::PATH)? else { return None };
    minor.checked_sub(b'0').filter(|minor| *minor < DEVICES)
}

/// Opens the device, if `path` is one's and this process may have one.
fn opened(path: *const c_char, flags: c_int) -> Option<c_int> {
    let minor = device(path)?;
    let flags = OFlags::from_bits_retain(flags.cast_unsigned());
    if flags.contains(OFlags::PATH) {
        return None;
    }
    let before = errno();
    let inside = process::enter()?;
    let result = if flags.contains(OFlags::CREATE | OFlags::EXCL) {
        Err(Errno::EXIST)
    } else if flags.contains(OFlags::DIRECTORY) {
        Err(Errno::NOTDIR)
    } else {
        inside.open(minor, flags)
    };
    drop(inside);
    set_errno(before);
    Some(answer(result.map(IntoRawFd::into_raw_fd)))
}

macro_rules! opens {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) of $path:ident, $flags:ident;)*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        unsafe extern "C-unwind" fn $name($($arg: $type),*) -> c_int {
            if let Some(fd) = uncancelled(|| opened($path, $flags)) {
                return fd;
            }
            let next = next!($name($($type),*));
            // SAFETY: as the caller promised.
            unsafe { next($($arg),*) }
        }
    )*};
}

opens! {
    /// `open(2)`.
    open(path: *const c_char, flags: c_int, mode: mode_t) of path, flags;
    /// `open(2)`, for large files.
    open64(path: *const c_char, flags: c_int, mode: mode_t) of path, flags;
    /// `openat(2)`.
    openat(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) of path, flags;
    /// `openat(2)`, for large files.
    openat64(folder: c_int, path: *const c_char, flags: c_int, mode: mode_t) of path, flags;
    /// `open(2)` with `_FORTIFY_SOURCE`.
    __open_2(path: *const c_char, flags: c_int) of path, flags;
    /// `open64` with `_FORTIFY_SOURCE`.
    __open64_2(path: *const c_char, flags: c_int) of path, flags;
    /// `openat(2)` with `_FORTIFY_SOURCE`.
    __openat_2(folder: c_int, path: *const c_char, flags: c_int) of path, flags;
    /// `openat64` with `_FORTIFY_SOURCE`.
    __openat64_2(folder: c_int, path: *const c_char, flags: c_int) of path, flags;
}

/// Runs `close`; if it closes a descriptor that may be a device's, whoever is closed for good is released.
fn closing<R: Copy>(may_be_a_devices: impl FnOnce() -> bool, close: impl FnOnce() -> R) -> R {
    if !process::is_active() || !uncancelled(may_be_a_devices) {
        return close();
    }
    uncancelled(|| {
        transparently(
            |_| close(),
            |close| match process::enter() {
                Some(inside) => inside.closing(|| close(None)),
                None => close(None),
            },
        )
    })
}

fn may_be_a_devices(fd: c_int) -> bool {
    descriptors::borrow(fd).is_some_and(|fd| descriptors::identity(fd).is_some())
}

/// `close(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn close(fd: c_int) -> c_int {
    let next = next!(close(_));
    // SAFETY: as the caller promised.
    closing(|| may_be_a_devices(fd), || unsafe { next(fd) })
}

/// `close_range(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int {
    let next = next!(close_range(_, _, _));
    // SAFETY: as the caller promised.
    closing(|| true, || unsafe { next(first, last, flags) })
}

/// `closefrom(3)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn closefrom(first: c_int) {
    let next = next!(closefrom(_));
    // SAFETY: as the caller promised.
    closing(|| true, || unsafe { next(first) });
}

/// `dup2(2)`, which may close `to`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn dup2(fd: c_int, to: c_int) -> c_int {
    let next = next!(dup2(_, _));
    // SAFETY: as the caller promised.
    closing(|| may_be_a_devices(to), || unsafe { next(fd, to) })
}

/// `dup3(2)`, which may close `to`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int {
    let next = next!(dup3(_, _, _));
    // SAFETY: as the caller promised.
    closing(|| may_be_a_devices(to), || unsafe { next(fd, to, flags) })
}

/// `ioctl(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    let next = next!(ioctl(_, _, _));
    // SAFETY: as the caller promised.
    let pass_on = || unsafe { next(fd, request, arg) };
    if OF_EVERY_FILE.contains(&(request & 0xFFFF_FFFF)) {
        return pass_on();
    }
    match uncancelled(|| asked(fd, request, arg)) {
        Some(result) => answer(result),
        None => pass_on(),
    }
}

/// What the device says to `request`, if `fd` is a device's.
fn asked(fd: c_int, request: c_ulong, arg: *mut c_void) -> Option<Result<c_int, Errno>> {
    let before = errno();
    let by_device = || {
        let inside = process::is_active().then(process::enter)??;
        let file = inside.file(fd)?;
        let arg = VirtAddr::new(arg.expose_provenance() as u64);
        Some(command(request, arg, |operation, command| file.run(operation, command)))
    };
    // The kernel's would work on the memory of the process that opened it.
    let by_another = || {
        let is_inherited = abi::is_of_type(request) && descriptors::is_of_another_process(fd);
        is_inherited.then_some(Err(Errno::NODEV))
    };
    let result = by_device().or_else(by_another);
    set_errno(before);
    result
}

/// What every command has in common.
fn command(
    request: c_ulong,
    arg: VirtAddr,
    run: impl FnOnce(Operation, &mut Command) -> Result<(), Errno>,
) -> Result<c_int, Errno> {
    let mut bytes = [0; abi::SIZE];
    copy_in(arg, &mut bytes)?;
    let mut command = Command::from_bytes(bytes);
    command.range()?;
    run(Operation::of(request).ok_or(Errno::INVAL)?, &mut command)?;
    copy_out(arg, &command.to_bytes())?;
    Ok(0)
}

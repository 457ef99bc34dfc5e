//! The C library's `errno`, of the calling thread.
#![expect(unsafe_code, reason = "a variable of the C library's")]

use std::ffi::c_int;

/// The value of `errno`.
#[must_use]
pub fn errno() -> c_int {
    // SAFETY: asks nothing of the caller.
    let location = unsafe { libc::__errno_location() };
    // SAFETY: the C library's variable of this thread.
    unsafe { location.read() }
}

/// Sets `errno`.
pub fn set_errno(errno: c_int) {
    // SAFETY: asks nothing of the caller.
    let location = unsafe { libc::__errno_location() };
    // SAFETY: the C library's variable of this thread.
    unsafe { location.write(errno) };
}

/// Runs `f` beside what the program has asked for, whose `errno` stays: a lock that is contended changes it.
pub fn keeping_errno<R>(f: impl FnOnce() -> R) -> R {
    let before = errno();
    let result = f();
    set_errno(before);
    result
}

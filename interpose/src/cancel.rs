//! Cancellation of the program's threads ([pthreads(7)], pthread_cancel(3)) in the functions that stand in front of the C library's.
//!
//! The C library unwinds a thread that is cancelled: at once and at any instruction if the thread asked for that (`PTHREAD_CANCEL_ASYNCHRONOUS`),
//! else from some of the C library's functions, hetmem's own use of which the program knows nothing of. Code that the compiler has given something to
//! do while it is unwound (a "landing pad") can be unwound through from where it calls others only: elsewhere the thread's personality routine ends
//! the program. So a function that stands in front of another holds nothing that must be dropped, and does everything that may by [`uncancelled`].
//!
//! [pthreads(7)]: https://man7.org/linux/man-pages/man7/pthreads.7.html
#![expect(unsafe_code, reason = "calls the C library")]

use std::ffi::c_int;
use std::ptr;

/// glibc's `PTHREAD_CANCEL_DISABLE`.
const DISABLE: c_int = 1;
/// glibc's `PTHREAD_CANCEL_DEFERRED`.
const DEFERRED: c_int = 0;

// They unwind where a thread is cancelled that has asked for it at any time.
unsafe extern "C-unwind" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
    fn pthread_setcanceltype(kind: c_int, old: *mut c_int) -> c_int;
}

/// Runs `body` in a thread that is not cancelled meanwhile. The caller holds nothing that must be dropped.
// Inlined, for a function of its own would be one more to keep free of landing pads.
#[inline(always)]
pub fn uncancelled<R: Copy>(body: impl FnOnce() -> R) -> R {
    let allowed = Allowed::none();
    let result = apart(body);
    allowed.restore();
    result
}

/// Where the landing pads of `body` are.
#[inline(never)]
fn apart<R>(body: impl FnOnce() -> R) -> R {
    body()
}

/// Whether and when a thread may be cancelled. Nothing to be dropped.
#[derive(Clone, Copy)]
pub struct Allowed {
    state: c_int,
    kind: c_int,
}

impl Allowed {
    /// The calling thread is not cancelled from now on. Returns what it had.
    #[inline(always)]
    #[must_use]
    pub fn none() -> Self {
        let mut allowed = Self { state: DISABLE, kind: DEFERRED };
        allowed.kind = defer();
        // SAFETY: a value of the C library's, and a variable for another.
        unsafe { pthread_setcancelstate(DISABLE, &raw mut allowed.state) };
        allowed
    }

    /// Gives the calling thread what [`Allowed::none`] returned.
    #[inline(always)]
    pub fn restore(self) {
        // SAFETY: a value of the C library's.
        unsafe { pthread_setcancelstate(self.state, ptr::null_mut()) };
        undefer(self.kind);
    }
}

/// Has the calling thread cancelled only where it calls the C library, from now on; returns what it had.
#[inline(always)]
pub(crate) fn defer() -> c_int {
    let mut kind = DEFERRED;
    // SAFETY: a value of the C library's, and a variable for another.
    unsafe { pthread_setcanceltype(DEFERRED, &raw mut kind) };
    kind
}

/// Ends what [`defer`] began. A thread that was cancelled meanwhile is unwound from here: unlike `pthread_setcancelstate` of glibc 2.36, this
/// function sets what `pthread_join` returns then.
#[inline(always)]
pub(crate) fn undefer(kind: c_int) {
    if kind != DEFERRED {
        // SAFETY: what the thread had.
        unsafe { pthread_setcanceltype(kind, ptr::null_mut()) };
    }
}

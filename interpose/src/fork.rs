//! What is done around every fork, whichever way it is made.
#![expect(unsafe_code, reason = "registers handlers with the C library")]

use crate::cancel::uncancelled;
use crate::errno::keeping_errno;

/// What a library does around forks, as `pthread_atfork(3)` takes it. A `static`, as the C library keeps it.
pub struct Handlers {
    /// In a thread that is about to fork.
    pub before: extern "C" fn(),
    /// In the parent, after a fork or an attempt at one.
    pub in_parent: extern "C" fn(),
    /// In the child, first of all.
    pub in_child: extern "C" fn(),
}

impl Handlers {
    /// Has the C library run them around the forks that it makes itself, but for `_Fork(3)`. `false` where it has no memory for that.
    #[must_use]
    pub fn register(&'static self) -> bool {
        // SAFETY: registers functions that live as long as the process.
        unsafe { libc::pthread_atfork(Some(self.before), Some(self.in_parent), Some(self.in_child)) == 0 }
    }

    /// Runs them around `make`, which makes a child past them, and returns what it returns: 0 in the child, if that goes on here.
    #[inline(always)]
    pub fn around(&self, make: impl FnOnce() -> isize) -> isize {
        uncancelled(|| {
            (self.before)();
            let made = make();
            if made == 0 {
                (self.in_child)();
            } else {
                keeping_errno(|| (self.in_parent)());
            }
            made
        })
    }
}

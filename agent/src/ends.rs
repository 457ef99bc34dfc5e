//! How the program's last thread has ended, where the C library does not know of it: by a bare `exit(2)`, or killed by a strict filter of system
//! calls.
//!
//! The kernel ends a process with the status of its last thread, and that is the agent's then. What the first thread's was can be asked; what any
//! other's was is noted here when it passes by.
//!
//! *Limits:* another thread that ends by an instruction of its own goes unnoticed, and the process ends with the first one's status.

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use hetmem_sys::thread::current_tid;

/// The code of the thread that ended last, if any did so; negative if none.
static CODE: AtomicI32 = AtomicI32::new(-1);
/// The thread that has put itself under the strict filter, which kills it at its first call but four; 0 if none has.
static STRICT: AtomicU32 = AtomicU32::new(0);

/// The calling thread is about to end by `exit(2)` with `code`.
pub fn thread_exits(code: i32) {
    CODE.store(code & 0xFF, Ordering::Relaxed);
    STRICT.store(0, Ordering::Relaxed);
}

/// The calling thread is about to put itself under the strict filter.
pub fn thread_is_strict() {
    STRICT.store(current_tid(), Ordering::Relaxed);
}

/// In a forked child, none of whose threads has ended.
pub(super) fn forget_in_child() {
    CODE.store(-1, Ordering::Relaxed);
    STRICT.store(0, Ordering::Relaxed);
}

/// How the process is to end, whose first thread ended as `first` says; in the form of `wait(2)`.
pub(super) fn status(first: i32) -> i32 {
    if STRICT.load(Ordering::Relaxed) != 0 {
        return libc::SIGKILL;
    }
    match CODE.load(Ordering::Relaxed) {
        -1 => first,
        code => code << 8,
    }
}

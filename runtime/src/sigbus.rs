//! The SIGBUS path: which runtimes the process's handler serves.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use hetmem_core::units::VirtAddr;
use hetmem_sys::errno::Errno;
use hetmem_sys::sigbus::{Handled, install};

use crate::error::Error;
use crate::inner::Inner;
use crate::service::serve_sigbus;

/// Runtimes that serve by SIGBUS at the same time.
const MAX_RUNTIMES: usize = 16;

static RUNTIMES: [AtomicPtr<Inner>; MAX_RUNTIMES] = [const { AtomicPtr::new(ptr::null_mut()) }; MAX_RUNTIMES];

/// Lets the handler serve `inner`, and installs the handler.
pub(crate) fn enter(inner: &Arc<Inner>) -> Result<(), Error> {
    match install(handle) {
        // Installed once in a process, for every runtime.
        Ok(()) | Err(Errno::ALREADY) => {}
        Err(errno) => return Err(Error::os("no handler for SIGBUS can be installed", errno)),
    }
    let own = Arc::as_ptr(inner).cast_mut();
    // Release pairs with the Acquire in `handle`: the handler sees a whole runtime.
    let free = |place: &&AtomicPtr<Inner>| {
        place.compare_exchange(ptr::null_mut(), own, Ordering::Release, Ordering::Relaxed).is_ok()
    };
    RUNTIMES
        .iter()
        .find(free)
        .map(|_| ())
        .ok_or_else(|| Error::invalid(format!("{MAX_RUNTIMES} runtimes serve by SIGBUS already")))
}

/// Ends that. Nothing of the runtime's is missing any more, so no handler is at work for it.
pub(crate) fn leave(inner: &Arc<Inner>) {
    let own = Arc::as_ptr(inner).cast_mut();
    for place in &RUNTIMES {
        // Relaxed: nothing is published.
        let _ = place.compare_exchange(own, ptr::null_mut(), Ordering::Relaxed, Ordering::Relaxed);
    }
}

#[expect(unsafe_code, reason = "the runtimes are found by pointers, as a signal handler has no arguments of its own")]
fn handle(addr: VirtAddr) -> Handled {
    for place in &RUNTIMES {
        let runtime = place.load(Ordering::Acquire);
        // SAFETY: `enter` put a pointer to a living runtime there, and `leave` takes it away before the runtime ends.
        if let Some(runtime) = unsafe { runtime.as_ref() }
            && serve_sigbus(runtime, addr)
        {
            return Handled::Resolved;
        }
    }
    Handled::NotMine
}

//! What the program's threads tell of removals of their pages, and ask to be left alone for.
#![expect(unsafe_code, reason = "guard markers discard memory that is named by number")]

use hetmem_core::units::PageRange;
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::Guard;

use super::start::{agent, undivided};

/// `madvise(2)` with guard markers, on behalf of the calling thread, with pages that are away where a marker is gone for good; `None` where
/// nothing is managed. The calling thread may be on a stack that is away.
///
/// # Safety
///
/// What is discarded nobody counts on.
pub unsafe fn guard(start: u64, len: u64, what: Guard) -> Option<Result<(), Errno>> {
    // SAFETY: the caller's.
    agent().map(|agent| unsafe { agent.inner.guard(start, len, what) })
}

/// Before guard markers are removed that may be anywhere: what they have discarded comes back no more.
pub fn look_for_guards() {
    if let Some(agent) = agent() {
        agent.inner.look_for_guards();
    }
}

/// Runs `f` while every page of `range` is at home and none is on its way, as whatever takes pages out of the program by itself needs them
/// (`UFFDIO_MOVE` of a userfaultfd of its own).
pub fn at_home<R>(range: PageRange, f: impl FnOnce() -> R) -> R {
    undivided(range, f)
}

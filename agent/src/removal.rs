//! What the program's threads tell of removals of their pages.
#![expect(unsafe_code, reason = "guard markers discard memory that is named by number")]

use std::cell::Cell;

use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::Guard;
use hetmem_sys::thread::current_tid;

use super::presence::Use;
use hetmem::for_agent;

/// `madvise(2)` with guard markers, on behalf of the calling thread, with pages that are away where a marker is gone for good; `None` where
/// nothing is managed. The calling thread may be on a stack that is away.
///
/// # Safety
///
/// What is discarded nobody counts on.
pub unsafe fn guard(start: u64, len: u64, what: Guard) -> Option<Result<(), Errno>> {
    // SAFETY: the caller's.
    Use::begin().map(|agent| unsafe { agent.managed.guard(start, len, what) })
}

/// Before guard markers are removed that may be anywhere: what they have discarded comes back no more.
pub fn look_for_guards() {
    if let Some(agent) = Use::begin() {
        agent.managed.look_for_guards();
    }
}

thread_local! {
    /// The number of this thread, once it was asked for; asking is a system call, which a filter of the program's may forbid later.
    static NUMBER: Cell<u32> = const { Cell::new(0) };
}

/// The calling thread is known from now on.
pub(super) fn thread_is_known() {
    NUMBER.set(current_tid());
}

/// The calling thread has come back from a call that removes pages and announces it: it is not in the middle of one.
pub fn removal_returned() {
    let tid = NUMBER.get();
    if tid != 0 {
        for_agent::removal_returned(tid);
    }
}

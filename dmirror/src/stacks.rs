//! Stacks of the program's threads, which are never migrated while the threads live: the driver's code runs on them with locks held, and the kernel
//! writes to them at a thread's end without waiting for a page.
#![expect(unsafe_code, reason = "a lock is made anew in a forked child")]

use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{PageRange, VirtAddr};
use hetmem_interpose::thread::own_stack;
use hetmem_sys::thread::{current_tid, thread_exists};

/// Each with its thread.
static STACKS: Mutex<Vec<(PageRange, u32)>> = Mutex::new(Vec::new());

/// The calling thread's stack is `stack`, from its first moment on.
pub(crate) fn begin(stack: PageRange) {
    let tid = current_tid();
    let mut stacks = lock(&STACKS);
    stacks.retain(|(old, _)| !old.overlaps(stack));
    stacks.push((stack, tid));
}

/// The stacks of threads that live.
pub(crate) fn living() -> Vec<PageRange> {
    let mut stacks = lock(&STACKS);
    stacks.retain(|(_, tid)| thread_exists(*tid));
    stacks.iter().map(|(stack, _)| *stack).collect()
}

/// In a forked child: of all threads there is this one, with a new number.
///
/// The lock is not held over the fork. A thread that begins would wait for it, and that may be the one which serves the fork's event.
///
/// # Safety
///
/// The calling thread is the only one of a process that was forked a moment ago.
pub(crate) unsafe fn restart_in_child() {
    let tid = current_tid();
    if let Ok(mut stacks) = STACKS.try_lock() {
        let here = VirtAddr::new(std::ptr::from_ref(&tid).addr() as u64).page_down();
        stacks.retain(|(stack, _)| stack.contains(here));
        stacks.iter_mut().for_each(|(_, of)| *of = tid);
        return;
    }
    // Another thread was just beginning, and does so no more.
    let own = own_stack().map(|stack| (stack, tid));
    // SAFETY: nobody has the lock; what it guards is overwritten, not dropped. The lock makes its memory one that may be written.
    unsafe { std::ptr::from_ref(&STACKS).cast_mut().write(Mutex::new(own.into_iter().collect())) };
}

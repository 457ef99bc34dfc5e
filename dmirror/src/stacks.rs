//! Stacks of the program's threads, which are never migrated while the threads live: the driver's code runs on them with locks held, and the kernel
//! writes to them at a thread's end without waiting for a page.

use hetmem_core::sync::{Mutex, MutexGuard, lock};
use hetmem_core::units::{PageRange, VirtAddr};
use hetmem_sys::thread::{current_tid, thread_exists};

/// The stacks, each with its thread.
pub(crate) type Stacks = Vec<(PageRange, u32)>;

static STACKS: Mutex<Stacks> = Mutex::new(Vec::new());

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

/// Held over a fork, so that no thread that the child doesn't have holds it.
pub(crate) fn hold() -> MutexGuard<'static, Stacks> {
    lock(&STACKS)
}

/// In a forked child: of all threads there is this one, with a new number.
pub(crate) fn keep_own(stacks: &mut Stacks) {
    let here = VirtAddr::new(std::ptr::from_ref(&stacks).addr() as u64);
    stacks.retain(|(stack, _)| stack.contains(here.page_down()));
    stacks.iter_mut().for_each(|(_, tid)| *tid = current_tid());
}

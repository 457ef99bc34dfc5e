//! Threads and children that the program makes, and what the kernel does to their memory by itself.

use std::ffi::{c_int, c_void};
use std::ptr;

use hetmem_interpose::cancel::{Allowed, uncancelled};
use hetmem_interpose::errno::keeping_errno;
use hetmem_interpose::next;
use hetmem_interpose::next::pages_of;
use hetmem_interpose::thread::{self, Known, StartRoutine};

use super::alone::leave_to_sharer;
use super::with_all_home;

/// `pthread_create(3)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn pthread_create(
    thread: *mut libc::pthread_t,
    attr: *const libc::pthread_attr_t,
    start: StartRoutine,
    arg: *mut c_void,
) -> c_int {
    let next = next!(pthread_create(_, _, _, _));
    let ended: fn() = || agent::thread_exits(0);
    let known: Option<Known> = agent::is_running().then_some((agent::protect_thread, ended));
    // SAFETY: as the caller promised.
    unsafe { thread::create(next, thread, attr, start, arg, known) }
}

type ChildFn = unsafe extern "C-unwind" fn(*mut c_void) -> c_int;

/// `clone(2)` of the C library, which has up to seven arguments; those that the caller did not pass are passed on, and not looked at.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn clone(
    run: Option<ChildFn>,
    stack: *mut c_void,
    flags: c_int,
    arg: *mut c_void,
    parent_tid: *mut c_int,
    storage: *mut c_void,
    child_tid: *mut c_int,
) -> c_int {
    let next = next!(clone(_, _, _, _, _, _, _));
    // The child runs on its own stack and does not return here.
    // SAFETY: as the caller promised.
    let call = |run, arg| unsafe { next(run, stack, flags, arg, parent_tid, storage, child_tid) };
    if flags & libc::CLONE_VM == 0 {
        let allowed = Allowed::none();
        let child = run.map(|run| Child { run, arg, allowed });
        let made = with_all_home(|| match &child {
            Some(child) => call(Some(run_child), ptr::from_ref(child).cast_mut().cast()) as isize,
            None => call(None, arg) as isize,
        });
        allowed.restore();
        return c_int::try_from(made).unwrap_or(-1);
    }
    leave_to_sharer(flags);
    let word = (flags & libc::CLONE_CHILD_CLEARTID != 0).then_some(child_tid.cast::<c_void>());
    with_word_in_place(word, || call(run, arg) as isize).try_into().unwrap_or(-1)
}

/// What a child of `clone(2)` does, which has a copy of its parent's memory, and of this.
struct Child {
    run: ChildFn,
    arg: *mut c_void,
    allowed: Allowed,
}

/// The child's beginning.
unsafe extern "C-unwind" fn run_child(child: *mut c_void) -> c_int {
    // SAFETY: the parent's stack is as it was when it made the child.
    let Child { run, arg, allowed } = unsafe { child.cast::<Child>().read() };
    allowed.restore();
    // SAFETY: as the caller of `clone` promised.
    unsafe { run(arg) }
}

/// Runs `make`, which makes a thread and returns its number, with the `word` in place that the kernel clears at the thread's end: it does not wait
/// for a page then.
pub(super) fn with_word_in_place(word: Option<*mut c_void>, make: impl FnOnce() -> isize) -> isize {
    let Some(page) = word.and_then(|word| pages_of(word, size_of::<c_int>())) else { return make() };
    uncancelled(|| agent::begin_thread(page));
    let made = make();
    uncancelled(|| keeping_errno(|| agent::thread_began(page, u32::try_from(made).ok())));
    made
}

/// `pthread_mutex_init(3)`. The kernel itself looks at the word of a mutex that is robust (when its owner ends) or inherits priorities (in the system
/// call that waits for it), and does not wait for a page.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn pthread_mutex_init(
    mutex: *mut libc::pthread_mutex_t,
    attr: *const libc::pthread_mutexattr_t,
) -> c_int {
    let next = next!(pthread_mutex_init(_, _));
    // SAFETY: as the caller promised.
    let made = unsafe { next(mutex, attr) };
    if made == 0 && !attr.is_null() && agent::is_running() {
        let (mut robust, mut protocol) = (0, 0);
        // SAFETY: attributes that the call above has accepted.
        unsafe { libc::pthread_mutexattr_getrobust(attr, &raw mut robust) };
        // SAFETY: attributes that the call above has accepted.
        unsafe { libc::pthread_mutexattr_getprotocol(attr, &raw mut protocol) };
        if (robust == libc::PTHREAD_MUTEX_ROBUST || protocol == libc::PTHREAD_PRIO_INHERIT)
            && let Some(pages) = pages_of(mutex.cast(), size_of::<libc::pthread_mutex_t>())
        {
            uncancelled(|| agent::keep_at_home(pages));
        }
    }
    made
}

//! `pthread_create(3)`, so that each thread's stack is known before the thread does anything: the kernel writes to its control block at the
//! thread's end and does not wait for a page then, and code of hetmem's runs on it.
#![expect(unsafe_code, reason = "takes the place of a C function")]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use hetmem_core::units::{PageRange, VirtAddr};
use hetmem_sys::process::with_signals_blocked;

use crate::cancel::{defer, uncancelled, undefer};

/// What a thread runs.
pub type StartRoutine = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;
/// The C library's `pthread_create`.
pub type CreateFn =
    unsafe extern "C-unwind" fn(*mut libc::pthread_t, *const libc::pthread_attr_t, StartRoutine, *mut c_void) -> c_int;

/// Called in a new thread: with its stack, at first, and at its end.
pub type Known = (fn(PageRange), fn());

/// What a new thread runs after its stack is known.
struct Routine {
    known: Known,
    start: StartRoutine,
    arg: *mut c_void,
}

/// `pthread_create(3)`, of which `next` is the C library's. The new thread calls what is `known`, if that is given.
///
/// # Safety
///
/// As for `pthread_create(3)`.
pub unsafe fn create(
    next: CreateFn,
    thread: *mut libc::pthread_t,
    attr: *const libc::pthread_attr_t,
    start: StartRoutine,
    arg: *mut c_void,
    known: Option<Known>,
) -> c_int {
    let Some(known) = known else {
        // SAFETY: as the caller promised.
        return unsafe { next(thread, attr, start, arg) };
    };
    uncancelled(|| {
        let routine = with_signals_blocked(|| Box::into_raw(Box::new(Routine { known, start, arg })));
        // SAFETY: as the caller promised; the routine is the new thread's.
        let result = unsafe { next(thread, attr, run, routine.cast()) };
        if result != 0 {
            // SAFETY: no thread was made to take it.
            with_signals_blocked(|| drop(unsafe { Box::from_raw(routine) }));
        }
        result
    })
}

/// Runs in the new thread. `pthread_exit` and cancellation unwind through it.
unsafe extern "C-unwind" fn run(routine: *mut c_void) -> *mut c_void {
    // SAFETY: `create` made it, for this thread alone.
    let (result, kind) = unsafe { run_known(routine.cast()) };
    undefer(kind);
    result
}

/// Runs `routine`, with what is to be done before and after. Returns what it does, and how the thread is cancelled from then on: as it begins, not at
/// any instruction.
///
/// # Safety
///
/// It is the calling thread's.
#[inline(never)]
unsafe fn run_known(routine: *mut Routine) -> (*mut c_void, c_int) {
    // SAFETY: as the caller promised.
    let Routine { known: (begun, ended), start, arg } = with_signals_blocked(|| *unsafe { Box::from_raw(routine) });
    uncancelled(|| {
        if let Some(stack) = own_stack() {
            begun(stack);
        }
    });
    let _end = End(ended);
    // SAFETY: as the caller of `pthread_create` promised.
    unsafe { run_program(start, arg) }
}

/// The program's part. Apart from the above, for here the thread may be cancelled at any instruction.
///
/// # Safety
///
/// As for `start`.
#[inline(never)]
unsafe fn run_program(start: StartRoutine, arg: *mut c_void) -> (*mut c_void, c_int) {
    // SAFETY: as the caller promised.
    let result = unsafe { start(arg) };
    (result, defer())
}

/// Tells of the thread's end, also where it is unwound.
struct End(fn());

impl Drop for End {
    fn drop(&mut self) {
        uncancelled(self.0);
    }
}

/// The calling thread's stack, with its control block.
#[must_use]
pub fn own_stack() -> Option<PageRange> {
    let mut attr = MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: asks nothing of the caller.
    let own = unsafe { libc::pthread_self() };
    // SAFETY: writes the attributes of this thread.
    if unsafe { libc::pthread_getattr_np(own, attr.as_mut_ptr()) } != 0 {
        return None;
    }
    let (mut lowest, mut size) = (std::ptr::null_mut(), 0);
    // SAFETY: reads what was written above.
    let found = unsafe { libc::pthread_attr_getstack(attr.as_ptr(), &raw mut lowest, &raw mut size) };
    // SAFETY: initialised above, and not used again.
    unsafe { libc::pthread_attr_destroy(attr.as_mut_ptr()) };
    if found != 0 {
        return None;
    }
    let start = VirtAddr::new(lowest.addr() as u64).page_down();
    let end = VirtAddr::new((lowest.addr() + size) as u64).page_up()?;
    PageRange::between(start, end)
}

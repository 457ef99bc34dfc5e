//! The library's start, forks without handlers, and threads.
#![expect(unsafe_code, reason = "takes the place of C functions")]

use std::ffi::{c_int, c_void};

use hetmem_interpose::next;
use hetmem_interpose::thread::{self, StartRoutine};

use crate::{process, stacks};

/// Run by the loader, before the program's own code and that of the libraries that it was linked with.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = begin;

extern "C" fn begin() {
    process::begin();
}

/// `_Fork(3)`: no handlers run, so what they do is done here.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn _Fork() -> libc::pid_t {
    let next = next!(_Fork());
    // SAFETY: as the caller promised.
    let made = process::FORKS.around(|| unsafe { next() } as isize);
    libc::pid_t::try_from(made).unwrap_or(-1)
}

/// `pthread_create(3)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn pthread_create(
    thread: *mut libc::pthread_t,
    attr: *const libc::pthread_attr_t,
    start: StartRoutine,
    arg: *mut c_void,
) -> c_int {
    let next = next!(pthread_create(_, _, _, _));
    // SAFETY: as the caller promised.
    unsafe { thread::create(next, thread, attr, start, arg, Some((stacks::begin, || {}))) }
}

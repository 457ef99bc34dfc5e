//! The library's start, forks without handlers, and threads.
#![expect(unsafe_code, reason = "takes the place of C functions")]

use std::ffi::{c_int, c_void};

use hetmem_interpose::cancel::uncancelled;
use hetmem_interpose::next::Next;
use hetmem_interpose::thread::{self, StartRoutine};

use crate::{process, stacks};

/// Run by the loader, before the program's own code and that of the libraries that it was linked with.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = begin;

extern "C" fn begin() {
    process::begin();
}

static NEXT_BARE_FORK: Next = Next::new(c"_Fork");

/// `_Fork(3)`: no handlers run, so what they do is done here.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn _Fork() -> libc::pid_t {
    // SAFETY: the symbol is a function of this type.
    let next = unsafe {
        std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn() -> libc::pid_t>(NEXT_BARE_FORK.get())
    };
    uncancelled(|| {
        process::before_fork();
        // SAFETY: as the caller promised.
        let pid = unsafe { next() };
        if pid == 0 {
            process::in_child();
        } else {
            process::in_parent();
        }
        pid
    })
}

/// `pthread_create(3)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn pthread_create(
    thread: *mut libc::pthread_t,
    attr: *const libc::pthread_attr_t,
    start: StartRoutine,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { thread::create(thread, attr, start, arg, Some((stacks::begin, || {}))) }
}

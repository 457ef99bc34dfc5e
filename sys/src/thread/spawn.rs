//! Starting a thread, and giving it a descriptor table of its own.
#![expect(unsafe_code, reason = "pthread calls, and a function resolved by name")]

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;

use hetmem_core::units::PageRange;

use crate::copy::address;
use crate::errno::Errno;
use crate::raw;

type PthreadCreate = unsafe extern "C" fn(
    *mut libc::pthread_t,
    *const libc::pthread_attr_t,
    extern "C" fn(*mut c_void) -> *mut c_void,
    *mut c_void,
) -> c_int;

/// The definition of a C symbol that comes after the calling object's own, null if there is none: what a library that
/// interposes a function calls to reach the real one.
#[must_use]
pub fn next_symbol(name: &CStr) -> *mut c_void {
    // SAFETY: dlsym reads the name and looks it up.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}

/// Runs `entry(arg)` on a new, detached thread whose stack is `stack`, with every signal blocked that a program may
/// block. (glibc's own two stay open: `setuid(2)` waits for every thread to answer one of them.) The C library puts the
/// thread's control block and thread-local storage at the upper end of the stack.
///
/// # Safety
///
/// * `stack` is readable and writable, is used by nobody else, and stays mapped until the thread has ended in the
///   kernel's sense: see [`thread_exists`](super::thread_exists).
/// * `arg` is what `entry` expects, and `entry` may run on another thread.
pub unsafe fn spawn_on(
    stack: PageRange,
    entry: extern "C" fn(*mut c_void) -> *mut c_void,
    arg: *mut c_void,
) -> Result<(), Errno> {
    let mut attr = Attributes::new()?;
    attr.set_stack(stack)?;
    attr.set_detached()?;
    let create = real_pthread_create();
    with_signals_blocked(|| {
        let mut thread = MaybeUninit::uninit();
        // SAFETY: the attributes are initialised; the caller vouches for the stack, the entry and its argument.
        check(unsafe { create(thread.as_mut_ptr(), &raw const attr.0, entry, arg) })
    })?
}

/// `pthread_create` behind any that a preloaded library has put in front of it.
fn real_pthread_create() -> PthreadCreate {
    let found = next_symbol(c"pthread_create");
    if found.is_null() {
        return libc::pthread_create;
    }
    // SAFETY: a symbol of this name has this type in every C library.
    unsafe { std::mem::transmute::<*mut c_void, PthreadCreate>(found) }
}

/// Gives the calling thread a descriptor table of its own, with nothing in it but `keep`, if given. What the thread
/// opens from now on no other thread sees, and no other thread can close.
///
/// # Safety
///
/// Every descriptor but `keep` is closed as far as this thread goes: nothing that this thread runs from now on may use
/// one that was opened before, nor drop one (the number may by then mean another file).
pub unsafe fn unshare_files(keep: Option<std::os::fd::BorrowedFd<'_>>) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    const CLOSE_RANGE_UNSHARE: usize = 2;
    let close = |first: usize, last: usize| {
        // SAFETY: the caller uses none of these descriptors on this thread any more, and the flag leaves the tables of
        // other threads alone.
        unsafe { raw::syscall5(libc::SYS_close_range, [first, last, CLOSE_RANGE_UNSHARE, 0, 0]) }.map(|_| ())
    };
    let last = u32::MAX as usize;
    let Some(keep) = keep.and_then(|fd| usize::try_from(fd.as_raw_fd()).ok()) else { return close(0, last) };
    close(keep + 1, last)?;
    if keep > 0 { close(0, keep - 1) } else { Ok(()) }
}

/// Runs `body` with all signals blocked, and restores the mask.
fn with_signals_blocked<R>(body: impl FnOnce() -> R) -> Result<R, Errno> {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: writes the set.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: reads the set that was filled, writes the old one.
    check(unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) })?;
    let result = body();
    // SAFETY: reads the set that the call above wrote.
    check(unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) })?;
    Ok(result)
}

/// A pthread function's result: 0 or an error number.
fn check(result: c_int) -> Result<(), Errno> {
    if result == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(result)) }
}

/// Thread attributes, destroyed on drop.
struct Attributes(libc::pthread_attr_t);

impl Attributes {
    fn new() -> Result<Self, Errno> {
        let mut attr = MaybeUninit::uninit();
        // SAFETY: writes the attributes.
        check(unsafe { libc::pthread_attr_init(attr.as_mut_ptr()) })?;
        // SAFETY: written by the successful call above.
        Ok(Self(unsafe { attr.assume_init() }))
    }

    fn set_stack(&mut self, stack: PageRange) -> Result<(), Errno> {
        let lowest = std::ptr::with_exposed_provenance_mut(address(stack.start()));
        // SAFETY: records the numbers; the stack is used by `pthread_create` only.
        check(unsafe { libc::pthread_attr_setstack(&raw mut self.0, lowest, stack.pages().as_usize() * 4096) })
    }

    fn set_detached(&mut self) -> Result<(), Errno> {
        // SAFETY: records the state.
        check(unsafe { libc::pthread_attr_setdetachstate(&raw mut self.0, libc::PTHREAD_CREATE_DETACHED) })
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised, and not used again.
        unsafe { libc::pthread_attr_destroy(&raw mut self.0) };
    }
}

//! The handler for touches that userfaultfd reports as SIGBUS (`Features::SIGBUS`): the faulting thread itself brings
//! the page home and goes on.
//!
//! The program's own disposition is kept and gets every SIGBUS that isn't hetmem's, as if hetmem were not there: with
//! the signal mask that it asked for, once only if it asked for that, and ending the program where that is the default.
//!
//! Flags of the installed handler:
//!
//! * not `SA_ONSTACK`: alternate stacks are often a page or two (Rust gives every thread one of that size), which a
//!   migration outgrows; the stack in use always has room, as running out of it is another signal.
//! * not `SA_NODEFER`, and all other signals blocked too: a handler of the program must not run while a page is
//!   half-way home, and a touch of a missing page *inside* the handler is a defect. With the signal blocked the kernel
//!   ends the program there and then, with a core; without, the handler would recur until the stack is gone.
//! * `SA_RESTART`: a system call that a foreign SIGBUS interrupts goes on.
//!
//! *Limits:* one handler a process, and it stays. A program that installs a SIGBUS handler later replaces it. The
//! page that the signal's frame is written to must be there, so stacks are not adopted in this mode.
#![expect(unsafe_code, reason = "signal handlers are C functions on raw pointers")]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use hetmem_core::units::VirtAddr;

use crate::errno::Errno;
use crate::raw;
use crate::thread::{current_tid, next_symbol};

/// Whether a touch was served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handled {
    /// The page is there; the touch is tried again.
    Resolved,
    /// hetmem has nothing to do with this address; the program's own disposition decides.
    NotMine,
}

type SigactionFn = unsafe extern "C" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;

/// All that the handler looks at. Written once, before the handler can run.
struct Installed {
    handler: fn(VirtAddr) -> Handled,
    sigaction: SigactionFn,
    previous: libc::sigaction,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();
/// Whether a previous handler that asked to run once (`SA_RESETHAND`) has run.
static PREVIOUS_SPENT: AtomicBool = AtomicBool::new(false);

/// Makes `handler` the first to see each SIGBUS that a memory access causes. `handler` runs in the thread that touched
/// the address, in the middle of any code: it may use raw system calls and locks that the interrupted thread can't
/// hold, and nothing else. `EALREADY` if a handler is installed.
pub fn install(handler: fn(VirtAddr) -> Handled) -> Result<(), Errno> {
    let sigaction = real_sigaction();
    let mut previous = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: asks for the present disposition, which is written to `previous`.
    check(unsafe { sigaction(libc::SIGBUS, std::ptr::null(), previous.as_mut_ptr()) })?;
    // SAFETY: written by the successful call above.
    let previous = unsafe { previous.assume_init() };
    INSTALLED.set(Installed { handler, sigaction, previous }).map_err(|_| Errno::ALREADY)?;
    let entry: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
    set_disposition(sigaction, entry as usize, libc::SA_SIGINFO | libc::SA_RESTART)
}

/// `sigaction` behind any that a preloaded library has put in front of it.
fn real_sigaction() -> SigactionFn {
    let found = next_symbol(c"sigaction");
    if found.is_null() {
        return libc::sigaction;
    }
    // SAFETY: a symbol of this name has this type in every C library.
    unsafe { std::mem::transmute::<*mut c_void, SigactionFn>(found) }
}

/// Sets the disposition of SIGBUS to `action`, with all signals blocked while it runs.
fn set_disposition(sigaction: SigactionFn, action: usize, flags: c_int) -> Result<(), Errno> {
    let mut new = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the field lies in `new`.
    let mask = unsafe { &raw mut (*new.as_mut_ptr()).sa_mask };
    // SAFETY: writes the set.
    unsafe { libc::sigfillset(mask) };
    // SAFETY: a structure of integers and an optional function, for all of which zeros are valid.
    let mut new = unsafe { new.assume_init() };
    new.sa_sigaction = action;
    new.sa_flags = flags;
    // SAFETY: the action is this module's handler or the default, which are made for any SIGBUS.
    check(unsafe { sigaction(libc::SIGBUS, &raw const new, std::ptr::null_mut()) })
}

/// A C function's result: 0, or −1 for arguments that are wrong (the only reason that `sigaction` has).
fn check(result: c_int) -> Result<(), Errno> {
    if result == 0 { Ok(()) } else { Err(Errno::INVAL) }
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some(installed) = INSTALLED.get() else { return };
    // SAFETY: the kernel passes the description of the signal, which lives until the handler returns.
    let siginfo = unsafe { &*info };
    if siginfo.si_code == libc::BUS_ADRERR {
        // SAFETY: this code says that the field is the address.
        let addr = unsafe { siginfo.si_addr() };
        match (installed.handler)(VirtAddr::new(addr.addr() as u64)) {
            Handled::Resolved => return,
            Handled::NotMine => {}
        }
    }
    chain(installed, signal, info, context);
}

/// Does what would have been done without hetmem.
fn chain(installed: &Installed, signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let previous = &installed.previous;
    // SAFETY: the kernel's description of the signal, as in `on_sigbus`.
    let by_the_kernel = unsafe { (*info).si_code } > 0;
    let once = previous.sa_flags & libc::SA_RESETHAND != 0;
    // Relaxed: the flag guards nothing but itself.
    let spent = once && PREVIOUS_SPENT.swap(true, Ordering::Relaxed);
    match previous.sa_sigaction {
        libc::SIG_IGN if !by_the_kernel => {}
        // The kernel doesn't let a fault be ignored: it ends the program.
        libc::SIG_DFL | libc::SIG_IGN => end_by_default(installed, by_the_kernel),
        _ if spent => end_by_default(installed, by_the_kernel),
        action => {
            let _mask = PreviousMask::set(previous, context);
            if previous.sa_flags & libc::SA_SIGINFO == 0 {
                // SAFETY: the program gave this address as a handler of this form.
                let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(action) };
                handler(signal);
            } else {
                // SAFETY: the program gave this address as a handler of this form.
                let handler = unsafe {
                    std::mem::transmute::<usize, extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)>(action)
                };
                handler(signal, info, context);
            }
        }
    }
}

/// Makes the default happen: the touch is tried again on return and ends the program; a signal that was sent is sent
/// again, and is delivered on return.
fn end_by_default(installed: &Installed, by_the_kernel: bool) {
    let restored = set_disposition(installed.sigaction, libc::SIG_DFL, 0);
    debug_assert_eq!(restored, Ok(()));
    if !by_the_kernel {
        let process = rustix::process::getpid().as_raw_nonzero().get().cast_unsigned() as usize;
        let args = [process, current_tid() as usize, libc::SIGBUS.cast_unsigned() as usize, 0, 0];
        // SAFETY: a signal to this thread, which gets it anyway.
        let _sent = unsafe { raw::syscall5(libc::SYS_tgkill, args) };
    }
}

/// The signal mask under which the kernel would have run the previous handler; the present one is restored on drop.
struct PreviousMask(libc::sigset_t);

impl PreviousMask {
    fn set(previous: &libc::sigaction, context: *mut c_void) -> Option<Self> {
        let context: *const libc::ucontext_t = context.cast();
        // SAFETY: the kernel passes the interrupted context, which lives until the handler returns.
        let mut mask = unsafe { (*context).uc_sigmask };
        for signal in 1..=64 {
            // SAFETY: reads the set.
            let wanted = unsafe { libc::sigismember(&raw const previous.sa_mask, signal) } == 1;
            if wanted || (signal == libc::SIGBUS && previous.sa_flags & libc::SA_NODEFER == 0) {
                // SAFETY: writes the set.
                unsafe { libc::sigaddset(&raw mut mask, signal) };
            }
        }
        let mut before = MaybeUninit::uninit();
        // SAFETY: reads one set, writes the other.
        let result = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const mask, before.as_mut_ptr()) };
        // SAFETY: written if the call was successful.
        (result == 0).then(|| Self(unsafe { before.assume_init() }))
    }
}

impl Drop for PreviousMask {
    fn drop(&mut self) {
        // SAFETY: reads the set.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

//! Signals whose default is to end the process with a core dump, and what the kernel does on them, asked and set by system calls alone: a handler
//! that interrupts the program anywhere uses them.
//!
//! Sources: signal(7) for the list, sigaction(2) and the kernel's `struct sigaction` for the words, core(5) and `vfs_coredump` of fs/coredump.c for
//! who is dumped.
#![expect(unsafe_code, reason = "changes the dispositions of signals, and sends them")]

use std::ffi::{c_int, c_void};

use crate::errno::Errno;
use crate::raw;
use crate::thread::current_tid;

/// The signals whose default is a core dump.
pub const DUMPING: [c_int; 10] = [
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGSYS,
];

/// The least limit on the size of a dump with which a file is written (`min_coredump` of fs/binfmt_elf.c).
const SMALLEST_DUMP: u64 = 4096;
/// The limit by which a handler of dumps that is dumped itself is known: no program is started for it.
const LIMIT_OF_HANDLERS: u64 = 1;

/// What the kernel does on a signal: its `struct sigaction`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Disposition {
    /// `SIG_DFL`, `SIG_IGN`, or a function.
    pub handler: usize,
    /// `SA_*`.
    pub flags: u64,
    /// The function that a handler returns to, where the flags have `SA_RESTORER`.
    pub restorer: usize,
    /// Signals that are blocked meanwhile, signal N as bit N-1.
    pub mask: u64,
}

/// A handler of signals, as the kernel calls it.
pub type Handler = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// `SA_RESTORER`.
#[cfg(target_arch = "x86_64")]
const RESTORER: u64 = 0x0400_0000;

impl Disposition {
    /// `handler` is called with all signals blocked, on the thread's alternate stack if it has one. A system call that it interrupts is not begun
    /// anew: a dump shows the thread behind the call, as it does where there is no handler.
    #[must_use]
    pub fn call(handler: Handler) -> Self {
        let flags = u64::from((libc::SA_SIGINFO | libc::SA_ONSTACK).cast_unsigned());
        let (flags, restorer) = return_by(flags);
        Self { handler: (handler as *const c_void).expose_provenance(), flags, restorer, mask: u64::MAX }
    }

    /// Whether the kernel does the default.
    #[must_use]
    pub const fn is_default(&self) -> bool {
        self.handler == libc::SIG_DFL
    }

    /// Whether the kernel puts the default back when it calls the handler.
    #[must_use]
    pub fn is_once(&self) -> bool {
        self.handler > libc::SIG_IGN && self.flags & u64::from(libc::SA_RESETHAND.cast_unsigned()) != 0
    }

    /// What is done on `signal`.
    pub fn of(signal: c_int) -> Result<Self, Errno> {
        let mut now = Self::default();
        act(signal, None, &mut now)?;
        Ok(now)
    }

    /// Has this done on `signal` from now on; returns what was done before. A function in it is one that may be called for any signal, at any time.
    pub fn set(&self, signal: c_int) -> Result<Self, Errno> {
        let mut before = Self::default();
        act(signal, Some(self), &mut before)?;
        Ok(before)
    }
}

/// `rt_sigaction(2)`.
fn act(signal: c_int, new: Option<&Disposition>, old: &mut Disposition) -> Result<(), Errno> {
    let new = new.map_or(0, |new| std::ptr::from_ref(new).expose_provenance());
    let args = [number(signal), new, std::ptr::from_mut(old).expose_provenance(), size_of::<u64>(), 0];
    // SAFETY: reads one structure and writes the other, which live through the call. What a new handler does is answered for by who names it.
    unsafe { raw::syscall5(libc::SYS_rt_sigaction, args) }.map(|_| ())
}

fn number(signal: c_int) -> usize {
    usize::try_from(signal).unwrap_or(0)
}

#[cfg(target_arch = "x86_64")]
fn return_by(flags: u64) -> (u64, usize) {
    (flags | RESTORER, (restore as *const c_void).expose_provenance())
}

/// The kernel has a function of its own for this.
#[cfg(target_arch = "aarch64")]
const fn return_by(flags: u64) -> (u64, usize) {
    (flags, 0)
}

/// `rt_sigreturn(2)`, in the instructions by which debuggers and unwinders know the frame of a signal.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn restore() {
    std::arch::naked_asm!(".byte 0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00", "syscall")
}

/// Sends `signal` to the calling thread, with `info` as it was, where it is pending until it is no longer blocked; without, where a filter of system
/// calls refuses that. An error if it refuses both.
///
/// # Safety
///
/// `info` is what the kernel gave to a handler of the signal.
pub unsafe fn send_again(signal: c_int, info: *const libc::siginfo_t) -> Result<(), Errno> {
    let (process, thread) = (std::process::id() as usize, current_tid() as usize);
    let args = [process, thread, number(signal), info.expose_provenance(), 0];
    // SAFETY: reads the description; a signal that the thread has had already. To itself a thread may send what the kernel sends
    // (`do_rt_tgsigqueueinfo` of kernel/signal.c).
    if unsafe { raw::syscall5(libc::SYS_rt_tgsigqueueinfo, args) }.is_ok() {
        return Ok(());
    }
    // SAFETY: a signal that the thread has had already.
    unsafe { raw::syscall5(libc::SYS_tgkill, [process, thread, number(signal), 0, 0]) }.map(|_| ())
}

/// Ends the process with the status by which a shell says that `signal` ended it.
pub fn end_as_by(signal: c_int) -> ! {
    loop {
        // SAFETY: ends the process, which is the purpose.
        let _ = unsafe { raw::syscall5(libc::SYS_exit_group, [128 + number(signal), 0, 0, 0, 0]) };
    }
}

/// Whether the kernel writes a dump where this process ends by one of [`DUMPING`], to a file, or to a program if dumps are `piped`.
#[must_use]
pub fn is_dumped(piped: bool) -> bool {
    let mut limit = [0_u64; 2];
    let args = [libc::RLIMIT_CORE as usize, limit.as_mut_ptr().expose_provenance(), 0, 0, 0];
    // SAFETY: writes a `struct rlimit`, two words.
    let known = unsafe { raw::syscall5(libc::SYS_getrlimit, args) }.is_ok();
    let has_room = if piped { limit[0] != LIMIT_OF_HANDLERS } else { limit[0] >= SMALLEST_DUMP };
    let dumpable = [usize::try_from(libc::PR_GET_DUMPABLE).unwrap_or(0), 0, 0, 0, 0];
    // SAFETY: asks for a number: 0 where nobody may see the process's memory.
    known && has_room && unsafe { raw::syscall5(libc::SYS_prctl, dumpable) } != Ok(0)
}

/// Whether dumps go to a program, or to a socket, and not to a file (`/proc/sys/kernel/core_pattern`). `false` where that can't be read.
#[must_use]
pub fn dumps_are_piped() -> bool {
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let mut first = [0];
    rustix::fs::open(c"/proc/sys/kernel/core_pattern", flags, rustix::fs::Mode::empty())
        .and_then(|file| rustix::io::read(&file, &mut first))
        .is_ok_and(|_| matches!(first[0], b'|' | b'@'))
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn nothing(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}

    #[test]
    fn what_is_set_is_told_and_what_was_before_comes_back() {
        let handler = Disposition::call(nothing);
        let before = handler.set(libc::SIGXCPU).unwrap();
        // SIGKILL and SIGSTOP can't be blocked.
        let kept = Disposition { mask: !(1 << 8 | 1 << 18), ..handler };
        assert_eq!(Disposition::of(libc::SIGXCPU), Ok(kept));
        assert_eq!(before.set(libc::SIGXCPU), Ok(kept));
        assert!(before.is_default() && !kept.is_default());
        assert_eq!(Disposition::of(0), Err(Errno::INVAL));
    }

    #[test]
    fn who_is_dumped_depends_on_the_limit_and_on_where_dumps_go() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let before = getrlimit(Resource::Core);
        let dumped = |current| {
            setrlimit(Resource::Core, Rlimit { current, ..before }).unwrap();
            [false, true].map(is_dumped)
        };
        if before.maximum.is_none_or(|most| most >= SMALLEST_DUMP) {
            assert_eq!(dumped(Some(SMALLEST_DUMP)), [true, true]);
            assert_eq!(dumped(before.maximum), [true, true]);
            assert_eq!(dumped(Some(SMALLEST_DUMP - 1)), [false, true]);
            assert_eq!(dumped(Some(1)), [false, false]);
        }
        assert_eq!(dumped(Some(0)), [false, true]);
        setrlimit(Resource::Core, before).unwrap();
    }
}

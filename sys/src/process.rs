//! How much memory the process has, its signals, and its end.
#![expect(unsafe_code, reason = "changes the disposition and the mask of signals, and reads a limit")]

use std::os::fd::OwnedFd;

use hetmem_core::units::{ByteLen, PageCount};
use rustix::fs::{Mode, OFlags};

use crate::errno::Errno;
use crate::raw;
use crate::room::{figure, read};

/// How much memory the process has (`/proc/PID/statm`), and how much could be had (`/proc/meminfo`), kept open.
#[derive(Debug)]
pub struct MemoryUse {
    statm: OwnedFd,
    /// Not everybody sees it.
    meminfo: Option<OwnedFd>,
}

impl MemoryUse {
    /// Opens the calling process's files, the first of which can be read as long as the calling thread lives.
    pub fn open() -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self {
            statm: rustix::fs::open(c"/proc/thread-self/statm", flags, Mode::empty())?,
            meminfo: rustix::fs::open(c"/proc/meminfo", flags, Mode::empty()).ok(),
        })
    }

    /// What the machine has left, in memory and swap (proc_meminfo(5)). A limit of the process's own, or of its control group, may be below.
    pub fn available(&self) -> Result<ByteLen, Errno> {
        let mut table = [0; 2048];
        let meminfo = self.meminfo.as_ref().ok_or(Errno::NOENT)?;
        let text = read(meminfo, &mut table).ok_or(Errno::INVAL)?;
        let swap = figure(text, "SwapFree:").unwrap_or(0);
        figure(text, "MemAvailable:").map(|free| ByteLen::new(free.saturating_add(swap) << 10)).ok_or(Errno::INVAL)
    }

    /// Pages of anonymous memory that are present, about: the kernel counts by processor.
    pub fn anonymous(&self) -> Result<PageCount, Errno> {
        self.pages().map(|(resident, shared)| PageCount::new(resident.saturating_sub(shared)))
    }

    /// Pages that are present, of files and shared memory, too, about.
    pub fn resident(&self) -> Result<PageCount, Errno> {
        self.pages().map(|(resident, _)| PageCount::new(resident))
    }

    fn pages(&self) -> Result<(u64, u64), Errno> {
        let mut line = [0; 160];
        let n = rustix::io::retry_on_intr(|| rustix::io::pread(&self.statm, &mut line, 0))?;
        let text = std::str::from_utf8(&line[..n]).map_err(|_| Errno::INVAL)?;
        let mut fields = text.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
        match (fields.next(), fields.next()) {
            (Some(Ok(resident)), Some(Ok(shared))) => Ok((resident, shared)),
            _ => Err(Errno::INVAL),
        }
    }
}

/// The machine's memory (`sysinfo(2)`).
#[must_use]
pub fn machine_memory() -> ByteLen {
    let system = rustix::system::sysinfo();
    ByteLen::new(system.totalram.saturating_mul(u64::from(system.mem_unit)))
}

/// `RLIMIT_DATA` of the process, in bytes, as it is now: how much private writable memory it may have, hetmem's included.
#[must_use]
pub fn data_limit() -> u64 {
    limit(libc::RLIMIT_DATA)
}

/// `RLIMIT_AS` of the process, in bytes, as it is now: how much address space it may have.
#[must_use]
pub fn address_space_limit() -> u64 {
    limit(libc::RLIMIT_AS)
}

/// `RLIMIT_MEMLOCK` of the process, in bytes, as it is now: how much memory it may lock without `CAP_IPC_LOCK`.
#[must_use]
pub fn lock_limit() -> u64 {
    limit(libc::RLIMIT_MEMLOCK)
}

/// `RLIMIT_FSIZE` of the process, in bytes, as it is now: how long its files may become.
#[must_use]
pub fn file_size_limit() -> u64 {
    limit(libc::RLIMIT_FSIZE)
}

/// `RLIMIT_NOFILE` of the process as it is now: no descriptor of that number, or a greater one, can be opened.
#[must_use]
pub fn descriptor_limit() -> u64 {
    limit(libc::RLIMIT_NOFILE)
}

/// By `getrlimit(2)` itself, as `prlimit(2)`, which the C library asks, could also set limits, and a confined thread does not make it.
fn limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = [u64::MAX; 2];
    let args = [resource as usize, limit.as_mut_ptr().expose_provenance(), 0, 0, 0];
    // SAFETY: writes a `struct rlimit`, two words. Without an answer, from a filter of the program's, there is no limit known.
    match unsafe { raw::syscall5(libc::SYS_getrlimit, args) } {
        Ok(_) => limit[0],
        Err(_) => u64::MAX,
    }
}

/// The signals that a thread had blocked.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct SignalMask(u64);

impl SignalMask {
    /// Blocks all of the calling thread's signals, the C library's own as well; returns what it had.
    pub fn block_all() -> Self {
        Self(set_signal_mask(u64::MAX))
    }

    /// Gives the calling thread what [`SignalMask::block_all`] returned.
    pub fn restore(self) {
        set_signal_mask(self.0);
    }
}

/// Runs `f` with all of the calling thread's signals blocked.
pub fn with_signals_blocked<R>(f: impl FnOnce() -> R) -> R {
    let before = SignalMask::block_all();
    let result = f();
    before.restore();
    result
}

/// By which the C library asks each thread for its part of setuid(2) and the like (nptl(7)); the caller waits until all have done it.
const SET_IDS: u32 = 33;

/// The calling thread, which is one of the C library's, takes no signals of the program's from now on.
pub fn leave_signals_to_others() {
    set_signal_mask(!(1 << (SET_IDS - 1)));
}

/// `rt_sigprocmask(2)`: sets the calling thread's mask, signal N as bit N-1, and returns the one before. Unlike the C library's function it blocks
/// the C library's own signals as well.
pub(crate) fn set_signal_mask(mask: u64) -> u64 {
    let mut before = 0_u64;
    let args = [
        libc::SIG_SETMASK.cast_unsigned() as usize,
        std::ptr::from_ref(&mask).expose_provenance(),
        std::ptr::from_mut(&mut before).expose_provenance(),
        size_of::<u64>(),
        0,
    ];
    // SAFETY: reads one mask and writes the other, which live through the call. It fails for wrong arguments only.
    let _ = unsafe { raw::syscall5(libc::SYS_rt_sigprocmask, args) };
    before
}

/// Ends the calling thread, the last of its process, so that the process ends with `status`, in the form of `wait(2)`: with an exit code, or by
/// SIGKILL.
pub fn end_last_thread(status: i32) -> ! {
    const KILL: usize = libc::SIGKILL as usize;
    let code = usize::try_from(status >> 8 & 0xFF).unwrap_or(0);
    if status & 0x7F != 0 {
        let (process, thread) = (std::process::id() as usize, super::thread::current_tid() as usize);
        // SAFETY: ends the process, which is the purpose.
        let _ = unsafe { raw::syscall5(libc::SYS_tgkill, [process, thread, KILL, 0, 0]) };
    }
    loop {
        // SAFETY: ends the thread, which is the purpose.
        let _ = unsafe { raw::syscall5(libc::SYS_exit, [code, 0, 0, 0, 0]) };
    }
}

/// Ends the process with SIGABRT at once: the program's own handler for it, if any, does not run, as it might touch memory
/// that is no longer whole. By system calls alone: the C library's `abort` takes locks that a thread may hold for ever.
pub fn die() -> ! {
    const ABORT: usize = libc::SIGABRT as usize;
    // The kernel's `struct sigaction` of the default disposition: all zeros, on every architecture.
    let default = [0_u64; 4];
    let action = [ABORT, default.as_ptr().expose_provenance(), 0, size_of::<u64>(), 0];
    // SAFETY: no handler of the program's is to run any more, which is all that this changes.
    let _ = unsafe { raw::syscall5(libc::SYS_rt_sigaction, action) };
    set_signal_mask(!(1 << (libc::SIGABRT - 1)));
    let (process, thread) = (std::process::id() as usize, super::thread::current_tid() as usize);
    // SAFETY: ends the process, which is the purpose.
    let _ = unsafe { raw::syscall5(libc::SYS_tgkill, [process, thread, ABORT, 0, 0]) };
    loop {
        // Where the signal could not be sent, or is not acted on (the first process of a namespace).
        // SAFETY: ends the process, which is the purpose.
        let _ = unsafe { raw::syscall5(libc::SYS_exit_group, [128 + ABORT, 0, 0, 0, 0]) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_left_is_some_and_no_more_than_there_is() {
        let left = MemoryUse::open().unwrap().available().unwrap();
        assert!(left.get() > 0 && left.get() >> 50 == 0, "{left}");
    }
}

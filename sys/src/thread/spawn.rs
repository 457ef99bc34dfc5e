//! Threads of which the C library knows nothing, and their descriptor tables.
//!
//! A thread from `pthread_create(3)` counts: a program whose last thread returns goes on for its sake, `setuid(3)` has it change its ids and aborts
//! if it can't, and it answers to nobody but the C library. So an agent's thread is made by `clone(2)`. Its thread-local storage is
//! [`tls`](super::tls)'s.
//!
//! *Limits:* on such a thread no function of the C library may be called that allocates, locks what the program's threads lock, or asks who the
//! calling thread is. Functions that are their arguments' alone (`memcpy`) and system calls are right.
#![expect(unsafe_code, reason = "clone, and a function resolved by name")]

use std::ffi::{CStr, c_void};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicU32, Ordering};

use hetmem_core::units::{PageCount, PageRange, VirtAddr};

use super::tls::{self, Block};
use super::wait::{thread_exists, yield_now};
use crate::copy::address;
use crate::errno::Errno;
use crate::mapping::{Arena, ArenaOptions, HugePages};
use crate::raw;

/// The definition of a C symbol that comes after the calling object's own, null if there is none: what a library that
/// interposes a function calls to reach the real one.
#[must_use]
pub fn next_symbol(name: &CStr) -> *mut c_void {
    // SAFETY: dlsym reads the name and looks it up.
    unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) }
}

/// A stack, and above it thread-local storage, for one thread at a time. It is never unmapped.
#[derive(Debug)]
pub struct Stack {
    /// All of it.
    range: PageRange,
    /// Where the stack begins, downwards.
    top: VirtAddr,
    storage: Block,
    /// The number of the thread on it: 0 before it starts, and again when the kernel lets go of the stack.
    tid: AtomicU32,
    /// The number of the last thread on it.
    last: AtomicU32,
}

impl Stack {
    /// One of `pages` pages, with storage for the modules that the calling thread has storage for.
    ///
    /// # Errors
    ///
    /// If there is no memory for it.
    pub fn new(pages: PageCount) -> Result<Self, Errno> {
        let plan = tls::Plan::of_this_thread();
        let options =
            ArenaOptions { huge_pages: HugePages::Never, name: Some(c"hetmem:stack"), ..ArenaOptions::default() };
        let arena = ManuallyDrop::new(Arena::reserve(pages + plan.pages(), &options)?);
        let range = arena.range();
        let rest = range.slice(pages, plan.pages());
        // SAFETY: fresh memory, which nobody else uses and nobody unmaps.
        let storage = unsafe { plan.build(rest) };
        Ok(Self { range, top: rest.start(), storage, tid: AtomicU32::new(0), last: AtomicU32::new(0) })
    }

    /// Runs `entry(arg)` on a new thread on this stack, with every signal blocked. The thread ends when `entry` returns. The result is its number.
    ///
    /// # Errors
    ///
    /// `EBUSY` if a thread is on it; else what `clone(2)` says.
    ///
    /// # Safety
    ///
    /// `arg` is what `entry` expects, which may run on another thread and does what such a thread may do (see the module).
    pub unsafe fn start(&'static self, entry: extern "C" fn(*mut c_void), arg: *mut c_void) -> Result<u32, Errno> {
        // Relaxed: the kernel orders what it writes with the new thread's first step.
        self.tid.compare_exchange(0, u32::MAX, Ordering::Relaxed, Ordering::Relaxed).map_err(|_| Errno::BUSY)?;
        let flags = libc::CLONE_VM
            | libc::CLONE_FS
            | libc::CLONE_FILES
            | libc::CLONE_SIGHAND
            | libc::CLONE_THREAD
            | libc::CLONE_SYSVSEM
            | libc::CLONE_SETTLS
            | libc::CLONE_PARENT_SETTID
            | libc::CLONE_CHILD_CLEARTID;
        let cloned = with_signals_blocked(|| {
            // SAFETY: the stack and the storage are this thread's alone, by the exchange above, and stay; the caller vouches for the entry.
            unsafe {
                clone_thread(
                    flags.cast_unsigned() as usize,
                    address(self.top),
                    self.tid.as_ptr(),
                    self.storage.pointer(),
                    entry,
                    arg,
                )
            }
        });
        match raw::decode(cloned) {
            Ok(tid) => {
                let tid = u32::try_from(tid).unwrap_or(0);
                self.last.store(tid, Ordering::Release);
                Ok(tid)
            }
            Err(errno) => {
                self.tid.store(0, Ordering::Relaxed);
                Err(errno)
            }
        }
    }

    /// Returns once the thread that was on it has ended, so that the kernel does not count it among the process's any more.
    pub fn wait_ended(&self) {
        loop {
            // Acquire: what the thread did is seen by whoever uses the stack next.
            let tid = self.tid.load(Ordering::Acquire);
            if tid == 0 {
                break;
            }
            // The kernel's own wake-up is one for all processes, as it does not know who waits. Every error is a reason to look again.
            let _ = rustix::thread::futex::wait(&self.tid, rustix::thread::futex::Flags::empty(), tid, None);
        }
        // The kernel lets go of the memory first, and of the thread a little later.
        let last = self.last.load(Ordering::Acquire);
        while last != 0 && thread_exists(last) {
            yield_now();
        }
    }

    /// In a forked child, which has its parent's stacks and nobody on them.
    pub fn forget_thread(&self) {
        self.tid.store(0, Ordering::Relaxed);
        self.last.store(0, Ordering::Relaxed);
    }

    /// Its pages, storage included.
    #[must_use]
    pub const fn range(&self) -> PageRange {
        self.range
    }
}

/// `clone(2)` of a thread that runs `entry(arg)` and ends; the result is the kernel's.
///
/// # Safety
///
/// `top` is the end of a stack, aligned to 16, and `storage` a thread pointer, which nobody else uses until the thread has ended; `tid` stays.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn clone_thread(
    flags: usize,
    top: usize,
    tid: *mut u32,
    storage: usize,
    entry: extern "C" fn(*mut c_void),
    arg: *mut c_void,
) -> isize {
    std::arch::naked_asm!(
        // The new thread finds what it runs on its stack.
        "mov [rsi - 16], r8",
        "mov [rsi - 8], r9",
        "sub rsi, 16",
        "mov r10, rdx", // child_tid; parent_tid is in place
        "mov r8, rcx",  // tls
        "mov eax, {clone}",
        "syscall",
        "test rax, rax",
        "jz 2f",
        "ret",
        "2:",
        "xor ebp, ebp",
        "pop rax",
        "pop rdi",
        "call rax",
        "xor edi, edi",
        "mov eax, {exit}",
        "syscall",
        "ud2",
        clone = const libc::SYS_clone,
        exit = const libc::SYS_exit,
    )
}

/// `clone(2)` of a thread that runs `entry(arg)` and ends; the result is the kernel's.
///
/// # Safety
///
/// `top` is the end of a stack, aligned to 16, and `storage` a thread pointer, which nobody else uses until the thread has ended; `tid` stays.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
unsafe extern "C" fn clone_thread(
    flags: usize,
    top: usize,
    tid: *mut u32,
    storage: usize,
    entry: extern "C" fn(*mut c_void),
    arg: *mut c_void,
) -> isize {
    std::arch::naked_asm!(
        // The new thread finds what it runs on its stack.
        "stp x4, x5, [x1, #-16]!",
        "mov x4, x2", // child_tid; parent_tid and tls are in place
        "mov x8, {clone}",
        "svc 0",
        "cbz x0, 2f",
        "ret",
        "2:",
        "mov x29, xzr",
        "ldp x9, x0, [sp], #16",
        "blr x9",
        "mov x0, xzr",
        "mov x8, {exit}",
        "svc 0",
        "udf 0",
        clone = const libc::SYS_clone,
        exit = const libc::SYS_exit,
    )
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

/// Gives the calling thread a working and a root directory of its own: what the program's threads do to theirs (`chroot(2)`, `setns(2)`, which is
/// refused to who shares them) does not concern it.
pub fn unshare_directories() -> Result<(), Errno> {
    // SAFETY: the thread's directories are what they were.
    unsafe { raw::syscall5(libc::SYS_unshare, [libc::CLONE_FS.cast_unsigned() as usize, 0, 0, 0, 0]) }.map(|_| ())
}

/// Runs `body` with all signals blocked, those that the C library keeps for itself too, and restores the mask.
fn with_signals_blocked<R>(body: impl FnOnce() -> R) -> R {
    let before = crate::process::set_signal_mask(u64::MAX);
    let result = body();
    crate::process::set_signal_mask(before);
    result
}

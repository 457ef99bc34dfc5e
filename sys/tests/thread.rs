//! Threads on given stacks.
#![allow(unsafe_code, reason = "starts threads on memory named by number")]

mod common;

use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use common::{in_own_process, populated_pages};
use hetmem_core::units::{PageCount, PageRange};
use hetmem_sys::errno::Errno;
use hetmem_sys::thread::{current_tid, dtv_extent, futex_wait, futex_wake, spawn_on, thread_exists, unshare_files};

/// What a thread on a given stack found out about itself.
#[derive(Default)]
struct Findings {
    done: AtomicU32,
    tid: AtomicU32,
    stack_word: AtomicU64,
    blocked_signals: AtomicU64,
    descriptor: AtomicU32,
    saw_descriptor: AtomicU32,
}

impl Findings {
    fn finish(&self) {
        // Release pairs with the Acquire in `await_end`.
        self.done.store(1, Ordering::Release);
        futex_wake(&self.done, 1).unwrap();
    }

    /// Waits until the thread has finished and the kernel has ended it.
    fn await_end(&self) {
        while self.done.load(Ordering::Acquire) == 0 {
            match futex_wait(&self.done, 0, None) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => panic!("{errno}"),
            }
        }
        while thread_exists(self.tid.load(Ordering::Relaxed)) {
            hetmem_sys::thread::yield_now();
        }
    }
}

fn run(stack: PageRange, entry: extern "C" fn(*mut c_void) -> *mut c_void) -> Findings {
    let findings = Findings::default();
    let arg = std::ptr::from_ref(&findings).cast_mut().cast();
    // SAFETY: the stack and the findings outlive the thread, whose end is awaited below; the entries here take
    // findings.
    unsafe { spawn_on(stack, entry, arg) }.unwrap();
    findings.await_end();
    findings
}

/// The findings behind the argument of an entry.
fn findings<'a>(arg: *mut c_void) -> &'a Findings {
    // SAFETY: `run` passes findings that outlive the thread.
    unsafe { &*arg.cast::<Findings>() }
}

extern "C" fn look_around(arg: *mut c_void) -> *mut c_void {
    let found = findings(arg);
    let on_stack = 0u64;
    found.tid.store(current_tid(), Ordering::Relaxed);
    found.stack_word.store(std::ptr::from_ref(&on_stack).expose_provenance() as u64, Ordering::Relaxed);
    let status = std::fs::read_to_string(format!("/proc/self/task/{}/status", current_tid())).unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
    found.blocked_signals.store(u64::from_str_radix(blocked.trim(), 16).unwrap(), Ordering::Relaxed);
    assert!(dtv_extent().is_some());
    found.finish();
    std::ptr::null_mut()
}

fn blocked_here() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
    u64::from_str_radix(blocked.trim(), 16).unwrap()
}

#[test]
fn a_thread_runs_on_its_stack_with_signals_blocked_and_leaves_the_mask_here_alone() {
    let stack = populated_pages(64);
    let before = blocked_here();
    let found = run(stack.range(), look_around);
    assert_eq!(blocked_here(), before);
    assert!(stack.range().contains(hetmem_core::units::VirtAddr::new(found.stack_word.load(Ordering::Relaxed))));
    // All but SIGKILL and SIGSTOP, which can't be, and the two that glibc keeps for itself.
    let open = [9, 19, 32, 33].map(|signal: u64| 1 << (signal - 1)).into_iter().sum::<u64>();
    assert_eq!(found.blocked_signals.load(Ordering::Relaxed), !open);
}

#[test]
fn a_stack_that_is_too_small_is_refused() {
    let stack = populated_pages(1);
    let refused = PageRange::new(stack.range().start(), PageCount::ONE).unwrap();
    // SAFETY: nothing starts on a stack of one page.
    assert_eq!(unsafe { spawn_on(refused, look_around, std::ptr::null_mut()) }, Err(Errno::INVAL));
}

extern "C" fn leave_the_table(arg: *mut c_void) -> *mut c_void {
    let found = findings(arg);
    found.tid.store(current_tid(), Ordering::Relaxed);
    // SAFETY: this thread has nothing open.
    unsafe { unshare_files(None) }.unwrap();
    let number = i32::try_from(found.descriptor.load(Ordering::Acquire)).unwrap();
    // SAFETY: only asked about.
    let theirs = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    found.saw_descriptor.store(u32::from(rustix::io::fcntl_getfd(theirs).is_ok()), Ordering::Relaxed);
    // What this thread opens gets the lowest number of an empty table.
    let own = std::fs::File::open("/dev/null").unwrap();
    found.descriptor.store(u32::try_from(own.as_raw_fd()).unwrap(), Ordering::Relaxed);
    // The program can't be seen through a path either, but its memory can.
    assert!(hetmem_sys::pagemap::PagemapScanner::open().is_ok());
    drop(own);
    found.finish();
    std::ptr::null_mut()
}

#[test]
fn a_thread_with_a_table_of_its_own_shares_no_descriptor_with_the_program() {
    let stack = populated_pages(64);
    let kept = std::fs::File::open("/dev/null").unwrap();
    let findings = Findings::default();
    findings.descriptor.store(u32::try_from(kept.as_raw_fd()).unwrap(), Ordering::Release);
    let arg = std::ptr::from_ref(&findings).cast_mut().cast();
    // SAFETY: the stack and the findings outlive the thread, whose end is awaited.
    unsafe { spawn_on(stack.range(), leave_the_table, arg) }.unwrap();
    findings.await_end();
    assert_eq!(findings.saw_descriptor.load(Ordering::Relaxed), 0);
    assert_eq!(findings.descriptor.load(Ordering::Relaxed), 0);
    // Here everything is as it was.
    assert!(rustix::io::fcntl_getfd(&kept).is_ok());
}

#[test]
fn one_descriptor_can_be_kept() {
    let status = in_own_process("one_descriptor_can_be_kept", || {
        let kept = std::fs::File::open("/dev/null").unwrap();
        let other = std::fs::File::open("/dev/null").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                use std::os::fd::AsFd;
                // SAFETY: this thread uses the kept descriptor and asks about the other.
                unsafe { unshare_files(Some(kept.as_fd())) }.unwrap();
                assert!(rustix::io::fcntl_getfd(&kept).is_ok());
                assert_eq!(rustix::io::fcntl_getfd(&other), Err(Errno::BADF));
            });
        });
        assert!(rustix::io::fcntl_getfd(&other).is_ok());
    });
    assert!(status.success());
}

#[test]
fn setuid_does_not_wait_for_a_thread_with_signals_blocked() {
    extern "C" fn wait_for_release(arg: *mut c_void) -> *mut c_void {
        let found = findings(arg);
        found.tid.store(current_tid(), Ordering::Release);
        while found.descriptor.load(Ordering::Acquire) == 0 {
            let _woken = futex_wait(&found.descriptor, 0, None);
        }
        found.finish();
        std::ptr::null_mut()
    }
    let status = in_own_process("setuid_does_not_wait_for_a_thread_with_signals_blocked", || {
        let stack = populated_pages(64);
        let findings = Findings::default();
        let arg = std::ptr::from_ref(&findings).cast_mut().cast();
        // SAFETY: the stack and the findings outlive the thread, whose end is awaited.
        unsafe { spawn_on(stack.range(), wait_for_release, arg) }.unwrap();
        let own = rustix::process::getuid().as_raw();
        // SAFETY: sets what is set already.
        assert_eq!(unsafe { libc::setuid(own) }, 0);
        findings.descriptor.store(1, Ordering::Release);
        futex_wake(&findings.descriptor, 1).unwrap();
        findings.await_end();
    });
    assert!(status.success());
}

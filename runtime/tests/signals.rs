//! Signals of the program, none of which is a runtime's. They are a whole process's, so each test has a child of its own.
#![expect(unsafe_code, reason = "forks, signals")]

mod common;

use std::fs::OpenOptions;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::time::Instant;

use common::file::{all_moved, file, map};
use common::{PRIVATE, builder, to};
use hetmem::{ByteLen, FaultPath, PAGE_SIZE};

/// Runs `f` in a child that has one thread; true if it says so.
fn in_a_child(f: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child goes on in this thread, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: this process's alarm, by which it ends if it waits for ever.
        unsafe { libc::alarm(60) };
        let right = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(false);
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(!right)) };
    }
    let mut status = -1;
    // SAFETY: waits for the child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(!libc::WIFSIGNALED(status), "ended by signal {}", libc::WTERMSIG(status));
    status == 0
}

/// A set of `signal` alone.
fn only(signal: libc::c_int) -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: makes the set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: made just now.
    unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    // SAFETY: as above.
    unsafe { set.assume_init() }
}

/// Has this thread block `signal`, or not any more.
fn mask(how: libc::c_int, signal: libc::c_int) {
    // SAFETY: reads the set.
    assert_eq!(unsafe { libc::pthread_sigmask(how, &only(signal), std::ptr::null_mut()) }, 0);
}

/// Sends `signal` to the process as a whole.
fn send(signal: libc::c_int) {
    let this = std::process::id().cast_signed();
    // SAFETY: to this process.
    assert_eq!(unsafe { libc::kill(this, signal) }, 0);
}

/// Whether `signal`, which this thread has blocked, has come; it is taken.
fn take(signal: libc::c_int) -> bool {
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: reads the set and the time.
    unsafe { libc::sigtimedwait(&only(signal), std::ptr::null_mut(), &at_once) == signal }
}

/// What the handler reads, and how often it has.
static AWAY: AtomicPtr<u64> = AtomicPtr::new(std::ptr::null_mut());
static READ: AtomicU64 = AtomicU64::new(0);

extern "C" fn reads(_: libc::c_int) {
    // SAFETY: managed memory, which lives as long as the process.
    READ.fetch_add(unsafe { AWAY.load(Ordering::Relaxed).read_volatile() }, Ordering::Relaxed);
}

/// Served by the thread that would wait for itself.
#[test]
fn a_handler_that_touches_what_is_away_never_runs_on_a_thread_that_serves_touches() {
    assert!(in_a_child(|| {
        let runtime = builder().start().unwrap();
        let mapping = runtime.map(ByteLen::new(PAGE_SIZE), FaultPath::Thread).unwrap();
        let word = mapping.as_ptr().cast::<u64>();
        AWAY.store(word, Ordering::Relaxed);
        // SAFETY: the mapping's first word.
        unsafe { word.write(7) };
        // SAFETY: a handler that reads it.
        unsafe { libc::signal(libc::SIGUSR1, reads as *const () as libc::sighandler_t) };
        mask(libc::SIG_BLOCK, libc::SIGUSR1);
        for round in 1..=10 {
            assert_eq!(runtime.migrate(mapping.range(), to(PRIVATE)).moved().get(), 1);
            send(libc::SIGUSR1);
            // A touch of this thread's, beside the handler, if it runs.
            // SAFETY: as above.
            assert_eq!(unsafe { word.read_volatile() }, 7);
            assert_eq!(READ.load(Ordering::Relaxed), 7 * (round - 1), "it waits for a thread of the program's");
            assert_eq!(runtime.migrate(mapping.range(), to(PRIVATE)).moved().get(), 1);
            mask(libc::SIG_UNBLOCK, libc::SIGUSR1);
            assert_eq!(READ.load(Ordering::Relaxed), 7 * round);
            mask(libc::SIG_BLOCK, libc::SIGUSR1);
        }
        true
    }));
}

/// The C library asks each thread to change its own, and waits for it.
#[test]
fn a_program_with_a_runtime_can_change_its_user() {
    assert!(in_a_child(|| {
        let runtime = builder().start().unwrap();
        let path = file();
        let mapping = map(&runtime, &path);
        all_moved(&runtime.migrate(mapping.range(), to(PRIVATE)));
        // SAFETY: no more than asks who it is.
        let user = unsafe { libc::getuid() };
        // SAFETY: to what it is.
        unsafe { libc::setuid(user) == 0 }
    }));
}

#[test]
fn sigio_is_the_programs_while_leases_are_kept() {
    assert!(in_a_child(|| {
        let runtime = builder().start().unwrap();
        let path = file();
        let mapping = map(&runtime, &path);
        let written = || drop(OpenOptions::new().write(true).open(&path).unwrap());
        mask(libc::SIG_BLOCK, libc::SIGIO);
        for _ in 0..10 {
            send(libc::SIGIO);
            for _ in 0..2 {
                all_moved(&runtime.migrate(mapping.range(), to(PRIVATE)));
                written();
            }
            assert!(take(libc::SIGIO));
        }
        all_moved(&runtime.migrate(mapping.range(), to(PRIVATE)));
        // SAFETY: no handler.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
        let limit = std::fs::read_to_string("/proc/sys/fs/lease-break-time").unwrap();
        let began = Instant::now();
        written();
        // Otherwise the kernel takes the lease then.
        began.elapsed().as_secs() + 1 < limit.trim().parse().unwrap()
    }));
}

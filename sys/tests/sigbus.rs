//! Faults that are reported as SIGBUS. A handler is for good, so each test runs in a process of its own.
#![allow(unsafe_code, reason = "raises and handles signals")]

mod common;

use std::ffi::{c_int, c_void};
use std::os::unix::process::ExitStatusExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{MOVES, in_own_process, open, pages, read};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::sigbus::{Handled, install};
use hetmem_sys::uffd::{CopyFlags, Features, Mode, Userfaultfd};

/// What the handler serves faults from: a context, the memory, and pages to copy in.
static SERVED: OnceLock<(Userfaultfd, PageRange, VirtAddr)> = OnceLock::new();
static LAST_FOREIGN: AtomicU64 = AtomicU64::new(0);

fn serve(addr: VirtAddr) -> Handled {
    match SERVED.get() {
        Some((uffd, memory, source)) if memory.contains(addr) => {
            // SAFETY: a hole of the test's memory, filled from pages that nobody writes.
            let copied = unsafe { uffd.copy(addr.page_down(), *source, PageCount::ONE, CopyFlags::NONE) };
            assert!(copied.is_complete() || copied.stop == Some(Errno::EXIST));
            Handled::Resolved
        }
        _ => {
            LAST_FOREIGN.store(addr.get(), Ordering::Relaxed);
            Handled::NotMine
        }
    }
}

/// Memory whose touch raises SIGBUS in any program: a mapping beyond the end of its file.
fn beyond_the_end() -> VirtAddr {
    use rustix::mm::{MapFlags, ProtFlags};
    let file = rustix::fs::memfd_create(c"hetmem-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
    let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, ProtFlags::READ, MapFlags::SHARED, file, 0) };
    VirtAddr::new(start.unwrap().expose_provenance() as u64)
}

/// Sets the program's own disposition.
fn set_disposition(action: usize, flags: c_int) {
    // SAFETY: a structure of integers and an optional function, for all of which zeros are valid.
    let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
    new.sa_sigaction = action;
    new.sa_flags = flags;
    // SAFETY: writes the set.
    unsafe { libc::sigaddset(&raw mut new.sa_mask, libc::SIGUSR1) };
    // SAFETY: the tests pass handlers of the form that the flags say.
    assert_eq!(unsafe { libc::sigaction(libc::SIGBUS, &raw const new, std::ptr::null_mut()) }, 0);
}

#[test]
fn a_touch_of_a_missing_page_is_served_in_the_thread_that_touches() {
    let status = in_own_process("a_touch_of_a_missing_page_is_served_in_the_thread_that_touches", || {
        let (memory, source) = (pages(64), common::populated_pages(1));
        let Some(uffd) = open(MOVES | Features::SIGBUS) else { return };
        common::write(source.range().start(), 42);
        uffd.register(memory.range(), Mode::MISSING).unwrap();
        // A system call that can't be served fails and raises nothing.
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let there: *const u8 =
            std::ptr::with_exposed_provenance(usize::try_from(memory.range().start().get()).unwrap());
        // SAFETY: mapped memory of the test's own; only the kernel reads it.
        let call = rustix::io::write(writer, unsafe { std::slice::from_raw_parts(there, 1) });
        assert_eq!(call, Err(Errno::FAULT));
        assert!(SERVED.set((uffd, memory.range(), source.range().start())).is_ok());
        install(serve).unwrap();
        assert_eq!(install(serve), Err(Errno::ALREADY));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| memory.range().iter().for_each(|page| assert_eq!(read(page), 42)));
            }
        });
    });
    assert!(status.success(), "{status}");
}

#[test]
fn a_fault_that_is_not_ours_ends_the_program_as_it_would_have_ended() {
    let name = "a_fault_that_is_not_ours_ends_the_program_as_it_would_have_ended";
    let status = in_own_process(name, || {
        set_disposition(libc::SIG_DFL, 0);
        install(serve).unwrap();
        read(beyond_the_end());
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

#[test]
fn an_ignored_fault_still_ends_the_program_and_an_ignored_signal_does_not() {
    let name = "an_ignored_fault_still_ends_the_program_and_an_ignored_signal_does_not";
    let status = in_own_process(name, || {
        set_disposition(libc::SIG_IGN, 0);
        install(serve).unwrap();
        // SAFETY: a signal to this thread.
        assert_eq!(unsafe { libc::raise(libc::SIGBUS) }, 0);
        assert_eq!(LAST_FOREIGN.load(Ordering::Relaxed), 0, "a signal that was sent has no address");
        read(beyond_the_end());
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

#[test]
fn a_sent_signal_ends_the_program_where_that_is_the_default() {
    let status = in_own_process("a_sent_signal_ends_the_program_where_that_is_the_default", || {
        set_disposition(libc::SIG_DFL, 0);
        install(serve).unwrap();
        // SAFETY: a signal to this thread.
        unsafe { libc::raise(libc::SIGBUS) };
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

/// Whether a signal is blocked in the calling thread.
fn is_blocked(signal: c_int) -> bool {
    let mut mask = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: asks for the mask.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), mask.as_mut_ptr()) };
    // SAFETY: reads the set that the call above wrote.
    unsafe { libc::sigismember(mask.as_ptr(), signal) == 1 }
}

/// A handler of the program's: ends it with 7 if it is called as the program asked for, else with 8.
extern "C" fn programs_handler(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel's description of the signal.
    let info = unsafe { &*info };
    // SAFETY: the tests raise faults only, which have an address.
    let addr = unsafe { info.si_addr() };
    let blocked = [libc::SIGBUS, libc::SIGUSR1, libc::SIGUSR2, libc::SIGTERM].map(is_blocked);
    let right = signal == libc::SIGBUS
        && addr.addr() as u64 == LAST_FOREIGN.load(Ordering::Relaxed)
        && blocked == [true, true, false, false];
    // SAFETY: ends the process.
    unsafe { libc::_exit(if right { 7 } else { 8 }) };
}

#[test]
fn the_programs_own_handler_gets_a_fault_that_is_not_ours_with_the_mask_that_it_asked_for() {
    let name = "the_programs_own_handler_gets_a_fault_that_is_not_ours_with_the_mask_that_it_asked_for";
    let status = in_own_process(name, || {
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = programs_handler;
        set_disposition(handler as usize, libc::SA_SIGINFO);
        install(serve).unwrap();
        read(beyond_the_end());
    });
    assert_eq!(status.code(), Some(7));
}

static CALLS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count(_: c_int) {
    CALLS.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn a_handler_that_asked_to_run_once_runs_once() {
    let status = in_own_process("a_handler_that_asked_to_run_once_runs_once", || {
        let handler: extern "C" fn(c_int) = count;
        set_disposition(handler as usize, libc::SA_RESETHAND);
        install(serve).unwrap();
        // SAFETY: a signal to this thread.
        unsafe { libc::raise(libc::SIGBUS) };
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
        assert!(!is_blocked(libc::SIGBUS) && !is_blocked(libc::SIGUSR1), "the mask is as before");
        // SAFETY: a signal to this thread.
        unsafe { libc::raise(libc::SIGBUS) };
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS));
}

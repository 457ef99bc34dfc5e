//! Forks by the C library while everybody is at work: a fork is one of the whole process, so this test has one of its own.
#![expect(unsafe_code, reason = "forks")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use common::{COHERENT, PRIVATE, fill, map, runtime, to, verify, wrong_page};
use hetmem::{FaultPath, Request, Runtime, Target};
use hetmem_core::units::PageCount;
use hetmem_sys::probe::Capabilities;

const ROUNDS: usize = 400;

/// Migrates, maps and unmaps, each of which allocates, and touches what is away, until told to stop.
fn work(runtime: &Runtime, over: &AtomicBool) {
    while !over.load(Relaxed) {
        let mapping = map(runtime, 64, FaultPath::Thread);
        fill(&mapping);
        for target in [to(PRIVATE), to(COHERENT), to(PRIVATE), Request::all_to(Target::System)] {
            // Where a page is kept, a fork has just shared it.
            let _outcomes = runtime.migrate(mapping.range(), target);
            verify(&mapping);
        }
    }
}

/// What `fork(3)` says.
fn fork() -> i32 {
    // SAFETY: the child reads memory, makes system calls, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    child
}

#[test]
fn forks_wait_for_nobody_who_waits_for_the_allocator() {
    let runtime = runtime();
    let told = Capabilities::probe().fork_event.is_ok();
    let mapping = map(&runtime, 128, FaultPath::Thread);
    fill(&mapping);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| work(&runtime, &over));
        }
        for round in 0..ROUNDS {
            // Half of it is away, if children are given what is.
            let away = mapping.range().slice(PageCount::ZERO, PageCount::new(64));
            let _outcomes = runtime.migrate(away, if told { to(PRIVATE) } else { to(COHERENT) });
            let child = fork();
            if child == 0 {
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(i32::from(wrong_page(&mapping).is_some())) };
            }
            let mut status = -1;
            // SAFETY: the child is this test's own.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "round {round}: the child reads what its parent wrote");
        }
        over.store(true, Relaxed);
    });
    verify(&mapping);
}

/// Its descriptors name the parent's memory.
#[test]
fn a_child_changes_nothing_of_its_parents() {
    let runtime = runtime();
    let mapping = map(&runtime, 16, FaultPath::Thread);
    fill(&mapping);
    runtime.migrate(mapping.range(), to(COHERENT));
    let before = runtime.residency(mapping.range());
    let child = fork();
    if child == 0 {
        let moved = runtime.migrate(mapping.range(), to(PRIVATE)).moved();
        let released = runtime.release(mapping.range()).is_ok();
        drop(mapping);
        drop(runtime);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(!moved.is_zero() || released)) };
    }
    let mut status = -1;
    // SAFETY: the child is this test's own.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(runtime.residency(mapping.range()), before);
    verify(&mapping);
}

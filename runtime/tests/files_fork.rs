//! Files whose pages are on devices when the process forks. A fork is one of the whole process, so these tests have one of their own.
#![expect(unsafe_code, reason = "forks")]

mod common;

use std::fs::OpenOptions;
use std::sync::Mutex;
use std::time::Instant;

use common::file::{PAGES, all_moved, file, is_page, map, read, verify};
use common::{COHERENT, PRIVATE, builder, runtime, to};
use hetmem::{KeptReason, PAGE_SIZE};

/// One at a time: a child has what another test has open for writing.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_forked_child_has_the_file() {
    let _alone = ALONE.lock().unwrap();
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    for device in [COHERENT, PRIVATE] {
        all_moved(&runtime.migrate(mapping.range(), to(device)));
        // SAFETY: the child reads, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let right = (0..PAGES).all(|page| is_page(&mapping, page, 0));
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!right)) };
        }
        let mut status = -1;
        // SAFETY: waits for the child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the child reads the file");
        verify(&mapping, 0);
        runtime.check();
    }
}

#[test]
fn a_child_that_lives_on_keeps_no_writer_waiting() {
    let _alone = ALONE.lock().unwrap();
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    let (gate, open) = std::io::pipe().unwrap();
    // SAFETY: the child waits, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(open);
        let _ = std::io::Read::read(&mut &gate, &mut [0]);
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    drop(gate);
    all_moved(&runtime.migrate(mapping.range(), to(PRIVATE)));
    let began = Instant::now();
    drop(OpenOptions::new().write(true).open(&path).unwrap());
    assert!(began.elapsed().as_secs() < 20, "the lease was given up, not taken");
    all_moved(&runtime.migrate(mapping.range(), to(PRIVATE)));
    drop(mapping);
    let began = Instant::now();
    drop(OpenOptions::new().write(true).open(&path).unwrap());
    assert!(began.elapsed().as_secs() < 20, "nor does the end of the mapping leave it behind");
    drop(open);
    // SAFETY: waits for the child.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
}

#[test]
fn a_file_that_shrinks_raises_the_signal_that_it_always_has() {
    let _alone = ALONE.lock().unwrap();
    let path = file();
    // SAFETY: the child has one thread and a runtime of its own, and ends by the signal.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let runtime = builder().start().unwrap();
        let mapping = map(&runtime, &path);
        let moved = runtime.migrate(mapping.range(), to(COHERENT)).moved().get();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(PAGE_SIZE * 600).unwrap();
        let right = moved == PAGES as u64 && (0..600).all(|page| is_page(&mapping, page, 0));
        let kept = runtime.migrate(mapping.range(), to(COHERENT));
        let unreadable = kept.kept(KeptReason::FileUnreadable).get();
        if !right || (kept.moved().get(), unreadable) != (512, PAGES as u64 - 512) || !is_page(&mapping, 599, 0) {
            // SAFETY: ends the child.
            unsafe { libc::_exit(1) };
        }
        read(&mapping, 600);
        // SAFETY: ends the child.
        unsafe { libc::_exit(2) };
    }
    let mut status = -1;
    // SAFETY: waits for the child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "{status:x}");
}

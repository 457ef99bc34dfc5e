//! Unnamed files, and reads and writes of them that end later.
#![allow(unsafe_code, reason = "reads and writes memory named by number")]

mod common;

use std::os::fd::AsFd as _;

use common::{in_own_process, pages};
use hetmem_sys::aio::{Operation, Queue, Request};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::Arena;
use hetmem_sys::process::file_size_limit;
use hetmem_sys::scratch::{NoSizeSignal, Piece, Scratch};
use hetmem_sys::timer::await_readable;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, setrlimit};

/// In the folder of the tests, which is on a disk where that for temporary files may be memory.
#[allow(clippy::print_stderr, reason = "a test that can't run here says so")]
fn file() -> Option<Scratch> {
    Scratch::create(env!("CARGO_TARGET_TMPDIR")).inspect_err(|why| eprintln!("skipped: {why}")).ok()
}

fn pattern(arena: &Arena, seed: u64) {
    for page in arena.range().iter() {
        common::write(page, page.get() ^ seed);
    }
}

fn is_readable(queue: &Queue) -> bool {
    let descriptor = queue.descriptor().unwrap();
    poll(&mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(1)
}

#[test]
fn what_was_begun_ends_once_and_the_descriptor_says_when() {
    let Some(file) = file() else { return };
    let (from, to) = (pages(64), pages(64));
    pattern(&from, 7);
    file.reserve(0, 64 * 4096).unwrap();
    let whole = |arena: &Arena| [Piece::new(arena.range().start(), arena.range().pages())];
    // SAFETY: pages of this test's own.
    assert_eq!(unsafe { file.write(&whole(&from), 0) }, Ok(64 * 4096));
    let queue = Queue::with_descriptor(16).unwrap();
    assert!(!is_readable(&queue));
    let pieces: Vec<[Piece; 1]> =
        to.range().iter().map(|page| [Piece::new(page, hetmem_core::units::PageCount::ONE)]).collect();
    let request =
        |i: usize| Request { operation: Operation::Read, pieces: &pieces[i], offset: i as u64 * 4096, tag: i as u64 };
    let requests: Vec<Request<'_>> = (0..16).map(request).collect();
    for _ in 0..4 {
        // SAFETY: pages of this test's own, which nobody looks at before all have ended.
        assert_eq!(unsafe { queue.submit(file.as_fd(), &requests) }, 16);
        let mut ended = Vec::new();
        while ended.len() < 16 {
            await_readable(queue.descriptor().unwrap());
            queue.ended(&mut |tag, bytes| ended.push((tag, bytes)));
        }
        ended.sort_unstable_by_key(|(tag, _)| *tag);
        assert!(ended.iter().zip(0..).all(|(one, tag)| *one == (tag, Ok(4096))));
        assert!(!is_readable(&queue), "there is nothing left to say");
    }
    for (page, was) in to.range().iter().zip(from.range().iter()).take(16) {
        assert_eq!(common::read(page), common::read(was));
    }
}

/// Limits on files are as much about SIGXFSZ, which ends who has no handler, as about an error.
#[test]
fn a_file_beyond_the_limit_is_refused_and_no_signal_comes() {
    let status = in_own_process("a_file_beyond_the_limit_is_refused_and_no_signal_comes", || {
        let Some(file) = file() else { return };
        let from = pages(4);
        pattern(&from, 3);
        file.reserve(0, 8 * 4096).unwrap();
        let limit = Rlimit { current: Some(4 * 4096), maximum: Some(4 * 4096) };
        setrlimit(Resource::Fsize, limit).unwrap();
        assert_eq!(file_size_limit(), 4 * 4096);
        let piece = [Piece::new(from.range().start(), from.range().pages())];
        for _ in 0..2 {
            let _held = NoSizeSignal::hold();
            assert_eq!(file.reserve(8 * 4096, 16 * 4096), Err(Errno::FBIG));
            // SAFETY: pages of this test's own.
            assert_eq!(unsafe { file.write(&piece, 4 * 4096) }, Err(Errno::FBIG));
            // SAFETY: as above.
            assert_eq!(unsafe { file.write(&piece, 0) }, Ok(4 * 4096));
            let queue = Queue::new(4);
            let request = Request { operation: Operation::Write, pieces: &piece, offset: 4 * 4096, tag: 1 };
            // SAFETY: as above; it is waited for.
            if unsafe { queue.submit(file.as_fd(), &[request]) } == 1 {
                queue.wait(&mut |_, bytes| assert_eq!(bytes, Err(Errno::FBIG)));
            }
        }
        // As before: it is not blocked, and none waits.
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap() & 1 << (libc::SIGXFSZ - 1)
        };
        assert_eq!([set("SigBlk:"), set("SigPnd:"), set("ShdPnd:")], [0; 3]);
    });
    assert!(status.success(), "{status}");
}

#[test]
fn an_unnamed_file_can_be_given_no_name() {
    let Some(file) = file() else { return };
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file.as_fd()));
    let to = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("named-{}", std::process::id()));
    let linked = rustix::fs::linkat(rustix::fs::CWD, path, rustix::fs::CWD, &to, rustix::fs::AtFlags::SYMLINK_FOLLOW);
    assert_eq!(linked, Err(Errno::NOENT));
}

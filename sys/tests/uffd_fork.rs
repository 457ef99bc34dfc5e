//! Forks: the child's context, and what a fork does to pages. Each test runs in a process of its own, as a fork makes
//! the pages of everything else in the process shared.
//!
//! While `fork(2)` waits for its event to be read, the C library holds the locks of its allocator: a reader that
//! allocates waits for the fork, which waits for the reader. Here the readers have started before, and allocate
//! nothing.
#![allow(unsafe_code, reason = "forks, and moves pages named by number")]

mod common;

use std::sync::Barrier;

use common::{
    MOVES, check, fill, in_own_process, next_event, open, page, pages, populated_pages, present, read, write,
};
use hetmem_core::units::PageCount;
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Arena, ArenaOptions, HugePages, populate_write};
use hetmem_sys::uffd::{CopyFlags, Event, EventBuffer, Features, Mode, MoveFlags, Progress, Userfaultfd};

/// Forks; the child runs `child` and ends with its result. Returns the child's process number.
fn fork(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child touches memory and ends, and calls nothing that another thread's lock could block.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = child();
        // SAFETY: ends the child without the parent's exit handlers.
        unsafe { libc::_exit(code) };
    }
    pid
}

/// Waits for the end of a child and returns its exit code.
fn wait(pid: i32) -> Option<i32> {
    let pid = rustix::process::Pid::from_raw(pid);
    let (_, status) = rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap().unwrap();
    status.exit_status()
}

/// Small populated pages that a child inherits.
fn inherited_pages(count: u64) -> Arena {
    let options = ArenaOptions { huge_pages: HugePages::Never, ..ArenaOptions::default() };
    let arena = Arena::reserve(PageCount::new(count), &options).unwrap();
    arena.populate(arena.range()).unwrap();
    arena
}

fn move_all(uffd: &Userfaultfd, dst: &Arena, src: &Arena) -> Progress {
    // SAFETY: the tests move pages of their own arenas and hold no references into them.
    unsafe { uffd.move_pages(dst.range().start(), src.range().start(), src.range().pages(), MoveFlags::NONE) }
}

const COMPLETE: Option<Errno> = None;

#[test]
fn a_childs_touch_of_a_page_that_is_away_is_served_by_the_parent() {
    let status = in_own_process("a_childs_touch_of_a_page_that_is_away_is_served_by_the_parent", || {
        let (memory, arena) = (inherited_pages(4), pages(4));
        let (Some(program), Some(window)) = (open(MOVES | Features::EVENT_FORK), open(MOVES)) else { return };
        fill(memory.range(), 6);
        let expected = read(page(memory.range(), 2).start());
        program.register(memory.range(), Mode::MISSING).unwrap();
        window.register(arena.range(), Mode::WP).unwrap();
        assert_eq!(move_all(&window, &arena, &memory).stop, COMPLETE);
        let started = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                started.wait();
                let Event::Fork { fd } = next_event(&program, &mut EventBuffer::new()) else { panic!("a fork") };
                let child = Userfaultfd::from_fork(fd);
                let Event::PageFault { addr, .. } = next_event(&child, &mut EventBuffer::new()) else {
                    panic!("a page fault")
                };
                assert_eq!(addr, page(memory.range(), 2).start());
                // Pages can't be moved into another process.
                assert_eq!(move_all(&child, &memory, &arena).stop, Some(Errno::INVAL));
                let (dst, src) = (memory.range().start(), arena.range().start());
                // SAFETY: the child's memory, which is there to be filled; nobody writes to the arena.
                let copied = unsafe { child.copy(dst, src, PageCount::new(4), CopyFlags::NONE) };
                assert_eq!(copied.stop, COMPLETE);
            });
            started.wait();
            let child = fork(|| i32::from(read(page(memory.range(), 2).start()) != expected));
            assert_eq!(wait(child), Some(0));
        });
        // The parent's pages are still away, and come home.
        assert_eq!(present(memory.range()), [false; 4]);
        assert_eq!(move_all(&program, &memory, &arena).stop, COMPLETE);
        check(memory.range(), 6);
    });
    assert!(status.success());
}

#[test]
fn a_context_of_a_child_that_has_ended_says_so() {
    let status = in_own_process("a_context_of_a_child_that_has_ended_says_so", || {
        let (memory, source) = (inherited_pages(1), populated_pages(1));
        let Some(program) = open(MOVES | Features::EVENT_FORK) else { return };
        program.register(memory.range(), Mode::MISSING).unwrap();
        let started = Barrier::new(2);
        let child = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                started.wait();
                next_event(&program, &mut EventBuffer::new())
            });
            started.wait();
            assert_eq!(wait(fork(|| 0)), Some(0));
            let Event::Fork { fd } = reader.join().unwrap() else { panic!("a fork") };
            Userfaultfd::from_fork(fd)
        });
        let (dst, src) = (memory.range().start(), source.range().start());
        // SAFETY: there is no such memory any more.
        let copied = unsafe { child.copy(dst, src, PageCount::ONE, CopyFlags::NONE) };
        assert_eq!(copied, Progress { done: PageCount::ZERO, stop: Some(Errno::SRCH) });
    });
    assert!(status.success());
}

#[test]
fn after_a_fork_pages_move_only_once_they_are_written_even_when_the_child_is_gone() {
    let name = "after_a_fork_pages_move_only_once_they_are_written_even_when_the_child_is_gone";
    let status = in_own_process(name, || {
        let (memory, arena) = (inherited_pages(8), pages(8));
        let Some(window) = open(MOVES) else { return };
        fill(memory.range(), 9);
        window.register(arena.range(), Mode::WP).unwrap();
        assert_eq!(wait(fork(|| 0)), Some(0));
        let first = page(memory.range(), 0).start();
        write(first, read(first));
        let busy = Progress { done: PageCount::ONE, stop: Some(Errno::BUSY) };
        assert_eq!(move_all(&window, &arena, &memory), busy);
        let rest = memory.range().slice(PageCount::ONE, PageCount::new(7));
        populate_write(rest).unwrap();
        let dst = arena.range().start().add_pages(PageCount::ONE);
        // SAFETY: the tests move pages of their own arenas and hold no references into them.
        let moved = unsafe { window.move_pages(dst, rest.start(), rest.pages(), MoveFlags::NONE) };
        assert_eq!(moved.stop, COMPLETE);
        check(arena.range(), 9);
    });
    assert!(status.success());
}

#[test]
fn without_fork_events_a_child_reads_zeros_where_a_page_is_away() {
    let status = in_own_process("without_fork_events_a_child_reads_zeros_where_a_page_is_away", || {
        let (memory, arena) = (inherited_pages(1), pages(1));
        let (Some(program), Some(window)) = (open(MOVES), open(MOVES)) else { return };
        write(memory.range().start(), 5);
        program.register(memory.range(), Mode::MISSING).unwrap();
        window.register(arena.range(), Mode::WP).unwrap();
        assert_eq!(move_all(&window, &arena, &memory).stop, COMPLETE);
        // Why pages come home before a fork that can't be followed.
        assert_eq!(wait(fork(|| i32::from(read(memory.range().start()) != 0))), Some(0));
    });
    assert!(status.success());
}

#[test]
fn starting_a_program_raises_no_fork_event() {
    let status = in_own_process("starting_a_program_raises_no_fork_event", || {
        let memory = inherited_pages(1);
        let Some(program) = open(MOVES | Features::EVENT_FORK) else { return };
        program.register(memory.range(), Mode::MISSING).unwrap();
        // Nobody reads events: `posix_spawn` borrows the address space and doesn't copy it, so there is nothing to wait
        // for.
        let ran = std::process::Command::new("/bin/true").status().unwrap();
        assert!(ran.success());
        assert_eq!(program.read_events(&mut EventBuffer::new()), Ok(0));
    });
    assert!(status.success());
}

/// Pins `range` for DMA as a registered buffer of an io_uring, which is returned; `None` where that is not possible.
fn pin(range: hetmem_core::units::PageRange) -> Option<std::os::fd::OwnedFd> {
    use std::os::fd::{AsRawFd, FromRawFd};
    const IORING_REGISTER_BUFFERS: i32 = 0;
    let mut params = [0u8; 120];
    // SAFETY: makes a ring of one entry; the parameters have the size that the kernel writes.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    let ring = i32::try_from(ring).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: a new descriptor that nobody else owns.
    let ring = unsafe { std::os::fd::OwnedFd::from_raw_fd(ring) };
    let buffer = [range.start().get(), range.pages().bytes().get()];
    // SAFETY: one `struct iovec` that names memory of the test's own.
    let done = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), IORING_REGISTER_BUFFERS, buffer.as_ptr(), 1)
    };
    (done == 0).then_some(ring)
}

#[test]
fn a_page_pinned_for_dma_does_not_move_even_after_it_is_written() {
    let (memory, arena) = (populated_pages(4), pages(4));
    let Some(window) = open(MOVES) else { return };
    fill(memory.range(), 4);
    window.register(arena.range(), Mode::WP).unwrap();
    let Some(ring) = pin(page(memory.range(), 2)) else { return common::skip(&"no io_uring to pin memory with") };
    let pinned = Progress { done: PageCount::new(2), stop: Some(Errno::BUSY) };
    assert_eq!(move_all(&window, &arena, &memory), pinned);
    populate_write(page(memory.range(), 2)).unwrap();
    let (dst, src) = (page(arena.range(), 2).start(), page(memory.range(), 2).start());
    // SAFETY: the tests move pages of their own arenas and hold no references into them.
    let again = unsafe { window.move_pages(dst, src, PageCount::ONE, MoveFlags::NONE) };
    assert_eq!(again, Progress { done: PageCount::ZERO, stop: Some(Errno::BUSY) });
    drop(ring);
}

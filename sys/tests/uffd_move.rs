//! UFFDIO_MOVE as hetmem uses it: pages of the program leave by a context of hetmem's own that watches only hetmem's
//! arenas, and come home by the context that watches the program.
#![allow(unsafe_code, reason = "moves pages named by number")]

mod common;

use std::sync::Barrier;

use common::{MOVES, check, entries, fill, open, page, pages, populated_pages, present, protect, read, skip};
use hetmem_core::units::{BLOCK_PAGES, PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Arena, Guard, guard};
use hetmem_sys::pagemap::PagemapScanner;
use hetmem_sys::uffd::{Event, EventBuffer, Mode, MoveFlags, OwnSide, Progress, Userfaultfd, Wake};
use rustix::mm::MprotectFlags;

/// Moves all of `src` to the start of `dst`.
fn move_range(uffd: &Userfaultfd, dst: PageRange, src: PageRange, flags: MoveFlags) -> Progress {
    // SAFETY: the tests move pages of their own arenas and hold no references into them.
    unsafe { uffd.move_pages(dst.start(), src.start(), src.pages(), flags) }
}

fn stopped(done: u64, errno: Errno) -> Progress {
    Progress { done: PageCount::new(done), stop: Some(errno) }
}

fn complete(done: u64) -> Progress {
    Progress { done: PageCount::new(done), stop: None }
}

/// The program's context and its memory, filled and trapped; hetmem's context and an empty arena.
struct Scene {
    program: Userfaultfd,
    window: Userfaultfd,
    memory: Arena,
    arena: Arena,
}

fn scene(count: u64) -> Option<Scene> {
    let (program, window) = (open(MOVES)?, open(MOVES)?);
    let (memory, arena) = (populated_pages(count), pages(count));
    fill(memory.range(), 1);
    program.register(memory.range(), Mode::MISSING).unwrap();
    window.register(arena.range(), Mode::WP).unwrap();
    Some(Scene { program, window, memory, arena })
}

#[test]
fn pages_leave_to_an_arena_registered_for_write_protection_only_and_come_home_whole() {
    let Some(Scene { program, window, memory, arena }) = scene(64) else { return };
    assert_eq!(move_range(&window, arena.range(), memory.range(), MoveFlags::NONE), complete(64));
    assert_eq!(present(memory.range()), [false; 64]);
    check(arena.range(), 1);
    assert_eq!(move_range(&program, memory.range(), arena.range(), MoveFlags::NONE), complete(64));
    assert_eq!(present(arena.range()), [false; 64]);
    check(memory.range(), 1);
    // A hole of the arena fills itself: its registration traps no missing pages.
    assert_eq!(read(arena.range().start()), 0);
}

#[test]
fn a_destination_that_the_context_does_not_watch_is_refused() {
    let Some(Scene { program, window, memory, arena }) = scene(2) else { return };
    assert_eq!(move_range(&program, arena.range(), memory.range(), MoveFlags::NONE), stopped(0, Errno::INVAL));
    window.unregister(arena.range()).unwrap();
    assert_eq!(move_range(&window, arena.range(), memory.range(), MoveFlags::NONE), stopped(0, Errno::INVAL));
    check(memory.range(), 1);
}

/// `ENOENT` answers two questions; a MOVE that skips holes tells them apart.
#[test]
fn a_destination_without_a_mapping_looks_like_a_source_without_a_page() {
    let Some(Scene { program, arena, .. }) = scene(1) else { return };
    let hole = pages(1);
    program.register(hole.range(), Mode::MISSING).unwrap();
    // Below all that programs map.
    let unmapped = PageRange::new(VirtAddr::new(1 << 21), PageCount::ONE).unwrap();
    for (to, skipping) in [(unmapped, stopped(0, Errno::NOENT)), (hole.range(), complete(1))] {
        assert_eq!(move_range(&program, to, arena.range(), MoveFlags::NONE), stopped(0, Errno::NOENT));
        assert_eq!(move_range(&program, to, arena.range(), MoveFlags::ALLOW_SRC_HOLES), skipping);
    }
    assert_eq!(present(hole.range()), [false]);
}

#[test]
fn a_hole_stops_the_run_at_its_page_unless_holes_are_allowed() {
    let Some(Scene { program, window, memory, arena }) = scene(8) else { return };
    program.unregister(memory.range()).unwrap();
    memory.discard(page(memory.range(), 3)).unwrap();
    assert_eq!(move_range(&window, arena.range(), memory.range(), MoveFlags::NONE), stopped(3, Errno::NOENT));
    assert_eq!(present(arena.range()), [true, true, true, false, false, false, false, false]);
    let (rest, target) = (
        memory.range().slice(PageCount::new(3), PageCount::new(5)),
        arena.range().slice(PageCount::new(3), PageCount::new(5)),
    );
    assert_eq!(move_range(&window, target, rest, MoveFlags::ALLOW_SRC_HOLES), complete(5));
    assert_eq!(present(arena.range()), [true, true, true, false, true, true, true, true]);
}

#[test]
fn a_page_at_the_destination_stops_the_run_at_its_page() {
    let Some(Scene { window, memory, arena, .. }) = scene(8) else { return };
    arena.populate(page(arena.range(), 5)).unwrap();
    assert_eq!(move_range(&window, arena.range(), memory.range(), MoveFlags::NONE), stopped(5, Errno::EXIST));
    assert_eq!(present(memory.range()), [false, false, false, false, false, true, true, true]);
}

/// Moves all of `src` to the start of `dst`, and knows what has moved.
fn move_settled(uffd: &Userfaultfd, dst: PageRange, src: PageRange) -> Progress {
    move_settled_by(uffd, OwnSide::Source, dst, src)
}

fn move_settled_by(uffd: &Userfaultfd, own: OwnSide, dst: PageRange, src: PageRange) -> Progress {
    let pagemap = PagemapScanner::open().unwrap();
    // SAFETY: the tests move pages of their own arenas and hold no references into them.
    unsafe { uffd.move_pages_settled(&pagemap, own, dst.start(), src.start(), src.pages(), MoveFlags::NONE) }
}

#[test]
fn a_page_in_the_way_is_told_from_one_that_has_moved() {
    let Some(Scene { window, memory, arena, .. }) = scene(8) else { return };
    arena.populate(page(arena.range(), 5)).unwrap();
    assert_eq!(move_settled(&window, arena.range(), memory.range()), stopped(5, Errno::EXIST));
    assert_eq!(present(memory.range()), [false, false, false, false, false, true, true, true]);
    // Page 5 again, which has no source any more: as the kernel reports a page that it moved at the second attempt.
    memory.discard(page(memory.range(), 5)).unwrap();
    let rest = |range: PageRange| range.slice(PageCount::new(5), PageCount::new(3));
    assert_eq!(move_settled(&window, rest(arena.range()), rest(memory.range())), complete(3));
}

/// The program may have dropped a page again that it was given, or that it still had: only the other side tells then what has moved.
#[test]
fn what_has_moved_is_told_by_the_side_that_nobody_else_changes() {
    let Some(Scene { window, memory, arena, .. }) = scene(8) else { return };
    let fifth = |range: PageRange| page(range, 5);
    let marked = |range: PageRange, what: Guard| {
        let part = fifth(range);
        // SAFETY: the test's own memory, which nobody counts on.
        unsafe { guard(part.start().get(), 4096, what) }
    };
    if let Err(errno) = marked(arena.range(), Guard::Install) {
        return skip(&errno);
    }
    // Given, and dropped, by a marker that is still there or not: the source, which had a page, has none.
    memory.discard(fifth(memory.range())).unwrap();
    assert_eq!(move_settled(&window, fifth(arena.range()), fifth(memory.range())), complete(1));
    marked(arena.range(), Guard::Remove).unwrap();
    assert_eq!(move_settled(&window, fifth(arena.range()), fifth(memory.range())), complete(1));
    // Taken, and a marker put where it was: the destination, which had none, has a page.
    arena.populate(fifth(arena.range())).unwrap();
    marked(memory.range(), Guard::Install).unwrap();
    let stop = move_settled_by(&window, OwnSide::Destination, fifth(arena.range()), fifth(memory.range())).stop;
    assert!(matches!(stop, None | Some(Errno::FAULT)), "{stop:?}");
    marked(memory.range(), Guard::Remove).unwrap();
}

#[test]
fn threads_that_move_pages_of_one_huge_page_lose_none() {
    const ROUNDS: usize = 200;
    let Some(window) = open(MOVES) else { return };
    let Some(huge) = common::huge_page() else { return };
    let arena = pages(BLOCK_PAGES);
    window.register(arena.range(), Mode::WP).unwrap();
    let start = Barrier::new(2);
    let half = |range: PageRange, n: u64| range.slice(PageCount::new(n * 256), PageCount::new(8));
    for _ in 0..ROUNDS {
        huge.populate(huge.range()).unwrap();
        std::thread::scope(|scope| {
            for n in 0..2 {
                let (dst, src) = (half(arena.range(), n), half(huge.range(), n));
                fill(src, n);
                let (window, start) = (&window, &start);
                scope.spawn(move || {
                    start.wait();
                    for (dst, src) in dst.iter().zip(src.iter()) {
                        let (dst, src) = (PageRange::page_of(dst), PageRange::page_of(src));
                        assert_eq!(move_settled(window, dst, src), complete(1));
                    }
                });
            }
        });
        for n in 0..2 {
            assert_eq!(present(half(huge.range(), n)), [false; 8]);
            check(half(arena.range(), n), n);
        }
        huge.discard(huge.range()).unwrap();
        arena.discard(arena.range()).unwrap();
    }
}

#[test]
fn memory_that_is_not_writable_is_refused_on_either_side() {
    let Some(Scene { program, window, memory, arena }) = scene(4) else { return };
    for flags in [MprotectFlags::READ, MprotectFlags::empty()] {
        protect(memory.range(), flags);
        assert_eq!(move_range(&window, arena.range(), memory.range(), MoveFlags::NONE), stopped(0, Errno::INVAL));
        protect(memory.range(), MprotectFlags::READ | MprotectFlags::WRITE);
        check(memory.range(), 1);
        assert_eq!(move_range(&window, arena.range(), memory.range(), MoveFlags::NONE), complete(4));
        protect(memory.range(), flags);
        assert_eq!(move_range(&program, memory.range(), arena.range(), MoveFlags::NONE), stopped(0, Errno::INVAL));
        protect(memory.range(), MprotectFlags::READ | MprotectFlags::WRITE);
        assert_eq!(move_range(&program, memory.range(), arena.range(), MoveFlags::NONE), complete(4));
    }
}

#[test]
fn locked_memory_is_refused_on_either_side() {
    let Some(Scene { program, window, memory, arena }) = scene(4) else { return };
    let start = std::ptr::with_exposed_provenance_mut(usize::try_from(memory.range().start().get()).unwrap());
    // SAFETY: memory of the test's own.
    if let Err(errno) = unsafe { rustix::mm::mlock(start, 4 * 4096) } {
        return common::skip(&errno);
    }
    assert_eq!(move_range(&window, arena.range(), memory.range(), MoveFlags::NONE), stopped(0, Errno::INVAL));
    // SAFETY: memory of the test's own.
    unsafe { rustix::mm::munlock(start, 4 * 4096) }.unwrap();
    assert_eq!(move_range(&window, arena.range(), memory.range(), MoveFlags::NONE), complete(4));
    assert_eq!(move_range(&program, memory.range(), arena.range(), MoveFlags::NONE), complete(4));
}

#[test]
fn the_zero_page_moves_and_stays_the_zero_page() {
    let (Some(program), Some(window)) = (open(MOVES), open(MOVES)) else { return };
    let (memory, arena) = (pages(2), pages(2));
    memory.range().iter().for_each(|page| assert_eq!(read(page), 0));
    program.register(memory.range(), Mode::MISSING).unwrap();
    window.register(arena.range(), Mode::WP).unwrap();
    let zero = entries(memory.range())[0].pfn();
    assert_eq!(move_range(&window, arena.range(), memory.range(), MoveFlags::NONE), complete(2));
    assert_eq!(entries(arena.range())[0].pfn(), zero);
    assert_eq!(present(memory.range()), [false, false]);
}

#[test]
fn a_huge_page_moves_whole_there_and_back() {
    let (Some(program), Some(window)) = (open(MOVES), open(MOVES)) else { return };
    let (Some(memory), arena) = (common::huge_page(), pages(512)) else { return };
    fill(memory.range(), 7);
    program.register(memory.range(), Mode::MISSING).unwrap();
    window.register(arena.range(), Mode::WP).unwrap();
    let frames: Vec<_> = entries(memory.range()).into_iter().map(|entry| entry.pfn()).collect();
    assert_eq!(move_range(&window, arena.range(), memory.range(), MoveFlags::NONE), complete(512));
    // Even though the arena itself asks for no huge pages.
    assert!(common::is_huge(arena.range()));
    check(arena.range(), 7);
    assert_eq!(move_range(&program, memory.range(), arena.range(), MoveFlags::NONE), complete(512));
    assert!(common::is_huge(memory.range()));
    assert_eq!(entries(memory.range()).into_iter().map(|entry| entry.pfn()).collect::<Vec<_>>(), frames);
    check(memory.range(), 7);
}

#[test]
fn a_huge_zero_page_moves_too() {
    let (Some(window), Some(memory), arena) = (open(MOVES), common::huge_page(), pages(512)) else { return };
    memory.discard(memory.range()).unwrap();
    assert_eq!(read(memory.range().start()), 0);
    window.register(arena.range(), Mode::WP).unwrap();
    let there = memory
        .range()
        .slice(PageCount::ZERO, PageCount::new(present(memory.range()).iter().filter(|p| **p).count() as u64));
    assert_eq!(move_range(&window, arena.range(), there, MoveFlags::NONE), complete(there.pages().get()));
    assert!(arena.range().iter().all(|page| read(page) == 0));
    assert!(present(memory.range()).iter().all(|there| !there));
}

#[test]
fn a_part_of_a_huge_page_moves_after_the_kernel_has_split_it() {
    let Some(window) = open(MOVES) else { return };
    let (Some(memory), arena) = (common::huge_page(), pages(512)) else { return };
    fill(memory.range(), 8);
    window.register(arena.range(), Mode::WP).unwrap();
    let part = memory.range().slice(PageCount::ZERO, PageCount::new(5));
    assert_eq!(move_range(&window, arena.range(), part, MoveFlags::NONE), complete(5));
    check(arena.range().slice(PageCount::ZERO, PageCount::new(5)), 8);
    assert!(present(part).iter().all(|there| !there));
    assert!(!common::is_huge(memory.range()));
}

#[test]
fn a_toucher_of_a_page_that_is_away_waits_until_the_page_is_home() {
    let Some(Scene { program, window, memory, arena }) = scene(4) else { return };
    let touched = page(memory.range(), 2);
    let before = read(touched.start());
    assert_eq!(move_range(&window, arena.range(), memory.range(), MoveFlags::NONE), complete(4));
    std::thread::scope(|scope| {
        let toucher = scope.spawn(|| read(touched.start()));
        let event = common::next_event(&program, &mut EventBuffer::new());
        assert!(matches!(event, Event::PageFault { addr, .. } if addr == touched.start()), "{event:?}");
        // Not woken by the move, so the toucher sleeps on until it is told.
        assert_eq!(move_range(&program, memory.range(), arena.range(), MoveFlags::DONT_WAKE), complete(4));
        assert!(!toucher.is_finished());
        program.wake(touched).unwrap();
        assert_eq!(toucher.join().unwrap(), before);
    });
}

#[test]
fn a_toucher_is_woken_by_the_install_itself() {
    let Some(Scene { program, window, memory, arena }) = scene(4) else { return };
    assert_eq!(move_range(&window, arena.range(), memory.range(), MoveFlags::NONE), complete(4));
    std::thread::scope(|scope| {
        let toucher = scope.spawn(|| read(memory.range().start()));
        common::wait_readable(&program);
        // SAFETY: the page is the test's own, and zeros are what it is to hold.
        let zeroed = unsafe { program.zeropage(page(memory.range(), 0), Wake::Now) };
        assert_eq!(zeroed, complete(1));
        assert_eq!(toucher.join().unwrap(), 0);
    });
}

#[test]
fn a_system_call_on_a_page_that_is_away_waits_too() {
    let Some(Scene { program, window, memory, arena }) = scene(1) else { return };
    assert_eq!(move_range(&window, arena.range(), memory.range(), MoveFlags::NONE), complete(1));
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    std::thread::scope(|scope| {
        let (start, bytes) = (memory.range().start(), 8);
        let caller = scope.spawn(move || {
            let there: *const u8 = std::ptr::with_exposed_provenance(usize::try_from(start.get()).unwrap());
            // SAFETY: mapped memory of the test's own; the kernel reads it.
            rustix::io::write(writer, unsafe { std::slice::from_raw_parts(there, bytes) })
        });
        common::wait_readable(&program);
        assert_eq!(move_range(&program, memory.range(), arena.range(), MoveFlags::NONE), complete(1));
        assert_eq!(caller.join().unwrap(), Ok(8));
    });
    let mut got = [0; 8];
    assert_eq!(rustix::io::read(reader, &mut got[..]), Ok(8));
    assert_eq!(u64::from_ne_bytes(got), read(memory.range().start()));
}

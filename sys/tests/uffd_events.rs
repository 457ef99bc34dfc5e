//! Events of mapping changes: when they come, and with which ranges.
//!
//! Whoever changes a mapping waits until the event is read; so here a second thread makes the change, and the memory
//! outlives the context (which is why it is declared first).
#![allow(unsafe_code, reason = "maps, remaps and unmaps memory named by number")]

mod common;

use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{WATCH, fill, next_event, open, page, pages, populated_pages, present, wait_readable};
use hetmem_core::units::{ByteLen, PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::is_mapped;
use hetmem_sys::uffd::{CopyFlags, Event, EventBuffer, Mode, MoveFlags, Progress, Userfaultfd, Wake, WriteProtect};
use rustix::mm::{MapFlags, MremapFlags, ProtFlags};

fn pointer(addr: VirtAddr) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(usize::try_from(addr.get()).unwrap())
}

/// Fresh anonymous memory that the test unmaps itself, where nothing else comes when it is gone: far from what the kernel chooses for other tests'
/// mappings, which fill from the top.
fn map(count: u64) -> PageRange {
    static NEXT: AtomicU64 = AtomicU64::new(1 << 40);
    let start = VirtAddr::new(NEXT.fetch_add(1 << 30, Ordering::Relaxed));
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE);
    let bytes = usize::try_from(count * 4096).unwrap();
    // SAFETY: with MAP_FIXED_NOREPLACE nothing that is mapped there is replaced.
    unsafe { rustix::mm::mmap_anonymous(pointer(start), bytes, access, flags) }.unwrap();
    PageRange::new(start, PageCount::new(count)).unwrap()
}

fn unmap(range: PageRange) {
    // SAFETY: memory of the test's own.
    unsafe { rustix::mm::munmap(pointer(range.start()), range.pages().as_usize() * 4096) }.unwrap();
}

/// Every kind of install, each of one page, and a change of write protection.
fn installs(uffd: &Userfaultfd, dst: PageRange, src: PageRange) -> [Result<(), Errno>; 4] {
    let result = |progress: Progress| progress.stop.map_or(Ok(()), Err);
    // SAFETY: memory of the test's own, with no references into it.
    let moved = unsafe { uffd.move_pages(dst.start(), src.start(), PageCount::ONE, MoveFlags::NONE) };
    // SAFETY: as above.
    let copied = unsafe { uffd.copy(dst.start(), src.start(), PageCount::ONE, CopyFlags::NONE) };
    // SAFETY: as above.
    let zeroed = unsafe { uffd.zeropage(page(dst, 0), Wake::Now) };
    [result(moved), result(copied), result(zeroed), uffd.write_protect(dst, WriteProtect::Protect)]
}

#[test]
fn dropping_contents_is_reported_before_they_go() {
    let memory = populated_pages(8);
    let Some(uffd) = open(WATCH) else { return };
    uffd.register(memory.range(), Mode::MISSING).unwrap();
    let dropped = memory.range().slice(PageCount::new(2), PageCount::new(3));
    std::thread::scope(|scope| {
        scope.spawn(|| memory.discard(dropped).unwrap());
        wait_readable(&uffd);
        assert_eq!(present(memory.range()), [true; 8]);
        let event = next_event(&uffd, &mut EventBuffer::new());
        assert!(matches!(event, Event::Remove { range } if range == dropped), "{event:?}");
    });
    assert_eq!(present(memory.range()), [true, true, false, false, false, true, true, true]);
}

#[test]
fn only_the_registered_part_of_a_dropped_range_is_reported() {
    let memory = populated_pages(8);
    let Some(uffd) = open(WATCH) else { return };
    let watched = memory.range().slice(PageCount::new(3), PageCount::new(2));
    uffd.register(watched, Mode::MISSING).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| memory.discard(memory.range()).unwrap());
        let mut buffer = EventBuffer::new();
        let event = next_event(&uffd, &mut buffer);
        assert!(matches!(event, Event::Remove { range } if range == watched), "{event:?}");
        assert!(buffer.take().next().is_none());
    });
    assert_eq!(present(memory.range()), [false; 8]);
}

#[test]
fn unmapping_is_reported_after_the_memory_is_gone() {
    let memory = map(8);
    let Some(uffd) = open(WATCH) else { return };
    fill(memory, 1);
    uffd.register(memory, Mode::MISSING).unwrap();
    let (gone, rest) =
        (memory.slice(PageCount::ZERO, PageCount::new(5)), memory.slice(PageCount::new(5), PageCount::new(3)));
    std::thread::scope(|scope| {
        scope.spawn(|| unmap(gone));
        wait_readable(&uffd);
        assert!(!is_mapped(page(gone, 0)) && is_mapped(rest));
        let event = next_event(&uffd, &mut EventBuffer::new());
        assert!(matches!(event, Event::Unmap { range } if range == gone), "{event:?}");
    });
    uffd.unregister(rest).unwrap();
    unmap(rest);
}

#[test]
fn mapping_something_else_over_it_is_reported_as_unmapping() {
    let memory = map(4);
    let Some(uffd) = open(WATCH) else { return };
    uffd.register(memory, Mode::MISSING).unwrap();
    let over = page(memory, 1);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let access = ProtFlags::READ;
            let flags = MapFlags::PRIVATE | MapFlags::FIXED;
            // SAFETY: over memory of the test's own.
            unsafe { rustix::mm::mmap_anonymous(pointer(over.start()), 4096, access, flags) }.unwrap();
        });
        let event = next_event(&uffd, &mut EventBuffer::new());
        assert!(matches!(event, Event::Unmap { range } if range == over), "{event:?}");
    });
    uffd.unregister(memory).unwrap();
    unmap(memory);
}

#[test]
fn moving_a_mapping_is_reported_with_both_places_and_the_registration_goes_along() {
    let memory = map(4);
    let Some(uffd) = open(WATCH) else { return };
    fill(memory, 2);
    uffd.register(memory, Mode::WP).unwrap();
    // A place that is free for certain: the middle of what was mapped a moment ago is replaced.
    let place = map(4);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (old, new) = (pointer(memory.start()), pointer(place.start()));
            // SAFETY: memory of the test's own on both sides.
            unsafe { rustix::mm::mremap_fixed(old, 4 * 4096, 4 * 4096, MremapFlags::MAYMOVE, new) }.unwrap();
        });
        let mut buffer = EventBuffer::new();
        let event = next_event(&uffd, &mut buffer);
        let Event::Remap { from, to, len } = event else { panic!("{event:?}") };
        assert_eq!((from, to, len), (memory.start(), place.start(), ByteLen::new(4 * 4096)));
        let event = next_event(&uffd, &mut buffer);
        assert!(matches!(event, Event::Unmap { range } if range == memory), "{event:?}");
    });
    common::check(place, 2);
    assert_eq!(uffd.write_protect(place, WriteProtect::Protect), Ok(()));
    uffd.unregister(place).unwrap();
    unmap(place);
}

#[test]
fn installs_stop_until_the_event_is_read_and_go_on_afterwards() {
    let (memory, source) = (pages(8), populated_pages(1));
    let Some(uffd) = open(WATCH) else { return };
    uffd.register(memory.range(), Mode::MISSING | Mode::WP).unwrap();
    let (dropped, other) = (page(memory.range(), 7), page(memory.range(), 0));
    std::thread::scope(|scope| {
        let dropping = scope.spawn(|| memory.discard(dropped).unwrap());
        wait_readable(&uffd);
        assert_eq!(installs(&uffd, other, source.range()), [Err(Errno::AGAIN); 4]);
        let event = next_event(&uffd, &mut EventBuffer::new());
        assert!(matches!(event, Event::Remove { range } if range == dropped), "{event:?}");
        dropping.join().unwrap();
    });
    // The move goes through; then the destination is taken.
    let taken = Err(Errno::EXIST);
    assert_eq!(installs(&uffd, other, source.range()), [Ok(()), taken, taken, Ok(())]);
}

#[test]
fn a_move_from_watched_memory_by_another_context_raises_no_event_and_waits_for_none() {
    let (memory, arena) = (populated_pages(4), pages(4));
    let (Some(program), Some(window)) = (open(WATCH), open(common::MOVES)) else { return };
    program.register(memory.range(), Mode::MISSING).unwrap();
    window.register(arena.range(), Mode::WP).unwrap();
    let dropped = page(memory.range(), 3);
    std::thread::scope(|scope| {
        scope.spawn(|| memory.discard(dropped).unwrap());
        wait_readable(&program);
        // SAFETY: memory of the test's own, with no references into it.
        let moved = unsafe {
            window.move_pages(arena.range().start(), memory.range().start(), PageCount::new(3), MoveFlags::NONE)
        };
        assert_eq!(moved, Progress { done: PageCount::new(3), stop: None });
        let mut buffer = EventBuffer::new();
        assert!(matches!(next_event(&program, &mut buffer), Event::Remove { .. }));
        assert!(buffer.take().next().is_none());
    });
}

//! Shared memory that takes the place of trapped private memory, and the other way round.
#![allow(unsafe_code, reason = "maps memory named by number")]

mod common;

use std::os::fd::AsFd;

use common::{MOVES, WATCH, check, fill, next_event, open, pages, present, read, skip};
use hetmem_core::units::{BLOCK_PAGES, PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Arena, Spare, map_again_over};
use hetmem_sys::uffd::{Event, EventBuffer, Mode, Userfaultfd};
use rustix::mm::{MapFlags, ProtFlags};

/// A block of shared memory with known contents, which lives as long as the process.
fn shared(seed: u64) -> PageRange {
    let file = rustix::fs::memfd_create(c"hetmem-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, BLOCK_PAGES * 4096).unwrap();
    let (len, access) = (usize::try_from(BLOCK_PAGES * 4096).unwrap(), ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
    let start =
        unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, file.as_fd(), 0) }.unwrap();
    let range = PageRange::new(VirtAddr::new(start.expose_provenance() as u64), PageCount::new(BLOCK_PAGES)).unwrap();
    fill(range, seed);
    range
}

/// Three blocks, the second of which is exchanged.
fn blocks() -> (Arena, PageRange) {
    let arena = pages(3 * BLOCK_PAGES);
    let middle = arena.range().slice(PageCount::new(BLOCK_PAGES), PageCount::new(BLOCK_PAGES));
    (arena, middle)
}

/// Runs `f`, which waits until the events are read that it raises, and returns those.
fn events_of(uffd: &Userfaultfd, f: impl FnOnce() + Send) -> Vec<Event> {
    std::thread::scope(|scope| {
        let exchange = scope.spawn(f);
        let (mut buffer, mut events) = (EventBuffer::new(), Vec::new());
        while !exchange.is_finished() {
            if matches!(uffd.read_events(&mut buffer), Ok(1..)) {
                events.extend(buffer.take());
            }
            std::thread::yield_now();
        }
        exchange.join().unwrap();
        events
    })
}

#[test]
fn shared_memory_takes_the_place_of_trapped_memory_and_gives_it_back_trapped() {
    let (arena, middle) = blocks();
    let Some(uffd) = open(WATCH) else { return };
    uffd.register(arena.range(), Mode::MISSING).unwrap();
    let window = shared(7);

    // SAFETY: nothing is in the block, which is the test's.
    let events = events_of(&uffd, || unsafe { map_again_over(window, middle.start()) }.unwrap());
    assert!(matches!(events[..], [Event::Unmap { range }] if range == middle), "{events:?}");
    check(middle, 7);
    fill(middle, 8);
    check(window, 8);

    let spare = Spare::reserve(PageCount::new(BLOCK_PAGES), c"hetmem:test").unwrap();
    let from = spare.range();
    uffd.register(from, Mode::MISSING).unwrap();
    // SAFETY: the block's bytes are in the window.
    let events = events_of(&uffd, || unsafe { spare.move_over(middle.start()) }.unwrap());
    let [Event::Remap { from: old, to, .. }, Event::Unmap { range: ended }] = events[..] else { panic!("{events:?}") };
    assert_eq!((old, to, ended), (from.start(), middle.start(), from), "the end of the old address is told, too");
    assert!(present(middle).iter().all(|present| !present), "all of it is missing");
    check(window, 8);

    // A touch waits.
    std::thread::scope(|scope| {
        let toucher = scope.spawn(|| read(middle.start()));
        let event = next_event(&uffd, &mut EventBuffer::new());
        assert!(matches!(event, Event::PageFault { addr, .. } if addr.page_down() == middle.start()), "{event:?}");
        let page = middle.slice(PageCount::ZERO, PageCount::ONE);
        // SAFETY: the page is missing, and the toucher waits for these bytes.
        let copied =
            unsafe { uffd.copy(page.start(), window.start(), PageCount::ONE, hetmem_sys::uffd::CopyFlags::NONE) };
        assert_eq!((copied.done, copied.stop), (PageCount::ONE, None));
        assert_eq!(toucher.join().unwrap(), read(window.start()));
    });
    uffd.unregister(arena.range()).unwrap();
}

#[test]
fn what_is_not_shared_is_not_mapped_again() {
    // The kernel unmaps the block before it looks; what comes to be there is not the test's to unmap.
    let (arena, middle) = blocks();
    let _arena = std::mem::ManuallyDrop::new(arena);
    let private = pages(BLOCK_PAGES);
    let (fill_of, range) = (3, private.range());
    private.populate(range).unwrap();
    fill(range, fill_of);
    // SAFETY: nothing is in the block, which is the test's.
    let refused = unsafe { map_again_over(range, middle.start()) };
    assert_eq!(refused, Err(Errno::INVAL));
    check(range, fill_of);
}

#[test]
fn a_spare_is_empty_in_a_process_that_locks_what_it_maps() {
    if let Err(errno) = rustix::mm::mlockall(rustix::mm::MlockAllFlags::FUTURE) {
        return skip(&format!("this process may not lock memory: {errno}"));
    }
    let spare = Spare::reserve(PageCount::new(BLOCK_PAGES), c"hetmem:test").unwrap();
    rustix::mm::munlockall().unwrap();
    assert!(present(spare.range()).iter().all(|present| !present));
    let Some(uffd) = open(MOVES) else { return };
    uffd.register(spare.range(), Mode::MISSING).unwrap();
}

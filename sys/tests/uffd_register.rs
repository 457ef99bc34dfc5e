//! Registration: what replaces what, and what is refused.
#![allow(unsafe_code, reason = "maps and moves memory named by number")]

mod common;

use std::os::fd::AsFd;

use common::{MOVES, entries, fill, next_event, open, page, pages, populated_pages, read, write};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::uffd::{Event, EventBuffer, FaultFlags, Fill, Mode, Userfaultfd, Wake, WriteProtect};
use rustix::mm::{MapFlags, ProtFlags};

/// Whether a touch of the missing page `hole` is trapped; the page is there afterwards.
fn traps_missing(uffd: &Userfaultfd, hole: PageRange) -> bool {
    use std::sync::atomic::{AtomicBool, Ordering};
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            read(hole.start());
            done.store(true, Ordering::Release);
        });
        let mut buffer = EventBuffer::new();
        loop {
            uffd.read_events(&mut buffer).unwrap();
            if let Some(event) = buffer.take().next() {
                assert!(matches!(event, Event::PageFault { flags: FaultFlags::NONE, .. }), "{event:?}");
                // SAFETY: a hole of the test's own memory, which holds zeros.
                assert!(unsafe { uffd.zeropage(hole, Wake::Now) }.is_complete());
                return true;
            }
            if done.load(Ordering::Acquire) {
                return false;
            }
            hetmem_sys::thread::yield_now();
        }
    })
}

#[test]
fn write_protect_mode_becomes_missing_mode_in_place_and_back() {
    let Some(uffd) = open(MOVES) else { return };
    let memory = pages(8);
    uffd.register(memory.range(), Mode::WP).unwrap();
    assert!(!traps_missing(&uffd, page(memory.range(), 0)));
    uffd.register(memory.range(), Mode::MISSING).unwrap();
    assert!(traps_missing(&uffd, page(memory.range(), 1)));
    assert_eq!(uffd.write_protect(memory.range(), WriteProtect::Protect), Err(Errno::NOENT));
    uffd.register(memory.range(), Mode::WP).unwrap();
    assert!(!traps_missing(&uffd, page(memory.range(), 2)));
    uffd.write_protect(memory.range(), WriteProtect::Protect).unwrap();
}

#[test]
fn both_modes_do_not_shrink_to_one_in_place() {
    let Some(uffd) = open(MOVES) else { return };
    let memory = pages(8);
    uffd.register(memory.range(), Mode::MISSING | Mode::WP).unwrap();
    uffd.register(memory.range(), Mode::WP).unwrap();
    assert!(traps_missing(&uffd, page(memory.range(), 0)));
    uffd.register(memory.range(), Mode::MISSING).unwrap();
    uffd.write_protect(memory.range(), WriteProtect::Protect).unwrap();
    // Unregistering first does it.
    uffd.unregister(memory.range()).unwrap();
    uffd.register(memory.range(), Mode::WP).unwrap();
    assert!(!traps_missing(&uffd, page(memory.range(), 1)));
}

#[test]
fn write_protection_set_before_a_change_to_missing_mode_no_longer_stops_writes() {
    let Some(uffd) = open(MOVES) else { return };
    let memory = populated_pages(2);
    fill(memory.range(), 1);
    uffd.register(memory.range(), Mode::WP).unwrap();
    uffd.write_protect(memory.range(), WriteProtect::Protect).unwrap();
    uffd.register(memory.range(), Mode::MISSING).unwrap();
    // Not trapped: this would wait for ever.
    memory.range().iter().for_each(|page| write(page, 2));
    assert_eq!(read(memory.range().start()), 2);
}

#[test]
fn unregistering_drops_write_protection_and_wakes_those_that_wait() {
    let Some(uffd) = open(MOVES) else { return };
    let memory = populated_pages(2);
    uffd.register(memory.range(), Mode::WP).unwrap();
    uffd.write_protect(memory.range(), WriteProtect::Protect).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| write(memory.range().start(), 3));
        next_event(&uffd, &mut EventBuffer::new());
        uffd.unregister(memory.range()).unwrap();
    });
    assert_eq!(read(memory.range().start()), 3);
    assert!(entries(memory.range()).iter().all(|entry| !entry.is_uffd_write_protected()));
}

#[test]
fn memory_of_another_context_is_refused() {
    let (Some(one), Some(other)) = (open(MOVES), open(MOVES)) else { return };
    let memory = pages(4);
    one.register(memory.range(), Mode::MISSING).unwrap();
    assert_eq!(other.register(memory.range(), Mode::MISSING), Err(Errno::BUSY));
    one.unregister(memory.range()).unwrap();
    assert_eq!(other.register(memory.range(), Mode::MISSING), Ok(()));
}

#[test]
fn any_context_may_unregister_memory_of_another_context() {
    let (Some(one), Some(other)) = (open(MOVES), open(MOVES)) else { return };
    let memory = pages(4);
    one.register(memory.range(), Mode::WP).unwrap();
    let result = other.unregister(memory.range());
    // Kernels differ here, and hetmem relies on neither: since 6.17 it is refused.
    assert!(matches!(result, Ok(()) | Err(Errno::INVAL)), "{result:?}");
}

fn map_file(fd: impl AsFd, flags: MapFlags) -> PageRange {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
    let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), 4096, access, flags, fd, 0) }.unwrap();
    PageRange::new(VirtAddr::new(start.expose_provenance() as u64), PageCount::ONE).unwrap()
}

#[test]
fn files_are_refused_and_memory_files_are_not() {
    let Some(uffd) = open(MOVES) else { return };
    let code = std::fs::OpenOptions::new().read(true).open(std::env::current_exe().unwrap()).unwrap();
    assert_eq!(uffd.register(map_file(&code, MapFlags::PRIVATE), Mode::MISSING), Err(Errno::INVAL));
    let memfd = rustix::fs::memfd_create(c"hetmem-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memfd, 4096).unwrap();
    for flags in [MapFlags::PRIVATE, MapFlags::SHARED] {
        assert_eq!(uffd.register(map_file(&memfd, flags), Mode::MISSING), Ok(()));
    }
}

#[test]
fn what_holes_can_be_filled_with_is_said_and_hugetlb_has_no_zeros() {
    let Some(uffd) = open(MOVES) else { return };
    assert_eq!(uffd.register_missing(pages(2).range()), Ok(Fill::Zeros));
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::HUGETLB);
    // SAFETY: a new mapping anywhere, which nobody touches: no huge page need be reserved for it.
    let start =
        unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), 2 << 20, access, flags | MapFlags::NORESERVE) };
    let Ok(start) = start else { return common::skip(&"no hugetlb") };
    let range = PageRange::new(VirtAddr::new(start.expose_provenance() as u64), PageCount::new(512)).unwrap();
    assert_eq!(uffd.register_missing(range), Ok(Fill::Copies));
}

#[test]
fn memory_that_is_not_mapped_is_refused() {
    let Some(uffd) = open(MOVES) else { return };
    // Far from wherever the kernel puts what other tests map meanwhile: it fills from the top, and the heap is by the executable.
    let nowhere = PageRange::new(VirtAddr::new(1 << 40), PageCount::new(2)).unwrap();
    let result = uffd.register(nowhere, Mode::MISSING);
    assert!(matches!(result, Err(Errno::NOMEM | Errno::INVAL)), "{result:?}");
}

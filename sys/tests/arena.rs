//! Arenas and advice on memory.
#![allow(unsafe_code, reason = "maps memory at an address of the test's choice")]

mod common;

use std::ops::ControlFlow;

use common::{pages, populated_pages, present, read, write};
use hetmem_core::units::{BLOCK_SIZE, PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{
    Access, Arena, ArenaOptions, HugePages, OnDump, OnFork, Prefault, is_mapped, populate_write,
};
use hetmem_sys::maps::{BUFFER_SIZE, Perms, for_each_mapping};

/// The mapping that holds `addr`: its range, permissions and name.
fn mapping_of(addr: VirtAddr) -> Option<(PageRange, Perms, Vec<u8>)> {
    let mut found = None;
    for_each_mapping(&mut [0; BUFFER_SIZE], |mapping| {
        if mapping.range.contains(addr) {
            found = Some((mapping.range, mapping.perms, mapping.name.to_vec()));
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

#[test]
fn an_arena_is_a_mapping_of_its_own_between_two_guards() {
    let arenas: Vec<_> = (0..4).map(|_| pages(700)).collect();
    for arena in &arenas {
        let range = arena.range();
        assert_eq!(range.pages(), PageCount::new(700));
        assert_eq!(range.start().get() % BLOCK_SIZE, 0);
        let (whole, perms, _) = mapping_of(range.start()).unwrap();
        assert_eq!((whole, perms), (range, Perms::READ | Perms::WRITE));
        for guard in [VirtAddr::new(range.start().get() - 1), range.end()] {
            let (_, perms, _) = mapping_of(guard).expect("a guard");
            assert_eq!(perms, Perms::NONE);
        }
    }
}

#[test]
fn an_arena_is_unmapped_when_it_is_dropped() {
    let arena = Arena::reserve(PageCount::new(3), &ArenaOptions::default()).unwrap();
    let range = arena.range();
    assert!(is_mapped(range));
    drop(arena);
    // Another test's arena may be there by now; then it isn't one of three pages.
    assert!(mapping_of(range.start()).is_none_or(|(whole, ..)| whole != range));
}

#[test]
fn options_show_in_the_mapping() {
    let options = ArenaOptions {
        huge_pages: HugePages::Never,
        on_fork: OnFork::Omit,
        on_dump: OnDump::Omit,
        prefault: Prefault::All,
        name: Some(c"hetmem:test"),
        ..ArenaOptions::default()
    };
    let arena = Arena::reserve(PageCount::new(6), &options).unwrap();
    assert_eq!(present(arena.range()), [true; 6]);
    let (_, _, name) = mapping_of(arena.range().start()).unwrap();
    // A kernel without names for anonymous memory shows none.
    assert!(name == b"[anon:hetmem:test]" || name.is_empty(), "{}", String::from_utf8_lossy(&name));
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let header = format!("{:x}-{:x} ", arena.range().start().get(), arena.range().end().get());
    let flags = smaps[smaps.find(&header).unwrap()..].lines().find(|line| line.starts_with("VmFlags:")).unwrap();
    for flag in [" dc", " dd", " nh"] {
        assert!(flags.contains(flag), "{flags}");
    }
}

#[test]
fn an_arena_drops_and_populates_its_own_pages_only() {
    let arena = populated_pages(4);
    let range = arena.range();
    write(range.start(), 7);
    arena.discard(range.slice(PageCount::ZERO, PageCount::new(2))).unwrap();
    assert_eq!(present(range), [false, false, true, true]);
    assert_eq!(read(range.start()), 0);
    let beyond = PageRange::new(range.start(), PageCount::new(5)).unwrap();
    assert_eq!(arena.discard(beyond), Err(Errno::INVAL));
    assert_eq!(arena.populate(beyond), Err(Errno::INVAL));
}

#[test]
fn sizes_that_make_no_arena_are_refused() {
    let reserve = |count| Arena::reserve(PageCount::new(count), &ArenaOptions::default()).map(|_| ());
    assert_eq!(reserve(0), Err(Errno::INVAL));
    for count in [u64::MAX, u64::MAX / 4096, 1 << 40] {
        assert_eq!(reserve(count), Err(Errno::NOMEM));
    }
}

#[test]
fn populating_what_is_not_writable_or_not_mapped_is_refused() {
    let memory = pages(2);
    common::protect(memory.range(), rustix::mm::MprotectFlags::READ);
    assert_eq!(populate_write(memory.range()), Err(Errno::INVAL));
    let guard = PageRange::new(memory.range().end(), PageCount::ONE).unwrap();
    assert_eq!(populate_write(guard), Err(Errno::INVAL));
    // The first pages of the address space are nobody's.
    assert_eq!(populate_write(PageRange::new(VirtAddr::new(0), PageCount::ONE).unwrap()), Err(Errno::NOMEM));
}

/// The mappings of `range`: where they begin and end.
fn mappings_of(range: PageRange) -> Vec<PageRange> {
    let mut found = Vec::new();
    hetmem_sys::maps::for_each_mapping(&mut [0; 4096], |mapping| {
        found.extend(mapping.range.intersect(range).filter(|part| !part.is_empty()));
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    found
}

#[test]
fn blocks_that_are_opened_in_any_order_become_one_mapping() {
    let block = PageCount::new(hetmem_core::units::BLOCK_PAGES);
    let options = ArenaOptions { access: Access::AsOpened, huge_pages: HugePages::Never, ..ArenaOptions::default() };
    let arena = Arena::reserve(block + block + block, &options).unwrap();
    let part = |i: u64| arena.range().slice(PageCount::new(i * block.get()), block);
    assert_eq!(mappings_of(arena.range()).len(), 1, "nothing of it can be used");
    for i in [2, 0, 1] {
        assert!(arena.populate(part(i)).is_err(), "it can't be used before");
        arena.open(part(i)).unwrap();
        arena.populate(part(i)).unwrap();
    }
    assert_eq!(mappings_of(arena.range()), [arena.range()]);
    let beyond = PageRange::new(arena.range().end(), PageCount::ONE).unwrap();
    assert_eq!(arena.open(beyond), Err(Errno::INVAL));
}

#[test]
fn every_block_that_is_opened_can_be_a_huge_page() {
    let block = PageCount::new(hetmem_core::units::BLOCK_PAGES);
    let huge = |access| {
        let options = ArenaOptions { access, huge_pages: HugePages::Prefer, ..ArenaOptions::default() };
        let arena = Arena::reserve(block, &options).unwrap();
        arena.open(arena.range()).unwrap();
        arena.populate(arena.range()).unwrap();
        common::is_huge(arena.range())
    };
    // Where the host has huge pages to give at all.
    if huge(Access::All) {
        assert!(huge(Access::AsOpened));
    }
}

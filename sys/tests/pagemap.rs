//! The page map: what is there, and of which kind.

#![expect(unsafe_code, reason = "guard markers discard memory that is named by number")]

mod common;

use common::{huge_page, page, pages, populated_pages, read, skip};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::mapping::{Guard, guard};
use hetmem_sys::pagemap::{Categories, PagemapEntry, PagemapScanner, Region, ScanQuery};

const PRESENT: ScanQuery = ScanQuery {
    any_of: Categories::NONE,
    all_of: Categories::PRESENT,
    inverted: Categories::NONE,
    report: Categories::PRESENT.union(Categories::PFNZERO),
};

fn scan(range: PageRange, query: ScanQuery, room: usize) -> Option<(Vec<Region>, VirtAddr)> {
    let mut out = vec![Region::default(); room];
    match PagemapScanner::open().and_then(|scanner| scanner.scan(range, query, &mut out)) {
        Ok((count, end)) => {
            out.truncate(count);
            Some((out, end))
        }
        Err(errno) => {
            skip(&errno);
            None
        }
    }
}

#[test]
fn a_scan_finds_runs_of_pages_and_tells_the_zero_page_apart() {
    let memory = pages(10);
    let range = memory.range();
    memory.populate(range.slice(PageCount::new(2), PageCount::new(3))).unwrap();
    read(page(range, 5).start());
    memory.populate(page(range, 8)).unwrap();
    let Some((found, end)) = scan(range, PRESENT, 8) else { return };
    let zero = Categories::PRESENT | Categories::PFNZERO;
    let expected = [(2, 3, Categories::PRESENT), (5, 1, zero), (8, 1, Categories::PRESENT)];
    let expected = expected.map(|(skip, take, kind)| (range.slice(PageCount::new(skip), PageCount::new(take)), kind));
    assert_eq!(found.iter().map(|region| (region.range(), region.categories())).collect::<Vec<_>>(), expected);
    assert_eq!(end, range.end());

    let written = ScanQuery { all_of: PRESENT.all_of | Categories::PFNZERO, inverted: Categories::PFNZERO, ..PRESENT };
    let Some((found, _)) = scan(range, written, 8) else { return };
    assert_eq!(found.len(), 2);
    let holes = ScanQuery { inverted: Categories::PRESENT, report: Categories::NONE, ..PRESENT };
    let Some((found, _)) = scan(range, holes, 8) else { return };
    assert_eq!(found.iter().map(|region| region.range().pages().get()).sum::<u64>(), 5);
}

#[test]
fn a_scan_that_runs_out_of_room_says_where_to_go_on() {
    let memory = pages(8);
    memory.range().iter().step_by(2).for_each(|start| memory.populate(PageRange::page_of(start)).unwrap());
    let (mut rest, mut seen) = (memory.range(), 0);
    while !rest.is_empty() {
        let Some((found, end)) = scan(rest, PRESENT, 1) else { return };
        seen += found.len();
        assert!(end > rest.start());
        rest = PageRange::between(end, rest.end()).unwrap();
    }
    assert_eq!(seen, 4);
    let Some((found, end)) = scan(PageRange::new(memory.range().start(), PageCount::ZERO).unwrap(), PRESENT, 1) else {
        return;
    };
    assert!(found.is_empty() && end == memory.range().start());
}

/// As such, and on kernels that do not tell them from pages in swap, as those.
#[test]
fn guard_markers_are_no_pages_and_are_told_apart_from_holes() {
    let memory = populated_pages(6);
    let range = memory.range();
    let guards = range.slice(PageCount::new(2), PageCount::new(2));
    // SAFETY: the test's own memory, whose contents it gives up.
    if let Err(errno) = unsafe { guard(guards.start().get(), guards.pages().bytes().get(), Guard::Install) } {
        return skip(&errno);
    }
    let (tells, blind) = (PagemapScanner::open().unwrap(), PagemapScanner::open().unwrap().without_guards());
    assert!(!blind.tells_guards());
    for scanner in [tells, blind] {
        let mut found = [Region::default(); 4];
        assert_eq!(scanner.guarded(range, &mut found), Ok((1, range.end())));
        assert_eq!(found[0].range(), guards);
        assert_eq!(scanner.first_guarded(range), (false, PageCount::new(2)));
        assert_eq!(scanner.first_guarded(guards), (true, PageCount::new(2)));
        assert_eq!(scanner.first_guarded(page(range, 5)), (false, PageCount::ONE));
        assert_eq!([1, 2, 5].map(|i| scanner.is_page(page(range, i).start())), [Ok(true), Ok(false), Ok(true)]);
    }
    // SAFETY: as above.
    unsafe { guard(guards.start().get(), guards.pages().bytes().get(), Guard::Remove) }.unwrap();
    let scanner = PagemapScanner::open().unwrap();
    assert_eq!(scanner.first_guarded(range), (false, PageCount::new(6)));
    assert_eq!(scanner.is_page(guards.start()), Ok(false));
}

#[test]
fn a_huge_page_is_reported_as_one() {
    let Some(memory) = huge_page() else { return };
    let query = ScanQuery { report: Categories::PRESENT | Categories::HUGE, ..PRESENT };
    let Some((found, _)) = scan(memory.range(), query, 4) else { return };
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].categories(), Categories::PRESENT | Categories::HUGE);
}

#[test]
fn entries_are_read_for_as_many_pages_as_there_is_room_for() {
    let memory = pages(200);
    memory.populate(page(memory.range(), 150)).unwrap();
    let scanner = PagemapScanner::open().unwrap();
    let mut all = vec![PagemapEntry::default(); 300];
    assert_eq!(scanner.entries(memory.range(), &mut all), Ok(200));
    let present: Vec<_> = (0..300).filter(|i| all[*i].is_present()).collect();
    assert_eq!(present, [150]);
    assert!(all[150].is_mapped_once() && !all[150].is_swapped() && !all[150].is_file());
    assert_eq!(scanner.entries(memory.range(), &mut all[..151]), Ok(151));
}

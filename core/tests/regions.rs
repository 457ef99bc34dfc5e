//! Memory comes under management once, whoever asks for it at the same time.

use std::sync::Barrier;

use hetmem_core::port::FaultPath;
use hetmem_core::space::{Region, Space};
use hetmem_core::units::{BLOCK_PAGES, PageCount, PageRange, VirtAddr};
use proptest::prelude::*;

const RACERS: usize = 4;

fn pages(first: u64, count: u64) -> PageRange {
    PageRange::new(VirtAddr::new(1 << 30).add_pages(PageCount::new(first)), PageCount::new(count)).unwrap()
}

#[test]
fn a_range_of_which_a_part_is_managed_is_refused_whole() {
    let space = Space::default();
    assert_eq!(space.add_new_region(pages(4, 4), Region::default()), Ok(()));
    assert_eq!(space.add_new_region(pages(6, 4), Region::default()), Err(pages(6, 2)), "the part is named");
    assert_eq!(space.add_new_region(pages(0, 16), Region::default()), Err(pages(4, 4)));
    assert_eq!(space.regions(), [(pages(4, 4), Region::default())]);
    assert_eq!(space.add_rest(pages(0, 16), Region::default()), [pages(0, 4), pages(8, 8)]);
    assert_eq!(space.add_rest(pages(0, 16), Region::default()), []);
}

/// Overlapping ranges: without one lock around look and change, two threads find the same pages free.
#[test]
fn of_those_who_adopt_at_once_one_gets_each_page() {
    for round in 0..400 {
        let space = Space::default();
        let start = Barrier::new(RACERS);
        let whole = pages(round, BLOCK_PAGES);
        let got: Vec<Vec<PageRange>> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..RACERS)
                .map(|racer| {
                    let (space, start) = (&space, &start);
                    scope.spawn(move || {
                        start.wait();
                        let part =
                            whole.slice(PageCount::new(racer as u64), PageCount::new(BLOCK_PAGES - RACERS as u64));
                        if racer % 2 == 0 {
                            space.add_rest(part, Region::default())
                        } else {
                            space.add_new_region(part, Region::default()).map_or(Vec::new(), |()| vec![part])
                        }
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let parts: Vec<PageRange> = got.into_iter().flatten().collect();
        for (i, part) in parts.iter().enumerate() {
            assert!(parts[..i].iter().all(|other| !other.overlaps(*part)), "{parts:?}");
        }
        let adopted: PageCount = parts.iter().map(|part| part.pages()).sum();
        let managed: PageCount = space.regions().iter().map(|(part, _)| part.pages()).sum();
        assert_eq!(adopted, managed);
    }
}

/// All extents, found by a look at all regions.
fn all_extents(space: &Space) -> Vec<(PageRange, FaultPath)> {
    let mut extents: Vec<(PageRange, FaultPath)> = Vec::new();
    for (part, region) in space.regions() {
        match extents.last_mut() {
            Some((last, path)) if last.end() == part.start() && *path == region.path => {
                *last = PageRange::between(last.start(), part.end()).unwrap();
            }
            _ => extents.push((part, region.path)),
        }
    }
    extents
}

proptest! {
    #[test]
    fn the_extents_of_ranges_are_those_that_they_overlap(
        regions in prop::collection::vec((0u64..60, 1u64..8, any::<bool>()), 0..24),
        asked in prop::collection::vec((0u64..70, 0u64..20), 0..6),
    ) {
        let space = Space::default();
        for (first, count, by_signal) in regions {
            let path = if by_signal { FaultPath::Sigbus } else { FaultPath::Thread };
            space.add_region(pages(first, count), Region { path, ..Region::default() });
        }
        let asked: Vec<PageRange> = asked.into_iter().map(|(first, count)| pages(first, count)).collect();
        let mut expected = all_extents(&space);
        expected.retain(|(extent, _)| asked.iter().any(|range| range.overlaps(*extent)));
        prop_assert_eq!(space.extents(&asked), expected);
    }
}

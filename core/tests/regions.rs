//! Memory comes under management once, whoever asks for it at the same time.

use std::sync::Barrier;

use hetmem_core::space::{Region, Space};
use hetmem_core::units::{BLOCK_PAGES, PageCount, PageRange, VirtAddr};

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

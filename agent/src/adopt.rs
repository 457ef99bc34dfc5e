//! Which of the program's memory is managed: its private anonymous mappings, read and written. (Files come by another way, when they are mapped:
//! `files::file_mapped`.)
//!
//! Left alone are hetmem's own arenas, the main stack, and the variables of libraries (the C library's are used by the agent's threads too).

use hetmem_core::range_map::RangeMap;
use hetmem_core::units::PageRange;
use hetmem_sys::mapping::set_aside;

use hetmem::for_agent::Managed;

/// Brings the regions up to date with the program's mappings and returns what is managed now, in order of address.
pub(super) fn refresh(managed: &Managed) -> Vec<PageRange> {
    managed.while_no_file_comes(|| compare(managed))
}

fn compare(managed: &Managed) -> Vec<PageRange> {
    let mut alone = RangeMap::default();
    let files = managed.files();
    let others = set_aside().chain(managed.exclusions()).chain(files.iter().copied());
    others.for_each(|range| alone.insert(range, ()));
    let mut found = managed.adoptable(alone);
    let known = without(&managed.regions(), &files);
    for new in without(&found, &known) {
        managed.manage(new);
    }
    // What is left is no longer eligible: unmapped unnoticed, as nothing of it was away, or protected. The latter stays
    // managed until its pages are home.
    for old in without(&known, &found) {
        if managed.away_in(old).is_zero() {
            managed.forget(old);
        }
    }
    found.extend(files);
    found.sort_unstable_by_key(|range| range.start());
    managed.set_adopted(found.iter().map(|range| range.pages()).sum());
    found
}

/// What of `ranges` is in none of `others`; all are in order of address, and disjoint.
pub(super) fn without(ranges: &[PageRange], others: &[PageRange]) -> Vec<PageRange> {
    let mut left = Vec::new();
    let mut others = others.iter().peekable();
    for range in ranges {
        let mut at = range.start();
        while let Some(other) = others.peek() {
            if other.start() >= range.end() {
                break;
            }
            left.extend(PageRange::between(at, other.start()).filter(|part| !part.is_empty()));
            at = at.max(other.end());
            // One that goes on may cover the next range, too.
            if other.end() >= range.end() {
                break;
            }
            others.next();
        }
        left.extend(PageRange::between(at, range.end()).filter(|part| !part.is_empty()));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use hetmem_core::units::{PageCount, VirtAddr};

    fn ranges(pages: &[(u64, u64)]) -> Vec<PageRange> {
        let range = |(first, n): &(u64, u64)| PageRange::new(VirtAddr::new(first * 4096), PageCount::new(*n)).unwrap();
        pages.iter().map(range).collect()
    }

    #[test]
    fn what_others_cover_is_cut_out() {
        let all = ranges(&[(10, 10), (30, 5), (40, 1)]);
        assert_eq!(without(&all, &[]), all);
        assert_eq!(without(&all, &all), []);
        assert_eq!(
            without(&all, &ranges(&[(0, 12), (14, 2), (18, 15), (40, 9)])),
            ranges(&[(12, 2), (16, 2), (33, 2)])
        );
        assert_eq!(without(&ranges(&[(0, 50)]), &all), ranges(&[(0, 10), (20, 10), (35, 5), (41, 9)]));
        assert_eq!(without(&ranges(&[(35, 1), (36, 9)]), &all), ranges(&[(35, 1), (36, 4), (41, 4)]));
    }
}

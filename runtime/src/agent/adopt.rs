//! Which of the program's memory is managed: its private anonymous mappings, read and written.
//!
//! Left alone are hetmem's own arenas, the main stack, and the variables of libraries (the C library's are used by the agent's threads too).

use hetmem_core::port::FaultPath;
use hetmem_core::range_map::RangeMap;
use hetmem_core::space::Region;
use hetmem_core::units::PageRange;
use hetmem_sys::mapping::set_aside;
use hetmem_sys::maps::Perms;
use std::sync::atomic::Ordering::Relaxed;

use crate::inner::Inner;
use crate::mappings;

/// Brings the regions up to date with the program's mappings and returns what is managed now.
pub(super) fn refresh(inner: &Inner) -> Vec<PageRange> {
    let space = &inner.engine.space;
    let mut alone: Vec<PageRange> = set_aside().collect();
    alone.extend(space.exclusions());
    alone.extend(mappings::behind_files(|_, of_program| !of_program));
    let found = mappings::eligible(PageRange::ALL, Perms::READ | Perms::WRITE, &alone);
    let mut known = RangeMap::default();
    for (range, region) in space.regions() {
        known.insert(range, region);
    }
    for range in &found {
        for (part, region) in space.regions_in(*range) {
            if region.is_none() {
                space.add_region(part, Region { path: FaultPath::Thread, ..Region::default() });
            }
            known.remove(part);
        }
    }
    // What is left is no longer eligible: unmapped unnoticed, as nothing of it was away, or protected. The latter stays
    // managed until its pages are home.
    for (range, _) in known.iter() {
        let (unmapped, mapped) = inner.engine.away_in(range);
        if (unmapped + mapped).is_zero() {
            space.remove_region(range);
        }
    }
    let bytes: u64 = found.iter().map(|r| r.pages().bytes().get()).sum();
    inner.engine.counters.adopted_bytes.store(bytes, Relaxed);
    found
}

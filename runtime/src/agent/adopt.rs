//! Which of the program's memory is managed: its private anonymous mappings, read and written.
//!
//! Left alone are hetmem's own arenas, the main stack (the kernel reads arguments and environment there for others), and the
//! variables of libraries (the C library's are used by the agent's threads too).

use hetmem_core::port::FaultPath;
use hetmem_core::range_map::RangeMap;
use hetmem_core::space::Region;
use hetmem_core::units::{PageRange, VirtAddr};
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
    let found = eligible(&alone);
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

/// The program's private anonymous memory without what is to be left `alone`, in order of address.
fn eligible(alone: &[PageRange]) -> Vec<PageRange> {
    let mut found = Vec::new();
    let mut last_file: Option<(VirtAddr, bool)> = None;
    let mut program = Vec::new();
    mappings::visit(|mapping| {
        if mapping.inode != 0 {
            if program.is_empty() {
                // The first mapping of a file is the program's own: position-independent or not, it is lowest.
                program = mapping.name.to_vec();
            }
            last_file = Some((mapping.range.end(), mapping.name == program));
            return;
        }
        // Anonymous memory right behind a file's is the variables that the file has no bytes for.
        let behind = last_file.filter(|(end, _)| *end == mapping.range.start());
        if behind.is_some_and(|(_, of_program)| !of_program) {
            last_file = Some((mapping.range.end(), false));
            return;
        }
        if !mappings::is_private_anonymous(mapping) || !mapping.perms.contains(Perms::READ | Perms::WRITE) {
            return;
        }
        subtract(mapping.range, alone, &mut found);
    });
    found
}

fn subtract(range: PageRange, holes: &[PageRange], out: &mut Vec<PageRange>) {
    let Some(hole) = holes.iter().find_map(|hole| hole.intersect(range)) else {
        out.push(range);
        return;
    };
    for rest in [PageRange::between(range.start(), hole.start()), PageRange::between(hole.end(), range.end())] {
        if let Some(rest) = rest.filter(|r| !r.is_empty()) {
            subtract(rest, holes, out);
        }
    }
}

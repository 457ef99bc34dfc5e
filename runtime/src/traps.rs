//! Which ranges of the program are registered with userfaultfd, and how.
//!
//! | state | registered | touches of missing pages | cost to the program |
//! | --- | --- | --- | --- |
//! | free | not | the kernel's business | none |
//! | watched | for write protection | the kernel's business | events on munmap, mremap, madvise; none in use |
//! | trapped | for missing pages | wait and are reported | first touches of holes are reported too |
//!
//! A range is trapped while something in it is in transit or away, watched while coherent frames are mapped in it or it is mirrored, so that their
//! loss is noticed, and free otherwise. Whole extents change state together: a mapping that was half registered would be two to the
//! kernel, and `mremap` refuses to span two.
//!
//! Falling from trapped to watched has a moment in which the range is free: the kernel has no single step for it. An event
//! that falls into it goes unseen, so slots of mapped frames are hints, checked when they are used.

use hetmem_core::outcome::KeptReason;
use hetmem_core::port::FaultPath;
use hetmem_core::range_map::RangeMap;
use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::uffd::{Fill, Mode};

use crate::host::contexts::Contexts;

/// How a range is registered, and in which context. One that is free has no entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trap {
    Watched(FaultPath),
    Trapped(FaultPath),
}

#[derive(Default)]
struct Table {
    traps: RangeMap<Trap>,
    /// What requests under way rely on, and how many each.
    active: RangeMap<u32>,
    /// What was registered for missing pages and is not counted on: the program was changing mappings meanwhile.
    unsure: RangeMap<FaultPath>,
    /// Where mappings were that are a lifted block's now, until their end there is told.
    spares: Vec<PageRange>,
}

impl Table {
    /// Whether a request relies on a part of `extent`.
    fn is_active(&self, extent: PageRange) -> bool {
        self.active.overlapping(extent).next().is_some()
    }

    fn trap(&mut self, contexts: &Contexts, extent: PageRange, path: FaultPath) -> Vec<(PageRange, KeptReason)> {
        if is_trapped(&self.traps, extent, path) {
            return Vec::new();
        }
        let registered = contexts.program(path).register_missing(extent);
        if contexts.is_changing(path) {
            // What was registered may not be what an unread event is about to move here: not counted on.
            self.unsure.insert(extent, path);
            return Vec::new();
        }
        self.unsure.remove(extent);
        match registered {
            Ok(Fill::Zeros) => {
                self.traps.insert(extent, Trap::Trapped(path));
                Vec::new()
            }
            Ok(Fill::Copies) => {
                free_others(self, contexts, extent, path);
                trap_each_mapping(self, contexts, extent, path)
            }
            Err(_) => trap_each_mapping(self, contexts, extent, path),
        }
    }
}

/// How each range of the program is registered at the moment, and which of them requests under way rely on.
#[derive(Default)]
pub(crate) struct Traps {
    table: Mutex<Table>,
}

impl Traps {
    /// Traps the `parts` of `extent` until [`Traps::release`], and what of the rest is [`Traps::lifted`] until then; the gate is held. The parts are
    /// asked for when the claim is made. What can't be trapped is returned, with the reason.
    pub(crate) fn trap(
        &self,
        contexts: &Contexts,
        extent: PageRange,
        path: FaultPath,
        parts: impl FnOnce() -> Vec<PageRange>,
    ) -> Vec<(PageRange, KeptReason)> {
        let mut table = lock(&self.table);
        table.active.raise(extent);
        parts().into_iter().flat_map(|part| table.trap(contexts, part, path)).collect()
    }

    /// A block was lifted: what is mapped there now came with its registration, from `spare`.
    pub(crate) fn lifted(&self, spare: PageRange, block: PageRange, path: FaultPath) {
        let mut table = lock(&self.table);
        table.traps.insert(block, Trap::Trapped(path));
        table.spares.push(spare);
    }

    /// What stands in for a file's mapping came with its registration, from `spare`. It keeps that until the file is mapped again.
    pub(crate) fn stood_in(&self, spare: PageRange) {
        lock(&self.table).spares.push(spare);
    }

    /// Whether `range` is where a lifted block's mapping came from, and this its end: told once, right after the move.
    pub(crate) fn was_spare(&self, range: PageRange) -> bool {
        let mut table = lock(&self.table);
        let at = table.spares.iter().position(|spare| *spare == range);
        at.is_some_and(|at| table.spares.swap_remove(at) == range)
    }

    /// Ends a request's claim on `extent`; the gate is held. If no other has one, and `away` says that nothing in it is away, the range becomes
    /// watched if coherent frames are mapped in it or it is `mirrored`, else free.
    pub(crate) fn release(
        &self,
        contexts: &Contexts,
        extent: PageRange,
        mirrored: bool,
        away: impl FnOnce() -> (PageCount, PageCount),
    ) {
        let mut table = lock(&self.table);
        table.active.lower(extent);
        if table.is_active(extent) {
            return;
        }
        let (unmapped, mapped) = away();
        if !unmapped.is_zero() {
            return;
        }
        let parts: Vec<(PageRange, Trap)> =
            table.traps.overlapping(extent).filter_map(|(r, t)| Some((r.intersect(extent)?, *t))).collect();
        for (part, trap) in parts {
            let Trap::Trapped(path) = trap else { continue };
            if !unregister(contexts, path, part) {
                continue;
            }
            table.traps.remove(part);
            if (mapped.is_zero() && !mirrored) || contexts.program(path).register(part, Mode::WP).is_err() {
                continue;
            }
            let mut now = Trap::Watched(path);
            if contexts.is_changing(path) {
                // As in `unregister`: another mapping may have been moved there, whose missing pages must stay trapped.
                let _ = contexts.program(path).register(part, Mode::MISSING);
                now = Trap::Trapped(path);
            }
            table.traps.insert(part, now);
        }
    }

    /// Ends every registration in `range`; `false` if one was kept.
    pub(crate) fn forget(&self, contexts: &Contexts, range: PageRange) -> bool {
        let mut table = lock(&self.table);
        let mut all = true;
        for (part, path) in table.unsure.remove(range) {
            for kept in unregister_each(contexts, path, part) {
                table.unsure.insert(kept, path);
                all = false;
            }
        }
        for (part, trap) in table.traps.remove(range) {
            let (Trap::Watched(path) | Trap::Trapped(path)) = trap;
            for kept in unregister_each(contexts, path, part) {
                table.traps.insert(kept, Trap::Trapped(path));
                all = false;
            }
        }
        all
    }

    /// `range` was unmapped.
    pub(crate) fn unmapped(&self, range: PageRange) {
        let mut table = lock(&self.table);
        table.traps.remove(range);
        table.unsure.remove(range);
    }

    /// `from` is now at `to`, registrations and all.
    pub(crate) fn remapped(&self, from: PageRange, to: VirtAddr) {
        let mut table = lock(&self.table);
        let place =
            |part: PageRange| PageRange::new(to.add_pages(part.start().pages_since(from.start())), part.pages());
        for (part, trap) in table.traps.remove(from) {
            place(part).into_iter().for_each(|at| table.traps.insert(at, trap));
        }
        for (part, path) in table.unsure.remove(from) {
            place(part).into_iter().for_each(|at| table.unsure.insert(at, path));
        }
    }

    /// The ranges that are trapped and that no request relies on.
    pub(crate) fn idle(&self) -> Vec<PageRange> {
        let table = lock(&self.table);
        let trapped = table.traps.iter().filter(|(_, t)| matches!(t, Trap::Trapped(..)));
        trapped.map(|(r, _)| r).filter(|r| !table.is_active(*r)).collect()
    }
}

/// Ends the registration of `part`; `false` if it was kept.
///
/// The kernel unregisters what is mapped there at the moment, which may be another mapping than the one that the books speak
/// of: one that `mremap` has just moved there, with pages that are away. So the registration stays if the program is
/// changing a mapping before or after. The gate is held, so that no event is read between the two looks, and the change of a
/// registered mapping shows until its event is read.
fn unregister(contexts: &Contexts, path: FaultPath, part: PageRange) -> bool {
    if contexts.is_changing(path) {
        return false;
    }
    if contexts.program(path).unregister(part).is_err() {
        // The range is no longer what it was; an event will say how.
        return false;
    }
    if !contexts.is_changing(path) {
        return true;
    }
    // Trapped again before the changer goes on: it waits for the event. A failure means that nothing is mapped there.
    let _ = contexts.program(path).register(part, Mode::MISSING);
    false
}

/// Ends the registrations of whatever is mapped in `part` now, which may be less than there was: an end that fell into the moment in which a range is
/// free was told to nobody. Returns what was kept.
fn unregister_each(contexts: &Contexts, path: FaultPath, part: PageRange) -> Vec<PageRange> {
    if unregister(contexts, path, part) {
        return Vec::new();
    }
    let Ok(mappings) = crate::mappings::mappings_in(&contexts.maps, part) else { return vec![part] };
    let kept = |mapping: &PageRange| !unregister(contexts, path, *mapping) && contexts.is_changing(path);
    let kept: Vec<PageRange> = mappings.into_iter().map(|(mapping, _)| mapping).filter(kept).collect();
    // While the program changes mappings any of this may be wrong in a moment.
    if contexts.is_changing(path) { vec![part] } else { kept }
}

fn is_trapped(traps: &RangeMap<Trap>, extent: PageRange, path: FaultPath) -> bool {
    let covered: PageCount = traps
        .overlapping(extent)
        .filter(|(_, t)| matches!(t, Trap::Trapped(p) if *p == path))
        .filter_map(|(r, _)| r.intersect(extent))
        .map(PageRange::pages)
        .sum();
    covered == extent.pages()
}

/// The extent, all of which was just registered, has hugetlb in it: a hole of that could not be filled, and whoever touches it would wait
/// for ever. What is not private and anonymous is let go of, as nothing of it can be away. (It stays registered until the next
/// request if the program changes a mapping just now.)
fn free_others(table: &mut Table, contexts: &Contexts, extent: PageRange, path: FaultPath) {
    // If nobody says which mapping is what, all are let go of; those of which something is away can't be, and are of the right kind.
    let mappings =
        crate::mappings::mappings_in(&contexts.maps, extent).unwrap_or_else(|_| untrapped(&table.traps, extent));
    for (mapping, _) in mappings.into_iter().filter(|(_, anonymous)| !anonymous) {
        if unregister(contexts, path, mapping) {
            table.traps.remove(mapping);
        }
    }
}

/// The parts of `extent` that no request had trapped before, as mappings of the wrong kind.
fn untrapped(traps: &RangeMap<Trap>, extent: PageRange) -> Vec<(PageRange, bool)> {
    let (mut parts, mut at) = (Vec::new(), extent.start());
    let trapped = traps.overlapping(extent).filter(|(_, trap)| matches!(trap, Trap::Trapped(_)));
    for (end, next) in trapped.map(|(range, _)| (range.start(), range.end())).chain([(extent.end(), extent.end())]) {
        parts.extend(PageRange::between(at, end).filter(|part| !part.is_empty()).map(|part| (part, false)));
        at = at.max(next);
    }
    parts
}

/// The extent is not one piece any more: each mapping in it is trapped by itself.
fn trap_each_mapping(
    table: &mut Table,
    contexts: &Contexts,
    extent: PageRange,
    path: FaultPath,
) -> Vec<(PageRange, KeptReason)> {
    let mut refused = Vec::new();
    let mut at = extent.start();
    let mut refuse = |from: VirtAddr, to: VirtAddr, reason| {
        refused.extend(PageRange::between(from, to).filter(|r| !r.is_empty()).map(|r| (r, reason)));
    };
    // Where the mappings can't be read nothing more is trapped.
    for (mapping, anonymous) in crate::mappings::mappings_in(&contexts.maps, extent).unwrap_or_default() {
        refuse(at, mapping.start(), KeptReason::Unmanaged);
        at = mapping.end();
        if !anonymous {
            refuse(mapping.start(), mapping.end(), KeptReason::Unsupported);
            continue;
        }
        if is_trapped(&table.traps, mapping, path) {
            continue;
        }
        match contexts.program(path).register(mapping, Mode::MISSING) {
            Ok(()) => table.traps.insert(mapping, Trap::Trapped(path)),
            Err(Errno::BUSY) => refuse(mapping.start(), mapping.end(), KeptReason::ForeignUserfaultfd),
            Err(Errno::NOMEM) => refuse(mapping.start(), mapping.end(), KeptReason::NoMemory),
            Err(_) => refuse(mapping.start(), mapping.end(), KeptReason::Unsupported),
        }
    }
    refuse(at, extent.end(), KeptReason::Unmanaged);
    refused
}

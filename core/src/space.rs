//! The address space under management: its regions, and where each of its pages is.
//!
//! Slots ([`crate::slot`]) are kept in blocks of 2 MiB, each with a lock of its own. A block exists only where something was
//! migrated once; memory that never was costs nothing, and a block of which little was migrated costs in proportion.
//!
//! | file | what |
//! | --- | --- |
//! | `blocks` | which blocks exist ([`BlockRef`]) |
//! | `block` | one of them: its lock, and what is said of its pages ([`Block`], [`BlockState`]) |
//! | `slots`, `near` | its pages' states, in as little as will do |
//! | `runs` | those of its pages that are alike |
//! | `kept` | removals and exclusions |
//!
//! # The gate
//!
//! Two activities must never overlap: reading what the program did to its mappings (events), and putting pages into those
//! mappings. Whoever installs or takes out pages holds the gate shared ([`Gate::share`]); whoever reads and applies events
//! holds it alone ([`Gate::events`]). So an event is applied to all slots before any later page is installed:
//!
//! ```text
//! migration                                   handler thread
//! --------------------------------------     ----------------------------------------
//! gate.share(); MOVE -> EAGAIN               (the program calls munmap: event queued)
//! let go of the gate, await_events()          gate.events(); read event; drop slots
//! gate.share(); the slot is gone: keep       let go of the gate
//! ```
//!
//! *Limits:* a block, once made, stays as long as its memory is managed, and as large as its last migration has left it: touches that bring pages
//! home neither allocate nor free.

mod block;
mod blocks;
mod kept;
mod near;
mod runs;
mod slots;

use crate::advice::Preference;
use crate::home::Home;
use crate::migrate::Target;
use crate::outcome::KeptReason;
use crate::port::FaultPath;
use crate::range_map::RangeMap;
use crate::sync::atomic::AtomicBool;
use crate::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard, read, try_read, write};
use crate::units::{PAGE_SIZE, PageRange, VirtAddr};
pub use block::{Block, BlockState};
pub use blocks::BlockRef;
use blocks::Blocks;
use kept::Removal;

/// What is said of a stretch of managed memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Region {
    /// How touches of its missing pages are served.
    pub path: FaultPath,
    /// What its pages are where hetmem has nothing of them.
    pub home: Home,
    /// Whether its pages must stay where they are.
    pub pinned: bool,
    /// Where its pages are best kept.
    pub preferred: Option<Preference>,
    /// Whether its pages are not used soon, and no policy has been told yet.
    pub not_soon: bool,
    /// Whether its management is about to end: pins keep its pages from coming home no longer.
    pub ending: bool,
    /// Whether nobody but hetmem maps, unmaps or protects what is there, so that device memory may be laid over it ([`crate::exchange`]).
    pub owned: bool,
}

impl Region {
    /// Whether pages of both may be of one batch: what is said of them differs only in what matters to policies.
    pub(crate) fn moves_as(&self, other: &Self) -> bool {
        let to_policies = |region: &Self| Self { preferred: None, not_soon: false, ..*region };
        to_policies(self) == to_policies(other)
    }
}

/// The lock between those who install or take out pages and who applies events.
#[derive(Default)]
pub struct Gate(RwLock<()>);

/// Permission to install pages in the program's mappings, and to take them out.
pub struct Shared<'a> {
    _guard: RwLockReadGuard<'a, ()>,
}

/// Permission to read and apply events.
pub struct Events<'a> {
    _guard: RwLockWriteGuard<'a, ()>,
}

impl Gate {
    /// Waits until nobody applies events.
    pub fn share(&self) -> Shared<'_> {
        Shared { _guard: read(&self.0) }
    }

    /// Waits until nobody installs or takes out.
    pub fn events(&self) -> Events<'_> {
        Events { _guard: write(&self.0) }
    }
}

/// Regions, slots, and what else is said of stretches of the address space.
#[derive(Default)]
pub struct Space {
    /// Orders events against installs.
    pub gate: Gate,
    regions: RwLock<RangeMap<Region>>,
    /// How many exclusions hold for a range; `u32::MAX` if one never ends.
    excluded: RwLock<RangeMap<u32>>,
    removals: Mutex<RangeMap<Removal>>,
    /// Whether some region may be [not used soon](Region::not_soon).
    pub(crate) some_not_soon: AtomicBool,
    blocks: Blocks,
}

impl Space {
    /// Forgets the blocks of `range` whose pages are all the system's: the books hold nothing of memory that is gone. Whoever
    /// looks a block up to act on it does so with the gate held, so that nobody acts on a forgotten one; but for who exchanges its mapping, who has it
    /// until that is done.
    pub fn forget_blocks(&self, _events: &Events<'_>, range: PageRange) {
        for (no, block) in self.blocks_in(range) {
            let is_of_no_use = {
                let state = block.lock();
                state.is_system() && !state.exchanging
            };
            if is_of_no_use {
                self.blocks.forget(no);
            }
        }
    }

    /// Puts `range` under management.
    pub fn add_region(&self, range: PageRange, region: Region) {
        write(&self.regions).insert(range, region);
    }

    /// Puts `range` under management if no part of it is.
    ///
    /// # Errors
    ///
    /// A part that is managed already; nothing has changed then.
    pub fn add_new_region(&self, range: PageRange, region: Region) -> Result<(), PageRange> {
        let mut regions = write(&self.regions);
        if let Some((managed, _)) = regions.overlapping(range).next() {
            return Err(managed.intersect(range).unwrap_or(managed));
        }
        regions.insert(range, region);
        Ok(())
    }

    /// Puts those parts of `range` under management that are not, and returns them, in order.
    pub fn add_rest(&self, range: PageRange, region: Region) -> Vec<PageRange> {
        let mut regions = write(&self.regions);
        let rest: Vec<PageRange> =
            parts_of(&regions, range).into_iter().filter(|(_, known)| known.is_none()).map(|(part, _)| part).collect();
        rest.iter().for_each(|part| regions.insert(*part, region));
        rest
    }

    /// Changes what is said of the managed parts of `range`. What says the same afterwards is one region, if it has no gap.
    pub fn change_region(&self, range: PageRange, change: impl Fn(&mut Region)) {
        let mut regions = write(&self.regions);
        for (part, mut region) in regions.remove(range) {
            change(&mut region);
            regions.insert(part, region);
        }
        unite(&mut regions, range);
    }

    /// Ends the management of `range`; its pages must be home.
    pub fn remove_region(&self, range: PageRange) {
        write(&self.regions).remove(range);
    }

    /// Moves what is managed in `from` to the same places after `to`'s start.
    pub(crate) fn move_regions(&self, from: PageRange, to: PageRange) {
        let mut regions = write(&self.regions);
        let moved = regions.remove(from);
        regions.remove(to);
        for (part, mut region) in moved {
            let at = to.slice(part.start().pages_since(from.start()), part.pages());
            region.home = region.home.moved(part.start(), at.start());
            regions.insert(at, region);
        }
    }

    /// The region at `page`, if it is managed.
    #[must_use]
    pub fn region_at(&self, page: VirtAddr) -> Option<(PageRange, Region)> {
        read(&self.regions).get(page).map(|(range, region)| (range, *region))
    }

    /// Whether touches of all pages of `range` are served by `path`.
    pub(crate) fn is_managed(&self, range: PageRange, path: FaultPath) -> bool {
        self.is_all(range, |region| region.path == path)
    }

    /// Whether all pages of `range` are managed, and `what` is so of each region.
    pub(crate) fn is_all(&self, range: PageRange, what: impl Fn(&Region) -> bool) -> bool {
        let regions = read(&self.regions);
        let mut at = range.start();
        for (found, region) in regions.overlapping(range) {
            if found.start() > at || !what(region) {
                return false;
            }
            at = found.end();
        }
        at >= range.end()
    }

    /// `range` cut at region boundaries, with the region of each part; `None` for the unmanaged parts.
    #[must_use]
    pub fn regions_in(&self, range: PageRange) -> Vec<(PageRange, Option<Region>)> {
        parts_of(&read(&self.regions), range)
    }

    /// The extents of `ranges`, in order: each region of anonymous memory that overlaps one of them, joined with those before and behind it that touch
    /// it and have its path. An extent is one mapping to the kernel. The cost is that of the regions that are named or joined, however many others there are.
    #[must_use]
    pub fn extents(&self, ranges: &[PageRange]) -> Vec<(PageRange, FaultPath)> {
        let mut ranges: Vec<PageRange> = ranges.iter().copied().filter(|range| !range.is_empty()).collect();
        ranges.sort_unstable_by_key(|range| range.start());
        let regions = read(&self.regions);
        let mut extents: Vec<(PageRange, FaultPath)> = Vec::new();
        for range in ranges {
            // What lies in the last extent is in the list.
            let from = extents.last().map_or(range.start(), |(last, _)| range.start().max(last.end()));
            let Some(rest) = PageRange::between(from, range.end()).filter(|rest| !rest.is_empty()) else { continue };
            for (region, Region { path, home, .. }) in regions.overlapping(rest) {
                let is_listed = extents.last().is_some_and(|(last, _)| last.end() > region.start());
                if *home == Home::Anonymous && !is_listed {
                    extents.push((joined(&regions, region, *path), *path));
                }
            }
        }
        extents
    }

    /// All regions, in order.
    #[must_use]
    pub fn regions(&self) -> Vec<(PageRange, Region)> {
        read(&self.regions).iter().map(|(range, region)| (range, *region)).collect()
    }

    /// The same, unless somebody is about to change them.
    pub(crate) fn try_regions(&self) -> Option<Vec<(PageRange, Region)>> {
        Some(try_read(&self.regions)?.iter().map(|(range, region)| (range, *region)).collect())
    }

    /// Checks every block.
    ///
    /// # Panics
    ///
    /// If an invariant does not hold.
    pub fn check(&self) {
        self.blocks.check();
    }
}

/// `region` and its neighbours on both sides that touch one another and have the same path.
fn joined(regions: &RangeMap<Region>, region: PageRange, path: FaultPath) -> PageRange {
    let joins = |region: &Region| region.path == path && region.home == Home::Anonymous;
    let of_path = |at: VirtAddr| regions.get(at).filter(|(_, region)| joins(region)).map(|(range, _)| range);
    let (mut start, mut end) = (region.start(), region.end());
    while let Some(before) = start.get().checked_sub(PAGE_SIZE).and_then(|at| of_path(VirtAddr::new(at))) {
        start = before.start();
    }
    while let Some(behind) = of_path(end) {
        end = behind.end();
    }
    PageRange::between(start, end).unwrap_or(region)
}

/// Makes one region of those in `range`, and beside it, that follow one another and say the same.
fn unite(regions: &mut RangeMap<Region>, range: PageRange) {
    let before = VirtAddr::new(range.start().get().saturating_sub(PAGE_SIZE));
    // Beside the last page there is none.
    let behind = range.end().get().checked_add(PAGE_SIZE).map_or(range.end(), VirtAddr::new);
    let Some(around) = PageRange::between(before, behind) else { return };
    let found: Vec<(PageRange, Region)> = regions.overlapping(around).map(|(part, region)| (part, *region)).collect();
    for alike in found.chunk_by(|(a, of_a), (b, of_b)| a.end() == b.start() && of_a == of_b) {
        if let [(first, region), .., (last, _)] = alike
            && let Some(all) = PageRange::between(first.start(), last.end())
        {
            regions.insert(all, *region);
        }
    }
}

fn parts_of(regions: &RangeMap<Region>, range: PageRange) -> Vec<(PageRange, Option<Region>)> {
    let (mut parts, mut at) = (Vec::new(), range.start());
    for (found, region) in regions.overlapping(range) {
        let Some(part) = found.intersect(range) else { continue };
        if let Some(gap) = PageRange::between(at, part.start()).filter(|g| !g.is_empty()) {
            parts.push((gap, None));
        }
        parts.push((part, Some(*region)));
        at = part.end();
    }
    if let Some(gap) = PageRange::between(at, range.end()).filter(|g| !g.is_empty()) {
        parts.push((gap, None));
    }
    parts
}

/// Why a page of `region` may not be moved to `target`, if so.
pub(crate) const fn kept_by_advice(region: &Region, target: Target) -> Option<KeptReason> {
    if region.pinned && !(region.ending && matches!(target, Target::System)) { Some(KeptReason::Advised) } else { None }
}

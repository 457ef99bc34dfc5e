//! Migration in three phases, as in the kernel's `migrate_vma_*`: collect, copy, finalize.
//!
//! ```text
//! Collected::collect   slots become busy, pages are taken out          drop: every page goes back
//!        |  copy
//! Copied               target frames are allocated and filled           drop: every page goes back
//!        |  finalize
//! Outcomes             slots point to the new place, waiters are woken
//! ```
//!
//! Each phase consumes the one before. At every instant a page's bytes are where its slot says: a page that was taken out lies
//! in a frame of the pool until the slot names its new frame. So a rollback that can't install a page again at once (an event is
//! unread) simply leaves it there, as any other page that a touch brings home.
//!
//! *Limits:* a batch lies in one block and one region; ranges are cut accordingly.

mod batch;
mod collect;
pub(crate) mod copy;
mod exclusive;
mod finalize;
mod sample;

pub(crate) use batch::{Batch, Origin, Piece};
pub use collect::Collected;
pub use copy::Copied;
pub(crate) use sample::push_page;
pub use sample::{Place, Sampled, Seen, Survey};

use std::sync::atomic::Ordering::Relaxed;

use crate::engine::Engine;
use crate::frames::Keep;
use crate::home::Home;
use crate::outcome::{KeptReason, Outcomes, PageOutcome};
use crate::physmap::Owner;
use crate::port::{FaultPath, Host};
use crate::space::{Block, BlockState, Region, kept_by_advice};
use crate::units::{DeviceId, PageCount, PageRange};

/// Which pages a request is about (`MIGRATE_VMA_SELECT_*`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Select(u8);

impl Select {
    /// Pages in system memory.
    pub const SYSTEM: Self = Self(1);
    /// Pages of private devices.
    pub const DEVICE_PRIVATE: Self = Self(2);
    /// Pages of coherent devices.
    pub const DEVICE_COHERENT: Self = Self(4);
    // `Engine::sample` takes them out, which has no way from the Rust API.
    /// Pages of system memory that a policy of `hetmem run` has taken out to see whether they are used.
    pub const SAMPLED: Self = Self(8);
    /// Every page.
    pub const ALL: Self = Self(7);

    /// Whether all kinds of `other` are selected.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What either selects.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Where pages are asked to go.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// Home, to system memory.
    System,
    /// To a device.
    Device(DeviceId),
}

/// What is asked of a migration.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Where to.
    pub target: Target,
    /// Which pages.
    pub select: Select,
    /// If given, device pages of other owners are left alone.
    pub owner: Option<Owner>,
}

impl Request {
    /// Every page that isn't there yet, whosever it is.
    #[must_use]
    pub const fn all_to(target: Target) -> Self {
        Self { target, select: Select::ALL, owner: None }
    }
}

impl<H: Host> Engine<H> {
    /// Migrates what `request` selects of `range` and says what became of each page.
    ///
    /// The caller has the range trapped: touches of missing pages wait. Pages outside every region are kept as
    /// [`KeptReason::Unmanaged`].
    pub fn migrate(&self, range: PageRange, request: Request) -> Outcomes {
        self.migrate_all(&[range], request).pop().unwrap_or_default()
    }

    /// Migrates what `request` selects of several ranges in one go, and says what became of each page, by ranges. Those of one block that follow one
    /// another share a batch.
    pub fn migrate_all(&self, ranges: &[PageRange], request: Request) -> Vec<Outcomes> {
        let mut all: Vec<Outcomes> =
            ranges.iter().map(|range| Outcomes::all_kept(range.pages(), KeptReason::Unmanaged)).collect();
        // Parts of the batch under way, with the number of the range that each is of.
        let mut batch: Vec<(PageRange, usize)> = Vec::new();
        let mut batch_region = Region::default();
        let mut known: Option<(PageRange, Region)> = None;
        for (i, range) in ranges.iter().enumerate() {
            let parts = match known {
                Some((extent, region)) if extent.contains_range(*range) => vec![(*range, Some(region))],
                _ => self.space.regions_in(*range),
            };
            known = self.space_region_of(*range, known);
            for (part, region) in parts {
                let Some(region) = region else { continue };
                for (block, piece) in part.by_block() {
                    let follows = batch.last().is_some_and(|(last, _)| {
                        last.start().block() == block && last.end() <= piece.start() && batch_region.moves_as(&region)
                    });
                    if !follows {
                        self.migrate_parts(&mut batch, batch_region, request, ranges, &mut all);
                    }
                    batch_region = region;
                    batch.push((piece, i));
                }
            }
        }
        self.migrate_parts(&mut batch, batch_region, request, ranges, &mut all);
        for outcomes in &all {
            self.counters.count_outcomes(outcomes);
        }
        let moved: PageCount = all.iter().map(Outcomes::moved).sum();
        match request.target {
            Target::System => self.counters.pages_migrated_to_system.fetch_add(moved.get(), Relaxed),
            Target::Device(_) => self.counters.pages_migrated_to_device.fetch_add(moved.get(), Relaxed),
        };
        all
    }

    /// The region around `range`, if one holds all of it; looked up only where `known` doesn't.
    fn space_region_of(&self, range: PageRange, known: Option<(PageRange, Region)>) -> Option<(PageRange, Region)> {
        match known {
            Some((extent, _)) if extent.contains_range(range) => known,
            _ => self.space.region_at(range.start()).filter(|(extent, _)| extent.contains_range(range)),
        }
    }

    /// Migrates the parts of `batch`, which it empties, and writes their outcomes to those of their ranges.
    fn migrate_parts(
        &self,
        batch: &mut Vec<(PageRange, usize)>,
        region: Region,
        request: Request,
        ranges: &[PageRange],
        all: &mut [Outcomes],
    ) {
        let (Some((first, _)), Some((last, _))) = (batch.first(), batch.last()) else { return };
        let Some(hull) = PageRange::between(first.start(), last.end()) else { return };
        if let Home::File(home) = region.home {
            return self.migrate_file_parts(batch, home, region, request, ranges, all);
        }
        if request.target == Target::System && self.space.existing_block(hull.start().block()).is_none() {
            // Nothing of the block was ever migrated.
            let reason = kept_by_advice(&region, request.target).unwrap_or(KeptReason::AlreadyThere);
            return keep_all(batch, reason, ranges, all);
        }
        let no = hull.start().block();
        let refused = match kept_by_advice(&region, request.target) {
            // Each page says so.
            Some(_) => None,
            None => self
                .refuses_to_lay(no, batch.iter().map(|(part, _)| *part), region, request.target)
                .or_else(|| self.lift_for(no, region.path, request).err()),
        };
        if let Some(reason) = refused {
            return keep_all(batch, reason, ranges, all);
        }
        self.make_room(hull.pages());
        // Neighbours are taken out together, whichever ranges they are of.
        let parts = batch.chunk_by(|(a, _), (b, _)| a.end() == b.start()).filter_map(|run| {
            let ((first, _), (last, _)) = (run.first()?, run.last()?);
            PageRange::between(first.start(), last.end())
        });
        let outcomes = match Collected::collect_parts(self, hull, parts, region, request).copy() {
            Ok(copied) => copied.finalize(),
            Err((collected, why)) => collected.all_kept(why),
        };
        self.trim_pool(Keep::Warm);
        for (part, i) in batch.drain(..) {
            let at = part.start().pages_since(ranges[i].start()).as_usize();
            let skip = part.start().pages_since(hull.start()).as_usize();
            all[i].copy_from(at, &outcomes, skip, part.pages().as_usize());
        }
    }

    pub(crate) fn migrate_batch(&self, batch: PageRange, region: Region, request: Request) -> Outcomes {
        self.make_room(batch.pages());
        match Collected::collect(self, batch, region, request).copy() {
            Ok(copied) => copied.finalize(),
            Err((collected, why)) => collected.all_kept(why),
        }
    }

    /// Wakes who was told to wait for pages of `range`: they look again, and find the page, or its new place.
    pub(crate) fn release_waiters(&self, block: &Block, state: &mut BlockState, path: FaultPath, range: PageRange) {
        if state.take_waited() {
            match path {
                FaultPath::Thread => self.host.wake(path, range),
                FaultPath::Sigbus => {}
            }
            block.notify_settled();
        }
    }
}

/// Keeps every page of the parts of `batch`, which it empties.
fn keep_all(batch: &mut Vec<(PageRange, usize)>, reason: KeptReason, ranges: &[PageRange], all: &mut [Outcomes]) {
    for (part, i) in batch.drain(..) {
        let at = part.start().pages_since(ranges[i].start()).as_usize();
        (at..at + part.pages().as_usize()).for_each(|page| all[i].set(page, PageOutcome::Kept(reason)));
    }
}

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
//! in a frame of the pool until the slot names its new frame. So a rollback that can't put a page back at once (an event is
//! unread) simply leaves it there, as any other page that a touch brings home.
//!
//! *Limits:* a batch lies in one block and one region; ranges are cut accordingly.

mod collect;
pub(crate) mod copy;
mod exclusive;
mod finalize;

pub use collect::Collected;
pub use copy::Copied;

use std::sync::atomic::Ordering::Relaxed;

use crate::engine::{Engine, Held};
use crate::outcome::{KeptReason, Outcomes, PageOutcome};
use crate::overlay::BLOCK;
use crate::physmap::Owner;
use crate::port::{FaultPath, Host, Install, PutStop};
use crate::slot::{SYSTEM_POOL, Slot};
use crate::space::{Block, BlockState, Region, kept_by_advice};
use crate::sync::Arc;
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

/// Where a page was before the migration, and goes back to if it fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// It was present, in system memory.
    System,
    /// It was present, in a mapped frame.
    Mapped,
    /// It was missing already, in the frame that holds it still.
    Unmapped,
}

/// Consecutive pages whose bytes lie in consecutive frames, busy on behalf of a batch, which has a reference to each frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) at: PageRange,
    pub(crate) bytes: Held,
    pub(crate) origin: Origin,
    /// They were one huge page.
    pub(crate) huge: bool,
}

impl Piece {
    pub(crate) fn slice(self, skip: PageCount, take: PageCount) -> Self {
        let at = self.at.slice(skip, take);
        Self { at, bytes: self.bytes.slice(skip, take), origin: self.origin, huge: self.huge && at.pages() == BLOCK }
    }

    /// Whether page `offset` of the piece is still this batch's: events may have dropped or moved it.
    pub(crate) fn is_ours(&self, state: &BlockState, offset: PageCount) -> bool {
        let index = self.at.start().add_pages(offset).index_in_block();
        state.slot(index) == Slot::Unmapped { frame: self.bytes.frame(offset), busy: true }
    }

    /// The number of pages from `from` on that are all still this batch's, or all no longer.
    pub(crate) fn same_fate(&self, state: &BlockState, from: PageCount) -> (bool, PageCount) {
        let ours = self.is_ours(state, from);
        let mut n = PageCount::ONE;
        while from + n < self.at.pages() && self.is_ours(state, from + n) == ours {
            n += PageCount::ONE;
        }
        (ours, n)
    }
}

/// What the phases of one batch have in common. Dropping it puts the pages of its pieces back.
pub(crate) struct Batch<'e, H: Host> {
    pub(crate) engine: &'e Engine<H>,
    pub(crate) block: Arc<Block>,
    pub(crate) range: PageRange,
    pub(crate) path: FaultPath,
    pub(crate) request: Request,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) outcomes: Outcomes,
}

impl<H: Host> Batch<'_, H> {
    pub(crate) fn set_outcome(&mut self, pages: PageRange, outcome: PageOutcome) {
        let first = pages.start().pages_since(self.range.start()).as_usize();
        for i in 0..pages.pages().as_usize() {
            self.outcomes.set(first + i, outcome);
        }
    }

    /// Puts the pages of `piece` back where they were, as far as they are still this batch's.
    pub(crate) fn put_back(&mut self, piece: Piece, reason: KeptReason) {
        self.set_outcome(piece.at, PageOutcome::Kept(reason));
        let _installing = self.engine.space.gate.install();
        let mut state = self.block.lock();
        let mut at = PageCount::ZERO;
        while at < piece.at.pages() {
            let (ours, n) = piece.same_fate(&state, at);
            let part = piece.slice(at, n);
            if ours {
                self.engine.put_back_ours(&mut state, self.path, part);
            } else {
                self.engine.put(part.bytes);
            }
            at += n;
        }
        self.engine.release_waiters(&self.block, &mut state, self.path, piece.at);
    }
}

impl<H: Host> Drop for Batch<'_, H> {
    fn drop(&mut self) {
        for piece in std::mem::take(&mut self.pieces) {
            self.put_back(piece, KeptReason::Raced);
        }
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

    /// The same for several ranges, in one go: ranges of one block that follow one another share a batch.
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
                        last.start().block() == block && last.end() <= piece.start() && batch_region == region
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
        self.trim_pool();
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

    /// Puts pages that are still the batch's back where they were, with the block locked and the gate held, and gives the
    /// batch's reference up. Never fails: what can't go back stays in its frame, no longer busy.
    pub(crate) fn put_back_ours(&self, state: &mut BlockState, path: FaultPath, piece: Piece) {
        let first = piece.at.start().index_in_block();
        let mut back = PageCount::ZERO;
        if piece.origin != Origin::Unmapped
            && !self.is_read_by_others(piece.bytes, 2)
            && let Some(from) = self.address(piece.bytes)
        {
            back = self.host.put_in(path, piece.at, from, Install::Move).pages;
        }
        for i in 0..piece.at.pages().as_usize() {
            let offset = PageCount::new(i as u64);
            let frame = piece.bytes.frame(offset);
            let slot = match piece.origin {
                Origin::System if offset < back => Slot::System,
                Origin::Mapped if offset < back => Slot::Mapped(frame),
                Origin::System | Origin::Mapped | Origin::Unmapped => Slot::Unmapped { frame, busy: false },
            };
            state.set(first + i, slot);
        }
        if piece.origin == Origin::System && !back.is_zero() {
            // The slots gave their reference up with the move, the batch gives up its own.
            let moved = piece.bytes.slice(PageCount::ZERO, back);
            self.put_moved(moved);
            self.put_moved(moved);
            let rest = piece.at.pages() - back;
            if !rest.is_zero() {
                self.put(piece.bytes.slice(back, rest));
            }
        } else {
            self.put(piece.bytes);
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

    /// What it means that a page that has nowhere else to be could not be put in.
    pub(crate) fn put_failure(&self, page: crate::units::VirtAddr, stop: PutStop) -> PutFailure {
        match stop {
            PutStop::EventsPending => PutFailure::LookAgain,
            PutStop::Gone | PutStop::Guarded => PutFailure::Dropped,
            PutStop::Refused | PutStop::NoMemory => PutFailure::StaysAway,
            PutStop::Occupied => {
                self.host.stop_the_program(page, "another page is already mapped where a migrated page belongs")
            }
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

/// See [`Engine::put_failure`].
pub(crate) enum PutFailure {
    /// Let go of the gate, wait for the event, look at the slot again.
    LookAgain,
    /// The program has unmapped or discarded the page; its bytes are of no use to anybody.
    Dropped,
    /// The page stays in its frame; a touch will try again.
    StaysAway,
}

pub(crate) const fn is_pool(held: Held) -> bool {
    held.device.index() == SYSTEM_POOL.index()
}

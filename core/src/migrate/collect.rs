//! Collect: decide for each page, and take out those that will move.

use crate::engine::Engine;
use crate::frames::{Frames, Left, Purpose, restate};
use crate::migrate::exclusive::OUT;
use crate::migrate::{Batch, Copied, Origin, Piece, Request, Select, Target};
use crate::outcome::{KeptReason, Outcomes, PageOutcome};
use crate::physmap::MemoryType;
use crate::port::{FaultPath, Host, Taken};
use crate::slot::{Frame, SYSTEM_POOL, Slot};
use crate::space::{BlockState, Region, kept_by_advice};
use crate::units::{PageCount, PageRange, VirtAddr};

/// Pages that were taken out, or were missing already, and are busy on behalf of this migration.
pub struct Collected<'e, H: Host> {
    pub(super) batch: Batch<'e, H>,
}

/// What to do with consecutive pages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plan {
    Keep(KeptReason),
    /// Present in system memory: take out to the pool.
    TakeSystem,
    /// Present in frames of a coherent device: take out to those frames.
    TakeMapped(Frame),
    /// Missing: the frame is theirs already.
    Hold(Frame),
}

impl Plan {
    /// Whether `next`, the plan of the page `n` places on, continues a run that began with this one.
    fn continues(self, next: Self, n: u64) -> bool {
        let follows =
            |a: Frame, b: Frame| a.device == b.device && u64::from(a.index.get()) + n == u64::from(b.index.get());
        match (self, next) {
            (Self::TakeMapped(a), Self::TakeMapped(b)) | (Self::Hold(a), Self::Hold(b)) => follows(a, b),
            (a, b) => a == b,
        }
    }
}

impl<'e, H: Host> Collected<'e, H> {
    /// Collects what `request` selects of `range`, which lies in one block and in `region`.
    pub fn collect(engine: &'e Engine<H>, range: PageRange, region: Region, request: Request) -> Self {
        Self::collect_parts(engine, range, std::iter::once(range), region, request)
    }

    /// Collects what `request` selects of several `parts` of `range`, in order of address.
    pub fn collect_parts(
        engine: &'e Engine<H>,
        range: PageRange,
        parts: impl Iterator<Item = PageRange>,
        region: Region,
        request: Request,
    ) -> Self {
        // The gate and the exclusions are held over decision and take-out: neither an event nor an exclusion can come between.
        let (shared, notice) = engine.share_noticed(range, request.event());
        let block = engine.space.block(range.start().block());
        let outcomes = Outcomes::all_kept(range.pages(), KeptReason::Raced);
        let path = region.path;
        let mut batch = Batch { engine, block, range, path, request, pieces: Vec::new(), outcomes };
        if let Some(reason) = kept_by_advice(&region, request.target) {
            batch.set_outcome(range, PageOutcome::Kept(reason));
            return Self { batch };
        }
        let suspects = engine.space.being_removed(
            range,
            |part| engine.host.present_parts(part),
            |announced, looks| engine.host.removal_is_over(announced, looks),
        );
        let holds = engine.holds_pages(&shared);
        // All are kept as `Raced` then.
        let Some(excluded) = engine.space.excluded() else { return Self { batch } };
        let block = batch.block.clone();
        let mut state = block.lock();
        if let Some(heat) = &mut state.heat {
            heat.look(engine.tick());
        }
        if let Target::Device(device) = request.target {
            // What only seems to be there already is to move.
            engine.forget_strays(&mut state, range, Some(device));
        }
        // Where nothing is said of single pages, those that are alike are planned alike.
        let by_run = suspects.overlapping(range).next().is_none() && excluded.overlapping(range).next().is_none();
        let plan = |state: &BlockState, pages: PageRange| {
            let (slot, alike) =
                state.slot_run(if by_run { pages } else { pages.slice(PageCount::ZERO, PageCount::ONE) });
            let page = pages.start();
            let plan = match plan_page(engine, slot, request) {
                // What was dropped of a block that is laid or lifted meanwhile is nobody's yet.
                _ if state.exchanging || suspects.get(page).is_some() => Plan::Keep(KeptReason::Raced),
                // What is out already may go home, and nowhere else.
                Plan::Hold(frame) if request.target == Target::System => Plan::Hold(frame),
                Plan::TakeSystem | Plan::TakeMapped(_) | Plan::Hold(_) if holds => Plan::Keep(KeptReason::Raced),
                _ if excluded.get(page).is_some() => Plan::Keep(KeptReason::ThreadState),
                plan @ (Plan::Keep(_) | Plan::TakeSystem | Plan::TakeMapped(_) | Plan::Hold(_)) => plan,
            };
            (plan, alike)
        };
        let mut trapped = Trapped::default();
        for part in parts {
            // The region was looked up earlier. If an event has ended it since, nobody watches what lies there now.
            if !engine.space.is_managed(part, path) {
                continue;
            }
            let mut at = part.start().pages_since(range.start());
            let part_end = at + part.pages();
            while at < part_end {
                let (mut first, mut n) = plan(&state, range.slice(at, part_end - at));
                let mut end = part_end;
                if matches!(first, Plan::TakeSystem | Plan::TakeMapped(_)) {
                    match trapped.ask(engine, path, range, at..range.pages()) {
                        Ok(until) => end = until.min(part_end),
                        Err(reason) => (first, end) = (Plan::Keep(reason), at + PageCount::ONE),
                    }
                }
                while at + n < end {
                    let (next, pages) = plan(&state, range.slice(at + n, end - at - n));
                    if !first.continues(next, n.get()) {
                        break;
                    }
                    n += pages;
                }
                let run = range.slice(at, n.min(end - at));
                match first {
                    Plan::Keep(reason) => batch.set_outcome(run, PageOutcome::Kept(reason)),
                    Plan::TakeSystem => take_system(&mut batch, &mut state, run),
                    Plan::TakeMapped(frame) => take_mapped(&mut batch, &mut state, run, frame),
                    Plan::Hold(frame) => {
                        let bytes = engine.refer_to(Frames::new(frame, run.pages()));
                        restate(&mut state, run, bytes.frames(), busy);
                        batch.pieces.push(Piece { at: run, bytes, origin: Origin::Unmapped, huge: false });
                    }
                }
                at += run.pages();
            }
        }
        drop(state);
        drop(excluded);
        drop(shared);
        // What was taken out is busy now, which no mirror uses. Where it goes from here needs no notice.
        drop(notice);
        Self { batch }
    }

    /// How many pages will move if nothing goes wrong.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        self.batch.pieces.iter().map(|p| p.at.pages()).sum()
    }

    /// Allocates and fills the target's frames.
    ///
    /// # Errors
    ///
    /// Hands the batch back, with the reason, if not one page could be copied.
    #[expect(clippy::result_large_err, reason = "a batch that can't be copied is handed back as it is")]
    pub fn copy(self) -> Result<Copied<'e, H>, (Self, KeptReason)> {
        Copied::copy(self.batch).map_err(|(batch, why)| (Self { batch }, why))
    }

    /// Puts every page back, kept for `reason`.
    #[must_use]
    pub fn all_kept(mut self, reason: KeptReason) -> Outcomes {
        for piece in std::mem::take(&mut self.batch.pieces) {
            self.batch.roll_back(piece, reason);
        }
        std::mem::take(&mut self.batch.outcomes)
    }
}

/// How far pages of a batch can be taken out, asked once for each mapping of the batch: what lies behind it may be another's. After a refusal the next
/// question is further on each time, so that a range that is refused as a whole costs little. A question is of no more than twice the last answer: the
/// host looks for the end of a mapping by trying, and where one is small, so is the next.
struct Trapped {
    until: PageCount,
    most: PageCount,
    refused: Option<KeptReason>,
    refusals: u32,
}

impl Default for Trapped {
    fn default() -> Self {
        Self { until: PageCount::ZERO, most: PageCount::BLOCK, refused: None, refusals: 0 }
    }
}

impl Trapped {
    fn ask<H: Host>(
        &mut self,
        engine: &Engine<H>,
        path: FaultPath,
        range: PageRange,
        pages: std::ops::Range<PageCount>,
    ) -> Result<PageCount, KeptReason> {
        let at = pages.start;
        if at >= self.until {
            let asked = range.slice(at, self.most.min(pages.end - at));
            match engine.host.trapped(path, asked) {
                Ok(pages) => {
                    let most = if pages < asked.pages() { pages } else { pages + pages };
                    *self = Self { until: at + pages, most, refused: None, refusals: 0 };
                }
                Err(reason) => {
                    self.until = at + PageCount::new(1 << self.refusals.min(9));
                    self.refused = Some(reason);
                    self.refusals += 1;
                }
            }
        }
        self.refused.map_or(Ok(self.until), Err)
    }
}

fn plan_page<H: Host>(engine: &Engine<H>, slot: Slot, request: Request) -> Plan {
    let is_laid = |frame: Frame| frame.device != SYSTEM_POOL && engine.lays(frame.device);
    match slot {
        Slot::Unmapped { busy: true, .. } => Plan::Keep(KeptReason::Raced),
        Slot::System if request.target == Target::System => Plan::Keep(KeptReason::AlreadyThere),
        Slot::System if !request.select.contains(Select::SYSTEM) => Plan::Keep(KeptReason::NotSelected),
        Slot::System => Plan::TakeSystem,
        // A page at rest in the pool counts as the system's.
        Slot::Unmapped { frame, .. } if frame.device == SYSTEM_POOL => {
            let selected = request.select.contains(Select::SYSTEM) || request.select.contains(Select::SAMPLED);
            if request.target != Target::System && !selected {
                return Plan::Keep(KeptReason::NotSelected);
            }
            Plan::Hold(frame)
        }
        // In such a frame nobody can use it in place.
        Slot::Unmapped { frame, .. } if request.target == OUT && is_laid(frame) => Plan::Keep(KeptReason::NotSelected),
        // It is there, but not to the program: it goes to frames of a block.
        Slot::Unmapped { frame, .. } if request.target == Target::Device(frame.device) && is_laid(frame) => {
            Plan::Hold(frame)
        }
        Slot::Unmapped { frame, .. } => engine.selects(frame, request).map_or_else(Plan::Keep, |()| Plan::Hold(frame)),
        Slot::Mapped(frame) => match engine.selects(frame, request) {
            Err(reason) => Plan::Keep(reason),
            // It was laid since it was lifted.
            Ok(()) if is_laid(frame) => Plan::Keep(KeptReason::Raced),
            Ok(()) => Plan::TakeMapped(frame),
        },
    }
}

impl<H: Host> Engine<H> {
    /// Whether `request` takes a page out of `frame`, which is a device's, or why not.
    pub(crate) fn selects(&self, frame: Frame, request: Request) -> Result<(), KeptReason> {
        if request.target == Target::Device(frame.device) {
            return Err(KeptReason::AlreadyThere);
        }
        let pagemap = self.device_of(frame.device).pagemap();
        let kind = match pagemap.memory_type {
            MemoryType::DevicePrivate => Select::DEVICE_PRIVATE,
            MemoryType::DeviceCoherent => Select::DEVICE_COHERENT,
        };
        if !request.select.contains(kind) {
            return Err(KeptReason::NotSelected);
        }
        // Who takes a page for itself leaves it in its frame.
        if request.target != OUT && request.owner.is_some_and(|owner| owner != pagemap.owner) {
            return Err(KeptReason::ForeignOwner);
        }
        Ok(())
    }
}

const fn busy(frame: Frame) -> Slot {
    Slot::Unmapped { frame, busy: true }
}

/// Why not all of the `asked` pages were taken, if so; a host that doesn't say is not asked for ever.
fn why_stopped(taken: Taken, asked: PageCount) -> Option<(KeptReason, PageCount)> {
    let short = || (taken.pages < asked).then_some((KeptReason::Raced, PageCount::ONE));
    taken.stop.or_else(short)
}

/// Takes pages of `from` out to `to`, unless they may be part of a huge page that stays one: as nothing but a huge page has room for another.
fn take_out<H: Host>(batch: &Batch<'_, H>, from: PageRange, to: VirtAddr, has_room_for_huge: bool) -> Taken {
    let host = &batch.engine.host;
    if has_room_for_huge || host.can_be_split(from) {
        host.take_out(batch.path, from, to)
    } else {
        Taken { pages: PageCount::ZERO, stop: Some((KeptReason::Shared, from.pages())) }
    }
}

fn take_system<H: Host>(batch: &mut Batch<'_, H>, state: &mut BlockState, run: PageRange) {
    let engine = batch.engine;
    let huge = run.pages() == PageCount::BLOCK && engine.host.is_huge(run);
    let mut rest = run;
    while !rest.is_empty() {
        let whole = (huge && rest == run)
            .then(|| engine.take_places(Purpose::Migration, |pool| pool.take_empty_whole()))
            .flatten();
        let is_whole = whole.is_some();
        let small = || engine.take_places(Purpose::Migration, |pool| pool.take_empty(rest.pages()));
        let Some(mut place) = whole.or_else(small) else {
            return batch.set_outcome(rest, PageOutcome::Kept(KeptReason::NoMemory));
        };
        let part = rest.slice(PageCount::ZERO, place.pages());
        let to = place.address().expect("places of the pool have an address");
        let taken = take_out(batch, part, to, is_whole);
        let out = part.slice(PageCount::ZERO, taken.pages);
        if !out.is_empty() {
            let refs = place.take_front(taken.pages);
            let bytes = refs.clone();
            state.expect(out.pages());
            engine.occupy(state, out, refs, busy);
            state.note_taken_out(out);
            let huge = huge && out.pages() == PageCount::BLOCK;
            batch.pieces.push(Piece { at: out, bytes, origin: Origin::System, huge });
        }
        let mut done = taken.pages;
        match why_stopped(taken, part.pages()) {
            None => {}
            // The place has a page already: it belongs to the stock. The next round takes another place.
            Some((KeptReason::Occupied, _)) => place.take_front(PageCount::ONE).release(Left::Page),
            Some((reason, pages)) => {
                let kept = rest.slice(taken.pages, pages.max(PageCount::ONE));
                batch.set_outcome(kept, PageOutcome::Kept(reason));
                done += kept.pages();
            }
        }
        place.release(Left::Nothing);
        rest = rest.slice(done, rest.pages());
    }
}

fn take_mapped<H: Host>(batch: &mut Batch<'_, H>, state: &mut BlockState, run: PageRange, first: Frame) {
    let engine = batch.engine;
    let frames = Frames::new(first, run.pages());
    let huge = run.pages() == PageCount::BLOCK && engine.host.is_huge(run);
    let is_whole = huge && !engine.device_of(first.device).pagemap().frames.is_divided(first.index);
    let mut at = PageCount::ZERO;
    while at < run.pages() {
        let rest = run.slice(at, run.pages());
        let bytes = frames.slice(at, rest.pages());
        let to = engine.address(bytes).expect("mapped frames are a coherent device's, which have an address");
        let taken = take_out(batch, rest, to, is_whole && at.is_zero());
        if !taken.pages.is_zero() {
            let out = rest.slice(PageCount::ZERO, taken.pages);
            let bytes = engine.refer_to(bytes.slice(PageCount::ZERO, taken.pages));
            restate(state, out, bytes.frames(), busy);
            state.note_taken_out(out);
            let huge = huge && out.pages() == PageCount::BLOCK;
            batch.pieces.push(Piece { at: out, bytes, origin: Origin::Mapped, huge });
        }
        at += taken.pages;
        if let Some((reason, pages)) = why_stopped(taken, rest.pages()) {
            let kept = run.slice(at, pages.max(PageCount::ONE));
            // The program dropped the page while nobody watched, or has lost it, and may have another there now, which is the system's.
            // The frame holds nothing of the program's, but whatever came to its place.
            if matches!(reason, KeptReason::Hole | KeptReason::Guarded | KeptReason::Poisoned) {
                engine.vacate(state, kept, Left::Nothing);
            } else if reason == KeptReason::Occupied {
                engine.vacate(state, kept, Left::Page);
            }
            batch.set_outcome(kept, PageOutcome::Kept(reason));
            at += kept.pages();
        }
    }
}

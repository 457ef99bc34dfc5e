//! Samples: pages that are taken out of the program for a while, to see whether they are touched.
//!
//! A page in use shows nothing. One that is out, and stays where it then is, costs nothing but the way: a frame of the pool, by moving the page
//! there, or its own frame of a coherent device. A touch is a fault as any other, which moves the page in and [notes it](crate::heat). Those that
//! nobody has touched are [put back](Engine::put_back), or go on to where they are wanted: as [`Select::SAMPLED`], or as pages of their device.
//!
//! ```text
//! Engine::survey     what is where, and how warm it is by what is known
//! Engine::sample     taken out: Unmapped in a frame, as after a rollback that could not put it back
//!                    … a touch moves it in
//! Engine::survey     who is out still was not touched
//! Engine::put_back   moves it in; or Engine::migrate
//! ```
//!
//! *Limits:* blocks of laid memory, and pages of files, and such as are pinned, shared or excluded, are not sampled.

use crate::engine::Engine;
use crate::heat::{BlockHeat, Heat};
use crate::home::Home;
use crate::install::{Installed, Source, Ways};
use crate::migrate::exclusive::OUT;
use crate::migrate::{Collected, Request, Select};
use crate::notifier::Event;
use crate::outcome::{KeptReason, PageOutcome};
use crate::port::{FaultPath, Host};
use crate::slot::{SYSTEM_POOL, Slot};
use crate::space::{Block, Region};
use crate::sync::atomic::Ordering::Relaxed;
use crate::units::{DeviceId, PageCount, PageRange, VirtAddr};

/// Where a page is, as a policy sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Place {
    /// Nowhere: there is no page.
    #[default]
    Nowhere,
    /// In system memory.
    System,
    /// On a device, where a sample of it would not show that it was touched, as it is private, or not a sample.
    Device(DeviceId),
    /// Of system memory, and out as a sample.
    Sampled,
    /// Of a coherent device, and out as a sample.
    SampledOn(DeviceId),
    /// On its way.
    Moving,
}

/// What is known of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Seen {
    /// Where it is.
    pub place: Place,
    /// How warm it is.
    pub heat: Heat,
}

/// What is known of the pages of a range.
#[derive(Debug, Default)]
pub struct Survey {
    /// They are one huge page, and best stay so.
    pub huge: bool,
    /// Each, in order.
    pub pages: Vec<Seen>,
}

/// What has come of taking pages out.
#[derive(Debug, Default)]
pub struct Sampled {
    /// How many are out.
    pub pages: PageCount,
    /// Those that could not be taken, as a fork has left them [shared](KeptReason::Shared), or somebody has pinned them, which looks the same.
    pub shared: Vec<PageRange>,
}

impl<H: Host> Engine<H> {
    /// It is tick `tick` now.
    pub fn set_tick(&self, tick: u32) {
        // Relaxed: it orders nothing.
        self.tick.store(tick, Relaxed);
    }

    pub(crate) fn tick(&self) -> u32 {
        self.tick.load(Relaxed)
    }

    /// Looks where each page of `range`, which lies in one block, is, and how warm. What moves meanwhile may be elsewhere on return.
    pub fn survey(&self, range: PageRange, survey: &mut Survey) {
        let all = range.start().block().range();
        survey.huge = range == all && self.host.is_huge(range);
        survey.pages.clear();
        survey.pages.resize(range.pages().as_usize(), Seen::default());
        let index = |page: VirtAddr| page.pages_since(range.start()).as_usize();
        if survey.huge {
            survey.pages.fill(Seen { place: Place::System, heat: Heat::UNKNOWN });
        } else {
            for part in self.host.present_parts(range) {
                survey.pages[index(part.start())..index(part.end())]
                    .iter_mut()
                    .for_each(|page| page.place = Place::System);
            }
        }
        // Events that were read are applied before anybody sees the gate open.
        let _shared = self.space.gate.share();
        let Some(block) = self.space.existing_block(range.start().block()) else { return };
        let mut state = block.lock();
        if let Some(heat) = &mut state.heat {
            heat.look(self.tick());
        }
        for (seen, page) in survey.pages.iter_mut().zip(range.iter()) {
            let index = page.index_in_block();
            if let Some(heat) = &state.heat {
                seen.heat = heat.page(index);
            }
            match state.slot(index) {
                Slot::System => {}
                Slot::Mapped(frame) => seen.place = Place::Device(frame.device),
                Slot::Unmapped { busy: true, .. } => seen.place = Place::Moving,
                Slot::Unmapped { frame, .. } if frame.device == SYSTEM_POOL => seen.place = Place::Sampled,
                Slot::Unmapped { frame, .. } if self.is_private(frame.device) => {
                    seen.place = Place::Device(frame.device)
                }
                Slot::Unmapped { frame, .. } => seen.place = Place::SampledOn(frame.device),
            }
        }
        survey.huge &= survey.pages.iter().all(|page| page.place == survey.pages[0].place);
    }

    /// Takes the pages of `ranges` that `select` names, of system memory and of coherent devices, out as samples. The caller has the ranges trapped, and
    /// makes pages that are shared the process's own, or [gives them up](Self::refuse_samples).
    pub fn sample(&self, ranges: &[PageRange], select: Select) -> Sampled {
        let mut sampled = Sampled::default();
        let request = Request { target: OUT, select, owner: None };
        let follows = |(a, of_a): &(PageRange, Region), (b, of_b): &(PageRange, Region)| {
            a.start().block() == b.start().block() && a.end() <= b.start() && of_a.moves_as(of_b)
        };
        let mut parts = self.managed_parts(ranges);
        // What stands in for a file's mapping takes no page back.
        parts.retain(|(_, region)| region.home == Home::Anonymous);
        for run in parts.chunk_by(follows) {
            let (Some((first, region)), Some((last, _))) = (run.first(), run.last()) else { continue };
            let Some(hull) = PageRange::between(first.start(), last.end()) else { continue };
            self.make_room(hull.pages());
            self.keep_heat(hull, run.len() == 1);
            let parts = run.iter().map(|(part, _)| *part);
            Collected::collect_parts(self, hull, parts, *region, request).leave_out(&mut sampled);
        }
        sampled
    }

    /// How warm the pages of `ranges` are is to be known from now on, though they are not sampled.
    pub fn expect_heat(&self, ranges: &[PageRange]) {
        self.managed_parts(ranges).into_iter().for_each(|(part, _)| self.keep_heat(part, true));
    }

    /// The pages of `range` can't be taken out: whoever looks for the coldest does not find them again at once.
    pub fn refuse_samples(&self, range: PageRange) {
        for (block, part) in range.by_block() {
            let _shared = self.space.gate.share();
            let Some(block) = self.space.existing_block(block) else { continue };
            if let Some(heat) = &mut block.lock().heat {
                part.iter().for_each(|page| heat.refused(page.index_in_block()));
            }
        }
    }

    /// Puts the pages of `ranges` back that are out as samples; how many came back. The others stay out until they are touched, or until this is
    /// called again.
    pub fn put_back(&self, ranges: &[PageRange]) -> PageCount {
        let mut put = PageCount::ZERO;
        for (part, region) in self.managed_parts(ranges) {
            let (shared, notice) = self.share_noticed(part, Event::Exclusive(None));
            if let Some(block) = self.space.existing_block(part.start().block()) {
                put += self.put_back_part(&block, region.path, part);
            }
            drop(shared);
            drop(notice);
        }
        put
    }

    fn put_back_part(&self, block: &Block, path: FaultPath, part: PageRange) -> PageCount {
        let mut state = block.lock();
        let (mut rest, mut put) = (part, PageCount::ZERO);
        while !rest.is_empty() {
            let resting = state.resting_run(rest).filter(|frames| self.address(*frames).is_some());
            let Some(frames) = resting else {
                let (_, pages) = state.slot_run(rest);
                rest = rest.slice(pages, rest.pages());
                continue;
            };
            let to = rest.slice(PageCount::ZERO, frames.run.pages);
            let mut refs = self.refer_to(frames);
            // A page that is copied in is not the device's.
            let ways = if frames.is_pool() { Ways::MoveOrCopy } else { Ways::Move };
            let installed = self.install(&mut state, path, to, Source::Slots(&mut refs), ways);
            let settled = to.slice(PageCount::ZERO, installed.settled());
            match installed {
                Installed::Pages(pages) => {
                    put += pages;
                    if let Some(heat) = &mut state.heat {
                        settled.iter().for_each(|page| heat.put_back(page.index_in_block()));
                    }
                }
                Installed::Discarded(_) => self.host.wake(path, settled),
                // A touch tries again, or stops the program.
                Installed::EventsPending | Installed::NoMemory => break,
                Installed::Refused => rest = rest.slice(PageCount::ONE, rest.pages()),
                Installed::Occupied => self.is_there_twice(to.start()),
            }
            rest = rest.slice(settled.pages(), rest.pages());
        }
        self.release_waiters(block, &mut state, path, part);
        state.shrink();
        put
    }

    /// The managed parts of `ranges`, each in one block and region.
    pub(crate) fn managed_parts(&self, ranges: &[PageRange]) -> Vec<(PageRange, Region)> {
        let by_region = ranges.iter().flat_map(|range| self.space.regions_in(*range));
        let managed = by_region.filter_map(|(part, region)| Some((part, region?)));
        managed.flat_map(|(part, region)| part.by_block().map(move |(_, piece)| (piece, region))).collect()
    }

    /// The block of `range` keeps heat from now on: of each page by itself, unless they are one huge page, which `whole` of `range` is to go.
    fn keep_heat(&self, range: PageRange, whole: bool) {
        let is_huge = whole && range.pages() == PageCount::BLOCK && self.host.is_huge(range);
        let _shared = self.space.gate.share();
        let block = self.space.block(range.start().block());
        let mut state = block.lock();
        let heat = state.heat.get_or_insert_with(|| Box::new(BlockHeat::new(self.tick())));
        if !is_huge {
            heat.divide();
        }
    }
}

impl<H: Host> Collected<'_, H> {
    /// Leaves the pages where they are now: out, and no longer busy.
    fn leave_out(mut self, sampled: &mut Sampled) {
        let batch = &mut self.batch;
        let _shared = batch.engine.space.gate.share();
        let block = batch.block.clone();
        let mut state = block.lock();
        for mut piece in std::mem::take(&mut batch.pieces) {
            while !piece.is_empty() {
                let (ours, n) = piece.same_fate(&state);
                let part = piece.take_front(n);
                if ours {
                    let at = part.at;
                    part.leave_out(&mut state);
                    batch.set_outcome(at, PageOutcome::Moved);
                    sampled.pages += n;
                }
            }
        }
        for (page, outcome) in batch.range.iter().zip(batch.outcomes.as_slice()) {
            match outcome {
                PageOutcome::Moved
                | PageOutcome::Kept(KeptReason::NotSelected | KeptReason::Raced | KeptReason::Hole) => {}
                PageOutcome::Kept(KeptReason::Shared) => push_page(&mut sampled.shared, page),
                // Whoever looks for pages to take out does not find those again at once that can't be.
                PageOutcome::Kept(_) => {
                    if let Some(heat) = &mut state.heat {
                        heat.refused(page.index_in_block());
                    }
                }
            }
        }
        batch.engine.release_waiters(&block, &mut state, batch.path, batch.range);
    }
}

/// Adds `page` to `ranges`, behind all of them.
pub(crate) fn push_page(ranges: &mut Vec<PageRange>, page: VirtAddr) {
    let page = PageRange::page_of(page);
    match ranges.last_mut() {
        Some(last) if last.end() == page.start() => {
            *last = PageRange::between(last.start(), page.end()).unwrap_or(*last)
        }
        _ => ranges.push(page),
    }
}

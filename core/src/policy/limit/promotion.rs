//! What is used on coherent devices: some chunks at a time are out as samples for a short while, by turns, and what is touched meanwhile is promoted.
//!
//! It costs time, most of it by what each change of a page table makes other processors do. What it costs is measured, with all that is done beside it
//! to keep the limit, and held to a share of the time that the program uses. That is the larger the more often what is there is touched than what would
//! leave for it, as samples of either show: where both are touched alike, a page that is promoted is no better than the one that leaves for it.
//!
//! *Limits:* not all that it costs is paid for: not the time of those who serve touches of what is to leave.

use std::collections::VecDeque;

use super::Window;
use crate::heat::CHUNK_PAGES;
use crate::migrate::{Place, Select, Survey, Target, push_page};
use crate::physmap::MemoryType;
use crate::policy::hand::Hand;
use crate::policy::{Act, Plan, View};
use crate::units::{BLOCK_PAGES, PageCount, PageRange, VirtAddr};

/// Microseconds that a touch of a page that is out costs, which others serve.
const TOUCH: u64 = 12;
/// The least and the greatest share of the program's time, in thousandths.
const SHARES: (u64, u64) = (10, 60);
/// What is on devices is touched so many times as often as what would leave, in hundredths, where nothing is to be gained, and where most is.
const GAIN: (u64, u64) = (100, 300);
/// About so many samples show how often pages are touched.
const SHOWN: u64 = 128;
/// Windows get longer while fewer of a million pages are touched than the first, and shorter while more are than the second.
const TOUCHED: (u64, u64) = (5_000, 100_000);
/// The shortest and the longest window, in microseconds.
const WINDOWS: (u64, u64) = (500, 20_000);
/// Chunks that are taken out at a time.
const AT_ONCE: u64 = 8;
/// Time that is not used for samples is kept, and what was used too much is made up for, as much of it as this, in nanoseconds.
const SAVED: i64 = 8_000_000;
/// Who has used fewer microseconds of processors has done nothing: how much that is, is known with so much error.
const NOTICED: u64 = 100;
/// How long to wait for the next chunks, in microseconds, at least and at most.
const PAUSES: (u64, u64) = (1000, 50_000);

#[derive(Debug)]
pub(super) struct Promotion {
    hand: Hand,
    out: VecDeque<Window>,
    survey: Survey,
    window: u64,
    /// What the program had used when this was asked last, and what had been spent, in microseconds.
    used: u64,
    spent: u64,
    /// When the program was seen to have used some.
    ran: u64,
    /// How much more may be spent, in nanoseconds.
    budget: i64,
    /// Of a million pages so many were touched, lately.
    touched: u64,
    /// How often pages on devices are touched, and those of system memory that would leave.
    there: Rate,
    here: Rate,
    /// Pages that were to be promoted since this was asked last.
    promoted: u64,
}

/// How often pages are touched, by what was seen lately.
#[derive(Debug, Default)]
struct Rate {
    /// Touches, in thousandths.
    touches: u64,
    /// For how long pages were out, all together, in microseconds.
    time: u64,
}

impl Rate {
    fn note(&mut self, touches: u64, pages: u64, micros: u64) {
        self.touches = self.touches - self.touches / SHOWN + touches * 1000;
        self.time = self.time - self.time / SHOWN + pages * micros;
    }
}

impl Default for Promotion {
    fn default() -> Self {
        Self {
            hand: Hand::default(),
            out: VecDeque::new(),
            survey: Survey::default(),
            window: WINDOWS.0,
            used: 0,
            spent: 0,
            ran: 0,
            budget: 0,
            touched: TOUCHED.0,
            there: Rate::default(),
            here: Rate::default(),
            promoted: 0,
        }
    }
}

impl Promotion {
    /// Whether there is something on a coherent device.
    pub(super) fn is_of_use(&self, view: &dyn View) -> bool {
        view.devices().iter().any(|device| device.memory_type == MemoryType::DeviceCoherent && !device.used.is_zero())
    }

    /// Whether nothing is out.
    pub(super) fn is_idle(&self) -> bool {
        self.out.is_empty()
    }

    /// How many pages were to be promoted since this was asked last.
    pub(super) const fn take_promoted(&mut self) -> u64 {
        std::mem::replace(&mut self.promoted, 0)
    }

    /// Of `window`, which would leave now, it was seen what was touched.
    pub(super) fn see_leave(&mut self, view: &mut dyn View, window: &Window, now: u64) {
        let (Some(first), Some(last)) = (window.ranges.first(), window.ranges.last()) else { return };
        let Some(hull) = PageRange::between(first.start(), last.end()) else { return };
        view.survey(hull, &mut self.survey);
        let place = |page: VirtAddr| self.survey.pages[page.pages_since(hull.start()).as_usize()].place;
        let pages = window.ranges.iter().flat_map(|range| range.iter());
        let touched = pages.filter(|page| place(*page) == Place::System).count() as u64;
        self.here.note(touched, super::pages_of(&window.ranges).get(), now.saturating_sub(window.since));
    }

    /// Ends samples whose time has come, and begins others. There is room for `free` pages.
    pub(super) fn plan(&mut self, view: &mut dyn View, now: u64, free: PageCount, plan: &mut Plan) {
        let mut free = free;
        // What was planned has been carried out by now, one after the other: that takes longer than a short window.
        let window = self.window;
        for begun in self.out.iter_mut().rev().take_while(|window| window.until.is_none()) {
            begun.since = begun.since.midpoint(now);
            begun.until = Some(now + window);
        }
        while self.out.front().is_some_and(|window| window.until.is_some_and(|until| until <= now)) && plan.has_room() {
            let Some(window) = self.out.pop_front() else { break };
            self.end(view, window, now, &mut free, plan);
        }
        if self.is_of_use(view) {
            self.begin(view, now, free, plan);
        }
        if let Some(window) = self.out.front() {
            plan.ask_again_within(window.until.map_or(0, |until| until.saturating_sub(now)));
        }
    }

    /// What was planned of `ranges` was not carried out.
    pub(super) fn forget(&mut self, ranges: &[PageRange]) {
        self.out.retain(|window| !window.is_of(ranges));
    }

    fn end(&mut self, view: &mut dyn View, window: Window, now: u64, free: &mut PageCount, plan: &mut Plan) {
        let (mut hot, mut cold) = (Vec::new(), Vec::new());
        let (mut sampled, mut came, mut touches) = (0, 0, 0);
        for range in window.ranges {
            view.survey(range, &mut self.survey);
            sampled += range.pages().get();
            if range.pages() == PageCount::BLOCK && self.survey.huge {
                // One touch has brought a huge page back, which is promoted whole.
                (came, touches) = (came + BLOCK_PAGES, touches + 1);
                if range.pages() <= *free && self.survey.pages.iter().all(|page| matches!(page.place, Place::Device(_)))
                {
                    *free = *free - range.pages();
                    self.promote(vec![range], plan);
                }
                continue;
            }
            for (page, seen) in range.iter().zip(&self.survey.pages) {
                match seen.place {
                    Place::Device(_) => push_page(&mut hot, page),
                    Place::SampledOn(_) => push_page(&mut cold, page),
                    Place::Nowhere | Place::System | Place::Sampled | Place::Moving => {}
                }
            }
        }
        let small = super::pages_of(&hot).get();
        (came, touches) = (came + small, touches + small);
        self.there.note(came, sampled, now.saturating_sub(window.since));
        if let Some(millionths) = (came * 1_000_000).checked_div(sampled) {
            self.touched = (self.touched * 31 + millionths) / 32;
        }
        self.pay(touches * TOUCH);
        if self.touched > TOUCHED.1 {
            self.window = (self.window * 31 / 32).max(WINDOWS.0);
        } else if self.touched < TOUCHED.0 {
            self.window = (self.window * 33 / 32).min(WINDOWS.1);
        }
        if !cold.is_empty() {
            super::push(plan, cold, Act::PutBack);
        }
        let hot = first(hot, *free);
        if !hot.is_empty() {
            *free = *free - super::pages_of(&hot);
            self.promote(hot, plan);
        }
    }

    fn promote(&mut self, ranges: Vec<PageRange>, plan: &mut Plan) {
        self.promoted += super::pages_of(&ranges).get();
        super::push(plan, ranges, Act::Migrate { from: Select::DEVICE_COHERENT, to: vec![Target::System] });
    }

    fn pay(&mut self, micros: u64) {
        self.budget = (self.budget - nanos(micros)).max(-SAVED);
    }

    /// What share of its time samples may cost the program, in thousandths.
    fn share(&self) -> u64 {
        let product = |a: u64, b: u64| u128::from(a) * u128::from(b);
        let there = product(self.there.touches, self.here.time);
        let here = product(self.here.touches, self.there.time);
        // Of what was not seen yet all may be learned.
        let is_known = self.here.time > 0 && self.there.time > 0;
        let most = if is_known && there == 0 { GAIN.0 } else { GAIN.1 };
        let times = (there * 100).checked_div(here).and_then(|times| u64::try_from(times).ok()).unwrap_or(most);
        let gain = times.clamp(GAIN.0, GAIN.1) - GAIN.0;
        SHARES.0 + (SHARES.1 - SHARES.0) * gain / (GAIN.1 - GAIN.0)
    }

    /// Adds what the program has used since, and pays for what was spent; whether the program has used any.
    fn settle(&mut self, view: &dyn View) -> bool {
        let (used, spent) = (view.used(), view.spent());
        self.pay(spent.saturating_sub(self.spent));
        self.spent = spent;
        let gained = used.saturating_sub(self.used);
        if gained < NOTICED {
            return false;
        }
        self.used = used;
        // Of microseconds thousandths are nanoseconds.
        self.budget = (self.budget + nanos_of(gained.min(100_000), self.share())).min(SAVED);
        true
    }

    fn begin(&mut self, view: &mut dyn View, now: u64, free: PageCount, plan: &mut Plan) {
        if self.settle(view) {
            self.ran = now;
        } else {
            // It is looked at soon again, ever later, until it is known to do nothing.
            let since = now.saturating_sub(self.ran);
            if since < PAUSES.1 {
                plan.ask_again_within(since.max(PAUSES.0));
            }
            return;
        }
        if free.is_zero() {
            return plan.ask_again_within(PAUSES.1);
        }
        if self.budget < 0 {
            plan.ask_again_within((self.budget.unsigned_abs() / self.share()).clamp(PAUSES.0, PAUSES.1));
            return;
        }
        let devices = view.devices();
        let is_coherent = |id| devices.iter().any(|d| d.id == id && d.memory_type == MemoryType::DeviceCoherent);
        let (mut looks, mut begun) = (4 * AT_ONCE, 0);
        while begun < AT_ONCE && looks > 0 && plan.has_room() {
            looks -= 1;
            let Some(mut part) = self.hand.next(view.ranges(), CHUNK_PAGES) else { return };
            if part.start().index_in_block() == 0 {
                // A huge page is taken whole: a part of it would leave small ones.
                let block = part.start().block().range();
                view.survey(block, &mut self.survey);
                if self.survey.huge {
                    self.hand.skip_to(block.end());
                    part = block;
                } else if self.survey.pages.iter().any(|page| matches!(page.place, Place::SampledOn(_))) {
                    // Whether it is one is not known while it is out.
                    self.hand.skip_to(block.end());
                    continue;
                }
            }
            if part.pages() < PageCount::BLOCK {
                view.survey(part, &mut self.survey);
            }
            let mut ranges = Vec::new();
            for (page, seen) in part.iter().zip(&self.survey.pages) {
                // What the program wants there stays.
                if matches!(seen.place, Place::Device(id) if is_coherent(id) && view.preferred(page) != Some(id)) {
                    push_page(&mut ranges, page);
                }
            }
            if ranges.is_empty() {
                continue;
            }
            begun += 1;
            self.out.push_back(Window { since: now, until: None, ranges: ranges.clone() });
            super::push(plan, ranges, Act::Sample { from: Select::DEVICE_COHERENT });
        }
        plan.ask_again_within(PAUSES.0);
    }
}

fn nanos(micros: u64) -> i64 {
    nanos_of(micros, 1000)
}

/// So many thousandths of that.
fn nanos_of(micros: u64, thousandths: u64) -> i64 {
    i64::try_from(micros.saturating_mul(thousandths)).unwrap_or(SAVED)
}

/// The first of `ranges`, with `most` pages at most.
fn first(mut ranges: Vec<PageRange>, most: PageCount) -> Vec<PageRange> {
    let mut left = most;
    for range in &mut ranges {
        *range = range.slice(PageCount::ZERO, left);
        left = left - range.pages();
    }
    ranges.retain(|range| !range.is_empty());
    ranges
}

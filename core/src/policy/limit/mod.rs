//! `limit`: at most so much of managed memory stays in system memory, and that is the hottest of it.
//!
//! What is not seen is not known, so each page is seen before it leaves: it is taken out as a [sample](crate::engine::Engine::sample) for a while
//! ([`DEMOTION_WINDOW`]), and leaves if nobody has touched it by then. Those that are touched are back by their touch, and [known](crate::heat) to be
//! warm. What is away on a private device is seen by the touch that brings it home, and known by how long it was away. What is used in place on a
//! coherent device is seen in short samples of some chunks by turns, and what is touched in one is promoted.
//!
//! ```text
//!  coldest in system memory ──sample──► out ──untouched──► the first device that has room, the cheapest first
//!                             ▲          │touched
//!                             └──────────┘
//!  a chunk on a coherent device ──sample──► out ──touched────► system memory, if there is room
//!                                 ▲          │untouched
//!                                 └──────────┘
//! ```
//!
//! Room is made before it is used: for what came home lately, and for what may be promoted. So what is promoted was touched within less than a
//! millisecond, and what it takes the place of was not within twenty times that.
//!
//! | file | what |
//! | --- | --- |
//! | `coldest` | which pages are the coldest ([`Coldest`]) |
//! | `promotion` | samples of coherent devices ([`Promotion`]) |
//! | `thrash` | whether memory is turned over for nothing ([`Thrash`]) |
//!
//! Where pages may not be [sampled](View::takes_samples), the coldest leave by what touches have shown that brought them home; what never left counts as
//! the coldest, and nothing is promoted.
//!
//! *Limits:* nothing is brought home from private devices but by touches. Files that are mapped are neither moved nor counted.

mod coldest;
mod promotion;
mod thrash;

use std::collections::VecDeque;

use super::registry::{Argument, Entry};
use super::view::to;
use super::{Act, DeviceState, Move, Plan, Policy, Signs, View};
use crate::heat::Source;
use crate::migrate::Select;
use crate::physmap::MemoryType;
use crate::quantity::Exact;
use crate::units::{BLOCK_PAGES, PageCount, PageRange};
use coldest::Coldest;
use promotion::Promotion;
use thrash::Thrash;

/// `limit`, as the table of policies has it.
pub(super) const ENTRY: Entry = Entry {
    name: "limit",
    argument: Argument::Limit,
    heat: &Source::ALL,
    help: "at most SIZE of managed memory stays in system memory, the hottest of it; pages are taken out for some milliseconds to see whether they are used",
    make: |argument| Ok(Box::new(Limit::new(super::clock::pages(argument)?))),
};

/// For how many microseconds a page is out before it leaves; for less where more pages come home meanwhile than there is room for.
const DEMOTION_WINDOW: u64 = 10_000;
/// About how long it takes until what comes home is seen, in microseconds.
const REACTION: u64 = 1000;
/// A surplus of more than this part of the limit leaves at once, untouched or not.
const OVERRUN: u64 = 16;
/// As much room is made in advance, at most: this part of the limit.
const ROOM: u64 = 64;
/// So many of that are made at a time, at least, while the limit is kept: this part of the room.
const STEP: u64 = 4;
/// Who has used so many microseconds of processors has done something, though nothing shows it.
const BUSY: u64 = 50_000;
/// So many pages are dealt with by one move, about: more would keep others waiting.
const JOINED: PageCount = PageCount::new(1024);
/// More pages than this do not come home from one look to the next.
const MOST_ARRIVALS: u64 = 1 << 32;
/// So many pages are out at a time, at most (32 MiB): they take the room of migrations.
const OUT_AT_ONCE: PageCount = PageCount::new(16 * BLOCK_PAGES);
/// How long to wait, in microseconds, before it is tried again where nothing could leave; twice as long each time, up to the last.
const FUTILE: (u64, u64) = (10_000, 1_000_000);

/// Pages of one block that are out as samples.
#[derive(Debug)]
struct Window {
    /// From when, about.
    since: u64,
    /// Until when; `None` while it is not known that they are out.
    until: Option<u64>,
    ranges: Vec<PageRange>,
}

impl Window {
    /// Whether its pages are among those of `ranges`.
    fn is_of(&self, ranges: &[PageRange]) -> bool {
        self.ranges.first().is_some_and(|first| ranges.contains(first))
    }
}

/// Has `act` done of `ranges`, too: with what it was to be done of last, as long as that is little.
fn push(plan: &mut Plan, ranges: Vec<PageRange>, act: Act) {
    plan.push_or_join(Move { ranges, act }, JOINED);
}

/// Whether what is moved so is out as samples.
fn ends_samples(what: &Move) -> bool {
    matches!(what.act, Act::PutBack | Act::Migrate { from: Select::SAMPLED, .. })
}

fn pages_of(ranges: &[PageRange]) -> PageCount {
    ranges.iter().map(|range| range.pages()).sum()
}

/// Devices that have room, the cheapest first, and of those as they were given.
fn with_room(view: &dyn View) -> Vec<DeviceState> {
    let mut devices = view.devices();
    devices.retain(|device| !device.room().is_zero());
    devices.sort_by_key(|device| device.memory_type == MemoryType::DevicePrivate);
    devices
}

/// How many pages come home.
#[derive(Debug, Default)]
struct Arrivals {
    /// Pages that had come home when the policy was asked last, and when that was.
    home: u64,
    at: u64,
    /// About how many come in a second.
    rate: u64,
}

impl Arrivals {
    fn note(&mut self, home: u64, now: u64) {
        // What is counted where a program can write may be anything.
        let came = home.saturating_sub(self.home).min(MOST_ARRIVALS);
        let Some(rate) = (came * 1_000_000).checked_div(now.saturating_sub(self.at)) else { return };
        self.rate = (self.rate * 3 + rate) / 4;
        (self.home, self.at) = (home, now);
    }

    /// About how many come in `micros` microseconds.
    fn within(&self, micros: u64) -> u64 {
        self.rate.saturating_mul(micros) / 1_000_000
    }

    /// In how many microseconds `pages` come, if in less than `most`.
    fn time_of(&self, pages: u64, most: u64) -> u64 {
        pages.saturating_mul(1_000_000).checked_div(self.rate).map_or(most, |time| time.min(most))
    }
}

/// What could not be done, and when it is tried again.
#[derive(Debug)]
struct Futile {
    /// What the program showed then, and the limit.
    at: (Signs, PageCount),
    /// How much time it had used.
    used: u64,
    wait: u64,
    until: u64,
}

#[derive(Debug)]
struct Limit {
    /// As it was told; what holds is for the view to say.
    limit: PageCount,
    coldest: Coldest,
    promotion: Promotion,
    thrash: Thrash,
    /// Those to leave, in order of time, and how many pages those are.
    out: VecDeque<Window>,
    out_pages: PageCount,
    arrivals: Arrivals,
    /// Blocks that were looked at since something last left.
    looked: u64,
    leaving: bool,
    futile: Option<Futile>,
}

impl Limit {
    fn new(limit: PageCount) -> Self {
        Self {
            limit,
            coldest: Coldest::default(),
            promotion: Promotion::default(),
            thrash: Thrash::default(),
            out: VecDeque::new(),
            out_pages: PageCount::ZERO,
            arrivals: Arrivals::default(),
            looked: 0,
            leaving: false,
            futile: None,
        }
    }

    /// Sends those away that were out for long enough, while more than `surplus` is not; how many may leave.
    fn send_away(
        &mut self,
        view: &mut dyn View,
        now: u64,
        surplus: PageCount,
        on_coherent: bool,
        plan: &mut Plan,
    ) -> PageCount {
        let mut leaving = PageCount::ZERO;
        let devices = with_room(view);
        while let Some(window) = self.out.front() {
            if window.until.is_some_and(|until| until > now) || !plan.has_room() {
                break;
            }
            let Some(window) = self.out.pop_front() else { break };
            // What leaves at once was not looked at.
            if on_coherent && window.until.is_some_and(|until| until > window.since) {
                self.promotion.see_leave(view, &window, now);
            }
            let ranges = window.ranges;
            let pages = pages_of(&ranges);
            self.out_pages = self.out_pages - pages.min(self.out_pages);
            let act = match ranges.first() {
                Some(first) if leaving < surplus && !devices.is_empty() => {
                    leaving += pages;
                    self.leaving = true;
                    Act::Migrate { from: Select::SAMPLED, to: to(&devices, view, *first) }
                }
                _ => Act::PutBack,
            };
            push(plan, ranges, act);
        }
        leaving
    }

    /// Takes as many pages out as `surplus`, the coldest; they leave after `window`.
    fn take_out(&mut self, view: &mut dyn View, now: u64, surplus: PageCount, window: u64, plan: &mut Plan) {
        let mut taken = PageCount::ZERO;
        while taken < surplus && plan.has_room() {
            // Nobody need look for long whether these are used.
            let Some(range) = view.take_not_soon(surplus - taken) else { break };
            taken += range.pages();
            if !view.takes_samples() {
                self.send_unseen(view, vec![range], plan);
                continue;
            }
            self.out_pages += range.pages();
            self.out.push_front(Window { since: now, until: Some(now), ranges: vec![range] });
            push(plan, vec![range], Act::Sample { from: Select::SYSTEM });
        }
        // Not more than once round: what is planned already would be found again.
        let parts = self.coldest.parts(view);
        for _ in 0..parts.min(Coldest::AT_ONCE) {
            if taken >= surplus || !plan.has_room() {
                return;
            }
            self.looked += 1;
            if self.looked == parts {
                self.coldest.forget();
            }
            let Some(ranges) = self.coldest.next(view, surplus - taken) else { return };
            if ranges.is_empty() {
                continue;
            }
            let pages = pages_of(&ranges);
            taken += pages;
            if !view.takes_samples() {
                self.send_unseen(view, ranges, plan);
                continue;
            }
            self.out_pages += pages;
            self.out.push_back(Window { since: now, until: Some(now + window), ranges: ranges.clone() });
            push(plan, ranges, Act::Sample { from: Select::SYSTEM });
        }
        plan.ask_again_within(1000);
    }

    /// `ranges` were to be taken out, and are not.
    fn forget(&mut self, ranges: &[PageRange]) {
        self.promotion.forget(ranges);
        let before = self.out.iter().map(|window| pages_of(&window.ranges)).sum::<PageCount>();
        self.out.retain(|window| !window.is_of(ranges));
        let after = self.out.iter().map(|window| pages_of(&window.ranges)).sum::<PageCount>();
        self.out_pages = self.out_pages - (before - after).min(self.out_pages);
    }

    /// Sends `ranges`, of one block, away as they are.
    fn send_unseen(&mut self, view: &dyn View, ranges: Vec<PageRange>, plan: &mut Plan) {
        let Some(first) = ranges.first().copied() else { return };
        self.leaving = true;
        push(plan, ranges, Act::Migrate { from: Select::SYSTEM, to: to(&with_room(view), view, first) });
    }

    /// Whether it was tried in vain, and nothing has happened since, or not for long.
    fn is_futile(&self, view: &dyn View, at: (Signs, PageCount), now: u64) -> bool {
        let is_idle = |futile: &Futile| futile.at == at && view.used().saturating_sub(futile.used) < BUSY;
        self.futile.as_ref().is_some_and(|futile| now < futile.until || is_idle(futile))
    }
}

impl Policy for Limit {
    fn plan(&mut self, view: &mut dyn View, plan: &mut Plan) {
        if self.leaving && !plan.moved().is_zero() {
            (self.looked, self.futile) = (0, None);
        }
        self.leaving = false;
        for left in plan.take_left() {
            // Something else was more urgent. Those whose time had come nobody would look for again; others are not out at all.
            match left.act {
                Act::Sample { .. } => self.forget(&left.ranges),
                _ if ends_samples(&left) => push(plan, left.ranges, Act::PutBack),
                Act::Migrate { .. } | Act::PutBack => {}
            }
        }
        let (signs, limit) = (view.signs(), view.system_limit(self.limit));
        let now = view.now();
        self.arrivals.note(signs.home, now);
        self.thrash.note(now, limit, view.turnover(), self.promotion.take_promoted());
        let on_coherent = view.takes_samples() && self.promotion.is_of_use(view);
        let nothing_is_out = self.out.is_empty() && self.promotion.is_idle();
        if nothing_is_out && !on_coherent && (signs.anonymous <= limit || self.is_futile(view, (signs, limit), now)) {
            return;
        }
        let resident = view.resident(signs);
        // What is out counts still, and others come meanwhile: no more than there is room for.
        let most = limit.get() / ROOM;
        let window = self.arrivals.time_of(most / 2, DEMOTION_WINDOW);
        let room = if on_coherent { most } else { self.arrivals.within(window + REACTION).min(most) };
        let room = PageCount::new(room);
        let over = PageCount::new((resident + room).get().saturating_sub(limit.get()));
        let leaving = self.send_away(view, now, over, on_coherent, plan);
        let free = PageCount::new(limit.get().saturating_sub(resident.get()));
        if view.takes_samples() {
            self.promotion.plan(view, now, free, plan);
        }
        let missing = PageCount::new(over.get().saturating_sub((leaving + self.out_pages).get()));
        let elsewhere: PageCount = view.devices().iter().map(DeviceState::room).sum();
        let is_due = resident > limit || missing.get() >= most / STEP;
        if is_due && !missing.is_zero() && !self.is_futile(view, (signs, limit), now) {
            if elsewhere.is_zero() || (self.looked > 3 * self.coldest.parts(view) && self.out.is_empty()) {
                let wait = self.futile.as_ref().map_or(FUTILE.0, |futile| (futile.wait * 2).min(FUTILE.1));
                self.futile = Some(Futile { at: (signs, limit), used: view.used(), wait, until: now + wait });
                self.looked = 0;
            } else {
                let window = if missing.get() > limit.get() / OVERRUN { 0 } else { window };
                // No more than finds room then.
                let most = elsewhere.min(OUT_AT_ONCE);
                let some = missing.min(most - self.out_pages.min(most));
                self.take_out(view, now, some, window, plan);
            }
        }
        if let Some(window) = self.out.front() {
            plan.ask_again_within(window.until.map_or(0, |until| until.saturating_sub(now)));
        }
        if let Some(futile) = self.futile.as_ref().filter(|futile| futile.until > now) {
            plan.ask_again_within(futile.until - now);
        }
    }

    fn takes_files(&self) -> bool {
        false
    }

    fn is_thrashing(&self) -> bool {
        self.thrash.is_on()
    }

    fn argument(&self) -> Option<String> {
        Some(Exact(self.limit.bytes()).to_string())
    }
}

#[cfg(test)]
mod tests;

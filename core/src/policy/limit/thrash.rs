//! Whether memory is turned over for nothing.
//!
//! Where the program uses more than may stay, what leaves is wanted again at once, and something else leaves for it that is no colder. Each page that
//! leaves does so for one that comes, sooner or later, so that how many come says nothing: what counts is how fast, and what. Memory *thrashes* once as
//! many pages as may stay have left within a minute, and half as many came back: by a touch less than a minute after they had left, or as they were
//! promoted. It is over when few come back. A program that goes from one part of its memory to another has few that left lately, as long as it was away
//! from that part for a minute; on coherent devices, where nobody knows what left when, it counts as well, until it has what it uses.

use crate::policy::Turnover;
use crate::units::{BLOCK_PAGES, PageCount};

/// Microseconds in which as many pages leave as may stay, at most.
const TURN: u64 = 60_000_000;
/// Microseconds in which few pages come back where it is over.
const CALM: u64 = 10_000_000;
/// How few those are: this part of what may stay. A tenth of what it takes to begin, as less is done about it since.
const FEW: u64 = 64;
/// Of a limit of a few pages a turn says nothing.
const LEAST: u64 = BLOCK_PAGES;

/// What was seen of it.
#[derive(Debug, Default)]
pub(super) struct Thrash {
    seen: Option<Turnover>,
    turn: Round,
    lately: Round,
    is_on: bool,
}

/// What happened since some moment.
#[derive(Debug, Default)]
struct Round {
    since: u64,
    left: u64,
    back: u64,
}

impl Round {
    fn begin(&mut self, now: u64) {
        *self = Self { since: now, ..Self::default() };
    }
}

impl Thrash {
    pub(super) const fn is_on(&self) -> bool {
        self.is_on
    }

    /// By `now` this much was turned over, where `limit` pages may stay; `promoted` pages were promoted since this was said last.
    pub(super) fn note(&mut self, now: u64, limit: PageCount, turnover: Turnover, promoted: u64) {
        let before = self.seen.replace(turnover).unwrap_or(turnover);
        // What is counted where a program can write may be anything.
        let back = turnover.refaults.saturating_sub(before.refaults).saturating_add(promoted);
        for round in [&mut self.turn, &mut self.lately] {
            round.left = round.left.saturating_add(turnover.left.saturating_sub(before.left));
            round.back = round.back.saturating_add(back);
        }
        let limit = limit.get().max(LEAST);
        if self.turn.left >= limit {
            self.is_on |= self.turn.back >= self.turn.left / 2;
            self.turn.begin(now);
        } else if now.saturating_sub(self.turn.since) >= TURN {
            self.turn.begin(now);
        }
        if now.saturating_sub(self.lately.since) >= CALM {
            self.is_on &= self.lately.back >= limit / FEW;
            self.lately.begin(now);
        }
    }
}

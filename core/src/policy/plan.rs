//! What a policy wants done, and what came of it.

use std::collections::VecDeque;

use crate::migrate::{Select, Target};
use crate::units::{PageCount, PageRange};

/// Pages of which something is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Move {
    /// The pages, in order of address. What is done of one block at once costs least.
    pub ranges: Vec<PageRange>,
    /// What.
    pub act: Act,
}

/// What is to be done of pages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// They are to be elsewhere: out of system memory, home, or from one device to another.
    Migrate {
        /// Which of them, by where they are.
        from: Select,
        /// Where to, the best first. The next is for what the one before has no room for; the last is asked even if it is known to have none.
        to: Vec<Target>,
    },
    /// They are taken out as [samples](crate::engine::Engine::sample).
    Sample {
        /// Which of them, by where they are.
        from: Select,
    },
    /// Those that are out as samples are put back.
    PutBack,
}

impl Move {
    /// `range` is to be elsewhere.
    #[must_use]
    pub fn migrate(range: PageRange, from: Select, to: Vec<Target>) -> Self {
        Self { ranges: vec![range], act: Act::Migrate { from, to } }
    }

    /// How many pages are named.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        self.ranges.iter().map(|range| range.pages()).sum()
    }
}

/// Moves, the most urgent first.
///
/// A policy adds moves while there [is room](Plan::has_room); the mechanism carries them out in order, as far as it gets before something else is
/// more urgent, and asks the policy again. What was not carried out is still in the plan then.
#[derive(Debug)]
pub struct Plan {
    moves: VecDeque<Move>,
    /// Pages of these moves.
    pages: PageCount,
    budget: PageCount,
    moved: PageCount,
    again: Option<u64>,
}

impl Plan {
    /// A plan of moves of about `budget` pages at a time.
    #[must_use]
    pub fn new(budget: PageCount) -> Self {
        Self { moves: VecDeque::new(), pages: PageCount::ZERO, budget, moved: PageCount::ZERO, again: None }
    }

    /// Whether more is wanted: the moves have fewer pages than the budget.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pages < self.budget
    }

    /// Adds a move behind the others.
    pub fn push(&mut self, next: Move) {
        self.pages += next.pages();
        self.moves.push_back(next);
    }

    /// Adds `next` behind the others: with the last of them, if the same is to be done of that, and both together have at most `most` pages.
    pub fn push_or_join(&mut self, next: Move, most: PageCount) {
        match self.moves.back_mut() {
            Some(last) if last.act == next.act && last.pages() + next.pages() <= most => {
                self.pages += next.pages();
                last.ranges.extend(next.ranges);
            }
            _ => self.push(next),
        }
    }

    /// Forgets what was not carried out.
    pub fn clear(&mut self) {
        self.moves.clear();
        self.pages = PageCount::ZERO;
    }

    /// What was not carried out, which is in the plan no more.
    pub fn take_left(&mut self) -> impl Iterator<Item = Move> + use<> {
        self.pages = PageCount::ZERO;
        std::mem::take(&mut self.moves).into_iter()
    }

    /// The policy wants to be asked again within `micros` microseconds, however long the mechanism would rest. Forgotten when it is asked.
    pub fn ask_again_within(&mut self, micros: u64) {
        self.again = Some(self.again.map_or(micros, |again| again.min(micros)));
    }

    /// Within how many microseconds the policy wants to be asked again, if it has said so since this was asked.
    pub const fn take_again(&mut self) -> Option<u64> {
        self.again.take()
    }

    /// The moves that are to be carried out.
    pub fn moves(&self) -> impl Iterator<Item = &Move> {
        self.moves.iter()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }

    /// The pages of these moves, whether they are where they are to come from or not.
    #[must_use]
    pub const fn pages(&self) -> PageCount {
        self.pages
    }

    /// How many pages have moved since the policy was asked before; samples are none.
    #[must_use]
    pub const fn moved(&self) -> PageCount {
        self.moved
    }

    /// Has `act` carry out one move after the other, which says how many pages moved, until there are none or, after a move, `interrupted` says so.
    pub fn carry_out(&mut self, mut act: impl FnMut(&Move) -> PageCount, interrupted: impl Fn() -> bool) {
        self.moved = PageCount::ZERO;
        while let Some(next) = self.moves.pop_front() {
            self.pages = self.pages - next.pages();
            let moved = act(&next);
            if matches!(next.act, Act::Migrate { .. }) {
                self.moved += moved;
            }
            if interrupted() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::VirtAddr;

    fn home(page: u64, pages: u64) -> Move {
        let range = PageRange::new(VirtAddr::new(page * 4096), PageCount::new(pages)).unwrap();
        Move::migrate(range, Select::DEVICE_COHERENT, vec![Target::System])
    }

    #[test]
    fn moves_are_carried_out_in_order_and_what_is_left_stays() {
        let mut plan = Plan::new(PageCount::new(8));
        assert!(plan.has_room() && plan.is_empty());
        for (at, room) in [(0, true), (10, true), (20, false)] {
            plan.push(home(at, 3));
            assert_eq!(plan.has_room(), room);
        }
        let mut done = Vec::new();
        let act = |of: &Move| {
            done.push(of.clone());
            PageCount::new(2)
        };
        let calls = std::cell::Cell::new(0);
        plan.carry_out(act, || calls.replace(calls.get() + 1) == 1);
        assert_eq!(done, [home(0, 3), home(10, 3)]);
        assert_eq!((plan.moved().get(), plan.pages().get(), plan.has_room()), (4, 3, true));
        assert_eq!(plan.moves().collect::<Vec<_>>(), [&home(20, 3)]);
        plan.carry_out(|_| PageCount::ONE, || false);
        assert_eq!((plan.moved().get(), plan.pages().get(), plan.is_empty()), (1, 0, true));
        plan.push(home(1, 1));
        plan.clear();
        assert_eq!((plan.is_empty(), plan.pages().get()), (true, 0));
    }
}

//! `clock`: at most so much of managed memory stays in system memory. A yardstick for what else does that.
//!
//! A clock chooses what leaves: its hand goes round the managed memory in chunks, and passes over those that were used since it came by last.
//!
//! *Limits:* nothing is brought home but by touches, and the first device that has room is as good as any other.

use super::hand::Hand;
use super::registry::{Argument, Entry};
use super::view::to;
use super::{DeviceState, Move, Plan, Policy, Signs, View};
use crate::heat::CHUNK_PAGES;
use crate::heat::Source;
use crate::migrate::Select;
use crate::quantity::{self, Exact};
use crate::units::{PAGE_SIZE, PageCount};

/// `clock`, as the table of policies has it.
pub(super) const ENTRY: Entry = Entry {
    name: "clock",
    argument: Argument::Limit,
    heat: &[Source::Faults],
    help: "as limit=SIZE, always by a clock (second chance) that knows touches of what was away, and no others: a yardstick to compare limit with",
    make: |argument| Ok(Box::new(Clock::new(pages(argument)?))),
};

pub(super) fn pages(text: &str) -> Result<PageCount, String> {
    let size = quantity::size(text).map_err(|error| error.to_string())?;
    match size.whole_pages() {
        Some(PageCount::ZERO) => Err("the limit is zero; it must be positive".to_owned()),
        Some(pages) => Ok(pages),
        None => Err(format!("the limit {} is not a multiple of the page ({PAGE_SIZE} bytes)", size.get())),
    }
}

/// The eviction of what was above the limit at one moment.
#[derive(Debug)]
struct Round {
    /// What the program showed then.
    signs: Signs,
    /// The limit then.
    limit: PageCount,
    /// What is still above the limit.
    surplus: PageCount,
    moved: PageCount,
    /// How many chunks may still come under the hand.
    chunks: u64,
}

#[derive(Debug)]
struct Clock {
    /// As it was told; what holds is for the view to say.
    limit: PageCount,
    hand: Hand,
    round: Option<Round>,
    /// What the program showed, and the limit, when nothing of it could leave: the devices are full, or pages are kept. That is not asked again
    /// while nothing happens.
    futile: Option<(Signs, PageCount)>,
}

impl Clock {
    fn new(limit: PageCount) -> Self {
        Self { limit, hand: Hand::default(), round: None, futile: None }
    }

    /// A round, if there is more than the limit and it is not known that nothing can leave.
    fn begin(&self, view: &mut dyn View) -> Option<Round> {
        let (signs, limit) = (view.signs(), view.system_limit(self.limit));
        if signs.anonymous <= limit || self.futile == Some((signs, limit)) {
            return None;
        }
        let resident = view.resident(signs);
        if resident <= limit {
            return None;
        }
        // Twice round, at most: the second chance of each chunk is over then.
        let chunks = view.ranges().iter().map(|range| range.pages().get() / CHUNK_PAGES + 2).sum::<u64>() * 2;
        Some(Round { signs, limit, surplus: resident - limit, moved: PageCount::ZERO, chunks })
    }

    /// Plans as many chunks as would do, and as there is room for, if each were all in system memory.
    fn fill(hand: &mut Hand, round: &mut Round, view: &mut dyn View, plan: &mut Plan) {
        let mut devices = view.devices();
        devices.retain(|device| !device.room().is_zero());
        let room: PageCount = devices.iter().map(DeviceState::room).sum();
        let enough = round.surplus.min(room.max(PageCount::ONE));
        while plan.pages() < enough && plan.has_room() && !devices.is_empty() {
            let Some(range) = view.take_not_soon(enough - plan.pages()) else { break };
            plan.push(Move::migrate(range, Select::SYSTEM, to(&devices, view, range)));
        }
        while plan.pages() < enough && plan.has_room() && round.chunks > 0 {
            round.chunks -= 1;
            let Some(range) = hand.next(view.ranges(), CHUNK_PAGES) else { return };
            // It has another chance.
            if view.take_warmth(range) || devices.is_empty() {
                continue;
            }
            plan.push(Move::migrate(range, Select::SYSTEM, to(&devices, view, range)));
        }
    }
}

impl Policy for Clock {
    fn plan(&mut self, view: &mut dyn View, plan: &mut Plan) {
        if let Some(round) = &mut self.round {
            round.moved += plan.moved();
            round.surplus = round.surplus - plan.moved().min(round.surplus);
            if round.surplus.is_zero() {
                self.round = None;
                return plan.clear();
            }
            // Something else was more urgent, and may have changed anything.
            if !plan.is_empty() {
                self.round = None;
            }
        }
        loop {
            let Some(mut round) = self.round.take().or_else(|| self.begin(view)) else { return plan.clear() };
            Self::fill(&mut self.hand, &mut round, view, plan);
            if !plan.is_empty() {
                self.round = Some(round);
                return;
            }
            if round.moved.is_zero() {
                self.futile = Some((round.signs, round.limit));
                return;
            }
        }
    }

    fn argument(&self) -> Option<String> {
        Some(Exact(self.limit.bytes()).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::{Model, range};
    use crate::units::DeviceId;

    fn clock(pages: u64) -> Clock {
        Clock::new(PageCount::new(pages))
    }

    /// Plans and carries out until there is nothing to do; how often it was planned.
    fn settle(clock: &mut Clock, model: &mut Model) -> usize {
        let mut plan = Plan::new(Model::BUDGET);
        for times in 1.. {
            clock.plan(model, &mut plan);
            if plan.is_empty() {
                return times;
            }
            plan.carry_out(|of| model.carry_out(of), || false);
            assert!(times < 10_000, "it ends");
        }
        unreachable!("there is no last number")
    }

    #[test]
    fn who_is_below_the_limit_is_asked_for_signs_only() {
        let mut model = Model::new(&[(0, 1000)], &[1000]);
        let mut plan = Plan::new(Model::BUDGET);
        clock(1000).plan(&mut model, &mut plan);
        assert!(plan.is_empty());
        assert_eq!(model.asked, ["signs"]);
    }

    #[test]
    fn what_is_above_the_limit_leaves_and_hardly_more() {
        for pages in [1, 64, 300, 999] {
            let mut model = Model::new(&[(10, 500), (2000, 500)], &[5000]);
            let mut clock = clock(pages);
            settle(&mut clock, &mut model);
            let left = model.resident_pages();
            assert!(left <= pages && left + CHUNK_PAGES > pages, "{pages}: {left}");
            assert_eq!(settle(&mut clock, &mut model), 1, "nothing is left to do");
        }
    }

    /// A program may map memory and write it just before it is looked at, and then do nothing more.
    #[test]
    fn what_is_found_later_leaves_though_the_program_does_nothing_more() {
        let mut model = Model::new(&[(0, 64), (1000, 500)], &[5000]);
        model.set_ranges(&[(0, 64)]);
        let mut clock = clock(10);
        settle(&mut clock, &mut model);
        assert_eq!(model.resident_pages(), 500, "nothing else is known");
        assert_eq!(settle(&mut clock, &mut model), 1, "and nothing more can leave");
        model.set_ranges(&[(0, 64), (1000, 500)]);
        settle(&mut clock, &mut model);
        assert!(model.resident_pages() <= 10);
    }

    #[test]
    fn holes_are_passed_over_without_overshooting() {
        let mut model = Model::new(&[(0, 64 * 100)], &[5000]);
        model.drop_pages(|page| page % 64 >= 2);
        settle(&mut clock(100), &mut model);
        assert_eq!(model.resident_pages(), 100);
    }

    #[test]
    fn a_warm_chunk_has_a_second_chance_and_no_third() {
        let mut model = Model::new(&[(0, 64 * 4)], &[5000]);
        model.warm.extend([0, 1]);
        settle(&mut clock(64 * 3), &mut model);
        assert_eq!(model.away(), [2]);
        // The hand stands before the last chunk, and has been at the first two: what is warm there now became so since.
        model.warm.extend([0, 1, 3]);
        settle(&mut clock(64 * 2), &mut model);
        assert_eq!(model.away().len(), 2, "all are warm, and one must go");
    }

    #[test]
    fn the_preferred_device_comes_first_and_others_take_what_it_has_no_room_for() {
        let mut model = Model::new(&[(0, 64 * 4)], &[1000, 64 + 10, 1000]);
        model.preferred = Some(DeviceId::new(1));
        settle(&mut clock(64), &mut model);
        assert_eq!(model.devices.iter().map(|d| d.used.get()).collect::<Vec<_>>(), [2 * 64 - 10, 64 + 10, 0]);
    }

    #[test]
    fn what_is_not_used_soon_leaves_first_and_once() {
        let mut model = Model::new(&[(0, 64 * 10)], &[5000]);
        model.not_soon = vec![range(64 * 7 + 10, 50), range(64 * 9, 64)];
        settle(&mut clock(64 * 10 - 100), &mut model);
        assert_eq!(model.away(), [7, 9], "where the hand is not yet");
        model.not_soon = vec![range(64 * 5, 64)];
        settle(&mut clock(64 * 10), &mut model);
        assert_eq!(model.away(), [7, 9], "nothing leaves for it where there is room");
        model.bring_all_home();
        settle(&mut clock(64 * 10 - 64), &mut model);
        assert_eq!(model.away(), [5]);
        settle(&mut clock(64 * 10 - 128), &mut model);
        assert_eq!(model.away(), [0, 5], "and the hand goes round as ever");
    }

    #[test]
    fn when_nothing_can_leave_it_is_asked_again_only_when_something_happens() {
        let mut model = Model::new(&[(0, 640)], &[128]);
        let mut clock = clock(64);
        settle(&mut clock, &mut model);
        assert_eq!(model.devices[0].room(), PageCount::ZERO);
        model.asked.clear();
        assert_eq!(settle(&mut clock, &mut model), 1);
        assert_eq!(model.asked, ["signs"]);
        model.devices[0].capacity = PageCount::new(200);
        assert_eq!(settle(&mut clock, &mut model), 1, "nobody told of the room");
        model.faults += 1;
        settle(&mut clock, &mut model);
        assert_eq!(model.devices[0].room(), PageCount::ZERO);
    }

    #[test]
    fn what_holds_is_the_share_of_the_moment() {
        let mut model = Model::new(&[(0, 64 * 10)], &[5000]);
        let mut clock = clock(64 * 10);
        assert_eq!(settle(&mut clock, &mut model), 1, "alone it has all of it");
        model.share = Some(PageCount::new(64 * 4));
        settle(&mut clock, &mut model);
        assert_eq!(model.resident_pages(), 64 * 4);
        model.bring_all_home();
        model.devices[0].capacity = PageCount::ZERO;
        settle(&mut clock, &mut model);
        model.devices[0].capacity = PageCount::new(5000);
        assert_eq!(settle(&mut clock, &mut model), 1, "nobody told of the room");
        model.share = Some(PageCount::new(64 * 3));
        settle(&mut clock, &mut model);
        assert_eq!(model.resident_pages(), 64 * 3, "another share is a reason to try again");
    }

    #[test]
    fn who_is_interrupted_goes_on_with_what_was_left_and_with_what_is_true_then() {
        let mut model = Model::new(&[(0, 64 * 10)], &[5000]);
        let mut clock = clock(64 * 5);
        let mut plan = Plan::new(Model::BUDGET);
        clock.plan(&mut model, &mut plan);
        assert_eq!(plan.moves().count(), 5);
        plan.carry_out(|of| model.carry_out(of), || true);
        assert_eq!(model.away(), [0]);
        model.bring_all_home();
        clock.plan(&mut model, &mut plan);
        let starts: Vec<u64> = plan.moves().map(|of| of.ranges[0].start().get() / 4096 / 64).collect();
        assert_eq!(starts, [1, 2, 3, 4, 5], "one came home, so one more must go");
        plan.carry_out(|of| model.carry_out(of), || false);
        clock.plan(&mut model, &mut plan);
        assert!(plan.is_empty());
        assert_eq!(model.resident_pages(), 64 * 5);
    }
}

//! What `limit` does to a model program.

use super::*;
use crate::migrate::Target;
use crate::policy::Random;
use crate::policy::model::{Model, range};
use crate::units::DeviceId;

const MILLISECOND: u64 = 1000;

fn limit(pages: u64) -> Limit {
    Limit::new(PageCount::new(pages))
}

/// Has `policy` plan once, and carries that out.
fn step(policy: &mut Limit, model: &mut Model, plan: &mut Plan) {
    policy.plan(model, plan);
    plan.carry_out(|of| model.carry_out(of), || false);
}

/// Asks again each millisecond, for so many of them; the program does `act` before each.
fn run(policy: &mut Limit, model: &mut Model, times: u64, mut act: impl FnMut(&mut Model)) {
    let mut plan = Plan::new(Model::BUDGET);
    for _ in 0..times {
        act(model);
        step(policy, model, &mut plan);
        model.now += MILLISECOND;
    }
}

/// How many of `pages` are in system memory.
fn home(model: &Model, pages: impl Iterator<Item = u64>) -> usize {
    pages.filter(|page| model.place(*page) == Some(Target::System)).count()
}

#[test]
fn who_is_below_the_limit_is_asked_for_signs_only() {
    let mut model = Model::new(&[(0, 1000)], &[1000]);
    let mut plan = Plan::new(Model::BUDGET);
    limit(1000).plan(&mut model, &mut plan);
    assert!(plan.is_empty() && plan.take_again().is_none());
    assert_eq!(model.asked, ["signs"]);
}

#[test]
fn what_is_above_the_limit_leaves_and_no_more() {
    for pages in [1, 64, 300, 999] {
        let mut model = Model::new(&[(10, 500), (2000, 500)], &[5000]);
        run(&mut limit(pages), &mut model, 100, |_| ());
        assert_eq!(model.resident_pages(), pages);
    }
}

#[test]
fn holes_are_passed_over() {
    let mut model = Model::new(&[(0, 64 * 100)], &[5000]);
    model.drop_pages(|page| page % 64 >= 2);
    run(&mut limit(100), &mut model, 100, |_| ());
    assert_eq!(model.resident_pages(), 100);
}

/// A program may map memory and write it just before it is looked at, and then do nothing more.
#[test]
fn what_is_found_later_leaves_though_the_program_does_nothing_more() {
    let mut model = Model::new(&[(0, 64), (1000, 500)], &[5000]);
    model.set_ranges(&[(0, 64)]);
    let mut limit = limit(10);
    run(&mut limit, &mut model, 100, |_| ());
    assert_eq!(model.resident_pages(), 500, "nothing else is known");
    model.set_ranges(&[(0, 64), (1000, 500)]);
    run(&mut limit, &mut model, 2000, |_| ());
    assert!(model.resident_pages() <= 10);
}

#[test]
fn the_preferred_device_comes_first_and_others_take_what_it_has_no_room_for() {
    let mut model = Model::new(&[(0, 64 * 4)], &[1000, 64 + 10, 1000]);
    model.preferred = Some(DeviceId::new(1));
    run(&mut limit(64), &mut model, 100, |_| ());
    assert_eq!(model.devices.iter().map(|d| d.used.get()).collect::<Vec<_>>(), [2 * 64 - 10, 64 + 10, 0]);
}

#[test]
fn what_is_not_used_soon_leaves_first_and_once() {
    let mut model = Model::new(&[(0, 640)], &[5000]);
    let mut limit = limit(540);
    model.not_soon = vec![range(400, 60), range(600, 40)];
    run(&mut limit, &mut model, 100, |_| ());
    assert_eq!(home(&model, (400..460).chain(600..640)), 0, "where the hand is not yet");
    model.not_soon = vec![range(500, 10)];
    run(&mut limit, &mut model, 100, |_| ());
    assert_eq!(home(&model, 500..510), 10, "nothing leaves for it where there is room");
}

#[test]
fn a_coherent_device_comes_before_a_private_one() {
    let mut model = Model::new(&[(0, 300)], &[1000, 1000]);
    model.devices[1].memory_type = MemoryType::DeviceCoherent;
    run(&mut limit(100), &mut model, 100, |_| ());
    assert_eq!(model.devices[0].used, PageCount::ZERO);
}

#[test]
fn when_nothing_can_leave_an_idle_program_is_not_asked_again_and_one_that_does_something_is() {
    let mut model = Model::new(&[(0, 640)], &[128]);
    let mut limit = limit(64);
    run(&mut limit, &mut model, 1000, |_| ());
    assert_eq!(model.devices[0].room(), PageCount::ZERO);
    let idle = |model: &mut Model| model.uses = false;
    run(&mut limit, &mut model, 1, idle);
    model.asked.clear();
    let mut plan = Plan::new(Model::BUDGET);
    model.now += 100 * MILLISECOND;
    step(&mut limit, &mut model, &mut plan);
    assert_eq!(model.asked, ["signs"]);
    model.devices[0].capacity = PageCount::new(200);
    model.faults += 1;
    run(&mut limit, &mut model, 3000, |_| ());
    assert_eq!(model.devices[0].room(), PageCount::ZERO);
}

/// The program uses a few pages in each millisecond, scattered among many that it does not use.
#[test]
fn what_is_used_stays_though_its_neighbours_leave() {
    let hot = |page: &u64| page.is_multiple_of(7);
    for coherent in [false, true] {
        let model = Model::new(&[(0, 2100)], &[5000]);
        let mut model = if coherent { model.coherent() } else { model };
        let mut limit = limit(600);
        let touch = |model: &mut Model| (0..2100).filter(hot).for_each(|page| model.touch(page));
        run(&mut limit, &mut model, 3000, touch);
        assert_eq!(home(&model, (0..2100).filter(hot)), 300);
        assert!(model.resident_pages() <= 600 && model.resident_pages() > 500, "{}", model.resident_pages());
    }
}

#[test]
fn what_is_used_on_a_coherent_device_is_promoted_in_place_of_what_is_not() {
    let mut model = Model::new(&[(0, 2048)], &[5000]).coherent();
    (0..1024).for_each(|page| model.put(page, 0));
    let mut limit = limit(1024);
    // What was in use before is not, and a quarter of what was not is.
    let touch = |model: &mut Model| (0..256).for_each(|page| model.touch(page));
    run(&mut limit, &mut model, 5_000, touch);
    let promoted = home(&model, 0..256);
    assert!(promoted > 230, "{promoted}");
    assert!(model.resident_pages() <= 1024);
}

/// Where huge pages are, neither samples nor moves are of a part of one.
#[test]
fn huge_pages_on_a_coherent_device_are_sampled_and_promoted_whole() {
    let mut model = Model::new(&[(0, 8 * 512)], &[5000]).coherent();
    model.huge = true;
    (4 * 512..8 * 512).for_each(|page| model.put(page, 0));
    let mut limit = limit(5 * 512);
    let mut plan = Plan::new(Model::BUDGET);
    for _ in 0..3000 {
        model.touch(6 * 512 + 7);
        limit.plan(&mut model, &mut plan);
        let whole = |range: &PageRange| range.start().index_in_block() == 0 && range.pages() == PageCount::BLOCK;
        assert!(plan.moves().flat_map(|of| &of.ranges).all(whole), "{plan:?}");
        plan.carry_out(|of| model.carry_out(of), || false);
        model.now += MILLISECOND;
    }
    assert_eq!(home(&model, 6 * 512..7 * 512), 512);
    assert_eq!(home(&model, (4 * 512..6 * 512).chain(7 * 512..8 * 512)), 0);
}

/// What little is touched is seen only by looking longer.
#[test]
fn samples_on_a_coherent_device_last_longer_while_none_is_touched_and_are_short_again_when_many_are() {
    let mut model = Model::new(&[(0, 2048)], &[5000]).coherent();
    (0..1024).for_each(|page| model.put(page, 0));
    let mut limit = limit(1040);
    let mut plan = Plan::new(Model::BUDGET);
    let mut longest = |model: &mut Model, touches: bool| {
        let (mut since, mut longest) = (std::collections::BTreeMap::new(), 0);
        for _ in 0..5000 {
            limit.plan(model, &mut plan);
            plan.carry_out(|of| model.carry_out(of), || false);
            for page in 0..1024 {
                match model.is_out(page) {
                    true => longest = longest.max(model.now - *since.entry(page).or_insert(model.now)),
                    false => _ = since.remove(&page),
                }
            }
            model.now += MILLISECOND;
            if touches {
                (0..1024).for_each(|page| model.touch(page));
            }
        }
        longest
    };
    assert!(longest(&mut model, false) >= 19 * MILLISECOND);
    longest(&mut model, true);
    assert_eq!(longest(&mut model, true), 0, "all are back before the next look");
}

/// It may be asked before the program has used as much time as can be told from none, with nothing out.
#[test]
fn a_program_that_computes_is_not_left_to_itself_for_long() {
    let mut model = Model::new(&[(0, 2048)], &[5000]).coherent();
    (0..1024).for_each(|page| model.put(page, 0));
    let mut limit = limit(1040);
    let mut plan = Plan::new(Model::BUDGET);
    for _ in 0..10_000 {
        limit.plan(&mut model, &mut plan);
        let rests = plan.is_empty();
        plan.carry_out(|of| model.carry_out(of), || false);
        let again = plan.take_again();
        assert!(!rests || again.is_some_and(|again| again <= 50 * MILLISECOND), "{again:?}");
        // What is planned is carried out in no time.
        model.now += if rests { again.unwrap_or(0) } else { 50 };
    }
}

/// The mechanism stops in the middle of a plan when something is more urgent.
#[test]
fn samples_come_back_though_what_was_planned_of_them_was_not_carried_out() {
    let mut model = Model::new(&[(0, 2048)], &[5000]).coherent();
    (0..1024).for_each(|page| model.put(page, 0));
    let mut limit = limit(900);
    let mut plan = Plan::new(Model::BUDGET);
    let mut random = Random::new(1);
    for round in 0..2000 {
        model.touch(random.below(2048));
        limit.plan(&mut model, &mut plan);
        // Of every other plan nothing but the first move is carried out.
        plan.carry_out(|of| model.carry_out(of), || round % 2 == 0);
        model.now += 3 * MILLISECOND;
    }
    model.uses = false;
    run(&mut limit, &mut model, 100, |_| ());
    assert_eq!(model.sampled(), 0);
}

/// What was not taken out is where it was, as what was touched is.
#[test]
fn what_was_not_taken_out_is_not_taken_for_touched() {
    let mut model = Model::new(&[(0, 2048)], &[5000]).coherent();
    (0..1024).for_each(|page| model.put(page, 0));
    let mut limit = limit(1200);
    let mut plan = Plan::new(Model::BUDGET);
    for round in 0..2000 {
        limit.plan(&mut model, &mut plan);
        plan.carry_out(|of| model.carry_out(of), || round % 2 == 0);
        model.now += MILLISECOND;
    }
    assert_eq!(model.moved_home, 0);
}

#[test]
fn a_device_that_has_room_and_takes_nothing_is_not_asked_for_ever() {
    let mut model = Model::new(&[(0, 640)], &[5000]);
    model.refuses = true;
    let mut limit = limit(64);
    run(&mut limit, &mut model, 1000, |_| ());
    model.uses = false;
    run(&mut limit, &mut model, 1000, |_| ());
    model.asked.clear();
    run(&mut limit, &mut model, 100, |_| ());
    assert!(!model.asked.contains(&"survey"), "{:?}", model.asked);
}

#[test]
fn what_is_preferred_on_a_coherent_device_stays_there() {
    let mut model = Model::new(&[(0, 2048)], &[5000]).coherent();
    model.preferred = Some(DeviceId::new(0));
    (0..1024).for_each(|page| model.put(page, 0));
    run(&mut limit(2048), &mut model, 1000, |model| (0..1024).for_each(|page| model.touch(page)));
    assert_eq!(home(&model, 0..1024), 0);
}

/// A scan goes over cold memory while some is in use all the time.
#[test]
fn a_scan_leaves_the_hot_where_they_are() {
    let mut model = Model::new(&[(0, 4096)], &[8192]);
    let mut limit = limit(1024);
    let mut scan = 512;
    let mut random = Random::new(1);
    let mut away = 0;
    run(&mut limit, &mut model, 6_000, |model| {
        (0..128).for_each(|_| model.touch(random.below(512)));
        for _ in 0..4 {
            model.touch(scan);
            scan = if scan == 4095 { 512 } else { scan + 1 };
        }
        if model.now > 3_000 * MILLISECOND {
            away += 512 - home(model, 0..512);
        }
    });
    let share = away * 1000 / 512 / 3_000;
    assert!(share < 20, "{share} of a thousand hot pages are away");
}

/// Has the program use `pages` of its pages at random, and asks every 50 ms for so many seconds; for how many of these memory thrashed.
fn thrashed(limit: &mut Limit, model: &mut Model, seconds: u64, pages: std::ops::Range<u64>) -> u64 {
    let mut random = Random::new(1);
    let mut plan = Plan::new(Model::BUDGET);
    let mut rounds = 0;
    for _ in 0..seconds * 20 {
        (0..200).for_each(|_| model.touch(pages.start + random.below(pages.end - pages.start)));
        step(limit, model, &mut plan);
        rounds += u64::from(limit.is_thrashing());
        model.now += 50 * MILLISECOND;
    }
    rounds / 20
}

#[test]
fn memory_thrashes_where_more_is_used_than_may_stay_and_no_longer_than_that() {
    for coherent in [false, true] {
        let model = Model::new(&[(0, 4096)], &[8192]);
        let mut model = if coherent { model.coherent() } else { model };
        let mut limit = limit(1024);
        assert_eq!(thrashed(&mut limit, &mut model, 10, 0..256), 0, "{coherent}: what is not used leaves for good");
        let long = thrashed(&mut limit, &mut model, 100, 0..4096);
        assert!(long >= 70, "{coherent}: {long}");
        assert!(thrashed(&mut limit, &mut model, 40, 0..256) <= 30, "{coherent}");
        assert_eq!(thrashed(&mut limit, &mut model, 100, 0..256), 0, "{coherent}");
    }
}

#[test]
fn who_goes_through_what_was_away_for_long_does_not_thrash() {
    let mut model = Model::new(&[(0, 4096)], &[8192]);
    let mut limit = limit(512);
    assert_eq!(thrashed(&mut limit, &mut model, 70, 0..256), 0);
    let before = model.moved_out;
    for page in (256..4096).step_by(16) {
        (page..page + 16).for_each(|page| model.touch(page));
        assert_eq!(thrashed(&mut limit, &mut model, 1, 0..256), 0);
    }
    assert!(model.moved_out - before > 6 * 512, "memory is turned over six times and more");
}

/// All pages are used alike: none is better in system memory than another.
#[test]
fn on_a_coherent_device_little_is_turned_over_in_vain() {
    let mut model = Model::new(&[(0, 4096)], &[8192]).coherent();
    let mut limit = limit(1024);
    let mut random = Random::new(1);
    let mut moved = |model: &mut Model, times| {
        let before = model.moved_home;
        run(&mut limit, model, times, |model| (0..50).for_each(|_| model.touch(random.below(4096))));
        model.moved_home - before
    };
    let at_first = moved(&mut model, 1_000);
    moved(&mut model, 60_000);
    let in_the_end = moved(&mut model, 1_000);
    assert!(in_the_end * 2 < at_first, "{at_first} {in_the_end}");
}

/// Some pages are used all the time, others one after the other: what was away for long leaves again first.
#[test]
fn without_samples_what_comes_home_soon_stays_and_nothing_is_promoted() {
    let mut model = Model::new(&[(0, 4096)], &[8192]);
    model.samples = false;
    let mut limit_of_some = limit(1024);
    let mut scan = 256;
    let (mut random, mut away) = (Random::new(1), 0);
    run(&mut limit_of_some, &mut model, 20_000, |model| {
        (0..64).for_each(|_| model.touch(random.below(256)));
        model.touch(scan);
        scan = if scan == 4095 { 256 } else { scan + 1 };
        if model.now > 10_000 * MILLISECOND {
            away += 256 - home(model, 0..256);
        }
    });
    let share = away * 1000 / 256 / 10_000;
    assert!(share < 20, "{share} of a thousand hot pages are away");
    assert!(model.resident_pages() <= 1024);
    let mut model = Model::new(&[(0, 2048)], &[5000]).coherent();
    model.samples = false;
    run(&mut limit(1024), &mut model, 2000, |model| (0..2048).for_each(|page| model.touch(page)));
    assert_eq!((model.moved_out, model.moved_home, model.faults), (1024, 0, 0));
}

#[test]
fn nothing_is_sampled_of_a_program_that_does_nothing() {
    // Of little on a device samples have cost less than they may, and more could be paid for.
    for pages in [1024, 2048 - 64] {
        let mut model = Model::new(&[(0, 2048)], &[5000]).coherent();
        let mut limit = limit(pages);
        run(&mut limit, &mut model, 1000, |_| ());
        model.uses = false;
        run(&mut limit, &mut model, 100, |_| ());
        model.asked.clear();
        run(&mut limit, &mut model, 1000, |_| ());
        assert!(!model.asked.contains(&"survey"), "{pages}");
        model.uses = true;
        run(&mut limit, &mut model, 1000, |_| ());
        assert!(model.asked.contains(&"survey"), "{pages}: of one that does something, there is");
    }
}

//! Each call of the host and of a device fails once, in each way it can: the program must not notice.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hetmem_core::engine::Residency;
use hetmem_core::fault::FaultResolution;
use hetmem_core::migrate::{Collected, Request, Target};
use hetmem_core::mirror::{MirrorPage, RangeFault, RangeFaultError, Want};
use hetmem_core::outcome::{KeptReason, Outcomes, PageOutcome};
use hetmem_core::physmap::Owner;
use hetmem_core::port::{FaultPath, InstallStop};
use hetmem_core::units::{DeviceId, PageCount, PageRange, VirtAddr};

use crate::model::{
    Action, COHERENT, COHERENT_B, Failure, Gives, ModelHost, PRIVATE, PRIVATE_B, STOPPED, StepKind, World,
};

/// The batch ends one block and begins the next.
const FIRST: u64 = 506;
pub(crate) const COUNT: u64 = 12;
pub(crate) const CAPACITY: u64 = 64;

const EVERYWHERE: [Target; 5] = [
    Target::System,
    Target::Device(PRIVATE),
    Target::Device(COHERENT),
    Target::Device(PRIVATE_B),
    Target::Device(COHERENT_B),
];

pub(crate) fn batch(world: &World) -> PageRange {
    world.at(FIRST, COUNT)
}

pub(crate) fn world(place: Target) -> World {
    let world = World::new(CAPACITY).with_pages(FIRST, COUNT);
    if place != Target::System {
        world.place(batch(&world), place);
    }
    world.model.lock().calm();
    world
}

/// The same, with no page mapped: pages of system memory are left in the pool, those of a coherent device in their frames, by
/// a batch that could not put them back.
fn away(place: Target) -> World {
    let world = world(place);
    {
        let collected: Vec<_> = [world.at(FIRST, 6), world.at(512, 6)].map(|range| collect(&world, range)).into();
        let step = world.model.lock().steps().len();
        world.model.lock().fail_at(step, StepKind::Install.failures()[1], usize::MAX);
        drop(collected);
    }
    world.model.lock().calm();
    assert_eq!(world.engine.away_in(batch(&world)).0, PageCount::new(COUNT));
    world
}

fn collect(world: &World, range: PageRange) -> Collected<'_, ModelHost> {
    let (_, region) = world.engine.region_at(range.start()).expect("it is managed");
    // No page is on its way to where it is already.
    let nowhere = Target::Device(DeviceId::new(9));
    Collected::collect(&world.engine, range, region, Request::all_to(nowhere))
}

pub(crate) fn residency_at(place: Target) -> Residency {
    match place {
        Target::System => Residency::System,
        Target::Device(id) => Residency::Device(id),
    }
}

/// So many more steps of the same kind fail after the first: none, or some, but less than the engine has patience for.
const SOME: [usize; 2] = [0, 5];
/// The same, and all of them.
pub(crate) const ALL: [usize; 3] = [0, 5, usize::MAX];

/// Runs `work` once for each step that it takes and each way in which that step can fail, alone and with later ones.
pub(crate) fn fail_each_step<T>(
    more: &[usize],
    setup: impl Fn() -> World,
    work: impl Fn(&World) -> T,
    judge: impl Fn(&World, T),
) {
    let dry = setup();
    let result = work(&dry);
    let steps = dry.model.lock().steps().to_vec();
    judge(&dry, result);
    dry.verify();
    for (step, kind) in steps.iter().enumerate() {
        for failure in kind.failures() {
            for &more in more {
                // An event that is announced for ever and never there is no failure, but a broken kernel.
                if more == usize::MAX && matches!(failure, Failure::Install(InstallStop::EventsPending, _)) {
                    continue;
                }
                let world = setup();
                world.model.lock().fail_at(step, failure, more);
                let result = work(&world);
                world.model.lock().calm();
                judge(&world, result);
                world.verify();
            }
        }
    }
}

/// Each page is where its outcome says.
pub(crate) fn agrees(world: &World, place: Target, target: Target, outcomes: &Outcomes) {
    let range = batch(world);
    assert_eq!(outcomes.as_slice().len(), range.pages().as_usize());
    for (outcome, now) in outcomes.as_slice().iter().zip(world.residency(range)) {
        match outcome {
            PageOutcome::Moved => assert_eq!(now, residency_at(target)),
            // A coherent frame whose place was taken is given up: the page stays, as one of system memory.
            PageOutcome::Kept(KeptReason::Occupied) => assert!([residency_at(place), Residency::System].contains(&now)),
            // Out of a coherent device's mapping and back into its frame, or home in the pool: whole either way.
            PageOutcome::Kept(_) => assert_eq!(now, residency_at(place), "{outcome:?}"),
        }
    }
}

#[test]
fn a_migration_survives_each_failure() {
    for place in EVERYWHERE {
        for target in EVERYWHERE {
            if place == target {
                continue;
            }
            for gives in [Gives::AtOnce, Gives::Read] {
                fail_each_step(
                    &ALL,
                    || world(place).giving(gives),
                    |world| world.migrate(batch(world), target),
                    |world, outcomes| agrees(world, place, target, &outcomes),
                );
            }
        }
    }
}

/// Of the second block so many pages are away that it has as many as it keeps a list of when half of the batch joins them, and few when all are home.
#[test]
fn a_migration_that_makes_few_pages_of_a_block_many_survives_each_failure() {
    let others = |world: &World| world.at(600, 29);
    for target in [Target::Device(PRIVATE), Target::Device(COHERENT)] {
        let setup = || {
            let world = World::new(CAPACITY).with_pages(FIRST, COUNT).with_pages(600, 29);
            world.place(others(&world), Target::Device(PRIVATE_B));
            world.model.lock().calm();
            world
        };
        let to_and_fro = |world: &World| {
            let outcomes = world.migrate(batch(world), target);
            let residency = world.residency(batch(world));
            for range in [others(world), batch(world)] {
                drop(world.migrate(range, Target::System));
            }
            (outcomes, residency)
        };
        fail_each_step(&ALL, setup, to_and_fro, |_, (outcomes, residency)| {
            for (outcome, now) in outcomes.as_slice().iter().zip(residency) {
                assert_eq!(now, residency_at(if *outcome == PageOutcome::Moved { target } else { Target::System }));
            }
        });
    }
}

#[test]
fn a_failure_is_named_in_the_outcome_of_its_page() {
    for (kind, reason) in [(StepKind::CopyIn, KeptReason::DeviceError), (StepKind::TakeOut, KeptReason::Pinned)] {
        let world = world(Target::System);
        let failure = kind.failures()[0];
        let steps = {
            let dry = self::world(Target::System);
            let _ = dry.migrate(batch(&dry), Target::Device(PRIVATE));
            dry.model.lock().steps().to_vec()
        };
        let step = steps.iter().position(|k| *k == kind).unwrap();
        world.model.lock().fail_at(step, failure, usize::MAX);
        let outcomes = world.migrate(batch(&world), Target::Device(PRIVATE));
        assert_eq!(outcomes.kept(reason), PageCount::new(COUNT), "{outcomes:?}");
        world.verify();
    }
}

#[test]
fn a_fault_survives_each_failure() {
    for place in EVERYWHERE {
        let touch = |world: &World| world.model.touch(batch(world).start());
        for gives in Gives::ALL {
            fail_each_step(&SOME, || away(place).giving(gives), touch, |_, got| assert!(got.is_some()));
        }
    }
}

#[test]
fn a_stream_of_faults_survives_each_failure() {
    for place in EVERYWHERE {
        for gives in Gives::ALL {
            fail_each_step(&SOME, || away(place).giving(gives), |world| world.model.read_all(), |_, ()| {});
        }
    }
}

#[test]
fn a_first_touch_survives_each_failure() {
    let setup = || {
        let world = World::new(CAPACITY).with_pages(FIRST, COUNT);
        let fresh = world.at(FIRST + COUNT, COUNT);
        world.model.map(fresh, false);
        assert!(world.model.adopt(fresh, hetmem_core::space::Region::default()));
        world.model.lock().calm();
        world
    };
    fail_each_step(&SOME, setup, |world| world.model.read_all(), |_, ()| {});
}

/// A touch that comes while the page is busy is served in the end, whatever fails.
#[test]
fn a_touch_in_flight_survives_each_failure() {
    for place in EVERYWHERE {
        for target in EVERYWHERE {
            let dry = world(place);
            let _ = dry.migrate(batch(&dry), target);
            let steps = dry.model.lock().steps().to_vec();
            let copies =
                steps.iter().enumerate().filter(|(_, kind)| matches!(kind, StepKind::CopyIn | StepKind::CopyOut));
            for (copy, _) in copies {
                let setup = || {
                    let world = world(place);
                    for page in batch(&world).iter() {
                        world.model.lock().at_step(copy, Action::Touch(page));
                    }
                    world
                };
                let work = |world: &World| {
                    let outcomes = world.migrate(batch(world), target);
                    world.model.serve(false);
                    outcomes
                };
                fail_each_step(&SOME, setup, work, |_, _| {});
            }
        }
    }
}

#[test]
fn bringing_all_home_survives_each_failure() {
    for place in EVERYWHERE {
        fail_each_step(
            &ALL,
            || away(place),
            |world| world.engine.bring_all_home(),
            |world, left| {
                let (away, mapped) = world.engine.away_in(batch(world));
                assert!(left <= away, "what is reported as left is away: {left:?} of {away:?}, {mapped:?} are mapped");
            },
        );
    }
}

#[test]
fn a_range_fault_survives_each_failure() {
    for place in EVERYWHERE {
        for want in [Want::Snapshot, Want::Read, Want::Write] {
            for owner in [None, Some(Owner::new(1)), Some(Owner::new(2))] {
                let work = |world: &World| {
                    let mut out = vec![MirrorPage::default(); batch(world).pages().as_usize()];
                    let request = RangeFault { want, owner, ..RangeFault::default() };
                    (world.engine.range_fault(batch(world), request, &mut out), out)
                };
                let judge = |world: &World, (result, out): (Result<(), RangeFaultError>, Vec<MirrorPage>)| {
                    match result {
                        // Once for a run of pages, and once more for the first of them.
                        Err(RangeFaultError::Failed(_)) => assert!(world.model.lock().faults_refused >= 2),
                        result => world.judge(batch(world), want, owner, result, &out),
                    }
                };
                let holes = || {
                    let world = World::new(CAPACITY).with_nothing_in(FIRST, COUNT);
                    world.model.lock().calm();
                    world
                };
                fail_each_step(&SOME, || world(place), work, judge);
                fail_each_step(&SOME, || away(place), work, judge);
                fail_each_step(&SOME, holes, work, judge);
            }
        }
    }
}

#[test]
fn a_fork_survives_each_failure() {
    for place in EVERYWHERE {
        let work = |world: &World| {
            let outcomes = world.migrate(batch(world), Target::Device(PRIVATE_B));
            world.model.fork(batch(world));
            world.model.deliver();
            outcomes
        };
        fail_each_step(&SOME, || away(place), work, |_, _| {});
    }
}

#[test]
fn a_dropped_phase_puts_everything_back() {
    for place in EVERYWHERE {
        for target in EVERYWHERE {
            let drop_collected = |world: &World| drop(one_batch(world, target));
            let drop_copied = |world: &World| drop(one_batch(world, target).copy());
            let untouched = |world: &World, ()| {
                for now in world.residency(batch(world)) {
                    // A coherent frame whose place was taken is given up.
                    let given_up = matches!(place, Target::Device(COHERENT | COHERENT_B)) && now == Residency::System;
                    assert!(now == residency_at(place) || given_up, "{now:?} after {place:?}");
                }
            };
            let works: [&dyn Fn(&World); 2] = [&drop_collected, &drop_copied];
            for work in works {
                let world = world(place);
                work(&world);
                untouched(&world, ());
                world.verify();
                fail_each_step(&ALL, || self::world(place), work, untouched);
            }
        }
    }
}

fn one_batch(world: &World, target: Target) -> Collected<'_, ModelHost> {
    let range = world.at(FIRST, 6);
    let (_, region) = world.engine.region_at(range.start()).expect("it is managed");
    Collected::collect(&world.engine, range, region, Request::all_to(target))
}

#[test]
fn without_frames_the_rest_of_the_pages_is_kept() {
    for place in EVERYWHERE {
        for target in [PRIVATE, COHERENT, PRIVATE_B, COHERENT_B] {
            for left in [0, 1, 5] {
                if place == Target::Device(target) {
                    continue;
                }
                let world = world(place);
                let hogged = world.hog_device(target, left);
                let outcomes = world.migrate(batch(&world), Target::Device(target));
                assert_eq!(outcomes.moved(), PageCount::new(left));
                assert_eq!(outcomes.kept(KeptReason::NoFrame), PageCount::new(COUNT - left), "{outcomes:?}");
                agrees(&world, place, Target::Device(target), &outcomes);
                world.unhog_device(target, hogged);
                world.verify();
            }
        }
    }
}

#[test]
fn parts_of_huge_pages_that_cant_be_split_are_not_asked_to_move() {
    for place in [Target::System, Target::Device(COHERENT)] {
        let world = world(place);
        world.model.lock().unsplittable.extend(batch(&world).iter().map(VirtAddr::get));
        let outcomes = world.migrate(batch(&world), Target::Device(PRIVATE));
        assert_eq!(outcomes.kept(KeptReason::Shared), PageCount::new(COUNT), "{outcomes:?}");
        world.verify();
        world.model.lock().unsplittable.clear();
        assert_eq!(world.migrate(batch(&world), Target::Device(PRIVATE)).moved(), PageCount::new(COUNT));
        world.verify();
    }
}

#[test]
fn without_room_in_the_pool_pages_are_kept_and_faults_still_served() {
    for place in EVERYWHERE {
        for target in EVERYWHERE {
            // Of the reserve of 128 places migrations get none.
            for left in [0, 1, 128, 129, 133] {
                if place == target {
                    continue;
                }
                let world = world(place);
                let hogged = world.hog_pool(left);
                let outcomes = world.migrate(batch(&world), target);
                agrees(&world, place, target, &outcomes);
                if left > 0 {
                    world.model.read_all();
                } else {
                    let page = batch(&world).start();
                    let private = matches!(place, Target::Device(PRIVATE | PRIVATE_B));
                    if private && target == Target::System {
                        assert_eq!(world.engine.fault(page, FaultPath::Thread), FaultResolution::NoMemory);
                    }
                }
                world.unhog_pool(hogged);
                world.verify();
            }
        }
    }
}

#[test]
fn a_page_that_cannot_be_moved_in_goes_home_by_copying() {
    for place in [PRIVATE, PRIVATE_B] {
        let world = world(Target::Device(place));
        world.model.protect(batch(&world), true);
        let outcomes = world.migrate(batch(&world), Target::System);
        assert_eq!(outcomes.moved(), PageCount::new(COUNT), "{outcomes:?}");
        world.verify();
    }
}

/// As while a fork is under way: what is out comes home, and nothing leaves, not even for a moment.
#[test]
fn while_pages_are_held_they_only_come_home() {
    for place in EVERYWHERE {
        for target in EVERYWHERE {
            for world in [world(place), away(place)] {
                let was = world.engine.away_in(batch(&world)).0;
                world.engine.hold_pages();
                // An event would be applied with the gate alone: who is refused holds nothing that it would wait for.
                let steps = world.model.lock().steps().len();
                let moved = world.migrate(batch(&world), target).moved();
                let took = world.model.lock().steps()[steps..].contains(&StepKind::TakeOut);
                assert!(!took, "a page was taken out on its way from {place:?} to {target:?}");
                assert!(moved.is_zero() || (target == Target::System && !was.is_zero()));
                assert!(world.engine.bring_all_home().is_zero());
                assert!(world.engine.away_in(batch(&world)).0.is_zero());
                world.engine.release_pages();
                if target != Target::System {
                    assert!(!world.migrate(batch(&world), Target::Device(PRIVATE)).moved().is_zero());
                }
                world.verify();
            }
        }
    }
}

#[test]
fn a_page_that_is_there_twice_stops_the_program() {
    let world = world(Target::Device(COHERENT));
    let range = batch(&world);
    let (_, region) = world.engine.region_at(range.start()).unwrap();
    let request = Request::all_to(Target::Device(PRIVATE));
    let stopped = catch_unwind(AssertUnwindSafe(|| {
        let collected = Collected::collect(&world.engine, world.at(FIRST, 1), region, request);
        let Ok(copied) = collected.copy() else { panic!("nothing fails here") };
        drop(copied);
        let request = Request::all_to(Target::Device(DeviceId::new(3)));
        let Ok(copied) = Collected::collect(&world.engine, world.at(FIRST, 1), region, request).copy() else {
            panic!("nothing fails here")
        };
        world.model.lock().pages.get_mut(&range.start().get()).unwrap().content = Some(7);
        copied.finalize()
    }));
    let panic = stopped.expect_err("one of the two would be lost");
    assert!(panic.downcast_ref::<String>().is_some_and(|message| message.starts_with(STOPPED)));
}

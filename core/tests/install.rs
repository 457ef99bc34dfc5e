//! The four who install pages (finalize, rollback, and the two kinds of touches), and each answer that the host can give them.

use crate::model::{Action, COHERENT, Done, Failure, Gives, ModelHost, PRIVATE, PRIVATE_B, StepKind, World, pages};
use hetmem_core::migrate::{Collected, Request, Target};
use hetmem_core::port::InstallStop;
use hetmem_core::units::{DeviceId, PageCount, PageRange, VirtAddr};

/// The batch ends one block and begins the next.
const FIRST: u64 = 508;
const COUNT: u64 = 8;

fn batch(world: &World) -> PageRange {
    world.at(FIRST, COUNT)
}

fn world(place: Target) -> World {
    let world = World::new(64).with_pages(FIRST, COUNT);
    if place != Target::System {
        world.place(batch(&world), place);
    }
    world.model.lock().calm();
    world
}

fn collect(world: &World, range: PageRange) -> Collected<'_, ModelHost> {
    let (_, region) = world.engine.region_at(range.start()).expect("it is managed");
    // No page is on its way to where it is already.
    Collected::collect(&world.engine, range, region, Request::all_to(Target::Device(DeviceId::new(9))))
}

/// No page is mapped: they are in frames with an address.
fn away(place: Target) -> World {
    let world = world(place);
    let collected = [world.at(FIRST, 4), world.at(512, 4)].map(|range| collect(&world, range));
    let step = world.model.lock().steps().len();
    world.model.lock().fail_at(step, StepKind::Install.failures()[1], usize::MAX);
    drop(collected);
    world.model.lock().calm();
    assert_eq!(world.engine.away_in(batch(&world)).0, PageCount::new(COUNT));
    world
}

/// Who installs, from what state on, and how.
struct Caller {
    name: &'static str,
    setup: fn() -> World,
    work: fn(&World),
}

/// Nothing is in stock.
fn without_stock(world: World) -> World {
    let pool = world.engine.pool();
    while let Some(run) = pool.take_populated(PageCount::new(COUNT)) {
        let places = pages(pool.address(run), run.pages.get());
        world.model.lock().own.retain(|page, _| !places.contains(VirtAddr::new(*page)));
        pool.release_empty(run);
    }
    world
}

const HOME_FROM_COHERENT: &str = "finalize, home from a coherent device";

const CALLERS: [Caller; 12] = [
    Caller {
        name: HOME_FROM_COHERENT,
        setup: || world(Target::Device(COHERENT)),
        work: |world| _ = world.migrate(batch(world), Target::System),
    },
    Caller {
        name: HOME_FROM_COHERENT,
        setup: || without_stock(world(Target::Device(COHERENT)).giving(Gives::Read)),
        work: |world| _ = world.migrate(batch(world), Target::System),
    },
    Caller {
        name: "finalize, home from a private device",
        setup: || world(Target::Device(PRIVATE)),
        work: |world| _ = world.migrate(batch(world), Target::System),
    },
    Caller {
        name: "finalize, home from a private device that can be read",
        setup: || world(Target::Device(PRIVATE)).giving(Gives::Read),
        work: |world| _ = world.migrate(batch(world), Target::System),
    },
    Caller {
        name: "finalize, home from the pool",
        setup: || away(Target::System),
        work: |world| _ = world.migrate(batch(world), Target::System),
    },
    Caller {
        name: "finalize, to a coherent device",
        setup: || world(Target::System),
        work: |world| _ = world.migrate(batch(world), Target::Device(COHERENT)),
    },
    Caller {
        name: "rollback to system memory",
        setup: || world(Target::System),
        work: |world| drop([world.at(FIRST, 4), world.at(512, 4)].map(|range| collect(world, range))),
    },
    Caller {
        name: "rollback to a coherent device",
        setup: || world(Target::Device(COHERENT)),
        work: |world| drop([world.at(FIRST, 4), world.at(512, 4)].map(|range| collect(world, range))),
    },
    Caller {
        name: "a touch of what is in the pool",
        setup: || away(Target::System),
        work: |world| batch(world).iter().for_each(|page| _ = world.model.touch(page)),
    },
    Caller {
        name: "a touch of what is in a coherent frame",
        setup: || away(Target::Device(COHERENT)),
        work: |world| batch(world).iter().for_each(|page| _ = world.model.touch(page)),
    },
    Caller {
        name: "touches of what is on a private device",
        setup: || world(Target::Device(PRIVATE_B)),
        work: |world| batch(world).iter().for_each(|page| _ = world.model.touch(page)),
    },
    Caller {
        name: "touches of what is on a private device that can be read",
        setup: || world(Target::Device(PRIVATE)).giving(Gives::Read),
        work: |world| batch(world).iter().for_each(|page| _ = world.model.touch(page)),
    },
];

/// Where a device can be read, a touch is one copy, of few pages: nothing passes through the pool. Those of many are moved, as that is faster.
#[test]
fn few_pages_come_straight_from_a_device_that_can_be_read() {
    let world = World::new(128).with_pages(0, 100).giving(Gives::Read);
    world.place(world.at(0, 100), Target::Device(PRIVATE));
    let mut came = Vec::new();
    let mut at = 0;
    while at < 85 {
        world.model.lock().calm();
        assert!(world.model.touch(world.at(at, 1).start()).is_some());
        let away = world.engine.away_in(world.at(0, 100)).0.get();
        came.push((100 - away - at, world.model.lock().steps().to_vec()));
        at = 100 - away;
    }
    let counts: Vec<u64> = came.iter().map(|(pages, _)| *pages).collect();
    assert_eq!(counts, [1, 4, 16, 64]);
    for (pages, steps) in &came[..3] {
        assert_eq!(steps, &[StepKind::Install], "{pages} pages");
    }
    assert!(came[3].1.contains(&StepKind::CopyOut));
    world.verify();
}

/// A device copies what comes home into pages that are there to be used again. Where none are, the host copies: it need not clear what it fills.
#[test]
fn what_comes_home_from_a_coherent_device_is_copied_once_whether_something_is_in_stock_or_not() {
    let readable = || world(Target::Device(COHERENT)).giving(Gives::Read);
    for (world, copies) in
        [(readable(), 2), (without_stock(readable()), 0), (without_stock(world(Target::Device(COHERENT))), 2)]
    {
        world.model.lock().calm();
        assert_eq!(world.migrate(batch(&world), Target::System).moved(), PageCount::new(COUNT));
        let steps = world.model.lock().steps().to_vec();
        let count = |kind| steps.iter().filter(|step| **step == kind).count();
        assert_eq!((count(StepKind::CopyOut), count(StepKind::Install)), (copies, 2), "two blocks: {steps:?}");
        world.model.read_all();
        world.verify();
    }
}

/// The steps at which `caller` installs.
fn installs(caller: &Caller) -> Vec<usize> {
    let dry = (caller.setup)();
    (caller.work)(&dry);
    let steps = dry.model.lock().steps().to_vec();
    dry.verify();
    let at: Vec<usize> = (0..).zip(steps).filter(|(_, kind)| *kind == StepKind::Install).map(|(at, _)| at).collect();
    assert!(!at.is_empty(), "{} installs", caller.name);
    at
}

#[test]
fn each_caller_makes_the_right_thing_of_each_refusal() {
    for caller in &CALLERS {
        for step in installs(caller) {
            for failure in StepKind::Install.failures() {
                // Alone, with the copy or the next try, and for a while.
                for more in [0, 1, 5] {
                    let world = (caller.setup)();
                    world.model.lock().fail_at(step, failure, more);
                    (caller.work)(&world);
                    world.verify();
                }
            }
        }
    }
}

/// The program drops the first page, the last, or all, by each way in which it can, just before they are installed.
#[test]
fn each_caller_makes_the_right_thing_of_what_the_program_discards() {
    for caller in &CALLERS {
        for step in installs(caller) {
            for range in [(FIRST, 1), (511, 2), (515, 1), (FIRST, COUNT)] {
                let actions: [fn(PageRange) -> Action; 4] =
                    [Action::Guard, Action::Unmap, Action::Remove, Action::Replace];
                for action in actions {
                    let world = (caller.setup)();
                    let range = world.at(range.0, range.1);
                    world.model.lock().at_step(step, action(range));
                    (caller.work)(&world);
                    world.verify();
                }
            }
        }
    }
}

/// A mapping becomes read-only: what can be copied in comes, and what is to be a device's stays away.
#[test]
fn each_caller_copies_where_moving_is_refused_but_those_for_whom_a_copy_is_none() {
    for caller in &CALLERS {
        for step in installs(caller) {
            let world = (caller.setup)();
            world.model.lock().at_step(step, Action::Protect(batch(&world)));
            (caller.work)(&world);
            world.model.read_all();
            assert_eq!(world.engine.away_in(batch(&world)).0, PageCount::ZERO, "{}: a touch brings it", caller.name);
            world.model.protect(batch(&world), false);
            world.verify();
        }
    }
}

/// What is said to be empty is, and what is said to be in stock has a page; a device's frame whose page was moved away has nothing to be cleared.
#[test]
fn each_caller_says_truly_what_it_leaves_in_frames() {
    for caller in &CALLERS {
        let world = (caller.setup)();
        (caller.work)(&world);
        let places = world.places_with_a_page();
        let pool = world.engine.pool();
        assert_eq!(places, pool.stocked() + pool.in_use(), "{}: pages are in stock, or in use", caller.name);
        let coherent = &world.engine.devices()[COHERENT.index()].pagemap().frames;
        let is_copied = caller.name == HOME_FROM_COHERENT;
        assert_eq!(coherent.has_resting(), is_copied, "{}: pages are copied out of coherent frames", caller.name);
        world.verify();
    }
}

/// A page stays where it is as long as the host has no memory for it.
#[test]
fn what_the_host_has_no_memory_for_is_not_lost() {
    for caller in &CALLERS {
        let step = installs(caller)[0];
        let world = (caller.setup)();
        world.model.lock().fail_at(step, Failure::Install(InstallStop::NoMemory, Done::None), 100);
        (caller.work)(&world);
        world.model.lock().calm();
        world.verify();
    }
}

//! Range faults over every state that a page can be in.

use hetmem_core::migrate::{Collected, Request, Target};
use hetmem_core::mirror::{MirrorPage, RangeFault, RangeFaultError, Want};
use hetmem_core::physmap::Owner;
use hetmem_core::units::{DeviceId, PageRange};

use crate::model::{Answer, COHERENT, COHERENT_B, PRIVATE, PRIVATE_B, StepKind, World};

const EVERYWHERE: [Target; 5] = [
    Target::System,
    Target::Device(PRIVATE),
    Target::Device(COHERENT),
    Target::Device(PRIVATE_B),
    Target::Device(COHERENT_B),
];
const WANTS: [Want; 3] = [Want::Snapshot, Want::Read, Want::Write];

fn owners() -> [Option<Owner>; 3] {
    [None, Some(Owner::new(1)), Some(Owner::new(2))]
}

/// Whether the pages are mapped, as far as their place allows, or missing where they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Are {
    Mapped,
    Away,
}

/// Pages 506 to 517 at `place`, on both sides of a block's border, then four holes, two zero pages, two pages without a mapping, and two that
/// are not managed.
fn world(place: Target, are: Are) -> World {
    let world = World::new(64).with_pages(506, 12).with_nothing_in(518, 6);
    if place != Target::System {
        world.place(world.at(506, 12), place);
    }
    if are == Are::Away {
        for part in [world.at(506, 6), world.at(512, 6)] {
            let (_, region) = world.engine.region_at(part.start()).expect("it is managed");
            let collected =
                Collected::collect(&world.engine, part, region, Request::all_to(Target::Device(DeviceId::new(9))));
            let step = world.model.lock().steps().len();
            world.model.lock().fail_at(step, StepKind::Install.failures()[1], usize::MAX);
            drop(collected);
            world.model.lock().calm();
        }
    }
    world.model.read(world.at(522, 1).start());
    world.model.map(world.at(526, 2), false);
    assert!(world.at(526, 2).iter().all(|page| world.model.write_present(page)));
    world.model.lock().calm();
    world
}

fn ask(
    world: &World,
    range: PageRange,
    want: Want,
    owner: Option<Owner>,
) -> (Result<(), RangeFaultError>, Vec<MirrorPage>) {
    world.ask(range, RangeFault { want, owner, ..RangeFault::default() })
}

fn each(test: impl Fn(&dyn Fn() -> World, Want, Option<Owner>)) {
    for place in EVERYWHERE {
        for are in [Are::Mapped, Are::Away] {
            for read_only in [None, Some((506, 12)), Some((510, 5)), Some((519, 4))] {
                let setup = || {
                    let world = world(place, are);
                    if let Some((first, count)) = read_only {
                        world.model.protect(world.at(first, count), true);
                    }
                    world
                };
                WANTS.into_iter().for_each(|want| owners().into_iter().for_each(|owner| test(&setup, want, owner)));
            }
        }
    }
}

#[test]
fn each_state_of_a_page_is_answered_as_the_table_says() {
    each(|setup, want, owner| {
        // All that is mapped, the same with what is not, each end alone.
        for (first, count) in [(506, 18), (504, 26), (506, 1), (517, 2), (523, 4), (526, 2)] {
            let world = setup();
            let range = world.at(first, count);
            let before: Vec<Answer> = range.iter().map(|page| world.looked_at(page, owner)).collect();
            let (result, out) = ask(&world, range, want, owner);
            world.judge(range, want, owner, result, &out);
            if want == Want::Snapshot {
                let answers: Vec<Answer> = out.into_iter().map(Answer::from).collect();
                assert_eq!(answers, before, "a look changes nothing");
                assert!(!world.model.lock().steps().contains(&StepKind::FaultIn));
            }
            world.verify();
        }
    });
}

#[test]
fn each_page_may_be_asked_for_something_of_its_own() {
    each(|setup, want, owner| {
        let world = setup();
        let range = world.at(506, 18);
        let wants: Vec<Want> = (0..12).map(|i| WANTS[i % 3]).collect();
        let effective = |i: usize| want.max(wants.get(i).copied().unwrap_or_default());
        // The first of them that can't be as it is wanted.
        let refused =
            (0..).zip(range.iter()).find_map(|(i, page)| world.refusal(PageRange::page_of(page), effective(i), owner));
        let before: Vec<Answer> = range.iter().map(|page| world.looked_at(page, owner)).collect();
        let request = RangeFault { want, wants: &wants, owner, ..RangeFault::default() };
        let (result, out) = world.ask(range, request);
        assert_eq!(result.err(), refused);
        if refused.is_none() {
            for (i, page) in (0..).zip(range.iter()) {
                let one = PageRange::page_of(page);
                world.judge(one, effective(i), owner, Ok(()), &out[i..=i]);
                // A touch brings neighbours along from a private frame, and nothing else.
                let untouched = effective(i) == Want::Snapshot && before[i] != Answer::Nothing;
                assert!(!untouched || Answer::from(out[i]) == before[i], "{page} was not asked for");
            }
        }
        world.verify();
    });
}

/// Pages are faulted in by windows of 8192, and looked at by windows of a GiB.
#[test]
fn long_ranges_are_answered_as_short_ones() {
    const PAGES: u64 = 3 * 8192 + 100;
    for want in WANTS {
        let setup = || {
            let world = World::new(64).with_nothing_in(0, PAGES);
            // Answers change often, also where a window begins, and before.
            for first in (0..PAGES).step_by(700).chain([1, 8190, 8192, 16_384]) {
                world.model.read(world.at(first, 1).start());
                world.model.write_present(world.at(first, 1).start());
            }
            world.model.lock().calm();
            world
        };
        let world = setup();
        let range = world.at(0, PAGES);
        let (result, out) = world.ask(range, RangeFault { want, ..RangeFault::default() });
        world.judge(range, want, None, result, &out);
        // What each page is wanted for need not be the same, and the last window has a page that is refused.
        let world = setup();
        world.model.protect(world.at(PAGES - 50, 1), true);
        let wants: Vec<Want> = (0..PAGES).map(|i| WANTS[usize::try_from(i / 600 % 3).unwrap()]).collect();
        let request = RangeFault { want, wants: &wants, ..RangeFault::default() };
        let effective =
            |page: hetmem_core::units::VirtAddr| want.max(wants[page.pages_since(range.start()).as_usize()]);
        let refused = range.iter().find_map(|page| world.refusal(PageRange::page_of(page), effective(page), None));
        let (result, out) = world.ask(range, request);
        assert_eq!(result.err(), refused, "{want:?}");
        for (page, answer) in range.iter().zip(&out).take(usize::try_from(PAGES - 50).unwrap()) {
            world.judge(PageRange::page_of(page), effective(page), None, Ok(()), std::slice::from_ref(answer));
        }
    }
}

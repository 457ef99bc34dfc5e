//! Files whose pages are on devices: whatever fails, whatever the program does meanwhile and whoever writes them, what is read is what the file has.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hetmem_core::engine::Residency;
use hetmem_core::migrate::{Request, Target};
use hetmem_core::outcome::{KeptReason, Outcomes, PageOutcome};
use hetmem_core::units::{PageCount, PageRange};

use crate::model::{Action, COHERENT, COHERENT_B, Failure, Gives, OVERLAY, PRIVATE, PRIVATE_B, StepKind, World};

/// A part of a block, of which other pages are not the file's.
const FIRST: u64 = 512 + 40;
const PAGES: u64 = 24;
const HOME: Target = Target::System;
const PLACES: [Target; 5] =
    [HOME, Target::Device(PRIVATE), Target::Device(COHERENT), Target::Device(PRIVATE_B), Target::Device(COHERENT_B)];

fn range(world: &World) -> PageRange {
    world.at(FIRST, PAGES)
}

/// The file, and beside it in the same block memory of the program's.
fn world(place: Target) -> World {
    let world = World::new(64).with_pages(512, 8);
    let region = world.model.map_file(range(&world), 3);
    assert_ne!(region, hetmem_core::space::Region::default());
    if place != HOME {
        world.place(range(&world), place);
    }
    world.model.lock().calm();
    world
}

fn ways() -> impl Iterator<Item = (Target, Target)> {
    PLACES.into_iter().flat_map(|from| PLACES.map(|to| (from, to))).filter(|(from, to)| from != to)
}

fn at(target: Target) -> Residency {
    match target {
        Target::System => Residency::System,
        Target::Device(device) => Residency::Device(device),
    }
}

/// Each page is where its outcome says, and they are together: where they were, where they go, or home.
#[track_caller]
fn agrees(world: &World, from: Target, to: Target, outcomes: &Outcomes) {
    let residency = world.residency(range(world));
    assert!(residency.iter().all(|now| *now == residency[0]), "{residency:?}");
    match outcomes.as_slice()[0] {
        PageOutcome::Moved => assert_eq!(residency[0], at(to)),
        PageOutcome::Kept(_) => assert!([at(from), at(HOME)].contains(&residency[0]), "{outcomes:?}: {residency:?}"),
    }
}

fn finish(world: &World) {
    world.verify();
    world.migrate(range(world), HOME);
    assert_eq!(world.engine.stood_in(PageRange::ALL), PageCount::ZERO);
    world.verify();
}

#[test]
fn pages_go_wherever_they_are_asked_to_and_no_failure_shows() {
    for (from, to) in ways() {
        let dry = world(from);
        let outcomes = dry.migrate(range(&dry), to);
        assert_eq!(outcomes.moved(), PageCount::new(PAGES), "{from:?} to {to:?}: {outcomes:?}");
        agrees(&dry, from, to, &outcomes);
        let steps = dry.model.lock().steps().to_vec();
        finish(&dry);
        for (step, kind) in steps.iter().enumerate() {
            for failure in kind.failures() {
                let world = world(from);
                world.model.lock().fail_at(step, failure, 0);
                let outcomes = world.migrate(range(&world), to);
                world.model.lock().calm();
                agrees(&world, from, to, &outcomes);
                finish(&world);
            }
        }
    }
}

#[test]
fn the_program_reads_and_drops_pages_at_every_step() {
    use Action::{Handle, Remove, Touch, Zap};
    for gives in Gives::ALL {
        for (from, to) in ways() {
            let dry = world(from);
            let _ = dry.migrate(range(&dry), to);
            let steps = dry.model.lock().steps().len();
            let (some, page, beside) = (dry.at(FIRST + 2, 9), dry.at(FIRST + 4, 1).start(), dry.at(515, 1).start());
            let scripts: [&[Action]; 5] = [
                &[Touch(page), Handle],
                &[Touch(page), Touch(beside), Handle],
                &[Remove(some), Handle, Zap, Touch(page)],
                &[Remove(some), Handle, Touch(page), Zap],
                &[Touch(page), Remove(range(&dry)), Handle, Zap, Handle],
            ];
            for (step, script) in (0..steps).flat_map(|step| scripts.map(|script| (step, script))) {
                let world = world(from).giving(gives);
                script.iter().for_each(|action| world.model.lock().at_step(step, *action));
                let _ = world.migrate(range(&world), to);
                finish(&world);
            }
        }
    }
}

#[test]
fn what_is_unmapped_while_something_comes_to_stand_in_for_it_is_in_no_frame() {
    for (from, to) in ways().filter(|(_, to)| *to != HOME) {
        let dry = world(from);
        let _ = dry.migrate(range(&dry), to);
        let steps = dry.model.lock().steps().to_vec();
        let last = steps.iter().rposition(|kind| *kind == StepKind::Exchanged).expect("something stands in");
        // Of just the whole part it would be taken for hetmem's own change.
        for (first, pages) in [(0, 3), (4, 9), (15, PAGES - 15)] {
            let world = world(from);
            let gone = world.at(FIRST + first, pages);
            world.model.lock().at_step(last, Action::Unmap(gone));
            world.model.lock().at_step(last, Action::Handle);
            let _ = world.migrate(range(&world), to);
            assert!(world.engine.regions_in(gone).iter().all(|(_, region)| region.is_none()), "{from:?} to {to:?}");
            assert_eq!(world.engine.stood_in(gone), PageCount::ZERO);
            assert!(world.residency(gone).iter().all(|now| *now == Residency::System));
            finish(&world);
        }
    }
}

#[test]
fn touches_and_drops_leave_holes_that_the_file_fills() {
    for (device, gives) in [PRIVATE, COHERENT].into_iter().flat_map(|device| Gives::ALL.map(|gives| (device, gives))) {
        let world = world(Target::Device(device)).giving(gives);
        world.model.read(world.at(FIRST + 5, 1).start());
        world.model.remove(world.at(FIRST + 8, 6));
        world.model.deliver();
        world.model.zap_all();
        world.model.read_all();
        world.engine.check();
        assert_eq!(world.engine.stood_in(PageRange::ALL), PageCount::new(PAGES));
        // They go out again with those that are out still.
        let outcomes = world.migrate(range(&world), Target::Device(device));
        assert_eq!(outcomes.moved() + outcomes.kept(KeptReason::AlreadyThere), PageCount::new(PAGES), "{outcomes:?}");
        assert!(world.residency(range(&world)).iter().all(|now| *now == Residency::Device(device)));
        finish(&world);
    }
}

#[test]
fn copies_that_touches_have_left_give_way_to_the_file() {
    let world = world(Target::Device(PRIVATE));
    world.engine.bring_copies_home();
    assert_eq!(world.engine.stood_in(PageRange::ALL), PageCount::new(PAGES), "pages are away");
    world.model.read_all();
    assert_eq!(world.engine.stood_in(PageRange::ALL), PageCount::new(PAGES));
    world.engine.bring_copies_home();
    assert_eq!(world.engine.stood_in(PageRange::ALL), PageCount::ZERO);
    finish(&world);
}

#[test]
fn management_does_not_end_while_something_comes_to_stand_in() {
    for (from, to) in ways() {
        let dry = world(from);
        let _ = dry.migrate(range(&dry), to);
        let steps = dry.model.lock().steps().to_vec();
        for step in (0..steps.len()).filter(|step| steps[*step] != StepKind::ReadFile) {
            let world = world(from);
            world.model.lock().at_step(step, Action::EndManagement(range(&world)));
            let _ = world.migrate(range(&world), to);
            assert!(!world.engine.regions_in(range(&world)).iter().any(|(_, region)| region.is_none()));
            finish(&world);
        }
    }
}

#[test]
fn one_page_takes_the_others_along_and_pages_beside_stay() {
    let world = world(HOME);
    let one = world.at(FIRST + 7, 1);
    assert_eq!(world.migrate(one, Target::Device(COHERENT)).moved(), PageCount::ONE);
    assert!(world.residency(range(&world)).iter().all(|now| *now == Residency::Device(COHERENT)));
    assert!(world.residency(world.at(512, 8)).iter().all(|now| *now == Residency::System));
    let both = world.engine.migrate_all(&[world.at(512, 8), one], Request::all_to(Target::Device(PRIVATE)));
    assert_eq!(both.iter().map(Outcomes::moved).sum::<PageCount>(), PageCount::new(9), "{both:?}");
    assert_eq!(world.migrate(one, HOME).moved(), PageCount::ONE);
    assert_eq!(world.engine.stood_in(PageRange::ALL), PageCount::ZERO);
    finish(&world);
}

#[test]
fn a_file_that_is_written_stays_and_so_does_one_that_has_no_room() {
    let world = world(HOME);
    world.model.write_file();
    let kept = world.migrate(range(&world), Target::Device(PRIVATE));
    assert_eq!(kept.kept(KeptReason::FileOpenForWriting), PageCount::new(PAGES));
    world.model.end_writing();
    let hogged = world.hog_device(PRIVATE, PAGES - 1);
    let kept = world.migrate(range(&world), Target::Device(PRIVATE));
    assert_eq!(kept.kept(KeptReason::NoFrame), PageCount::new(PAGES));
    world.unhog_device(PRIVATE, hogged);
    assert_eq!(world.migrate(range(&world), Target::Device(PRIVATE)).moved(), PageCount::new(PAGES));
    finish(&world);
}

#[test]
fn what_is_laid_takes_no_pages_of_files() {
    let world = World::with_overlays(false);
    world.model.map_file(range(&world), 0);
    let kept = world.migrate(range(&world), Target::Device(OVERLAY));
    assert_eq!(kept.kept(KeptReason::Unsupported), PageCount::new(PAGES));
    finish(&world);
}

#[test]
fn while_exchanges_are_held_nothing_leaves_and_all_comes_home() {
    let world = world(Target::Device(COHERENT));
    world.engine.hold_exchanges();
    assert_eq!(world.engine.bring_files_home(|_| true), PageCount::ZERO);
    let kept = world.migrate(range(&world), Target::Device(PRIVATE));
    assert_eq!(kept.kept(KeptReason::Raced), PageCount::new(PAGES));
    world.engine.release_exchanges();
    assert_eq!(world.migrate(range(&world), Target::Device(PRIVATE)).moved(), PageCount::new(PAGES));
    finish(&world);
}

#[test]
fn pages_that_can_not_come_home_are_told() {
    let world = world(Target::Device(PRIVATE));
    world.model.lock().fail_at(0, Failure::NotExchanged(KeptReason::NoMemory), 0);
    assert_eq!(world.engine.bring_all_home(), PageCount::new(PAGES));
    assert_eq!(world.model.lock().steps()[0], StepKind::MapFile);
    assert_eq!(world.engine.bring_all_home(), PageCount::ZERO);
    finish(&world);
}

/// Threads read, others migrate, and somebody writes, over and over: nobody reads what the file no longer has, and nobody sleeps for ever.
#[test]
fn nobody_reads_what_the_file_no_longer_has() {
    for gives in Gives::ALL {
        let world = World::threaded(64).with_pages(512, 8).giving(gives);
        let range = range(&world);
        world.model.map_file(range, 3);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let handler = scope.spawn(|| world.model.handle());
            let others: Vec<_> = [Target::Device(PRIVATE), Target::Device(COHERENT), Target::Device(PRIVATE_B)]
                .into_iter()
                .map(|target| {
                    let (world, done) = (&world, &done);
                    scope.spawn(move || {
                        while !done.load(Ordering::SeqCst) {
                            let _ = world.migrate(range, target);
                            let _ = world.migrate(range.slice(PageCount::new(4), PageCount::ONE), HOME);
                        }
                    })
                })
                .chain((0..2).map(|n| {
                    let (world, done) = (&world, &done);
                    scope.spawn(move || {
                        for i in (n * 11..).step_by(5) {
                            if done.load(Ordering::SeqCst) {
                                return;
                            }
                            world.model.read_asleep(range.slice(PageCount::new(i % PAGES), PageCount::ONE).start());
                        }
                    })
                }))
                .collect();
            for _ in 0..300 {
                world.model.write_file();
                world.model.end_writing();
                for page in range.iter().step_by(3) {
                    world.model.read_asleep(page);
                }
            }
            done.store(true, Ordering::SeqCst);
            others.into_iter().for_each(|other| other.join().unwrap());
            world.model.stop_handler();
            handler.join().unwrap();
        });
        finish(&world);
    }
}

//! The program changes its memory while a block is laid over it or lifted, at every step: what it wrote is never lost, and no thread left asleep.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hetmem_core::migrate::{Collected, Request, Target};
use hetmem_core::mirror::{MirrorPage, Place, RangeFault, Want};
use hetmem_core::outcome::KeptReason;
use hetmem_core::units::{PageCount, PageRange, VirtAddr};

use crate::model::{Action, COHERENT, Failure, OVERLAY, OVERLAY_B, OWNED, PRIVATE, StepKind, World};

/// The block that is laid.
const FIRST: u64 = 512;
const HOME: Target = Target::System;
const ON_OVERLAY: Target = Target::Device(OVERLAY);
/// From where to where, each way over a laid block.
const WAYS: [(Target, Target); 9] = [
    (HOME, ON_OVERLAY),
    (Target::Device(PRIVATE), ON_OVERLAY),
    (Target::Device(COHERENT), ON_OVERLAY),
    (ON_OVERLAY, HOME),
    (ON_OVERLAY, Target::Device(PRIVATE)),
    (ON_OVERLAY, Target::Device(COHERENT)),
    (ON_OVERLAY, Target::Device(OVERLAY_B)),
    (HOME, HOME),
    (ON_OVERLAY, ON_OVERLAY),
];

fn block(world: &World) -> PageRange {
    world.at(FIRST, 512)
}

fn page(world: &World, index: u64) -> VirtAddr {
    world.at(FIRST + index, 1).start()
}

fn world(place: Target) -> World {
    let world = World::with_overlays(false).with_region(FIRST, 512, OWNED);
    world.write_all(block(&world));
    if place != HOME {
        world.place(block(&world), place);
    }
    world.model.lock().calm();
    world
}

/// Compares every page with the truth, checks every structure, and that the block is hetmem's still; then does so of the block laid anew, from where
/// nothing that was mapped over could come back.
fn finish(world: &World) {
    world.verify();
    assert_eq!(world.engine.regions(), [(block(world), OWNED)]);
    world.write_all(block(world));
    let outcomes = world.migrate(block(world), ON_OVERLAY);
    assert_eq!(outcomes.moved() + outcomes.kept(KeptReason::AlreadyThere), PageCount::new(512), "{outcomes:?}");
    world.model.compare_in_place();
    world.engine.check();
}

/// What the program does at a step: it touches and writes, and drops pages that it may write anew.
fn scripts(world: &World) -> Vec<Vec<Action>> {
    use Action::{Handle, Remove, RemoveLate, Touch, Write, Zap};
    let (all, some) = (block(world), world.at(FIRST + 3, 40));
    let (first, second) = (world.at(FIRST, 256), world.at(FIRST + 256, 256));
    let (inside, outside) = (page(world, 5), page(world, 400));
    let mut scripts = vec![
        vec![Touch(inside), Touch(outside)],
        vec![Write(inside), Write(outside)],
        vec![Touch(inside), RemoveLate(some), Handle],
        vec![Remove(first), Touch(inside), Remove(second), Handle],
        vec![Remove(first), Handle, Zap, Write(inside), Remove(second), Handle, Zap, Write(outside)],
    ];
    for range in [all, some] {
        scripts.extend([
            vec![Remove(range)],
            vec![Remove(range), Handle],
            vec![Remove(range), Handle, Write(inside), Zap],
            vec![Remove(range), Handle, Zap, Write(inside)],
            vec![RemoveLate(range)],
            vec![RemoveLate(range), Handle, Write(inside)],
        ]);
    }
    scripts
}

/// Which step of the migration is the first of `kind`.
fn step_of(place: Target, target: Target, kind: StepKind) -> usize {
    let dry = world(place);
    let _ = dry.migrate(block(&dry), target);
    let step = dry.model.lock().steps().iter().position(|step| *step == kind);
    step.unwrap_or_else(|| panic!("{place:?} to {target:?} has no {kind:?}"))
}

/// The steps of `steps` that differ from those around them: between private devices there are many copies, each as the one before.
fn telling(steps: &[StepKind]) -> impl Iterator<Item = usize> {
    let n = steps.len();
    (0..n.min(3)).chain(n.saturating_sub(5).max(3)..n)
}

#[test]
fn the_program_acts_at_every_step() {
    for (place, target) in WAYS {
        let dry = world(place);
        let _ = dry.migrate(block(&dry), target);
        let steps = dry.model.lock().steps().to_vec();
        finish(&dry);
        for step in telling(&steps) {
            for script in scripts(&dry) {
                let world = world(place);
                script.iter().for_each(|action| world.model.lock().at_step(step, *action));
                let _ = world.migrate(block(&world), target);
                finish(&world);
            }
        }
    }
}

#[test]
fn the_program_acts_where_a_block_cannot_be_exchanged() {
    for (place, target, kind) in [(HOME, ON_OVERLAY, StepKind::Lay), (ON_OVERLAY, HOME, StepKind::Lift)] {
        let step = step_of(place, target, kind);
        for script in scripts(&world(place)) {
            let world = world(place);
            script.iter().for_each(|action| world.model.lock().at_step(step, *action));
            world.model.lock().fail_at(step, Failure::NotExchanged(KeptReason::NoMemory), 0);
            let _ = world.migrate(block(&world), target);
            finish(&world);
        }
    }
}

/// A removal that began before the block was laid is announced as late as can be.
#[test]
fn a_removal_that_is_announced_when_the_block_is_laid_drops_nothing() {
    for fails in [None, Some(KeptReason::NoMemory)] {
        let world = world(HOME);
        let lay = step_of(HOME, ON_OVERLAY, StepKind::Lay);
        let removed = world.at(FIRST + 3, 40);
        world.model.lock().at_step(lay, Action::RemoveLate(removed));
        assert_eq!(world.migrate(block(&world), ON_OVERLAY).moved(), PageCount::new(512));
        assert!(!world.model.lock().events.is_empty(), "it is unread");
        world.model.lock().calm();
        if let Some(reason) = fails {
            // It is read when the block is about to be lifted. What it drops then is not there to be taken.
            let away = Action::Migrate(removed, Target::Device(PRIVATE));
            for action in [Action::Handle, Action::Zap, away] {
                world.model.lock().at_step(0, action);
            }
            world.model.lock().fail_at(0, Failure::NotExchanged(reason), 0);
            assert_eq!(world.migrate(block(&world), HOME).kept(reason), PageCount::new(512));
        }
        finish(&world);
    }
}

#[test]
fn another_migration_leaves_a_block_that_is_exchanged_alone() {
    use Action::{Handle, Migrate, Remove, Zap};
    for (place, target, kind) in [(HOME, ON_OVERLAY, StepKind::Lay), (ON_OVERLAY, HOME, StepKind::Lift)] {
        let step = step_of(place, target, kind);
        for to in [HOME, Target::Device(PRIVATE), Target::Device(COHERENT), ON_OVERLAY, Target::Device(OVERLAY_B)] {
            for at in [step, step + 1] {
                let world = world(place);
                let (some, all) = (world.at(FIRST + 3, 40), block(&world));
                for action in [Remove(some), Handle, Zap] {
                    world.model.lock().at_step(step, action);
                }
                for action in [Migrate(some, to), Migrate(all, to)] {
                    world.model.lock().at_step(at, action);
                }
                let outcomes = world.migrate(all, target);
                assert!(outcomes.moved().get() >= 512 - 40, "{outcomes:?}");
                finish(&world);
            }
        }
    }
}

/// Lays the block in one thread, does `meanwhile` in another when it is laid and nobody knows of it yet, and returns what came of that.
fn while_laying<T: Send>(meanwhile: impl Fn(&World) -> T + Sync) -> T {
    let world = World::with_overlays(true).with_region(FIRST, 512, OWNED);
    world.write_all(block(&world));
    let (began, begun) = std::sync::mpsc::channel();
    let (laid, result) = thread::scope(|scope| {
        let (world, meanwhile) = (&world, &meanwhile);
        let laying = scope.spawn(|| world.migrate(block(world), ON_OVERLAY).moved());
        world.model.wait_for_a_queued_event();
        let other = scope.spawn(move || {
            began.send(()).expect("the test waits");
            meanwhile(world)
        });
        begun.recv().expect("the thread begins");
        // That it waits can't be seen; if it does not, it gets time to be done.
        (0..10_000).for_each(|_| thread::yield_now());
        let handler = scope.spawn(|| world.model.handle());
        let results = (laying.join().expect("it is laid"), other.join());
        world.model.stop_handler();
        handler.join().expect("the handler thread ends");
        results
    });
    assert_eq!(laid, PageCount::new(512));
    world.verify();
    result.expect("the other thread's message is above")
}

#[test]
fn whoever_holds_or_ends_overlays_waits_for_those_under_way() {
    let held = while_laying(|world| {
        world.engine.hold_exchanges();
        world.engine.laid_in(PageRange::ALL).len()
    });
    let ended = while_laying(|world| {
        world.engine.end_overlays(world.at(FIRST + 8, 1));
        world.engine.laid_in(PageRange::ALL).len()
    });
    assert_eq!((held, ended), (1, 1));
}

#[test]
fn a_mirror_waits_for_a_block_that_is_being_laid() {
    let result = while_laying(|world| {
        let mut out = [MirrorPage::default(); 4];
        let request = RangeFault { want: Want::Write, ..RangeFault::default() };
        world.engine.range_fault(world.at(FIRST + 8, 4), request, &mut out).map(|()| out.map(|page| page.place()))
    });
    let places = result.expect("the pages are there in the end");
    assert!(
        places.iter().all(|place| matches!(place, Some(Place::Device(frame)) if frame.device == OVERLAY)),
        "{places:?}"
    );
}

/// Of a page that the program drops meanwhile, too: nobody would tell it when that is the device's.
#[test]
fn a_mirror_that_looks_at_a_block_that_is_being_laid_is_told_what_becomes_of_it() {
    for (first, count) in [(FIRST + 3, 40), (FIRST, 512)] {
        while_laying(|world| {
            world.model.remove(world.at(first, count));
            world.model.look(block(world));
        });
    }
}

/// Between the look whether the block is laid and the claim of it another thread can have its turn, and mirrors can have theirs.
#[test]
fn a_block_that_another_migration_has_lifted_meanwhile_is_not_lifted_again() {
    for target in [HOME, Target::Device(PRIVATE), Target::Device(COHERENT), Target::Device(OVERLAY_B), ON_OVERLAY] {
        let world = world(ON_OVERLAY);
        let (engine, range) = (Arc::downgrade(&world.engine), block(&world));
        let first = AtomicBool::new(true);
        let _mirror = world.engine.subscribe(range, move |_| {
            if first.swap(false, Ordering::Relaxed) {
                let engine = engine.upgrade().expect("it is in a call");
                assert_eq!(engine.migrate(range, Request::all_to(target)).moved().get() % 512, 0);
            }
        });
        assert_eq!(world.migrate(range, HOME).moved().get() % 512, 0);
        finish(&world);
    }
}

#[test]
fn what_another_migration_has_laid_meanwhile_is_not_taken_out() {
    for target in [HOME, Target::Device(PRIVATE), Target::Device(OVERLAY_B)] {
        let world = world(ON_OVERLAY);
        let collected = Collected::collect(&world.engine, block(&world), OWNED, Request::all_to(target));
        assert_eq!(collected.pages(), PageCount::ZERO);
        assert_eq!(collected.all_kept(KeptReason::Raced).kept(KeptReason::Raced), PageCount::new(512));
        assert_eq!(world.engine.laid_in(PageRange::ALL), [block(&world)]);
        finish(&world);
    }
}

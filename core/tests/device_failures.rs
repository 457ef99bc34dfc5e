//! Devices that fail for good, have no room, or panic: what is lost is not read as zeros, and the rest stays in use.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;

use hetmem_core::engine::Residency;
use hetmem_core::migrate::{Request, Target};
use hetmem_core::outcome::KeptReason;
use hetmem_core::port::{FaultPath, TransferError};
use hetmem_core::slot::Slot;
use hetmem_core::units::{PageCount, PageRange};

use crate::fail_each_step::{CAPACITY, COUNT, batch, residency_at, world};
use crate::model::{Action, COHERENT, Failure, Gives, PRIVATE, PRIVATE_B, STOPPED, StepKind, World};

#[test]
fn a_device_that_never_gives_a_page_back_stops_the_program() {
    let world = world(Target::Device(PRIVATE));
    world.model.lock().fail_at(0, Failure::Device(TransferError::Transient), usize::MAX);
    let page = batch(&world).start();
    let stopped = catch_unwind(AssertUnwindSafe(|| world.engine.fault(page, FaultPath::Thread)));
    let panic = stopped.expect_err("zeros in place of the page would be the alternative");
    assert!(panic.downcast_ref::<String>().is_some_and(|message| message.starts_with(STOPPED)));
}

/// It is asked once for what it says it has lost, and again for what it may have yet.
#[test]
fn what_a_device_has_lost_is_not_asked_for_again() {
    for gives in [Gives::AtOnce, Gives::Late] {
        for (error, asked) in [(TransferError::Lost, 1), (TransferError::Transient, 8)] {
            let world = world(Target::Device(PRIVATE));
            world.model.lock().gives = gives;
            world.model.lock().fail_at(0, Failure::Device(error), usize::MAX);
            let page = batch(&world).start();
            let stopped = catch_unwind(AssertUnwindSafe(|| world.model.touch(page)));
            assert!(stopped.is_err(), "zeros in place of the page would be the alternative");
            let steps = world.model.lock().steps().iter().filter(|kind| **kind == StepKind::CopyOut).count();
            assert_eq!(steps, asked, "{error}");
        }
    }
}

#[test]
fn a_device_that_has_no_room_for_what_is_in_pages_keeps_them_as_one_without_frames() {
    let dry = world(Target::System);
    let _ = dry.migrate(batch(&dry), Target::Device(PRIVATE));
    let step = dry.model.lock().steps().iter().position(|kind| *kind == StepKind::CopyIn).unwrap();
    let world = world(Target::System);
    world.model.lock().fail_at(step, Failure::Device(TransferError::Full), usize::MAX);
    let outcomes = world.migrate(batch(&world), Target::Device(PRIVATE));
    assert_eq!(outcomes.kept(KeptReason::NoFrame), PageCount::new(COUNT), "{outcomes:?}");
    world.model.lock().calm();
    assert!(world.residency(batch(&world)).iter().all(|at| *at == Residency::System));
    world.verify();
}

/// Sequential touches bring neighbours along; here the device never gives one of them back, and a thread waits for another.
#[test]
fn a_neighbour_that_the_device_does_not_give_back_is_left_away() {
    for bad in 2..5 {
        let world = World::new(CAPACITY).with_pages(0, 8);
        let range = world.at(0, 8);
        world.place(range, Target::Device(PRIVATE));
        let page = |i| range.slice(PageCount::new(i), PageCount::ONE).start();
        let at = |i| world.residency(PageRange::page_of(page(i)))[0];
        let frame = {
            let slot = world.engine.slot(page(bad));
            let Slot::Unmapped { frame, .. } = slot else { panic!("{slot:?} is not away") };
            (frame.device.index(), frame.index.get())
        };
        world.model.lock().broken.insert(frame);
        assert!(world.model.touch(page(0)).is_some());
        // The next one in order takes three neighbours with it, of which `waited` is touched meanwhile.
        let waited = if bad == 4 { 3 } else { 4 };
        world.model.lock().calm();
        world.model.lock().at_step(0, Action::Touch(page(waited)));
        assert!(world.model.touch(page(1)).is_some(), "the touched page is served");
        world.model.serve(false);
        assert!(world.model.lock().waiters.is_empty(), "who waited for page {waited} was woken");
        let now = world.residency(range);
        assert_eq!(now[1], Residency::System);
        assert_eq!(at(bad), Residency::Device(PRIVATE), "it stays, and is no longer on its way");
        assert!(!now.contains(&Residency::Migrating), "{now:?}");
        assert!(world.engine.counters().errors.load(Relaxed) > 0, "the failed copies are counted");
        world.engine.check();
        world.model.lock().broken.clear();
        assert!(world.model.touch(page(bad)).is_some(), "the device works again");
        assert_eq!(at(bad), Residency::System);
        world.verify();
    }
}

/// A device's defect unwinds through the migration: its pages are where they were, and not on their way for ever.
#[test]
fn a_device_that_panics_leaves_no_page_on_its_way() {
    for (place, target) in [(Target::System, PRIVATE), (Target::Device(PRIVATE), PRIVATE_B)] {
        let world = world(place);
        world.model.lock().panics = true;
        let caught = catch_unwind(AssertUnwindSafe(|| world.migrate(batch(&world), Target::Device(target))));
        assert!(caught.is_err());
        for now in world.residency(batch(&world)) {
            assert_eq!(now, residency_at(place));
        }
        world.model.read_all();
    }
}

/// The same after it has failed for another page of the batch.
#[test]
fn a_device_that_fails_and_then_panics_leaves_no_page_on_its_way() {
    for (place, target, copies) in [
        (Target::System, PRIVATE, StepKind::CopyIn),
        (Target::System, COHERENT, StepKind::CopyIn),
        (Target::Device(PRIVATE), PRIVATE_B, StepKind::CopyOut),
    ] {
        // Apart, so that each is copied by itself.
        let run = |world: &World| {
            let ranges = [512, 514, 516].map(|page| world.at(page, 1));
            world.engine.migrate_all(&ranges, Request::all_to(Target::Device(target)))
        };
        let first = {
            let world = world(place);
            run(&world);
            world.model.lock().steps().iter().position(|kind| *kind == copies).expect("pages are copied")
        };
        let world = world(place);
        world.model.lock().fail_at(first, Failure::Device(TransferError::Transient), 0);
        world.model.lock().panics = true;
        assert!(catch_unwind(AssertUnwindSafe(|| run(&world))).is_err());
        for now in world.residency(batch(&world)) {
            assert_eq!(now, residency_at(place));
        }
        world.model.read_all();
    }
}

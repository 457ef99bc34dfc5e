//! Faults whose device says later that it has done.

use std::sync::atomic::Ordering::Relaxed;

use crate::model::{Gives, PRIVATE, World};
use hetmem_core::engine::Residency;
use hetmem_core::fault::{FaultResolution, MAX_FAULTS};
use hetmem_core::migrate::{Request, Target};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};

const COUNT: u64 = MAX_FAULTS as u64 + 1;

/// All pages are on a private device that completes late; [`World::at`] finds them from page 0 on.
fn away() -> World {
    let world = World::new(128).with_pages(0, COUNT).giving(Gives::Late);
    world.place(world.at(0, COUNT), Target::Device(PRIVATE));
    world.model.lock().calm();
    world
}

fn page(world: &World, number: u64) -> VirtAddr {
    world.at(number, 1).start()
}

fn at(world: &World, page: VirtAddr) -> Residency {
    world.residency(PageRange::page_of(page))[0]
}

#[test]
fn one_is_begun_before_another_has_ended() {
    let world = away();
    // Out of sequence, so that no neighbour comes along.
    let touched = [5, 3, 1].map(|number| page(&world, number));
    for (begun, page) in (1..).zip(touched) {
        assert_eq!(world.engine.begin_fault(page, page.get()), FaultResolution::UnderWay);
        assert_eq!(world.engine.faults_under_way(), begun);
        assert_eq!(at(&world, page), Residency::Migrating);
        assert_eq!(world.engine.begin_fault(page, 0), FaultResolution::Waiting, "it is on its way");
    }
    assert_eq!(world.model.lock().under_way.len(), 3, "the device has them all");
    let mut ended = Vec::new();
    world.engine.end_faults(&mut |fault| ended.push((fault.addr, fault.token, fault.resolution)));
    // The model's devices begin with the last.
    let expected = [1, 3, 5].map(|number| {
        let page = page(&world, number);
        (page, page.get(), FaultResolution::Home(PageCount::ONE))
    });
    assert_eq!(ended, expected);
    assert_eq!(world.engine.faults_under_way(), 0);
    assert!(touched.iter().all(|page| at(&world, *page) == Residency::System));
    world.engine.end_faults(&mut |fault| panic!("{fault:?} has ended before"));
    world.verify();
}

#[test]
fn there_is_room_for_so_many_and_the_next_comes_again() {
    let world = away();
    // Last first: no stream.
    let begin = |number| world.engine.begin_fault(page(&world, number), number);
    for number in (1..COUNT).rev() {
        assert_eq!(begin(number), FaultResolution::UnderWay);
    }
    assert_eq!(begin(0), FaultResolution::NoRoom);
    assert_eq!(at(&world, page(&world, 0)), Residency::Device(PRIVATE), "it is not on its way");
    let mut ended = 0;
    world.engine.end_faults(&mut |_| ended += 1);
    assert_eq!(ended, MAX_FAULTS);
    assert_eq!(begin(0), FaultResolution::UnderWay);
    world.engine.end_faults(&mut |_| ended += 1);
    assert_eq!(at(&world, page(&world, 0)), Residency::System);
    world.verify();
}

#[test]
fn neighbours_come_along_and_those_that_fail_stay() {
    let world = away();
    world.model.read(page(&world, 0));
    // Sequential: the next takes three neighbours with it.
    let bad = world.engine.slot(page(&world, 3)).frame().expect("it is away");
    world.model.lock().broken.insert((bad.device.index(), bad.index.get()));
    let touched = page(&world, 1);
    assert_eq!(world.engine.begin_fault(touched, 7), FaultResolution::UnderWay);
    let mut ended = Vec::new();
    world.engine.end_faults(&mut |fault| ended.push((fault.token, fault.resolution)));
    // The frames follow one another, so that one transfer has them all, and fails; the touched page is asked for again by itself.
    assert_eq!(ended, [(7, FaultResolution::Home(PageCount::ONE))]);
    assert_eq!(at(&world, touched), Residency::System);
    for number in 2..5 {
        assert_eq!(
            at(&world, page(&world, number)),
            Residency::Device(PRIVATE),
            "page {number} is no longer on its way"
        );
    }
    assert!(world.engine.counters().errors.load(Relaxed) > 0, "the failed copy is counted");
    world.model.lock().broken.clear();
    world.verify();
}

/// Without a place of the pool nothing is asked of the device.
#[test]
fn who_has_no_memory_comes_again() {
    let world = away();
    let hogged = world.hog_pool(0);
    assert_eq!(world.engine.begin_fault(page(&world, 9), 0), FaultResolution::NoMemory);
    assert_eq!(at(&world, page(&world, 9)), Residency::Device(PRIVATE));
    world.unhog_pool(hogged);
    // One place: the neighbours stay.
    world.model.read(page(&world, 0));
    let hogged = world.hog_pool(1);
    assert_eq!(world.engine.begin_fault(page(&world, 1), 0), FaultResolution::UnderWay);
    assert_eq!(at(&world, page(&world, 2)), Residency::Device(PRIVATE));
    world.engine.end_faults(&mut |fault| assert_eq!(fault.resolution, FaultResolution::Home(PageCount::ONE)));
    world.unhog_pool(hogged);
    world.verify();
}

/// Who brings everything home finds such a page busy, and asks again.
#[test]
fn what_is_under_way_is_left_by_migrations() {
    let world = away();
    let touched = page(&world, 9);
    assert_eq!(world.engine.begin_fault(touched, 0), FaultResolution::UnderWay);
    let outcomes = world.engine.migrate(world.at(0, COUNT), Request::all_to(Target::System));
    assert_eq!(outcomes.moved(), PageCount::new(COUNT - 1), "{outcomes:?}");
    assert_eq!(world.engine.bring_all_home(), PageCount::ONE);
    world.engine.end_faults(&mut |_| {});
    assert_eq!(world.engine.bring_all_home(), PageCount::ZERO);
    world.verify();
}

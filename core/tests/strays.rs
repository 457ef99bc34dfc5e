//! Pages that the kernel copies or moves behind hetmem's back, such as at the first write after a fork.

use std::sync::{Arc, Mutex};

use hetmem_core::engine::Residency;
use hetmem_core::migrate::{Request, Select, Target};
use hetmem_core::notifier::Event;
use hetmem_core::outcome::{KeptReason, PageOutcome};
use hetmem_core::physmap::Page;
use hetmem_core::units::{BLOCK_PAGES, PageCount};

use crate::model::{COHERENT, COHERENT_B, PRIVATE, World};

/// Pages on a coherent device, of which the second and the last are not there any more.
fn astray(first: u64) -> World {
    let world = World::new(64).with_pages(first, 4);
    world.place(world.at(first, 4), Target::Device(COHERENT));
    for page in [first + 1, first + 3] {
        world.model.lock().strays.insert(world.at(page, 1).start().get());
    }
    world
}

fn used(world: &World) -> PageCount {
    world.engine.devices()[COHERENT.index()].pagemap().frames.used()
}

fn strays(world: &World) -> u64 {
    world.engine.counters().devices[COHERENT.index()].stray_pages.load(std::sync::atomic::Ordering::Relaxed)
}

const THERE: Residency = Residency::Device(COHERENT);

#[test]
fn the_frame_that_a_page_is_in_is_found_by_the_page_and_the_page_by_the_frame() {
    for (place, is_there) in
        [(Target::System, false), (Target::Device(PRIVATE), true), (Target::Device(COHERENT), true)]
    {
        let world = World::new(64).with_pages(BLOCK_PAGES - 2, 4);
        let range = world.at(BLOCK_PAGES - 2, 4);
        if is_there {
            world.place(range, place);
        }
        let map = world.engine.physmap(std::iter::once(0x100..0x200));
        for page in range.iter() {
            let pfn = world.engine.pfn_of(page);
            assert_eq!(pfn.is_some(), is_there, "{page} is in {place:?}");
            let Some(pfn) = pfn else { continue };
            assert!(map.pfn_valid(pfn));
            let found = map.pfn_to_page(pfn).expect("it is valid");
            assert_eq!(map.page_to_pfn(found), pfn);
            let Page::Device(pagemap, frame) = found else { panic!("{pfn:?} is a device's") };
            assert_eq!((Target::Device(pagemap.device), pagemap.frames.descriptor(frame).page()), (place, page));
        }
        let machine = hetmem_core::units::Pfn::machine(0x1ff).expect("the number is small");
        assert!(map.pfn_valid(machine));
        world.verify();
    }
}

#[test]
fn residency_is_the_devices_word() {
    let world = astray(0);
    assert_eq!(world.residency(world.at(0, 4)), [THERE, Residency::System, THERE, Residency::System]);
    // A question changes nothing.
    assert_eq!(used(&world), PageCount::new(4));
    world.verify();
}

#[test]
fn a_page_that_only_seems_to_be_there_is_migrated() {
    for select in [Select::ALL, Select::SYSTEM] {
        let world = astray(BLOCK_PAGES - 2);
        let range = world.at(BLOCK_PAGES - 2, 4);
        let outcomes = world.engine.migrate(range, Request { select, ..Request::all_to(Target::Device(COHERENT)) });
        let stayed = PageOutcome::Kept(KeptReason::AlreadyThere);
        assert_eq!(outcomes.as_slice(), [stayed, PageOutcome::Moved, stayed, PageOutcome::Moved]);
        assert_eq!(world.residency(range), [THERE; 4]);
        assert_eq!(strays(&world), 2);
        world.verify();
    }
}

#[test]
fn a_stray_leaves_for_another_place_like_any_page() {
    for target in [Target::System, Target::Device(PRIVATE), Target::Device(COHERENT_B)] {
        let world = astray(0);
        world.place(world.at(0, 4), target);
        assert_eq!(used(&world), PageCount::ZERO);
        world.verify();
    }
}

#[test]
fn an_audit_corrects_the_books_of_every_block_and_mirrors_are_told_before() {
    let world = World::new(64).with_pages(BLOCK_PAGES - 2, 4).with_pages(3 * BLOCK_PAGES, 1);
    let all = world.at(0, 4 * BLOCK_PAGES);
    world.place(world.at(BLOCK_PAGES - 2, 4), Target::Device(COHERENT));
    world.place(world.at(3 * BLOCK_PAGES, 1), Target::Device(COHERENT));
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let _subscription = world
        .engine
        .subscribe(all, move |notice| heard.lock().unwrap().push((notice.range(), notice.event())))
        .unwrap();
    let audit = |world: &World| {
        let mut at = world.engine.audit(None);
        while let Some(block) = at {
            at = world.engine.audit(Some(block));
        }
    };
    audit(&world);
    assert_eq!((used(&world), strays(&world)), (PageCount::new(5), 0));
    assert!(told.lock().unwrap().is_empty(), "nothing has changed");

    let astray = [world.at(BLOCK_PAGES - 1, 1), world.at(3 * BLOCK_PAGES, 1)];
    for page in astray {
        world.model.lock().strays.insert(page.start().get());
    }
    audit(&world);
    assert_eq!((used(&world), strays(&world)), (PageCount::new(3), 2));
    let told = told.lock().unwrap();
    for page in astray {
        assert!(told.iter().any(|(range, event)| range.contains_range(page) && *event == Event::Migrate(None)));
    }
    world.verify();
}

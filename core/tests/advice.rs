//! What is said of the use of memory holds for it, wherever it goes, as long as it is there; and what is given up is gone.

use std::sync::{Arc, Mutex};

use hetmem_core::advice::{Advice, AdviceError, DiscardError};
use hetmem_core::engine::Residency;
use hetmem_core::heat::{self, Heat};
use hetmem_core::migrate::{Select, Survey, Target};
use hetmem_core::notifier::Event;
use hetmem_core::outcome::KeptReason;
use hetmem_core::physmap::Owner;
use hetmem_core::space::Region;
use hetmem_core::units::{PageCount, PageRange};

use crate::model::{COHERENT, COHERENT_B, OVERLAY, OWNED, PRIVATE, World};

/// Pages around the border of two blocks.
const FIRST: u64 = 500;
const COUNT: u64 = 24;

fn world() -> World {
    World::new(64).with_pages(FIRST, COUNT)
}

fn is_not_soon(world: &World, page: u64) -> Option<bool> {
    world.engine.region_at(world.at(page, 1).start()).map(|(_, region)| region.not_soon)
}

#[test]
fn what_is_said_is_cut_with_the_mapping_goes_with_the_pages_and_ends_with_them() {
    let world = world();
    let (model, engine) = (&world.model, &world.engine);
    engine.advise(world.at(FIRST + 2, 20), Advice::NotSoon).unwrap();
    model.unmap(world.at(FIRST + 8, 2));
    model.deliver();
    let all = |world: &World| (FIRST..FIRST + COUNT).map(|page| is_not_soon(world, page)).collect::<Vec<_>>();
    let cut = |page: u64| (!(8..10).contains(&page)).then_some((2..22).contains(&page));
    assert_eq!(all(&world), (0..COUNT).map(cut).collect::<Vec<_>>());
    model.remap(world.at(FIRST + 16, 8), world.at(100, 1).start());
    model.deliver();
    assert_eq!([100, 105, 106, 107].map(|page| is_not_soon(&world, page)), [true, true, false, false].map(Some));
    model.unmap(world.at(100, 8));
    model.deliver();
    model.map(world.at(100, 8), false);
    assert!(model.adopt(world.at(100, 8), Region::default()));
    assert_eq!(is_not_soon(&world, 100), Some(false), "other memory at the same place");
    world.verify();
}

#[test]
fn what_is_not_managed_is_named_and_the_rest_has_the_advice() {
    let world = world();
    let range = world.at(FIRST - 3, COUNT + 6);
    assert_eq!(world.engine.advise(range, Advice::Pin), Err(AdviceError::Unmanaged(world.at(FIRST - 3, 3))));
    let outcomes = world.migrate(world.at(FIRST, COUNT), Target::Device(PRIVATE));
    assert_eq!(outcomes.kept(KeptReason::Advised), PageCount::new(COUNT));
    let error =
        world.engine.advise(range, Advice::PreferredLocation(hetmem_core::units::DeviceId::new(4))).unwrap_err();
    assert_eq!(error.to_string(), "there is no device 4; there are 4");
    assert_eq!(world.model.discard(range), Err(DiscardError::Unmanaged(world.at(FIRST - 3, 3))));
    world.verify();
}

#[test]
fn pages_are_brought_to_where_they_are_best_kept_now() {
    let world = world();
    let range = world.at(FIRST, COUNT);
    let places = |world: &World| world.engine.best_places(range);
    assert_eq!(places(&world), [(range, Target::System)]);
    world.engine.advise(world.at(FIRST, 4), Advice::PreferredLocation(PRIVATE)).unwrap();
    world.engine.advise(world.at(FIRST + 4, 20), Advice::ReadMostly).unwrap();
    let (first, rest) = (world.at(FIRST, 4), world.at(FIRST + 4, 20));
    assert_eq!(places(&world), [(first, Target::Device(PRIVATE)), (rest, Target::Device(COHERENT))]);
    let hogged = world.hog_device(COHERENT, 0);
    assert_eq!(places(&world)[1], (rest, Target::Device(COHERENT_B)), "the next that has room");
    let more = world.hog_device(COHERENT_B, 0);
    assert_eq!(places(&world)[1], (rest, Target::System), "and there is one copy of a page");
    world.unhog_device(COHERENT, hogged);
    world.unhog_device(COHERENT_B, more);
    world.engine.advise(range, Advice::NoPreference).unwrap();
    assert_eq!((places(&world), world.engine.regions().len()), (vec![(range, Target::System)], 1));
    world.verify();
}

#[test]
fn to_policies_what_is_used_soon_is_hot_and_what_is_not_is_told_once() {
    let world = world();
    let (engine, range) = (&world.engine, world.at(FIRST, 12));
    let heat = |world: &World| {
        let mut survey = Survey::default();
        world.engine.survey(range, &mut survey);
        survey.pages.iter().map(|page| page.heat).collect::<Vec<_>>()
    };
    let chunk = range.start().block().range().slice(PageCount::new(448), PageCount::new(heat::CHUNK_PAGES));
    engine.expect_use(world.at(FIRST + 2, 6));
    assert!(engine.take_warmth(chunk));
    let warm = |page: &usize| if (2..8).contains(page) { Heat::IN_USE } else { Heat::UNKNOWN };
    assert_eq!(heat(&world), (0..12).map(|page| warm(&page)).collect::<Vec<_>>());
    engine.expect_use(range);
    engine.advise(world.at(FIRST + 4, 16), Advice::NotSoon).unwrap();
    assert!(!engine.take_warmth(chunk));
    assert_eq!(heat(&world)[3..5], [Heat::IN_USE, Heat::UNKNOWN]);
    engine.advise(world.at(FIRST + 6, 2), Advice::Soon).unwrap();
    let mut taken = Vec::new();
    while let Some(part) = engine.take_not_soon(PageCount::new(5)) {
        taken.push(part);
    }
    assert_eq!(
        taken,
        [world.at(FIRST + 4, 2), world.at(FIRST + 8, 5), world.at(FIRST + 13, 5), world.at(FIRST + 18, 2)]
    );
    assert_eq!(engine.regions().len(), 1, "nothing is left of it: {:?}", engine.regions());
    world.verify();
}

#[test]
fn what_is_discarded_is_gone_wherever_it_was_and_mirrors_are_told() {
    for place in [None, Some(Target::Device(PRIVATE)), Some(Target::Device(COHERENT))] {
        for what in ["plain", "samples", "exclusive", "pinned"] {
            let world = world();
            let (engine, all, given_up) = (&world.engine, world.at(FIRST, COUNT), world.at(FIRST + 3, 15));
            place.iter().for_each(|place| world.place(all, *place));
            match what {
                "samples" => _ = engine.sample(&[all], Select::SYSTEM.union(Select::DEVICE_COHERENT)),
                "exclusive" => _ = engine.make_exclusive(world.at(FIRST + 4, 1).start(), Owner::new(1)),
                "pinned" => engine.advise(all, Advice::Pin).unwrap(),
                _ => {}
            }
            let told = Arc::new(Mutex::new(Vec::new()));
            let heard = Arc::clone(&told);
            let subscription = engine
                .subscribe(all, move |notice| heard.lock().unwrap().push((notice.range(), notice.event())))
                .unwrap();
            world.model.discard(given_up).unwrap();
            assert_eq!(*told.lock().unwrap(), [(given_up, Event::Clear)]);
            drop(subscription);
            let memory = world.model.lock();
            assert!(given_up.iter().all(|page| memory.truth[&page.get()].is_zero()));
            drop(memory);
            assert_eq!(engine.away_in(given_up), (PageCount::ZERO, PageCount::ZERO), "{place:?} {what}");
            given_up.iter().for_each(|page| world.model.read(page));
            world.verify();
        }
    }
}

/// What the kernel maps in place of a laid block keeps its bytes.
#[test]
fn what_is_discarded_of_a_laid_block_is_gone_and_the_rest_of_it_is_there() {
    let laid = || {
        let world = World::with_overlays(false).with_region(0, 1024, OWNED);
        world.write_all(world.at(0, 1024));
        world.place(world.at(0, 1024), Target::Device(OVERLAY));
        world
    };
    for (first, count) in [(0, 512), (10, 3), (500, 40), (0, 1024)] {
        let world = laid();
        let given_up: PageRange = world.at(first, count);
        world.model.discard(given_up).unwrap();
        let memory = world.model.lock();
        assert!(given_up.iter().all(|page| memory.truth[&page.get()].is_zero()));
        drop(memory);
        assert!(world.residency(given_up).iter().all(|place| *place == Residency::System));
        world.verify();
    }
    let world = laid();
    world.engine.advise(world.at(700, 1), Advice::Pin).unwrap();
    assert_eq!(world.model.discard(world.at(0, 1024)), Err(DiscardError::Laid(KeptReason::Advised)));
    assert_eq!(world.engine.laid_in(world.at(0, 1024)), [world.at(512, 512)], "and nothing was discarded");
    world.verify();
}

//! Pages that are out as samples: whatever fails, they are where they were, and who touches one is seen.

use hetmem_core::engine::Residency;
use hetmem_core::fault::FaultResolution;
use hetmem_core::migrate::{Place, Request, Select, Survey, Target};
use hetmem_core::outcome::{KeptReason, PageOutcome};
use hetmem_core::port::FaultPath;
use hetmem_core::units::{PageCount, PageRange};

use crate::fail_each_step::{ALL, COUNT, agrees, batch, fail_each_step, residency_at, world};
use crate::model::{COHERENT, COHERENT_B, PRIVATE, World};

/// System pages and those of coherent devices are out as samples, and nobody is touched.
fn sampled(place: Target) -> World {
    let world = world(place);
    assert_eq!(sample(&world), PageCount::new(COUNT));
    world.model.lock().calm();
    world
}

fn sample(world: &World) -> PageCount {
    world.engine.sample(&[batch(world)], Select::SYSTEM.union(Select::DEVICE_COHERENT)).pages
}

const SAMPLED: [Target; 3] = [Target::System, Target::Device(COHERENT), Target::Device(COHERENT_B)];

fn out(world: &World) -> PageCount {
    world.engine.away_in(batch(world)).0
}

#[test]
fn a_sample_survives_each_failure() {
    for place in SAMPLED {
        fail_each_step(
            &ALL,
            || world(place),
            sample,
            |world, sampled| {
                assert_eq!(out(world), sampled);
                let given_up = |now| place != Target::System && now == Residency::System;
                for now in world.residency(batch(world)) {
                    assert!(now == residency_at(place) || given_up(now), "{now:?}");
                }
            },
        );
    }
}

#[test]
fn pages_are_put_back_whatever_fails() {
    for place in SAMPLED {
        let put_back = |world: &World| world.engine.put_back(&[batch(world)]);
        fail_each_step(
            &ALL,
            || sampled(place),
            put_back,
            |world, put| {
                assert_eq!(out(world) + put, PageCount::new(COUNT), "the others stay out");
                world.model.read_all();
                assert!(
                    out(world).is_zero() && world.residency(batch(world)).iter().all(|now| *now == residency_at(place))
                );
            },
        );
    }
}

#[test]
fn samples_go_on_to_where_they_are_wanted() {
    for place in SAMPLED {
        for target in [Target::Device(PRIVATE), Target::Device(COHERENT), Target::System] {
            let select = if place == Target::System { Select::SAMPLED } else { Select::DEVICE_COHERENT };
            let go_on = |world: &World| {
                let request = Request { target, select, owner: None };
                world.engine.migrate(batch(world), request)
            };
            if place == target && place != Target::System {
                continue;
            }
            fail_each_step(&ALL, || sampled(place), go_on, |world, outcomes| agrees(world, place, target, &outcomes));
        }
    }
}

#[test]
fn a_page_that_is_in_use_is_no_sample() {
    let world = sampled(Target::System);
    let touched = batch(&world).start();
    assert!(world.model.touch(touched).is_some());
    let request = Request { target: Target::Device(PRIVATE), select: Select::SAMPLED, owner: None };
    let outcomes = world.engine.migrate(batch(&world), request);
    assert_eq!(outcomes.as_slice()[0], PageOutcome::Kept(KeptReason::NotSelected));
    assert_eq!(outcomes.moved(), PageCount::new(COUNT - 1));
    world.verify();
}

#[test]
fn a_touch_of_a_sample_is_seen_and_others_are_not() {
    for place in SAMPLED {
        let world = world(place);
        world.engine.set_tick(100);
        assert_eq!(sample(&world), PageCount::new(COUNT));
        world.engine.set_tick(107);
        let part = batch(&world).slice(PageCount::ZERO, PageCount::new(6));
        let mut survey = Survey::default();
        world.engine.survey(part, &mut survey);
        assert!(world.model.touch(part.start()).is_some());
        world.engine.survey(part, &mut survey);
        let heat: Vec<(u8, u8)> = survey.pages.iter().map(|page| (page.heat.interval(), page.heat.age())).collect();
        assert_eq!(heat[0], (3, 0));
        assert!(heat[1..].iter().all(|heat| *heat == (15, 3)), "{heat:?}");
        let (used, sampled) = match place {
            Target::System => (Place::System, Place::Sampled),
            Target::Device(device) => (Place::Device(device), Place::SampledOn(device)),
        };
        assert_eq!(survey.pages[0].place, used);
        assert!(survey.pages[1..].iter().all(|page| page.place == sampled));
        assert_eq!(world.engine.put_back(&[part]), PageCount::new(5));
        world.engine.survey(part, &mut survey);
        assert!(survey.pages.iter().all(|page| page.place == used && page.heat.age() == 0));
        world.verify();
    }
}

#[test]
fn a_touch_of_a_sample_is_told_from_one_of_what_was_away() {
    let one = PageCount::ONE;
    let places = SAMPLED.map(|place| (sampled(place), FaultResolution::Back(one)));
    let away = (world(Target::Device(PRIVATE)), FaultResolution::Home(one));
    for (world, resolution) in places.into_iter().chain([away]) {
        assert_eq!(world.engine.fault(batch(&world).start(), FaultPath::Thread), resolution);
        world.verify();
    }
}

/// Neither of both ends of a block says anything of the other, nor does any page of a block that is no huge page.
#[test]
fn small_pages_of_a_block_are_known_each_by_itself() {
    let all = |world: &World| vec![world.at(512, 512)];
    let ends = |world: &World| vec![world.at(512, 1), world.at(1023, 1)];
    for ranges in [&all as &dyn Fn(&World) -> Vec<PageRange>, &ends] {
        let world = World::large(1024).with_pages(512, 512);
        world.engine.set_tick(100);
        let sampled: PageCount = ranges(&world).iter().map(|range| range.pages()).sum();
        assert_eq!(world.engine.sample(&ranges(&world), Select::SYSTEM).pages, sampled);
        world.engine.set_tick(107);
        assert!(world.model.touch(world.at(512, 1).start()).is_some());
        let mut survey = Survey::default();
        world.engine.survey(world.at(512, 512), &mut survey);
        assert_eq!([0, 511].map(|page: usize| survey.pages[page].heat.interval()), [3, 15]);
        world.verify();
    }
}

/// What can be done about it is the caller's business; until then they are not the coldest.
#[test]
fn of_shared_pages_the_caller_is_told() {
    let world = world(Target::System);
    let all = batch(&world);
    let shared = all.slice(PageCount::new(2), PageCount::new(3));
    let stuck = |why: Option<KeptReason>| {
        let mut model = world.model.lock();
        shared.iter().for_each(|page| model.pages.get_mut(&page.get()).unwrap().stuck = why);
    };
    stuck(Some(KeptReason::Shared));
    let sampled = world.engine.sample(&[all], Select::SYSTEM);
    assert_eq!((sampled.pages, sampled.shared), (PageCount::new(COUNT - 3), vec![shared]));
    world.engine.refuse_samples(shared);
    let mut survey = Survey::default();
    world.engine.survey(shared, &mut survey);
    assert!(survey.pages.iter().all(|page| page.place == Place::System && page.heat.interval() == 0));
    stuck(None);
    let again = world.engine.sample(&[all], Select::SYSTEM);
    assert_eq!((again.pages, again.shared), (PageCount::new(COUNT), vec![]), "with those that are out");
    world.verify();
}

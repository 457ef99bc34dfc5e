//! Blocks of a device's memory that are laid over the program's: whatever fails and whatever the program does meanwhile, it reads what it wrote.

use hetmem_core::engine::Residency;
use hetmem_core::frames::FrameRun;
use hetmem_core::migrate::{Collected, Request, Select, Target};
use hetmem_core::outcome::{KeptReason, Outcomes, PageOutcome};
use hetmem_core::physmap::Owner;
use hetmem_core::port::InstallStop;
use hetmem_core::space::Region;
use hetmem_core::units::{FrameIndex, PageCount, PageRange};

use crate::model::{COHERENT, Failure, ModelHost, OVERLAY, OVERLAY_B, OWNED, PRIVATE, StepKind, World};

/// The block that is laid.
const FIRST: u64 = 512;
const ON_OVERLAY: Target = Target::Device(OVERLAY);

/// Where a block's pages begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    At(Target),
    /// In frames of [`OVERLAY`], missing from the program.
    Lifted,
}

const PLACES: [Place; 6] = [
    Place::At(Target::System),
    Place::At(Target::Device(PRIVATE)),
    Place::At(Target::Device(COHERENT)),
    Place::At(ON_OVERLAY),
    Place::At(Target::Device(OVERLAY_B)),
    Place::Lifted,
];
const TARGETS: [Target; 5] =
    [Target::System, Target::Device(PRIVATE), Target::Device(COHERENT), ON_OVERLAY, Target::Device(OVERLAY_B)];

/// The pairs of which one is a device whose pages are laid over.
fn ways() -> impl Iterator<Item = (Place, Target)> {
    let lays = |target| [ON_OVERLAY, Target::Device(OVERLAY_B)].contains(&target);
    PLACES.into_iter().flat_map(|place| TARGETS.map(|target| (place, target))).filter(
        move |(place, target)| match place {
            Place::At(at) => at != target && (lays(*at) || lays(*target)),
            Place::Lifted => true,
        },
    )
}

fn block(world: &World) -> PageRange {
    world.at(FIRST, 512)
}

fn world_in(region: Region, place: Place) -> World {
    let world = World::with_overlays(false).with_region(FIRST, 512, region);
    world.write_all(block(&world));
    match place {
        Place::At(Target::System) => {}
        Place::At(target) => world.place(block(&world), target),
        Place::Lifted => {
            world.place(block(&world), ON_OVERLAY);
            lift(&world);
        }
    }
    world.model.lock().calm();
    world
}

fn world(place: Place) -> World {
    world_in(OWNED, place)
}

/// A block of system memory.
fn at_home() -> World {
    world(Place::At(Target::System))
}

/// A laid block.
fn laid() -> World {
    world(Place::At(ON_OVERLAY))
}

/// Lifts the laid block and leaves its pages in their frames: nobody can have one of them for itself there.
fn lift(world: &World) {
    let taken = world.engine.make_exclusive(block(world).start(), Owner::new(1));
    assert_eq!(taken, Err(KeptReason::NotSelected));
    assert_eq!(world.engine.laid_in(PageRange::ALL), []);
    assert_eq!(world.engine.away_in(block(world)), (PageCount::new(512), PageCount::ZERO));
}

/// Compares every page with the truth, checks every structure, and that the block is hetmem's still.
fn finish(world: &World) {
    world.verify();
    let regions = world.engine.regions();
    assert!(regions.iter().map(|(range, _)| range.pages()).sum::<PageCount>() == PageCount::new(512), "{regions:?}");
}

fn residency_at(place: Place) -> Residency {
    match place {
        Place::At(Target::System) => Residency::System,
        Place::At(Target::Device(id)) => Residency::Device(id),
        Place::Lifted => Residency::Device(OVERLAY),
    }
}

#[track_caller]
fn all_are(world: &World, range: PageRange, expected: Residency) {
    let other = range.iter().zip(world.residency(range)).find(|(_, now)| *now != expected);
    assert_eq!(other, None, "not all are at {expected:?}");
}

fn to_overlay(world: &World) -> Outcomes {
    world.migrate(block(world), ON_OVERLAY)
}

/// All pages were kept for this reason, and are where they were.
#[track_caller]
fn kept(world: &World, outcomes: &Outcomes, reason: KeptReason, place: Place) {
    assert_eq!(outcomes.kept(reason).as_usize(), outcomes.as_slice().len(), "{outcomes:?}");
    unchanged(world, place);
}

/// The block is where it was, laid if it was.
#[track_caller]
fn unchanged(world: &World, place: Place) {
    all_are(world, block(world), residency_at(place));
    let is_laid = [Place::At(ON_OVERLAY), Place::At(Target::Device(OVERLAY_B))].contains(&place);
    assert_eq!(world.engine.laid_in(PageRange::ALL).len(), usize::from(is_laid));
    world.model.compare_in_place();
    world.engine.check();
}

/// Each page is where its outcome says, and all or none were laid.
fn agrees(world: &World, place: Place, target: Target, outcomes: &Outcomes) {
    for (outcome, now) in outcomes.as_slice().iter().zip(world.residency(block(world))) {
        match outcome {
            PageOutcome::Moved => assert_eq!(now, residency_at(Place::At(target))),
            // A coherent frame whose place was taken is given up.
            PageOutcome::Kept(KeptReason::Occupied) => {
                assert!([residency_at(place), Residency::System].contains(&now));
            }
            PageOutcome::Kept(_) => assert_eq!(now, residency_at(place), "{outcome:?}"),
        }
    }
    if let Target::Device(OVERLAY | OVERLAY_B) = target {
        assert!([0, 512].contains(&outcomes.moved().get()), "{outcomes:?}");
        let laid = world.engine.laid_in(block(world)).len();
        // What could not be lifted is laid still.
        assert!(u64::from(laid == 1) >= outcomes.moved().get() / 512);
    }
}

#[test]
fn a_laid_page_is_its_frame_and_a_lifted_one_is_there_still() {
    let world = at_home();
    let page = block(&world).start();
    assert_eq!(to_overlay(&world).moved(), PageCount::new(512));
    assert_eq!(world.engine.laid_in(PageRange::ALL), [block(&world)]);
    assert_eq!(world.engine.away_in(block(&world)), (PageCount::ZERO, PageCount::new(512)));
    let before = world.model.lock().steps().len();
    world.model.write(page);
    let frame = world.model.lock().pages[&page.get()].laid.expect("it is laid");
    let written = world.model.lock().own[&frame.get()];
    assert_eq!(world.model.touch(page), Some(written));
    assert_eq!(world.model.lock().steps().len(), before, "nobody is asked");
    finish(&world);
    lift(&world);
    assert_eq!(world.model.touch(page), Some(written));
    assert_eq!(world.residency(PageRange::page_of(page)), [Residency::System], "the touch brought it home");
    assert_eq!(world.engine.laid_in(PageRange::ALL), []);
    finish(&world);
}

#[test]
fn a_migration_survives_each_failure() {
    for (place, target) in ways() {
        let dry = world(place);
        let outcomes = dry.migrate(block(&dry), target);
        let steps = dry.model.lock().steps().to_vec();
        if (place, target) != (Place::Lifted, ON_OVERLAY) {
            assert_eq!(outcomes.moved(), PageCount::new(512), "{place:?} to {target:?}: {outcomes:?}");
        }
        finish(&dry);
        // From private device to private device there are many copies, each as the one before.
        let (first, last) = (0..steps.len().min(8), steps.len().saturating_sub(6).max(8)..steps.len());
        for (step, kind) in first.chain(last).map(|step| (step, steps[step])) {
            for failure in kind.failures() {
                for more in [0, usize::MAX] {
                    if more == usize::MAX && matches!(failure, Failure::Install(InstallStop::EventsPending, _)) {
                        continue;
                    }
                    let world = world(place);
                    world.model.lock().fail_at(step, failure, more);
                    let outcomes = world.migrate(block(&world), target);
                    world.model.lock().calm();
                    agrees(&world, place, target, &outcomes);
                    finish(&world);
                }
            }
        }
    }
}

#[test]
fn a_block_that_is_not_exchanged_is_named_and_stays() {
    for reason in [KeptReason::NoMemory, KeptReason::Unsupported] {
        for (place, target, kind) in [
            (Place::At(Target::System), ON_OVERLAY, StepKind::Lay),
            (Place::At(Target::Device(PRIVATE)), ON_OVERLAY, StepKind::Lay),
            (Place::At(ON_OVERLAY), Target::System, StepKind::Lift),
            (Place::At(ON_OVERLAY), Target::Device(OVERLAY_B), StepKind::Lift),
        ] {
            let world = world(place);
            let step = step_of(place, target, kind);
            world.model.lock().fail_at(step, Failure::NotExchanged(reason), 0);
            let outcomes = world.migrate(block(&world), target);
            kept(&world, &outcomes, reason, place);
            assert_eq!(world.migrate(block(&world), target).moved(), PageCount::new(512), "the next time it works");
        }
    }
}

/// Which step of the migration is the first of `kind`.
fn step_of(place: Place, target: Target, kind: StepKind) -> usize {
    let dry = world(place);
    let _ = dry.migrate(block(&dry), target);
    let step = dry.model.lock().steps().iter().position(|step| *step == kind);
    step.unwrap_or_else(|| panic!("{place:?} to {target:?} has no {kind:?}"))
}

#[test]
fn nothing_but_a_whole_block_is_laid() {
    for place in [Place::At(Target::System), Place::At(Target::Device(PRIVATE)), Place::At(Target::Device(OVERLAY_B))] {
        let world = world(place);
        for part in [world.at(FIRST, 511), world.at(FIRST + 1, 511), world.at(FIRST + 7, 1)] {
            let outcomes = world.migrate(part, ON_OVERLAY);
            kept(&world, &outcomes, KeptReason::PartOfBlock, place);
        }
        let halves = [world.at(FIRST, 256), world.at(FIRST + 256, 256)];
        let moved = world.engine.migrate_all(&halves, Request::all_to(ON_OVERLAY));
        assert!(moved.iter().all(|outcomes| outcomes.moved() == PageCount::new(256)), "{moved:?}");
        finish(&world);
    }
}

#[test]
fn of_a_longer_range_the_whole_blocks_are_laid() {
    let world = World::with_overlays(false).with_region(0, 1536, OWNED);
    world.write_all(world.at(0, 1536));
    let outcomes = world.migrate(world.at(100, 1100), ON_OVERLAY);
    assert_eq!(outcomes.moved(), PageCount::new(512));
    assert_eq!(outcomes.kept(KeptReason::PartOfBlock), PageCount::new(1100 - 512));
    assert_eq!(world.engine.laid_in(world.at(0, 1536)), [block(&world)]);
    world.verify();
}

#[test]
fn over_memory_that_others_may_map_nothing_is_laid() {
    let world = world_in(Region { owned: false, ..OWNED }, Place::At(Target::System));
    let outcomes = to_overlay(&world);
    kept(&world, &outcomes, KeptReason::Unsupported, Place::At(Target::System));
}

#[test]
fn advice_keeps_a_block_where_it_is() {
    for (place, target) in [(Place::At(Target::System), ON_OVERLAY), (Place::At(ON_OVERLAY), Target::System)] {
        let world = world(place);
        world.engine.change_region(block(&world), |region| region.pinned = true);
        let outcomes = world.migrate(block(&world), target);
        kept(&world, &outcomes, KeptReason::Advised, place);
    }
}

#[test]
fn a_block_of_several_regions_that_differ_for_policies_only_is_laid() {
    let world = at_home();
    world.engine.change_region(world.at(FIRST + 100, 7), |region| region.not_soon = true);
    assert_eq!(world.engine.regions().len(), 3);
    assert_eq!(to_overlay(&world).moved(), PageCount::new(512));
    finish(&world);
}

#[test]
fn one_page_that_stays_keeps_the_block() {
    let page = |world: &World| world.at(FIRST + 100, 1);
    let hole = World::with_overlays(false).with_region(FIRST, 512, OWNED);
    hole.write_all(hole.at(FIRST, 100));
    hole.write_all(hole.at(FIRST + 101, 411));
    hole.model.drop_unseen(page(&hole));
    let pinned = at_home();
    pinned.model.lock().pages.get_mut(&page(&pinned).start().get()).unwrap().stuck = Some(KeptReason::Pinned);
    let excluded = at_home();
    excluded.engine.exclude(page(&excluded));
    for (world, reason) in [(hole, KeptReason::Hole), (pinned, KeptReason::Pinned), (excluded, KeptReason::ThreadState)]
    {
        let outcomes = to_overlay(&world);
        assert_eq!(outcomes.as_slice()[100], PageOutcome::Kept(reason));
        assert_eq!(outcomes.kept(KeptReason::PartOfBlock), PageCount::new(511), "{outcomes:?}");
        unchanged(&world, Place::At(Target::System));
    }
}

#[test]
fn without_a_whole_block_of_frames_nothing_is_laid() {
    for place in [Place::At(Target::System), Place::At(Target::Device(PRIVATE)), Place::At(Target::Device(OVERLAY_B))] {
        let world = world(place);
        let hogged = world.hog_device(OVERLAY, 0);
        let outcomes = to_overlay(&world);
        assert_eq!(outcomes.kept(KeptReason::NoFrame), PageCount::new(512), "{outcomes:?}");
        // Of each block of frames one is in use.
        let (used, rest): (Vec<_>, Vec<_>) = hogged
            .into_iter()
            .map(|run| {
                (run.slice(PageCount::ZERO, PageCount::ONE), run.slice(PageCount::ONE, run.pages - PageCount::ONE))
            })
            .unzip();
        world.unhog_device(OVERLAY, rest);
        let outcomes = to_overlay(&world);
        assert_eq!(outcomes.kept(KeptReason::NoFrame), PageCount::new(512), "{outcomes:?}");
        all_are(&world, block(&world), residency_at(place));
        world.unhog_device(OVERLAY, used);
        assert_eq!(to_overlay(&world).moved(), PageCount::new(512));
        finish(&world);
    }
}

#[test]
fn without_room_in_the_pool_nothing_is_laid() {
    let world = at_home();
    let hogged = world.hog_pool(128 + 300);
    let outcomes = to_overlay(&world);
    assert_eq!(outcomes.kept(KeptReason::PartOfBlock), PageCount::new(300), "{outcomes:?}");
    assert_eq!(outcomes.kept(KeptReason::NoMemory), PageCount::new(212), "{outcomes:?}");
    world.unhog_pool(hogged);
    unchanged(&world, Place::At(Target::System));
}

#[test]
fn a_block_that_a_request_does_not_select_is_not_lifted() {
    let home = Request::all_to(Target::System);
    let requests = [
        (Request { owner: Some(Owner::new(2)), ..home }, KeptReason::ForeignOwner),
        (Request { select: Select::SYSTEM.union(Select::DEVICE_PRIVATE), ..home }, KeptReason::NotSelected),
        (Request::all_to(ON_OVERLAY), KeptReason::AlreadyThere),
    ];
    let world = laid();
    for (request, reason) in requests {
        for range in [block(&world), world.at(FIRST + 9, 3)] {
            let outcomes = world.engine.migrate(range, request);
            kept(&world, &outcomes, reason, Place::At(ON_OVERLAY));
        }
    }
}

#[test]
fn one_page_that_goes_home_lifts_its_block_and_the_block_is_laid_again_as_a_whole() {
    let world = laid();
    let one = world.at(FIRST + 200, 1);
    assert_eq!(world.migrate(one, Target::System).moved(), PageCount::ONE);
    assert_eq!(world.engine.laid_in(PageRange::ALL), []);
    assert_eq!(world.engine.away_in(block(&world)), (PageCount::new(511), PageCount::ZERO));
    assert_eq!(world.residency(one), [Residency::System]);
    all_are(&world, world.at(FIRST + 201, 311), Residency::Device(OVERLAY));
    let touched = world.at(FIRST + 300, 1).start();
    world.model.write(touched);
    assert_eq!(world.residency(PageRange::page_of(touched)), [Residency::System]);
    assert_eq!(to_overlay(&world).moved(), PageCount::new(512));
    assert_eq!(world.engine.laid_in(PageRange::ALL), [block(&world)]);
    assert_eq!(world.engine.devices()[OVERLAY.index()].pagemap().frames.used(), PageCount::new(512));
    finish(&world);
}

#[test]
fn a_laid_page_is_had_exclusively_once_it_was_touched() {
    let world = laid();
    lift(&world);
    let page = world.at(FIRST + 5, 1).start();
    world.model.write(page);
    let address = world.engine.make_exclusive(page, Owner::new(1)).expect("it is in system memory");
    assert!(world.model.lock().own.contains_key(&address.get()));
    finish(&world);
}

#[test]
fn frames_of_laid_blocks_are_emptied_by_the_pages_they_hold() {
    let world = laid();
    let frames = |first, count| FrameRun { first: FrameIndex::new(first), pages: PageCount::new(count) };
    assert_eq!(world.engine.pages_in(OVERLAY, frames(0, 1024)), [block(&world)]);
    let some = world.engine.pages_in(OVERLAY, frames(10, 20));
    assert_eq!(some, [world.at(FIRST + 10, 20)]);
    assert_eq!(world.migrate(some[0], Target::System).moved(), PageCount::new(20));
    for range in world.engine.pages_in(OVERLAY, frames(0, 1024)) {
        assert_eq!(world.migrate(range, Target::System).moved(), range.pages());
    }
    assert_eq!(world.engine.devices()[OVERLAY.index()].pagemap().frames.used(), PageCount::ZERO);
    finish(&world);
}

#[test]
fn what_is_laid_keeps_its_bytes_when_the_program_drops_it() {
    let world = laid();
    world.model.remove(world.at(FIRST + 3, 40));
    assert!(world.model.lock().events.is_empty());
    world.model.zap_all();
    // The truth has not changed, so the bytes must not have.
    finish(&world);
}

fn phase(world: &World) -> Collected<'_, ModelHost> {
    Collected::collect(&world.engine, block(world), OWNED, Request::all_to(ON_OVERLAY))
}

#[test]
fn a_dropped_phase_puts_the_block_back() {
    for place in [Place::At(Target::System), Place::At(Target::Device(PRIVATE)), Place::At(Target::Device(COHERENT))] {
        let world = world(place);
        drop(phase(&world));
        unchanged(&world, place);
        drop(phase(&world).copy());
        unchanged(&world, place);
    }
}

#[test]
fn while_overlays_are_held_blocks_are_lifted_and_none_laid() {
    let world = at_home();
    let Ok(copied) = phase(&world).copy() else { panic!("nothing fails here") };
    world.engine.hold_exchanges();
    let outcomes = copied.finalize();
    kept(&world, &outcomes, KeptReason::Raced, Place::At(Target::System));
    let outcomes = to_overlay(&world);
    kept(&world, &outcomes, KeptReason::Raced, Place::At(Target::System));
    world.engine.release_exchanges();
    assert_eq!(to_overlay(&world).moved(), PageCount::new(512));
    world.engine.hold_exchanges();
    assert_eq!(world.migrate(block(&world), Target::System).moved(), PageCount::new(512));
    world.engine.release_exchanges();
    finish(&world);
}

#[test]
fn a_child_finds_what_was_laid() {
    for (place, back) in [(Place::At(ON_OVERLAY), false), (Place::At(ON_OVERLAY), true), (Place::Lifted, false)] {
        let world = world(place);
        world.engine.hold_exchanges();
        for range in world.engine.laid_in(PageRange::ALL) {
            assert_eq!(world.migrate(range, Target::System).moved(), PageCount::new(512));
        }
        world.model.fork(block(&world));
        world.model.deliver();
        world.engine.release_exchanges();
        if back {
            assert_eq!(to_overlay(&world).moved(), PageCount::new(512));
        }
        finish(&world);
    }
}

#[test]
fn where_overlays_have_ended_blocks_are_lifted_and_none_laid() {
    let world = at_home();
    let Ok(copied) = phase(&world).copy() else { panic!("nothing fails here") };
    world.engine.end_overlays(world.at(FIRST + 511, 1));
    let outcomes = copied.finalize();
    kept(&world, &outcomes, KeptReason::Raced, Place::At(Target::System));
    let world = laid();
    world.engine.end_overlays(block(&world));
    finish(&world);
    assert_eq!(world.migrate(block(&world), Target::System).moved(), PageCount::new(512));
    let outcomes = to_overlay(&world);
    kept(&world, &outcomes, KeptReason::Unsupported, Place::At(Target::System));
}

#[test]
fn memory_that_is_unmapped_is_laid_over_no_more() {
    let world = laid();
    world.model.unmap(block(&world));
    assert!(world.model.lock().events.is_empty(), "nobody watches what is laid");
    world.engine.unmapped(&world.engine.events(), block(&world));
    assert_eq!(world.engine.laid_in(PageRange::ALL), []);
    world.verify();
    let again = world.with_region(FIRST, 512, OWNED);
    again.write_all(block(&again));
    assert_eq!(to_overlay(&again).moved(), PageCount::new(512));
    finish(&again);
}

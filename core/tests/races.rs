//! The program changes its memory in the middle of a migration or of a fault, at every step and between the phases.

use hetmem_core::fault::FaultResolution;
use hetmem_core::migrate::{Collected, Request, Target};
use hetmem_core::mirror::{MirrorPage, RangeFault, RangeFaultError, Want};
use hetmem_core::outcome::KeptReason;
use hetmem_core::physmap::Owner;
use hetmem_core::port::FaultPath;
use hetmem_core::space::Region;
use hetmem_core::units::{DeviceId, PageCount, PageRange};

use crate::model::{Action, COHERENT, COHERENT_B, Gives, PRIVATE, PRIVATE_B, World, ZERO};

/// Pages of the program: the end of one block and the start of the next.
const FIRST: u64 = 509;
const COUNT: u64 = 6;
/// A stretch that is mapped and managed too, as the destination of `mremap`.
const ELSEWHERE: u64 = 100;

const PLACES: [Target; 4] =
    [Target::System, Target::Device(PRIVATE), Target::Device(COHERENT), Target::Device(PRIVATE_B)];
const TARGETS: [Target; 5] = [
    Target::System,
    Target::Device(PRIVATE),
    Target::Device(COHERENT),
    Target::Device(PRIVATE_B),
    Target::Device(COHERENT_B),
];

fn world(place: Target) -> World {
    let world = World::new(64).with_pages(FIRST, COUNT).with_pages(ELSEWHERE, COUNT);
    let range = world.at(FIRST, COUNT);
    if place != Target::System {
        world.place(range, place);
    }
    world.model.lock().calm();
    world
}

/// Everything that the program can do to the pages, or to some of them.
fn actions(world: &World) -> Vec<Action> {
    let all = world.at(FIRST, COUNT);
    let some = world.at(FIRST + 1, 2);
    let elsewhere = world.at(ELSEWHERE, 1).start();
    let fresh = world.at(200, 1).start();
    let mut actions = vec![Action::Fork(all), Action::Protect(all)];
    for range in [all, some] {
        actions.extend([
            Action::Unmap(range),
            Action::Replace(range),
            Action::Remap(range, elsewhere),
            Action::Remap(range, fresh),
            Action::RemapBack(range, elsewhere),
            Action::Remove(range),
            Action::Guard(range),
        ]);
    }
    actions.extend([FIRST, FIRST + COUNT - 1].map(|page| Action::Touch(world.at(page, 1).start())));
    actions
}

/// What is done after the action at the same step, and after it.
const SEQUELS: [&[Action]; 5] =
    [&[], &[Action::Handle], &[Action::Zap], &[Action::Handle, Action::Zap], &[Action::Unguard(PageRange::ALL)]];

/// Counts the steps of `work`, then does it once for each step, action and sequel.
fn at_every_step(setup: impl Fn() -> World, work: impl Fn(&World)) {
    let dry = setup();
    work(&dry);
    let steps = dry.model.lock().steps().len();
    dry.verify();
    for step in 0..steps {
        for which in 0..actions(&dry).len() {
            for touched in [None, Some(FIRST + 1)] {
                for sequel in SEQUELS {
                    let world = setup();
                    let action = actions(&world)[which];
                    {
                        let mut memory = world.model.lock();
                        let touch = touched.map(|page| Action::Touch(world.at(page, 1).start()));
                        for action in touch.into_iter().chain([action]).chain(sequel.iter().copied()) {
                            memory.at_step(step, action);
                        }
                    }
                    work(&world);
                    world.verify();
                }
            }
        }
    }
}

fn touch(world: &World, page: u64) {
    // Nothing may be mapped there any more.
    let _ = world.model.touch(world.at(page, 1).start());
}

#[test]
fn the_program_acts_at_every_step_of_every_migration() {
    for place in PLACES {
        for target in TARGETS {
            for gives in [Gives::AtOnce, Gives::Read] {
                at_every_step(
                    || world(place).giving(gives),
                    |world| drop(world.migrate(world.at(FIRST, COUNT), target)),
                );
            }
        }
    }
}

/// Of the second block so many pages are away that three more are too many for a list; then all come home.
#[test]
fn the_program_acts_at_every_step_where_few_pages_of_a_block_become_many_and_few_again() {
    let setup = || {
        let world = World::new(64).with_pages(FIRST, COUNT).with_pages(ELSEWHERE, COUNT).with_pages(600, 31);
        world.place(world.at(600, 31), Target::Device(PRIVATE_B));
        world.model.lock().calm();
        world
    };
    for target in [PRIVATE, COHERENT] {
        at_every_step(setup, |world| {
            drop(world.migrate(world.at(FIRST, COUNT), Target::Device(target)));
            drop(world.migrate(world.at(600, 31), Target::System));
            drop(world.migrate(world.at(FIRST, COUNT), Target::System));
        });
    }
}

#[test]
fn the_program_acts_at_every_step_of_a_fault() {
    for place in PLACES {
        at_every_step(|| world(place), |world| touch(world, FIRST));
    }
    for place in [PRIVATE, PRIVATE_B] {
        for gives in [Gives::Late, Gives::Read] {
            at_every_step(|| world(Target::Device(place)).giving(gives), |world| touch(world, FIRST));
        }
    }
}

/// A mirror that follows the rule has only answers that hold, once it was told of all that it had not heard of when it began to use them.
#[test]
fn the_program_acts_at_every_step_of_a_range_fault() {
    for place in PLACES {
        for want in [Want::Snapshot, Want::Read, Want::Write] {
            for owner in [None, Some(Owner::new(1))] {
                at_every_step(|| world(place), |world| mirror(world, want, owner));
            }
        }
    }
}

fn mirror(world: &World, want: Want, owner: Option<Owner>) {
    let range = world.at(FIRST, COUNT);
    let mirror = world.engine.subscribe(range, |notice| notice.set_seq()).unwrap();
    let mut out = vec![MirrorPage::default(); range.pages().as_usize()];
    // The scripts change the range less often than this.
    for _ in 0..20 {
        let seq = mirror.read_begin();
        let request = RangeFault { want, owner, unless_changed: Some((&mirror, seq)), ..RangeFault::default() };
        let result = world.engine.range_fault(range, request, &mut out);
        if result == Err(RangeFaultError::Changed) || mirror.read_retry(seq) {
            continue;
        }
        world.model.deliver();
        if mirror.read_retry(seq) {
            // What was begun to be used is given up.
            continue;
        }
        // Protection is announced by who changes it, and the end of a removal and guards by nobody.
        let memory = world.model.lock();
        let unannounced = !memory.zaps.is_empty() || memory.pages.values().any(|page| page.read_only || page.guarded);
        drop(memory);
        if !unannounced {
            world.judge(range, want, owner, result, &out);
        }
        return;
    }
    panic!("a mirror is told of changes again and again");
}

#[test]
fn the_program_acts_at_every_step_of_a_stream_of_faults() {
    let stream = |world: &World| (FIRST..FIRST + COUNT).for_each(|page| touch(world, page));
    for gives in Gives::ALL {
        at_every_step(|| world(Target::Device(PRIVATE)).giving(gives), stream);
    }
}

#[test]
fn the_program_acts_at_every_step_of_bringing_all_home() {
    for place in PLACES {
        // What does not come home at once is found by the comparison.
        let home = |world: &World| _ = world.engine.bring_all_home();
        at_every_step(|| world(place), home);
    }
}

fn batch(world: &World) -> PageRange {
    world.at(FIRST, 3)
}

/// Where in a batch's life the program acts.
#[derive(Clone, Copy, Debug)]
enum Moment {
    BeforeCollect,
    AfterCollect,
    AfterCopy,
}

/// Where a batch's life ends.
#[derive(Clone, Copy, Debug)]
enum End {
    DropCollected,
    DropCopied,
    Finalize,
}

#[test]
fn the_program_acts_between_the_phases() {
    let dry = world(Target::System);
    for place in PLACES {
        for target in TARGETS {
            for which in 0..actions(&dry).len() {
                for moment in [Moment::BeforeCollect, Moment::AfterCollect, Moment::AfterCopy] {
                    for end in [End::DropCollected, End::DropCopied, End::Finalize] {
                        for sequel in SEQUELS {
                            let world = world(place);
                            let act = || {
                                world.model.act(actions(&world)[which], true);
                                sequel.iter().for_each(|action| world.model.act(*action, true));
                            };
                            one_batch(&world, target, moment, end, act);
                            world.verify();
                        }
                    }
                }
            }
        }
    }
}

fn one_batch(world: &World, target: Target, moment: Moment, end: End, act: impl Fn()) {
    let engine = &world.engine;
    let (_, region) = engine.region_at(batch(world).start()).expect("it is managed at the start");
    if matches!(moment, Moment::BeforeCollect) {
        act();
    }
    let collected = Collected::collect(engine, batch(world), region, Request::all_to(target));
    if matches!(moment, Moment::AfterCollect) {
        act();
    }
    if matches!(end, End::DropCollected) {
        return;
    }
    let copied = match collected.copy() {
        Ok(copied) => copied,
        Err((collected, why)) => return drop(collected.all_kept(why)),
    };
    if matches!(moment, Moment::AfterCopy) {
        act();
    }
    if matches!(end, End::DropCopied) {
        return;
    }
    let _ = copied.finalize();
}

/// The region was looked up, then the program unmapped it and mapped something of its own there.
#[test]
fn memory_that_is_no_longer_managed_is_not_taken_out() {
    let world = world(Target::System);
    let (_, region) = world.engine.region_at(batch(&world).start()).unwrap();
    world.model.act(Action::Replace(world.at(FIRST, COUNT)), true);
    world.model.deliver();
    let request = Request::all_to(Target::Device(PRIVATE));
    let collected = Collected::collect(&world.engine, batch(&world), region, request);
    assert!(collected.pages().is_zero());
    drop(collected);
    world.verify();
}

/// The page was moved, perhaps touched and written, and moved back while a batch had lost sight of it, and another batch has it now.
#[test]
fn a_batch_that_lost_a_page_does_not_take_its_next_life_for_its_own() {
    for place in PLACES {
        for target in TARGETS {
            for end in [End::DropCopied, End::Finalize] {
                for second in TARGETS {
                    a_lost_page(place, target, end, second, false);
                    a_lost_page(place, target, end, second, true);
                }
            }
        }
    }
}

fn a_lost_page(place: Target, target: Target, end: End, second: Target, written: bool) {
    let world = world(place);
    let (model, engine) = (&world.model, &world.engine);
    let page = world.at(FIRST, 1);
    let away = world.at(200, 1).start();
    let collect = |target| {
        let (_, region) = engine.region_at(page.start()).expect("it is managed");
        Collected::collect(engine, page, region, Request::all_to(target))
    };
    let Ok(stale) = collect(target).copy() else { panic!("nothing fails here") };
    model.remap(page, away);
    model.deliver();
    if written {
        model.write(away);
    }
    model.remap(PageRange::page_of(away), page.start());
    model.deliver();
    let second = collect(second);
    match end {
        End::Finalize => drop(stale.finalize()),
        End::DropCollected | End::DropCopied => drop(stale),
    }
    if let Ok(second) = second.copy() {
        let _ = second.finalize();
    }
    world.verify();
}

/// Frames stay filled until a batch that lost its pages has let go of them.
#[test]
fn a_batch_that_lost_a_page_may_still_read_its_frame() {
    for place in PLACES {
        for target in TARGETS {
            for second in TARGETS {
                let world = world(place);
                let (model, engine) = (&world.model, &world.engine);
                let page = world.at(FIRST, 1);
                let away = world.at(200, 1).start();
                let (_, region) = engine.region_at(page.start()).expect("it is managed");
                let stale = Collected::collect(engine, page, region, Request::all_to(target));
                model.remap(page, away);
                model.deliver();
                let _ = world.migrate(PageRange::page_of(away), second);
                model.write(away);
                if let Ok(stale) = stale.copy() {
                    let _ = stale.finalize();
                }
                world.verify();
            }
        }
    }
}

/// Waiters of a page that is settled early are not forgotten while the rest of its batch waits for an event.
#[test]
fn a_waiter_is_woken_although_the_batch_goes_on_waiting() {
    for target in [Target::System, Target::Device(COHERENT)] {
        for place in PLACES {
            let dry = world(place);
            let _ = dry.migrate(batch(&dry), target);
            let steps = dry.model.lock().steps().to_vec();
            for (step, kind) in steps.iter().enumerate() {
                for failure in kind.failures() {
                    let world = world(place);
                    {
                        let mut memory = world.model.lock();
                        memory.fail_at(step, failure, 0);
                        for page in batch(&world).iter() {
                            memory.at_step(step.saturating_sub(1), Action::Touch(page));
                        }
                        memory.at_step(step + 1, Action::Unmap(world.at(FIRST + 1, 2)));
                    }
                    let _ = world.migrate(batch(&world), target);
                    world.verify();
                }
            }
        }
    }
}

/// The event takes the page from its batch. That batch is not the next to end: another one is, in the same block.
#[test]
fn a_waiter_of_a_page_that_an_event_took_is_woken() {
    for place in PLACES {
        for target in TARGETS {
            for which in 0..4 {
                let world = world(place);
                let (a, b) = (world.at(FIRST, 1), world.at(FIRST + 1, 1));
                let away = world.at(200, 1).start();
                let action = [Action::Unmap(a), Action::Replace(a), Action::Remove(a), Action::Remap(a, away)][which];
                let collect = |page: PageRange| {
                    let (_, region) = world.engine.region_at(page.start()).expect("it is managed at the start");
                    Collected::collect(&world.engine, page, region, Request::all_to(target))
                };
                let (first, second) = (collect(a), collect(b));
                for page in [a, b] {
                    world.model.act(Action::Touch(page.start()), true);
                }
                world.model.act(action, true);
                world.model.deliver();
                drop(second);
                world.model.zap_all();
                drop(first);
                world.verify();
            }
        }
    }
}

/// The unmapping of the destination fell into a moment in which nobody watched.
#[test]
fn a_remap_onto_pages_that_were_unmapped_unseen_replaces_them() {
    for place in [COHERENT, COHERENT_B] {
        for moved in PLACES {
            let world = world(moved);
            let elsewhere = world.at(ELSEWHERE, COUNT);
            world.place(elsewhere, Target::Device(place));
            world.model.unwatch(elsewhere);
            world.model.act(Action::Remap(world.at(FIRST, COUNT), elsewhere.start()), true);
            world.verify();
        }
    }
}

#[test]
fn a_touch_of_memory_without_a_region_is_served() {
    let world = world(Target::System);
    let page = world.at(300, 1);
    world.model.map(page, true);
    let engine = &world.engine;
    world.model.begin_touch(page.start());
    assert_eq!(engine.fault(page.start(), FaultPath::Thread), FaultResolution::Present);
    world.verify();
}

#[test]
fn a_page_that_is_excluded_while_it_is_away_comes_home_and_stays() {
    let world = world(Target::Device(PRIVATE));
    let range = world.at(FIRST, COUNT);
    world.engine.exclude(range);
    assert!(world.migrate(range, Target::Device(DeviceId::new(1))).moved().is_zero());
    assert!(world.engine.bring_all_home().is_zero());
    assert!(world.migrate(range, Target::Device(PRIVATE)).moved().is_zero());
    world.engine.manage(world.at(300, 1), Region::default());
    world.verify();
}

/// While nobody watches, coherent pages are dropped and written anew: their slots are hints.
#[test]
fn mapped_pages_that_were_dropped_unseen_are_found_out() {
    for place in [COHERENT, COHERENT_B] {
        for target in TARGETS {
            for touch_first in [false, true] {
                let world = world(Target::Device(place));
                let range = world.at(FIRST, COUNT);
                world.model.drop_unseen(range.slice(PageCount::ONE, PageCount::new(3)));
                world.model.write_present(range.start());
                if touch_first {
                    world.model.read_all();
                }
                let _ = world.migrate(range, target);
                world.verify();
                assert!(world.engine.bring_all_home().is_zero());
                let _ = world.migrate(range, Target::Device(PRIVATE));
                world.verify();
            }
        }
    }
}

/// Guards over pages that are away, or on their way, discard them: removed again, they leave zeros, and frames come free.
#[test]
fn guards_that_are_removed_again_leave_zeros_and_free_frames() {
    for place in PLACES {
        for target in TARGETS {
            let world = world(place);
            let (range, some) = (world.at(FIRST, COUNT), world.at(FIRST + 1, 3));
            world.model.guard(some);
            let outcomes = world.migrate(range, target);
            assert!(outcomes.kept(KeptReason::Occupied).is_zero(), "{outcomes:?}");
            if matches!((place, target), (Target::System, Target::Device(_)) | (Target::Device(_), Target::System)) {
                assert_eq!(
                    outcomes.kept(KeptReason::Guarded),
                    some.pages(),
                    "from {place:?} to {target:?}: {outcomes:?}"
                );
            }
            world.model.unguard(some);
            let frames = world.engine.devices().iter().map(|device| device.pagemap().frames.used());
            assert!(frames.sum::<PageCount>() <= range.pages() - some.pages(), "nothing keeps what was discarded");
            assert!(some.iter().all(|page| world.model.touch(page) == Some(ZERO)));
            world.verify();
        }
    }
}

/// A guard that lies where a page belongs is a discarded page; another page there is a defect, and stops the program.
#[test]
fn a_touch_of_a_guard_ends_with_nobody_asleep() {
    for place in PLACES {
        let world = world(place);
        let page = world.at(FIRST, 1);
        world.model.begin_touch(page.start());
        world.model.guard(page);
        world.model.serve(false);
        assert_eq!(world.model.touch(page.start()), None);
        world.verify();
    }
}

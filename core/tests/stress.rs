//! A program of many threads, migrations by many threads, and one handler thread, all at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hetmem_core::migrate::{Request, Target};
use hetmem_core::space::Region;
use hetmem_core::units::{DeviceId, PageCount, PageRange};

use crate::model::{Gives, OVERLAY, OVERLAY_B, StepKind, Token, World, ZERO};

/// Rounds of each thread of the program.
const ROUNDS: u64 = 300;
/// The stretches that the threads own, next to each other over the border of two blocks: so long that of a block few pages are away at one time, and
/// many at another.
const STRETCH: u64 = 24;
const FIRST: u64 = 512 - 3 * STRETCH;

/// A small generator: the test repeats itself but for the scheduling.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// The stretch of thread `n`.
fn stretch(world: &World, n: u64) -> PageRange {
    world.at(FIRST + n * STRETCH, STRETCH)
}

/// A content that names its page and its writer's round.
const fn content(page: u64, round: u64) -> Token {
    page << 20 | round << 4 | 1
}

fn write_all(world: &World, range: PageRange, round: u64) {
    for page in range.iter() {
        world.model.touch_and(page, |value| *value = content(page.get(), round));
    }
}

fn read_all(world: &World, range: PageRange, expected: impl Fn(u64) -> Token) {
    for page in range.iter() {
        world.model.touch_and(page, |value| assert_eq!(*value, expected(page.get()), "{page}"));
    }
}

/// Writes and reads.
fn writer(world: &World, own: PageRange, rounds: u64) {
    for round in 1..rounds {
        write_all(world, own, round);
        read_all(world, own, |page| content(page, round));
    }
}

/// Drops its pages with `madvise` and writes anew.
fn dropper(world: &World, own: PageRange) {
    for round in 1..ROUNDS {
        write_all(world, own, round);
        let half = own.slice(PageCount::new(round % STRETCH), PageCount::new(STRETCH / 2));
        world.model.remove(half);
        world.model.wait_until_read();
        world.model.zap_own(half);
        read_all(world, half, |_| ZERO);
        read_all(world, own, |page| if half.iter().any(|p| p.get() == page) { ZERO } else { content(page, round) });
    }
}

/// Unmaps its pages and maps new ones.
fn unmapper(world: &World, own: PageRange) {
    for round in 1..ROUNDS {
        write_all(world, own, round);
        world.model.unmap(own);
        world.model.wait_until_read();
        world.model.map(own, false);
        // Others may have changed their mappings; then their events are read first.
        while !world.model.adopt(own, Region::default()) {
            world.model.wait_for_an_event();
        }
        read_all(world, own, |_| ZERO);
    }
}

/// Moves its pages to and fro between two places.
fn mover(world: &World, own: PageRange, other: PageRange) {
    let (mut here, mut there) = (own, other);
    for round in 1..ROUNDS {
        write_all(world, here, round);
        world.model.remap(here, there.start());
        world.model.wait_until_read();
        let moved = here;
        read_all(world, there, |page| {
            let offset = page - there.start().get();
            content(moved.start().get() + offset, round)
        });
        (here, there) = (there, here);
    }
}

/// Forks; the model compares what the children find.
fn forker(world: &World, own: PageRange) {
    for round in 1..ROUNDS {
        write_all(world, own, round);
        world.model.fork(own);
        world.model.wait_until_read();
    }
}

fn migrator(world: &World, all: PageRange, done: &AtomicBool, seed: u64) -> u64 {
    let mut dice = Dice(seed);
    let mut moved = 0;
    while !done.load(Ordering::Relaxed) {
        let target = match dice.throw(5) {
            4 => Target::System,
            id => Target::Device(DeviceId::new(u8::try_from(id).unwrap())),
        };
        let part = all.slice(PageCount::new(dice.throw(all.pages().get())), PageCount::new(1 + dice.throw(120)));
        match dice.throw(40) {
            0 => _ = world.engine.bring_all_home(),
            1 => {
                world.engine.exclude(part);
                world.engine.include(part);
            }
            _ => moved += world.engine.migrate(part, Request::all_to(target)).moved().get(),
        }
    }
    moved
}

#[test]
fn no_page_is_lost_and_no_thread_left_asleep() {
    stress(World::threaded(80));
}

#[test]
fn no_page_is_lost_and_no_thread_left_asleep_where_devices_complete_late() {
    stress(World::threaded(80).giving(Gives::Late));
}

#[test]
fn no_page_is_lost_and_no_thread_left_asleep_where_devices_can_be_read() {
    stress(World::threaded(80).giving(Gives::Read));
}

fn stress(world: World) {
    let world = world.with_nothing_in(FIRST, 7 * STRETCH);
    let all = world.at(FIRST, 8 * STRETCH);
    let done = AtomicBool::new(false);
    let moved = thread::scope(|scope| {
        let (world, done) = (&world, &done);
        let handler = scope.spawn(|| world.model.handle());
        let migrators = [1, 2].map(|seed| scope.spawn(move || migrator(world, all, done, seed)));
        let program = [
            scope.spawn(|| writer(world, stretch(world, 0), ROUNDS)),
            scope.spawn(|| dropper(world, stretch(world, 1))),
            scope.spawn(|| unmapper(world, stretch(world, 2))),
            scope.spawn(|| mover(world, stretch(world, 3), stretch(world, 7))),
            scope.spawn(|| forker(world, stretch(world, 4))),
            scope.spawn(|| writer(world, stretch(world, 5), ROUNDS)),
            scope.spawn(|| dropper(world, stretch(world, 6))),
        ];
        let program = program.map(|thread| thread.join().is_ok());
        done.store(true, Ordering::Relaxed);
        let moved = migrators.map(|thread| thread.join());
        world.model.stop_handler();
        let handled = handler.join().is_ok();
        assert!(handled && program.into_iter().all(|ok| ok), "a thread failed; its message is above");
        moved.map(|moved| moved.unwrap())
    });
    assert!(moved.iter().sum::<u64>() > 0, "something was migrated");
    world.verify();
}

/// The blocks of the test with overlays, and of each how much the threads use.
const BLOCKS: u64 = 2;
const OVERLAY_ROUNDS: u64 = 300;

/// Writes, drops half of it, perhaps announced late, and reads what is left: of what was dropped while it was laid over, the old bytes may be.
fn overlay_dropper(world: &World, own: PageRange) {
    for round in 1..OVERLAY_ROUNDS {
        write_all(world, own, round);
        let half = own.slice(PageCount::new(round % STRETCH), PageCount::new(STRETCH / 2));
        if round.is_multiple_of(3) {
            world.model.remove_late(half);
            thread::yield_now();
            world.model.raise_late();
        } else {
            world.model.remove(half);
        }
        world.model.wait_until_read();
        world.model.zap_own(half);
        for page in own.iter() {
            let left = content(page.get(), round);
            let dropped = half.contains(page);
            world
                .model
                .touch_and(page, |value| assert!(*value == left || dropped && *value == ZERO, "{page}: {value}"));
        }
    }
}

/// Forks, as one who announces it: first all that is laid goes home.
fn overlay_forker(world: &World, own: PageRange, all: PageRange) {
    for round in 1..OVERLAY_ROUNDS / 10 {
        write_all(world, own, round);
        world.engine.hold_exchanges();
        loop {
            let laid = world.engine.laid_in(all);
            if laid.is_empty() {
                break;
            }
            for block in laid {
                let _ = world.engine.migrate(block, Request::all_to(Target::System));
            }
        }
        world.model.fork(own);
        world.model.wait_until_read();
        world.engine.release_exchanges();
    }
}

fn overlay_migrator(world: &World, done: &AtomicBool, seed: u64) {
    let mut dice = Dice(seed);
    while !done.load(Ordering::Relaxed) {
        let block = world.at(512 * dice.throw(BLOCKS), 512);
        let target = match dice.throw(8) {
            0 => Target::System,
            id @ 1..4 => Target::Device(DeviceId::new(u8::try_from(id).unwrap())),
            4..6 => Target::Device(OVERLAY_B),
            _ => Target::Device(OVERLAY),
        };
        match dice.throw(20) {
            0 => _ = world.engine.bring_all_home(),
            1 | 2 => {
                let part = block.slice(PageCount::new(dice.throw(512)), PageCount::new(1 + dice.throw(120)));
                let _ = world.engine.migrate(part, Request::all_to(target));
            }
            _ => _ = world.engine.migrate(block, Request::all_to(target)),
        }
    }
}

#[test]
fn no_page_is_lost_where_blocks_are_laid_and_no_thread_left_asleep() {
    let owned = Region { owned: true, ..Region::default() };
    let world = World::with_overlays(true).with_region(0, 512 * BLOCKS, owned);
    let all = world.at(0, 512 * BLOCKS);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (world, done) = (&world, &done);
        let handler = scope.spawn(|| world.model.handle());
        write_all(world, all, 0);
        let migrators = [1, 2].map(|seed| scope.spawn(move || overlay_migrator(world, done, seed)));
        let program = [
            scope.spawn(|| writer(world, world.at(0, STRETCH), OVERLAY_ROUNDS)),
            scope.spawn(|| overlay_dropper(world, world.at(100, STRETCH))),
            scope.spawn(|| overlay_dropper(world, world.at(300, STRETCH))),
            scope.spawn(|| writer(world, world.at(512 - STRETCH / 2, STRETCH), OVERLAY_ROUNDS)),
            scope.spawn(|| overlay_dropper(world, world.at(700, STRETCH))),
            scope.spawn(|| overlay_forker(world, world.at(800, STRETCH), all)),
        ];
        let program = program.map(|thread| thread.join().is_ok());
        done.store(true, Ordering::Relaxed);
        let migrated = migrators.map(|thread| thread.join().is_ok());
        world.model.stop_handler();
        let handled = handler.join().is_ok();
        assert!(handled && program.iter().chain(&migrated).all(|ok| *ok), "a thread failed; its message is above");
    });
    let exchanged = world.model.lock().steps().iter().filter(|kind| **kind == StepKind::Exchanged).count();
    assert!(exchanged > 0, "blocks were laid and lifted");
    world.verify();
}

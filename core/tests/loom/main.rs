//! The small protocols, in every interleaving of two or three threads; where there are too many, with a bound on involuntary switches.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p hetmem-core --release --test loom
//! ```
#![cfg(loom)]

mod mirror;
mod world;

use hetmem_core::fault::FaultResolution;
use hetmem_core::frames::{FrameDescriptor, FrameTable, References, Released};
use hetmem_core::migrate::{Collected, Request, Target};
use hetmem_core::port::{FaultPath, Host};
use hetmem_core::slot::{Frame, Slot};
use hetmem_core::space::{Block, Region};
use hetmem_core::sync::atomic::{AtomicU64, Ordering};
use hetmem_core::sync::{Arc, lock};
use hetmem_core::units::{FrameIndex, PageCount};
use loom::thread;
use world::{COHERENT, CONTENT, Event, PAGE, PRIVATE, World, page};

/// More involuntary switches than any of these tests has room for.
const ANY: usize = 30;

/// Explores all interleavings with at most so many involuntary switches.
fn explore(switches: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(switches);
    model.max_branches = 100_000;
    model.check(test);
}

// ---- descriptors ------------------------------------------------------------------------------------------------------

/// What counts who refers to a frame: of a device, or a place of the pool.
trait Counted: Default + Send + Sync + 'static {
    fn allocate(&self);
    fn acquire(&self) -> bool;
    fn release(&self) -> Released;
}

impl Counted for FrameDescriptor {
    fn allocate(&self) {
        self.allocate(PAGE);
    }
    fn acquire(&self) -> bool {
        self.acquire()
    }
    fn release(&self) -> Released {
        self.release()
    }
}

impl Counted for References {
    fn allocate(&self) {
        self.allocate();
    }
    fn acquire(&self) -> bool {
        self.acquire()
    }
    fn release(&self) -> Released {
        self.release()
    }
}

#[test]
fn the_last_holder_of_a_frame_sees_what_all_others_did() {
    explore(ANY, last_holder_sees_all::<FrameDescriptor>);
    explore(ANY, last_holder_sees_all::<References>);
}

fn last_holder_sees_all<C: Counted>() {
    let frame = Arc::new((C::default(), [AtomicU64::new(0), AtomicU64::new(0)]));
    frame.0.allocate();
    assert!(frame.0.acquire());
    let hold = |(descriptor, work): &(C, [AtomicU64; 2]), who: usize| {
        work[who].store(1, Ordering::Relaxed);
        let last = descriptor.release() == Released::Last;
        if last {
            // The next use of the frame needs no ordering of its own.
            assert_eq!(work[1 - who].load(Ordering::Relaxed), 1);
        }
        last
    };
    let other = {
        let frame = Arc::clone(&frame);
        thread::spawn(move || hold(&frame, 0))
    };
    let mine = hold(&frame, 1);
    assert!(mine ^ other.join().unwrap(), "exactly one is the last");
    assert!(!frame.0.acquire(), "it is free");
}

#[test]
fn a_reference_to_a_frame_is_taken_in_time_or_not_at_all() {
    explore(ANY, reference_is_taken_in_time::<FrameDescriptor>);
    explore(ANY, reference_is_taken_in_time::<References>);
}

fn reference_is_taken_in_time<C: Counted>() {
    let frame = Arc::new(C::default());
    frame.allocate();
    let reader = {
        let frame = Arc::clone(&frame);
        thread::spawn(move || frame.acquire() && frame.release() == Released::Last)
    };
    let last = frame.release() == Released::Last;
    assert!(last ^ reader.join().unwrap(), "exactly one gives it back to the free set");
    frame.allocate();
}

#[test]
fn a_frame_belongs_to_one_page_at_a_time() {
    explore(ANY, || {
        let table = Arc::new((FrameTable::new(PageCount::ONE), AtomicU64::new(0)));
        let user = |table: &(FrameTable, AtomicU64)| {
            let Some(run) = table.0.allocate(PageCount::ONE, PAGE) else { return };
            assert_eq!(table.1.swap(1, Ordering::Relaxed), 0, "nobody else has it");
            table.1.store(0, Ordering::Relaxed);
            assert_eq!(table.0.release(run, |_| {}), PageCount::ONE);
        };
        let other = {
            let table = Arc::clone(&table);
            thread::spawn(move || user(&table))
        };
        user(&table);
        other.join().unwrap();
        table.0.check();
        assert!(table.0.used().is_zero());
    });
}

#[test]
fn a_frame_that_is_being_cleared_is_not_missed() {
    explore(ANY, || {
        // The frame's content, which only who has it touches.
        let table = Arc::new((FrameTable::new(PageCount::ONE), AtomicU64::new(0)));
        let run = table.0.allocate(PageCount::ONE, PAGE).unwrap();
        table.1.store(1, Ordering::Relaxed);
        assert_eq!(table.0.release(run, |_| {}), PageCount::ONE);
        table.0.age();
        let clearer = {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                let mut cleared = false;
                table.0.clear_old(|_| {
                    assert_eq!(table.1.swap(0, Ordering::Relaxed), 1);
                    cleared = true;
                });
                cleared
            })
        };
        let run = table.0.allocate(PageCount::ONE, PAGE).expect("it is free, being cleared or not");
        let found = table.1.swap(2, Ordering::Relaxed);
        assert_eq!(table.0.release_empty(run, |_| {}), PageCount::ONE);
        let cleared = clearer.join().unwrap();
        assert_eq!((found, table.1.load(Ordering::Relaxed)), (u64::from(!cleared), 2));
        assert!(!table.0.has_resting());
        table.0.check();
    });
}

// ---- blocks -----------------------------------------------------------------------------------------------------------

#[test]
fn who_waits_for_a_busy_page_is_notified() {
    explore(ANY, || {
        let frame = Frame { device: PRIVATE, index: FrameIndex::new(0) };
        let block = Arc::new(Block::default());
        for page in [0, 1] {
            block.lock().set(page, Slot::Unmapped { frame, busy: false });
            block.lock().set(page, Slot::Unmapped { frame, busy: true });
        }
        // Page 0 settles while page 1 is still busy, then page 1.
        let waiters = [0, 1].map(|page| {
            let block = Arc::clone(&block);
            thread::spawn(move || {
                let mut state = block.lock();
                while matches!(state.slot(page), Slot::Unmapped { busy: true, .. }) {
                    state = block.wait_settled(state);
                }
            })
        });
        for page in [0, 1] {
            let mut state = block.lock();
            state.set(page, Slot::System);
            if state.take_waited() {
                block.notify_settled();
            }
        }
        for waiter in waiters {
            waiter.join().unwrap();
        }
        block.lock().check();
    });
}

// ---- the engine -------------------------------------------------------------------------------------------------------

#[test]
fn a_touch_during_a_migration_finds_the_page() {
    for device in [PRIVATE, COHERENT] {
        explore(ANY, move || {
            let world = World::new();
            let migration = world.spawn(move |world| world.migrate(Target::Device(device)));
            assert_eq!(world.touch(), CONTENT);
            migration.join().unwrap();
            world.engine.check();
            assert_eq!(world.touch(), CONTENT);
        });
    }
}

#[test]
fn a_touch_by_signal_during_a_migration_finds_the_page() {
    for is_readable in [false, true] {
        explore(ANY, move || {
            let world = World::on_private(is_readable);
            let migration = world.spawn(|world| world.migrate(Target::System));
            assert_eq!(world.touch_by_signal(), CONTENT);
            migration.join().unwrap();
            world.engine.check();
        });
    }
}

#[test]
fn a_touch_while_a_phase_is_dropped_finds_the_page() {
    for copied in [false, true] {
        explore(ANY, move || {
            let world = World::new();
            let request = Request::all_to(Target::Device(PRIVATE));
            let rollback = world.spawn(move |world| {
                let collected = Collected::collect(&world.engine, page(), Region::default(), request);
                if copied {
                    drop(collected.copy());
                }
            });
            assert_eq!(world.touch(), CONTENT);
            rollback.join().unwrap();
            world.engine.check();
            assert_eq!(world.slot(), Slot::System);
        });
    }
}

/// The fault was reported before the page came by another thread's touch; the block comes into being at the same time.
#[test]
fn a_late_fault_puts_no_zeros_where_a_page_was_taken_out() {
    explore(ANY, || {
        let world = World::new();
        let migration = world.spawn(|world| world.migrate(Target::Device(PRIVATE)));
        let _ = world.engine.fault(PAGE, FaultPath::Thread);
        migration.join().unwrap();
        world.engine.check();
        assert_eq!(world.touch(), CONTENT);
    });
}

#[test]
fn two_touches_of_one_page_make_one_migration() {
    for is_readable in [false, true] {
        explore(ANY, move || {
            let world = World::on_private(is_readable);
            let other = world.spawn(World::touch);
            assert_eq!(world.touch(), CONTENT);
            assert_eq!(other.join().unwrap(), CONTENT);
            assert_eq!(world.engine.counters().pages_migrated_to_system.load(Ordering::Relaxed), 1);
            world.engine.check();
        });
    }
}

/// Two threads serve: whichever reads the event, the other puts nothing where the page was.
#[test]
fn an_unmapping_read_by_one_thread_is_known_to_another_that_serves_a_touch() {
    for is_readable in [false, true] {
        explore(4, move || {
            let world = World::on_private(is_readable);
            let servers = [(); 2].map(|()| {
                world.spawn(|world| {
                    world.handle_if_any();
                    let _ = world.engine.fault(PAGE, FaultPath::Thread);
                })
            });
            world.raise(Event::Unmap(page()));
            servers.into_iter().for_each(|server| server.join().unwrap());
            world.handle_if_any();
            assert_eq!(world.slot(), Slot::System);
            assert!(lock(&world.shared.memory).present.is_empty(), "nothing is where nothing is mapped");
            assert!(world.engine.devices().iter().all(|device| device.pagemap().frames.used().is_zero()));
            world.engine.check();
        });
    }
}

#[test]
fn an_unmapping_during_a_migration_leaves_nothing_behind() {
    for (from, to) in [(None, COHERENT), (Some(PRIVATE), COHERENT), (Some(COHERENT), PRIVATE)] {
        explore(ANY, move || {
            let world = from.map_or_else(World::new, World::on_device);
            let migration = world.spawn(move |world| world.migrate(Target::Device(to)));
            world.call(Event::Unmap(page()));
            migration.join().unwrap();
            assert_eq!(world.slot(), Slot::System);
            assert!(world.engine.devices().iter().all(|device| device.pagemap().frames.used().is_zero()));
            world.engine.check();
        });
    }
}

#[test]
fn an_unmapping_during_a_touch_wakes_the_toucher() {
    explore(ANY, || {
        let world = World::on_device(PRIVATE);
        let unmapping = world.spawn(|world| world.call(Event::Unmap(page())));
        // The touch as far as the kernel goes; what it finds afterwards is a page or a segmentation fault.
        lock(&world.shared.memory).waiters.insert(PAGE.get());
        while world.engine.fault(PAGE, FaultPath::Thread) == FaultResolution::EventsPending {
            world.engine.host().await_events();
        }
        let mut memory = lock(&world.shared.memory);
        while memory.waiters.contains(&PAGE.get()) {
            memory = world.shared.changed.wait(memory).unwrap();
        }
        drop(memory);
        unmapping.join().unwrap();
        world.engine.check();
    });
}

#[test]
fn a_removed_page_does_not_come_back_by_a_touch_under_way() {
    let places: [fn() -> World; 3] =
        [|| World::on_private(false), || World::on_private(true), || World::on_device(COHERENT)];
    for place in places {
        explore(3, move || {
            let world = place();
            let other = world.spawn(World::touch);
            let handler = world.spawn(World::handle);
            world.raise(Event::Remove(page()));
            // The removal is carried out as soon as the event was read, be it applied or not.
            world.engine.host().await_events();
            world.zap();
            assert_eq!(world.touch(), 0);
            other.join().unwrap();
            handler.join().unwrap();
            world.engine.check();
            assert_eq!(world.touch(), 0);
        });
    }
}

#[test]
fn a_removed_page_never_comes_back() {
    for device in [PRIVATE, COHERENT] {
        explore(5, move || {
            let world = World::new();
            let migration = world.spawn(move |world| world.migrate(Target::Device(device)));
            world.call(Event::Remove(page()));
            world.zap();
            assert_eq!(world.touch(), 0);
            migration.join().unwrap();
            assert_eq!(world.touch(), 0);
            world.engine.check();
        });
    }
}

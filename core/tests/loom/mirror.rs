//! A table that mirrors where a page is, against whoever moves it.

use hetmem_core::device_table::{Await, DeviceTable, Entry, Route};
use hetmem_core::engine::Residency;
use hetmem_core::migrate::Target;
use hetmem_core::notifier::{Event, Notice, Notifiers, Subscription};
use hetmem_core::port::Access;
use hetmem_core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use hetmem_core::sync::{Arc, Mutex, lock};
use hetmem_core::units::PageCount;
use loom::thread;

use crate::world::{CONTENT, PAGE, PRIVATE, World, page};
use crate::{ANY, explore};

/// A device's table of one entry: where it believes the page to be.
#[derive(Default)]
struct Table(Mutex<Option<u64>>);

/// What is mirrored: the page's place, and whether it is on its way.
#[derive(Default)]
struct Truth(AtomicU64);

fn erase(table: &Arc<Table>) -> impl Fn(&Notice<'_>) + Send + Sync + 'static {
    let table = Arc::clone(table);
    move |notice| {
        let mut entry = lock(&table.0);
        notice.set_seq();
        *entry = None;
    }
}

/// One round of the protocol; says whether the table was filled.
fn mirror(subscription: &Subscription, table: &Table, truth: &Truth) -> bool {
    let seq = subscription.read_begin();
    let place = truth.0.load(Ordering::Relaxed);
    let mut entry = lock(&table.0);
    if subscription.read_retry(seq) {
        return false;
    }
    *entry = Some(place);
    true
}

/// Moves the page on; the table knows nothing of it from the start to the end.
fn change(notifiers: &Notifiers, table: &Table, truth: &Truth) {
    let invalidation = notifiers.start(page(), Event::Migrate(None), true);
    assert_eq!(*lock(&table.0), None, "an entry is used although the page is being moved");
    truth.0.fetch_add(1, Ordering::Relaxed);
    assert_eq!(*lock(&table.0), None, "an entry was made while the page is being moved");
    drop(invalidation);
}

fn right_or_empty(table: &Table, truth: &Truth) {
    // With the lock held, no change that concerns the entry gets past its start.
    let entry = lock(&table.0);
    assert!(entry.is_none_or(|place| place == truth.0.load(Ordering::Relaxed)), "the table is stale");
}

#[test]
fn a_table_is_never_stale() {
    explore(ANY, || {
        let (notifiers, table, truth) = (Notifiers::default(), Arc::new(Table::default()), Arc::new(Truth::default()));
        let subscription = notifiers.subscribe(page(), erase(&table)).unwrap();
        let changer = {
            let (notifiers, table, truth) = (notifiers.clone(), Arc::clone(&table), Arc::clone(&truth));
            thread::spawn(move || change(&notifiers, &table, &truth))
        };
        let _ = mirror(&subscription, &table, &truth);
        right_or_empty(&table, &truth);
        changer.join().unwrap();
        right_or_empty(&table, &truth);
        assert!(mirror(&subscription, &table, &truth), "with nobody else there, the first try succeeds");
    });
}

#[test]
fn a_table_is_never_stale_with_two_who_change() {
    explore(3, || {
        let (notifiers, table, truth) = (Notifiers::default(), Arc::new(Table::default()), Arc::new(Truth::default()));
        let subscription = notifiers.subscribe(page(), erase(&table)).unwrap();
        let changers = [(); 2].map(|()| {
            let (notifiers, table, truth) = (notifiers.clone(), Arc::clone(&table), Arc::clone(&truth));
            thread::spawn(move || change(&notifiers, &table, &truth))
        });
        let _ = mirror(&subscription, &table, &truth);
        for changer in changers {
            changer.join().unwrap();
        }
        right_or_empty(&table, &truth);
        assert!(mirror(&subscription, &table, &truth));
    });
}

#[test]
fn who_subscribes_during_a_change_waits_for_it() {
    // The change concerns another subscription too (then the intervals stay as they are meanwhile), or no other.
    for other in [false, true] {
        explore(ANY, move || {
            let notifiers = Notifiers::default();
            let (table, truth) = (Arc::new(Table::default()), Arc::new(Truth::default()));
            let _other = other.then(|| notifiers.subscribe(page(), |notice| notice.set_seq()).unwrap());
            let changer = {
                let (notifiers, truth) = (notifiers.clone(), Arc::clone(&truth));
                thread::spawn(move || {
                    let invalidation = notifiers.start(page(), Event::Unmap, true);
                    truth.0.fetch_add(1, Ordering::Relaxed);
                    drop(invalidation);
                })
            };
            let subscription = notifiers.subscribe(page(), erase(&table)).unwrap();
            let _ = mirror(&subscription, &table, &truth);
            changer.join().unwrap();
            right_or_empty(&table, &truth);
        });
    }
}

#[test]
fn no_callback_runs_after_its_subscription_has_ended() {
    explore(ANY, || {
        let notifiers = Notifiers::default();
        let ended = Arc::new(AtomicBool::new(false));
        let subscription = {
            let ended = Arc::clone(&ended);
            let callback = move |notice: &Notice<'_>| {
                assert!(!ended.load(Ordering::Relaxed));
                notice.set_seq();
                assert!(!ended.load(Ordering::Relaxed));
            };
            notifiers.subscribe(page(), callback).unwrap()
        };
        let changers = [(); 1].map(|()| {
            let notifiers = notifiers.clone();
            thread::spawn(move || drop(notifiers.start(page(), Event::Unmap, true)))
        });
        drop(subscription);
        ended.store(true, Ordering::Relaxed);
        for changer in changers {
            changer.join().unwrap();
        }
        assert!(notifiers.is_empty() && !notifiers.any_in(page()));
    });
}

#[test]
fn a_change_elsewhere_is_no_reason_to_wait_or_retry() {
    explore(ANY, || {
        let (notifiers, table, truth) = (Notifiers::default(), Arc::new(Table::default()), Arc::new(Truth::default()));
        let subscription = notifiers.subscribe(page(), erase(&table)).unwrap();
        let changer = {
            let notifiers = notifiers.clone();
            let elsewhere = hetmem_core::units::PageRange::page_of(PAGE.add_pages(PageCount::ONE));
            thread::spawn(move || drop(notifiers.start(elsewhere, Event::Unmap, true)))
        };
        assert!(mirror(&subscription, &table, &truth));
        changer.join().unwrap();
        assert!(lock(&table.0).is_some());
    });
}

/// Where the engine says that the page is, as a number for the table; `None` while it moves.
fn place(world: &World) -> Option<u64> {
    match world.engine.residency(page())[0] {
        Residency::System => Some(0),
        Residency::Device(device) => Some(1 + device.index() as u64),
        Residency::Migrating => None,
    }
}

/// The engine moves the page, by a migration or a touch, while a device begins to mirror it.
#[test]
fn whoever_mirrors_while_the_engine_moves_a_page_has_no_stale_entry() {
    for touch in [false, true] {
        explore(2, move || {
            let world = if touch { World::on_device(PRIVATE) } else { World::new() };
            let mover = world.spawn(move |world| {
                if touch {
                    assert_eq!(world.touch(), CONTENT);
                } else {
                    world.migrate(Target::Device(PRIVATE));
                }
            });
            let table = Arc::new(Table::default());
            let subscription = world.engine.subscribe(page(), erase(&table)).unwrap();
            let seq = subscription.read_begin();
            let found = place(&world);
            {
                let mut entry = lock(&table.0);
                if !subscription.read_retry(seq) {
                    *entry = found;
                }
            }
            mover.join().unwrap();
            let entry = *lock(&table.0);
            assert!(entry.is_none() || entry == place(&world), "{entry:?} is where the page was");
            world.engine.check();
        });
    }
}

/// A use of a frame is over before its erasure returns: the frame may go to another page then.
#[test]
fn an_erasure_waits_for_uses_of_the_frame() {
    explore(ANY, || {
        let table = Arc::new(DeviceTable::default());
        let notifiers = Notifiers::default();
        let subscription = notifiers.subscribe(page(), |notice| notice.set_seq()).unwrap();
        let seq = subscription.read_begin();
        let entry = Entry { route: Route::Frame(PAGE), writable: true, exclusive: false };
        assert!(table.program(&subscription, seq, std::iter::once((PAGE, entry))));
        let taken = Arc::new(AtomicBool::new(false));
        let user = {
            let (table, taken) = (Arc::clone(&table), Arc::clone(&taken));
            thread::spawn(move || {
                let leaf = table.leaf(PAGE.block());
                if let Some(_using) = leaf.enter(0, Access::Write) {
                    assert!(!taken.load(Ordering::Relaxed), "the frame belongs to another page");
                }
            })
        };
        table.erase(page(), Await::Frames);
        taken.store(true, Ordering::Relaxed);
        user.join().unwrap();
        assert_eq!(table.entry(PAGE), None);
    });
}

//! A device that mirrors memory: a table of where the program's pages are, filled by range faults and emptied by notices, while another thread moves
//! the pages.
//!
//! The rule of [`hetmem::mirror`] is what makes the table right whenever it is looked at under its lock.
//!
//! ```sh
//! cargo run --release -p hetmem --example mirror
//! ```
#![expect(clippy::print_stdout, reason = "an example prints what it found")]

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hetmem::mirror::{MirrorPage, Place, RangeFault, RangeFaultError, Subscription, Want};
use hetmem::{DeviceId, FaultPath, Mapping, PageCount, Request, Residency, Runtime, Target};

const PRIVATE: DeviceId = DeviceId::new(0);
const COHERENT: DeviceId = DeviceId::new(1);
const PAGES: PageCount = PageCount::new(64);
/// Migrations during which the table is filled.
const MOVES: usize = 300;

/// The device's table: an answer for each page, or nothing since something has changed.
type Table = Mutex<Vec<MirrorPage>>;

fn locked(table: &Table) -> MutexGuard<'_, Vec<MirrorPage>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

fn main() -> Result<(), Box<dyn Error>> {
    let builder = Runtime::builder().device("private:emulated,size=16M".parse()?);
    let runtime = builder.device("coherent:emulated,size=16M".parse()?).start()?;
    let mapping = runtime.map(PAGES.bytes(), FaultPath::Thread)?;
    mapping.words().iter().for_each(|word| word.store(1, Relaxed));
    let range = mapping.range();

    let table: Arc<Table> = Arc::default();
    let notices = Arc::new(AtomicU64::new(0));
    let subscription = runtime.subscribe(range, {
        let (table, notices) = (Arc::clone(&table), Arc::clone(&notices));
        move |notice| {
            let mut table = locked(&table);
            notice.set_seq();
            table.clear();
            notices.fetch_add(1, Relaxed);
        }
    })?;

    // Nothing changes here: the table says what the runtime says.
    for (target, place) in
        [(Target::System, Residency::System), (Target::Device(COHERENT), Residency::Device(COHERENT))]
    {
        runtime.migrate(range, Request::all_to(target));
        drop(fill(&runtime, &subscription, &table)?);
        if !locked(&table).iter().all(|page| page.is_writable() && residency(*page) == Some(place)) {
            return Err(format!("the table does not say {place:?}").into());
        }
    }

    // Another thread moves pages meanwhile. Under the lock the table is right: who moves them tells this device first, and waits for the lock.
    let before = notices.load(Relaxed);
    let fills = std::thread::scope(|scope| {
        let mover = scope.spawn(|| move_about(&runtime, &mapping));
        let mut fills = 0;
        while fills == 0 || !mover.is_finished() {
            check(&runtime, &subscription, &table)?;
            fills += 1;
        }
        Ok::<_, String>(fills)
    })?;
    let notices = notices.load(Relaxed) - before;
    println!("{fills} times the table of {} pages was filled and right; {notices} notices emptied it", PAGES.get());
    if notices < MOVES as u64 { Err("a migration was not told".into()) } else { Ok(()) }
}

/// Fills the table, for writing: begin, ask, lock; changed meanwhile? begin anew. Returns it locked.
fn fill<'t>(
    runtime: &Runtime,
    subscription: &Subscription,
    table: &'t Table,
) -> Result<MutexGuard<'t, Vec<MirrorPage>>, RangeFaultError> {
    let mut pages = vec![MirrorPage::default(); PAGES.as_usize()];
    loop {
        let seq = subscription.read_begin();
        let unless_changed = Some((subscription, seq));
        let request = RangeFault { want: Want::Write, unless_changed, ..RangeFault::default() };
        match runtime.range_fault(subscription.range(), request, &mut pages) {
            Ok(()) => {}
            // What was found is of a moment in which it was being changed.
            Err(_) if subscription.check_retry(seq) => continue,
            Err(error) => return Err(error),
        }
        let mut table = locked(table);
        if !subscription.read_retry(seq) {
            *table = pages;
            return Ok(table);
        }
    }
}

/// Fills the table, and looks at it while nothing can have changed.
fn check(runtime: &Runtime, subscription: &Subscription, table: &Table) -> Result<(), String> {
    let table = fill(runtime, subscription, table).map_err(|error| error.to_string())?;
    // Of what is on a private device of another's, which had come home, none may be left.
    let right = table.len() == PAGES.as_usize() && table.iter().all(|page| page.is_writable() && !page.is_private());
    if right { Ok(()) } else { Err(format!("the table is not right: {table:?}")) }
}

fn residency(page: MirrorPage) -> Option<Residency> {
    Some(match page.place()? {
        Place::System | Place::Zero => Residency::System,
        Place::Device(frame) => Residency::Device(frame.device),
    })
}

/// Moves all pages from place to place, of which each page that can moves.
fn move_about(runtime: &Runtime, mapping: &Mapping) {
    let targets = [Target::Device(PRIVATE), Target::Device(COHERENT), Target::System];
    for target in targets.iter().cycle().take(MOVES) {
        runtime.migrate(mapping.range(), Request::all_to(*target));
    }
}

//! The first steps: memory of the program's goes to a device and comes back, by request and by touches, and pointers stay the same.
//!
//! ```sh
//! cargo run --release -p hetmem --example out_and_home
//! ```
#![expect(clippy::print_stdout, reason = "an example prints what it found")]

use std::error::Error;
use std::sync::atomic::Ordering::Relaxed;

use hetmem::{ByteLen, DeviceId, FaultPath, KeptReason, PAGE_SIZE, PageCount, Request, Residency, Runtime, Target};

const PRIVATE: DeviceId = DeviceId::new(0);
const COHERENT: DeviceId = DeviceId::new(1);
const PAGES: usize = 256;
const WORDS: usize = ByteLen::new(PAGE_SIZE).as_usize() / 8;

fn main() -> Result<(), Box<dyn Error>> {
    let builder = Runtime::builder().device("private:emulated,size=16M".parse()?);
    let runtime = builder.device("coherent:emulated,size=16M".parse()?).start()?;
    let mapping = runtime.map(ByteLen::new(PAGES as u64 * PAGE_SIZE), FaultPath::Thread)?;
    let range = mapping.range();
    // The first word of each page but the last, which is never written.
    let first = |page: usize| &mapping.words()[page * WORDS];
    (0..PAGES - 1).for_each(|page| first(page).store(page as u64 + 1, Relaxed));
    let places = |of: Residency| runtime.residency(range).iter().filter(|at| **at == of).count();
    let step = |what: &str| {
        let (private, coherent) = (places(Residency::Device(PRIVATE)), places(Residency::Device(COHERENT)));
        println!("{what:<44} {private:>8} {coherent:>9} {:>7}", places(Residency::System));
        (private, coherent)
    };
    println!("{:<44} {:>8} {:>9} {:>7}", "pages are", "private", "coherent", "system");

    // Each page has an outcome: it moved, or it was kept for a reason.
    let outcomes = runtime.migrate(range, Request::all_to(Target::Device(PRIVATE)));
    expect(step("after a migration to the private device") == (PAGES - 1, 0), "all that was written moved")?;
    expect(outcomes.kept(KeptReason::Hole) == PageCount::ONE, "what was never written is no page")?;

    // A touch brings a page home, perhaps with its neighbours.
    expect(first(17).load(Relaxed) == 18, "the touch finds what was written")?;
    expect(step("after a touch of page 17").0 < PAGES - 1, "the touched page came home")?;

    // On a coherent device pages are used where they are.
    runtime.migrate(range, Request::all_to(Target::Device(COHERENT)));
    let right = (0..PAGES - 1).all(|page| first(page).fetch_add(1, Relaxed) == page as u64 + 1);
    expect(right, "pages are what they were")?;
    expect(step("after touches of pages on the coherent device") == (0, PAGES - 1), "no page left the device")?;

    runtime.migrate(range, Request::all_to(Target::System));
    expect(step("after a migration home") == (0, 0), "all pages are home")?;
    let right = (0..PAGES).all(|page| first(page).load(Relaxed) == if page < PAGES - 1 { page as u64 + 2 } else { 0 });
    expect(right, "pages are what they were, and a hole reads as zeros")?;

    let counted = runtime.statistics();
    println!("{} pages went out, {} came home", counted.pages_migrated_to_device, counted.pages_migrated_to_system);
    Ok(())
}

fn expect(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("it does not hold that {what}")) }
}

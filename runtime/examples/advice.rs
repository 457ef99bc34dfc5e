//! Who decides where pages are: advice that pins them, and devices that are emptied, removed and restored.
//!
//! ```sh
//! cargo run --release -p hetmem --example advice
//! ```
#![expect(clippy::print_stdout, reason = "an example prints what it found")]

use std::error::Error;
use std::sync::atomic::Ordering::Relaxed;

use hetmem::{
    Advice, ByteLen, DeviceId, FaultPath, FrameIndex, FrameRun, KeptReason, PAGE_SIZE, PageCount, Request, Residency,
    Runtime, Target,
};

const DEVICE: DeviceId = DeviceId::new(0);
const PAGES: PageCount = PageCount::new(64);
const HALF: PageCount = PageCount::new(32);

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = Runtime::builder().device("coherent:emulated,size=16M".parse()?).start()?;
    let mapping = runtime.map(PAGES.bytes(), FaultPath::Thread)?;
    let words = mapping.words();
    words.iter().enumerate().for_each(|(i, word)| word.store(i as u64, Relaxed));
    let range = mapping.range();
    let out = || runtime.migrate(range, Request::all_to(Target::Device(DEVICE)));
    let there = || runtime.residency(range).iter().filter(|at| **at == Residency::Device(DEVICE)).count() as u64;

    // What is pinned stays where it is, here and on a device.
    runtime.advise(range.slice(PageCount::ZERO, HALF), Advice::Pin)?;
    let outcomes = out();
    println!("pinned: {} pages moved, {} stayed", outcomes.moved().get(), outcomes.kept(KeptReason::Advised).get());
    expect(outcomes.moved() == HALF && outcomes.kept(KeptReason::Advised) == HALF, "half of the pages were pinned")?;
    runtime.advise(range, Advice::Unpin)?;
    expect(out().moved() == HALF && there() == PAGES.get(), "unpinned pages move")?;

    // A device that needs room sends pages home by their frames: nobody needs to know where they belong.
    let some = FrameRun { first: FrameIndex::new(0), pages: PageCount::new(16) };
    let evicted = runtime.evict(DEVICE, some);
    println!("evicted: {} pages came home from 16 frames", evicted.get());
    expect(evicted.get() == 16 && there() == PAGES.get() - 16, "what was in these frames came home")?;

    // A device that goes away is emptied, and takes no pages until it is back.
    runtime.remove_device(DEVICE)?;
    let outcomes = out();
    println!("removed: {} pages are there, {} found no frame", there(), outcomes.kept(KeptReason::NoFrame).get());
    expect(there() == 0 && outcomes.kept(KeptReason::NoFrame) == PAGES, "no page is on a removed device")?;
    runtime.restore_device(DEVICE);
    expect(out().moved() == PAGES, "a restored device takes pages")?;
    println!("restored: {} pages are there, {}", there(), ByteLen::new(runtime.statistics().devices[0].used_bytes));
    expect(runtime.statistics().devices[0].used_bytes == there() * PAGE_SIZE, "each page takes a frame")?;

    expect((0..).zip(words).all(|(i, word)| word.load(Relaxed) == i), "pages are what they were")?;
    Ok(())
}

fn expect(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("it does not hold that {what}")) }
}

//! Memory that the program has already: the pages inside a `Vec` go to a device and come back, and the `Vec` is used as ever.
//!
//! ```sh
//! cargo run --release -p hetmem --example adopted
//! ```
#![expect(clippy::print_stdout, reason = "an example prints what it found")]
#![expect(unsafe_code, reason = "the program says that its memory may be managed")]

use std::error::Error;

use hetmem::{DeviceId, FaultPath, PageRange, Request, Residency, Runtime, Target, VirtAddr};

const DEVICE: DeviceId = DeviceId::new(0);
const NUMBERS: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers: Vec<u64> = (0..NUMBERS).collect();
    let runtime = Runtime::builder().device("private:emulated,size=16M".parse()?).start()?;

    let pages = whole_pages(&numbers).ok_or("there is no whole page in the vector")?;
    // SAFETY: the pages hold numbers of the vector and nothing else: nothing of hetmem's, which has its own, and of no thread's. They are released
    // below, before the vector gives them back.
    unsafe { runtime.adopt(pages, FaultPath::Thread) }?;
    let moved = runtime.migrate(pages, Request::all_to(Target::Device(DEVICE))).moved();
    println!("{} of {} pages went to the device", moved.get(), pages.pages().get());
    if moved != pages.pages() || runtime.residency(pages).iter().any(|at| *at != Residency::Device(DEVICE)) {
        return Err("a page stayed".into());
    }

    // A hundred numbers here and there: the pages that are touched come home.
    let sum: u64 = numbers.iter().step_by(10_000).sum();
    numbers[17] += 1;
    let home = runtime.residency(pages).iter().filter(|at| **at == Residency::System).count();
    println!("{home} pages have come home with touches");

    // Before the memory is the allocator's again, all come home, and its management ends.
    runtime.release(pages)?;
    let right = (0..).zip(&numbers).all(|(i, number)| *number == if i == 17 { 18 } else { i });
    println!("{} bytes are managed", runtime.statistics().adopted_bytes);
    if !right || sum != (0..NUMBERS).step_by(10_000).sum::<u64>() || runtime.statistics().adopted_bytes > 0 {
        return Err("a number is not what it was, or something is managed still".into());
    }
    Ok(())
}

/// The pages of which every byte is in `of`.
fn whole_pages(of: &[u64]) -> Option<PageRange> {
    let bytes = of.as_ptr_range();
    let address = |at: *const u64| VirtAddr::new(at.expose_provenance() as u64);
    PageRange::between(address(bytes.start).page_up()?, address(bytes.end).page_down())
        .filter(|pages| !pages.is_empty())
}

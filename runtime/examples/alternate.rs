//! CPU and accelerator by turns on the same data: on a private device, on a coherent one, and with explicit copies.
//!
//! Each round both add one to a word of every page. The private device's pages come and go, the coherent device's stay where they
//! were placed, and explicit copies move everything twice, whatever is used.
//!
//! ```sh
//! cargo run --release -p hetmem --example alternate
//! ```
#![expect(clippy::print_stdout, reason = "an example prints what it found")]

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hetmem::accelerator::{AccessError, InPlace, OnMapping, Options};
use hetmem::{
    ByteLen, DeviceId, DeviceSpec, FaultPath, Mapping, PAGE_SIZE, PageCount, Request, Residency, Runtime, Target,
    VirtAddr,
};

const PRIVATE: DeviceId = DeviceId::new(0);
const COHERENT: DeviceId = DeviceId::new(1);
const PAGES: usize = 2048;
/// Words of a page.
const WORDS: usize = ByteLen::new(PAGE_SIZE).as_usize() / 8;
const ROUNDS: u64 = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let private: DeviceSpec = "private:emulated,size=64M".parse()?;
    let coherent: DeviceSpec = "coherent:emulated,size=64M".parse()?;
    let runtime = Runtime::builder().device(private).device(coherent).start()?;
    println!("{ROUNDS} rounds over {PAGES} pages, a word of each changed by accelerator and CPU");
    println!("{:<16} {:>14} {:>14} {:>12}", "", "pages moved", "MiB copied", "us a round");

    let mapping = new_data(&runtime)?;
    let device = mapping.accelerator(PRIVATE, direct())?;
    let migrate = || runtime.migrate(mapping.range(), Request::all_to(Target::Device(PRIVATE)));
    let (took, moved) = measure(&runtime, || {
        let kept = PAGES as u64 - migrate().moved().get();
        if kept > 0 {
            return Err(format!("{kept} pages did not move to the device").into());
        }
        on_device(&device, &mapping)?;
        on_cpu(mapping.words());
        Ok(0)
    })?;
    row("private", took, &moved);
    verify(mapping.words())?;

    let mapping = new_data(&runtime)?;
    runtime.migrate(mapping.range(), Request::all_to(Target::Device(COHERENT)));
    let device = mapping.accelerator(COHERENT, direct())?;
    let (took, moved) = measure(&runtime, || {
        on_device(&device, &mapping)?;
        on_cpu(mapping.words());
        Ok(0)
    })?;
    row("coherent", took, &moved);
    if runtime.residency(mapping.range()).iter().any(|page| *page != Residency::Device(COHERENT)) {
        return Err("a page left the coherent device".into());
    }
    verify(mapping.words())?;

    // The program's data are its own, and the device's memory is a mapping that only kernels use.
    let mut data: Vec<AtomicU64> = (0..PAGES * WORDS).map(|_| AtomicU64::new(0)).collect();
    let mapping = new_data(&runtime)?;
    runtime.migrate(mapping.range(), Request::all_to(Target::Device(PRIVATE)));
    let device = mapping.accelerator(PRIVATE, direct())?;
    let mut page = vec![0; WORDS * 8];
    let (took, moved) = measure(&runtime, || {
        let mut view = device.view();
        for (at, words) in mapping.range().iter().zip(data.chunks(WORDS)) {
            for (bytes, word) in page.chunks_exact_mut(8).zip(words) {
                bytes.copy_from_slice(&word.load(Relaxed).to_ne_bytes());
            }
            view.write(at, &page)?;
        }
        on_device(&device, &mapping)?;
        for (at, words) in mapping.range().iter().zip(data.chunks_mut(WORDS)) {
            view.read(at, &mut page)?;
            for (bytes, word) in page.chunks_exact(8).zip(words) {
                *word.get_mut() = u64::from_ne_bytes(bytes.try_into()?);
            }
        }
        on_cpu(&data);
        Ok(2 * PAGES as u64 * PAGE_SIZE)
    })?;
    row("explicit copies", took, &moved);
    verify(&data)
}

/// Populated memory on no device.
fn new_data(runtime: &Runtime) -> Result<Mapping, hetmem::Error> {
    let mapping = runtime.map(ByteLen::new(PAGES as u64 * PAGE_SIZE), FaultPath::Thread)?;
    mapping.words().chunks(WORDS).for_each(|page| page[0].store(0, Relaxed));
    Ok(mapping)
}

/// Nobody changes the mapping meanwhile, so accesses in place need no check.
fn direct() -> Options {
    Options { workers: 1, in_place: InPlace::Direct }
}

/// The pages in an order in which none follows its neighbour.
fn scattered(i: usize) -> usize {
    i * 1237 % PAGES
}

fn on_device(device: &OnMapping<'_>, mapping: &Mapping) -> Result<(), AccessError> {
    let first = mapping.range().start();
    device.launch(PAGES, |view, i| {
        let word: VirtAddr = first.add_pages(PageCount::new(scattered(i) as u64));
        let value = view.load(word)?;
        view.store(word, value + 1)
    })
}

fn on_cpu(words: &[AtomicU64]) {
    for i in 0..PAGES {
        words[scattered(i) * WORDS].fetch_add(1, Relaxed);
    }
}

fn verify(words: &[AtomicU64]) -> Result<(), Box<dyn Error>> {
    match words.chunks(WORDS).position(|page| page[0].load(Relaxed) != 2 * ROUNDS) {
        None => Ok(()),
        Some(page) => Err(format!("a change of page {page} was lost").into()),
    }
}

/// What moved in all rounds.
struct Moved {
    pages: u64,
    bytes: u64,
}

/// Does all rounds. `round` returns the bytes that it copied itself.
fn measure(
    runtime: &Runtime,
    mut round: impl FnMut() -> Result<u64, Box<dyn Error>>,
) -> Result<(Duration, Moved), Box<dyn Error>> {
    let (before, start) = (runtime.statistics(), Instant::now());
    let mut copied = 0;
    for _ in 0..ROUNDS {
        copied += round()?;
    }
    let took = start.elapsed();
    let after = runtime.statistics();
    let to_device = after.pages_migrated_to_device - before.pages_migrated_to_device;
    let home = after.pages_migrated_to_system - before.pages_migrated_to_system;
    Ok((took, Moved { pages: to_device + home, bytes: copied + after.bytes_copied - before.bytes_copied }))
}

fn row(name: &str, took: Duration, moved: &Moved) {
    let rounds = u128::from(ROUNDS);
    println!("{name:<16} {:>14} {:>14} {:>12}", moved.pages, moved.bytes >> 20, took.as_micros() / rounds);
}

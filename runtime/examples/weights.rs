//! Weights that are read from a mapped file, by an accelerator and by threads of the program at once: on a coherent device, on a private one, and
//! with explicit copies.
//!
//! On the coherent device both use the same pages in place: they go there once, and nothing moves afterwards. The private device's pages come
//! home to whoever reads them beside it, and have to leave again before each round. Explicit copies are made once, and the program needs two pointers
//! then, to the file and to the copy.
//!
//! ```sh
//! cargo run --release -p hetmem --example weights -- 512
//! ```
//!
//! The number is how many MiB the file has, 64 by default. It is a temporary one, gone at the end, however that comes.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example prints what it found")]
#![expect(unsafe_code, reason = "what is mapped of a file is lent as bytes by nobody else")]

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hetmem::accelerator::{AccessError, InPlace, OnMapping, Options};
use hetmem::{
    ByteLen, DeviceId, DeviceSpec, FaultPath, FileMapping, PAGE_SIZE, PageCount, PageRange, Request, Residency,
    Runtime, Target,
};

const PRIVATE: DeviceId = DeviceId::new(0);
const COHERENT: DeviceId = DeviceId::new(1);
/// Of the file, in MiB.
const SIZES: RangeInclusive<u64> = 1..=65_536;
const ROUNDS: u32 = 3;
/// The program's threads that read, beside one of the accelerator's.
const THREADS: usize = 2;
const PAGE: usize = ByteLen::new(PAGE_SIZE).as_usize();

fn main() -> ExitCode {
    let size = std::env::args().nth(1).unwrap_or_else(|| "64".to_owned());
    match read_all(&size) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weights: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read_all(size: &str) -> Result<(), Box<dyn Error>> {
    let mib = size.parse().ok().filter(|mib| SIZES.contains(mib));
    let mib: u64 = mib.ok_or_else(|| format!("`{size}` is no number of MiB from 1 to {}", SIZES.end()))?;
    let len = ByteLen::new(mib << 20);
    let (file, sum) = new_weights(len)?;
    // Each device has room for all of it, and a little more.
    let device = |kind: &str| format!("{kind}:emulated,size={}M", mib + 64).parse::<DeviceSpec>();
    let runtime = Runtime::builder().device(device("private")?).device(device("coherent")?).start()?;
    println!(
        "{mib} MiB of weights in a file, all of it read {ROUNDS} times by an accelerator and by the program at once"
    );
    println!("{:<18} {:>10} {:>12} {:>14} {:>14}", "", "placed ms", "a round ms", "pages moved", "MiB copied");

    let weights = runtime.map_file(&file, 0, len)?;
    let migrate = |to| runtime.migrate(weights.range(), Request::all_to(to)).moved();
    let pages = weights.range().pages();
    let kernels = weights.accelerator(COHERENT, direct())?;
    let coherent = measure(
        &runtime,
        || all(migrate(Target::Device(COHERENT)), pages),
        || {
            let read = at_once(|| on_device(&kernels, weights.range()), &weights)?;
            check("coherent", read, sum)
        },
    )?;
    row("coherent", &coherent);
    let places = runtime.residency(weights.range());
    if coherent.moved > 0 || places.iter().any(|page| *page != Residency::Device(COHERENT)) {
        return Err("a page moved on the coherent device".into());
    }
    drop(kernels);
    all(migrate(Target::System), pages)?;

    let kernels = weights.accelerator(PRIVATE, direct())?;
    let private = measure(
        &runtime,
        || Ok(()),
        || {
            // What the program's threads have read is not there any more.
            let _ = migrate(Target::Device(PRIVATE));
            let read = at_once(|| on_device(&kernels, weights.range()), &weights)?;
            check("private", read, sum)
        },
    )?;
    row("private", &private);
    drop(kernels);
    let _ = migrate(Target::System);

    // The device's memory is a mapping that only kernels use.
    let copy = runtime.map(len, FaultPath::Thread)?;
    let kernels = copy.accelerator(PRIVATE, direct())?;
    let mut explicit = measure(
        &runtime,
        || {
            copy.words().chunks(PAGE / 8).for_each(|page| page[0].store(0, Relaxed));
            all(runtime.migrate(copy.range(), Request::all_to(Target::Device(PRIVATE))).moved(), pages)?;
            let mut view = kernels.view();
            let pages = copy.range().iter().zip(bytes(&weights).chunks(PAGE));
            Ok(pages.into_iter().try_for_each(|(to, page)| view.write(to, page))?)
        },
        || {
            let read = at_once(|| on_device(&kernels, copy.range()), &weights)?;
            check("explicit copies", read, sum)
        },
    )?;
    // The zeros that were there before don't count.
    explicit.copied = len.get();
    row("explicit copies", &explicit);
    Ok(())
}

/// A file of `len` bytes that has no name any more, open to be read, and the sum of its words.
fn new_weights(len: ByteLen) -> Result<(File, u64), Box<dyn Error>> {
    let named = tempfile::NamedTempFile::new()?;
    let mut to = BufWriter::new(named.as_file());
    let mut sum = 0_u64;
    for i in 0..len.get() / 8 {
        let word = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bd1_e995;
        sum = sum.wrapping_add(word);
        to.write_all(&word.to_ne_bytes())?;
    }
    to.flush()?;
    drop(to);
    // As long as somebody has it open for writing, nothing of it leaves.
    Ok((File::open(named.path())?, sum))
}

/// Nobody changes the mapping meanwhile, so accesses in place need no check.
fn direct() -> Options {
    Options { workers: 1, in_place: InPlace::Direct }
}

/// What is mapped of the file.
fn bytes(weights: &FileMapping) -> &[u8] {
    // SAFETY: readable as long as the mapping is there; the file has no name, and nobody has it open for writing.
    unsafe { std::slice::from_raw_parts(weights.as_ptr(), weights.len()) }
}

fn sum_of(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().unwrap_or_default()));
    words.fold(0, u64::wrapping_add)
}

/// The sum of all words, as kernels read them.
fn on_device(kernels: &OnMapping<'_>, range: PageRange) -> Result<u64, AccessError> {
    let sum = AtomicU64::new(0);
    kernels.launch(range.pages().as_usize(), |view, i| {
        let mut page = [0; PAGE];
        view.read(range.start().add_pages(PageCount::new(i as u64)), &mut page)?;
        sum.fetch_add(sum_of(&page), Relaxed);
        Ok(())
    })?;
    Ok(sum.into_inner())
}

/// The sums that kernels and the program's threads come to, all at once.
fn at_once(
    kernels: impl FnOnce() -> Result<u64, AccessError> + Send,
    weights: &FileMapping,
) -> Result<[u64; 2], Box<dyn Error>> {
    let bytes = bytes(weights);
    std::thread::scope(|scope| {
        let kernels = scope.spawn(kernels);
        let parts = bytes.chunks(bytes.len().div_ceil(THREADS).next_multiple_of(PAGE));
        let threads: Vec<_> = parts.map(|part| scope.spawn(|| sum_of(part))).collect();
        let sums = threads.into_iter().map(|thread| thread.join().unwrap_or_default());
        let read = sums.fold(0, u64::wrapping_add);
        Ok([kernels.join().map_err(|_| "a kernel panicked")??, read])
    })
}

fn check(way: &str, read: [u64; 2], sum: u64) -> Result<(), Box<dyn Error>> {
    if read == [sum; 2] { Ok(()) } else { Err(format!("{way}: not what the file has was read").into()) }
}

fn all(moved: PageCount, pages: PageCount) -> Result<(), Box<dyn Error>> {
    if moved == pages { Ok(()) } else { Err(format!("{} of {} pages moved", moved.get(), pages.get()).into()) }
}

/// What it took.
struct Measured {
    placed: Duration,
    rounds: Duration,
    /// Pages that moved in the rounds.
    moved: u64,
    /// Bytes that were copied to devices or from them.
    copied: u64,
}

/// Has `place` put the weights where they are to be, and then does all rounds.
fn measure(
    runtime: &Runtime,
    place: impl FnOnce() -> Result<(), Box<dyn Error>>,
    mut round: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<Measured, Box<dyn Error>> {
    let (before, start) = (runtime.statistics(), Instant::now());
    place()?;
    let (placed, between, start) = (start.elapsed(), runtime.statistics(), Instant::now());
    for _ in 0..ROUNDS {
        round()?;
    }
    let (rounds, after) = (start.elapsed(), runtime.statistics());
    let home = after.pages_migrated_to_system - between.pages_migrated_to_system;
    let moved = after.pages_migrated_to_device - between.pages_migrated_to_device + home;
    Ok(Measured { placed, rounds, moved, copied: after.bytes_copied - before.bytes_copied })
}

fn row(name: &str, Measured { placed, rounds, moved, copied }: &Measured) {
    let (placed, round) = (placed.as_millis(), (*rounds / ROUNDS).as_millis());
    println!("{name:<18} {placed:>10} {round:>12} {moved:>14} {:>14}", copied >> 20);
}

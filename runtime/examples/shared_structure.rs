//! CPU and accelerator at once on one structure: a table of counters on a coherent device, which both add to by atomic operations, in
//! place, without a copy, a lock or a migration.
//!
//! ```sh
//! cargo run --release -p hetmem --example shared_structure
//! ```
//!
//! Another device is named as for `hetmem run --device`, behind `--`: `coherent:node=1,size=64M`, or `coherent:dax=/dev/dax0.0,size=64M`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "an example prints what it found")]

use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use hetmem::accelerator::{InPlace, Options};
use hetmem::{
    BLOCK_SIZE, ByteLen, DeviceId, DeviceSpec, FaultPath, MemoryType, Request, Residency, Runtime, Target, VirtAddr,
};

const DEVICE: DeviceId = DeviceId::new(0);
/// Device-DAX memory takes whole blocks only.
const BYTES: u64 = BLOCK_SIZE;
/// What is counted by each side.
const VALUES: usize = 1_000_000;

fn main() -> ExitCode {
    let spec = std::env::args().nth(1).unwrap_or_else(|| "coherent:emulated,size=64M".to_owned());
    match count_on(&spec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shared_structure: {error}");
            ExitCode::FAILURE
        }
    }
}

fn count_on(spec: &str) -> Result<(), Box<dyn Error>> {
    let device: DeviceSpec = spec.parse()?;
    if device.memory_type != MemoryType::DeviceCoherent {
        return Err(format!("device `{spec}`: the CPU can't use its pages in place; give a coherent one").into());
    }
    if device.size.get() < BYTES {
        return Err(format!("device `{spec}`: the counters take {}", ByteLen::new(BYTES)).into());
    }
    let runtime = Runtime::builder().device(device).start()?;
    let mapping = runtime.map(ByteLen::new(BYTES), FaultPath::Thread)?;
    let table = mapping.words();
    table.iter().for_each(|word| word.store(0, Relaxed));
    runtime.migrate(mapping.range(), Request::all_to(Target::Device(DEVICE)));
    let migrations = || {
        let counted = runtime.statistics();
        counted.pages_migrated_to_device + counted.pages_migrated_to_system
    };
    let before = migrations();

    // A value's counter. Both sides count the same values, so each counter is even at the end.
    let bucket = |value: usize| value.wrapping_mul(0x9e37_79b9) % table.len();
    let device = mapping.accelerator(DEVICE, Options { workers: 1, in_place: InPlace::Direct })?;
    let first = mapping.range().start().get();
    // Counted while the other side was at work: what shows that both were at once.
    let device_done = AtomicU64::new(0);
    let start = Instant::now();
    let (on_device, seen) = std::thread::scope(|scope| {
        let kernel = scope.spawn(|| {
            device.launch(VALUES, |view, value| {
                view.fetch_add(VirtAddr::new(first + bucket(value) as u64 * 8), 1)?;
                device_done.fetch_add(1, Relaxed);
                Ok(())
            })
        });
        let mut seen = 0;
        for value in 0..VALUES {
            table[bucket(value)].fetch_add(1, Relaxed);
            seen = seen.max(device_done.load(Relaxed));
        }
        (kernel.join(), seen)
    });
    on_device.map_err(|_| "the kernel panicked")??;
    let took = start.elapsed();

    let total: u64 = table.iter().map(|word| word.load(Relaxed)).sum();
    let odd = table.iter().filter(|word| !word.load(Relaxed).is_multiple_of(2)).count();
    let moved = migrations() - before;
    println!("{} counters on a coherent device, {VALUES} values counted by CPU and accelerator at once", table.len());
    println!("{:<32} {:>10}", "counted in all", total);
    println!("{:<32} {:>10}", "counters that are wrong", odd);
    println!("{:<32} {:>10}", "by the device before the CPU's end", seen);
    println!("{:<32} {:>10}", "pages moved", moved);
    println!("{:<32} {:>10}", "milliseconds", took.as_millis());
    let places = runtime.residency(mapping.range());
    let on_it = places.iter().filter(|page| **page == Residency::Device(DEVICE)).count();
    println!("{:<32} {:>10}", "pages on the device at the end", on_it);
    if total != 2 * VALUES as u64 || odd > 0 || moved > 0 || on_it < places.len() {
        return Err("a count was lost, or a page was not on the device all the time".into());
    }
    Ok(())
}

//! CPU and accelerator at once on one structure: a table of counters on a coherent device, which both add to by atomic operations, in
//! place, without a copy, a lock or a migration.
//!
//! ```sh
//! cargo run --release -p hetmem --example shared_structure
//! ```
#![expect(clippy::print_stdout, reason = "an example prints what it found")]

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use hetmem::accelerator::{InPlace, Options};
use hetmem::{FaultPath, Request, Residency, Runtime, Target};
use hetmem_core::units::{ByteLen, DeviceId, VirtAddr};
use hetmem_devices::spec::parse_all;

const DEVICE: DeviceId = DeviceId::new(0);
const BYTES: u64 = 1 << 20;
/// What is counted by each side.
const VALUES: usize = 1_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let spec = parse_all(&["coherent:emulated,size=64M"], ByteLen::new(1 << 30))?.remove(0);
    let runtime = Runtime::builder().device(spec).start()?;
    let mapping = runtime.map(ByteLen::new(BYTES), FaultPath::Thread)?;
    let table = mapping.words();
    table.iter().for_each(|word| word.store(0, Relaxed));
    runtime.migrate(mapping.range(), Request::all_to(Target::Device(DEVICE)));
    let migrations = || {
        let counters = runtime.counters();
        counters.pages_migrated_to_device.load(Relaxed) + counters.pages_migrated_to_system.load(Relaxed)
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
    let stayed = runtime.residency(mapping.range()).iter().all(|page| *page == Residency::Device(DEVICE));
    if total != 2 * VALUES as u64 || odd > 0 || moved > 0 || !stayed {
        return Err("a count was lost, or a page moved".into());
    }
    Ok(())
}

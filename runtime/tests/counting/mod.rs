//! Devices and processors that count on the same words, while something else goes on.
#![allow(dead_code, reason = "each test uses a part")]

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use hetmem::accelerator::{Accelerator, InPlace, Options};
use hetmem::{FaultPath, Mapping, Runtime};
use hetmem_core::units::{DeviceId, PageCount, PageRange, VirtAddr};

use crate::common::{WORDS, map, runtime};

pub(crate) fn accelerator(runtime: &Runtime, device: DeviceId, range: PageRange, in_place: InPlace) -> Accelerator {
    // SAFETY: the tests' kernels use memory that the tests mapped for them, and what is done to it is what is tested.
    unsafe { runtime.accelerator(device, range, Options { workers: 2, in_place }) }.unwrap()
}

/// The first word of page `index`.
pub(crate) fn first(range: PageRange, index: usize) -> VirtAddr {
    range.start().add_pages(PageCount::new(index as u64))
}

/// Runs `disturb` until `work` is done.
pub(crate) fn while_disturbed(disturb: &[&(dyn Fn(u64) + Sync)], work: impl FnOnce()) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for each in disturb {
            let done = &done;
            scope.spawn(move || {
                let mut round = 0;
                while !done.load(SeqCst) {
                    each(round);
                    round += 1;
                }
            });
        }
        // Ends the others even if the work fails.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, SeqCst);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
}

const COUNTERS: usize = 24;
const ROUNDS: usize = 60;

/// Devices and processors count on the same words, while pages move: no count is lost, so nobody ever used a page that was elsewhere.
pub(crate) fn counting(
    path: FaultPath,
    in_place: InPlace,
    devices: &[DeviceId],
    disturb: impl Fn(&Runtime, &Mapping, u64) + Sync,
) {
    let runtime = runtime();
    let mapping = map(&runtime, COUNTERS as u64, path);
    mapping.words().iter().for_each(|w| w.store(0, Relaxed));
    let accelerators: Vec<Accelerator> =
        devices.iter().map(|device| accelerator(&runtime, *device, mapping.range(), in_place)).collect();
    // A disturbance for each count at most: without a pause it would starve the devices, as it would in the kernel.
    let (counts, seen) = (AtomicU64::new(0), AtomicU64::new(0));
    let disturb = |round| {
        if seen.swap(counts.load(SeqCst), SeqCst) == counts.load(SeqCst) {
            return thread::yield_now();
        }
        disturb(&runtime, &mapping, round);
    };
    while_disturbed(&[&disturb], || {
        thread::scope(|scope| {
            for device in &accelerators {
                let (range, counts) = (mapping.range(), &counts);
                scope.spawn(move || {
                    let count = |view: &mut hetmem::accelerator::View<'_>, i: usize| {
                        view.fetch_add(first(range, i % COUNTERS), 1)?;
                        counts.fetch_add(1, SeqCst);
                        Ok(())
                    };
                    device.launch(COUNTERS * ROUNDS, count).unwrap();
                });
            }
            scope.spawn(|| {
                for i in 0..COUNTERS * ROUNDS {
                    mapping.words()[i % COUNTERS * WORDS].fetch_add(1, Relaxed);
                }
            });
        });
    });
    let expected = (ROUNDS * (devices.len() + 1)) as u64;
    for i in 0..COUNTERS {
        assert_eq!(mapping.words()[i * WORDS].load(Relaxed), expected, "counter {i}");
    }
    drop(accelerators);
    runtime.check();
}

//! Kernels that run on the device use its blocks where the program does.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use hetmem_core::units::{BLOCK_PAGES, VirtAddr};

use super::{COHERENT, FORKS, LAID, PRIVATE, scenes};
use crate::accelerator::{InPlace, Options};
use crate::{FaultPath, Mapping, Request, Residency, Target};

/// Words that each side adds to.
const ADDS: usize = 10_000;

/// Adds to the same words as a kernel and as a thread; returns after `meanwhile` and both.
fn add_on_both_sides(mapping: &Mapping, meanwhile: impl FnOnce()) {
    let accelerator = mapping.accelerator(LAID, Options { workers: 1, in_place: InPlace::Direct }).unwrap();
    let (words, first) = (mapping.words(), mapping.range().start().get());
    let word = |i: usize| i * 977 % words.len();
    thread::scope(|scope| {
        let kernel = scope.spawn(|| {
            accelerator.launch(ADDS, |view, i| view.fetch_add(VirtAddr::new(first + word(i) as u64 * 8), 1).map(|_| ()))
        });
        scope.spawn(|| (0..ADDS).for_each(|i| _ = words[word(i)].fetch_add(1, Relaxed)));
        meanwhile();
        kernel.join().unwrap().unwrap();
    });
}

#[test]
fn kernels_and_threads_share_blocks_in_place_and_lose_nothing_while_these_come_and_go() {
    let _unforked = FORKS.read().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        let mapping = scene.map(2 * BLOCK_PAGES, FaultPath::Thread);
        let total = || mapping.words().iter().map(|word| word.load(Relaxed)).sum::<u64>();
        scene.place(&mapping, Target::Device(LAID));
        add_on_both_sides(&mapping, || {});
        assert!(scene.is_all(&mapping, Residency::Device(LAID)), "both use them in place");
        assert_eq!(total(), 2 * ADDS as u64);
        add_on_both_sides(&mapping, || {
            for target in [PRIVATE, LAID, COHERENT, LAID, PRIVATE].map(Target::Device) {
                scene.runtime.migrate(mapping.range(), Request::all_to(target));
            }
        });
        assert_eq!(total(), 4 * ADDS as u64);
        scene.runtime.check();
    }
}

//! What every device must do, as a suite that its tests call: `conformance::check(|capacity| …)`.
//!
//! The suite uses a device alone, without an engine: contents survive in frames, frames are apart from one another, may be used by several threads at
//! once, read as zeros when they are cleared, and the books are right when the device is full. Failures are assertions, so that they name their line
//! in a test.

use std::ops::Range;

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::MemoryType;
use hetmem_core::port::Device;
use hetmem_core::units::{BLOCK_PAGES, FrameIndex, PAGE_SIZE, PageCount, VirtAddr};
use hetmem_sys::mapping::{Arena, ArenaOptions};

/// Runs the suite on devices of as many frames as `make` is asked for (1024), one for each part.
///
/// # Panics
///
/// If the device breaks a rule.
pub fn check<D: Device>(make: impl Fn(PageCount) -> D) {
    let capacity = PageCount::new(2 * BLOCK_PAGES);
    describes_itself(&make(capacity), capacity);
    contents_survive(&make(capacity));
    frames_are_apart(&make(capacity));
    frames_are_recycled(&make(capacity));
    cleared_frames_are_zeros(&make(capacity));
    threads_use_frames_at_once(&make(capacity));
    runs_out_cleanly(&make(capacity), capacity);
}

/// Words of a page.
const WORDS: u64 = PAGE_SIZE / 8;

fn buffer(pages: u64) -> Arena {
    Arena::reserve(PageCount::new(pages), &ArenaOptions::default()).expect("a buffer can be mapped")
}

#[expect(unsafe_code, reason = "tests write and read buffers of their own")]
fn fill(at: VirtAddr, pages: u64, seed: u64) {
    for word in 0..pages * WORDS {
        let address = usize::try_from(at.get() + word * 8).expect("64-bit machine");
        // SAFETY: inside a buffer of the caller's that is at least `pages` long.
        unsafe {
            std::ptr::with_exposed_provenance_mut::<u64>(address).write_volatile(seed ^ word.wrapping_mul(0x9e37_79b9))
        };
    }
}

fn verify(at: VirtAddr, pages: u64, seed: u64) {
    verify_words(at, 0..pages * WORDS, seed);
}

fn verify_words(at: VirtAddr, words: Range<u64>, seed: u64) {
    for word in words {
        assert_eq!(read(at, word), seed ^ word.wrapping_mul(0x9e37_79b9), "word {word}");
    }
}

fn verify_zeros(at: VirtAddr, words: Range<u64>) {
    for word in words {
        assert_eq!(read(at, word), 0, "word {word}");
    }
}

#[expect(unsafe_code, reason = "tests write and read buffers of their own")]
fn read(at: VirtAddr, word: u64) -> u64 {
    let address = usize::try_from(at.get() + word * 8).expect("64-bit machine");
    // SAFETY: inside a buffer of the caller's that has the word.
    unsafe { std::ptr::with_exposed_provenance::<u64>(address).read_volatile() }
}

fn describes_itself(device: &impl Device, capacity: PageCount) {
    let pagemap = device.pagemap();
    assert_eq!(pagemap.frames.capacity(), capacity);
    assert!(pagemap.frames.used().is_zero(), "a new device is empty");
    let starts = [device.frames_start(), device.overlay_start()].into_iter().flatten().count();
    assert_eq!(
        starts,
        usize::from(pagemap.memory_type == MemoryType::DeviceCoherent),
        "a coherent device is used in one way"
    );
}

fn contents_survive(device: &impl Device) {
    let (from, to) = (buffer(BLOCK_PAGES), buffer(BLOCK_PAGES));
    for pages in [1, 2, 16, BLOCK_PAGES - 1, BLOCK_PAGES] {
        let run =
            device.pagemap().frames.allocate(PageCount::new(pages), VirtAddr::default()).expect("frames are free");
        assert_eq!(run.pages.get(), pages, "a fresh device gives whole runs");
        device.prepare(run).expect("a device that was made has memory for its frames");
        fill(from.range().start(), pages, pages);
        device.copy_in(run, from.range().start()).expect("nothing is injected");
        if let Some(start) = device.frames_start().or(device.overlay_start()) {
            verify(start.add_pages(PageCount::new(u64::from(run.first.get()))), pages, pages);
        }
        device.copy_out(run, to.range().start()).expect("nothing is injected");
        verify(to.range().start(), pages, pages);
        let _freed = device.pagemap().frames.release(run);
    }
    device.pagemap().frames.check();
}

fn frames_are_apart(device: &impl Device) {
    let page = buffer(1);
    let at = page.range().start();
    let mut frames = Vec::new();
    for seed in 0..64 {
        let run = device.pagemap().frames.allocate(PageCount::ONE, at).expect("frames are free");
        fill(at, 1, seed);
        device.prepare(run).expect("a device that was made has memory for its frames");
        device.copy_in(run, at).expect("nothing is injected");
        frames.push(run);
    }
    for (seed, run) in (0..).zip(&frames) {
        device.copy_out(*run, at).expect("nothing is injected");
        verify(at, 1, seed);
    }
}

fn runs_out_cleanly(device: &impl Device, capacity: PageCount) {
    let frames = &device.pagemap().frames;
    let mut runs: Vec<FrameRun> = Vec::new();
    while let Some(run) = frames.allocate(PageCount::new(100), VirtAddr::default()) {
        runs.push(run);
    }
    assert_eq!(frames.used(), capacity);
    let mut seen: Vec<FrameIndex> = runs.iter().flat_map(|r| r.iter()).collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), capacity.as_usize(), "each frame is given once");
    for run in runs {
        let _freed = frames.release(run);
    }
    assert!(frames.used().is_zero());
    frames.check();
}

/// What is cleared reads as zeros, and its neighbours stay.
fn cleared_frames_are_zeros(device: &impl Device) {
    let pages = buffer(4);
    let at = pages.range().start();
    let run = device.pagemap().frames.allocate(PageCount::new(4), at).expect("frames are free");
    device.prepare(run).expect("a device that was made has memory for its frames");
    fill(at, 4, 7);
    device.copy_in(run, at).expect("nothing is injected");
    device.clear(run.slice(PageCount::ONE, PageCount::new(2)));
    fill(at, 4, 8);
    device.copy_out(run, at).expect("nothing is injected");
    verify_words(at, 0..WORDS, 7);
    verify_zeros(at, WORDS..3 * WORDS);
    verify_words(at, 3 * WORDS..4 * WORDS, 7);
}

/// Each thread has frames of its own, which lie between those of the others.
fn threads_use_frames_at_once(device: &impl Device) {
    const THREADS: u64 = 4;
    let runs: Vec<FrameRun> = (0..THREADS * 8)
        .map(|_| {
            let run = device.pagemap().frames.allocate(PageCount::ONE, VirtAddr::default()).expect("frames are free");
            device.prepare(run).expect("a device that was made has memory for its frames");
            run
        })
        .collect();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let own: Vec<FrameRun> =
                (0..).zip(&runs).filter(|(i, _)| i % THREADS == thread).map(|(_, run)| *run).collect();
            scope.spawn(move || {
                let page = buffer(1);
                let at = page.range().start();
                let seed = |round: u64, i: u64| thread << 32 | round << 16 | i;
                for round in 0..64 {
                    for (i, run) in (0..).zip(&own) {
                        fill(at, 1, seed(round, i));
                        device.copy_in(*run, at).expect("nothing is injected");
                    }
                    for (i, run) in (0..).zip(&own) {
                        device.copy_out(*run, at).expect("nothing is injected");
                        verify(at, 1, seed(round, i));
                    }
                }
            });
        }
    });
}

/// Frames that are used again keep nothing of their last use, and what was prepared is ready however often it is asked for.
fn frames_are_recycled(device: &impl Device) {
    let page = buffer(16);
    let at = page.range().start();
    for round in 0..8 {
        let run = device.pagemap().frames.allocate(PageCount::new(16), at).expect("frames are free");
        for _ in 0..2 {
            let strays = device.prepare(run).expect("a device that was made has memory for its frames");
            assert!(strays.is_zero(), "nobody moved a page behind the device's back");
        }
        fill(at, 16, round);
        device.copy_in(run, at).expect("nothing is injected");
        fill(at, 16, !round);
        device.copy_out(run, at).expect("nothing is injected");
        verify(at, 16, round);
        let _freed = device.pagemap().frames.release(run);
    }
}

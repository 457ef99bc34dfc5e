//! What every backend must do, as a suite that its tests call: `conformance::check(|capacity| …)`.
//!
//! The suite uses a device alone, without an engine: contents survive in frames, frames are apart from one another, and the
//! books are right when the device is full. Failures are assertions, so that they name their line in a test.

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::MemoryType;
use hetmem_core::port::Device;
use hetmem_core::units::{FrameIndex, PageCount, VirtAddr};
use hetmem_sys::mapping::{Arena, ArenaOptions};

/// Runs the suite on devices of 1024 frames that `make` makes, one for each part.
///
/// # Panics
///
/// If the device breaks a rule.
pub fn check<D: Device>(make: impl Fn(PageCount) -> D) {
    let capacity = PageCount::new(1024);
    describes_itself(&make(capacity), capacity);
    contents_survive(&make(capacity));
    frames_are_apart(&make(capacity));
    frames_are_recycled(&make(capacity));
    runs_out_cleanly(&make(capacity), capacity);
}

fn buffer(pages: u64) -> Arena {
    Arena::reserve(PageCount::new(pages), &ArenaOptions::default()).expect("a buffer can be mapped")
}

#[expect(unsafe_code, reason = "tests write and read buffers of their own")]
fn fill(at: VirtAddr, pages: u64, seed: u64) {
    for word in 0..pages * 512 {
        let address = usize::try_from(at.get() + word * 8).expect("64-bit machine");
        // SAFETY: inside a buffer of the caller's that is at least `pages` long.
        unsafe {
            std::ptr::with_exposed_provenance_mut::<u64>(address).write_volatile(seed ^ word.wrapping_mul(0x9e37_79b9))
        };
    }
}

#[expect(unsafe_code, reason = "tests write and read buffers of their own")]
fn verify(at: VirtAddr, pages: u64, seed: u64) {
    for word in 0..pages * 512 {
        let address = usize::try_from(at.get() + word * 8).expect("64-bit machine");
        // SAFETY: inside a buffer of the caller's that is at least `pages` long.
        let found = unsafe { std::ptr::with_exposed_provenance::<u64>(address).read_volatile() };
        assert_eq!(found, seed ^ word.wrapping_mul(0x9e37_79b9), "word {word}");
    }
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
    let (from, to) = (buffer(512), buffer(512));
    for pages in [1, 2, 16, 511, 512] {
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

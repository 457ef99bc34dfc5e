//! What every device must do, as a suite that its tests call: `conformance::check(|capacity| …)`.
//!
//! The suite uses a device alone, without an engine: contents survive in frames, frames are apart from one another, may be used by several threads at
//! once, read as zeros when they are cleared, transfers end once whether they are waited for or not, and the books are right when the device is full.
//! Failures are assertions, so that they name their line in a test.

use std::collections::BTreeSet;
use std::ops::Range;

use hetmem_core::fault::MAX_UNDER_WAY;
use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::MemoryType;
use hetmem_core::port::{Device, Progress, Reach, Ticket, Transfer};
use hetmem_core::units::{BLOCK_PAGES, FrameIndex, PAGE_SIZE, PageCount, VirtAddr};
use hetmem_sys::mapping::{Arena, ArenaOptions};
use hetmem_sys::timer::await_readable;

/// Runs the suite on devices of as many frames as `make` is asked for (1024), one for each part.
///
/// # Panics
///
/// If the device breaks a rule.
pub fn check(make: impl Fn(PageCount) -> Box<dyn Device>) {
    let capacity = PageCount::new(2 * BLOCK_PAGES);
    describes_itself(&*make(capacity), capacity);
    contents_survive(&*make(capacity));
    frames_are_apart(&*make(capacity));
    frames_are_recycled(&*make(capacity));
    cleared_frames_are_zeros(&*make(capacity));
    threads_use_frames_at_once(&*make(capacity));
    what_is_submitted_ends(&*make(capacity));
    runs_out_cleanly(&*make(capacity), capacity);
}

/// Fills the frames of `to` from the pages from `from` on.
fn copy_in(device: &dyn Device, to: FrameRun, from: VirtAddr) {
    carry_out(device, Transfer::into_frames(to, from));
}

/// Fills the pages from `to` on from the frames of `from`.
fn copy_out(device: &dyn Device, from: FrameRun, to: VirtAddr) {
    carry_out(device, Transfer::out_of_frames(from, to));
}

fn carry_out(device: &dyn Device, transfer: Transfer) {
    let mut batch = [transfer];
    device.transfer(&mut batch);
    assert_eq!(batch[0].result(), Ok(()), "nothing is injected");
}

/// Gives back frames that nobody else refers to.
fn give_back(device: &dyn Device, run: FrameRun) {
    let freed = device.pagemap().frames.release(run, |run| device.released(run));
    assert_eq!(freed, run.pages);
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

fn describes_itself(device: &dyn Device, capacity: PageCount) {
    let pagemap = device.pagemap();
    assert_eq!(pagemap.frames.capacity(), capacity);
    assert!(pagemap.frames.used().is_zero(), "a new device is empty");
    let private = pagemap.memory_type == MemoryType::DevicePrivate;
    assert_eq!(device.reach() == Reach::Copied, private, "a private device is reached by copying, and no other");
}

fn contents_survive(device: &dyn Device) {
    let (from, to) = (buffer(BLOCK_PAGES), buffer(BLOCK_PAGES));
    for pages in [1, 2, 16, BLOCK_PAGES - 1, BLOCK_PAGES] {
        let run =
            device.pagemap().frames.allocate(PageCount::new(pages), VirtAddr::default()).expect("frames are free");
        assert_eq!(run.pages.get(), pages, "a fresh device gives whole runs");
        device.prepare(run).expect("a device that was made has memory for its frames");
        fill(from.range().start(), pages, pages);
        copy_in(device, run, from.range().start());
        if let Some(start) = device.reach().in_place() {
            verify(start.add_pages(PageCount::new(u64::from(run.first.get()))), pages, pages);
        }
        copy_out(device, run, to.range().start());
        verify(to.range().start(), pages, pages);
        give_back(device, run);
    }
    device.pagemap().frames.check();
}

fn frames_are_apart(device: &dyn Device) {
    let page = buffer(1);
    let at = page.range().start();
    let mut frames = Vec::new();
    for seed in 0..64 {
        let run = device.pagemap().frames.allocate(PageCount::ONE, at).expect("frames are free");
        fill(at, 1, seed);
        device.prepare(run).expect("a device that was made has memory for its frames");
        copy_in(device, run, at);
        frames.push(run);
    }
    for (seed, run) in (0..).zip(&frames) {
        copy_out(device, *run, at);
        verify(at, 1, seed);
    }
}

/// Each transfer of a batch is for itself, and ends once, at the latest when the descriptor says so.
fn what_is_submitted_ends(device: &dyn Device) {
    let count = MAX_UNDER_WAY as u64;
    let (from, to) = (buffer(count), buffer(count));
    let nth = |buffer: &Arena, i: u64| buffer.range().start().add_pages(PageCount::new(i));
    let frames: Vec<FrameRun> = (0..count)
        .map(|i| device.pagemap().frames.allocate(PageCount::ONE, nth(&from, i)).expect("frames are free"))
        .collect();
    for (i, run) in (0..).zip(&frames) {
        device.prepare(*run).expect("a device that was made has memory for its frames");
        fill(nth(&from, i), 1, i);
    }
    let mut batch: Vec<Transfer> =
        (0..).zip(&frames).map(|(i, run)| Transfer::into_frames(*run, nth(&from, i))).collect();
    device.transfer(&mut batch);
    assert!(batch.iter().all(|transfer| transfer.result().is_ok()), "nothing is injected");
    // Last first.
    let mut batch: Vec<Transfer> = frames
        .iter()
        .enumerate()
        .rev()
        .map(|(i, run)| Transfer::out_of_frames(*run, nth(&to, i as u64)).with_ticket(Ticket::new(i as u64)))
        .collect();
    device.submit(&mut batch);
    let mut under_way: BTreeSet<u64> = BTreeSet::new();
    for transfer in &batch {
        match transfer.progress {
            Progress::Done(result) => assert_eq!(result, Ok(()), "nothing is injected"),
            Progress::UnderWay => assert!(under_way.insert(transfer.ticket.get())),
            Progress::Waiting => panic!("what is submitted has begun"),
        }
    }
    while !under_way.is_empty() {
        await_readable(device.completion_descriptor().expect("a device says when transfers that are under way end"));
        device.completions(&mut |ticket, result| {
            assert_eq!(result, Ok(()), "nothing is injected");
            assert!(under_way.remove(&ticket.get()), "{ticket:?} was submitted, and ends once");
        });
    }
    device.completions(&mut |ticket, _| panic!("{ticket:?} has ended before"));
    (0..count).for_each(|i| verify(nth(&to, i), 1, i));
}

fn runs_out_cleanly(device: &dyn Device, capacity: PageCount) {
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
        give_back(device, run);
    }
    assert!(frames.used().is_zero());
    frames.check();
}

/// What is cleared reads as zeros, and its neighbours stay.
fn cleared_frames_are_zeros(device: &dyn Device) {
    let pages = buffer(4);
    let at = pages.range().start();
    let run = device.pagemap().frames.allocate(PageCount::new(4), at).expect("frames are free");
    device.prepare(run).expect("a device that was made has memory for its frames");
    fill(at, 4, 7);
    copy_in(device, run, at);
    device.clear(run.slice(PageCount::ONE, PageCount::new(2)));
    fill(at, 4, 8);
    copy_out(device, run, at);
    verify_words(at, 0..WORDS, 7);
    verify_zeros(at, WORDS..3 * WORDS);
    verify_words(at, 3 * WORDS..4 * WORDS, 7);
}

/// Each thread has frames of its own, which lie between those of the others.
fn threads_use_frames_at_once(device: &dyn Device) {
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
                        copy_in(device, *run, at);
                    }
                    for (i, run) in (0..).zip(&own) {
                        copy_out(device, *run, at);
                        verify(at, 1, seed(round, i));
                    }
                }
            });
        }
    });
}

/// Frames that are used again keep nothing of their last use, and what was prepared is ready however often it is asked for.
fn frames_are_recycled(device: &dyn Device) {
    let page = buffer(16);
    let at = page.range().start();
    for round in 0..8 {
        let run = device.pagemap().frames.allocate(PageCount::new(16), at).expect("frames are free");
        for _ in 0..2 {
            let strays = device.prepare(run).expect("a device that was made has memory for its frames");
            assert!(strays.is_zero(), "nobody moved a page behind the device's back");
        }
        fill(at, 16, round);
        copy_in(device, run, at);
        fill(at, 16, !round);
        copy_out(device, run, at);
        verify(at, 16, round);
        give_back(device, run);
    }
}

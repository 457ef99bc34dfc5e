//! Advice on real memory: what is brought where, and what is given up.
#![expect(unsafe_code, reason = "tests map, discard and touch memory by address")]
#![expect(clippy::print_stderr, reason = "a test that can't run here says so")]

mod common;

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};

use common::{COHERENT, PRIVATE, Raw, runtime, to, while_migrating};
use hetmem::{Advice, BLOCK_PAGES, DeviceId, FaultPath, PageCount, PageRange, Request, Residency, Runtime, Target};

const PAGES: u64 = 48;
const PLACES: [Option<DeviceId>; 3] = [None, Some(PRIVATE), Some(COHERENT)];

fn adopt(runtime: &Runtime, memory: &Raw, path: FaultPath) {
    // SAFETY: no allocator and no thread uses it.
    unsafe { runtime.adopt(memory.range(), path) }.unwrap();
}

/// Managed memory, written, with all its pages in `place`.
fn placed(runtime: &Runtime, place: Option<DeviceId>, path: FaultPath) -> Raw {
    let memory = Raw::anonymous(PAGES);
    memory.advise(libc::MADV_NOHUGEPAGE);
    memory.fill();
    adopt(runtime, &memory, path);
    if let Some(device) = place {
        assert_eq!(runtime.migrate(memory.range(), to(device)).moved(), PageCount::new(PAGES));
    }
    memory
}

fn discard(runtime: &Runtime, range: PageRange) {
    // SAFETY: the test's own memory, whose contents it gives up.
    unsafe { runtime.discard(range) }.unwrap();
}

/// Checks that `count` pages from `first` on are zeros, and all others what was written.
fn is_zero_but(memory: &Raw, first: u64, count: u64) {
    for page in 0..memory.range().pages().get() {
        let expected = if (first..first + count).contains(&page) { 0 } else { page % 251 + 1 };
        assert_eq!(memory.get(page), expected, "page {page}");
    }
}

#[test]
fn what_is_discarded_reads_as_zeros_and_takes_no_memory_wherever_it_was() {
    for place in PLACES {
        for path in [FaultPath::Thread, FaultPath::Sigbus] {
            let runtime = runtime();
            let memory = placed(&runtime, place, path);
            let used = || runtime.statistics().devices.iter().map(|device| device.used_bytes).sum::<u64>();
            let before = (memory.present(), used());
            discard(&runtime, memory.slice(7, 20));
            assert_eq!(before.1 - used(), if place.is_some() { 20 * 4096 } else { 0 }, "frames are free at once");
            let is_mapped = place != Some(PRIVATE);
            assert_eq!(before.0 - memory.present(), if is_mapped { 20 } else { 0 }, "and so are pages");
            is_zero_but(&memory, 7, 20);
            memory.set(9, 77);
            // For migrations it is over once no other thread can be in the middle of another.
            while runtime.migrate(memory.slice(9, 1), to(PRIVATE)).moved().is_zero() {
                std::thread::yield_now();
            }
            assert_eq!(memory.get(9), 77);
            runtime.check();
        }
    }
}

#[test]
fn of_a_huge_page_that_is_discarded_in_part_the_rest_is_there() {
    for place in PLACES {
        let runtime = runtime();
        let Some(memory) = Raw::huge() else { return eprintln!("skipped: the kernel gives no huge page") };
        memory.fill();
        adopt(&runtime, &memory, FaultPath::Thread);
        if let Some(device) = place {
            assert_eq!(runtime.migrate(memory.range(), to(device)).moved(), PageCount::new(BLOCK_PAGES));
        }
        discard(&runtime, memory.slice(100, 200));
        is_zero_but(&memory, 100, 200);
        runtime.check();
    }
}

#[test]
fn locked_and_pinned_memory_can_be_discarded() {
    let runtime = runtime();
    let memory = placed(&runtime, None, FaultPath::Thread);
    // SAFETY: the test's own memory, which keeps its contents.
    let locked = unsafe { libc::mlock(memory.pointer(4).cast(), common::bytes(4)) };
    assert_eq!(locked, 0, "four pages can be locked: {}", std::io::Error::last_os_error());
    runtime.advise(memory.range(), Advice::Pin).unwrap();
    discard(&runtime, memory.slice(2, 10));
    is_zero_but(&memory, 2, 10);
}

#[test]
fn what_is_not_managed_is_named_and_not_discarded() {
    let runtime = runtime();
    let memory = Raw::anonymous(8);
    memory.fill();
    // SAFETY: no allocator and no thread uses it.
    unsafe { runtime.adopt(memory.slice(0, 6), FaultPath::Thread) }.unwrap();
    // SAFETY: the test's own memory.
    let refused = unsafe { runtime.discard(memory.range()) }.unwrap_err();
    assert_eq!(refused.to_string(), format!("{} is not managed; nothing was discarded", memory.slice(6, 2)));
    memory.verify();
    let refused = runtime.advise(memory.range(), Advice::Pin).unwrap_err();
    assert_eq!(refused.to_string(), format!("{} is not managed; the advice holds for what is", memory.slice(6, 2)));
    let refused = runtime.advise(memory.range(), Advice::PreferredLocation(DeviceId::new(2))).unwrap_err();
    assert_eq!(refused.to_string(), "there is no device 2; there are 2");
}

/// Nothing that was there before a discard is seen after it, and nothing that was written after it is lost, whoever migrates meanwhile.
#[test]
fn no_old_byte_is_seen_and_no_new_one_lost_while_pages_move() {
    const ROUNDS: u64 = 300;
    for path in [FaultPath::Thread, FaultPath::Sigbus] {
        let runtime = runtime();
        let memory = placed(&runtime, Some(PRIVATE), path);
        let done = AtomicBool::new(false);
        let touched = AtomicU64::new(0);
        let requests = [to(COHERENT), to(PRIVATE), Request::all_to(Target::System)];
        while_migrating(&runtime, memory.range(), &requests, || {
            std::thread::scope(|scope| {
                // Another thread touches what is discarded, and writes pages beside it.
                scope.spawn(|| {
                    for round in 1.. {
                        if done.load(SeqCst) {
                            break;
                        }
                        for page in 0..PAGES {
                            std::hint::black_box(memory.get(page));
                        }
                        memory.set(0, round);
                        assert_eq!(memory.get(0), round, "beside it nothing is lost");
                        touched.store(round, SeqCst);
                    }
                });
                for round in 1..=ROUNDS {
                    for page in 8..40 {
                        memory.set(page, round << 8 | page);
                    }
                    let (first, count) = (8 + round % 16, 1 + round % 16);
                    discard(&runtime, memory.slice(first, count));
                    for page in 8..40 {
                        let is_gone = (first..first + count).contains(&page);
                        assert_eq!(memory.get(page), if is_gone { 0 } else { round << 8 | page }, "page {page}");
                    }
                }
                done.store(true, SeqCst);
            });
        });
        assert!(touched.load(SeqCst) > 0);
    }
}

#[test]
fn what_is_used_soon_is_brought_to_where_it_is_best_kept() {
    let runtime = runtime();
    let memory = placed(&runtime, Some(PRIVATE), FaultPath::Thread);
    let places = |first, pages| runtime.residency(memory.slice(first, pages));
    runtime.advise(memory.slice(0, 4), Advice::PreferredLocation(PRIVATE)).unwrap();
    runtime.advise(memory.slice(4, 4), Advice::ReadMostly).unwrap();
    runtime.advise(memory.slice(8, 4), Advice::Pin).unwrap();
    runtime.advise(memory.slice(12, 4), Advice::NotSoon).unwrap();
    assert!(places(0, PAGES).iter().all(|place| *place == Residency::Device(PRIVATE)), "nothing has moved for that");
    runtime.advise(memory.range(), Advice::Soon).unwrap();
    assert_eq!(places(0, 4), [Residency::Device(PRIVATE); 4]);
    assert_eq!(places(4, 4), [Residency::Device(COHERENT); 4]);
    assert_eq!(places(8, 4), [Residency::Device(PRIVATE); 4], "it is kept there");
    assert_eq!(places(12, 36), [Residency::System; 36]);
    runtime.advise(memory.range(), Advice::Unpin).unwrap();
    runtime.advise(memory.range(), Advice::NoPreference).unwrap();
    runtime.advise(memory.range(), Advice::Soon).unwrap();
    assert_eq!(places(0, PAGES), [Residency::System; 48]);
    memory.verify();
}

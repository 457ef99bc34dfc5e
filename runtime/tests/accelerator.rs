//! Kernels on an emulated accelerator, against a program and a hetmem that move and change what they use.
#![expect(unsafe_code, reason = "tests map and touch memory by address")]

mod common;
mod counting;

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::thread;

use common::{COHERENT, PAGE, PRIVATE, Raw, WORDS, fill, map, runtime, to, verify};
use counting::{accelerator, counting, first, while_disturbed};
use hetmem::accelerator::{AccessError, InPlace};
use hetmem::mirror::{Event, RangeFaultError};
use hetmem::{FaultPath, Mapping, Request, Residency, Target};
use hetmem_core::device_table::Route;
use hetmem_core::frames::FrameRun;
use hetmem_core::units::{FrameIndex, PageCount, VirtAddr};

const WAYS: [InPlace; 2] = [InPlace::Checked, InPlace::Direct];

fn word(mapping: &Mapping, index: usize) -> VirtAddr {
    VirtAddr::new(mapping.range().start().get() + index as u64 * 8)
}

#[test]
fn kernels_reach_pages_wherever_they_are_and_move_none() {
    let runtime = runtime();
    for path in [FaultPath::Thread, FaultPath::Sigbus] {
        for in_place in WAYS {
            for target in [Target::System, Target::Device(PRIVATE), Target::Device(COHERENT)] {
                let mapping = map(&runtime, 40, path);
                mapping.words().iter().enumerate().for_each(|(i, w)| w.store(i as u64, Relaxed));
                runtime.migrate(mapping.range(), Request::all_to(target));
                let before = runtime.residency(mapping.range());
                let device = accelerator(&runtime, PRIVATE, mapping.range(), in_place);
                let kernel = |view: &mut hetmem::accelerator::View<'_>, i: usize| {
                    let at = word(&mapping, i);
                    let value = view.load(at)?;
                    assert_eq!(value, i as u64);
                    view.store(at, value * 3)
                };
                device.launch(mapping.words().len(), kernel).unwrap();
                assert_eq!(runtime.residency(mapping.range()), before, "{target:?} {in_place:?}: used where they are");
                let in_frames = matches!(device.entry(mapping.range().start()).unwrap().route, Route::Frame(_));
                assert_eq!(in_frames, target == Target::Device(PRIVATE));
                assert!(device.activity().faults <= 2 * 40, "each page is faulted on at most once for each access");
                assert!(mapping.words().iter().enumerate().all(|(i, w)| w.load(Relaxed) == i as u64 * 3));
                runtime.check();
            }
        }
    }
}

#[test]
fn bytes_are_copied_across_pages_and_kinds_of_memory() {
    let runtime = runtime();
    let mapping = map(&runtime, 6, FaultPath::Thread);
    fill(&mapping);
    let part = |first, pages| mapping.range().slice(PageCount::new(first), PageCount::new(pages));
    runtime.migrate(part(1, 1), to(PRIVATE));
    runtime.migrate(part(3, 1), to(COHERENT));
    let device = accelerator(&runtime, PRIVATE, mapping.range(), InPlace::Checked);
    let bytes: Vec<u8> = (0..5 * PAGE).map(|i| u8::try_from(i % 253).unwrap()).collect();
    let at = VirtAddr::new(mapping.range().start().get() + 1234);
    let mut view = device.view();
    view.write(at, &bytes).unwrap();
    let mut back = vec![0; bytes.len()];
    view.read(at, &mut back).unwrap();
    assert_eq!(back, bytes);
    assert_eq!(runtime.residency(part(1, 1)), [Residency::Device(PRIVATE)]);
}

#[test]
fn a_page_of_another_device_comes_home_first() {
    let runtime = runtime();
    let mapping = map(&runtime, 4, FaultPath::Thread);
    fill(&mapping);
    runtime.migrate(mapping.range(), to(PRIVATE));
    let other = accelerator(&runtime, COHERENT, mapping.range(), InPlace::Checked);
    other.view().load(mapping.range().start()).unwrap();
    assert_eq!(runtime.residency(mapping.range())[0], Residency::System);
    verify(&mapping);
}

#[test]
fn what_is_not_allowed_is_an_error_to_the_kernel() {
    let runtime = runtime();
    let memory = Raw::anonymous(4);
    memory.fill();
    let device = accelerator(&runtime, PRIVATE, memory.range(), InPlace::Checked);
    let mut view = device.view();
    (0..4).for_each(|i| view.store(memory.page(i), 1).unwrap());
    // Not announced: the table still says that all is well.
    memory.protect(1, 1, libc::PROT_READ);
    memory.protect(2, 1, libc::PROT_NONE);
    memory.unmap(3, 1);
    assert_eq!(view.store(memory.page(1), 2), Err(AccessError::Fault(RangeFaultError::ReadOnly(memory.page(1)))));
    assert_eq!(view.load(memory.page(1)), Ok(1));
    assert_eq!(view.load(memory.page(2)), Err(AccessError::Fault(RangeFaultError::NoAccess(memory.page(2)))));
    assert_eq!(view.load(memory.page(3)), Err(AccessError::Fault(RangeFaultError::NoMapping(memory.page(3)))));
    let outside = memory.range().end();
    assert_eq!(view.load(outside), Err(AccessError::OutOfRange(outside)));
    let odd = VirtAddr::new(memory.page(0).get() + 4);
    assert_eq!(view.load(odd), Err(AccessError::OutOfRange(odd)));
}

#[test]
fn a_private_frame_of_a_read_only_mapping_is_not_written() {
    let runtime = runtime();
    let mapping = map(&runtime, 1, FaultPath::Thread);
    fill(&mapping);
    runtime.migrate(mapping.range(), to(PRIVATE));
    let device = accelerator(&runtime, PRIVATE, mapping.range(), InPlace::Checked);
    let raw = Raw::borrowed(mapping.range());
    let at = mapping.range().start();
    runtime.announce(mapping.range(), Event::ProtectionVma, || raw.protect(0, 1, libc::PROT_READ));
    assert_eq!(device.view().store(at, 1), Err(AccessError::Fault(RangeFaultError::ReadOnly(at))));
    runtime.announce(mapping.range(), Event::ProtectionVma, || raw.protect(0, 1, libc::PROT_READ | libc::PROT_WRITE));
    device.view().store(at, 1).unwrap();
}

#[test]
fn a_touch_ends_exclusive_access_and_the_device_is_told() {
    let runtime = runtime();
    for path in [FaultPath::Thread, FaultPath::Sigbus] {
        let mapping = map(&runtime, 4, path);
        fill(&mapping);
        let device = accelerator(&runtime, PRIVATE, mapping.range(), InPlace::Checked);
        device.make_exclusive(mapping.range()).unwrap();
        assert!(mapping.range().iter().all(|page| device.is_exclusive(page)));
        assert_eq!(device.view().fetch_add(mapping.range().start(), 5), Ok(0xabcd_ef01));
        assert_eq!(mapping.words()[0].load(Relaxed), 0xabcd_ef01 + 5, "the program sees what the device did");
        let held: Vec<bool> = mapping.range().iter().map(|page| device.is_exclusive(page)).collect();
        assert_eq!(held, [false, true, true, true], "only the touched page");
        assert_eq!(device.activity().exclusives_ended, 1);
        // Another device may take it as well.
        let other = accelerator(&runtime, COHERENT, mapping.range(), InPlace::Checked);
        other.make_exclusive(mapping.range()).unwrap();
        assert!(mapping.range().iter().all(|page| !device.is_exclusive(page) && other.is_exclusive(page)));
        mapping.words()[0].store(0xabcd_ef01, Relaxed);
        verify(&mapping);
        runtime.check();
    }
}

#[test]
fn holes_and_huge_pages_can_be_held_exclusively() {
    let runtime = runtime();
    let mapping = map(&runtime, 1024, FaultPath::Thread);
    let device = accelerator(&runtime, PRIVATE, mapping.range(), InPlace::Checked);
    device.make_exclusive(mapping.range().slice(PageCount::new(3), PageCount::ONE)).unwrap();
    mapping.words().iter().skip(4 * WORDS).for_each(|w| w.store(7, Relaxed));
    device.make_exclusive(mapping.range()).unwrap();
    assert_eq!(device.view().fetch_add(first(mapping.range(), 3), 1), Ok(0));
    assert_eq!(device.view().load(first(mapping.range(), 900)), Ok(7));
    assert_eq!(mapping.words()[3 * WORDS].load(Relaxed), 1);
}

#[test]
fn no_count_is_lost_while_pages_migrate() {
    for path in [FaultPath::Thread, FaultPath::Sigbus] {
        for in_place in WAYS {
            counting(path, in_place, &[PRIVATE, COHERENT], |runtime, mapping, round| {
                let targets = [Target::Device(PRIVATE), Target::System, Target::Device(COHERENT)];
                let target = targets[usize::try_from(round).unwrap() % 3];
                let part = mapping.range().slice(PageCount::new(round % 17), PageCount::new(1 + round % 9));
                runtime.migrate(part, Request::all_to(target));
            });
        }
    }
}

#[test]
fn no_count_is_lost_while_the_device_is_emptied() {
    counting(FaultPath::Thread, InPlace::Direct, &[PRIVATE], |runtime, mapping, round| {
        runtime.migrate(mapping.range(), to(PRIVATE));
        let first = FrameIndex::new(u32::try_from(round % 16).unwrap());
        runtime.evict(PRIVATE, FrameRun { first, pages: PageCount::new(20) });
    });
}

/// Words of a stretch that is mapped anew again and again; each life of it has a number, which its words begin with.
#[test]
fn no_kernel_uses_a_mapping_that_is_announced_to_end() {
    let runtime = runtime();
    for in_place in WAYS {
        for managed in [false, true] {
            let memory = Raw::anonymous(8);
            if managed {
                // SAFETY: no allocator and no thread control block is there.
                unsafe { runtime.adopt(memory.range(), FaultPath::Thread) }.unwrap();
            }
            let device = accelerator(&runtime, PRIVATE, memory.range(), in_place);
            let life = AtomicU64::new(0);
            let stamp = |number: u64| (0..8).for_each(|i| memory.set(i, number << 32));
            stamp(0);
            let (accesses, seen) = (AtomicU64::new(0), AtomicU64::new(0));
            let renew = |_| {
                // One change for each access at most: without a pause it would starve the device.
                if seen.swap(accesses.load(SeqCst), SeqCst) == accesses.load(SeqCst) {
                    return thread::yield_now();
                }
                let next = life.load(SeqCst) + 1;
                runtime.announce(memory.range(), Event::Unmap, || {
                    memory.remap_anew();
                    stamp(next);
                    (0..100).for_each(|_| thread::yield_now());
                    (0..8)
                        .for_each(|i| assert_eq!(memory.get(i), next << 32, "a kernel wrote to what it does not know"));
                });
                life.store(next, SeqCst);
                // Read-only for a while: nothing changes then.
                runtime.announce(memory.range(), Event::ProtectionVma, || {
                    memory.protect(0, 8, libc::PROT_READ);
                    let before: Vec<u64> = (0..8).map(|i| memory.get(i)).collect();
                    (0..100).for_each(|_| thread::yield_now());
                    let after: Vec<u64> = (0..8).map(|i| memory.get(i)).collect();
                    assert_eq!(before, after);
                    memory.protect(0, 8, libc::PROT_READ | libc::PROT_WRITE);
                });
            };
            while_disturbed(&[&renew], || {
                device
                    .launch(4_000, |view, i| {
                        let known = life.load(SeqCst);
                        let found = view.load(memory.page((i % 4) as u64))?;
                        assert!(found >> 32 >= known, "life {} is over since {known}", found >> 32);
                        view.store(memory.page(4 + (i % 4) as u64), i as u64)?;
                        accesses.fetch_add(1, SeqCst);
                        Ok(())
                    })
                    .unwrap_or_else(|error| panic!("{in_place:?}, managed {managed}: {error}"));
            });
            drop(device);
            if managed {
                let _ = runtime.release(memory.range());
            }
        }
    }
}

#[test]
fn unannounced_changes_are_faults_and_no_signals() {
    let runtime = runtime();
    let memory = Raw::anonymous(8);
    memory.fill();
    let device = accelerator(&runtime, PRIVATE, memory.range(), InPlace::Checked);
    let disturb = |round: u64| match round % 3 {
        0 => memory.protect(round % 8, 1, libc::PROT_NONE),
        1 => memory.remap_anew(),
        _ => memory.protect(0, 8, libc::PROT_READ | libc::PROT_WRITE),
    };
    let refused = AtomicU64::new(0);
    while_disturbed(&[&disturb], || {
        let kernel = |view: &mut hetmem::accelerator::View<'_>, i: usize| {
            let at = memory.page((i % 8) as u64);
            match view.load(at).and_then(|value| view.store(at, value + 1)) {
                Ok(()) => Ok(()),
                Err(AccessError::Fault(_)) => {
                    refused.fetch_add(1, Relaxed);
                    Ok(())
                }
                Err(other) => Err(other),
            }
        };
        device.launch(20_000, kernel).unwrap();
    });
}

#[test]
fn a_device_is_emptied_by_its_frames() {
    let runtime = runtime();
    let mapping = map(&runtime, 64, FaultPath::Thread);
    let coherent = map(&runtime, 64, FaultPath::Sigbus);
    fill(&mapping);
    fill(&coherent);
    runtime.migrate(mapping.range(), to(PRIVATE));
    runtime.migrate(coherent.range(), to(COHERENT));
    let half = FrameRun { first: FrameIndex::new(0), pages: PageCount::new(32) };
    assert_eq!(runtime.evict(PRIVATE, half), PageCount::new(32));
    assert_eq!(runtime.evict(PRIVATE, half), PageCount::ZERO);
    let there = |mapping: &Mapping, device| {
        runtime.residency(mapping.range()).iter().filter(|r| **r == Residency::Device(device)).count()
    };
    assert_eq!((there(&mapping, PRIVATE), there(&coherent, COHERENT)), (32, 64), "others stay");
    for device in [PRIVATE, COHERENT] {
        runtime.remove_device(device).unwrap();
        assert_eq!((there(&mapping, device), there(&coherent, device)), (0, 0));
    }
    assert_eq!(runtime.migrate(mapping.range(), to(PRIVATE)).moved(), PageCount::ZERO, "a removed device takes none");
    verify(&mapping);
    verify(&coherent);
    runtime.restore_device(PRIVATE);
    assert_eq!(runtime.migrate(mapping.range(), to(PRIVATE)).moved(), PageCount::new(64));
    verify(&mapping);
    runtime.check();
}

#[test]
fn a_page_that_mremap_moved_is_found_by_its_frame() {
    let runtime = runtime();
    let (memory, place) = (Raw::anonymous(8), Raw::anonymous(8));
    // SAFETY: no allocator and no thread control block is there.
    unsafe { runtime.adopt(memory.range(), FaultPath::Thread) }.unwrap();
    memory.fill();
    runtime.migrate(memory.range(), to(PRIVATE));
    let moved = memory.remap_to(place);
    runtime.remove_device(PRIVATE).unwrap();
    assert!(runtime.residency(moved.range()).iter().all(|r| *r == Residency::System));
    (0..8).for_each(|i| assert_eq!(moved.get(i) & 0xFF, i + 1));
    runtime.check();
}

#[test]
fn a_device_is_removed_while_everybody_uses_it() {
    let runtime = runtime();
    let mapping = map(&runtime, 256, FaultPath::Thread);
    fill(&mapping);
    let device = accelerator(&runtime, PRIVATE, mapping.range(), InPlace::Direct);
    let migrate = |_| drop(runtime.migrate(mapping.range(), to(PRIVATE)));
    let touch = |_| verify(&mapping);
    let compute = |_| {
        device.launch(256, |view, i| view.load(first(mapping.range(), i)).map(|_| ())).unwrap();
    };
    while_disturbed(&[&migrate, &touch, &compute], || {
        for _ in 0..20 {
            runtime.remove_device(PRIVATE).unwrap();
            let away = runtime.residency(mapping.range()).iter().filter(|r| **r == Residency::Device(PRIVATE)).count();
            assert_eq!(away, 0);
            runtime.restore_device(PRIVATE);
        }
    });
    verify(&mapping);
    drop(device);
    runtime.check();
}

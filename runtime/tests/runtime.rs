//! The runtime on real memory: what moves, what stays, and that contents survive all of it.
#![expect(unsafe_code, reason = "tests touch mapped memory")]

mod common;

use std::collections::BTreeSet;

use common::{COHERENT, PAGE, PRIVATE, Raw, runtime, to};
use hetmem::{
    Advice, ByteLen, DeviceId, FaultPath, FrameIndex, KeptReason, Mapping, PAGE_SIZE, PageCount, PageOutcome,
    PageRange, Pfn, Request, Residency, Runtime, Target,
};

fn word(mapping: &Mapping, page: usize) -> *mut u64 {
    mapping.as_ptr().wrapping_add(page * PAGE + (page % 500) * 8).cast()
}

fn fill(mapping: &Mapping) {
    for page in 0..mapping.len() / PAGE {
        // SAFETY: inside the mapping.
        unsafe { word(mapping, page).write_volatile(page as u64 ^ 0xabcd_ef01) };
    }
}

fn verify(mapping: &Mapping) {
    for page in 0..mapping.len() / PAGE {
        // SAFETY: inside the mapping.
        let found = unsafe { word(mapping, page).read_volatile() };
        assert_eq!(found, page as u64 ^ 0xabcd_ef01, "page {page}");
    }
}

/// Migrates all of the mapping; while another thread may be dropping pages, the announced range stays, so ask again.
fn migrate_all(runtime: &Runtime, mapping: &Mapping, device: DeviceId) {
    let left = |outcomes: &hetmem::Outcomes| {
        let there = outcomes.moved() + outcomes.kept(KeptReason::AlreadyThere);
        assert_eq!(there + outcomes.kept(KeptReason::Raced), mapping.range().pages());
        !outcomes.kept(KeptReason::Raced).is_zero()
    };
    while left(&runtime.migrate(mapping.range(), to(device))) {
        std::thread::yield_now();
    }
}

/// What the kernel's model promises of frame numbers, of both types of devices.
#[test]
fn pages_on_devices_have_frame_numbers_of_their_own() {
    let runtime = runtime();
    let mapping = common::map(&runtime, 8, FaultPath::Thread);
    fill(&mapping);
    let pfns = || mapping.range().iter().map(|page| runtime.pfn_of(page)).collect::<Vec<_>>();
    assert_eq!(pfns(), [None; 8], "in system memory");
    for device in [PRIVATE, COHERENT] {
        migrate_all(&runtime, &mapping, device);
        let numbers: BTreeSet<Pfn> = pfns().into_iter().map(|pfn| pfn.expect("it is on a device")).collect();
        assert_eq!(numbers.len(), 8, "each page has a frame of its own");
        for pfn in numbers {
            let (of, frame) = runtime.frame_of(pfn).expect("the number of a frame");
            assert_eq!((of, Pfn::device(of, frame)), (device, pfn));
        }
    }
    verify(&mapping);
    let nowhere = Pfn::device(DeviceId::new(9), FrameIndex::new(0));
    assert_eq!(runtime.frame_of(nowhere), None, "there is no such device");
    let frames = (64 << 20) / PAGE_SIZE;
    let beyond = Pfn::device(PRIVATE, FrameIndex::new(u32::try_from(frames).unwrap()));
    assert_eq!(runtime.frame_of(beyond), None, "nor so many frames");
    assert_eq!(runtime.frame_of(Pfn::machine(1).unwrap()), None, "nor is the machine's frame a device's");
}

#[test]
fn contents_survive_every_route() {
    let runtime = runtime();
    for path in [FaultPath::Thread, FaultPath::Sigbus] {
        let mapping = runtime.map(ByteLen::new(9 << 20), path).unwrap();
        fill(&mapping);
        let range = mapping.range();
        for request in [
            to(PRIVATE),
            to(COHERENT),
            to(PRIVATE),
            Request::all_to(Target::System),
            to(COHERENT),
            Request::all_to(Target::System),
        ] {
            let outcomes = runtime.migrate(range, request);
            assert_eq!(
                outcomes.moved(),
                range.pages(),
                "{request:?} {path:?} {:?}",
                outcomes.as_slice().iter().find(|o| **o != PageOutcome::Moved)
            );
            let expected = match request.target {
                Target::System => Residency::System,
                Target::Device(device) => Residency::Device(device),
            };
            assert!(runtime.residency(range).iter().all(|r| *r == expected));
            runtime.check();
        }
        verify(&mapping);
        runtime.migrate(range, to(PRIVATE));
        verify(&mapping);
        assert!(runtime.residency(range).iter().all(|r| *r == Residency::System), "touches brought every page home");
        runtime.migrate(range, to(COHERENT));
        verify(&mapping);
        assert!(runtime.residency(range).iter().all(|r| *r == Residency::Device(COHERENT)), "touches moved nothing");
        runtime.check();
    }
}

#[test]
fn holes_read_as_zeros_and_are_kept_as_holes() {
    let runtime = runtime();
    let mapping = runtime.map(ByteLen::new(64 * PAGE_SIZE), FaultPath::Thread).unwrap();
    // SAFETY: inside the mapping.
    unsafe { mapping.as_ptr().wrapping_add(5 * PAGE).write_volatile(7) };
    let outcomes = runtime.migrate(mapping.range(), to(PRIVATE));
    // The mapping prefers huge pages but is too small for one.
    assert_eq!(outcomes.moved(), PageCount::ONE);
    assert_eq!(outcomes.as_slice()[4], PageOutcome::Kept(KeptReason::Hole));
    for page in 0..64 {
        // SAFETY: inside the mapping.
        let found = unsafe { mapping.as_ptr().wrapping_add(page * PAGE).read_volatile() };
        assert_eq!(found, if page == 5 { 7 } else { 0 });
    }
}

#[test]
fn holes_at_the_end_of_a_mapping_are_filled_as_far_as_it_goes() {
    let runtime = runtime();
    let mapping = runtime.map(ByteLen::new(64 * PAGE_SIZE), FaultPath::Thread).unwrap();
    // SAFETY: inside the mapping.
    unsafe { mapping.as_ptr().write_volatile(7) };
    let half = mapping.as_ptr().wrapping_add(32 * PAGE);
    // SAFETY: the second half of the mapping, which holds no reference of anybody's.
    unsafe { rustix::mm::mprotect(half.cast(), 32 * PAGE, rustix::mm::MprotectFlags::READ) }.unwrap();
    assert_eq!(runtime.migrate(mapping.range(), to(PRIVATE)).moved(), PageCount::ONE);
    for page in (1..64).rev() {
        // SAFETY: inside the mapping.
        let found = unsafe { mapping.as_ptr().wrapping_add(page * PAGE).read_volatile() };
        assert_eq!(found, 0);
    }
    // SAFETY: inside the mapping.
    assert_eq!(unsafe { mapping.as_ptr().read_volatile() }, 7);
}

#[test]
fn unmanaged_and_pinned_pages_are_kept_with_the_reason() {
    let runtime = runtime();
    let mapping = runtime.map(ByteLen::new(8 * PAGE_SIZE), FaultPath::Thread).unwrap();
    fill(&mapping);
    let range = mapping.range();
    runtime.advise(range, Advice::Pin).unwrap();
    assert_eq!(runtime.migrate(range, to(PRIVATE)).kept(KeptReason::Advised), range.pages());
    runtime.advise(range, Advice::Unpin).unwrap();
    let beyond = PageRange::new(range.start(), range.pages() + PageCount::ONE).unwrap();
    let outcomes = runtime.migrate(beyond, to(PRIVATE));
    assert_eq!((outcomes.moved(), outcomes.kept(KeptReason::Unmanaged)), (range.pages(), PageCount::ONE));
    verify(&mapping);
}

#[test]
fn locked_pages_are_kept_as_locked() {
    let runtime = runtime();
    let mapping = runtime.map(ByteLen::new(8 * PAGE_SIZE), FaultPath::Thread).unwrap();
    fill(&mapping);
    // SAFETY: the test's own memory, which keeps its contents.
    let locked = unsafe { libc::mlock(mapping.as_ptr().wrapping_add(2 * PAGE).cast(), 3 * PAGE) };
    assert_eq!(locked, 0, "three pages can be locked: {}", std::io::Error::last_os_error());
    let outcomes = runtime.migrate(mapping.range(), to(PRIVATE));
    assert_eq!((outcomes.kept(KeptReason::Locked).get(), outcomes.moved().get()), (3, 5), "{outcomes:?}");
    verify(&mapping);
}

#[test]
fn a_release_that_fails_leaves_the_range_managed_and_its_pins() {
    // The second copy fails, which is the first one home.
    let spec = "private:emulated,size=16M,fail=2".parse().unwrap();
    let runtime = Runtime::builder().device(spec).start().unwrap();
    let mapping = runtime.map(ByteLen::new(PAGE_SIZE), FaultPath::Thread).unwrap();
    fill(&mapping);
    let range = mapping.range();
    assert_eq!(runtime.migrate(range, to(PRIVATE)).moved(), PageCount::ONE);
    runtime.advise(range, Advice::Pin).unwrap();
    let refused = runtime.release(range).unwrap_err();
    assert!(refused.to_string().contains(KeptReason::DeviceError.label()), "{refused}");
    let kept = runtime.migrate(range, Request::all_to(Target::System));
    assert_eq!(kept.kept(KeptReason::Advised), PageCount::ONE, "it is managed, and pinned as it was: {kept:?}");
    assert_eq!(runtime.residency(range), [Residency::Device(PRIVATE)]);
    runtime.release(range).unwrap();
    assert_eq!(runtime.migrate(range, to(PRIVATE)).kept(KeptReason::Unmanaged), PageCount::ONE);
    verify(&mapping);
}

/// Of all who adopt the same memory at once one succeeds; the others are told, and nothing of it is counted twice.
#[test]
fn memory_is_adopted_once() {
    let runtime = runtime();
    let memory = Raw::anonymous(64);
    for round in 0..200 {
        let start = std::sync::Barrier::new(4);
        let adopted: Vec<u64> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..4)
                .map(|racer| {
                    let (runtime, start, range) = (&runtime, &start, memory.slice(racer, 60));
                    scope.spawn(move || {
                        start.wait();
                        if (round + racer) % 2 == 0 {
                            // SAFETY: the test's own memory, which no system call is given.
                            return unsafe { runtime.adopt(range, FaultPath::Thread) }.map_or(0, |()| 60);
                        }
                        // SAFETY: as above.
                        let rest = unsafe { runtime.adopt_rest(range, FaultPath::Thread) }.unwrap();
                        rest.iter().map(|part| part.pages().get()).sum()
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        let bytes = runtime.statistics().adopted_bytes;
        assert_eq!(bytes, adopted.iter().sum::<u64>() * PAGE_SIZE, "{adopted:?}");
        assert!((60..=64).contains(&adopted.iter().sum::<u64>()), "{adopted:?}");
        runtime.release(memory.range()).unwrap();
    }
}

/// Others bring pages home while the program moves their mapping: the kernel may find none there just then, and they belong to the new place.
#[test]
fn pages_follow_a_mapping_that_moves_while_they_come_home() {
    const PAGES: u64 = 3000;
    let runtime = runtime();
    // Apart by no multiple of a page table, so that the kernel moves entry by entry, which takes long.
    // Each is unmapped by being moved, or at the end of the process.
    let [here, there] = [(); 2].map(|()| std::mem::ManuallyDrop::new(Raw::aligned(PAGES + 1)));
    here.unmap(0, 1);
    here.advise_part(1, PAGES, libc::MADV_NOHUGEPAGE);
    let both = [here.slice(1, PAGES), there.slice(0, PAGES)];
    let memory = Raw::borrowed(both[0]);
    // Every second one, so that each goes by itself.
    (0..PAGES).step_by(2).for_each(|i| memory.set(i, i + 1));
    for round in 0..40 {
        let (now, next) = (Raw::borrowed(both[round % 2]), Raw::borrowed(both[(round + 1) % 2]));
        // A move while nothing is away is told to nobody.
        both.iter().for_each(|range| runtime.release(*range).unwrap());
        // SAFETY: the test's own memory, which no system call is given.
        unsafe { runtime.adopt(now.range(), FaultPath::Thread) }.unwrap();
        let away =
            || runtime.residency(now.range()).into_iter().filter(|at| *at == Residency::Device(PRIVATE)).count() as u64;
        while away() < PAGES / 2 {
            // Kept while the events of the last move are unread.
            let _outcomes = runtime.migrate(now.range(), to(PRIVATE));
        }
        let moved = std::mem::ManuallyDrop::new(std::thread::scope(|scope| {
            let home = scope.spawn(|| runtime.migrate_all(&both, Request::all_to(Target::System)));
            // Somewhere on the way.
            while runtime.residency(now.slice(0, 2))[0] != Residency::System && !home.is_finished() {
                std::thread::yield_now();
            }
            now.remap_to(next)
        }));
        let wrong = (0..PAGES).step_by(2).find(|i| moved.get(*i) != i + 1);
        assert_eq!(wrong.map(|page| (page, moved.get(page))), None, "round {round}");
    }
}

#[test]
fn a_full_device_keeps_what_does_not_fit() {
    let runtime = Runtime::builder().device("private:emulated,size=64K".parse().unwrap()).start().unwrap();
    let mapping = runtime.map(ByteLen::new(32 * PAGE_SIZE), FaultPath::Thread).unwrap();
    fill(&mapping);
    let outcomes = runtime.migrate(mapping.range(), to(PRIVATE));
    assert_eq!((outcomes.moved().get(), outcomes.kept(KeptReason::NoFrame).get()), (16, 16));
    verify(&mapping);
    runtime.check();
}

#[test]
fn dropped_pages_read_as_zeros_and_free_their_frames() {
    let runtime = runtime();
    let mapping = runtime.map(ByteLen::new(1 << 20), FaultPath::Thread).unwrap();
    for device in [PRIVATE, COHERENT] {
        fill(&mapping);
        migrate_all(&runtime, &mapping, device);
        // SAFETY: the contents are given up.
        unsafe { hetmem_sys::mapping::discard(mapping.range()) }.unwrap();
        assert!(runtime.residency(mapping.range()).iter().all(|r| *r == Residency::System));
        runtime.check();
        for page in 0..mapping.len() / PAGE {
            // SAFETY: inside the mapping.
            assert_eq!(unsafe { word(&mapping, page).read_volatile() }, 0);
        }
    }
}

#[test]
fn many_threads_on_the_same_pages_see_every_write() {
    let runtime = runtime();
    let mapping = runtime.map(ByteLen::new(4 << 20), FaultPath::Thread).unwrap();
    let base = mapping.as_ptr().expose_provenance();
    let rounds = 40;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(move || {
                    for _ in 0..rounds {
                        for page in 0..1024 {
                            // SAFETY: inside the mapping, as an atomic word.
                            let word = unsafe {
                                &*std::ptr::with_exposed_provenance::<std::sync::atomic::AtomicU64>(base + page * PAGE)
                            };
                            word.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        let mut step = 0;
        while !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            let device = if step % 2 == 0 { PRIVATE } else { COHERENT };
            let part = mapping.range().slice(PageCount::new(step * 37 % 900), PageCount::new(124));
            runtime.migrate(part, to(device));
            step += 1;
        }
    });
    for page in 0..1024 {
        // SAFETY: inside the mapping.
        let found = unsafe { std::ptr::with_exposed_provenance::<u64>(base + page * PAGE).read_volatile() };
        assert_eq!(found, 4 * rounds, "page {page}");
    }
    runtime.check();
}

#[test]
fn an_address_that_is_mapped_again_at_once_keeps_its_new_pages() {
    map_again_at_once(5_000);
}

#[test]
#[ignore = "takes half a minute; a command of its own runs it (CONTRIBUTING.md)"]
fn an_address_that_is_mapped_again_at_once_keeps_its_new_pages_for_long() {
    map_again_at_once(20_000);
}

fn map_again_at_once(rounds: u32) {
    let runtime = runtime();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let runtime = &runtime;
            scope.spawn(move || {
                for round in 0..rounds {
                    // Small ones, so that the kernel gives the place that another thread has just left.
                    let mapping = runtime.map(ByteLen::new(64 << 10), FaultPath::Thread).unwrap();
                    fill(&mapping);
                    runtime.migrate(mapping.range(), to(if (worker + round) % 2 == 0 { PRIVATE } else { COHERENT }));
                    verify(&mapping);
                }
            });
        }
    });
    runtime.check();
}

//! Devices that read pages of files: wherever these are, whoever moves or touches them, and whoever writes the file.
#![expect(unsafe_code, reason = "tests touch mapped memory")]

mod common;
mod counting;

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use common::file::{HOME, PAGES, all_moved, bytes, file, map, read, verify, word};
use common::{COHERENT, PRIVATE, runtime, to};
use counting::{accelerator, first, while_disturbed};
use hetmem::accelerator::{AccessError, InPlace, Options, Route, View};
use hetmem::mirror::{Event, MirrorPage, Place, RangeFault, RangeFaultError, Want};
use hetmem::{BLOCK_PAGES, FileMapping, PageCount, PageRange, Request, Residency, Runtime, Target, VirtAddr};

const WAYS: [InPlace; 2] = [InPlace::Checked, InPlace::Direct];

/// The last word of page `index`.
fn last(range: PageRange, index: usize) -> VirtAddr {
    VirtAddr::new(first(range, index + 1).get() - 8)
}

fn reads_the_file(view: &mut View<'_>, range: PageRange, page: usize) -> Result<(), AccessError> {
    let found = [view.load(first(range, page))?, view.load(last(range, page))?];
    assert_eq!(found, [word(page, 0); 2], "page {page}");
    Ok(())
}

#[test]
fn kernels_read_them_wherever_they_are_and_move_none() {
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    let range = mapping.range();
    for in_place in WAYS {
        for target in [Target::System, Target::Device(PRIVATE), Target::Device(COHERENT)] {
            let _ = runtime.migrate(range, Request::all_to(target));
            let before = runtime.residency(range);
            let device = mapping.accelerator(PRIVATE, Options { in_place, ..Options::default() }).unwrap();
            device.launch(PAGES, |view, page| reads_the_file(view, range, page)).unwrap();
            let (after, statistics) = (runtime.residency(range), runtime.statistics());
            let moved = before.iter().zip(&after).position(|(before, after)| before != after);
            assert_eq!(
                moved,
                None,
                "{target:?} {in_place:?}: used where they are; {statistics:?} {:?}",
                device.activity()
            );
            let in_frames = matches!(device.entry(first(range, 7)).unwrap().route, Route::Frame(_));
            assert_eq!(in_frames, target == Target::Device(PRIVATE));
            let refused = AccessError::Fault(RangeFaultError::ReadOnly(first(range, 7)));
            assert_eq!(device.view().store(first(range, 7), 1), Err(refused));
            assert_eq!(device.view().fetch_add(first(range, 7), 1), Err(refused));
            assert_eq!(device.make_exclusive(range), Err(AccessError::Fault(RangeFaultError::ReadOnly(range.start()))));
            assert_eq!(runtime.residency(range), before);
            runtime.check();
        }
    }
    // In a private frame of another device they can't be used.
    all_moved(&runtime.migrate(range, HOME));
    all_moved(&runtime.migrate(range, to(PRIVATE)));
    let other = mapping.accelerator(COHERENT, Options::default()).unwrap();
    other.launch(PAGES, |view, page| reads_the_file(view, range, page)).unwrap();
    assert!(runtime.residency(range).iter().all(|page| *page == Residency::System));
    runtime.check();
}

/// What is answered of the first page.
fn asked(runtime: &Runtime, mapping: &FileMapping, want: Want, of: bool) -> Result<MirrorPage, RangeFaultError> {
    let (mut pages, owner) = (vec![MirrorPage::default(); PAGES], runtime.owner(PRIVATE).filter(|_| of));
    runtime.range_fault(mapping.range(), RangeFault { want, owner, ..RangeFault::default() }, &mut pages)?;
    Ok(pages[0])
}

#[test]
fn mirrors_are_told_where_they_are_and_before_that_changes() {
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    let range = mapping.range();
    let events: Arc<Mutex<Vec<Event>>> = Arc::default();
    let told = Arc::clone(&events);
    let subscription = runtime.subscribe(range, move |notice| {
        notice.set_seq();
        told.lock().unwrap().push(notice.event());
    });
    let subscription = subscription.unwrap();
    let told = |what: &str| {
        let told = std::mem::take(&mut *events.lock().unwrap());
        assert!(!told.is_empty() && told.iter().all(|event| matches!(event, Event::Migrate(_))), "{what}: {told:?}");
    };

    let seq = subscription.read_begin();
    assert_eq!(asked(&runtime, &mapping, Want::Read, true).unwrap().place(), Some(Place::System));
    assert_eq!(asked(&runtime, &mapping, Want::Write, true), Err(RangeFaultError::ReadOnly(range.start())));
    assert!(!subscription.read_retry(seq), "faults of what is in the page cache change nothing");

    all_moved(&runtime.migrate(range, to(COHERENT)));
    assert!(subscription.read_retry(seq));
    told("out");
    let found = asked(&runtime, &mapping, Want::Snapshot, true).unwrap();
    assert!(matches!(found.place(), Some(Place::Device(frame)) if frame.device == COHERENT), "{found:?}");
    assert!(!found.is_private() && !found.is_writable() && u64::from(found.order()) == BLOCK_PAGES.ilog2().into());

    let _ = runtime.migrate(range, to(PRIVATE));
    told("from device to device");
    let found = asked(&runtime, &mapping, Want::Read, true).unwrap();
    assert!(found.is_private() && !found.is_writable(), "{found:?}");
    assert!(events.lock().unwrap().is_empty(), "the owner's frames are answered as they are");
    assert_eq!(asked(&runtime, &mapping, Want::Read, false).unwrap().place(), Some(Place::System));
    told("a touch for somebody else");

    let _ = runtime.migrate(range, to(PRIVATE));
    told("out again");
    drop(OpenOptions::new().write(true).open(&path).unwrap());
    told("somebody wants to write");
    assert_eq!(asked(&runtime, &mapping, Want::Read, true).unwrap().place(), Some(Place::System));
    drop(mapping);
    assert_eq!(events.lock().unwrap().last(), Some(&Event::Unmap));
}

#[test]
fn answers_name_a_mapping_whatever_takes_its_place() {
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    // Little of a block, so that it is exchanged often.
    let few = mapping.range().slice(PageCount::new(2 * BLOCK_PAGES), PageCount::new(8));
    common::while_migrating(&runtime, few, &[to(COHERENT), to(PRIVATE), HOME], || {
        let mut pages = [MirrorPage::default(); 8];
        for _ in 0..5_000 {
            runtime.range_fault(few, RangeFault::default(), &mut pages).unwrap();
            assert!(pages.iter().all(|page| !page.is_error()), "something is mapped there all the time: {pages:?}");
        }
    });
}

#[test]
fn kernels_read_what_the_file_has_whoever_moves_touches_or_writes_it() {
    for in_place in WAYS {
        let (runtime, path) = (runtime(), file());
        let mapping = map(&runtime, &path);
        let range = mapping.range();
        let (version, reads) = (AtomicU64::new(0), AtomicU64::new(0));
        // Pages are written from the first to the last: what is read is of no older version than was complete before.
        let is_known = |page: usize, before: u64, found: u64| {
            let after = version.load(SeqCst);
            let known = (before..=after + 1).any(|version| found == word(page, version));
            assert!(known, "page {page} has {found:x}, of no version from {before} to {}", after + 1);
            reads.fetch_add(1, SeqCst);
        };
        let devices = [PRIVATE, COHERENT].map(|device| accelerator(&runtime, device, range, in_place));
        let [private, coherent] = devices.each_ref().map(|device| {
            |round: u64| {
                let page = usize::try_from(round * 7919).unwrap() % PAGES;
                let before = version.load(SeqCst);
                is_known(page, before, device.view().load(first(range, page)).unwrap());
            }
        });
        let touch = |round: u64| {
            let page = usize::try_from(round * 6007).unwrap() % PAGES;
            let before = version.load(SeqCst);
            is_known(page, before, read(&mapping, page).0);
        };
        let ways = [to(COHERENT), to(PRIVATE), HOME, to(PRIVATE), to(COHERENT), HOME];
        let moved = AtomicU64::new(0);
        let move_on = |round: u64| {
            let request = ways[usize::try_from(round).unwrap() % ways.len()];
            moved.fetch_add(runtime.migrate(range, request).moved().get(), SeqCst);
        };
        while_disturbed(&[&private, &coherent, &touch, &move_on], || {
            for round in 1..=10 {
                let writer = OpenOptions::new().write(true).open(&path).unwrap();
                writer.write_all_at(&bytes(round), 0).unwrap();
                drop(writer);
                version.store(round, SeqCst);
                let (before, pages) = (reads.load(SeqCst), moved.load(SeqCst));
                while reads.load(SeqCst) < before + 1000 || moved.load(SeqCst) < pages + PAGES as u64 {
                    std::thread::yield_now();
                }
            }
        });
        drop(devices);
        runtime.check();
        verify(&mapping, 10);
    }
}

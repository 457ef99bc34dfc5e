//! `make_device_exclusive`, by an accelerator: what can be held, what ends it, and that bytes never move.

use hetmem::accelerator::{Accelerator, AccessError, InPlace, Options};
use hetmem::mirror::{Event, RangeFaultError, Want};
use hetmem::{FaultPath, KeptReason, PageOutcome, Request, Residency, Runtime, Target};
use hetmem_core::device_table::Route;
use hetmem_core::units::{DeviceId, PageRange};

use crate::case::{Case, Managed, owner, part};
use crate::common::Raw;
use crate::events::Told;
use crate::mappings::{self, Done, Hugetlb};
use crate::range_fault::{Seen, ask, seen};

/// As many pages as are taken one by one in no time, at the border of a huge page.
const SOME: u64 = 24;

fn accelerator(runtime: &Runtime, device: DeviceId, range: PageRange) -> Accelerator {
    let options = Options { workers: 1, in_place: InPlace::Checked };
    // SAFETY: memory of the test, which no reference is to.
    unsafe { runtime.accelerator(device, range, options) }.unwrap()
}

fn some(memory: &Raw) -> PageRange {
    part(memory.range(), 512 - SOME / 2, SOME)
}

fn held(device: &Accelerator, range: PageRange) -> bool {
    range.iter().all(|page| device.is_exclusive(page))
}

/// Runs `test` with the pages in system memory and on the device, whose accelerator takes them.
fn each(test: impl Fn(&Case, &Runtime, Managed<'_>)) {
    for path in [FaultPath::Thread, FaultPath::Sigbus] {
        Case::each(|case, runtime| {
            test(case, runtime, Managed::by(runtime, case.written(1024), path));
            if !case.is_private() {
                let memory = Managed::by(runtime, case.written(1024), path);
                memory.place(case);
                test(case, runtime, memory);
            }
        });
    }
}

#[test]
fn pages_are_made_present_writable_and_unshared_first() {
    type Make = fn(&Case) -> Option<Raw>;
    let kinds: [(Make, bool); 4] =
        [(mappings::hole, true), (mappings::zero, true), (mappings::anonymous, false), (mappings::divided, false)];
    Case::each(|case, runtime| {
        for (make, empty) in kinds {
            let memory = Managed::new(runtime, make(case).unwrap());
            let device = accelerator(runtime, case.device, memory.range());
            let range = part(memory.range(), 500, 12);
            device.make_exclusive(range).unwrap();
            assert!(held(&device, range));
            let value = |i: u64| if empty { 0 } else { i % 251 + 1 };
            for i in 500..512 {
                assert_eq!(device.view().fetch_add(memory.page(i), 7), Ok(value(i)));
                assert_eq!(memory.get(i), value(i) + 7, "the program sees what the device did");
            }
        }
    });
}

#[test]
fn what_cannot_be_held_is_refused() {
    let hugetlb = Hugetlb::reserve();
    Case::each(|case, runtime| {
        let refusal = |memory: &Raw| {
            let device = accelerator(runtime, case.device, memory.range());
            let result = device.make_exclusive(memory.range());
            assert!(!device.is_exclusive(memory.page(0)));
            result
        };
        let not_exclusive = |memory: &Raw, why| Err(AccessError::NotExclusive(memory.page(0), why));
        let read_only = Managed::new(runtime, mappings::read_only(case).unwrap());
        let why = AccessError::Fault(RangeFaultError::ReadOnly(read_only.page(0)));
        assert_eq!(refusal(&read_only), Err(why));
        let hidden = Managed::new(runtime, mappings::no_access(case).unwrap());
        assert_eq!(refusal(&hidden), Err(AccessError::Fault(RangeFaultError::NoAccess(hidden.page(0)))));
        // The kernel takes any anonymous page; hetmem those that it manages and can move.
        let unmanaged = case.written(4);
        assert_eq!(refusal(&unmanaged), not_exclusive(&unmanaged, KeptReason::Unmanaged));
        let files = [mappings::memfd(true, Done::Written), mappings::file(false, Done::Written)];
        for other in files.into_iter().chain(hugetlb.as_ref().map(Hugetlb::map)) {
            other.fill();
            let other = Managed::new(runtime, other);
            assert_eq!(refusal(&other), not_exclusive(&other, KeptReason::Unsupported));
            other.verify();
        }
    });
}

#[test]
fn a_touch_for_reading_ends_it_and_the_device_is_told() {
    each(|case, runtime, memory| {
        let device = accelerator(runtime, case.device, memory.range());
        let told = Told::of(runtime, memory.range());
        let range = some(&memory);
        device.make_exclusive(range).unwrap();
        let own = owner(runtime, case.device);
        let (taken, other): (Vec<_>, Vec<_>) =
            told.take().into_iter().partition(|(_, event)| *event == Event::Exclusive(own));
        let pages: Vec<PageRange> = taken.iter().map(|(range, _)| *range).collect();
        assert_eq!(pages, range.iter().map(PageRange::page_of).collect::<Vec<_>>(), "each page once: {other:?}");
        let first = 512 - SOME / 2;
        let value = memory.get(first);
        assert_eq!(value, first % 251 + 1);
        assert!(
            !device.is_exclusive(range.start()) && held(&device, part(range, 1, SOME - 1)),
            "only what was touched"
        );
        assert!(told.take().contains(&(PageRange::page_of(range.start()), Event::Exclusive(None))));
        memory.verify();
    });
}

#[test]
fn bytes_never_move() {
    each(|case, runtime, memory| {
        let device = accelerator(runtime, case.device, memory.range());
        let copied = || runtime.statistics().bytes_copied;
        let (before, where_before) = (copied(), runtime.residency(memory.range()));
        let range = some(&memory);
        let frames = |want| ask(runtime, range, want, None).1;
        let placed = frames(Want::Snapshot);
        device.make_exclusive(range).unwrap();
        let at: Vec<Route> = range.iter().map(|page| device.entry(page).unwrap().route).collect();
        assert!(at.iter().all(|route| matches!(route, Route::Frame(_))));
        assert!(frames(Want::Snapshot).iter().all(|page| seen(*page) == Seen::Nothing), "no mirror may use them");
        memory.verify();
        assert_eq!((copied(), runtime.residency(memory.range())), (before, where_before));
        let found: Vec<Seen> = frames(Want::Snapshot).into_iter().map(seen).collect();
        assert_eq!(found, placed.into_iter().map(seen).collect::<Vec<_>>(), "frames are the same");
    });
}

#[test]
fn a_range_fault_ends_it_like_a_touch() {
    each(|case, runtime, memory| {
        for want in [Want::Read, Want::Write] {
            let device = accelerator(runtime, case.device, memory.range());
            let range = some(&memory);
            device.make_exclusive(range).unwrap();
            let (result, pages) = ask(runtime, range, want, None);
            assert!(result.is_ok() && pages.iter().all(|page| page.is_writable()), "{pages:?}");
            assert!(range.iter().all(|page| !device.is_exclusive(page)));
            memory.verify();
        }
    });
}

/// The kernel leaves such pages where they are until the device gives them up; here the device is told, and they move.
#[test]
fn a_migration_ends_it_and_the_device_is_told() {
    each(|case, runtime, memory| {
        let device = accelerator(runtime, case.device, memory.range());
        let range = some(&memory);
        device.make_exclusive(range).unwrap();
        let told = Told::of(runtime, range);
        let target = Target::Device(case.other());
        assert_eq!(memory.migrate(Request::all_to(target)), PageOutcome::Moved);
        assert_eq!(told.take()[0].1, Event::Migrate(None));
        assert!(range.iter().all(|page| !device.is_exclusive(page)));
        memory.verify();
    });
}

#[test]
fn private_frames_are_exclusive_by_nature_and_anothers_come_home_first() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        memory.place(case);
        let range = some(&memory);
        let device = accelerator(runtime, case.device, memory.range());
        device.make_exclusive(range).unwrap();
        assert_eq!(held(&device, range), !case.is_private());
        if case.is_private() {
            assert!(memory.is_at(Residency::Device(case.device)));
        }
        let other = accelerator(runtime, case.other(), memory.range());
        other.make_exclusive(range).unwrap();
        assert!(held(&other, range) && !held(&device, range));
        let there = Residency::Device(case.device);
        let expected = if case.is_private() { Residency::System } else { there };
        assert!(runtime.residency(range).iter().all(|r| *r == expected));
        memory.verify();
    });
}

#[test]
fn a_protection_takes_the_right_to_write_and_contents_stay() {
    each(|case, runtime, memory| {
        let device = accelerator(runtime, case.device, memory.range());
        let range = some(&memory);
        device.make_exclusive(range).unwrap();
        runtime.announce(memory.range(), Event::ProtectionVma, || memory.protect(0, 1024, libc::PROT_READ));
        let at = range.start();
        assert_eq!(device.view().store(at, 1), Err(AccessError::Fault(RangeFaultError::ReadOnly(at))));
        memory.verify();
        runtime.announce(memory.range(), Event::ProtectionVma, || {
            memory.protect(0, 1024, libc::PROT_READ | libc::PROT_WRITE);
        });
        device.make_exclusive(range).unwrap();
        memory.verify();
    });
}

#[test]
fn the_end_of_the_mapping_ends_it() {
    each(|case, runtime, memory| {
        let device = accelerator(runtime, case.device, memory.range());
        let range = some(&memory);
        device.make_exclusive(range).unwrap();
        memory.discard(512 - SOME / 2, SOME / 2);
        memory.unmap(512, SOME / 2);
        let _ = runtime.residency(memory.range());
        assert!(range.iter().all(|page| !device.is_exclusive(page)));
        assert_eq!(memory.get(511), 0);
        assert_eq!(
            device.view().load(memory.page(512)),
            Err(AccessError::Fault(RangeFaultError::NoMapping(memory.page(512))))
        );
    });
}

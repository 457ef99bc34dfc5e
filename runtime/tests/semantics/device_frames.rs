//! `hmm_range_fault` on pages of devices: one's own, another's, in transit, held exclusively, and the loop rule with the notifier.

use hetmem::mirror::{MirrorPage, Place, RangeFault, RangeFaultError, Want};
use hetmem::{FaultPath, PageOutcome, Request, Residency, Target};
use hetmem_core::units::DeviceId;

use crate::case::{Case, Managed, PAGES, owner};
use crate::mappings::FEW;
use crate::range_fault::{Seen, WANTS, ask, seen};

const SYSTEM: Seen = Seen::Writes(Place::System);

/// The device that all of `pages` lie on, and whether they can be written.
fn on_device(pages: &[MirrorPage]) -> Option<(DeviceId, bool)> {
    let of = |page: &MirrorPage| match page.place()? {
        Place::Device(frame) => Some((frame.device, page.is_writable())),
        Place::System | Place::Zero => None,
    };
    let first = of(pages.first()?)?;
    pages.iter().all(|page| of(page) == Some(first)).then_some(first)
}

#[test]
fn a_devices_own_pages_are_named_and_never_faulted() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        memory.place(case);
        let faults = || runtime.statistics().cpu_faults;
        let before = faults();
        for want in WANTS {
            let (result, pages) = ask(runtime, memory.range(), want, owner(runtime, case.device));
            assert_eq!(result, Ok(()));
            assert_eq!(on_device(&pages), Some((case.device, true)), "{want:?}");
            assert!(pages.iter().all(|page| page.is_private() == case.is_private()));
            let frames: std::collections::BTreeSet<_> = pages.iter().map(|page| format!("{page:?}")).collect();
            assert_eq!(frames.len(), pages.len(), "each page has a frame of its own");
        }
        assert!(memory.is_at(Residency::Device(case.device)) && faults() == before);
    });
}

/// A private frame's entry says what its mapping allows; a coherent frame is used in place, where a write is refused.
#[test]
fn a_read_only_mapping_makes_a_devices_page_read_only() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        memory.place(case);
        memory.protect(0, PAGES, libc::PROT_READ);
        for want in WANTS {
            let (result, pages) = ask(runtime, memory.range(), want, owner(runtime, case.device));
            if want == Want::Write && !case.is_private() {
                assert_eq!(result, Err(RangeFaultError::ReadOnly(memory.page(0))));
            } else {
                assert_eq!((result, on_device(&pages)), (Ok(()), Some((case.device, false))), "{want:?}");
            }
        }
        // Of somebody else's nothing is brought home for a write that is not allowed.
        let result = ask(runtime, memory.range(), Want::Write, None).0;
        assert_eq!(result, Err(RangeFaultError::ReadOnly(memory.page(0))));
        assert!(memory.is_at(Residency::Device(case.device)));
        memory.protect(0, PAGES, libc::PROT_NONE);
        let (result, pages) = ask(runtime, memory.range(), Want::Snapshot, owner(runtime, case.device));
        assert!(result.is_ok() && pages.iter().all(|page| seen(*page) == Seen::Error));
        let result = ask(runtime, memory.range(), Want::Read, owner(runtime, case.device)).0;
        assert_eq!(result, Err(RangeFaultError::NoAccess(memory.page(0))));
        memory.protect(0, PAGES, libc::PROT_READ | libc::PROT_WRITE);
        memory.verify();
    });
}

#[test]
fn another_owners_private_pages_come_home_and_coherent_ones_are_named() {
    Case::each(|case, runtime| {
        for path in [FaultPath::Thread, FaultPath::Sigbus] {
            for asks in [None, owner(runtime, case.other())] {
                for want in WANTS {
                    let memory = Managed::by(runtime, case.written(PAGES), path);
                    memory.place(case);
                    let (result, pages) = ask(runtime, memory.range(), want, asks);
                    assert_eq!(result, Ok(()));
                    match (case.is_private(), want) {
                        (false, _) => assert_eq!(on_device(&pages), Some((case.device, true))),
                        (true, Want::Snapshot) => assert!(pages.iter().all(|page| seen(*page) == Seen::Nothing)),
                        (true, _) => assert!(pages.iter().all(|page| seen(*page) == SYSTEM), "{want:?}"),
                    }
                    let home = case.is_private() && want != Want::Snapshot;
                    assert!(memory.is_at(if home { Residency::System } else { Residency::Device(case.device) }));
                    memory.verify();
                }
            }
        }
    });
}

/// Order is what the program's mapping has; a private frame has none.
#[test]
fn frames_have_the_order_of_their_mapping() {
    Case::each(|case, runtime| {
        let memory = Managed::new(runtime, case.written(512));
        memory.place(case);
        let order = if memory.is_huge() { 9 } else { 0 };
        assert!(!case.is_private() || order == 0);
        let pages = ask(runtime, memory.range(), Want::Write, owner(runtime, case.device)).1;
        assert!(pages.iter().all(|page| page.order() == order), "{order}: {:?}", pages[0]);
    });
}

#[test]
fn pages_in_transit_are_waited_for() {
    Case::each_with(",latency=5ms", |case, runtime| {
        let memory = Managed::new(runtime, case.written(FEW));
        let meet = || {
            std::thread::scope(|scope| {
                let mover = scope.spawn(|| memory.migrate(case.there()));
                while !mover.is_finished() && !memory.is_at(Residency::Migrating) {
                    std::thread::yield_now();
                }
                let looked_at = ask(runtime, memory.range(), Want::Snapshot, owner(runtime, case.device)).1;
                let met = looked_at.iter().all(|page| seen(*page) == Seen::Nothing) && !mover.is_finished();
                let (result, pages) = ask(runtime, memory.range(), Want::Write, owner(runtime, case.device));
                assert_eq!(result, Ok(()));
                assert!(pages.iter().all(|page| page.is_writable()), "{pages:?}");
                assert_eq!(mover.join().unwrap(), PageOutcome::Moved);
                memory.verify();
                memory.migrate(Request::all_to(Target::System));
                met
            })
        };
        assert!((0..200).any(|_| meet()), "a migration and a range fault never met");
    });
}

#[test]
fn once_the_range_has_changed_nothing_is_faulted() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        let subscription = runtime.subscribe(memory.range(), |notice| notice.set_seq()).unwrap();
        let seq = subscription.read_begin();
        let request =
            RangeFault { want: Want::Write, unless_changed: Some((&subscription, seq)), ..RangeFault::default() };
        let mut out = vec![MirrorPage::default(); memory.range().pages().as_usize()];
        assert_eq!(runtime.range_fault(memory.range(), request, &mut out), Ok(()));
        memory.place(case);
        assert_eq!(runtime.range_fault(memory.range(), request, &mut out), Err(RangeFaultError::Changed));
        assert!(memory.is_at(Residency::Device(case.device)));
        let seq = subscription.read_begin();
        assert!(!subscription.read_retry(seq), "a new beginning");
        // Bringing pages home for somebody else is a change by itself: of the range that was asked about.
        let request = RangeFault { unless_changed: Some((&subscription, seq)), ..request };
        let expected = if case.is_private() { Err(RangeFaultError::Changed) } else { Ok(()) };
        assert_eq!(runtime.range_fault(memory.range(), request, &mut out), expected);
        memory.verify();
    });
}

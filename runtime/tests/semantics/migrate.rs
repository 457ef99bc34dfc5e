//! What becomes of pages that were taken: the driver's copy, `migrate_vma_pages`, `_finalize`, and `migrate_device_range`.

use hetmem::{KeptReason, PageOutcome, Request, Residency, Runtime, Target};
use hetmem_core::frames::FrameRun;
use hetmem_core::units::{ByteLen, FrameIndex, PageCount};
use hetmem_devices::spec::parse_all;

use crate::case::{Case, Managed, PAGES, part};
use crate::mappings;

#[test]
fn pages_without_a_frame_go_back_one_by_one() {
    Case::each(|case, _| {
        let kind = if case.is_private() { "private" } else { "coherent" };
        let spec = parse_all(&[format!("{kind}:emulated,size=64K")], ByteLen::new(1 << 40)).unwrap().remove(0);
        let runtime = Runtime::builder().device(spec).start().unwrap();
        let memory = case.managed(&runtime);
        let outcomes =
            runtime.migrate(memory.range(), Request::all_to(Target::Device(hetmem_core::units::DeviceId::new(0))));
        assert_eq!(
            (outcomes.moved().get(), outcomes.kept(KeptReason::NoFrame).get()),
            (16, PAGES - 16),
            "{outcomes:?}"
        );
        memory.verify();
    });
}

#[test]
fn pages_that_the_device_fails_to_copy_go_back_one_by_one() {
    Case::each_with(",fail=2", |case, runtime| {
        let memory = case.managed(runtime);
        // Each run of pages is a copy: every second page is one by itself.
        let (mut moved, mut failed) = (0, 0);
        for i in (0..64).step_by(2) {
            match runtime.migrate(part(memory.range(), i, 1), case.there()).as_slice() {
                [PageOutcome::Moved] => moved += 1,
                [PageOutcome::Kept(KeptReason::DeviceError)] => failed += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((moved, failed), (16, 16));
        memory.verify();
    });
}

#[test]
fn whoever_touches_a_page_in_transit_sleeps_until_it_has_arrived() {
    Case::each_with(",latency=5ms", |case, runtime| {
        let memory = Managed::new(runtime, case.written(mappings::FEW));
        let meet = || {
            std::thread::scope(|scope| {
                let mover = scope.spawn(|| memory.migrate(case.there()));
                while !mover.is_finished() && !memory.is_at(Residency::Migrating) {
                    std::thread::yield_now();
                }
                let met = memory.is_at(Residency::Migrating);
                memory.verify();
                let met = met && mover.is_finished();
                assert_eq!(mover.join().unwrap(), PageOutcome::Moved);
                // Of a private device each comes home to who touches it.
                memory.verify();
                let home = Residency::System;
                assert!(memory.is_at(if case.is_private() { home } else { Residency::Device(case.device) }));
                memory.migrate(Request::all_to(Target::System));
                met
            })
        };
        assert!((0..200).any(|_| meet()), "a touch and a migration never met");
    });
}

/// The kernel's are the same for `migrate_device_range`, which has no mapping to go by.
#[test]
fn frames_are_emptied_without_an_address() {
    Case::each(|case, runtime| {
        let (memory, other) = (case.managed(runtime), case.managed(runtime));
        memory.place(case);
        assert_eq!(other.migrate(Request::all_to(Target::Device(case.other()))), PageOutcome::Moved);
        let frames = FrameRun { first: FrameIndex::new(0), pages: PageCount::new(16384) };
        assert_eq!(runtime.evict(case.device, frames).get(), PAGES);
        assert_eq!(runtime.evict(case.device, frames), PageCount::ZERO, "free frames have no page");
        assert!(memory.is_at(Residency::System) && other.is_at(Residency::Device(case.other())));
        memory.verify();
        other.verify();
    });
}

/// The kernel keeps the protection in the entry; a private page comes home by copying, as moving needs a mapping that can be written.
#[test]
fn a_page_comes_home_to_a_mapping_that_has_become_read_only() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        memory.place(case);
        memory.protect(0, PAGES, libc::PROT_READ);
        memory.verify();
        memory.protect(0, PAGES, libc::PROT_READ | libc::PROT_WRITE);
        memory.set(3, 4);
        memory.verify();
    });
}

/// Huge pages come and go whole, and what comes home may be divided: never a content.
#[test]
fn contents_survive_any_number_of_journeys() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        for request in [case.there(), Request::all_to(Target::Device(case.other())), Request::all_to(Target::System)]
            .into_iter()
            .cycle()
            .take(9)
        {
            assert_eq!(memory.migrate(request), PageOutcome::Moved);
            runtime.check();
        }
        memory.verify();
    });
}

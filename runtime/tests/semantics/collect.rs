//! Which pages a migration takes: `migrate_vma_setup` and its walk, entry by entry.

use hetmem::{Advice, KeptReason, PageOutcome, Request, Residency, Select, Target};
use hetmem_core::units::{PageCount, PageRange};
use hetmem_sys::uffd::{Access, Features, Mode, Userfaultfd};

use crate::case::{Case, Managed, PAGES, kept, owner, part, the_same};
use crate::common::Raw;
use crate::mappings::{self, Done, FEW, Hugetlb};

/// Every set of kinds but the empty one.
fn selections() -> impl Iterator<Item = Select> {
    let kinds = [Select::SYSTEM, Select::DEVICE_PRIVATE, Select::DEVICE_COHERENT];
    (1..8).filter_map(move |bits| {
        (0..3).filter(|bit| bits & (1 << bit) != 0).map(|bit: usize| kinds[bit]).reduce(Select::union)
    })
}

#[test]
fn a_range_without_pages_has_no_outcomes_and_one_without_a_mapping_is_kept() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        let nothing = part(memory.range(), 3, 0);
        assert_eq!(runtime.migrate(nothing, case.there()).as_slice(), []);
        // Beyond what is managed, and where nothing is mapped any more.
        let beyond = PageRange::new(memory.range().start(), PageCount::new(PAGES + 3)).unwrap();
        let outcomes = runtime.migrate(beyond, case.there());
        assert_eq!(outcomes.as_slice().split_at(memory.range().pages().as_usize()).1, [kept(KeptReason::Unmanaged); 3]);
        assert_eq!(outcomes.moved().get(), PAGES);
        memory.unmap(8, 8);
        let outcomes = runtime.migrate(memory.range(), Request::all_to(Target::System));
        assert_eq!(outcomes.as_slice()[8..16], [kept(KeptReason::Unmanaged); 8]);
        assert_eq!(outcomes.moved().get(), PAGES - 8);
    });
}

#[test]
fn present_pages_are_taken_if_system_memory_is_selected() {
    Case::each(|case, runtime| {
        for select in selections() {
            for owner in [None, owner(runtime, case.device), owner(runtime, case.other())] {
                let memory = case.managed(runtime);
                let outcome = memory.migrate(Request { select, owner, ..case.there() });
                let taken = select.contains(Select::SYSTEM);
                assert_eq!(outcome, if taken { PageOutcome::Moved } else { kept(KeptReason::NotSelected) });
                assert!(memory.is_at(if taken { Residency::Device(case.device) } else { Residency::System }));
                memory.verify();
            }
        }
    });
}

#[test]
fn a_devices_pages_are_taken_if_they_are_selected_and_of_the_owner() {
    Case::each(|case, runtime| {
        for target in [Target::System, Target::Device(case.other())] {
            for select in selections() {
                for owner in [None, owner(runtime, case.device), owner(runtime, case.other())] {
                    let memory = case.managed(runtime);
                    memory.place(case);
                    let outcome = memory.migrate(Request { target, select, owner });
                    let expected = if !select.contains(case.select()) {
                        kept(KeptReason::NotSelected)
                    } else if owner.is_some_and(|owner| Some(owner) != runtime.owner(case.device)) {
                        kept(KeptReason::ForeignOwner)
                    } else {
                        PageOutcome::Moved
                    };
                    assert_eq!(outcome, expected, "{target:?} {select:?} {owner:?}");
                    assert_eq!(memory.is_at(Residency::Device(case.device)), outcome != PageOutcome::Moved);
                    memory.verify();
                }
            }
        }
    });
}

/// The kernel lists them, and puts pages there that read as zeros.
#[test]
fn holes_are_named_and_stay_holes() {
    Case::each(|case, runtime| {
        for select in selections() {
            let memory = Managed::new(runtime, case.empty(PAGES));
            let outcome = memory.migrate(Request { select, ..case.there() });
            let selected = select.contains(Select::SYSTEM);
            assert_eq!(outcome, kept(if selected { KeptReason::Hole } else { KeptReason::NotSelected }));
            assert!(memory.present() == 0, "nothing is faulted in");
            assert!((0..PAGES).all(|i| memory.get(i) == 0));
        }
    });
}

#[test]
fn zero_pages_are_taken_if_system_memory_is_selected() {
    Case::each(|case, runtime| {
        for select in selections() {
            let memory = Managed::new(runtime, mappings::zero(case).unwrap());
            let outcome = memory.migrate(Request { select, ..case.there() });
            let taken = select.contains(Select::SYSTEM);
            assert_eq!(outcome, if taken { PageOutcome::Moved } else { kept(KeptReason::NotSelected) });
            assert!((0..1024).all(|i| memory.get(i) == 0));
            memory.fill();
            memory.verify();
        }
    });
}

#[test]
fn a_part_of_a_huge_page_is_taken_alone() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        let few = part(memory.range(), 100, 3);
        assert_eq!(the_same(&runtime.migrate(few, case.there())), PageOutcome::Moved);
        let there: Vec<u64> = (0..)
            .zip(runtime.residency(memory.range()))
            .filter(|(_, r)| *r == Residency::Device(case.device))
            .map(|(i, _)| i)
            .collect();
        assert_eq!(there, [100, 101, 102]);
        memory.verify();
    });
}

/// The kernel leaves them: what it splits is only what is mapped as one.
#[test]
fn pages_of_a_huge_page_that_is_mapped_page_by_page_are_taken() {
    Case::each(|case, runtime| {
        let memory = Managed::new(runtime, mappings::divided(case).unwrap());
        assert_eq!(memory.migrate(case.there()), PageOutcome::Moved);
        memory.verify();
    });
}

/// What is no ordinary page of private anonymous memory stays, with a reason. The kernel's sources say no more of it than a cleared bit.
#[test]
fn what_user_space_cannot_move_is_kept_whole() {
    type Make = fn(&Case) -> Option<Raw>;
    let kinds: [(&str, Make); 18] = [
        ("read-only", mappings::read_only),
        ("no access", mappings::no_access),
        ("locked", mappings::locked),
        ("guard pages", mappings::guarded),
        ("ring of a driver", |_| mappings::special()),
        ("memfd, private, not touched", |_| Some(mappings::memfd(false, Done::Nothing))),
        ("memfd, private, read", |_| Some(mappings::memfd(false, Done::Read))),
        ("memfd, private, written", |_| Some(mappings::memfd(false, Done::Written))),
        ("memfd, shared, not touched", |_| Some(mappings::memfd(true, Done::Nothing))),
        ("memfd, shared, written", |_| Some(mappings::memfd(true, Done::Written))),
        ("file, private, not touched", |_| Some(mappings::file(false, Done::Nothing))),
        ("file, private, read", |_| Some(mappings::file(false, Done::Read))),
        ("file, private, written", |_| Some(mappings::file(false, Done::Written))),
        ("file, shared, not touched", |_| Some(mappings::file(true, Done::Nothing))),
        ("file, shared, written", |_| Some(mappings::file(true, Done::Written))),
        ("shared anonymous, not touched", |_| Some(mappings::shared_anonymous(Done::Nothing))),
        ("shared anonymous, written", |_| Some(mappings::shared_anonymous(Done::Written))),
        ("beyond the end of a file", |_| Some(mappings::beyond_the_end(false))),
    ];
    Case::each(|case, runtime| {
        for (name, make) in kinds {
            let Some(raw) = make(case) else { continue };
            let present = raw.present();
            let memory = Managed::new(runtime, raw);
            let why = match name {
                "locked" => KeptReason::Locked,
                "guard pages" => KeptReason::Guarded,
                _ => KeptReason::Unsupported,
            };
            assert_eq!(memory.migrate(case.there()), kept(why), "{name}");
            assert_eq!(memory.present(), present, "{name}: nothing is faulted in and nothing is lost");
            if name.ends_with("written") || name == "locked" {
                memory.verify();
            }
        }
    });
}

#[test]
fn hugetlb_is_kept_and_usable_beside_pages_that_are_away() {
    let Some(hugetlb) = Hugetlb::reserve() else { return };
    Case::each(|case, runtime| {
        let memory = Managed::new(runtime, hugetlb.map_behind(case.written(512)));
        let (pages, rest) = (part(memory.range(), 0, 512), part(memory.range(), 512, Hugetlb::PAGES));
        assert_eq!(the_same(&runtime.migrate(pages, case.there())), PageOutcome::Moved);
        assert_eq!(the_same(&runtime.migrate(rest, case.there())), kept(KeptReason::Unsupported));
        (512..512 + Hugetlb::PAGES).for_each(|i| memory.set(i, i % 251 + 1));
        assert_eq!(the_same(&runtime.migrate(rest, case.there())), kept(KeptReason::Unsupported));
        memory.verify();
    });
}

#[test]
fn memory_that_somebody_else_watches_is_kept() {
    Case::each(|case, runtime| {
        let raw = case.written(PAGES);
        let foreign = Userfaultfd::open(Features::NONE, Access::Full).unwrap();
        foreign.register(raw.range(), Mode::MISSING).unwrap();
        let memory = Managed::new(runtime, raw);
        assert_eq!(memory.migrate(case.there()), kept(KeptReason::ForeignUserfaultfd));
        memory.verify();
        drop(foreign);
        assert_eq!(memory.migrate(case.there()), PageOutcome::Moved);
        memory.verify();
    });
}

#[test]
fn pinned_pages_are_kept_and_their_neighbours_move() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        let Some(ring) = mappings::pin(part(memory.range(), 5, 2)) else { return };
        let outcomes = runtime.migrate(memory.range(), case.there());
        assert_eq!(outcomes.as_slice()[5..7], [kept(KeptReason::Pinned); 2], "{outcomes:?}");
        // Of a huge page the whole is pinned.
        let pinned = if case.huge { 512 } else { 2 };
        assert_eq!((outcomes.kept(KeptReason::Pinned).get(), outcomes.moved().get()), (pinned, PAGES - pinned));
        memory.verify();
        drop(ring);
        runtime.advise(memory.range(), Advice::Pin).unwrap();
        assert_eq!(memory.migrate(Request::all_to(Target::System)), kept(KeptReason::Advised));
    });
}

/// The kernel leaves them where they are.
#[test]
fn swapped_pages_are_taken() {
    Case::each(|case, runtime| {
        let Some(raw) = mappings::swapped(case) else { return };
        let memory = Managed::new(runtime, raw);
        assert_eq!(memory.migrate(case.there()), PageOutcome::Moved);
        memory.verify();
    });
}

#[test]
fn pages_in_transit_are_left_to_who_moves_them() {
    Case::each_with(",latency=5ms", |case, runtime| {
        let memory = Managed::new(runtime, case.written(FEW));
        let meet = || {
            std::thread::scope(|scope| {
                let first = scope.spawn(|| memory.migrate(case.there()));
                while !first.is_finished() && !memory.is_at(Residency::Migrating) {
                    std::thread::yield_now();
                }
                let second = memory.migrate(case.there());
                assert_eq!(first.join().unwrap(), PageOutcome::Moved);
                memory.verify();
                memory.migrate(Request::all_to(Target::System));
                assert!([kept(KeptReason::Raced), kept(KeptReason::AlreadyThere)].contains(&second), "{second:?}");
                second == kept(KeptReason::Raced)
            })
        };
        assert!((0..200).any(|_| meet()), "two migrations of the same pages never met");
    });
}

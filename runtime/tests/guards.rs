//! Entries of the page table that are neither a page nor nothing, against the real kernel: guard markers, put in place and removed through the
//! runtime and past it, and poison. And memory that can't be moved as it is executable.
#![expect(unsafe_code, reason = "tests map, guard and touch memory by address")]
#![expect(clippy::print_stderr, reason = "a test that can't run here says so")]

mod common;

use common::{COHERENT, PRIVATE, Raw, runtime, to, while_migrating};
use hetmem::{FaultPath, Guard, KeptReason, PageOutcome, Request, Residency, Runtime, Target};
use hetmem_core::units::{DeviceId, PageCount, PageRange};
use hetmem_sys::access::read_checked;
use hetmem_sys::maps::Perms;
use hetmem_sys::pagemap::PagemapScanner;
use hetmem_sys::uffd::{Access, Features, Mode, Userfaultfd};

const PAGES: u64 = 48;
const PLACES: [Option<DeviceId>; 3] = [None, Some(PRIVATE), Some(COHERENT)];

/// Whether the kernel has guard markers.
fn has_guards() -> bool {
    let memory = Raw::anonymous(1);
    // SAFETY: the test's own memory.
    let has = unsafe { libc::madvise(memory.pointer(0).cast(), 4096, Guard::Install.advice()) } == 0;
    if !has {
        eprintln!("skipped: the kernel has no guard markers");
    }
    has
}

/// Managed memory, written, with all its pages in `place`.
fn placed(runtime: &Runtime, place: Option<DeviceId>) -> Raw {
    let memory = Raw::anonymous(PAGES);
    memory.advise(libc::MADV_NOHUGEPAGE);
    memory.fill();
    // SAFETY: no allocator and no thread uses it.
    unsafe { runtime.adopt(memory.range(), FaultPath::Thread) }.unwrap();
    if let Some(device) = place {
        assert_eq!(runtime.migrate(memory.range(), to(device)).moved(), PageCount::new(PAGES));
    }
    memory
}

fn guard(runtime: &Runtime, range: PageRange, what: Guard) {
    // SAFETY: the test's own memory, whose contents it gives up.
    unsafe { runtime.guard(range, what) }.unwrap();
}

/// What other programs do, with no library in between.
fn guard_bare(range: PageRange, what: Guard) {
    // SAFETY: the test's own memory, whose contents it gives up.
    unsafe { hetmem_sys::mapping::guard(range.start().get(), range.pages().bytes().get(), what) }.unwrap();
}

fn is_guarded(memory: &Raw, page: u64) -> bool {
    read_checked(memory.page(page), &mut [0]).is_err()
}

fn home() -> Request {
    Request::all_to(Target::System)
}

#[test]
fn guards_installed_and_removed_leave_zeros_wherever_the_pages_were() {
    if !has_guards() {
        return;
    }
    for place in PLACES {
        let runtime = runtime();
        let memory = placed(&runtime, place);
        guard(&runtime, memory.slice(5, 10), Guard::Install);
        assert!((5..15).all(|page| is_guarded(&memory, page)) && !is_guarded(&memory, 4), "{place:?}");
        assert!(runtime.residency(memory.slice(5, 10)).iter().all(|r| *r == Residency::System), "frames are free");
        guard(&runtime, memory.slice(8, 4), Guard::Remove);
        assert!((8..12).all(|page| memory.get(page) == 0), "pages in {place:?} are discarded");
        assert!([5, 6, 7, 12, 13, 14].iter().all(|page| is_guarded(&memory, *page)));
        memory.set(9, 77);
        let outcomes = runtime.migrate(memory.range(), to(PRIVATE));
        assert_eq!(outcomes.as_slice()[5], PageOutcome::Kept(KeptReason::Guarded), "{outcomes:?}");
        assert_eq!(outcomes.kept(KeptReason::Guarded), PageCount::new(6), "{outcomes:?}");
        assert_eq!(memory.get(9), 77);
        guard(&runtime, memory.range(), Guard::Remove);
        for page in 0..PAGES {
            let expected = if page == 9 {
                77
            } else if (5..15).contains(&page) {
                0
            } else {
                page % 251 + 1
            };
            assert_eq!(memory.get(page), expected, "page {page}, from {place:?}");
        }
        runtime.check();
        runtime.release(memory.range()).unwrap();
    }
}

/// The program passes the runtime by when it installs them.
#[test]
fn a_guard_that_nobody_told_of_lies_where_a_page_belongs() {
    if !has_guards() {
        return;
    }
    for place in PLACES {
        for next in [home(), to(PRIVATE), to(COHERENT)] {
            let runtime = runtime();
            let memory = placed(&runtime, place);
            guard_bare(memory.slice(5, 10), Guard::Install);
            let _ = runtime.migrate(memory.range(), next);
            let outcomes = runtime.migrate(memory.range(), home());
            assert!(outcomes.kept(KeptReason::Occupied).is_zero(), "{outcomes:?}");
            assert!((5..15).all(|page| is_guarded(&memory, page)), "a touch gets its signal");
            assert!(runtime.residency(memory.range()).iter().all(|r| *r == Residency::System), "nothing is kept");
            guard(&runtime, memory.range(), Guard::Remove);
            assert!((5..15).all(|page| memory.get(page) == 0));
            assert!((15..PAGES).all(|page| memory.get(page) == page % 251 + 1));
            runtime.check();
            runtime.release(memory.range()).unwrap();
        }
    }
}

/// A page of read-only memory is put back by copying, which the kernel does over guard markers, too.
#[test]
fn no_page_is_copied_over_a_guard() {
    if !has_guards() {
        return;
    }
    let runtime = runtime();
    let memory = placed(&runtime, Some(PRIVATE));
    memory.protect(0, PAGES, libc::PROT_READ);
    guard_bare(memory.slice(3, 2), Guard::Install);
    let outcomes = runtime.migrate(memory.range(), home());
    assert_eq!(outcomes.kept(KeptReason::Guarded), PageCount::new(2), "{outcomes:?}");
    assert!(is_guarded(&memory, 3) && is_guarded(&memory, 4));
    assert!((5..PAGES).all(|page| memory.get(page) == page % 251 + 1));
    memory.protect(0, PAGES, libc::PROT_READ | libc::PROT_WRITE);
    runtime.release(memory.range()).unwrap();
}

#[test]
fn a_call_that_fails_discards_nothing() {
    if !has_guards() {
        return;
    }
    let runtime = runtime();
    let memory = placed(&runtime, Some(PRIVATE));
    // SAFETY: refused, as it begins in the middle of a page.
    assert_eq!(unsafe { libc::madvise(memory.pointer(0).wrapping_add(1).cast(), 4096, Guard::Install.advice()) }, -1);
    memory.protect(0, PAGES, libc::PROT_READ);
    // SAFETY: locks the test's own memory.
    assert_eq!(unsafe { libc::mlock2(memory.pointer(8).cast(), 4096, libc::MLOCK_ONFAULT) }, 0);
    // SAFETY: refused, as the memory is locked.
    let refused = unsafe { runtime.guard(memory.slice(8, 1), Guard::Install) };
    assert!(refused.is_err());
    memory.verify();
    runtime.release(memory.range()).unwrap();
}

/// One thread moves everything about, the other discards and writes.
#[test]
fn guards_come_and_go_while_pages_migrate() {
    if !has_guards() {
        return;
    }
    let runtime = runtime();
    let memory = placed(&runtime, None);
    while_migrating(&runtime, memory.range(), &[to(PRIVATE), home(), to(COHERENT)], || {
        let mut expected: Vec<u64> = (0..PAGES).map(|page| page % 251 + 1).collect();
        for round in 0..3000_u64 {
            let (first, count) = (round * 7 % (PAGES - 5), 1 + round % 5);
            let range = memory.slice(first, count);
            guard(&runtime, range, Guard::Install);
            if round % 3 == 0 {
                assert!(is_guarded(&memory, first));
            }
            guard(&runtime, range, Guard::Remove);
            for page in first..first + count {
                assert_eq!(memory.get(page), 0, "round {round}, page {page}");
                memory.set(page, round + 1000);
                expected[usize::try_from(page).unwrap()] = round + 1000;
            }
            let other = round * 13 % PAGES;
            assert_eq!(memory.get(other), expected[usize::try_from(other).unwrap()], "round {round}");
        }
    });
    runtime.release(memory.range()).unwrap();
}

/// Nobody can know what was discarded then; but no page is taken for another's, and what is written stays.
#[test]
fn guards_that_nobody_told_of_come_and_go_while_pages_migrate() {
    if !has_guards() {
        return;
    }
    let runtime = runtime();
    let memory = placed(&runtime, None);
    while_migrating(&runtime, memory.range(), &[to(PRIVATE), home()], || {
        for round in 0..4000_u64 {
            let page = round * 7 % PAGES;
            for _ in 0..50 {
                guard_bare(memory.slice(page, 1), Guard::Install);
                guard_bare(memory.slice(page, 1), Guard::Remove);
            }
            memory.set(page, round + 1);
            assert_eq!(memory.get(page), round + 1);
        }
    });
    assert!((0..PAGES).all(|page| memory.get(page) > 4000 - PAGES), "every page was written");
    runtime.release(memory.range()).unwrap();
}

#[test]
fn poisoned_pages_are_kept_as_such_and_stay_poisoned() {
    let Ok(uffd) = Userfaultfd::open(Features::MOVE, Access::Full) else {
        return eprintln!("skipped: no userfaultfd");
    };
    let runtime = runtime();
    let memory = Raw::anonymous(PAGES);
    memory.advise(libc::MADV_NOHUGEPAGE);
    uffd.register(memory.range(), Mode::MISSING).unwrap();
    // SAFETY: nothing is there.
    let poisoned = unsafe { uffd.poison(memory.slice(2, 3)) };
    assert!(poisoned.is_complete(), "{poisoned:?}");
    uffd.unregister(memory.range()).unwrap();
    drop(uffd);
    (0..PAGES).filter(|page| !(2..5).contains(page)).for_each(|page| memory.set(page, page));
    // SAFETY: no allocator and no thread uses it.
    unsafe { runtime.adopt(memory.range(), FaultPath::Thread) }.unwrap();
    // What the kernel does not tell apart nobody can.
    let tells_guards = PagemapScanner::open().is_ok_and(|scanner| scanner.tells_guards());
    let reason = if tells_guards { KeptReason::Poisoned } else { KeptReason::Guarded };
    for request in [to(PRIVATE), home(), to(COHERENT)] {
        let outcomes = runtime.migrate(memory.range(), request);
        let poisoned = outcomes.kept(reason);
        assert!(request.target == Target::System || poisoned == PageCount::new(3), "{outcomes:?}");
        assert_eq!(outcomes.moved(), PageCount::new(PAGES - 3), "{outcomes:?}");
    }
    assert!((2..5).all(|page| read_checked(memory.page(page), &mut [0]).is_err()), "a touch gets its SIGBUS");
    assert!((0..PAGES).filter(|page| !(2..5).contains(page)).all(|page| memory.get(page) == page));
    runtime.check();
    runtime.release(memory.range()).unwrap();
}

#[test]
fn memory_that_can_be_written_and_executed_stays_and_says_why() {
    let runtime = runtime();
    let memory = placed(&runtime, None);
    memory.protect(4, 8, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    let outcomes = runtime.migrate(memory.range(), to(PRIVATE));
    let executable = PageOutcome::Kept(KeptReason::Executable);
    assert!(outcomes.as_slice()[4..12].iter().all(|outcome| *outcome == executable), "{outcomes:?}");
    // Pages behind a mapping that is refused may have to be asked for again.
    assert_eq!(outcomes.moved() + outcomes.kept(KeptReason::Executable), PageCount::new(PAGES), "{outcomes:?}");
    let _ = runtime.migrate(memory.slice(12, PAGES - 12), to(PRIVATE));
    assert_eq!(
        runtime.residency(memory.range()).iter().filter(|r| **r == Residency::Device(PRIVATE)).count() as u64,
        PAGES - 8
    );
    memory.verify();
    // No policy asks for it.
    let found = hetmem::mappings::eligible(memory.range(), Perms::READ | Perms::WRITE, &[]);
    assert_eq!(found, [memory.slice(0, 4), memory.slice(12, PAGES - 12)]);
    // What is away when it becomes executable comes home.
    assert_eq!(runtime.migrate(memory.slice(12, 8), to(PRIVATE)).moved(), PageCount::new(8));
    memory.protect(12, 8, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    memory.verify();
    runtime.release(memory.range()).unwrap();
}

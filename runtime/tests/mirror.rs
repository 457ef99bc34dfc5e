//! What mirrors are told of real memory: each row of the table of `hetmem_core::mirror`.
#![expect(unsafe_code, reason = "tests map and touch memory by address")]
#![expect(clippy::print_stderr, reason = "a test that can't run here says so")]

mod common;

use std::sync::{Arc, Mutex};

use common::{COHERENT, PRIVATE, Raw, fill, map, runtime, to};
use hetmem::mirror::{Event, MirrorPage, Place, RangeFault, RangeFaultError, Want};
use hetmem::{FaultPath, KeptReason, Request, Residency, Runtime, Target};
use hetmem_core::physmap::Owner;
use hetmem_core::units::{DeviceId, PAGE_SIZE, PageCount, PageRange};

fn ask(runtime: &Runtime, range: PageRange, want: Want) -> (Result<(), RangeFaultError>, Vec<MirrorPage>) {
    ask_as(runtime, range, want, None)
}

fn ask_as(
    runtime: &Runtime,
    range: PageRange,
    want: Want,
    owner: Option<Owner>,
) -> (Result<(), RangeFaultError>, Vec<MirrorPage>) {
    let mut out = vec![MirrorPage::default(); range.pages().as_usize()];
    let result = runtime.range_fault(range, RangeFault { want, owner, ..RangeFault::default() }, &mut out);
    (result, out)
}

fn is_hole(page: MirrorPage) -> bool {
    !page.is_valid() && !page.is_error()
}

#[test]
fn a_hole_is_nothing_until_it_is_wanted() {
    let runtime = runtime();
    let memory = Raw::anonymous(4);
    let (result, pages) = ask(&runtime, memory.range(), Want::Snapshot);
    assert!(result.is_ok() && pages.iter().all(|p| is_hole(*p)), "a look faults nothing in: {pages:?}");
    let (result, pages) = ask(&runtime, memory.range(), Want::Read);
    assert_eq!(result, Ok(()));
    assert!(pages.iter().all(|p| p.place() == Some(Place::Zero) && !p.is_writable()), "{pages:?}");
    let (result, pages) = ask(&runtime, memory.range(), Want::Write);
    assert_eq!(result, Ok(()));
    assert!(pages.iter().all(|p| p.place() == Some(Place::System) && p.is_writable()), "{pages:?}");
}

#[test]
fn each_page_may_be_asked_for_something_of_its_own() {
    let runtime = runtime();
    let memory = Raw::anonymous(4);
    let mut out = [MirrorPage::default(); 4];
    let wants = [Want::Snapshot, Want::Read, Want::Write];
    let request = RangeFault { wants: &wants, ..RangeFault::default() };
    assert_eq!(runtime.range_fault(memory.range(), request, &mut out), Ok(()));
    assert!(is_hole(out[0]) && is_hole(out[3]));
    assert_eq!((out[1].place(), out[2].is_writable()), (Some(Place::Zero), true));
}

#[test]
fn where_nothing_is_mapped_is_an_error() {
    let runtime = runtime();
    let memory = Raw::anonymous(3);
    memory.fill();
    memory.unmap(1, 1);
    let (result, pages) = ask(&runtime, memory.range(), Want::Snapshot);
    assert_eq!(result, Ok(()));
    assert_eq!([0, 1, 2].map(|i: usize| pages[i].is_error()), [false, true, false], "the walk goes on after it");
    let (result, pages) = ask(&runtime, memory.range(), Want::Read);
    assert_eq!(result, Err(RangeFaultError::NoMapping(memory.page(1))));
    assert!(pages[0].is_valid(), "what is before it is answered");
}

#[test]
fn what_cannot_be_read_is_an_error_and_what_cannot_be_written_a_refusal() {
    let runtime = runtime();
    let memory = Raw::anonymous(3);
    memory.fill();
    memory.protect(1, 1, libc::PROT_NONE);
    memory.protect(2, 1, libc::PROT_READ);
    let (result, pages) = ask(&runtime, memory.range(), Want::Snapshot);
    assert_eq!(result, Ok(()));
    assert!(pages[0].is_writable() && pages[1].is_error() && pages[2].is_valid() && !pages[2].is_writable());
    assert_eq!(ask(&runtime, memory.range(), Want::Read).0, Err(RangeFaultError::NoAccess(memory.page(1))));
    let last = memory.range().slice(PageCount::new(2), PageCount::ONE);
    assert_eq!(ask(&runtime, last, Want::Read).0, Ok(()));
    assert_eq!(ask(&runtime, last, Want::Write).0, Err(RangeFaultError::ReadOnly(memory.page(2))));
}

#[test]
fn file_and_shared_mappings_are_answered() {
    let runtime = runtime();
    for shared in [false, true] {
        let memory = Raw::file(3, 2, shared);
        let two = memory.range().slice(PageCount::ZERO, PageCount::new(2));
        assert_eq!(ask(&runtime, two, Want::Read).0, Ok(()));
        let (_, pages) = ask(&runtime, two, Want::Snapshot);
        assert!(pages.iter().all(|p| p.is_valid() && p.is_writable() == shared), "{pages:?}");
        let (result, pages) = ask(&runtime, two, Want::Write);
        assert!(result.is_ok() && pages.iter().all(|p| p.is_writable()), "{pages:?}");
        // Beyond the end of the file a touch ends in SIGBUS.
        assert_eq!(ask(&runtime, memory.range(), Want::Read).0, Err(RangeFaultError::Failed(memory.page(2))));
    }
}

#[test]
fn huge_pages_have_their_order() {
    let runtime = runtime();
    let Some(memory) = Raw::huge() else {
        return eprintln!("skipped: the kernel gives no transparent huge page here");
    };
    let part = memory.range().slice(PageCount::new(100), PageCount::new(5));
    let (result, pages) = ask(&runtime, part, Want::Write);
    assert_eq!(result, Ok(()));
    assert!(pages.iter().all(|p| p.order() == 9 && p.is_writable()), "{pages:?}");
}

#[test]
fn a_private_frame_is_its_owners_and_comes_home_for_others() {
    let runtime = runtime();
    let [own, foreign] = [0, 1].map(|id| runtime.owner(DeviceId::new(id)));
    for path in [FaultPath::Thread, FaultPath::Sigbus] {
        let mapping = map(&runtime, 4, path);
        fill(&mapping);
        let range = mapping.range();
        assert_eq!(runtime.migrate(range, to(PRIVATE)).moved(), range.pages());
        for want in [Want::Snapshot, Want::Read, Want::Write] {
            let (result, pages) = ask_as(&runtime, range, want, own);
            assert_eq!(result, Ok(()));
            let there = |p: &MirrorPage| matches!(p.place(), Some(Place::Device(f)) if f.device == PRIVATE);
            assert!(pages.iter().all(|p| there(p) && p.is_writable() && p.is_private()), "{pages:?}");
        }
        for owner in [None, foreign] {
            let (result, pages) = ask_as(&runtime, range, Want::Snapshot, owner);
            assert!(result.is_ok() && pages.iter().all(|p| is_hole(*p)), "{pages:?}");
        }
        assert!(runtime.residency(range).iter().all(|r| *r == Residency::Device(PRIVATE)), "nothing has moved so far");
        let (result, pages) = ask_as(&runtime, range, Want::Write, foreign);
        assert_eq!(result, Ok(()));
        assert!(pages.iter().all(|p| p.place() == Some(Place::System) && p.is_writable()), "{pages:?}");
        common::verify(&mapping);
        runtime.check();
    }
}

#[test]
fn a_private_frame_is_never_faulted_even_if_the_mapping_is_read_only() {
    let runtime = runtime();
    let mapping = map(&runtime, 2, FaultPath::Thread);
    fill(&mapping);
    runtime.migrate(mapping.range(), to(PRIVATE));
    let raw = Raw::borrowed(mapping.range());
    raw.protect(0, 2, libc::PROT_READ);
    let (result, pages) = ask_as(&runtime, mapping.range(), Want::Write, runtime.owner(PRIVATE));
    assert_eq!(result, Ok(()));
    assert!(pages.iter().all(|p| p.is_private() && !p.is_writable()), "{pages:?}");
    raw.protect(0, 2, libc::PROT_READ | libc::PROT_WRITE);
}

#[test]
fn a_coherent_frame_is_named_whosever_it_is() {
    let runtime = runtime();
    let mapping = map(&runtime, 4, FaultPath::Thread);
    fill(&mapping);
    runtime.migrate(mapping.range(), to(COHERENT));
    for owner in [None, runtime.owner(PRIVATE), runtime.owner(COHERENT)] {
        let (result, pages) = ask_as(&runtime, mapping.range(), Want::Write, owner);
        assert_eq!(result, Ok(()));
        let there = |p: &MirrorPage| matches!(p.place(), Some(Place::Device(f)) if f.device == COHERENT);
        assert!(pages.iter().all(|p| there(p) && p.is_writable() && !p.is_private()), "{pages:?}");
    }
    assert!(runtime.residency(mapping.range()).iter().all(|r| *r == Residency::Device(COHERENT)));
}

#[test]
fn an_answer_is_refused_once_the_range_has_changed() {
    let runtime = runtime();
    let mapping = map(&runtime, 4, FaultPath::Thread);
    fill(&mapping);
    let subscription = runtime.subscribe(mapping.range(), |notice| notice.set_seq()).unwrap();
    let seq = subscription.read_begin();
    runtime.migrate(mapping.range(), to(PRIVATE));
    let request = RangeFault { want: Want::Read, unless_changed: Some((&subscription, seq)), ..RangeFault::default() };
    let mut out = [MirrorPage::default(); 4];
    assert_eq!(runtime.range_fault(mapping.range(), request, &mut out), Err(RangeFaultError::Changed));
    assert!(runtime.residency(mapping.range()).iter().all(|r| *r == Residency::Device(PRIVATE)), "nothing is faulted");
}

/// What a subscription is told, in order.
fn told(
    runtime: &Runtime,
    range: PageRange,
) -> (hetmem::mirror::Subscription, impl Fn() -> Vec<(PageRange, Event)> + use<>) {
    let events: Arc<Mutex<Vec<(PageRange, Event)>>> = Arc::default();
    let log = Arc::clone(&events);
    let subscription = runtime
        .subscribe(range, move |notice| {
            notice.set_seq();
            log.lock().unwrap().push((notice.range(), notice.event()));
        })
        .unwrap();
    (subscription, move || std::mem::take(&mut *events.lock().unwrap()))
}

#[test]
fn everything_that_moves_pages_is_told() {
    let runtime = runtime();
    for path in [FaultPath::Thread, FaultPath::Sigbus] {
        let mapping = map(&runtime, 8, path);
        let elsewhere = map(&runtime, 8, path);
        fill(&mapping);
        fill(&elsewhere);
        let (_subscription, told) = told(&runtime, mapping.range());
        runtime.migrate(elsewhere.range(), to(PRIVATE));
        assert_eq!(told(), [], "pages elsewhere are no concern");
        let owner = runtime.owner(PRIVATE);
        runtime.migrate(mapping.range(), Request { owner, ..to(PRIVATE) });
        assert_eq!(told(), [(mapping.range(), Event::Migrate(owner))]);
        // A touch brings a page home.
        common::verify(&mapping);
        let events = told();
        assert!(!events.is_empty() && events.iter().all(|(_, event)| *event == Event::Migrate(None)), "{events:?}");
        runtime.migrate(mapping.range(), to(COHERENT));
        runtime.migrate(mapping.range(), Request::all_to(Target::System));
        assert_eq!(told(), [(mapping.range(), Event::Migrate(None)); 2]);
        runtime.migrate(mapping.range(), to(PRIVATE));
        let _ = told();
        runtime.announce(mapping.range(), Event::ProtectionVma, || ());
        assert_eq!(told(), [(mapping.range(), Event::ProtectionVma)]);
    }
}

#[test]
fn what_the_program_does_to_watched_memory_is_told() {
    let runtime = runtime();
    let memory = Raw::anonymous(16);
    // SAFETY: no allocator and no thread uses it.
    unsafe { runtime.adopt(memory.range(), FaultPath::Thread) }.unwrap();
    memory.fill();
    let (_subscription, told) = told(&runtime, memory.range());
    memory.discard(0, 4);
    memory.unmap(8, 4);
    // Whatever was read of it is applied before anybody is answered.
    let _ = runtime.residency(memory.range());
    let expected = [(memory.slice(0, 4), Event::Clear), (memory.slice(8, 4), Event::Unmap)];
    assert_eq!(told(), expected);
    assert_eq!(runtime.migrate(memory.slice(8, 4), to(PRIVATE)).kept(KeptReason::Unmanaged), PageCount::new(4));
}

#[test]
fn the_end_of_the_runtime_is_the_last_event() {
    let runtime = runtime();
    let range =
        PageRange::between(hetmem_core::units::VirtAddr::new(PAGE_SIZE), hetmem_core::units::VirtAddr::new(1 << 47))
            .unwrap();
    let (_subscription, told) = told(&runtime, range);
    drop(runtime);
    assert_eq!(told().last(), Some(&(range, Event::Release)));
}

#[test]
fn what_a_runtime_has_let_go_of_is_nobodys() {
    use hetmem_sys::uffd::{Access, Features, Mode, Userfaultfd};

    let runtime = runtime();
    let memory = Raw::anonymous(4);
    memory.fill();
    // Whoever mirrors it, and goes on doing so.
    let _subscription = runtime.subscribe(PageRange::ALL, |notice| notice.set_seq()).unwrap();
    // SAFETY: the test's own memory, which no system call is given.
    unsafe { runtime.adopt(memory.range(), FaultPath::Thread) }.unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { runtime.adopt_rest(memory.range(), FaultPath::Thread) }.unwrap(), []);
    assert_eq!(runtime.migrate(memory.range(), to(PRIVATE)).moved().get(), 4);
    assert_eq!(runtime.bring_home().map_err(|error| error.to_string()), Ok(()));
    assert_eq!(runtime.residency(memory.range()), [Residency::System; 4]);
    runtime.release(memory.range()).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { runtime.adopt_rest(memory.range(), FaultPath::Thread) }.unwrap(), [memory.range()]);
    runtime.release(memory.range()).unwrap();
    let other = Userfaultfd::open(Features::NONE, Access::Full).unwrap();
    assert_eq!(other.register(memory.range(), Mode::MISSING), Ok(()));
}

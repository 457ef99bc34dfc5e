//! `hmm_range_fault` on memory of the program: each row looked at, wanted for reading and wanted for writing.

use hetmem::Runtime;
use hetmem::mirror::{MirrorPage, Place, RangeFault, RangeFaultError, Want};
use hetmem_core::physmap::Owner;
use hetmem_core::units::{PageRange, VirtAddr};
use hetmem_sys::uffd::{Access, Event, EventBuffer, Features, Mode, Userfaultfd, Wake};

use crate::case::{Case, Managed, part};
use crate::common::Raw;
use crate::mappings::{self, Done, Hugetlb};

pub(crate) const WANTS: [Want; 3] = [Want::Snapshot, Want::Read, Want::Write];

/// What is answered of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    Error,
    /// Not valid, and nothing wrong.
    Nothing,
    Reads(Place),
    Writes(Place),
}

pub(crate) fn seen(page: MirrorPage) -> Seen {
    match page.place() {
        None if page.is_error() => Seen::Error,
        None => Seen::Nothing,
        Some(place) if page.is_writable() => Seen::Writes(place),
        Some(place) => Seen::Reads(place),
    }
}

pub(crate) fn ask(
    runtime: &Runtime,
    range: PageRange,
    want: Want,
    owner: Option<Owner>,
) -> (Result<(), RangeFaultError>, Vec<MirrorPage>) {
    let request = RangeFault { want, owner, ..RangeFault::default() };
    let mut out = vec![MirrorPage::default(); range.pages().as_usize()];
    let result = runtime.range_fault(range, request, &mut out);
    // What was said by pages is said by runs, too, up to the page that is refused.
    let mut runs = Vec::new();
    let again = runtime.range_fault_runs(range, request, &mut runs);
    let by_runs: Vec<MirrorPage> = runs.iter().flat_map(|run| run.pages()).map(|(_, page)| page).collect();
    assert_eq!((again, &by_runs[..]), (result, &out[..by_runs.len()]), "{range}, {want:?}, by {owner:?}");
    assert!(result.is_err() || by_runs.len() == out.len(), "{range} ends in {:?}", runs.last());
    (result, out)
}

type Refusal = fn(VirtAddr) -> RangeFaultError;

/// What all pages of a kind of mapping are answered with.
struct Row {
    name: &'static str,
    make: fn(&Case) -> Option<Raw>,
    looked_at: Seen,
    read: Result<Seen, Refusal>,
    write: Result<Seen, Refusal>,
}

const SYSTEM: Seen = Seen::Writes(Place::System);
const FILE: Seen = Seen::Reads(Place::System);
const ZERO: Seen = Seen::Reads(Place::Zero);

impl Row {
    const fn new(name: &'static str, make: fn(&Case) -> Option<Raw>, looked_at: Seen) -> Self {
        Self { name, make, looked_at, read: Ok(looked_at), write: Ok(SYSTEM) }
    }

    const fn read(self, read: Seen) -> Self {
        Self { read: Ok(read), ..self }
    }

    const fn not_written(self) -> Self {
        Self { write: Err(RangeFaultError::ReadOnly), ..self }
    }

    const fn refused(self, why: Refusal) -> Self {
        Self { read: Err(why), write: Err(why), ..self }
    }

    fn try_on(&self, case: &Case, runtime: &Runtime, managed: bool) {
        for want in WANTS {
            let Some(raw) = (self.make)(case) else { return };
            let range = raw.range();
            let memory = if managed { Ok(Managed::new(runtime, raw)) } else { Err(raw) };
            let raw: &Raw = memory.as_deref().unwrap_or_else(|raw| raw);
            let before = raw.present();
            let (result, pages) = ask(runtime, range, want, None);
            let what = format!("{}, {want:?}, managed {managed}", self.name);
            let expected = match want {
                Want::Snapshot => Ok(self.looked_at),
                Want::Read => self.read,
                Want::Write => self.write,
            };
            match expected {
                Err(why) => assert_eq!(result, Err(why(range.start())), "{what}"),
                Ok(expected) => {
                    assert_eq!(result, Ok(()), "{what}");
                    let other = pages.iter().find(|page| seen(**page) != expected);
                    assert_eq!(other, None, "{what}: {expected:?} is expected");
                    let huge = raw.is_huge();
                    let wrong = pages.iter().find(|page| page.is_valid() && (page.order() == 9) != huge);
                    assert_eq!(wrong, None, "{what}: huge is {huge}");
                }
            }
            if want == Want::Snapshot || expected.is_err() {
                assert_eq!(raw.present(), before, "{what}: nothing is faulted in");
            }
        }
    }
}

#[test]
fn each_kind_of_mapping_is_answered_as_the_kernel_does() {
    use RangeFaultError::{Failed, NoAccess, NoMapping};
    let rows = [
        Row::new(
            "nothing mapped",
            |case| {
                let raw = Raw::borrowed(case.empty(8).range());
                Some(raw)
            },
            Seen::Error,
        )
        .refused(NoMapping),
        Row::new("no access", mappings::no_access, Seen::Error).refused(NoAccess),
        Row::new("write only", mappings::write_only, Seen::Error).refused(NoAccess),
        Row::new("hole", mappings::hole, Seen::Nothing).read(ZERO),
        Row::new("read-only hole", mappings::read_only_hole, Seen::Nothing).read(ZERO).not_written(),
        Row::new("zero page", mappings::zero, ZERO),
        Row::new("written", mappings::anonymous, SYSTEM),
        Row::new("read-only", mappings::read_only, FILE).not_written(),
        Row::new("read-only for a while", mappings::read_only_for_a_while, SYSTEM),
        Row::new("locked", mappings::locked, SYSTEM),
        Row::new("divided huge page", mappings::divided, SYSTEM),
        Row::new("swapped", mappings::swapped, Seen::Nothing).read(SYSTEM),
        Row::new("guard pages", mappings::guarded, Seen::Nothing).refused(Failed),
        Row::new("ring of a driver", |_| mappings::special(), SYSTEM),
        Row::new("memfd, private, hole", |_| Some(mappings::memfd(false, Done::Nothing)), Seen::Nothing).read(FILE),
        Row::new("memfd, private, read", |_| Some(mappings::memfd(false, Done::Read)), FILE),
        Row::new("memfd, private, written", |_| Some(mappings::memfd(false, Done::Written)), SYSTEM),
        Row::new("memfd, shared, hole", |_| Some(mappings::memfd(true, Done::Nothing)), Seen::Nothing).read(SYSTEM),
        Row::new("memfd, shared, read", |_| Some(mappings::memfd(true, Done::Read)), SYSTEM),
        Row::new("memfd, shared, written", |_| Some(mappings::memfd(true, Done::Written)), SYSTEM),
        Row::new("file, private, not touched", |_| Some(mappings::file(false, Done::Nothing)), Seen::Nothing)
            .read(FILE),
        Row::new("file, private, read", |_| Some(mappings::file(false, Done::Read)), FILE),
        Row::new("file, private, written", |_| Some(mappings::file(false, Done::Written)), SYSTEM),
        Row::new("file, shared, not touched", |_| Some(mappings::file(true, Done::Nothing)), Seen::Nothing)
            .read(SYSTEM),
        Row::new("file, shared, written", |_| Some(mappings::file(true, Done::Written)), SYSTEM),
        Row::new("shared anonymous", |_| Some(mappings::shared_anonymous(Done::Nothing)), Seen::Nothing).read(SYSTEM),
        Row::new("shared anonymous, written", |_| Some(mappings::shared_anonymous(Done::Written)), SYSTEM),
        Row::new("beyond the end, private", |_| Some(mappings::beyond_the_end(false)), Seen::Nothing).refused(Failed),
        Row::new("beyond the end, shared", |_| Some(mappings::beyond_the_end(true)), Seen::Nothing).refused(Failed),
    ];
    Case::each(|case, runtime| {
        for row in &rows {
            row.try_on(case, runtime, false);
            // What is not mapped, or no memory of the program's own, is not managed.
            if !matches!(row.name, "nothing mapped" | "ring of a driver") {
                row.try_on(case, runtime, true);
            }
        }
    });
}

#[test]
fn hugetlb_has_its_order() {
    let Some(hugetlb) = Hugetlb::reserve() else { return };
    Case::each(|_, runtime| {
        let memory = hugetlb.map();
        let few = part(memory.range(), 100, 5);
        assert_eq!(seen(ask(runtime, few, Want::Snapshot, None).1[0]), Seen::Nothing);
        for want in [Want::Read, Want::Write] {
            let (result, pages) = ask(runtime, few, want, None);
            assert_eq!(result, Ok(()));
            assert!(pages.iter().all(|page| seen(*page) == SYSTEM && page.order() == 9), "{want:?} {pages:?}");
        }
    });
}

/// The kernel calls it an error as soon as it looks.
#[test]
fn memory_without_page_descriptors_cannot_be_used() {
    let Some(range) = mappings::without_descriptors() else { return eprintln!("skipped: no [vvar] mapping here") };
    Case::each(|_, runtime| {
        assert_eq!(seen(ask(runtime, range, Want::Snapshot, None).1[0]), Seen::Nothing);
        for (want, why) in [(Want::Read, RangeFaultError::Failed as Refusal), (Want::Write, RangeFaultError::ReadOnly)]
        {
            assert_eq!(ask(runtime, range, want, None).0, Err(why(range.start())));
        }
    });
}

/// The effective request of a page is what is asked of all or of it, whichever is more.
#[test]
fn requests_are_of_all_and_of_each() {
    Case::each(|case, runtime| {
        for want in WANTS {
            for own in WANTS {
                let memory = case.empty(4);
                let mut out = [MirrorPage::default(); 4];
                let wants = [Want::Snapshot, own];
                let request = RangeFault { want, wants: &wants, ..RangeFault::default() };
                runtime.range_fault(memory.range(), request, &mut out).unwrap();
                for (i, page) in out.into_iter().enumerate() {
                    let expected = match if i == 1 { want.max(own) } else { want } {
                        Want::Snapshot => Seen::Nothing,
                        Want::Read => ZERO,
                        Want::Write => SYSTEM,
                    };
                    assert_eq!(seen(page), expected, "{want:?} of all, {own:?} of page 1: page {i}");
                }
            }
        }
    });
}

/// What lies before the page that is refused is as it was asked for.
#[test]
fn a_refusal_names_the_first_page_and_what_is_before_it_is_done() {
    Case::each(|case, runtime| {
        type Spoil = fn(&Raw);
        let spoilers: [(Spoil, Refusal); 3] = [
            (|memory| memory.unmap(700, 1), RangeFaultError::NoMapping),
            (|memory| memory.protect(700, 1, libc::PROT_NONE), RangeFaultError::NoAccess),
            (|memory| memory.protect(700, 1, libc::PROT_READ), RangeFaultError::ReadOnly),
        ];
        for (spoil, why) in spoilers {
            let memory = case.empty(1024);
            spoil(&memory);
            let (result, pages) = ask(runtime, memory.range(), Want::Write, None);
            assert_eq!(result, Err(why(memory.page(700))));
            assert!(pages[..700].iter().all(|page| seen(*page) == SYSTEM));
            // A look goes on behind it.
            let (result, pages) = ask(runtime, memory.range(), Want::Snapshot, None);
            assert_eq!(result, Ok(()));
            assert_eq!((seen(pages[699]), seen(pages[701])), (SYSTEM, Seen::Nothing));
        }
    });
}

#[test]
fn a_part_of_a_huge_page_has_the_order_of_the_whole() {
    Case::each(|case, runtime| {
        let memory = case.written(512);
        let (result, pages) = ask(runtime, part(memory.range(), 100, 5), Want::Write, None);
        assert_eq!(result, Ok(()));
        let order = if memory.is_huge() { 9 } else { 0 };
        assert!(pages.iter().all(|page| page.order() == order), "{pages:?}");
    });
}

/// The kernel of 2024 answers `EFAULT`, as its faults can't wait; its series of 2026 lets them.
#[test]
fn a_page_that_somebody_else_serves_is_waited_for() {
    Case::each(|case, runtime| {
        let memory = case.empty(1);
        let foreign = Userfaultfd::open(Features::NONE, Access::Full).unwrap();
        foreign.register(memory.range(), Mode::MISSING).unwrap();
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| ask(runtime, memory.range(), Want::Read, None));
            let mut buffer = EventBuffer::new();
            let mut fds = [rustix::event::PollFd::new(&foreign, rustix::event::PollFlags::IN)];
            let patience = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut fds, Some(&patience)), Ok(1), "nobody touches the page");
            foreign.read_events(&mut buffer).unwrap();
            let touched =
                buffer.take().any(|event| matches!(event, Event::PageFault { addr, .. } if addr == memory.page(0)));
            assert!(touched && !asked.is_finished());
            // SAFETY: a hole, which reads as zeros anyway.
            let done = unsafe { foreign.zeropage(memory.range(), Wake::Now) };
            assert!(done.is_complete());
            let (result, pages) = asked.join().unwrap();
            assert_eq!((result, seen(pages[0])), (Ok(()), ZERO));
        });
    });
}

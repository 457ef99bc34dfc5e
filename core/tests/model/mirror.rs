//! What mirrors ask of the program's memory, and what they must be answered.

use hetmem_core::mirror::{MirrorPage, MirrorRun, Place, RangeFault, RangeFaultError, Want};
use hetmem_core::physmap::{MemoryType, Owner};
use hetmem_core::port::{Access, CannotFault, MappedRange, MirrorHost, Present};
use hetmem_core::slot::{SYSTEM_POOL, Slot};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};

use super::{Memory, Model, ModelHost, Page, StepKind, World, ZERO, run_of};

impl Page {
    /// Whether it is the page of zeros that all share.
    fn is_zero(&self) -> bool {
        self.content == Some(ZERO) && !self.written && self.laid.is_none()
    }
}

impl Memory {
    /// The pages from the start of `range` on, which is mapped, that are like the first of them.
    fn alike<K: PartialEq>(&self, range: PageRange, key: impl Fn(&Page) -> K) -> (Option<K>, PageRange) {
        let of = |page: u64| self.pages.get(&page).map(&key);
        let first = of(range.start().get());
        let n = run_of(range, |page| of(page) == first);
        (first, range.slice(PageCount::ZERO, n))
    }
}

impl MirrorHost for ModelHost {
    fn mapping_from(&self, addr: VirtAddr) -> Option<MappedRange> {
        self.0.step(StepKind::MappingFrom);
        let memory = self.0.lock();
        let first = VirtAddr::new(*memory.pages.range(addr.get()..).next()?.0);
        // No test asks for more pages at a time.
        let (read_only, range) = memory.alike(PageRange::new(first, PageCount::new(1024))?, |page| page.read_only);
        Some(MappedRange { range, readable: true, writable: !read_only?, shared: false, anonymous: true, order: 0 })
    }

    fn presence(&self, mapping: &MappedRange, range: PageRange, visit: &mut dyn FnMut(Present)) {
        self.0.step(StepKind::Presence);
        assert!(mapping.range.contains_range(range), "asked about {range}, which is not all in {}", mapping.range);
        let memory = self.0.lock();
        let mut rest = range;
        while !rest.is_empty() {
            let (found, run) = memory.alike(rest, |page| page.is_present().then_some(page.is_zero()));
            if let Some(zero) = found.flatten() {
                visit(Present { range: run, writable: mapping.writable && !zero, zero, order: 0 });
            }
            rest = rest.slice(run.pages(), rest.pages());
        }
    }

    fn fault_in(&self, range: PageRange, access: Access) -> Result<(), CannotFault> {
        let failure = self.0.step(StepKind::FaultIn);
        if failure.is_some() {
            self.0.lock().faults_refused += 1;
        }
        let done = if failure.is_some() { range.pages().as_usize() / 2 } else { range.pages().as_usize() };
        for page in range.iter().take(done) {
            let allowed = |page: &VirtAddr| self.0.lock().pages.get(&page.get()).is_some_and(|entry| !entry.read_only);
            if access == Access::Write && !allowed(&page) {
                return Err(CannotFault);
            }
            self.0.touch(page).ok_or(CannotFault)?;
            if let Some(entry) = self.0.lock().pages.get_mut(&page.get()).filter(|_| access == Access::Write) {
                entry.written = true;
            }
        }
        failure.map_or(Ok(()), |_| Err(CannotFault))
    }
}

impl Model {
    /// A mirror looks at the pages: it is told nothing of those that are laid and by the slots the system's, as nobody will tell it when that
    /// changes.
    pub(crate) fn look(&self, range: PageRange) {
        let engine = self.engine();
        let mut out = vec![MirrorPage::default(); range.pages().as_usize()];
        engine.range_fault(range, RangeFault::default(), &mut out).expect("it only looks");
        for (page, answer) in range.iter().zip(out) {
            let system = answer.place() == Some(Place::System);
            assert!(!(system && self.lock().is_laid(page)), "{page} is laid, and said to be {answer:?}");
        }
    }
}

/// One page's answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    Error,
    Nothing,
    Reads(Place),
    Writes(Place),
}

impl From<MirrorPage> for Answer {
    fn from(page: MirrorPage) -> Self {
        match page.place() {
            None if page.is_error() => Self::Error,
            None => Self::Nothing,
            Some(place) if page.is_writable() => Self::Writes(place),
            Some(place) => Self::Reads(place),
        }
    }
}

impl World {
    /// What `page` is answered with to `owner`, who only looks, by what the model and the slots say.
    pub(crate) fn looked_at(&self, page: VirtAddr, owner: Option<Owner>) -> Answer {
        let slot = self.engine.slot(page);
        let Some(entry) = self.model.lock().pages.get(&page.get()).copied() else { return Answer::Error };
        let with = |place, writable| if writable { Answer::Writes(place) } else { Answer::Reads(place) };
        match (slot, entry.content) {
            (Slot::System, Some(_)) if entry.is_zero() => Answer::Reads(Place::Zero),
            (Slot::System, Some(_)) => with(Place::System, !entry.read_only),
            (Slot::Mapped(frame), None) if entry.laid.is_some() => with(Place::Device(frame), true),
            (Slot::Mapped(frame), Some(_)) => with(Place::Device(frame), !entry.read_only && !entry.is_zero()),
            (Slot::Unmapped { frame, busy: false }, _) if self.is_own(frame.device, owner) => {
                with(Place::Device(frame), !entry.read_only)
            }
            (Slot::System | Slot::Mapped(_), None) | (Slot::Unmapped { .. }, _) => Answer::Nothing,
        }
    }

    /// Has a range fault answered by runs, which it checks, and says what they are page by page.
    pub(crate) fn ask_by_runs(
        &self,
        range: PageRange,
        request: RangeFault<'_>,
    ) -> (Result<(), RangeFaultError>, Vec<MirrorPage>) {
        // What was in it is of no concern.
        let mut runs = vec![MirrorRun { range, first: MirrorPage::default() }];
        let result = self.engine.range_fault_runs(range, request, &mut runs);
        let pages: Vec<(VirtAddr, MirrorPage)> = runs.iter().flat_map(|run| run.pages()).collect();
        assert!(range.iter().take(pages.len()).eq(pages.iter().map(|(page, _)| *page)), "{range}: {runs:?}");
        assert!(result.is_err() || pages.len() as u64 == range.pages().get(), "{range}: {runs:?}");
        for pair in runs.windows(2) {
            assert_ne!(pair[0].page(pair[0].range.pages()), pair[1].first, "these are one run: {pair:?}");
        }
        (result, pages.into_iter().map(|(_, page)| page).collect())
    }

    /// Has a range fault answered page by page, with nothing else at work, and by runs, and checks that it is the same: up to the page that is
    /// refused, where the runs end.
    pub(crate) fn ask(
        &self,
        range: PageRange,
        request: RangeFault<'_>,
    ) -> (Result<(), RangeFaultError>, Vec<MirrorPage>) {
        let mut out = vec![MirrorPage::default(); range.pages().as_usize()];
        let result = self.engine.range_fault(range, request, &mut out);
        let (again, by_runs) = self.ask_by_runs(range, request);
        assert_eq!((again, &by_runs[..]), (result, &out[..by_runs.len()]), "{range}, {request:?}");
        if let Some(RangeFaultError::NoMapping(page) | RangeFaultError::ReadOnly(page)) = result.err() {
            assert_eq!(page.pages_since(range.start()).as_usize(), by_runs.len(), "the runs end before {page}");
        }
        (result, out)
    }

    /// Whether `device` is a private one of `owner`.
    fn is_own(&self, device: hetmem_core::units::DeviceId, owner: Option<Owner>) -> bool {
        device != SYSTEM_POOL && {
            let pagemap = self.engine.devices()[device.index()].pagemap();
            pagemap.memory_type == MemoryType::DevicePrivate && owner == Some(pagemap.owner)
        }
    }

    /// The error that pages of `range` which are wanted end in, if nobody else is at work, by what the model and the slots say.
    pub(crate) fn refusal(&self, range: PageRange, want: Want, owner: Option<Owner>) -> Option<RangeFaultError> {
        range.iter().find_map(|page| match (want, self.looked_at(page, owner)) {
            (Want::Snapshot, _) => None,
            (_, Answer::Error) => Some(RangeFaultError::NoMapping(page)),
            (Want::Write, Answer::Reads(Place::Device(frame))) if self.is_own(frame.device, owner) => None,
            (Want::Write, _) if self.model.lock().pages[&page.get()].read_only => Some(RangeFaultError::ReadOnly(page)),
            (Want::Read | Want::Write, _) => None,
        })
    }

    /// Holds the answers to a range fault against the model, with nothing else at work: every page up to a refusal is as it was wanted, and
    /// is what is said of it.
    pub(crate) fn judge(
        &self,
        range: PageRange,
        want: Want,
        owner: Option<Owner>,
        result: Result<(), RangeFaultError>,
        out: &[MirrorPage],
    ) {
        let refusal = self.refusal(range, want, owner);
        assert_eq!(result.err(), refusal, "{want:?} by {owner:?}");
        let until = match refusal {
            Some(RangeFaultError::NoMapping(page) | RangeFaultError::ReadOnly(page)) => {
                page.pages_since(range.start()).as_usize()
            }
            _ => out.len(),
        };
        for (page, answer) in range.iter().zip(out).take(until) {
            let expected = self.looked_at(page, owner);
            assert_eq!(Answer::from(*answer), expected, "{page}, {want:?} by {owner:?}");
            let enough = match want {
                Want::Snapshot => true,
                Want::Read => answer.is_valid(),
                Want::Write => answer.is_writable() || answer.is_private(),
            };
            assert!(enough, "{page} is {answer:?}, and {want:?} was asked for by {owner:?}");
        }
    }
}

//! Where the pages of a range are and what they allow, for whoever mirrors them: the kernel's `hmm_range_fault`.
//!
//! [`Engine::range_fault`] answers for any addresses of the program, managed or not. By itself it only looks; where a page is asked for with
//! [`Want::Read`] or [`Want::Write`] and is not there, or allows less, it is faulted in as by a touch of that kind.
//!
//! What is answered is said at [`RangeFault`]. An answer is one of the past when it is given: it may be used only under the rule of
//! [`crate::notifier`].
//!
//! | file | what |
//! | --- | --- |
//! | `answer` | a page's answer, and runs of pages that are answered alike ([`MirrorPage`], [`MirrorRun`]) |
//! | `look` | what is there now: what the host says of it, and what the books say |
//!
//! All is worked out by runs ([`Engine::range_fault_runs`]): what the host and the books tell is mostly long stretches that are alike. Answers page
//! by page are those, written out.
//!
//! *Limits:* the machine's frame numbers are not told, as the kernel hides them. What the host can't tell apart is listed in
//! SPECIFICATION.md.

mod answer;
mod look;

pub use answer::{MirrorPage, MirrorRun, Place};

use crate::engine::Engine;
use crate::frames::Keep;
use crate::notifier::{Seq, Subscription};
use crate::physmap::Owner;
use crate::port::{Access, FaultPath, MirrorHost};
use crate::units::{PageCount, PageRange, VirtAddr};
use answer::{count_before, grant, truncate};

/// Pages that are looked at at a time where nothing is faulted in: a GiB. Who changes pages may wait for that long.
const LOOKED_AT: PageCount = PageCount::new(1 << 18);
/// Pages that are looked at and faulted in at a time, or whose runs are written out page by page: so many runs stay in a processor's cache.
const WINDOW: PageCount = PageCount::new(8192);
/// How often a page that is gone again after it was faulted in is faulted in anew.
const TRIES: u32 = 1000;

/// What is asked of a page; each asks for all that those before it ask for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Want {
    /// Only to know: nothing is faulted in.
    #[default]
    Snapshot,
    /// To read it.
    Read,
    /// To write it.
    Write,
}

/// What a range fault asks for. What it answers:
///
/// | the page | looked at | wanted |
/// | --- | --- | --- |
/// | nothing is mapped there | error | [`RangeFaultError::NoMapping`] (`EFAULT`) |
/// | the mapping can't be read | error | [`RangeFaultError::NoAccess`] (`EFAULT`) |
/// | a hole; swapped out; on its way; in a private frame of another owner | not valid | faulted in: from a device it comes home |
/// | the mapping can't be written, and the page is wanted for that | valid | [`RangeFaultError::ReadOnly`] (`EPERM`) |
/// | in a private frame of `owner` | valid, the frame, writable as the mapping is | the same, never faulted |
/// | in a mapped frame of a coherent device, whosever | valid, the frame | the same |
/// | the zero page | valid, not writable | for writing: faulted in |
/// | any other present page | valid | the same, for writing: faulted in if it is shared for reading only |
/// | part of a huge page that is mapped as one | the same, with its order | the same |
/// | a touch would end in SIGBUS, or there is no memory for it | not valid | [`RangeFaultError::Failed`] (`EFAULT`) |
#[derive(Clone, Copy, Debug, Default)]
pub struct RangeFault<'a> {
    /// What is asked of every page.
    pub want: Want,
    /// What is asked of each page besides, in order; pages beyond its end are asked for nothing more.
    pub wants: &'a [Want],
    /// Whose private frames are answered as they are. Those of others are faulted in.
    pub owner: Option<Owner>,
    /// Gives up as soon as the subscribed range has changed since.
    pub unless_changed: Option<(&'a Subscription, Seq)>,
}

/// Why not all pages are as they were asked for. What is before the named address is; what is after it may not be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RangeFaultError {
    /// `EFAULT`.
    #[error("nothing is mapped at {0}")]
    NoMapping(VirtAddr),
    /// `EFAULT`.
    #[error("what is mapped at {0} can't be read")]
    NoAccess(VirtAddr),
    /// `EPERM`.
    #[error("what is mapped at {0} can't be written")]
    ReadOnly(VirtAddr),
    /// `EFAULT`.
    #[error("the page at {0} can't be faulted in")]
    Failed(VirtAddr),
    /// `EBUSY`: begin anew with [`Subscription::read_begin`].
    #[error("the range changed meanwhile")]
    Changed,
}

impl RangeFault<'_> {
    /// What is asked of the pages behind the first `pages`.
    fn behind(self, pages: PageCount) -> Self {
        Self { wants: self.wants.get(pages.as_usize()..).unwrap_or(&[]), ..self }
    }

    fn only_looks(&self) -> bool {
        self.want == Want::Snapshot && self.wants.iter().all(|want| *want == Want::Snapshot)
    }

    /// What is asked of the page behind the first `pages`, and of how many from there on, `most` at most.
    #[inline]
    fn want_from(&self, pages: PageCount, most: PageCount) -> (Want, PageCount) {
        let wants = self.behind(pages).wants;
        let Some(own) = wants.first() else { return (self.want, most) };
        let alike = wants.iter().take(most.as_usize()).take_while(|want| *want == own).count();
        (self.want.max(*own), PageCount::new(alike as u64))
    }

    /// What `runs` have from `from` on, and what is asked of it, cut where that changes. The first page that is asked about is that of `start`.
    fn asked_of(&self, start: VirtAddr, runs: &[MirrorRun], from: VirtAddr) -> impl Iterator<Item = (MirrorRun, Want)> {
        runs[count_before(runs, from)..].iter().flat_map(move |run| {
            let mut rest = run.from(from);
            std::iter::from_fn(move || {
                let all = rest.range.pages();
                let (want, pages) = self.want_from(rest.range.start().pages_since(start), all);
                let part = rest.slice(PageCount::ZERO, pages);
                rest = rest.slice(pages, all);
                (!all.is_zero()).then_some((part, want))
            })
        })
    }
}

/// How a page must be touched to be as it is wanted.
const fn touch_for(page: MirrorPage, want: Want) -> Option<Access> {
    match want {
        Want::Write if !page.is_writable() && !page.is_private() => Some(Access::Write),
        Want::Read if !page.is_valid() => Some(Access::Read),
        Want::Snapshot | Want::Read | Want::Write => None,
    }
}

impl<H: MirrorHost> Engine<H> {
    /// Says of each page of `range` where it is and what it allows; see the module. The caller holds no lock, and is not the handler thread.
    ///
    /// # Errors
    ///
    /// [`RangeFaultError`]. The answers of pages before the one that it names are in `out`.
    ///
    /// # Panics
    ///
    /// If `out` has not one place for each page.
    pub fn range_fault(
        &self,
        range: PageRange,
        request: RangeFault<'_>,
        out: &mut [MirrorPage],
    ) -> Result<(), RangeFaultError> {
        assert_eq!(out.len() as u64, range.pages().get(), "a place for each page");
        let (mut runs, mut at) = (Vec::new(), PageCount::ZERO);
        while at < range.pages() {
            let part = range.slice(at, WINDOW);
            let result = self.range_fault_runs(part, request.behind(at), &mut runs);
            let mut places = &mut out[at.as_usize()..];
            runs.iter().for_each(|run| run.write_to(&mut places));
            result?;
            at += part.pages();
        }
        Ok(())
    }

    /// Says of the pages of `range` where they are and what they allow, as [`Engine::range_fault`] does, by runs: `out` is cleared, and has those
    /// of all pages then, in order, each as long as can be.
    ///
    /// # Errors
    ///
    /// [`RangeFaultError`]. `out` ends before the page that it names.
    pub fn range_fault_runs(
        &self,
        range: PageRange,
        request: RangeFault<'_>,
        out: &mut Vec<MirrorRun>,
    ) -> Result<(), RangeFaultError> {
        out.clear();
        let window = if request.only_looks() { LOOKED_AT } else { WINDOW };
        let mut at = PageCount::ZERO;
        while at < range.pages() {
            let part = range.slice(at, window);
            self.fault_window(part, request.behind(at), out)?;
            at += part.pages();
        }
        Ok(())
    }

    fn fault_window(
        &self,
        range: PageRange,
        request: RangeFault<'_>,
        out: &mut Vec<MirrorRun>,
    ) -> Result<(), RangeFaultError> {
        // What is not known to be as it is wanted; what of it was faulted in for writing last; how often its first page was faulted in.
        let (mut rest, mut granted, mut tries, mut torn) = (range, None, 0, 0);
        loop {
            truncate(out, rest.start());
            if request.unless_changed.is_some_and(|(subscription, seq)| subscription.check_retry(seq)) {
                return Err(RangeFaultError::Changed);
            }
            let exchanges = self.await_exchanges(rest);
            self.look(rest, request.owner, out);
            if torn < TRIES && self.is_torn(rest, out) && self.await_exchanges(rest) != exchanges {
                torn += 1;
                continue;
            }
            if request.want == Want::Snapshot && request.wants.is_empty() {
                return Ok(());
            }
            // Faulted in for writing a moment ago, whatever the host can say of it.
            granted.into_iter().for_each(|granted| grant(out, granted));
            let mut asked = request.asked_of(range.start(), out, rest.start());
            let missing = asked.find_map(|(run, want)| Some((run, touch_for(run.first, want)?)));
            let Some((run, access)) = missing else { return Ok(()) };
            let (page, allows_write) = (run.range.start(), run.first.allows_write());
            let refusal = self.refusal(run, access);
            let alike = |(run, want): &(MirrorRun, Want)| {
                touch_for(run.first, *want) == Some(access)
                    && !run.first.is_error()
                    && run.first.allows_write() == allows_write
            };
            let end = asked.take_while(alike).last().map_or(run.range.end(), |(last, _)| last.range.end());
            tries = if page == rest.start() { tries + 1 } else { 1 };
            if let Some(why) = refusal.or((tries > TRIES).then_some(RangeFaultError::Failed(page))) {
                truncate(out, page);
                return Err(why);
            }
            let run = PageRange::between(page, end).expect("the pages follow one another");
            let one = run.slice(PageCount::ZERO, PageCount::ONE);
            rest = rest.slice(page.pages_since(rest.start()), rest.pages());
            let mut present = run;
            if self.fault_in(run, access).is_err() {
                present = one;
                if self.fault_in(one, access).is_err() && self.same_mapping(one, access) {
                    truncate(out, page);
                    return Err(RangeFaultError::Failed(page));
                }
            }
            granted = (access == Access::Write).then_some(present);
        }
    }

    /// Why the pages of `run` can't be made what a touch makes of them.
    fn refusal(&self, run: MirrorRun, access: Access) -> Option<RangeFaultError> {
        let page = run.range.start();
        if run.first.is_error() {
            let mapped = self.host.mapping_from(page).is_some_and(|m| m.range.contains(page));
            return Some(if mapped { RangeFaultError::NoAccess(page) } else { RangeFaultError::NoMapping(page) });
        }
        (access == Access::Write && !run.first.allows_write()).then_some(RangeFaultError::ReadOnly(page))
    }

    /// Whether the mapping of `page` allows what failed, so that it was not the reason.
    fn same_mapping(&self, page: PageRange, access: Access) -> bool {
        self.host.mapping_from(page.start()).is_some_and(|mapping| {
            mapping.range.contains_range(page) && mapping.readable && (mapping.writable || access == Access::Read)
        })
    }

    /// Makes the pages of `range` present, as touches would. The caller holds no lock, and is not the handler thread.
    ///
    /// # Errors
    ///
    /// If a touch would end in a signal; pages before it may be present then.
    pub fn fault_in(&self, range: PageRange, access: Access) -> Result<(), crate::port::CannotFault> {
        // What is laid is there to touches before it is to the books, and what is to be lifted is there for longer.
        self.await_exchanges(range);
        for (part, region) in self.space.regions_in(range) {
            // A system call is not served there: what hetmem has away comes home by its own doing.
            if region.is_some_and(|region| region.path == FaultPath::Sigbus) {
                part.iter().for_each(|page| self.touch(page));
            }
        }
        self.host.fault_in(range, access)
    }

    /// A touch of `page` by this thread, in a region that is served by SIGBUS.
    fn touch(&self, page: VirtAddr) {
        use crate::fault::FaultResolution::{
            Back, EventsPending, Home, Mirrored, NoMemory, NoRoom, Present, UnderWay, Waiting,
        };
        for _ in 0..TRIES {
            match self.fault(page, FaultPath::Sigbus) {
                Home(pages) | Back(pages) if !pages.is_zero() => return,
                Present => return,
                NoMemory => {
                    self.trim_pool(Keep::Limit);
                    self.host.await_events();
                }
                Home(_) | Back(_) | Waiting | EventsPending | Mirrored | NoRoom | UnderWay => self.host.await_events(),
            }
        }
    }
}

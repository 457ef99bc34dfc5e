//! What is there now: what the host says of the pages, and what the books say, which outdoes it.

use crate::engine::Engine;
use crate::home::Home;
use crate::physmap::Owner;
use crate::port::{MirrorHost, Present};
use crate::slot::Slot;
use crate::space::{BlockState, Region};
use crate::units::{PageCount, PageRange, VirtAddr};

use super::answer::{MirrorPage, MirrorRun, append, count_before};

/// Runs of a range, which are told in order, from its start on.
struct Told {
    runs: Vec<MirrorRun>,
    /// Up to where they go.
    at: VirtAddr,
}

impl Told {
    /// All pages from where the last ones ended up to `end` are answered by `page`.
    fn tell(&mut self, end: VirtAddr, page: MirrorPage) {
        if let Some(range) = PageRange::between(self.at, end) {
            append(&mut self.runs, range, page);
            self.at = end;
        }
    }
}

/// Runs that are taken from the first to the last, as far as is asked for.
struct Rest<'a> {
    /// What is left of the run that was begun.
    begun: Option<MirrorRun>,
    runs: std::slice::Iter<'a, MirrorRun>,
}

impl Rest<'_> {
    /// Calls `visit` with what is left up to `end`.
    #[inline]
    fn take(&mut self, end: VirtAddr, mut visit: impl FnMut(MirrorRun)) {
        while let Some(run) = self.begun.filter(|run| run.range.start() < end) {
            if end < run.range.end() {
                self.begun = Some(run.from(end));
                return visit(run.before(end));
            }
            self.begun = self.runs.next().copied();
            visit(run);
        }
    }
}

impl<H: MirrorHost> Engine<H> {
    /// Looks at the pages of `range`, and appends what they are to `out`.
    pub(super) fn look(&self, range: PageRange, owner: Option<Owner>, out: &mut Vec<MirrorRun>) {
        let seen = self.seen_by_host(range);
        let mut runs = seen.iter();
        let mut seen = Rest { begun: runs.next().copied(), runs };
        let owned = self.owned_by(owner);
        // The books come last: what they say of a page outdoes what was seen of it before.
        let _shared = self.space.gate.share();
        self.space.visit_blocks(range, |part, block| {
            if block.unmapped() == 0 && block.mapped() == 0 && !block.exchanging {
                return;
            }
            seen.take(part.start(), |run| append(out, run.range, run.first));
            seen.take(part.end(), |run| look_up(block, run, &owned, out));
        });
        seen.take(range.end(), |run| append(out, run.range, run.first));
    }

    /// What the host says of the pages of `range`.
    fn seen_by_host(&self, range: PageRange) -> Vec<MirrorRun> {
        let mut told = Told { runs: Vec::new(), at: range.start() };
        while told.at < range.end() {
            let Some(mapping) = self.host.mapping_from(told.at) else { break };
            let Some(part) = mapping.range.intersect(range) else { break };
            told.tell(part.start(), MirrorPage::ERROR);
            if !mapping.readable {
                told.tell(part.end(), MirrorPage::ERROR);
                continue;
            }
            let missing = MirrorPage::missing(mapping.writable);
            self.host.presence(&mapping, part, &mut |found: Present| {
                let Some(run) = found.range.intersect(part) else { return };
                told.tell(run.start(), missing);
                told.tell(run.end(), missing.present(found.writable, found.zero, found.order));
            });
            told.tell(part.end(), missing);
        }
        told.tell(range.end(), MirrorPage::ERROR);
        told.runs
    }

    /// Whether nothing was found in memory that another mapping was about to take the place of, as it may of hetmem's own and of a file's.
    pub(super) fn is_torn(&self, range: PageRange, answers: &[MirrorRun]) -> bool {
        let may_change = |region: Region| region.owned || region.home != Home::Anonymous;
        let is_any = |range| self.space.regions_in(range).iter().any(|(_, region)| region.is_some_and(may_change));
        let is_lost = |run: &MirrorRun| run.first.is_error() && run.range.intersect(range).is_some_and(is_any);
        self.may_exchange() && answers[count_before(answers, range.start())..].iter().any(is_lost)
    }

    /// The private devices whose frames are answered to `owner` as they are.
    fn owned_by(&self, owner: Option<Owner>) -> Owned {
        let mut owned = [false; 256];
        for (device, owned) in self.devices().iter().zip(&mut owned) {
            let pagemap = device.pagemap();
            *owned = self.is_private(pagemap.device) && owner == Some(pagemap.owner);
        }
        owned
    }
}

/// Of each device, whether its frames are answered as they are: asked once and not for each page. The pool is none of them.
type Owned = [bool; 256];

/// What becomes of a page's answer by its slot.
#[inline]
fn by_slot(slot: Slot, seen: MirrorPage, exchanging: bool, owned: &Owned) -> MirrorPage {
    match slot {
        Slot::Mapped(frame) if seen.is_valid() => seen.at(frame),
        // Perhaps it is laid already, of which nobody will be told.
        Slot::System if exchanging => seen.away(),
        Slot::System | Slot::Mapped(_) => seen,
        Slot::Unmapped { frame, busy: false } if owned[frame.device.index()] => seen.in_private(frame),
        Slot::Unmapped { .. } => seen.away(),
    }
}

/// Appends what the pages of `run` are by the books, which lie in `block` and are what the host has said but for that.
fn look_up(block: &BlockState, run: MirrorRun, owned: &Owned, out: &mut Vec<MirrorRun>) {
    if run.first.is_error() {
        return append(out, run.range, run.first);
    }
    let mut rest = run.range;
    while !rest.is_empty() {
        let (slot, pages) = block.slot_run(rest);
        let first = by_slot(slot, run.first, block.exchanging, owned);
        append(out, rest.slice(PageCount::ZERO, pages), first);
        rest = rest.slice(pages, rest.pages());
    }
}

//! Where the pages of a range are and what they allow, for whoever mirrors them: the kernel's `hmm_range_fault`.
//!
//! [`Engine::range_fault`] answers for any addresses of the program, managed or not. By itself it only looks; where a page is asked for with
//! [`Want::Read`] or [`Want::Write`] and is not there, or allows less, it is faulted in as by a touch of that kind.
//!
//! What is answered is said at [`RangeFault`]. An answer is one of the past when it is given: it may be used only under the rule of
//! [`crate::notifier`].
//!
//! *Limits:* the machine's frame numbers are not told, as the kernel hides them. What the host can't tell apart is listed in
//! SPECIFICATION.md.

use crate::engine::Engine;
use crate::frames::Keep;
use crate::notifier::{Seq, Subscription};
use crate::physmap::Owner;
use crate::port::{Access, FaultPath, MirrorHost, Present};
use crate::slot::{Frame, SYSTEM_POOL, Slot};
use crate::units::{DeviceId, FrameIndex, PageCount, PageRange, VirtAddr};

/// Pages that are looked at and faulted in at a time.
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

/// Where a page is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// In system memory.
    System,
    /// Nowhere: it reads as zeros until it is written.
    Zero,
    /// In a device's frame. A coherent one's is used at the page's address, and a private one's on its device only.
    Device(Frame),
}

/// One page's answer, in a word of the kernel's form (`HMM_PFN_*`): valid, writable and error in bits 63 to 61, the order in bits 56 to
/// 60, below it the place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MirrorPage(u64);

const VALID: u64 = 1 << 63;
const WRITE: u64 = 1 << 62;
const ERROR: u64 = 1 << 61;
const ORDER_SHIFT: u32 = 56;
const ZERO: u64 = 1 << 55;
const DEVICE: u64 = 1 << 54;
/// The mapping allows writes; kept for the permission check.
const MAPPED_FOR_WRITE: u64 = 1 << 53;
/// The frame is a private device's.
const PRIVATE: u64 = 1 << 52;

impl MirrorPage {
    /// Whether there is a page, which can be read.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// Whether it can be written, too.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.0 & WRITE != 0
    }

    /// Whether nothing can be there: no mapping, or none that can be read.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & ERROR != 0
    }

    /// The page is part of 2^order pages that are mapped as one; they may reach beyond what was asked for.
    #[must_use]
    pub const fn order(self) -> u8 {
        (self.0 >> ORDER_SHIFT & 0x1F) as u8
    }

    /// Where it is, if it is valid.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the fields are cut out of the word on purpose")]
    pub const fn place(self) -> Option<Place> {
        if !self.is_valid() {
            return None;
        }
        if self.0 & DEVICE != 0 {
            let device = DeviceId::new((self.0 >> 32) as u8);
            return Some(Place::Device(Frame { device, index: FrameIndex::new(self.0 as u32) }));
        }
        Some(if self.0 & ZERO != 0 { Place::Zero } else { Place::System })
    }

    /// Whether it is in a frame that only its device can use.
    #[must_use]
    pub const fn is_private(self) -> bool {
        self.is_valid() && self.0 & PRIVATE != 0
    }

    const fn allows_write(self) -> bool {
        self.0 & MAPPED_FOR_WRITE != 0
    }

    fn at(self, frame: Frame) -> Self {
        Self(
            self.0 & !(ZERO | 0xFF_FFFF_FFFF)
                | DEVICE
                | (frame.device.index() as u64) << 32
                | u64::from(frame.index.get()),
        )
    }
}

impl std::fmt::Debug for MirrorPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.place() {
            None if self.is_error() => write!(f, "error"),
            None => write!(f, "none"),
            Some(place) => {
                let access = if self.is_writable() { "writable" } else { "readable" };
                write!(f, "{access} {place:?} order {}", self.order())
            }
        }
    }
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

impl<H: MirrorHost> Engine<H> {
    /// Says of each page of `range` where it is and what it allows; see the module. The caller holds no lock, and is not the handler thread.
    ///
    /// # Errors
    ///
    /// [`RangeFaultError`], with the answers so far in `out`.
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
        let wants_more = |want: &Want| *want != Want::Snapshot;
        let window =
            if request.wants.iter().any(wants_more) || wants_more(&request.want) { WINDOW } else { range.pages() };
        let mut at = PageCount::ZERO;
        while at < range.pages() {
            let part = range.slice(at, window);
            let wants = request.wants.get(at.as_usize()..).unwrap_or(&[]);
            let out = &mut out[at.as_usize()..][..part.pages().as_usize()];
            self.fault_window(part, RangeFault { wants, ..request }, out)?;
            at += part.pages();
        }
        Ok(())
    }

    fn fault_window(
        &self,
        range: PageRange,
        request: RangeFault<'_>,
        out: &mut [MirrorPage],
    ) -> Result<(), RangeFaultError> {
        let want_of = |i: usize| request.wants.get(i).map_or(request.want, |want| request.want.max(*want));
        // What was faulted in last, from where on it was, and how often that page was.
        let (mut granted, mut first, mut tries, mut torn) = (0..0, 0, 0, 0);
        loop {
            if request.unless_changed.is_some_and(|(subscription, seq)| subscription.check_retry(seq)) {
                return Err(RangeFaultError::Changed);
            }
            let rest = range.slice(PageCount::new(first as u64), range.pages());
            let exchanges = self.await_exchanges(rest);
            self.snapshot(rest, request.owner, &mut out[first..]);
            if torn < TRIES && self.is_torn(rest, &out[first..]) && self.await_exchanges(rest) != exchanges {
                torn += 1;
                continue;
            }
            for i in granted.clone() {
                // Faulted in for writing a moment ago, whatever the host can say of it.
                if want_of(i) == Want::Write && out[i].is_valid() && out[i].allows_write() {
                    out[i].0 |= WRITE;
                }
            }
            let need = |i: usize, page: MirrorPage| match want_of(i) {
                Want::Snapshot => None,
                Want::Write if !page.is_writable() && !page.is_private() => Some(Access::Write),
                Want::Read | Want::Write if !page.is_valid() => Some(Access::Read),
                Want::Read | Want::Write => None,
            };
            let Some((i, access)) = (first..out.len()).find_map(|i| Some((i, need(i, out[i])?))) else { return Ok(()) };
            let page = range.start().add_pages(PageCount::new(i as u64));
            if out[i].is_error() {
                let mapped = self.host.mapping_from(page).is_some_and(|m| m.range.contains(page));
                return Err(if mapped { RangeFaultError::NoAccess(page) } else { RangeFaultError::NoMapping(page) });
            }
            if access == Access::Write && !out[i].allows_write() {
                return Err(RangeFaultError::ReadOnly(page));
            }
            tries = if i == first { tries + 1 } else { 1 };
            if tries > TRIES {
                return Err(RangeFaultError::Failed(page));
            }
            let same = |&j: &usize| {
                need(j, out[j]) == Some(access) && !out[j].is_error() && out[j].allows_write() == out[i].allows_write()
            };
            let n = (i..out.len()).take_while(same).count();
            first = i;
            granted = i..i + n;
            let run = range.slice(PageCount::new(i as u64), PageCount::new(n as u64));
            if self.fault_in(run, access).is_err() {
                granted = i..i + 1;
                let one = run.slice(PageCount::ZERO, PageCount::ONE);
                if self.fault_in(one, access).is_err() && self.same_mapping(one, access) {
                    return Err(RangeFaultError::Failed(page));
                }
            }
        }
    }

    /// Whether nothing was found in memory of hetmem's own, which another mapping was about to take the place of.
    fn is_torn(&self, range: PageRange, answers: &[MirrorPage]) -> bool {
        self.has_overlays()
            && range.iter().zip(answers).any(|(page, answer)| {
                answer.is_error() && self.space.region_at(page).is_some_and(|(_, region)| region.owned)
            })
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
            EventsPending, Home, Mirrored, NoMemory, NoRoom, Present, UnderWay, Waiting,
        };
        for _ in 0..TRIES {
            match self.fault(page, FaultPath::Sigbus) {
                Home(pages) if !pages.is_zero() => return,
                Present => return,
                NoMemory => {
                    self.trim_pool(Keep::Limit);
                    self.host.await_events();
                }
                Home(_) | Waiting | EventsPending | Mirrored | NoRoom | UnderWay => self.host.await_events(),
            }
        }
    }

    /// Looks at the pages of `range`.
    fn snapshot(&self, range: PageRange, owner: Option<Owner>, out: &mut [MirrorPage]) {
        out.fill(MirrorPage(ERROR));
        let index = |page: VirtAddr| page.pages_since(range.start()).as_usize();
        let mut at = range.start();
        while at < range.end() {
            let Some(mapping) = self.host.mapping_from(at) else { break };
            at = mapping.range.end();
            let Some(part) = mapping.range.intersect(range).filter(|_| mapping.readable) else { continue };
            let allows = if mapping.writable { MAPPED_FOR_WRITE } else { 0 };
            out[index(part.start())..index(part.end())].fill(MirrorPage(allows));
            self.host.presence(&mapping, part, &mut |found: Present| {
                let Some(run) = found.range.intersect(part) else { return };
                let write = if found.writable && mapping.writable { WRITE } else { 0 };
                let zero = if found.zero { ZERO } else { 0 };
                let order = u64::from(found.order & 0x1F) << ORDER_SHIFT;
                out[index(run.start())..index(run.end())].fill(MirrorPage(VALID | write | zero | order | allows));
            });
        }
        // The books come last: what they say of a page outdoes what was seen of it before.
        let _shared = self.space.gate.share();
        for (no, block) in self.space.blocks_in(range) {
            let Some(part) = range.intersect(no.range()) else { continue };
            let state = block.lock();
            if state.unmapped() == 0 && state.mapped() == 0 && !state.exchanging {
                continue;
            }
            for page in part.iter() {
                let answer = &mut out[index(page)];
                if answer.is_error() {
                    continue;
                }
                let allows = MirrorPage(answer.0 & MAPPED_FOR_WRITE);
                match state.slot(page.index_in_block()) {
                    Slot::Mapped(frame) if answer.is_valid() => *answer = answer.at(frame),
                    // Perhaps it is laid already, of which nobody will be told.
                    Slot::System if state.exchanging => *answer = allows,
                    Slot::System | Slot::Mapped(_) => {}
                    Slot::Unmapped { frame, busy: false } if self.is_private_of(frame, owner) => {
                        let write = if allows.allows_write() { WRITE } else { 0 };
                        *answer = MirrorPage(allows.0 | VALID | PRIVATE | write).at(frame);
                    }
                    Slot::Unmapped { .. } => *answer = allows,
                }
            }
        }
    }

    fn is_private_of(&self, frame: Frame, owner: Option<Owner>) -> bool {
        frame.device != SYSTEM_POOL
            && self.is_private(frame.device)
            && owner == Some(self.device_of(frame.device).pagemap().owner)
    }
}

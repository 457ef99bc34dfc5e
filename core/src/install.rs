//! Installing pages: the one way of a page into the program.
//!
//! | who | from | what it does where the first page is not installed |
//! | --- | --- | --- |
//! | `migrate::finalize` | frames of the target, the pool, or a device that can be read | keeps it, and rolls back |
//! | `migrate::Batch::roll_back` | the frames where the page was taken out to | leaves it there: a touch tries again |
//! | a touch of a page in a frame with an address | that frame | tries again later, or stops the program |
//! | a touch of a page in a private frame | that frame, where it can be read | takes the next way |
//! | | frames of the pool, where the device had copied it | tries again later, or stops the program |
//!
//! The page itself is moved, if nobody may be reading the frame and the mapping accepts it, else copied. From a private frame it is always copied, so is
//! what goes home from a coherent one where no page is in stock, and so
//! are a few pages that a device has copied into the pool for a touch: a move has each processor forget where they were, and empties the pool.
//! What is installed is settled at once: slots say where the pages are, and the references that went with the old place are let go of. Each caller
//! interprets the rest ([`Installed`]).

use std::sync::atomic::Ordering::Relaxed;

use crate::engine::Engine;
use crate::frames::{FrameRefs, Frames, Left, restate};
use crate::outcome::KeptReason;
use crate::port::{Arrived, FaultPath, Host, How, InstallStop};
use crate::slot::Slot;
use crate::space::BlockState;
use crate::units::{PageCount, PageRange, VirtAddr};

/// Where the bytes of pages are that are to be installed; of what is settled, the references are taken from the front.
pub(crate) enum Source<'a, 'e, H: Host> {
    /// In the frames that the slots name. These are the caller's references, beside the slots'.
    Slots(&'a mut FrameRefs<'e, H>),
    /// In frames that nobody but the caller knows, and in those that the slots name, still.
    Copies(&'a mut FrameRefs<'e, H>),
}

impl<'e, H: Host> Source<'_, 'e, H> {
    const fn refs(&mut self) -> &mut FrameRefs<'e, H> {
        match self {
            Self::Slots(refs) | Self::Copies(refs) => refs,
        }
    }
}

/// In which ways pages may be installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ways {
    /// Only by moving: a page that is copied in is one of system memory.
    Move,
    /// By moving, or where that can't be done by copying.
    MoveOrCopy,
    /// The same, of the one page that was touched.
    Touched,
    /// By copying: the page that is in the frame stays the device's.
    Fetched,
    /// By copying, where no memory is to be had for that by moving; who waits is to be woken.
    Copied,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(crate) enum Installed {
    /// So many pages from the first on are in the program, and their slots say so.
    Pages(PageCount),
    /// None is. The program changed its mappings, and the event of it is unread: let go of the gate, [`Host::await_events`], look at the slots again.
    EventsPending,
    /// None is. The program has unmapped the first, or put a guard marker in its place: its bytes are of no use to anybody, its slot says `System`,
    /// and the outcome of its migration is this.
    Discarded(KeptReason),
    /// None is, and the first can't be installed by any of the ways.
    Refused,
    /// None is, as the host has no memory for the first.
    NoMemory,
    /// None is. Another page is mapped where the first belongs.
    Occupied,
}

impl Installed {
    /// How many pages are dealt with: their references, and those of their slots, have gone where they belong.
    pub(crate) const fn settled(self) -> PageCount {
        match self {
            Self::Pages(pages) => pages,
            Self::Discarded(_) => PageCount::ONE,
            Self::EventsPending | Self::Refused | Self::NoMemory | Self::Occupied => PageCount::ZERO,
        }
    }
}

impl<H: Host> Engine<H> {
    /// Installs the pages `to`, all of one block, from the first frames of `source`: as many as go in by one call. With the gate held.
    pub(crate) fn install(
        &self,
        state: &mut BlockState,
        path: FaultPath,
        to: PageRange,
        mut source: Source<'_, '_, H>,
        ways: Ways,
    ) -> Installed {
        let frames = source.refs().frames().slice(PageCount::ZERO, to.pages());
        // A batch that has lost one of the pages to an `mremap`, and has not noticed yet, may be reading the frame, and would take the page's next
        // stay there for its own. So the page is copied: the frame keeps its bytes until the last reference is gone.
        let (from, mut how) = match (self.address(frames), &source) {
            (Some(from), Source::Slots(_)) if ways == Ways::Fetched => (from, How::Fetch),
            (Some(from), Source::Slots(_)) if self.is_read_by_others(frames) => (from, How::Copy),
            (Some(from), Source::Copies(_)) if ways == Ways::Copied => (from, How::Fetch),
            (Some(from), Source::Slots(_) | Source::Copies(_)) => (from, How::Move),
            (None, _) => {
                let from = self.readable(frames).expect("pages are installed from frames that have an address");
                (from, if ways == Ways::Touched { How::FetchTouched } else { How::Fetch })
            }
        };
        if how == How::Copy && ways == Ways::Move {
            return Installed::Refused;
        }
        let mut arrived = self.host.install(path, to, from, how);
        let none = |arrived: &Arrived, stops: &[InstallStop]| {
            arrived.pages.is_zero() && arrived.stop.is_some_and(|stop| stops.contains(&stop))
        };
        if ways == Ways::Copied && how == How::Fetch && none(&arrived, &[InstallStop::Refused, InstallStop::NoMemory]) {
            how = How::Move;
            arrived = self.host.install(path, to, from, how);
        }
        let may_copy = matches!(ways, Ways::MoveOrCopy | Ways::Copied);
        if may_copy && how == How::Move && none(&arrived, &[InstallStop::Refused]) {
            how = How::Copy;
            arrived = self.host.install(path, to, from, how);
        }
        if !arrived.pages.is_zero() {
            self.settle(state, to.slice(PageCount::ZERO, arrived.pages), source, how);
            return Installed::Pages(arrived.pages);
        }
        match arrived.stop {
            Some(InstallStop::EventsPending) => Installed::EventsPending,
            Some(InstallStop::NoMemory) => Installed::NoMemory,
            Some(InstallStop::Occupied) => Installed::Occupied,
            // A host that doesn't say is not asked for ever.
            Some(InstallStop::Refused) | None => Installed::Refused,
            Some(stop @ (InstallStop::Gone | InstallStop::Guarded)) => {
                self.vacate(state, to.slice(PageCount::ZERO, PageCount::ONE), Left::Page);
                drop(source.refs().take_front(PageCount::ONE));
                let is_guarded = stop == InstallStop::Guarded;
                Installed::Discarded(if is_guarded { KeptReason::Guarded } else { KeptReason::Raced })
            }
        }
    }

    /// The pages `at` are in the program.
    fn settle(&self, state: &mut BlockState, at: PageRange, mut source: Source<'_, '_, H>, how: How) {
        let refs = source.refs().take_front(at.pages());
        match (how, source) {
            // A device's frames, in the program now.
            (How::Move, Source::Slots(_)) if !refs.frames().is_pool() => {
                restate(state, at, refs.frames(), Slot::Mapped);
            }
            (How::Move, Source::Copies(_)) if !refs.frames().is_pool() => {
                self.occupy(state, at, refs, Slot::Mapped);
            }
            (How::Move, Source::Slots(_)) => {
                self.vacate(state, at, Left::Nothing);
                refs.release(Left::Nothing);
            }
            (How::Move, Source::Copies(_)) => {
                self.vacate(state, at, Left::Page);
                refs.release(Left::Nothing);
            }
            (How::Copy, Source::Slots(_) | Source::Copies(_)) => self.vacate(state, at, Left::Page),
            (How::Fetch | How::FetchTouched, _) => {
                self.counters.bytes_copied.fetch_add(at.pages().bytes().get(), Relaxed);
                self.vacate(state, at, Left::Page);
            }
        }
    }

    /// Whether somebody refers to one of the frames beside their slots and the caller.
    fn is_read_by_others(&self, frames: Frames) -> bool {
        const KNOWN: u64 = 2;
        frames.iter().any(|frame| self.references(frame) > KNOWN)
    }

    /// A page that has nowhere else to be found its place taken ([`Installed::Occupied`]).
    pub(crate) fn is_there_twice(&self, page: VirtAddr) -> ! {
        self.host.stop_the_program(page, "another page is already mapped where a migrated page belongs")
    }

    /// A page that is owed can't be installed by any way ([`Installed::Refused`]).
    pub(crate) fn is_refused(&self, page: VirtAddr) -> ! {
        self.host.stop_the_program(page, "the kernel accepts a page neither by moving nor by copying")
    }
}

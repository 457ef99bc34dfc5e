//! A batch of pages on their way, and their way back.

use crate::engine::Engine;
use crate::frames::{FrameRefs, restate};
use crate::install::{Source, Ways};
use crate::migrate::Request;
use crate::outcome::{KeptReason, Outcomes, PageOutcome};
use crate::port::{FaultPath, Host};
use crate::slot::Slot;
use crate::space::{BlockRef, BlockState};
use crate::units::{PageCount, PageRange};

/// Where a page was before the migration, and goes back to if it fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// It was present, in system memory.
    System,
    /// It was present, in a mapped frame.
    Mapped,
    /// It was missing already, in the frame that holds it still.
    Unmapped,
}

/// Consecutive pages whose bytes lie in consecutive frames, busy on behalf of a batch.
pub(crate) struct Piece<'e, H: Host> {
    pub(crate) at: PageRange,
    /// The batch's reference to each frame; the slots have another, as long as they are the batch's.
    pub(crate) bytes: FrameRefs<'e, H>,
    pub(crate) origin: Origin,
    /// They were one huge page.
    pub(crate) huge: bool,
}

impl<H: Host> Piece<'_, H> {
    pub(crate) fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// The first `pages` pages; the others stay.
    pub(crate) fn take_front(&mut self, pages: PageCount) -> Self {
        let bytes = self.bytes.take_front(pages);
        self.huge &= self.at.pages() == pages;
        Self { at: self.advance(pages), bytes, origin: self.origin, huge: self.huge }
    }

    /// Its pages, which are all still this batch's, stay in the frames where they are out, no longer busy.
    pub(crate) fn leave_out(self, state: &mut BlockState) {
        restate(state, self.at, self.bytes.frames(), |frame| Slot::Unmapped { frame, busy: false });
    }

    /// The range of the first `pages` pages, whose references have gone elsewhere.
    pub(crate) fn advance(&mut self, pages: PageCount) -> PageRange {
        let front = self.at.slice(PageCount::ZERO, pages);
        self.at = self.at.slice(pages, self.at.pages());
        front
    }

    /// The number of pages from the first on that are all still this batch's, or all no longer: events may have dropped or moved them.
    pub(crate) fn same_fate(&self, state: &BlockState) -> (bool, PageCount) {
        // Of pages that are alike all are where the piece has them, or none is.
        let fate = |at: PageCount| {
            let (slot, pages) = state.slot_run(self.at.slice(at, self.at.pages()));
            (slot == Slot::Unmapped { frame: self.bytes.frame(at), busy: true }, pages)
        };
        let (ours, mut n) = fate(PageCount::ZERO);
        while n < self.at.pages() {
            let (same, pages) = fate(n);
            if same != ours {
                break;
            }
            n += pages;
        }
        (ours, n)
    }
}

/// What the phases of one batch have in common. Dropping it rolls its pieces back.
pub(crate) struct Batch<'e, H: Host> {
    pub(crate) engine: &'e Engine<H>,
    pub(crate) block: BlockRef,
    pub(crate) range: PageRange,
    pub(crate) path: FaultPath,
    pub(crate) request: Request,
    pub(crate) pieces: Vec<Piece<'e, H>>,
    pub(crate) outcomes: Outcomes,
}

impl<H: Host> Batch<'_, H> {
    pub(crate) fn set_outcome(&mut self, pages: PageRange, outcome: PageOutcome) {
        let first = pages.start().pages_since(self.range.start()).as_usize();
        self.outcomes.set_all(first..first + pages.pages().as_usize(), outcome);
    }

    /// Takes the pages of `piece` back to where they were, as far as they are still this batch's.
    pub(crate) fn roll_back(&mut self, mut piece: Piece<'_, H>, reason: KeptReason) {
        let range = piece.at;
        self.set_outcome(range, PageOutcome::Kept(reason));
        let _shared = self.engine.space.gate.share();
        let mut state = self.block.lock();
        while !piece.is_empty() {
            let (ours, n) = piece.same_fate(&state);
            let part = piece.take_front(n);
            if ours {
                self.engine.roll_back(&mut state, self.path, part);
            }
        }
        self.engine.release_waiters(&self.block, &mut state, self.path, range);
    }
}

impl<H: Host> Drop for Batch<'_, H> {
    fn drop(&mut self) {
        for piece in std::mem::take(&mut self.pieces) {
            self.roll_back(piece, KeptReason::Raced);
        }
    }
}

impl<H: Host> Engine<H> {
    /// Takes pages that are still the batch's back to where they were, with the block locked and the gate held. Never fails: what can't go back stays
    /// in its frame, no longer busy.
    pub(crate) fn roll_back(&self, state: &mut BlockState, path: FaultPath, mut piece: Piece<'_, H>) {
        if piece.origin != Origin::Unmapped && piece.bytes.address().is_some() {
            // Whatever stands in the way of the rest, a touch tries again.
            let installed = self.install(state, path, piece.at, Source::Slots(&mut piece.bytes), Ways::Move);
            piece.advance(installed.settled());
        }
        restate(state, piece.at, piece.bytes.frames(), |frame| Slot::Unmapped { frame, busy: false });
    }
}

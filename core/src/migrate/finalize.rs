//! Finalize: point the slots to the new frames, install pages, wake who waits, recycle the old frames.

use crate::frames::FrameRefs;
use crate::install::{Installed, Source, Ways};
use crate::migrate::copy::Filled;
use crate::migrate::{Batch, Copied, Piece, Target};
use crate::outcome::{KeptReason, Outcomes, PageOutcome};
use crate::port::Host;
use crate::slot::Slot;
use crate::space::BlockState;
use crate::units::{PageCount, PageRange};

impl<H: Host> Copied<'_, H> {
    /// Moves the pages to their new places and says what became of each.
    #[must_use]
    pub fn finalize(mut self) -> Outcomes {
        let all = self.take_filled();
        if self.batch.overlay().is_some() {
            self.batch.lay(all);
        } else {
            all.into_iter().for_each(|filled| self.batch.finish(filled));
        }
        self.batch.block.lock().shrink();
        std::mem::take(&mut self.batch.outcomes)
    }
}

impl<H: Host> Drop for Copied<'_, H> {
    fn drop(&mut self) {
        for Filled { piece, copy } in self.take_filled() {
            drop(copy);
            self.batch.roll_back(piece, KeptReason::Raced);
        }
        self.roll_refused_back();
    }
}

/// What to do after a step of [`Batch::finish`].
#[derive(PartialEq, Eq)]
enum Step {
    Done,
    /// Whoever waits for the gate comes first: pages were copied under it.
    GiveWay,
    AwaitEvents,
}

/// As many pages are copied into the program, at most, before others have their turn.
const COPIED_AT_ONCE: PageCount = PageCount::new(64);

impl<'e, H: Host> Batch<'e, H> {
    fn finish(&mut self, filled: Filled<'e, H>) {
        let Filled { mut piece, mut copy } = filled;
        let block = self.block.clone();
        while !piece.is_empty() {
            let start = piece.at.start();
            let mut step = Step::Done;
            {
                let _shared = self.engine.space.gate.share();
                let mut state = block.lock();
                while !piece.is_empty() && step == Step::Done {
                    let (ours, n) = piece.same_fate(&state);
                    if ours {
                        step = self.finish_front(&mut state, &mut piece, &mut copy, n);
                    } else {
                        // The program unmapped, dropped or moved these pages meanwhile: their slots have nothing to do with the batch any more.
                        drop(self.keep_front(&mut piece, &mut copy, n, KeptReason::Raced));
                    }
                }
                if let Some(settled) = PageRange::between(start, piece.at.start()).filter(|r| !r.is_empty()) {
                    self.engine.release_waiters(&block, &mut state, self.path, settled);
                }
            }
            if step == Step::AwaitEvents {
                self.engine.host.await_events();
            }
        }
    }

    /// Gives the first `n` pages of `piece`, which are the batch's still, their new place, or as many as go there in one step.
    fn finish_front(
        &mut self,
        state: &mut BlockState,
        piece: &mut Piece<'e, H>,
        copy: &mut Option<FrameRefs<'e, H>>,
        n: PageCount,
    ) -> Step {
        let engine = self.engine;
        let fetches = copy.is_none() && !piece.bytes.frames().is_pool();
        let n = if fetches { n.min(COPIED_AT_ONCE) } else { n };
        let to = piece.at.slice(PageCount::ZERO, n);
        let ways = match (self.request.target, &mut *copy) {
            (Target::Device(device), Some(copy)) if engine.is_private(device) => {
                engine.occupy(state, to, copy.take_front(n), |frame| Slot::Unmapped { frame, busy: false });
                drop(piece.take_front(n));
                self.set_outcome(to, PageOutcome::Moved);
                return Step::Done;
            }
            // A page that is copied in is not the device's.
            (Target::Device(_), _) => Ways::Move,
            (Target::System, _) if fetches => Ways::Fetched,
            (Target::System, _) => Ways::MoveOrCopy,
        };
        let installed = match copy {
            Some(copy) => engine.install(state, self.path, to, Source::Copies(copy), ways),
            None => engine.install(state, self.path, to, Source::Slots(&mut piece.bytes), ways),
        };
        if copy.is_some() {
            drop(piece.bytes.take_front(installed.settled()));
        }
        let settled = piece.advance(installed.settled());
        let reason = match installed {
            Installed::Pages(_) => {
                self.set_outcome(settled, PageOutcome::Moved);
                return if fetches { Step::GiveWay } else { Step::Done };
            }
            Installed::Discarded(reason) => {
                self.set_outcome(settled, PageOutcome::Kept(reason));
                return Step::Done;
            }
            Installed::EventsPending => return Step::AwaitEvents,
            Installed::Occupied => engine.is_there_twice(to.start()),
            Installed::NoMemory => KeptReason::NoMemory,
            Installed::Refused => KeptReason::Unsupported,
        };
        let page = self.keep_front(piece, copy, PageCount::ONE, reason);
        engine.roll_back(state, self.path, page);
        Step::Done
    }

    /// Takes the first `n` pages of `piece` out, which do not go to their new place, and lets go of the frames there.
    fn keep_front(
        &mut self,
        piece: &mut Piece<'e, H>,
        copy: &mut Option<FrameRefs<'e, H>>,
        n: PageCount,
        reason: KeptReason,
    ) -> Piece<'e, H> {
        drop(copy.as_mut().map(|copy| copy.take_front(n)));
        let kept = piece.take_front(n);
        self.set_outcome(kept.at, PageOutcome::Kept(reason));
        kept
    }
}

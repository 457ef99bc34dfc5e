//! Finalize: point the slots to the new frames, put pages in, wake who waits, recycle the old frames.

use crate::engine::Held;
use crate::migrate::copy::Filled;
use crate::migrate::{Batch, Copied, Piece, PutFailure, Target};
use crate::outcome::{KeptReason, Outcomes, PageOutcome};
use crate::port::{Host, Install, PutStop};
use crate::slot::{SYSTEM_POOL, Slot};
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
        std::mem::take(&mut self.batch.outcomes)
    }
}

impl<H: Host> Drop for Copied<'_, H> {
    fn drop(&mut self) {
        for Filled { piece, copy } in self.take_filled() {
            if let Some(copy) = copy {
                self.batch.engine.put(copy);
            }
            self.batch.put_back(piece, KeptReason::Raced);
        }
        self.put_refused_back();
    }
}

/// What to do after a step of [`Batch::finish`].
enum Step {
    Done(PageCount),
    AwaitEvents,
}

impl<H: Host> Batch<'_, H> {
    fn finish(&mut self, filled: Filled) {
        let Filled { piece, copy } = filled;
        let block = crate::sync::Arc::clone(&self.block);
        let mut at = PageCount::ZERO;
        while at < piece.at.pages() {
            let await_events = {
                let _installing = self.engine.space.gate.install();
                let mut state = block.lock();
                let mut wait = false;
                while at < piece.at.pages() {
                    let (ours, n) = piece.same_fate(&state, at);
                    let part = piece.slice(at, n);
                    let copy = copy.map(|c| c.slice(at, n));
                    let step = if ours { self.install(&mut state, part, copy) } else { self.let_go(part, copy) };
                    match step {
                        Step::Done(n) => at += n,
                        Step::AwaitEvents => {
                            wait = true;
                            break;
                        }
                    }
                }
                let settled = piece.at.slice(PageCount::ZERO, at);
                if !settled.is_empty() {
                    self.engine.release_waiters(&block, &mut state, self.path, settled);
                }
                wait
            };
            if await_events {
                self.engine.host.await_events();
            }
        }
    }

    /// The program unmapped, dropped or moved these pages meanwhile: the slots have nothing to do with the batch any more.
    fn let_go(&mut self, part: Piece, copy: Option<Held>) -> Step {
        self.set_outcome(part.at, PageOutcome::Kept(KeptReason::Raced));
        if let Some(copy) = copy {
            self.engine.put(copy);
        }
        self.engine.put(part.bytes);
        Step::Done(part.at.pages())
    }

    fn install(&mut self, state: &mut BlockState, part: Piece, copy: Option<Held>) -> Step {
        match (self.request.target, copy) {
            (Target::Device(device), Some(copy)) if self.engine.is_private(device) => {
                self.settle(state, part.at, |i| Slot::Unmapped { frame: copy.frame(i), busy: false });
                self.drop_old(part);
                Step::Done(part.at.pages())
            }
            (Target::Device(_), Some(copy)) => self.put_in(state, part, copy, Install::Move),
            (Target::System, Some(copy)) => self.put_in(state, part, copy, Install::Move),
            (_, None) => {
                let how = if self.engine.is_read_by_others(part.bytes, 2) { Install::Copy } else { Install::Move };
                self.put_in(state, part, part.bytes, how)
            }
        }
    }

    /// Puts as much of `part` in from the frames `from` as goes in one call.
    fn put_in(&mut self, state: &mut BlockState, part: Piece, from: Held, how: Install) -> Step {
        let address = self.engine.address(from).expect("pages are put in from the pool or from coherent frames");
        let put = self.engine.host.put_in(self.path, part.at, address, how);
        if !put.pages.is_zero() {
            let done = part.slice(PageCount::ZERO, put.pages);
            let frames = from.slice(PageCount::ZERO, put.pages);
            self.arrived(state, done, frames, how);
            return Step::Done(put.pages);
        }
        let page = part.slice(PageCount::ZERO, PageCount::ONE);
        let frame = from.slice(PageCount::ZERO, PageCount::ONE);
        let stop = put.stop.unwrap_or(PutStop::Refused);
        // A page on its way home may be copied in where it can't be moved in; a coherent frame can't.
        if stop == PutStop::Refused && how == Install::Move && from.device == SYSTEM_POOL {
            return self.put_in(state, page, frame, Install::Copy);
        }
        match self.engine.put_failure(page.at.start(), stop) {
            PutFailure::LookAgain => return Step::AwaitEvents,
            PutFailure::Dropped => {
                self.settle(state, page.at, |_| Slot::System);
                let reason = if stop == PutStop::Guarded { KeptReason::Guarded } else { KeptReason::Raced };
                self.set_outcome(page.at, PageOutcome::Kept(reason));
                if frame != page.bytes {
                    self.engine.put(frame);
                }
                self.drop_old(page);
            }
            PutFailure::StaysAway => {
                if frame != page.bytes {
                    self.engine.put(frame);
                }
                self.engine.put_back_ours(state, self.path, page);
                let reason = if stop == PutStop::NoMemory { KeptReason::NoMemory } else { KeptReason::Unsupported };
                self.set_outcome(page.at, PageOutcome::Kept(reason));
            }
        }
        Step::Done(PageCount::ONE)
    }

    /// `done` is in place, from `frames`.
    fn arrived(&mut self, state: &mut BlockState, done: Piece, frames: Held, how: Install) {
        if frames.device != SYSTEM_POOL {
            self.settle(state, done.at, |i| Slot::Mapped(frames.frame(i)));
            self.drop_old(done);
            return;
        }
        self.settle(state, done.at, |_| Slot::System);
        let give_back = |held| match how {
            Install::Move => self.engine.put_moved(held),
            Install::Copy => self.engine.put(held),
        };
        if frames == done.bytes {
            // From the pool itself: the slots' references and the batch's.
            give_back(frames);
            give_back(frames);
        } else {
            give_back(frames);
            self.drop_old(done);
        }
    }

    /// Gives up the slots' references to the old frames, and the batch's.
    fn drop_old(&self, part: Piece) {
        self.engine.put(part.bytes);
        self.engine.put(part.bytes);
    }

    fn settle(&mut self, state: &mut BlockState, at: PageRange, slot: impl Fn(PageCount) -> Slot) {
        for (i, page) in (0..).zip(at.iter()) {
            state.set(page.index_in_block(), slot(PageCount::new(i)));
        }
        self.set_outcome(at, PageOutcome::Moved);
    }
}

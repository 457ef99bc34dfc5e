//! Copy: allocate frames of the target and fill them. No lock is held, as this is where the time goes.
//!
//! Frames for all pieces are allocated first, and then all are filled at once: a device with a queue works on all of them together.

use crate::engine::Held;
use crate::migrate::{Batch, Piece, Target, is_pool};
use crate::outcome::KeptReason;
use crate::pool::Purpose;
use crate::port::{Host, TransferError};
use crate::slot::SYSTEM_POOL;
use crate::sync::Arc;
use crate::transfer::FrameCopy;
use crate::units::PageCount;

/// A piece and the frames that hold a copy of it; `None` where it goes home in the pool's own pages.
pub(crate) struct Filled {
    pub(crate) piece: Piece,
    pub(crate) copy: Option<Held>,
}

/// Pages whose bytes are in the target's frames, and still in the old ones.
pub struct Copied<'e, H: Host> {
    pub(crate) batch: Batch<'e, H>,
    pub(crate) filled: Vec<Filled>,
    /// Pieces that are not, and why. They go back.
    refused: Vec<(Piece, KeptReason)>,
}

impl<'e, H: Host> Copied<'e, H> {
    pub(crate) fn copy(mut batch: Batch<'e, H>) -> Result<Self, (Batch<'e, H>, KeptReason)> {
        if let Some(device) = batch.overlay() {
            return match batch.fill_block(device) {
                Ok(filled) => Ok(Self { batch, filled, refused: Vec::new() }),
                Err(reason) => Err((batch, reason)),
            };
        }
        let filled = Vec::with_capacity(batch.pieces.len());
        let mut this = Self { batch, filled, refused: Vec::new() };
        this.allocate();
        this.fill();
        let refused = std::mem::take(&mut this.refused);
        match refused.first() {
            Some(&(_, why)) if this.filled.is_empty() => {
                this.batch.pieces = refused.into_iter().map(|(piece, _)| piece).collect();
                Err((this.into_batch(), why))
            }
            _ => {
                this.refused = refused;
                this.put_refused_back();
                Ok(this)
            }
        }
    }

    /// Gives each of the batch's pieces frames, in parts where they come so.
    fn allocate(&mut self) {
        // At any time a piece is in one of the three lists: if a device panics, all go back.
        self.batch.pieces.reverse();
        while let Some(&piece) = self.batch.pieces.last() {
            let part = match self.batch.allocate(piece) {
                Ok(copy) => {
                    let part = copy.map_or(piece, |copy| piece.slice(PageCount::ZERO, copy.run.pages));
                    self.filled.push(Filled { piece: part, copy });
                    part
                }
                Err(reason) => {
                    self.refused.push((piece, reason));
                    piece
                }
            };
            self.batch.pieces.pop();
            let done = part.at.pages();
            if done < piece.at.pages() {
                self.batch.pieces.push(piece.slice(done, piece.at.pages() - done));
            }
        }
    }

    /// Fills all frames.
    fn fill(&mut self) {
        let to_copy = self.filled.iter().filter_map(|f| f.copy.map(|to| FrameCopy::new(f.piece.bytes, to)));
        let mut copies: Vec<FrameCopy> = to_copy.collect();
        self.batch.engine.copy_all(&mut copies);
        if copies.iter().all(|copy| copy.result.is_ok()) {
            return;
        }
        let mut results = copies.into_iter().map(|copy| copy.result);
        for filled in std::mem::take(&mut self.filled) {
            let result: Result<(), TransferError> =
                if filled.copy.is_some() { results.next().expect("each copy has a result") } else { Ok(()) };
            match (result, filled.copy) {
                (Err(error), Some(copy)) => {
                    self.batch.engine.put(copy);
                    self.refused.push((filled.piece, error.into()));
                }
                _ => self.filled.push(filled),
            }
        }
    }

    /// Puts the pages of pieces that were not filled back.
    pub(crate) fn put_refused_back(&mut self) {
        for (piece, reason) in std::mem::take(&mut self.refused) {
            self.batch.put_back(piece, reason);
        }
    }

    /// The batch alone; nothing is filled.
    fn into_batch(mut self) -> Batch<'e, H> {
        let Batch { engine, block, range, path, request, pieces, outcomes } = &mut self.batch;
        let (pieces, outcomes) = (std::mem::take(pieces), std::mem::take(outcomes));
        Batch { engine, block: Arc::clone(block), range: *range, path: *path, request: *request, pieces, outcomes }
    }

    /// Takes the filled pieces out, to be finished one by one.
    pub(crate) fn take_filled(&mut self) -> Vec<Filled> {
        std::mem::take(&mut self.filled)
    }
}

impl<H: Host> Batch<'_, H> {
    /// Frames for as much of `piece` as one run takes; `None` if it needs none.
    fn allocate(&self, piece: Piece) -> Result<Option<Held>, KeptReason> {
        let engine = self.engine;
        if self.request.target == Target::System && is_pool(piece.bytes) {
            return Ok(None);
        }
        let (want, page) = (piece.at.pages(), piece.at.start());
        match self.request.target {
            Target::Device(device) => engine.allocate_ready(device, want, page, piece.huge).ok_or(KeptReason::NoFrame),
            Target::System => piece
                .huge
                .then(|| engine.pool.take_stocked_whole(page))
                .flatten()
                .or_else(|| engine.take_stocked(want, page, Purpose::Migration))
                .map(|run| Held { device: SYSTEM_POOL, run })
                .ok_or(KeptReason::NoMemory),
        }
        .map(Some)
    }
}

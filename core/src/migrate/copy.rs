//! Copy: allocate frames of the target and fill them. No lock is held, as this is where the time goes.
//!
//! Frames for all pieces are allocated first, and then all are filled at once: a device with a queue works on all of them together.

use crate::engine::Engine;
use crate::frames::{FrameRefs, Purpose};
use crate::migrate::{Batch, Piece, Target};
use crate::outcome::KeptReason;
use crate::port::Host;
use crate::transfer::FrameCopy;
use crate::units::PageRange;

/// A piece and the frames that hold a copy of it; `None` where it goes home in the pool's own pages, or is copied when it is installed.
pub(crate) struct Filled<'e, H: Host> {
    pub(crate) piece: Piece<'e, H>,
    pub(crate) copy: Option<FrameRefs<'e, H>>,
}

/// Pages whose bytes are in the target's frames, and still in the old ones.
pub struct Copied<'e, H: Host> {
    pub(crate) batch: Batch<'e, H>,
    pub(crate) filled: Vec<Filled<'e, H>>,
    /// Pieces that are not, and why. They go back.
    refused: Vec<(Piece<'e, H>, KeptReason)>,
}

impl<'e, H: Host> Copied<'e, H> {
    #[expect(clippy::result_large_err, reason = "a batch that can't be copied is handed back as it is")]
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
        match this.refused.first() {
            Some(&(_, why)) if this.filled.is_empty() => {
                this.batch.pieces = this.refused.drain(..).map(|(piece, _)| piece).collect();
                Err((this.into_batch(), why))
            }
            _ => {
                this.roll_refused_back();
                Ok(this)
            }
        }
    }

    /// Gives each of the batch's pieces frames, in parts where they come so.
    fn allocate(&mut self) {
        // At any time a piece is in one of the three lists: if a device panics, all go back.
        self.batch.pieces.reverse();
        while let Some(piece) = self.batch.pieces.last() {
            let allocated = self.batch.allocate(piece);
            let pieces = &mut self.batch.pieces;
            let Some(piece) = pieces.last_mut() else { break };
            let pages = match &allocated {
                Ok(Some(copy)) => copy.pages(),
                Ok(None) | Err(_) => piece.at.pages(),
            };
            let part = piece.take_front(pages);
            if piece.is_empty() {
                pieces.pop();
            }
            match allocated {
                Ok(copy) => self.filled.push(Filled { piece: part, copy }),
                Err(reason) => self.refused.push((part, reason)),
            }
        }
    }

    /// Fills all frames.
    fn fill(&mut self) {
        let to_copy = self.filled.iter().filter_map(|Filled { piece, copy }| {
            copy.as_ref().map(|to| FrameCopy::new(piece.bytes.frames(), to.frames()))
        });
        let mut copies: Vec<FrameCopy> = to_copy.collect();
        self.batch.engine.copy_all(&mut copies);
        if copies.iter().all(|copy| copy.result.is_ok()) {
            return;
        }
        let mut results = copies.into_iter().map(|copy| copy.result);
        for filled in std::mem::take(&mut self.filled) {
            let result = filled.copy.as_ref().and_then(|_| results.next());
            match result {
                Some(Err(error)) => self.refused.push((filled.piece, error.into())),
                Some(Ok(())) | None => self.filled.push(filled),
            }
        }
    }

    /// Takes the pages of pieces that were not filled back to where they were.
    pub(crate) fn roll_refused_back(&mut self) {
        for (piece, reason) in std::mem::take(&mut self.refused) {
            self.batch.roll_back(piece, reason);
        }
    }

    /// The batch alone; nothing is filled.
    fn into_batch(mut self) -> Batch<'e, H> {
        let Batch { engine, block, range, path, request, pieces, outcomes } = &mut self.batch;
        let (pieces, outcomes) = (std::mem::take(pieces), std::mem::take(outcomes));
        Batch { engine, block: block.clone(), range: *range, path: *path, request: *request, pieces, outcomes }
    }

    /// Takes the filled pieces out, to be finished one by one.
    pub(crate) fn take_filled(&mut self) -> Vec<Filled<'e, H>> {
        std::mem::take(&mut self.filled)
    }
}

impl<'e, H: Host> Batch<'e, H> {
    /// Frames for as much of `piece` as one run takes; `None` if it needs none.
    fn allocate(&self, piece: &Piece<'e, H>) -> Result<Option<FrameRefs<'e, H>>, KeptReason> {
        let engine = self.engine;
        let (want, page) = (piece.at.pages(), piece.at.start());
        if self.request.target == Target::System && piece.bytes.frames().is_pool() {
            return Ok(None);
        }
        match self.request.target {
            Target::Device(device) => engine.allocate_ready(device, want, page, piece.huge).ok_or(KeptReason::NoFrame),
            Target::System => {
                if let Some(places) = piece.huge.then(|| engine.place_for_huge()).flatten() {
                    return Ok(Some(places));
                }
                let frames = piece.bytes.frames();
                let coherent = engine.address(frames).is_some();
                if !piece.huge && engine.fetches_from(frames) {
                    // Populated pages are there to be used again, if a move of them is worth it: of pages that a move has taken out just now, any.
                    let run = (coherent || engine.host.moves_sooner(want))
                        .then(|| engine.pool.take_populated(want))
                        .flatten();
                    return Ok(run.map(|run| engine.places(run)));
                }
                engine.take_stocked(want, Purpose::Migration).ok_or(KeptReason::NoMemory)
            }
        }
        .map(Some)
    }
}

impl<H: Host> Engine<H> {
    /// A huge page of the pool to copy one into: one of the stock, or a new one. Page by page it would take four times as long to populate, and
    /// be 512 pages to the program from then on.
    fn place_for_huge(&self) -> Option<FrameRefs<'_, H>> {
        if let Some(run) = self.pool.take_stocked_whole() {
            return Some(self.places(run));
        }
        let places = self.take_places(Purpose::Migration, |pool| pool.take_empty_whole())?;
        self.host.populate_huge(PageRange::new(places.address()?, places.pages())?);
        Some(places)
    }
}

//! Copy: allocate frames of the target and fill them. No lock is held, as this is where the time goes.

use std::sync::atomic::Ordering::Relaxed;

use crate::engine::{Engine, Held};
use crate::frames::Purpose;
use crate::migrate::{Batch, Piece, Target, is_pool};
use crate::outcome::KeptReason;
use crate::port::{DeviceError, Host};
use crate::slot::SYSTEM_POOL;
use crate::sync::Arc;
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
}

impl<'e, H: Host> Copied<'e, H> {
    pub(crate) fn copy(mut batch: Batch<'e, H>) -> Result<Self, (Batch<'e, H>, KeptReason)> {
        if let Some(device) = batch.overlay() {
            return match batch.fill_block(device) {
                Ok(filled) => Ok(Self { batch, filled }),
                Err(reason) => Err((batch, reason)),
            };
        }
        // Of the pieces in front, which could not be filled.
        let mut reasons = Vec::new();
        let mut this = Self { filled: Vec::with_capacity(batch.pieces.len()), batch };
        // A piece stays the batch's until it is filled: if a device panics, all others go back.
        this.batch.pieces.reverse();
        while let Some(&piece) = this.batch.pieces[reasons.len()..].last() {
            let done = match this.batch.fill(piece) {
                Ok(part) => {
                    let done = part.piece.at.pages();
                    this.filled.push(part);
                    done
                }
                Err((part, reason)) => {
                    this.batch.pieces.insert(reasons.len(), part);
                    reasons.push(reason);
                    part.at.pages()
                }
            };
            this.batch.pieces.pop();
            if done < piece.at.pages() {
                this.batch.pieces.push(piece.slice(done, piece.at.pages() - done));
            }
        }
        if let (true, Some(&why)) = (this.filled.is_empty(), reasons.first()) {
            return Err((this.into_batch(), why));
        }
        for (piece, reason) in std::mem::take(&mut this.batch.pieces).into_iter().zip(reasons) {
            this.batch.put_back(piece, reason);
        }
        Ok(this)
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
    /// Fills frames with as much of `piece` as one run of frames takes.
    fn fill(&self, piece: Piece) -> Result<Filled, (Piece, KeptReason)> {
        let engine = self.engine;
        if self.request.target == Target::System && is_pool(piece.bytes) {
            return Ok(Filled { piece, copy: None });
        }
        let (want, page) = (piece.at.pages(), piece.at.start());
        let copy = match self.request.target {
            Target::Device(device) => engine.allocate_ready(device, want, page, piece.huge).ok_or(KeptReason::NoFrame),
            Target::System => piece
                .huge
                .then(|| engine.pool.take_stocked_whole(page))
                .flatten()
                .or_else(|| engine.take_stocked(want, page, Purpose::Migration))
                .map(|run| Held { device: SYSTEM_POOL, run })
                .ok_or(KeptReason::NoMemory),
        };
        let copy = copy.map_err(|reason| (piece, reason))?;
        let piece = piece.slice(PageCount::ZERO, copy.run.pages);
        match engine.copy_frames(piece.bytes, copy) {
            Ok(()) => Ok(Filled { piece, copy: Some(copy) }),
            Err(DeviceError) => {
                engine.put(copy);
                Err((piece, KeptReason::DeviceError))
            }
        }
    }
}

impl<H: Host> Engine<H> {
    /// Copies pages from frames to frames, each by the way its device offers.
    pub(crate) fn copy_frames(&self, from: Held, to: Held) -> Result<(), DeviceError> {
        let copied = self.copy_by_device(from, to);
        if copied.is_ok() {
            self.counters.bytes_copied.fetch_add(from.run.pages.bytes().get(), Relaxed);
        }
        copied
    }

    /// The same for pages that are owed: a failure is one that nobody else tells of.
    pub(crate) fn copy_owed(&self, from: Held, to: Held) -> bool {
        let copied = self.copy_frames(from, to).is_ok();
        if !copied {
            self.counters.errors.fetch_add(1, Relaxed);
        }
        copied
    }

    fn copy_by_device(&self, from: Held, to: Held) -> Result<(), DeviceError> {
        match (self.address(from), self.address(to)) {
            (Some(source), _) if !is_pool(to) && is_pool(from) => self.device_of(to.device).copy_in(to.run, source),
            (_, Some(target)) if !is_pool(from) => self.device_of(from.device).copy_out(from.run, target),
            (Some(source), _) if !is_pool(to) => self.device_of(to.device).copy_in(to.run, source),
            (Some(source), Some(target)) => {
                self.host.copy(source, target, from.run.pages);
                Ok(())
            }
            (_, None) | (None, _) => self.bounce(from, to),
        }
    }

    /// From one private device to another, through pages of the pool.
    fn bounce(&self, from: Held, to: Held) -> Result<(), DeviceError> {
        let mut at = PageCount::ZERO;
        while at < from.run.pages {
            let want = from.run.pages - at;
            let page = crate::units::VirtAddr::default();
            let via = self.take_stocked(want, page, Purpose::Migration).ok_or(DeviceError)?;
            let address = self.pool.address(via);
            let result = self
                .device_of(from.device)
                .copy_out(from.run.slice(at, via.pages), address)
                .and_then(|()| self.device_of(to.device).copy_in(to.run.slice(at, via.pages), address));
            self.pool.put_populated(via);
            result?;
            at += via.pages;
        }
        Ok(())
    }
}

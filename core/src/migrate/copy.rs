//! Copy: allocate frames of the target and fill them. No lock is held, as this is where the time goes.

use std::sync::atomic::Ordering::Relaxed;

use crate::engine::Engine;
use crate::frames::{FrameRefs, Frames, Purpose};
use crate::migrate::{Batch, Piece, Target};
use crate::outcome::KeptReason;
use crate::port::{DeviceError, Host};
use crate::sync::Arc;
use crate::units::PageCount;

/// A piece and the frames that hold a copy of it; `None` where it goes home in the pool's own pages.
pub(crate) struct Filled<'e, H: Host> {
    pub(crate) piece: Piece<'e, H>,
    pub(crate) copy: Option<FrameRefs<'e, H>>,
}

/// Pages whose bytes are in the target's frames, and still in the old ones.
pub struct Copied<'e, H: Host> {
    pub(crate) batch: Batch<'e, H>,
    pub(crate) filled: Vec<Filled<'e, H>>,
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
        while let Some(piece) = this.batch.pieces[reasons.len()..].last() {
            let (pages, filled) = this.batch.fill(piece);
            let pieces = &mut this.batch.pieces;
            let Some(piece) = pieces.last_mut() else { break };
            let part = piece.take_front(pages);
            if piece.is_empty() {
                pieces.pop();
            }
            match filled {
                Ok(copy) => this.filled.push(Filled { piece: part, copy }),
                Err(reason) => {
                    pieces.insert(reasons.len(), part);
                    reasons.push(reason);
                }
            }
        }
        if let (true, Some(&why)) = (this.filled.is_empty(), reasons.first()) {
            return Err((this.into_batch(), why));
        }
        for (piece, reason) in std::mem::take(&mut this.batch.pieces).into_iter().zip(reasons) {
            this.batch.roll_back(piece, reason);
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
    pub(crate) fn take_filled(&mut self) -> Vec<Filled<'e, H>> {
        std::mem::take(&mut self.filled)
    }
}

impl<'e, H: Host> Batch<'e, H> {
    /// Fills frames with as much of `piece` as one run of frames takes. Says with how many pages, or why it could not be done with so many.
    fn fill(&self, piece: &Piece<'e, H>) -> (PageCount, Result<Option<FrameRefs<'e, H>>, KeptReason>) {
        let engine = self.engine;
        let (want, page, bytes) = (piece.at.pages(), piece.at.start(), piece.bytes.frames());
        if self.request.target == Target::System && bytes.is_pool() {
            return (want, Ok(None));
        }
        let copy = match self.request.target {
            Target::Device(device) => engine.allocate_ready(device, want, page, piece.huge).ok_or(KeptReason::NoFrame),
            Target::System => piece
                .huge
                .then(|| engine.pool.take_stocked_whole(page))
                .flatten()
                .map(|run| engine.places(run))
                .or_else(|| engine.take_stocked(want, page, Purpose::Migration))
                .ok_or(KeptReason::NoMemory),
        };
        let copy = match copy {
            Ok(copy) => copy,
            Err(reason) => return (want, Err(reason)),
        };
        match engine.copy_frames(bytes.slice(PageCount::ZERO, copy.pages()), copy.frames()) {
            Ok(()) => (copy.pages(), Ok(Some(copy))),
            Err(DeviceError) => (copy.pages(), Err(KeptReason::DeviceError)),
        }
    }
}

impl<H: Host> Engine<H> {
    /// Copies pages from frames to frames, each by the way its device offers.
    pub(crate) fn copy_frames(&self, from: Frames, to: Frames) -> Result<(), DeviceError> {
        let copied = self.copy_by_device(from, to);
        if copied.is_ok() {
            self.counters.bytes_copied.fetch_add(from.run.pages.bytes().get(), Relaxed);
        }
        copied
    }

    /// Copies pages that are owed from frames to frames: a failure is one that nobody else tells of, and is counted.
    pub(crate) fn copy_owed(&self, from: Frames, to: Frames) -> bool {
        let copied = self.copy_frames(from, to).is_ok();
        if !copied {
            self.counters.errors.fetch_add(1, Relaxed);
        }
        copied
    }

    fn copy_by_device(&self, from: Frames, to: Frames) -> Result<(), DeviceError> {
        match (self.address(from), self.address(to)) {
            (Some(source), _) if !to.is_pool() && from.is_pool() => self.device_of(to.device).copy_in(to.run, source),
            (_, Some(target)) if !from.is_pool() => self.device_of(from.device).copy_out(from.run, target),
            (Some(source), _) if !to.is_pool() => self.device_of(to.device).copy_in(to.run, source),
            (Some(source), Some(target)) => {
                self.host.copy(source, target, from.run.pages);
                Ok(())
            }
            (_, None) | (None, _) => self.bounce(from, to),
        }
    }

    /// From one private device to another, through pages of the pool.
    fn bounce(&self, from: Frames, to: Frames) -> Result<(), DeviceError> {
        let mut at = PageCount::ZERO;
        while at < from.run.pages {
            let want = from.run.pages - at;
            let page = crate::units::VirtAddr::default();
            let via = self.take_stocked(want, page, Purpose::Migration).ok_or(DeviceError)?;
            let address = self.pool.address(via.frames().run);
            let result = self
                .device_of(from.device)
                .copy_out(from.run.slice(at, via.pages()), address)
                .and_then(|()| self.device_of(to.device).copy_in(to.run.slice(at, via.pages()), address));
            result?;
            at += via.pages();
        }
        Ok(())
    }
}

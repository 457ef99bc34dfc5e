//! Blocks of device memory that are laid over the program's: coherent devices whose pages can be mapped, but not moved.
//!
//! Device-DAX memory takes no part in userfaultfd: a page of it is neither moved into the program's mappings nor out of them. But it can be mapped in
//! their place, shared, a whole block at a time, and that is one step to whoever touches the block:
//!
//! ```text
//!          collect, copy                 Batch::lay                         Engine::lift_for
//! System ────────────────► busy, trapped ────────────► laid: Mapped, all 512 ────────────► Unmapped, in the same frames
//!                          copies in a block of frames  in frames 0, 1, … of the block     a touch brings them home, by copying
//! ```
//!
//! Whatever takes one page of a laid block out lifts the block first. Then its pages are as those of a private device. They are laid again when they
//! are migrated to the device again, all 512, to another block of frames.
//!
//! A removal can be announced when the block it began in is laid already, and what it then finds is shared memory, which keeps its bytes: it changes
//! nothing in the slots. One that comes earlier and is carried out while the block is laid leaves zeros or the old bytes. What is written after it is
//! never lost.
//!
//! Nothing tells who refers to a laid page, as `EBUSY` of a MOVE does of others. So a block of which a part is pinned by advice stays laid, and who
//! pins it waits for changes under way ([`Engine::await_exchanges`]).
//!
//! A child has no mapping where a block is laid: who forks lifts all first, and lays none until it is done ([`Engine::hold_exchanges`]).
//!
//! *Limits:* nobody else may map, unmap or protect what is there ([`Region::owned`]). In a laid block `MADV_DONTNEED` keeps the bytes. To lay a block
//! that was lifted again, the device needs a second, free block of frames.

use crate::engine::Engine;
use crate::frames::{Frames, restate};
use crate::migrate::copy::Filled;
use crate::migrate::{Batch, Piece, Request, Target};
use crate::notifier::Event;
use crate::outcome::{KeptReason, PageOutcome};
use crate::port::{Backing, FaultPath, Host};
use crate::slot::{SYSTEM_POOL, Slot};
use crate::space::{BlockState, Region};
use crate::transfer::FrameCopy;
use crate::units::{BlockNo, DeviceId, PageCount, PageRange, VirtAddr};

impl<H: Host> Engine<H> {
    /// Whether pages come to be on the device by being laid over.
    #[must_use]
    pub fn lays(&self, id: DeviceId) -> bool {
        self.has_overlays && self.device(id).is_some_and(|device| device.reach().laid().is_some())
    }

    /// Whether some device's frames are laid over the program's pages.
    #[must_use]
    pub const fn has_overlays(&self) -> bool {
        self.has_overlays
    }

    /// The laid blocks that overlap `range`, in order.
    #[must_use]
    pub fn laid_in(&self, range: PageRange) -> Vec<PageRange> {
        if !self.has_overlays {
            return Vec::new();
        }
        let state = self.exchanges.lock();
        let from = state.laid.range(range.start().block()..).map(|(no, _)| no.range());
        from.take_while(|block| block.start() < range.end()).collect()
    }

    /// Whether the block at `addr` is laid. Allocates nothing.
    #[must_use]
    pub fn is_laid(&self, addr: VirtAddr) -> bool {
        self.exchanges.laid_on(addr.block()).is_some()
    }

    /// Why pages of `parts` of the block numbered `no` can't be laid, if so. A block of that device that is laid already is no matter.
    pub(crate) fn refuses_to_lay(
        &self,
        no: BlockNo,
        parts: impl Iterator<Item = PageRange>,
        region: Region,
        target: Target,
    ) -> Option<KeptReason> {
        match target {
            Target::Device(device) if self.lays(device) && self.exchanges.laid_on(no) != Some(device) => {
                let pages: PageCount = parts.map(PageRange::pages).sum();
                if !region.owned {
                    Some(KeptReason::Unsupported)
                } else if pages < PageCount::BLOCK {
                    Some(KeptReason::PartOfBlock)
                } else {
                    None
                }
            }
            Target::System | Target::Device(_) => None,
        }
    }

    /// Lifts the block numbered `no` if it is laid and `request` takes pages of it elsewhere. The caller holds no lock.
    ///
    /// # Errors
    ///
    /// Why it is still laid.
    pub(crate) fn lift_for(&self, no: BlockNo, path: FaultPath, request: Request) -> Result<(), KeptReason> {
        if !self.has_overlays || self.exchanges.laid_on(no).is_none() {
            return Ok(());
        }
        let range = no.range();
        // Mirrors that use the frames are told of the whole block, as all of it goes.
        let (shared, notice) = self.share_noticed(range, Event::Migrate(None));
        let Some(block) = self.space.existing_block(no) else { return Ok(()) };
        let mut state = block.lock();
        let Slot::Mapped(first) = state.slot(0) else { return Ok(()) };
        // Others may have lifted it and moved its pages since the look above.
        if !self.lays(first.device) || self.selects(first, request).is_err() {
            return Ok(());
        }
        match self.begin_exchange(no, &mut state, None) {
            Err(KeptReason::Raced) => return Ok(()),
            begun => begun?,
        }
        let refs = self.refer_to(Frames::new(first, PageCount::BLOCK));
        let frames = refs.frames();
        restate(&mut state, range, frames, |frame| Slot::Unmapped { frame, busy: true });
        drop(state);
        drop(shared);
        drop(notice);
        self.exchange(no, &block, path, Backing::Anonymous, |state, lifted| {
            for (i, page) in (0..).zip(range.iter()) {
                let (page, frame) = (PageRange::page_of(page), frames.slice(PageCount::new(i), PageCount::ONE));
                let slot = state.slot(page.start().index_in_block());
                // What the program has dropped meanwhile is the system's, or is mapped still.
                match (slot.frame() == Some(frame.frame(PageCount::ZERO)) && slot.is_busy(), lifted) {
                    (true, true) => restate(state, page, frame, |frame| Slot::Unmapped { frame, busy: false }),
                    (true, false) => restate(state, page, frame, Slot::Mapped),
                    (false, true) => {}
                    (false, false) => self.occupy(state, page, self.refer_to(frame), Slot::Mapped),
                }
            }
            if lifted { None } else { Some(frames.device) }
        })
    }

    fn overlay_address(&self, frames: Frames) -> VirtAddr {
        let start = self.device_of(frames.device).reach().laid().expect("the device's frames are laid");
        start.add_pages(PageCount::new(u64::from(frames.run.first.get())))
    }
}

impl<H: Host> Engine<H> {
    /// Checks that the laid blocks are those whose pages are all in a block of frames, in order; nothing may be in flight.
    pub(crate) fn check_overlays(&self) {
        let laid = {
            let overlays = self.exchanges.lock();
            assert!(overlays.changing.is_empty(), "no block is being laid or lifted");
            overlays.laid.clone()
        };
        for (no, block) in self.space.blocks() {
            let state = block.lock();
            assert!(!state.exchanging, "nothing is about to take the block's place");
            let first = match state.slot(0) {
                Slot::Mapped(frame) if self.lays(frame.device) => Some(frame),
                Slot::Mapped(_) | Slot::System | Slot::Unmapped { .. } => None,
            };
            let device = first.map(|frame| frame.device);
            assert_eq!(laid.get(&no).copied(), device, "a laid block is mapped from its first page on");
            for index in 0..PageCount::BLOCK.as_usize() {
                let Slot::Mapped(frame) = state.slot(index) else {
                    assert_eq!(first, None, "a laid block is mapped whole");
                    continue;
                };
                let expected = first.map_or(frame.index.index(), |first| first.index.index() + index);
                assert!(first.is_some() || !self.lays(frame.device), "a laid block is mapped whole");
                assert_eq!(frame.index.index(), expected, "its frames are in order");
            }
        }
    }
}

impl<'e, H: Host> Batch<'e, H> {
    /// The device whose frames are to be laid over the batch's block, if that is what is asked for.
    pub(crate) fn overlay(&self) -> Option<DeviceId> {
        match self.request.target {
            Target::Device(device) if device != SYSTEM_POOL && self.engine.lays(device) => Some(device),
            Target::System | Target::Device(_) => None,
        }
    }

    /// Fills a block of frames of `device` with all pages of the batch's block.
    pub(crate) fn fill_block(&mut self, device: DeviceId) -> Result<Vec<Filled<'e, H>>, KeptReason> {
        let engine = self.engine;
        let pages: PageCount = self.pieces.iter().map(|piece| piece.at.pages()).sum();
        if pages < PageCount::BLOCK {
            return Err(KeptReason::PartOfBlock);
        }
        let mut frames = engine.allocate_block(device, self.range.start()).ok_or(KeptReason::NoFrame)?;
        let start = self.range.start();
        let place = |at: PageRange| frames.frames().slice(at.start().pages_since(start), at.pages());
        let mut copies: Vec<_> =
            self.pieces.iter().map(|piece| FrameCopy::new(piece.bytes.frames(), place(piece.at))).collect();
        engine.copy_all(&mut copies);
        if let Some(error) = copies.iter().find_map(|copy| copy.result.err()) {
            return Err(error.into());
        }
        // All pages are there, in order.
        let mut fill = |piece: Piece<'e, H>| {
            let copy = Some(frames.take_front(piece.at.pages()));
            Filled { piece, copy }
        };
        Ok(std::mem::take(&mut self.pieces).into_iter().map(&mut fill).collect())
    }

    /// Lays the frames that were filled over the block.
    pub(crate) fn lay(&mut self, mut filled: Vec<Filled<'e, H>>) {
        let engine = self.engine;
        let no = self.range.start().block();
        let block = self.block.clone();
        let first = filled.first().and_then(|Filled { copy, .. }| Some(copy.as_ref()?.frame(PageCount::ZERO)));
        let (Some(first), Some(device)) = (first, self.overlay()) else { return };
        let begun = {
            let _shared = engine.space.gate.share();
            let mut state = block.lock();
            let ours = |Filled { piece, .. }: &Filled<'e, H>| piece.same_fate(&state) == (true, piece.at.pages());
            let all_ours = filled.iter().all(ours);
            all_ours && engine.begin_exchange(no, &mut state, Some(self.path)).is_ok()
        };
        let frames = Backing::Device(engine.overlay_address(Frames::new(first, PageCount::BLOCK)));
        let lay = |state: &mut BlockState, laid: bool| {
            if !laid {
                return None;
            }
            for Filled { piece, copy } in filled.drain(..) {
                // What the program has dropped meanwhile is what the frame holds, as of a block that was laid before.
                if let Some(copy) = copy {
                    engine.occupy(state, piece.at, copy, Slot::Mapped);
                }
            }
            Some(device)
        };
        let laid = match begun {
            true => engine.exchange(no, &block, self.path, frames, lay),
            false => Err(KeptReason::Raced),
        };
        match laid {
            Ok(()) => self.set_outcome(self.range, PageOutcome::Moved),
            Err(reason) => {
                for Filled { piece, copy } in filled {
                    drop(copy);
                    self.roll_back(piece, reason);
                }
            }
        }
    }
}

//! Devices over the model.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::Pagemap;
use hetmem_core::port::{Astray, Device, Direction, NoBacking, Progress, Reach, Ticket, Transfer, TransferError};
use hetmem_core::units::{FrameIndex, PageCount, PageRange, VirtAddr};

use super::{Failure, GARBAGE, Gives, Memory, Model, StepKind, Token, ZERO, nth};

/// A device.
pub(crate) struct ModelDevice {
    pub(crate) pagemap: Pagemap,
    pub(crate) reach: Reach,
    /// Where the frames lie.
    pub(crate) frames: VirtAddr,
    pub(crate) model: Arc<Model>,
    /// Nobody waits for it: who serves faults asks.
    pub(crate) descriptor: File,
}

impl ModelDevice {
    /// The content of the run's frame `i`, which must have one.
    fn get(&self, memory: &Memory, run: FrameRun, i: u64) -> Token {
        memory.own_content(nth(self.frames, u64::from(run.frame(PageCount::new(i)).get())))
    }

    fn set(&self, memory: &mut Memory, run: FrameRun, i: u64, content: Token) {
        memory.own.insert(nth(self.frames, u64::from(run.frame(PageCount::new(i)).get())).get(), content);
    }
}

impl ModelDevice {
    fn copy(&self, transfer: &Transfer) -> Result<(), TransferError> {
        let Transfer { frames, memory: at, .. } = *transfer;
        let kind = match transfer.direction {
            Direction::In => StepKind::CopyIn,
            Direction::Out => StepKind::CopyOut,
        };
        let failure = self.model.step(kind);
        self.panic_if_told(failure);
        let mut memory = self.model.lock();
        let device = self.pagemap.device.index();
        let breaks = |frame: FrameIndex| memory.broken.contains(&(device, frame.get()));
        let error = match failure {
            Some(Failure::Device(error)) => Some(error),
            _ if kind == StepKind::CopyOut && frames.iter().any(breaks) => Some(TransferError::Transient),
            _ => None,
        };
        for i in 0..frames.pages.get() {
            let content = match transfer.direction {
                Direction::In => memory.own_content(nth(at, i)),
                Direction::Out => self.get(&memory, frames, i),
            };
            let content = if error.is_some() { GARBAGE } else { content };
            match transfer.direction {
                Direction::In => self.set(&mut memory, frames, i, content),
                Direction::Out => _ = memory.own.insert(nth(at, i).get(), content),
            }
        }
        error.map_or(Ok(()), Err)
    }

    fn panic_if_told(&self, failure: Option<Failure>) {
        let panics = failure.is_none() && std::mem::take(&mut self.model.lock().panics);
        assert!(!panics, "the device panics");
    }
}

impl Device for ModelDevice {
    fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    fn reach(&self) -> Reach {
        self.reach
    }

    fn readable(&self) -> Option<VirtAddr> {
        // Of what is laid nobody copies, whatever it says.
        let is_laid = matches!(self.reach, Reach::Laid(_));
        (is_laid || self.model.lock().gives == Gives::Read).then_some(self.frames)
    }

    fn astray(&self, range: PageRange, visit: &mut dyn FnMut(VirtAddr, Astray)) {
        let strays = self.model.lock().strays.clone();
        range.iter().filter(|page| strays.contains(&page.get())).for_each(|page| visit(page, Astray::Elsewhere));
    }

    fn transfer(&self, batch: &mut [Transfer]) {
        for transfer in batch {
            transfer.progress = Progress::Done(self.copy(transfer));
        }
    }

    fn submit(&self, batch: &mut [Transfer]) {
        if self.model.lock().gives != Gives::Late {
            return self.transfer(batch);
        }
        let mut memory = self.model.lock();
        for transfer in batch {
            transfer.progress = Progress::UnderWay;
            memory.under_way.push((self.pagemap.device.index(), *transfer));
        }
    }

    /// The last begun ends first.
    fn completions(&self, visit: &mut dyn FnMut(Ticket, Result<(), TransferError>)) {
        let own = |(device, _): &(usize, Transfer)| *device == self.pagemap.device.index();
        loop {
            let next = {
                let mut memory = self.model.lock();
                let at = memory.under_way.iter().rposition(own);
                at.map(|at| memory.under_way.remove(at))
            };
            let Some((_, transfer)) = next else { return };
            let result = self.copy(&transfer);
            visit(transfer.ticket, result);
        }
    }

    fn completion_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.descriptor.as_fd())
    }

    fn released(&self, run: FrameRun) {
        let mut memory = self.model.lock();
        for frame in run.iter() {
            let prepared = memory.prepared.remove(&(self.pagemap.device.index(), frame.get()));
            assert!(prepared, "a frame is released once for each time that it was allocated");
        }
    }

    fn prepare(&self, run: FrameRun) -> Result<PageCount, NoBacking> {
        let mut memory = self.model.lock();
        for frame in run.iter() {
            let fresh = memory.prepared.insert((self.pagemap.device.index(), frame.get()));
            assert!(fresh, "a frame is released before it is allocated again");
        }
        Ok(PageCount::ZERO)
    }

    fn clear(&self, run: FrameRun) {
        let mut memory = self.model.lock();
        for i in 0..run.pages.get() {
            self.set(&mut memory, run, i, ZERO);
        }
    }
}

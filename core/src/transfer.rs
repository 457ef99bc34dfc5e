//! Copies of pages from frames to frames: each by the way that its devices offer, those of one device together.

use std::sync::atomic::Ordering::Relaxed;

use crate::engine::Engine;
use crate::frames::{Frames, Purpose};
use crate::outcome::KeptReason;
use crate::port::{Device, Host, Transfer, TransferError};
use crate::units::{DeviceId, PageCount, VirtAddr};

/// Pages to be copied, and what came of it.
pub(crate) struct FrameCopy {
    pub(crate) from: Frames,
    pub(crate) to: Frames,
    pub(crate) result: Result<(), TransferError>,
}

impl FrameCopy {
    pub(crate) const fn new(from: Frames, to: Frames) -> Self {
        Self { from, to, result: Ok(()) }
    }
}

/// How pages get from frames to frames.
enum Way {
    /// A device copies.
    Device(DeviceId, Transfer),
    /// Both are places of the pool.
    Host { from: VirtAddr, to: VirtAddr },
    /// From one private device to another: through pages of the pool.
    Bounce,
}

impl<H: Host> Engine<H> {
    /// Makes all of `copies`. No device waits for another's answer to begin with its own, and each is asked once.
    pub(crate) fn copy_all(&self, copies: &mut [FrameCopy]) {
        let mut batch: Vec<Transfer> = Vec::with_capacity(copies.len());
        for device in self.devices() {
            let id = device.pagemap().device;
            let of_device = |copy: &FrameCopy| match self.way(copy.from, copy.to) {
                Way::Device(of, transfer) if of == id => Some(transfer),
                Way::Device(..) | Way::Host { .. } | Way::Bounce => None,
            };
            batch.clear();
            batch.extend(copies.iter().filter_map(of_device));
            if batch.is_empty() {
                continue;
            }
            device.transfer(&mut batch);
            self.note_packing(&**device);
            let own = copies.iter_mut().filter(|copy| of_device(copy).is_some());
            own.zip(&batch).for_each(|(copy, done)| copy.result = done.result());
        }
        for copy in copies.iter_mut() {
            match self.way(copy.from, copy.to) {
                Way::Device(..) => {}
                Way::Host { from, to } => self.host.copy(from, to, copy.from.run.pages),
                Way::Bounce => copy.result = self.bounce(copy.from, copy.to),
            }
        }
        let copied: PageCount = copies.iter().filter(|copy| copy.result.is_ok()).map(|copy| copy.from.run.pages).sum();
        self.counters.bytes_copied.fetch_add(copied.bytes().get(), Relaxed);
    }

    /// Counts how the device's pages are packed now, if it packs them.
    fn note_packing(&self, device: &dyn Device) {
        if let Some(packing) = device.packing() {
            self.counters.devices[device.pagemap().device.index()].packing.set(&packing);
        }
    }

    /// The same for all devices: what has left them since nobody has counted.
    pub fn look_at_packing(&self) {
        self.devices().iter().for_each(|device| self.note_packing(&**device));
    }

    /// Makes one copy. Allocates nothing.
    pub(crate) fn copy_frames(&self, from: Frames, to: Frames) -> Result<(), TransferError> {
        let copied = match self.way(from, to) {
            Way::Device(device, transfer) => self.transfer(device, transfer),
            Way::Host { from: source, to } => {
                self.host.copy(source, to, from.run.pages);
                Ok(())
            }
            Way::Bounce => self.bounce(from, to),
        };
        if copied.is_ok() {
            self.counters.bytes_copied.fetch_add(from.run.pages.bytes().get(), Relaxed);
        }
        copied
    }

    /// Makes one copy of pages that are owed to the program. A failure is counted here, as nobody else tells of it. Allocates nothing.
    pub(crate) fn copy_owed(&self, from: Frames, to: Frames) -> Result<(), TransferError> {
        let copied = self.copy_frames(from, to);
        if copied.is_err() {
            self.counters.errors.fetch_add(1, Relaxed);
        }
        copied
    }

    fn transfer(&self, device: DeviceId, transfer: Transfer) -> Result<(), TransferError> {
        let mut batch = [transfer];
        self.device_of(device).transfer(&mut batch);
        batch[0].result()
    }

    fn way(&self, from: Frames, to: Frames) -> Way {
        match (self.address(from), self.address(to)) {
            (Some(source), Some(target)) if from.is_pool() && to.is_pool() => Way::Host { from: source, to: target },
            (Some(source), _) if from.is_pool() => Way::Device(to.device, Transfer::into_frames(to.run, source)),
            (_, Some(target)) => Way::Device(from.device, Transfer::out_of_frames(from.run, target)),
            (Some(source), None) => Way::Device(to.device, Transfer::into_frames(to.run, source)),
            (None, None) => Way::Bounce,
        }
    }

    fn bounce(&self, from: Frames, to: Frames) -> Result<(), TransferError> {
        let mut at = PageCount::ZERO;
        while at < from.run.pages {
            let want = from.run.pages - at;
            let via = self.take_stocked(want, Purpose::Migration).ok_or(TransferError::Transient)?;
            let address = self.pool.address(via.frames().run);
            let (out, into) = (from.run.slice(at, via.pages()), to.run.slice(at, via.pages()));
            self.transfer(from.device, Transfer::out_of_frames(out, address))?;
            self.transfer(to.device, Transfer::into_frames(into, address))?;
            at += via.pages();
        }
        Ok(())
    }
}

impl From<TransferError> for KeptReason {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Full => Self::NoFrame,
            TransferError::Transient | TransferError::Lost => Self::DeviceError,
        }
    }
}

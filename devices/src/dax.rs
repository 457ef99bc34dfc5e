//! Device-DAX memory: real memory (soft-reserved, CXL, persistent) of a character device.
//!
//! The device's bytes are mapped once, by hetmem and for hetmem. Each process takes a part of the
//! device, as long as the device's `size=`, for itself ([`DaxSlice`]); a process that finds none free is told so.
//!
//! | type | pages get there | the program uses them |
//! | --- | --- | --- |
//! | private | one by one, by copying | after they were copied home |
//! | coherent | by whole blocks of 2 MiB, by copying | in place: the block is mapped a second time, over the program's ([`hetmem_core::exchange`]) |
//!
//! The kernel neither moves pages to such memory nor traps touches of it, and maps it shared only. So a coherent device takes only memory whose mappings are
//! hetmem's own: a forked child would share the pages of other memory, and its program could not unmap, protect or drop a part of a block.
//!
//! *Limits:* what the pages held stays in the device after the end. If the device is taken away, touches of it end the process
//! (SIGBUS). A device with an alignment of more than 2 MiB is private only.

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::{MemoryType, Owner, Pagemap};
use hetmem_core::port::{Device, DeviceError};
use hetmem_core::units::{DeviceId, VirtAddr};
use hetmem_sys::dax::{DaxDevice, DaxError, DaxSlice};

use crate::frames::Frames;
use crate::spec::DeviceSpec;

/// See the module.
pub struct DaxStore {
    frames: Frames,
    slice: DaxSlice,
}

impl DaxStore {
    /// A part of the device at `path` as the device that `spec` describes, with `device` as its id and `owner` as the owner of
    /// its pages.
    ///
    /// # Errors
    ///
    /// If it is no DAX device, or can't be opened or mapped, or nothing of it is free.
    pub fn new(device: DeviceId, owner: Owner, spec: &DeviceSpec, path: &str) -> Result<Self, DaxError> {
        Self::on(device, owner, spec, &DaxDevice::find(path)?)
    }

    /// The same on a device that is known already. Any file that can be mapped shared will do, as in tests where there is no DAX
    /// device.
    ///
    /// # Errors
    ///
    /// As [`DaxStore::new`].
    pub fn on(device: DeviceId, owner: Owner, spec: &DeviceSpec, on: &DaxDevice) -> Result<Self, DaxError> {
        let slice = DaxSlice::claim(on, spec.size)?;
        Ok(Self { frames: Frames::new(device, owner, spec, slice.range()), slice })
    }
}

impl Device for DaxStore {
    fn pagemap(&self) -> &Pagemap {
        &self.frames.pagemap
    }

    /// Pages can't be moved to a DAX device or from it.
    fn frames_start(&self) -> Option<VirtAddr> {
        None
    }

    fn overlay_start(&self) -> Option<VirtAddr> {
        let coherent = self.frames.pagemap.memory_type == MemoryType::DeviceCoherent;
        coherent.then(|| self.slice.range().start())
    }

    fn device_side(&self) -> Option<VirtAddr> {
        Some(self.frames.device_side())
    }

    fn copy_in(&self, to: FrameRun, from: VirtAddr) -> Result<(), DeviceError> {
        self.frames.copy_in(to, from)
    }

    fn copy_out(&self, from: FrameRun, to: VirtAddr) -> Result<(), DeviceError> {
        self.frames.copy_out(from, to)
    }

    fn clear(&self, run: FrameRun) {
        self.frames.clear(run);
    }
}

//! Device-DAX memory as a private device: real memory (soft-reserved, CXL, persistent) that the program never maps.
//!
//! The device's bytes are mapped once, by hetmem and for hetmem; pages are copied in and out. Each process takes a part of the
//! device, as long as the device's `size=`, for itself ([`DaxSlice`]); a process that finds none free is told so.
//!
//! There is no coherent device-DAX device: the kernel neither moves pages to such memory nor traps touches of it, so it could only be
//! mapped over the program's range, shared, in blocks of its alignment. A forked child would share the parent's pages instead of having its
//! own, and the program could not unmap, protect or drop a part of a block. Coherent use wants the memory as a node ([`crate::node`]).
//!
//! *Limits:* what the pages held stays in the device after the end. If the device is taken away, touches of it end the process
//! (SIGBUS).

use hetmem_core::physmap::{Owner, Pagemap};
use hetmem_core::port::{Device, DeviceError};
use hetmem_core::run_set::FrameRun;
use hetmem_core::units::{DeviceId, VirtAddr};
use hetmem_sys::dax::{DaxDevice, DaxError, DaxSlice};

use crate::frames::Frames;
use crate::spec::DeviceSpec;

/// See the module.
pub struct DaxStore {
    frames: Frames,
    _slice: DaxSlice,
}

impl DaxStore {
    /// A part of the device at `path` as the private device that `spec` describes, with `device` as its id and `owner` as the owner of
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
        Ok(Self { frames: Frames::new(device, owner, spec, slice.range()), _slice: slice })
    }
}

impl Device for DaxStore {
    fn pagemap(&self) -> &Pagemap {
        &self.frames.pagemap
    }

    fn frames_start(&self) -> Option<VirtAddr> {
        self.frames.start()
    }

    fn copy_in(&self, to: FrameRun, from: VirtAddr) -> Result<(), DeviceError> {
        self.frames.copy_in(to, from)
    }

    fn copy_out(&self, from: FrameRun, to: VirtAddr) -> Result<(), DeviceError> {
        self.frames.copy_out(from, to)
    }
}

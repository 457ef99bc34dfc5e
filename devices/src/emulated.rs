//! The emulated device: ordinary memory of this machine that plays device memory, in both types.
//!
//! It is the default device and the one that tests use: latency, bandwidth and failures can be injected. Its memory is
//! opened and populated when a frame is first used and kept from then on, so that only first uses pay for allocation.
//!
//! *Limits:* each process has its own; the memory is that of the process that uses the device, in accounting too.

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::{MemoryType, Owner, Pagemap};
use hetmem_core::port::{Device, DeviceError, NoBacking};
use hetmem_core::units::{DeviceId, PageCount, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Access, Arena, ArenaOptions, HugePages, OnDump, OnFork};

use crate::frames::Frames;
use crate::spec::DeviceSpec;

/// See the module.
pub struct Emulated {
    frames: Frames,
    arena: Arena,
}

impl Emulated {
    /// The device that `spec` describes, with `device` as its id and `owner` as the owner of its pages.
    ///
    /// # Errors
    ///
    /// If the host has no address space for it.
    pub fn new(device: DeviceId, owner: Owner, spec: &DeviceSpec) -> Result<Self, Errno> {
        let arena = reserve(spec)?;
        Ok(Self { frames: Frames::new(device, owner, spec, arena.range()), arena })
    }
}

/// Memory for the frames of the device that `spec` describes, nothing of it populated.
pub(crate) fn reserve(spec: &DeviceSpec) -> Result<Arena, Errno> {
    let name = match spec.memory_type {
        MemoryType::DevicePrivate => c"hetmem:private",
        MemoryType::DeviceCoherent => c"hetmem:coherent",
    };
    let options = ArenaOptions {
        huge_pages: HugePages::Prefer,
        on_fork: OnFork::Omit,
        on_dump: OnDump::Omit,
        access: Access::AsOpened,
        name: Some(name),
        ..ArenaOptions::default()
    };
    Arena::reserve(spec.size.whole_pages().ok_or(Errno::INVAL)?, &options)
}

impl Device for Emulated {
    fn pagemap(&self) -> &Pagemap {
        &self.frames.pagemap
    }

    fn frames_start(&self) -> Option<VirtAddr> {
        self.frames.start()
    }

    fn prepare(&self, run: FrameRun) -> Result<PageCount, NoBacking> {
        self.arena.open(self.frames.place(run)).map_err(|_| NoBacking)?;
        Ok(PageCount::ZERO)
    }

    fn device_side(&self) -> Option<VirtAddr> {
        Some(self.frames.device_side())
    }

    fn copy_in(&self, to: FrameRun, from: VirtAddr) -> Result<(), DeviceError> {
        // Open by now, but for a caller who doesn't ask to prepare.
        self.arena.open(self.frames.place(to)).map_err(|_| DeviceError)?;
        self.frames.copy_in(to, from)
    }

    fn copy_out(&self, from: FrameRun, to: VirtAddr) -> Result<(), DeviceError> {
        self.frames.copy_out(from, to)
    }

    fn clear(&self, run: FrameRun) {
        self.frames.clear(run);
    }
}

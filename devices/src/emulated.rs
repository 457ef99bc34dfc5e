//! The emulated device: ordinary memory of this machine that plays device memory, in both types.
//!
//! It is the default device and the one that tests use: latency, bandwidth and failures can be injected. Its memory is
//! opened and populated when a frame is first used and kept from then on, so that only first uses pay for allocation.
//!
//! *Limits:* each process has its own, though those of a run may share a size ([`Kind::shares_size`]); the memory is that of the process that uses
//! the device, in accounting too.

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::{MemoryType, Owner, Pagemap};
use hetmem_core::port::{Device, Direction, NoBacking, Progress, Reach, Transfer, TransferError};
use hetmem_core::units::{ByteLen, DeviceId, PageCount, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Access, Arena, ArenaOptions, HugePages, OnDump, OnFork};

use crate::frames::Frames;
use crate::kind::{Footprint, HostProblem, Kind, MakeError};
use crate::spec::{DeviceSpec, default_size};

/// `emulated`.
pub(crate) struct EmulatedKind;

impl Kind for EmulatedKind {
    fn name(&self) -> &'static str {
        "emulated"
    }

    fn syntax(&self) -> &'static str {
        "emulated"
    }

    fn help(&self) -> &'static str {
        "ordinary memory plays the device"
    }

    fn check_argument(&self, argument: Option<&str>) -> Result<(), String> {
        match argument {
            None => Ok(()),
            Some(argument) => Err(format!("backend emulated takes no argument, but `{argument}` was given")),
        }
    }

    fn default_size(&self, _argument: &str, memory: ByteLen) -> Result<ByteLen, HostProblem> {
        Ok(default_size(memory))
    }

    fn footprint(&self) -> Footprint {
        Footprint::Size
    }

    fn shares_size(&self) -> bool {
        true
    }

    fn check_host(&self, _argument: &str, _memory_type: MemoryType, _size: ByteLen) -> Result<(), HostProblem> {
        Ok(())
    }

    fn make(&self, id: DeviceId, owner: Owner, spec: &DeviceSpec) -> Result<Box<dyn Device>, MakeError> {
        let memory = hetmem_sys::process::machine_memory();
        if spec.size > memory {
            return Err(MakeError::Unsuitable(format!("{} are more than this machine's memory ({memory})", spec.size)));
        }
        Ok(Box::new(Emulated::new(id, owner, spec)?))
    }
}

/// A device whose frames are ordinary memory of this process.
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
        Ok(Self { frames: Frames::new(device, owner, spec.memory_type, arena.range()), arena })
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

    fn reach(&self) -> Reach {
        match self.frames.pagemap.memory_type {
            MemoryType::DevicePrivate => Reach::Copied,
            MemoryType::DeviceCoherent => Reach::Movable(self.frames.start()),
        }
    }

    fn prepare(&self, run: FrameRun) -> Result<PageCount, NoBacking> {
        self.arena.open(self.frames.place(run)).map_err(|_| NoBacking)?;
        Ok(PageCount::ZERO)
    }

    fn is_kept_populated(&self) -> bool {
        true
    }

    fn readable(&self) -> Option<VirtAddr> {
        Some(self.frames.start())
    }

    fn device_side(&self) -> Option<VirtAddr> {
        Some(self.frames.start())
    }

    fn transfer(&self, batch: &mut [Transfer]) {
        for transfer in batch {
            // Open by now, but for a caller who doesn't ask to prepare.
            if transfer.direction == Direction::In && self.arena.open(self.frames.place(transfer.frames)).is_err() {
                transfer.progress = Progress::Done(Err(TransferError::Full));
            } else {
                self.frames.copy(transfer);
            }
        }
    }

    fn clear(&self, run: FrameRun) {
        self.frames.clear(run);
    }
}

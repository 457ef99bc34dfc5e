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
//! The kernel neither moves pages to such memory nor traps touches of it, and maps it shared only. So a coherent device takes only memory whose
//! mappings are hetmem's own: a forked child would share the pages of other memory, and its program could not unmap, protect or drop a part of a
//! block.
//!
//! *Limits:* what the pages held stays in the device after the end. If the device is taken away, touches of it end the process
//! (SIGBUS). A device with an alignment of more than 2 MiB is private only.

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::{MemoryType, Owner, Pagemap};
use hetmem_core::port::{Device, Reach, Transfer};
use hetmem_core::units::{BLOCK_SIZE, ByteLen, DeviceId, VirtAddr};
use hetmem_sys::dax::{DaxDevice, DaxError, DaxSlice};

use crate::frames::Frames;
use crate::kind::{Footprint, HostProblem, Kind, MakeError};
use crate::spec::DeviceSpec;

/// What pages of a coherent device are used by.
const BLOCK: ByteLen = ByteLen::new(BLOCK_SIZE);

/// `dax=PATH`.
pub(crate) struct DaxKind;

impl Kind for DaxKind {
    fn name(&self) -> &'static str {
        "dax"
    }

    fn syntax(&self) -> &'static str {
        "dax=/dev/daxX.Y"
    }

    fn help(&self) -> &'static str {
        "device-DAX memory, under `hetmem run` `private` only"
    }

    fn check_argument(&self, argument: Option<&str>) -> Result<(), String> {
        let path = argument.unwrap_or_default();
        if path.starts_with('/') {
            return Ok(());
        }
        Err(format!("dax: `{path}` is not the path of a device; give {}", self.syntax()))
    }

    fn default_size(&self, argument: &str, _memory: ByteLen) -> Result<ByteLen, HostProblem> {
        Ok(DaxDevice::find(argument).map_err(HostProblem::new)?.size)
    }

    fn footprint(&self) -> Footprint {
        Footprint::None
    }

    fn check_host(&self, argument: &str, memory_type: MemoryType, size: ByteLen) -> Result<(), HostProblem> {
        let device = DaxDevice::find(argument).map_err(HostProblem::new)?;
        fits(&device, memory_type, size).map_err(HostProblem::new)?;
        // Whether there is a free part now. Each process takes its own when it starts.
        DaxSlice::claim(&device, size).map(drop).map_err(HostProblem::new)
    }

    fn check_for_any_program(&self, path: &str, memory_type: MemoryType) -> Result<(), String> {
        match memory_type {
            MemoryType::DevicePrivate => Ok(()),
            MemoryType::DeviceCoherent => Err(format!(
                "pages of {path} can't be used in place by a program that doesn't know of it: device-DAX memory is mapped shared and in blocks only, \
                 which the program notices when it forks or unmaps a part; use private:dax={path}, or give the memory to the kernel as a node (daxctl \
                 reconfigure-device --mode=system-ram) and use coherent:node=N"
            )),
        }
    }

    fn make(&self, id: DeviceId, owner: Owner, spec: &DeviceSpec) -> Result<Box<dyn Device>, MakeError> {
        let unsuitable = |error: &dyn std::error::Error| MakeError::Unsuitable(error.to_string());
        let device = DaxDevice::find(spec.backend.argument()).map_err(|error| unsuitable(&error))?;
        // Else the kernel would say that something is wrong, and not what.
        fits(&device, spec.memory_type, spec.size).map_err(|error| unsuitable(&error))?;
        let store = DaxStore::on(id, owner, spec, &device).map_err(|error| unsuitable(&error))?;
        Ok(Box::new(store))
    }
}

/// Why a device can't be a part of a DAX device.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
enum Misfit {
    #[error("size {size} is more than {path} has ({have})")]
    TooSmall { path: String, size: ByteLen, have: ByteLen },
    #[error("size {size} is not a multiple of the alignment of {path}, {align}")]
    Align { path: String, size: ByteLen, align: ByteLen },
    #[error("size {size} is not a multiple of {BLOCK}, by which pages of {path} are used in place")]
    Blocks { path: String, size: ByteLen },
    #[error(
        "pages of {path} can't be used in place: its alignment, {align}, is more than {BLOCK}; give it another (daxctl reconfigure-device --align=2M), or \
         use private:dax={path}"
    )]
    Coarse { path: String, align: ByteLen },
}

/// Whether a device of that type and size can be a part of `on`.
fn fits(on: &DaxDevice, memory_type: MemoryType, size: ByteLen) -> Result<(), Misfit> {
    let (path, align) = (on.path.clone(), on.align);
    if size > on.size {
        return Err(Misfit::TooSmall { path, size, have: on.size });
    }
    if memory_type == MemoryType::DeviceCoherent && align > BLOCK {
        return Err(Misfit::Coarse { path, align });
    }
    if !size.get().is_multiple_of(align.get()) {
        return Err(Misfit::Align { path, size, align });
    }
    if memory_type == MemoryType::DeviceCoherent && !size.get().is_multiple_of(BLOCK.get()) {
        return Err(Misfit::Blocks { path, size });
    }
    Ok(())
}

/// A device whose frames are a part of a DAX device's memory.
pub struct DaxStore {
    frames: Frames,
    _slice: DaxSlice,
}

impl DaxStore {
    /// A part of the DAX device `on` as the device that `spec` describes, with `device` as its id and `owner` as the owner of its pages. Any file that
    /// can be mapped shared will do, as in tests where there is no DAX device.
    ///
    /// # Errors
    ///
    /// If it can't be opened or mapped, or nothing of it is free.
    pub fn on(device: DeviceId, owner: Owner, spec: &DeviceSpec, on: &DaxDevice) -> Result<Self, DaxError> {
        let slice = DaxSlice::claim(on, spec.size)?;
        Ok(Self { frames: Frames::new(device, owner, spec.memory_type, slice.range()), _slice: slice })
    }
}

impl Device for DaxStore {
    fn pagemap(&self) -> &Pagemap {
        &self.frames.pagemap
    }

    /// Pages can't be moved to a DAX device or from it.
    fn reach(&self) -> Reach {
        match self.frames.pagemap.memory_type {
            MemoryType::DevicePrivate => Reach::Copied,
            MemoryType::DeviceCoherent => Reach::Laid(self.frames.start()),
        }
    }

    fn readable(&self) -> Option<VirtAddr> {
        Some(self.frames.start())
    }

    fn device_side(&self) -> Option<VirtAddr> {
        Some(self.frames.start())
    }

    fn transfer(&self, batch: &mut [Transfer]) {
        batch.iter_mut().for_each(|transfer| self.frames.copy(transfer));
    }

    fn clear(&self, run: FrameRun) {
        self.frames.clear(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_alignments_that_a_dax_device_cannot_have_are_named() {
        use MemoryType::{DeviceCoherent, DevicePrivate};
        let bytes = ByteLen::new;
        let device = |align| DaxDevice { path: "/dev/dax0.0".into(), size: bytes(1 << 31), align: bytes(align) };
        let fits = |align, memory_type, size| fits(&device(align), memory_type, bytes(size));
        for memory_type in [DevicePrivate, DeviceCoherent] {
            assert_eq!(fits(2 << 20, memory_type, 4 << 20), Ok(()));
            assert!(matches!(fits(2 << 20, memory_type, 1 << 32), Err(Misfit::TooSmall { .. })));
            assert!(matches!(fits(2 << 20, memory_type, 1 << 20), Err(Misfit::Align { .. })));
        }
        assert_eq!(fits(4096, DevicePrivate, 1 << 20), Ok(()));
        assert!(matches!(fits(4096, DeviceCoherent, 1 << 20), Err(Misfit::Blocks { .. })));
        assert_eq!(fits(1 << 30, DevicePrivate, 1 << 30), Ok(()));
        let coarse = fits(1 << 30, DeviceCoherent, 1 << 30).unwrap_err();
        assert!(coarse.to_string().contains("--align=2M"), "{coarse}");
    }
}

//! What `file=FOLDER` means, and what is refused.

use hetmem_core::physmap::{MemoryType, Owner};
use hetmem_core::port::Device;
use hetmem_core::units::{ByteLen, DeviceId};
use hetmem_sys::errno::Errno;
use hetmem_sys::process::file_size_limit;
use hetmem_sys::scratch::{NoSizeSignal, Scratch};

use super::FileStore;
use super::room::STEP;
use crate::kind::{Footprint, HostProblem, Kind, MakeError};
use crate::spec::{DeviceSpec, default_size};

/// `file=FOLDER`.
pub(crate) struct FileKind;

impl Kind for FileKind {
    fn name(&self) -> &'static str {
        "file"
    }

    fn syntax(&self) -> &'static str {
        "file=FOLDER"
    }

    fn help(&self) -> &'static str {
        "an unnamed file in a folder on a disk, gone with its process, `private` only"
    }

    fn check_argument(&self, argument: Option<&str>) -> Result<(), String> {
        let path = argument.unwrap_or_default();
        // Programs of a run are in folders of their own.
        if path.starts_with('/') {
            return Ok(());
        }
        Err(format!("file: `{path}` is not the absolute path of a folder; give one on a disk, such as file=/var/tmp"))
    }

    fn default_size(&self, _argument: &str, memory: ByteLen) -> Result<ByteLen, HostProblem> {
        Ok(default_size(memory))
    }

    fn footprint(&self) -> Footprint {
        Footprint::None
    }

    fn shares_size(&self) -> bool {
        true
    }

    fn check_host(&self, argument: &str, memory_type: MemoryType, size: ByteLen) -> Result<(), HostProblem> {
        is_private(memory_type).map_err(HostProblem::new)?;
        let file = Scratch::create(argument).map_err(HostProblem::new)?;
        fits(argument, size, ByteLen::new(file_size_limit()), file.room()).map_err(HostProblem::new)?;
        // Not all of it: on a disk that is told what is free, giving it back would take long.
        let _held = NoSizeSignal::hold();
        file.reserve(0, size.min(STEP).get()).map_err(|source| {
            HostProblem::new(match source {
                Errno::OPNOTSUPP => format!(
                    "the file system of {argument} can't reserve room (fallocate); give a folder on another, such as ext4 or XFS"
                ),
                _ => format!("{argument} has no room: {source}"),
            })
        })
    }

    fn make(&self, id: DeviceId, owner: Owner, spec: &DeviceSpec) -> Result<Box<dyn Device>, MakeError> {
        is_private(spec.memory_type).map_err(|why| MakeError::Unsuitable(why.to_owned()))?;
        Ok(Box::new(FileStore::new(id, owner, spec)?))
    }
}

fn is_private(memory_type: MemoryType) -> Result<(), &'static str> {
    match memory_type {
        MemoryType::DevicePrivate => Ok(()),
        MemoryType::DeviceCoherent => Err("pages in a file can't be used in place; use private:file=FOLDER"),
    }
}

/// Whether a file in `folder` may be so large, and finds as much room.
fn fits(folder: &str, size: ByteLen, limit: ByteLen, room: Result<ByteLen, Errno>) -> Result<(), String> {
    if size > limit {
        return Err(format!("size {size} is more than a file may have here, {limit} (RLIMIT_FSIZE, `ulimit -f`)"));
    }
    match room {
        Ok(room) if size > room => Err(format!("size {size} is more than {folder} has room for ({room})")),
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_the_limit_or_the_disk_has_no_room_for_is_refused_with_both_figures() {
        let bytes = |gigabytes: u64| ByteLen::new(gigabytes << 30);
        let fits = |size, limit, room| fits("/var/tmp", bytes(size), limit, room);
        let none = ByteLen::new(u64::MAX);
        assert_eq!(fits(4, none, Ok(bytes(4))), Ok(()));
        assert_eq!(fits(4, none, Err(Errno::NOSYS)), Ok(()));
        let full = fits(4, none, Ok(bytes(3))).unwrap_err();
        assert!(full.contains("4 GiB") && full.contains("/var/tmp") && full.contains("(3 GiB)"), "{full}");
        let limited = fits(4, bytes(1), Ok(bytes(9))).unwrap_err();
        assert!(limited.contains("1 GiB (RLIMIT_FSIZE"), "{limited}");
    }
}

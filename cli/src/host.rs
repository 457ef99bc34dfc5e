//! What this host has: memory, and whether programs can be managed on it.

use std::path::{Path, PathBuf};

use hetmem_core::units::ByteLen;
use hetmem_sys::probe::Capabilities;
use hetmem_sys::uffd::OLDEST;

use crate::failure::{Failure, chain};

/// The library that goes into programs.
const LIBRARY: &str = "libhetmem.so";
/// What the loader takes for something other than a part of a path in `LD_PRELOAD`.
const LOADER_SEPARATORS: [char; 3] = [' ', ':', '$'];

/// The machine's memory (`MemTotal`).
pub(crate) fn memory() -> Result<ByteLen, Failure> {
    meminfo("MemTotal").ok_or_else(|| Failure::Host("/proc/meminfo can't be read; is /proc mounted?".to_owned()))
}

/// A figure of `/proc/meminfo`.
pub(crate) fn meminfo(key: &str) -> Option<ByteLen> {
    figure(&std::fs::read_to_string("/proc/meminfo").ok()?, key)
}

fn figure(meminfo: &str, key: &str) -> Option<ByteLen> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).map(ByteLen::new)
}

/// Why programs can't be managed here, with what would fix it; `None` if they can.
pub(crate) fn obstacle(found: &Capabilities) -> Option<String> {
    let (major, minor) = OLDEST;
    if !found.kernel.is_at_least(major, minor) {
        let text = &found.kernel.text;
        return Some(format!("the kernel is too old: hetmem needs Linux {major}.{minor} or newer, this is {text}"));
    }
    if let Err(error) = &found.full_access {
        return Some(chain(error));
    }
    if let Err(error) = &found.page_move {
        return Some(chain(error));
    }
    if let Err(error) = &found.populate_write {
        return Some(format!("memory can't be populated (MADV_POPULATE_WRITE): {error}"));
    }
    None
}

/// Where the library is: beside this executable, or in the `lib` beside its directory.
pub(crate) fn library() -> Result<PathBuf, Failure> {
    let executable = std::env::current_exe()
        .map_err(|error| Failure::Library(format!("hetmem can't tell where its own executable is: {error}")))?;
    let directory = executable.parent().unwrap_or(Path::new("/"));
    let above = directory.parent().unwrap_or(directory);
    let places = [directory.join(LIBRARY), above.join("lib").join(LIBRARY)];
    let Some(found) = places.iter().find(|place| place.is_file()) else {
        let [beside, lib] = places.map(|place| place.display().to_string());
        return Err(Failure::Library(format!(
            "{LIBRARY} is neither at {beside} nor at {lib}, where this puts it, in hetmem's sources: cargo build --release -p libhetmem && sh \
             libhetmem/install.sh {}",
            above.display()
        )));
    };
    let library =
        std::fs::canonicalize(found).map_err(|error| Failure::Library(format!("{}: {error}", found.display())))?;
    if library.to_str().is_none_or(|text| text.contains(LOADER_SEPARATORS)) {
        let path = library.display();
        return Err(Failure::Library(format!(
            "the loader can't preload {path}: its path has a space, a colon or a dollar sign; install hetmem elsewhere"
        )));
    }
    Ok(library)
}

#[cfg(test)]
mod tests {
    use hetmem_sys::errno::Errno;
    use hetmem_sys::probe::{KernelRelease, MoveTrialError};
    use hetmem_sys::uffd::{OpenError, Route};

    use super::*;

    /// A host on which everything works.
    fn capable() -> Capabilities {
        Capabilities {
            kernel: KernelRelease::parse(&format!("{}.{}.0", OLDEST.0, OLDEST.1)),
            full_access: Ok(Route::SystemCall),
            page_move: Ok(()),
            populate_write: Ok(()),
            ..Capabilities::probe()
        }
    }

    #[test]
    fn each_obstacle_is_named_with_what_would_fix_it() {
        assert_eq!(obstacle(&capable()), None);
        let old = Capabilities { kernel: KernelRelease::parse("6.7.12-generic"), ..capable() };
        let said = obstacle(&old).unwrap();
        assert!(
            said.contains(&format!("{}.{} or newer", OLDEST.0, OLDEST.1)) && said.contains("6.7.12-generic"),
            "{said}"
        );
        // As on arm64, where each may be what a kernel was built with.
        for bytes in [16 << 10, 64 << 10] {
            let large = Capabilities { full_access: Err(OpenError::PageSize(bytes)), page_size: bytes, ..capable() };
            assert_eq!(
                obstacle(&large).unwrap(),
                format!("the kernel has pages of {bytes} bytes, and hetmem needs 4096: boot a kernel with 4 KiB pages")
            );
        }
        let denied = Capabilities { full_access: Err(OpenError::NotPermitted), ..capable() };
        let said = obstacle(&denied).unwrap();
        assert!(said.contains("vm.unprivileged_userfaultfd") && said.contains("/dev/userfaultfd"), "{said}");
        let unmoved = Capabilities { page_move: Err(MoveTrialError::Refused(Errno::INVAL)), ..capable() };
        assert!(obstacle(&unmoved).unwrap().contains("UFFDIO_MOVE"));
        let unpopulated = Capabilities { populate_write: Err(Errno::INVAL), ..capable() };
        assert!(obstacle(&unpopulated).unwrap().contains("MADV_POPULATE_WRITE"));
    }

    #[test]
    fn figures_are_read_by_their_whole_name() {
        let text = "MemTotal:       16000 kB\nMemFree: 5 kB\nHugePages_Total:       0\n";
        assert_eq!(figure(text, "MemTotal"), Some(ByteLen::new(16000 * 1024)));
        assert_eq!(figure(text, "Mem"), None);
        assert_eq!(figure(text, "HugePages_Total"), None);
    }
}

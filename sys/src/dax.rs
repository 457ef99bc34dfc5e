//! Device-DAX: memory that the kernel hands out as a character device (`/dev/daxX.Y`), such as soft-reserved, CXL or persistent memory.
//!
//! Such a device is mapped `MAP_SHARED` only, in multiples of its alignment, and what is mapped is the memory itself: nothing is cached
//! or allocated. It can't be registered with userfaultfd, and pages can't be moved to it or from it.
//!
//! Nothing in the kernel keeps two processes from mapping the same bytes. Here a process has a *slice* of the device, of which it
//! holds an exclusive lock of its open file (`F_OFD_SETLK`, by byte range): the kernel drops it when the process ends, however it ends.
//!
//! *Limits:* the lock binds those who ask for it, by the same device node. A forked child that keeps the descriptor keeps the lock; it
//! does not have the mapping.
#![expect(unsafe_code, reason = "a device is mapped, and locks are laid by a system call without a wrapper")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use hetmem_core::units::{ByteLen, PageRange, VirtAddr};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::copy::address;
use crate::errno::Errno;
use crate::raw;

/// Why a DAX device can't be used.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DaxError {
    /// It can't be opened.
    #[error("{path} can't be opened: {source}{hint}")]
    Open {
        /// The device.
        path: String,
        /// What the kernel said.
        source: Errno,
        /// What may help.
        hint: String,
    },
    /// It is something else.
    #[error("{0} is no device-DAX device (a character device of the dax bus)")]
    NotDax(String),
    /// Its size or alignment can't be read.
    #[error("the {what} of {path} can't be read in sysfs; is /sys mounted?")]
    Unknown {
        /// The device.
        path: String,
        /// What is missing.
        what: &'static str,
    },
    /// Others hold locks on all of it.
    #[error(
        "{path} is in use: all of its {slices} parts of {len} are held by other processes; ask for less (size=) or wait"
    )]
    InUse {
        /// The device.
        path: String,
        /// How many parts of that size it has.
        slices: u64,
        /// The size that was asked for.
        len: ByteLen,
    },
    /// It can't be locked or mapped.
    #[error("{path} can't be {what}: {source}")]
    Refused {
        /// The device.
        path: String,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: Errno,
    },
}

/// A device, as sysfs describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DaxDevice {
    /// Its path.
    pub path: String,
    /// Its size.
    pub size: ByteLen,
    /// What its mappings are a multiple of.
    pub align: ByteLen,
}

impl DaxDevice {
    /// Looks at the device at `path`.
    ///
    /// # Errors
    ///
    /// If it is none, or not described.
    pub fn find(path: &str) -> Result<Self, DaxError> {
        let stat = rustix::fs::stat(path).map_err(|source| open_error(path, source))?;
        let not_dax = || DaxError::NotDax(path.to_owned());
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
            return Err(not_dax());
        }
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let sysfs = PathBuf::from(format!("/sys/dev/char/{major}:{minor}"));
        let bus = std::fs::read_link(sysfs.join("subsystem")).ok();
        if bus.as_deref().and_then(Path::file_name).is_none_or(|bus| bus != "dax") {
            return Err(not_dax());
        }
        let figure = |what: &'static str| {
            let text = std::fs::read_to_string(sysfs.join(what)).ok();
            let bytes = text.and_then(|text| text.trim().parse::<u64>().ok()).filter(|bytes| *bytes != 0);
            bytes.map(ByteLen::new).ok_or_else(|| DaxError::Unknown { path: path.to_owned(), what })
        };
        Ok(Self { path: path.to_owned(), size: figure("size")?, align: figure("align")? })
    }
}

fn open_error(path: &str, source: Errno) -> DaxError {
    let hint = match source {
        // There is a file, or none; in both cases the device may be with another driver, or with none.
        Errno::NOENT | Errno::NXIO => driven_by_others(path).unwrap_or_default(),
        Errno::ACCESS | Errno::PERM => "; give this user access to it, or run as root".to_owned(),
        _ => String::new(),
    };
    DaxError::Open { path: path.to_owned(), source, hint }
}

/// A device of the dax bus that another driver has than the one that lets it be opened, or none.
fn driven_by_others(path: &str) -> Option<String> {
    let name = Path::new(path).file_name()?;
    let sysfs = Path::new("/sys/bus/dax/devices").join(name);
    let driver = std::fs::read_link(sysfs.join("driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let name = name.to_str()?;
    match driver {
        Some("kmem") => {
            let node = std::fs::read_to_string(sysfs.join("target_node")).unwrap_or_default();
            Some(format!("; the kernel uses it as memory of a node: use coherent:node={}", node.trim()))
        }
        _ if sysfs.exists() => Some(format!(
            "; the driver device_dax does not have it: load that and give it the device \
             (daxctl reconfigure-device --mode=devdax {name})"
        )),
        _ => None,
    }
}

/// A part of a device that nobody else has, mapped; given back on drop.
#[derive(Debug)]
pub struct DaxSlice {
    // Invariants: `range` is mapped shared, readable and writable, by this value and for nobody else; `file` holds the lock on
    // the bytes behind it.
    range: PageRange,
    _file: OwnedFd,
}

impl DaxSlice {
    /// Takes the first free part of `device` that is `len` long and begins at a multiple of `len`.
    ///
    /// # Errors
    ///
    /// If none is free, or the device can't be opened or mapped.
    pub fn claim(device: &DaxDevice, len: ByteLen) -> Result<Self, DaxError> {
        let path = &device.path;
        let refused = |what| move |source| DaxError::Refused { path: path.clone(), what, source };
        let file = rustix::fs::open(path.as_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| open_error(path, source))?;
        let pages = len.whole_pages().filter(|pages| !pages.is_zero());
        let pages = pages.ok_or(Errno::INVAL).map_err(refused("divided into parts of that size"))?;
        let slices = device.size.get() / len.get();
        let mut offset = None;
        for slice in 0..slices {
            if lock(&file, slice * len.get(), len.get()).map_err(refused("locked"))? {
                offset = Some(slice * len.get());
                break;
            }
        }
        let offset = offset.ok_or_else(|| DaxError::InUse { path: path.clone(), slices, len })?;
        // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
        let mapped = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                pages.as_usize() * 4096,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                offset,
            )
        };
        let mapped = mapped.map_err(refused("mapped"))?;
        let range = PageRange::new(VirtAddr::new(mapped.expose_provenance() as u64), pages)
            .expect("the kernel maps whole pages inside the address space");
        // INVARIANT: fresh, shared, and locked above.
        let slice = Self { range, _file: file };
        // SAFETY: nobody has the address of this memory yet, so its inheritance is this function's to decide.
        unsafe { rustix::mm::madvise(mapped, pages.as_usize() * 4096, Advice::LinuxDontFork) }
            .map_err(refused("kept from forked children"))?;
        Ok(slice)
    }

    /// Where it is mapped.
    #[must_use]
    pub const fn range(&self) -> PageRange {
        self.range
    }
}

impl Drop for DaxSlice {
    fn drop(&mut self) {
        let start = std::ptr::with_exposed_provenance_mut(address(self.range.start()));
        // SAFETY: by the invariant the range is this value's. Whoever was told addresses in it was told that they are valid while
        // the value lives.
        let unmapped = unsafe { rustix::mm::munmap(start, self.range.pages().as_usize() * 4096) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

/// Asks for the exclusive lock on `len` bytes from `start` on; `false` if somebody else has one on a part of them.
fn lock(file: &OwnedFd, start: u64, len: u64) -> Result<bool, Errno> {
    let offset = |value: u64| i64::try_from(value).map_err(|_| Errno::OVERFLOW);
    let short = |value: i32| libc::c_short::try_from(value).map_err(|_| Errno::INVAL);
    // SAFETY: a struct of integers, for which zeros are valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = short(libc::F_WRLCK)?;
    lock.l_whence = short(libc::SEEK_SET)?;
    lock.l_start = offset(start)?;
    lock.l_len = offset(len)?;
    let descriptor = usize::try_from(file.as_raw_fd()).map_err(|_| Errno::BADF)?;
    let command = libc::F_OFD_SETLK.unsigned_abs() as usize;
    let args = [descriptor, command, std::ptr::from_ref(&lock).expose_provenance(), 0, 0];
    // SAFETY: the kernel reads the struct, which lives through the call; a lock changes no memory.
    match unsafe { raw::syscall5(libc::SYS_fcntl, args) } {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(errno) => Err(errno),
    }
}

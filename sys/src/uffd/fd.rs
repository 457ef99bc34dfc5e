//! The descriptor: opening a context, registering ranges with it.
//!
//! A descriptor is always non-blocking (on a blocking one `poll(2)` reports an error and nothing else) and always
//! closed on exec.
//!
//! # Registration
//!
//! Registering a range again with the same context *replaces* its mode in place, but for one case: where the new mode
//! is a part of the present one the kernel leaves the present one (so `MISSING|WP` never shrinks to `MISSING`;
//! unregister first). A range that belongs to another context gives `EBUSY`.
#![expect(unsafe_code, reason = "system calls that rustix can't vouch for")]

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use hetmem_core::units::{PAGE_SIZE, PageRange};
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::mm::UserfaultfdFlags;

use super::abi;
use super::features::Features;
use crate::errno::Errno;
use crate::flags::flags;

flags! {
    /// What is trapped in a registered range (`UFFDIO_REGISTER_MODE_*`).
    Mode {
        /// Touches of pages that aren't there.
        MISSING = abi::UFFDIO_REGISTER_MODE_MISSING,
        /// Writes to pages that were write-protected with [`Userfaultfd::write_protect`].
        WP = abi::UFFDIO_REGISTER_MODE_WP,
    }
}

/// Whose touches a context may trap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The program's own and those that the kernel makes for it, such as `read(2)` into a missing page. Needs a
    /// privilege.
    Full,
    /// The program's own only; a system call on a missing page fails. Needs no privilege.
    UserModeOnly,
}

/// How a context was obtained.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// By `userfaultfd(2)`.
    SystemCall,
    /// By `/dev/userfaultfd`, whose file permissions say who may.
    DeviceNode,
}

/// The oldest kernel whose userfaultfd has all that hetmem uses: `UFFDIO_MOVE`, and write protection, which arm64 has had since then.
pub const OLDEST: (u32, u32) = if cfg!(target_arch = "aarch64") { (6, 10) } else { (6, 8) };

/// Why a context could not be opened.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// Neither the system call nor the device node allows it.
    #[error(
        "userfaultfd is not permitted: set `sysctl vm.unprivileged_userfaultfd=1`, or grant read and write access to \
         /dev/userfaultfd, or run with CAP_SYS_PTRACE"
    )]
    NotPermitted,
    /// The kernel was built without userfaultfd, or a sandbox hides it.
    #[error("the kernel has no userfaultfd (CONFIG_USERFAULTFD), or a sandbox forbids it")]
    NotSupported,
    /// The kernel is too old for these features.
    #[error("the kernel's userfaultfd lacks {0} (Linux {major}.{minor} or newer has all that hetmem uses)", major = OLDEST.0, minor = OLDEST.1)]
    MissingFeatures(Features),
    /// Fork events were asked for without the privilege for them.
    #[error("userfaultfd fork events (EVENT_FORK) need CAP_SYS_PTRACE")]
    ForkEventNotPermitted,
    /// The machine's base page is of another size than hetmem's.
    #[error("the kernel has pages of {0} bytes, and hetmem needs 4096: boot a kernel with 4 KiB pages")]
    PageSize(usize),
    /// The kernel gave another reason.
    #[error("userfaultfd could not be opened")]
    Os(#[source] Errno),
}

/// Whether descriptor `number` of the calling thread is a userfaultfd, as far as can be told: without `/proc` any open one may be.
#[must_use]
pub fn is_userfaultfd(number: i32) -> bool {
    use std::io::Write as _;
    let mut path = [0; 40];
    if write!(&mut path[..], "/proc/thread-self/fd/{number}\0").is_err() {
        return true;
    }
    let Ok(path) = std::ffi::CStr::from_bytes_until_nul(&path) else { return true };
    let mut name = [0_u8; 64];
    match rustix::fs::readlinkat_raw(rustix::fs::CWD, path, &mut name[..]) {
        Ok(length) => name[..length] == *b"anon_inode:[userfaultfd]",
        // There is no such descriptor, or no list of them.
        Err(_) => rustix::fs::access(c"/proc/thread-self/fd", rustix::fs::Access::EXISTS).is_err(),
    }
}

/// What missing pages of a registered range can be filled with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fill {
    /// With zeros, or copies.
    Zeros,
    /// With copies only: a part of the range at least is hugetlb, which has no page of zeros.
    Copies,
}

/// Whether the kernel has pages of the size that hetmem's are. With others, most of what hetmem asks for is an invalid argument.
pub fn check_page_size() -> Result<(), OpenError> {
    match rustix::param::page_size() {
        page if page as u64 == PAGE_SIZE => Ok(()),
        other => Err(OpenError::PageSize(other)),
    }
}

/// A userfaultfd context.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
}

impl Userfaultfd {
    /// Opens a context with exactly the features `want`: by the system call, or where that is forbidden by
    /// `/dev/userfaultfd`.
    pub fn open(want: Features, access: Access) -> Result<Self, OpenError> {
        Self::open_with_route(want, access).map(|(uffd, _)| uffd)
    }

    /// Like [`Userfaultfd::open`], and says which way led to it.
    pub fn open_with_route(want: Features, access: Access) -> Result<(Self, Route), OpenError> {
        check_page_size()?;
        let (fd, route) = create(access)?;
        match handshake(fd.as_fd(), want) {
            Ok(_) => Ok((Self { fd }, route)),
            Err(Errno::PERM) if want.contains(Features::EVENT_FORK) => Err(OpenError::ForkEventNotPermitted),
            Err(Errno::INVAL) => {
                let missing = want.difference(Self::available(access)?);
                Err(if missing.is_empty() { OpenError::Os(Errno::INVAL) } else { OpenError::MissingFeatures(missing) })
            }
            Err(errno) => Err(OpenError::Os(errno)),
        }
    }

    /// The features that this kernel has.
    pub fn available(access: Access) -> Result<Features, OpenError> {
        let (fd, _) = create(access)?;
        handshake(fd.as_fd(), Features::NONE).map_err(OpenError::Os)
    }

    /// The context of a child process, out of [`Event::Fork`](super::Event::Fork). It has the features, the registered
    /// ranges and the modes of the context that reported the fork. Pages can be copied into it, not moved: the kernel
    /// moves within the calling process only.
    #[must_use]
    pub fn from_fork(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Traps touches of the kind `mode` in `range`, in place of any other kind that this context trapped there. (Those
    /// who wait for the old kind go on waiting: [`Userfaultfd::wake`] them.) All of the range must be mapped, else
    /// `ENOMEM` or `EINVAL`; mappings of regular files give `EINVAL`, those of another context `EBUSY`.
    pub fn register(&self, range: PageRange, mode: Mode) -> Result<(), Errno> {
        self.register_and_ask(range, mode).map(|_| ())
    }

    /// [`Userfaultfd::register`] for missing pages, which says with what they can be filled.
    pub fn register_missing(&self, range: PageRange) -> Result<Fill, Errno> {
        let offered = self.register_and_ask(range, Mode::MISSING)?;
        Ok(if offered & abi::OFFERS_ZEROPAGE == 0 { Fill::Copies } else { Fill::Zeros })
    }

    /// The requests that the kernel offers for all of the range.
    fn register_and_ask(&self, range: PageRange, mode: Mode) -> Result<u64, Errno> {
        let mut arg = abi::UffdioRegister { range: range.into(), mode: mode.bits(), ioctls: 0 };
        // SAFETY: number and type belong together; registering only makes touches of the range wait.
        unsafe { abi::call::<{ abi::UFFDIO_REGISTER }, _>(self.as_fd(), &mut arg)? };
        Ok(arg.ioctls)
    }

    /// Stops trapping touches in `range`, wakes those that wait there, and drops its write protection. From here on the
    /// kernel fills missing pages of the range with zeros, so whoever took pages out puts them back first.
    pub fn unregister(&self, range: PageRange) -> Result<(), Errno> {
        let mut arg = abi::UffdioRange::from(range);
        // SAFETY: number and type belong together; the contents of pages that are there don't change, and pages that
        // aren't are the business of the contract of `move_pages`.
        unsafe { abi::call::<{ abi::UFFDIO_UNREGISTER }, _>(self.as_fd(), &mut arg)? };
        // The kernel itself wakes those only who wait for missing pages; a writer stopped by write protection would
        // sleep for ever. All who wait are on the context's queue by now, as the call above excluded faults while it
        // ran.
        self.wake(range)
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes a context that has not agreed on its features yet.
fn create(access: Access) -> Result<(OwnedFd, Route), OpenError> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    let flags = match access {
        Access::Full => flags,
        Access::UserModeOnly => flags | UserfaultfdFlags::from_bits_retain(abi::UFFD_USER_MODE_ONLY),
    };
    // SAFETY: a fresh context watches no memory.
    match unsafe { rustix::mm::userfaultfd(flags) } {
        Ok(fd) => Ok((fd, Route::SystemCall)),
        Err(Errno::PERM) => match create_by_device_node(flags) {
            Ok(fd) => Ok((fd, Route::DeviceNode)),
            Err(Errno::PERM | Errno::ACCESS | Errno::NOENT | Errno::NXIO | Errno::NODEV) => {
                Err(OpenError::NotPermitted)
            }
            Err(errno) => Err(OpenError::Os(errno)),
        },
        Err(Errno::NOSYS) => Err(OpenError::NotSupported),
        Err(errno) => Err(OpenError::Os(errno)),
    }
}

fn create_by_device_node(flags: UserfaultfdFlags) -> Result<OwnedFd, Errno> {
    let node = rustix::fs::open(c"/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, FileMode::empty())?;
    // SAFETY: the request makes a fresh context, which watches no memory.
    unsafe { rustix::ioctl::ioctl(&node, NewContext(flags)) }
}

/// `USERFAULTFD_IOC_NEW`: its argument is the flags themselves, its result a descriptor.
struct NewContext(UserfaultfdFlags);

// SAFETY: the number is the one of this request, which takes an integer, writes no memory, and returns a descriptor.
unsafe impl rustix::ioctl::Ioctl for NewContext {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> rustix::ioctl::Opcode {
        abi::USERFAULTFD_IOC_NEW
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::without_provenance_mut(self.0.bits() as usize)
    }

    unsafe fn output_from_ptr(
        out: rustix::ioctl::IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> Result<Self::Output, Errno> {
        // SAFETY: on success the kernel returns a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

/// `UFFDIO_API`: turns on `want` and returns all that the kernel has.
fn handshake(fd: BorrowedFd<'_>, want: Features) -> Result<Features, Errno> {
    let mut arg = abi::UffdioApi { api: abi::UFFD_API, features: want.bits(), ioctls: 0 };
    // SAFETY: number and type belong together; nothing but the context changes.
    unsafe { abi::call::<{ abi::UFFDIO_API }, _>(fd, &mut arg)? };
    Ok(Features::from_bits(arg.features))
}

//! The kernel's binary interface of userfaultfd, as of Linux 6.8 (`include/uapi/linux/userfaultfd.h`).
//!
//! Layouts and numbers are written out here and asserted at compile time, because the C headers of a build machine
//! are often older than the kernel that hetmem runs on.
#![expect(unsafe_code, reason = "an ioctl is a contract on numbers and layouts that only this file can keep")]

use std::os::fd::BorrowedFd;

use hetmem_core::units::PageRange;

use crate::errno::Errno;

/// The version of the interface; there has been one.
pub(super) const UFFD_API: u64 = 0xAA;
/// `userfaultfd(2)`: trap no touch made by the kernel on the program's behalf. Needs no privilege.
pub(super) const UFFD_USER_MODE_ONLY: u32 = 1;

const TYPE: u32 = 0xAA;
const NONE: u32 = 0;
const READ: u32 = 2;
const WRITE: u32 = 1;

/// `_IOC`: an ioctl number from its direction, type, number and the size of what it points to.
const fn ioc<T>(direction: u32, kind: u32, number: u32) -> u32 {
    let size = size_of::<T>();
    assert!(size < 1 << 14, "the size field of an ioctl number has 14 bits");
    #[expect(clippy::cast_possible_truncation, reason = "asserted one line above")]
    let size = size as u32;
    direction << 30 | size << 16 | kind << 8 | number
}

pub(super) const USERFAULTFD_IOC_NEW: u32 = ioc::<()>(NONE, TYPE, 0x00);
pub(super) const UFFDIO_API: u32 = ioc::<UffdioApi>(READ | WRITE, TYPE, 0x3F);
pub(super) const UFFDIO_REGISTER: u32 = ioc::<UffdioRegister>(READ | WRITE, TYPE, 0x00);
pub(super) const UFFDIO_UNREGISTER: u32 = ioc::<UffdioRange>(READ, TYPE, 0x01);
pub(super) const UFFDIO_WAKE: u32 = ioc::<UffdioRange>(READ, TYPE, 0x02);
pub(super) const UFFDIO_COPY: u32 = ioc::<UffdioCopy>(READ | WRITE, TYPE, 0x03);
pub(super) const UFFDIO_ZEROPAGE: u32 = ioc::<UffdioZeropage>(READ | WRITE, TYPE, 0x04);
pub(super) const UFFDIO_MOVE: u32 = ioc::<UffdioMove>(READ | WRITE, TYPE, 0x05);
pub(super) const UFFDIO_WRITEPROTECT: u32 = ioc::<UffdioWriteprotect>(READ | WRITE, TYPE, 0x06);
pub(super) const UFFDIO_CONTINUE: u32 = ioc::<UffdioContinue>(READ | WRITE, TYPE, 0x07);
pub(super) const UFFDIO_POISON: u32 = ioc::<UffdioPoison>(READ | WRITE, TYPE, 0x08);

const _: () = {
    assert!(USERFAULTFD_IOC_NEW == 0x0000_AA00);
    assert!(UFFDIO_API == 0xC018_AA3F);
    assert!(UFFDIO_REGISTER == 0xC020_AA00);
    assert!(UFFDIO_UNREGISTER == 0x8010_AA01);
    assert!(UFFDIO_WAKE == 0x8010_AA02);
    assert!(UFFDIO_COPY == 0xC028_AA03);
    assert!(UFFDIO_ZEROPAGE == 0xC020_AA04);
    assert!(UFFDIO_MOVE == 0xC028_AA05);
    assert!(UFFDIO_WRITEPROTECT == 0xC018_AA06);
    assert!(UFFDIO_CONTINUE == 0xC020_AA07);
    assert!(UFFDIO_POISON == 0xC020_AA08);
};

pub(super) const UFFDIO_REGISTER_MODE_MISSING: u64 = 1 << 0;
pub(super) const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
pub(super) const UFFDIO_COPY_MODE_DONTWAKE: u64 = 1 << 0;
pub(super) const UFFDIO_COPY_MODE_WP: u64 = 1 << 1;
/// The bit of `UFFDIO_ZEROPAGE` in what a registration offers.
pub(super) const OFFERS_ZEROPAGE: u64 = 1 << 4;
pub(super) const UFFDIO_ZEROPAGE_MODE_DONTWAKE: u64 = 1 << 0;
pub(super) const UFFDIO_MOVE_MODE_DONTWAKE: u64 = 1 << 0;
pub(super) const UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES: u64 = 1 << 1;
pub(super) const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub(super) const UFFDIO_WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;

pub(super) const UFFD_EVENT_PAGEFAULT: u8 = 0x12;
pub(super) const UFFD_EVENT_FORK: u8 = 0x13;
pub(super) const UFFD_EVENT_REMAP: u8 = 0x14;
pub(super) const UFFD_EVENT_REMOVE: u8 = 0x15;
pub(super) const UFFD_EVENT_UNMAP: u8 = 0x16;

pub(super) const UFFD_PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;
pub(super) const UFFD_PAGEFAULT_FLAG_WP: u64 = 1 << 1;
pub(super) const UFFD_PAGEFAULT_FLAG_MINOR: u64 = 1 << 2;

/// `struct uffd_msg`, with the union as its three words: `pagefault {flags, address, ptid: u32}`, `fork {ufd: u32}`,
/// `remap {from, to, len}`, `remove {start, end}`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UffdMsg {
    pub(super) event: u8,
    reserved1: u8,
    reserved2: u16,
    reserved3: u32,
    pub(super) arg: [u64; 3],
}

/// The size of a message, which is what `read(2)` returns multiples of.
pub(super) const MSG_SIZE: usize = size_of::<UffdMsg>();

impl UffdMsg {
    /// The message in `bytes`.
    pub(super) fn from_bytes(bytes: &[u8; MSG_SIZE]) -> Self {
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
        let arg = std::mem::offset_of!(Self, arg);
        Self {
            event: bytes[0],
            reserved1: 0,
            reserved2: 0,
            reserved3: 0,
            arg: [word(arg), word(arg + 8), word(arg + 16)],
        }
    }

    /// The 32-bit field at the start of argument `index` (little-endian machines only, as `lib.rs` asserts).
    #[expect(clippy::cast_possible_truncation, reason = "the field is the low half of the word")]
    pub(super) const fn low(&self, index: usize) -> u32 {
        self.arg[index] as u32
    }
}

#[repr(C)]
pub(super) struct UffdioApi {
    pub(super) api: u64,
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UffdioRange {
    pub(super) start: u64,
    pub(super) len: u64,
}

impl From<PageRange> for UffdioRange {
    fn from(range: PageRange) -> Self {
        Self { start: range.start().get(), len: range.pages().bytes().get() }
    }
}

#[repr(C)]
pub(super) struct UffdioRegister {
    pub(super) range: UffdioRange,
    pub(super) mode: u64,
    pub(super) ioctls: u64,
}

#[repr(C)]
pub(super) struct UffdioCopy {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    pub(super) copy: i64,
}

#[repr(C)]
pub(super) struct UffdioZeropage {
    pub(super) range: UffdioRange,
    pub(super) mode: u64,
    pub(super) zeropage: i64,
}

#[repr(C)]
pub(super) struct UffdioMove {
    pub(super) dst: u64,
    pub(super) src: u64,
    pub(super) len: u64,
    pub(super) mode: u64,
    pub(super) moved: i64,
}

#[repr(C)]
pub(super) struct UffdioWriteprotect {
    pub(super) range: UffdioRange,
    pub(super) mode: u64,
}

#[repr(C)]
pub(super) struct UffdioContinue {
    pub(super) range: UffdioRange,
    pub(super) mode: u64,
    pub(super) mapped: i64,
}

#[repr(C)]
pub(super) struct UffdioPoison {
    pub(super) range: UffdioRange,
    pub(super) mode: u64,
    pub(super) updated: i64,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<UffdMsg>() == 32 && offset_of!(UffdMsg, event) == 0 && offset_of!(UffdMsg, arg) == 8);
    assert!(size_of::<UffdioApi>() == 24);
    assert!(offset_of!(UffdioApi, features) == 8 && offset_of!(UffdioApi, ioctls) == 16);
    assert!(size_of::<UffdioRange>() == 16 && offset_of!(UffdioRange, len) == 8);
    assert!(size_of::<UffdioRegister>() == 32);
    assert!(offset_of!(UffdioRegister, mode) == 16 && offset_of!(UffdioRegister, ioctls) == 24);
    assert!(size_of::<UffdioCopy>() == 40);
    assert!(offset_of!(UffdioCopy, dst) == 0 && offset_of!(UffdioCopy, src) == 8 && offset_of!(UffdioCopy, len) == 16);
    assert!(offset_of!(UffdioCopy, mode) == 24 && offset_of!(UffdioCopy, copy) == 32);
    assert!(size_of::<UffdioZeropage>() == 32);
    assert!(offset_of!(UffdioZeropage, mode) == 16 && offset_of!(UffdioZeropage, zeropage) == 24);
    assert!(size_of::<UffdioMove>() == 40);
    assert!(offset_of!(UffdioMove, dst) == 0 && offset_of!(UffdioMove, src) == 8 && offset_of!(UffdioMove, len) == 16);
    assert!(offset_of!(UffdioMove, mode) == 24 && offset_of!(UffdioMove, moved) == 32);
    assert!(size_of::<UffdioWriteprotect>() == 24 && offset_of!(UffdioWriteprotect, mode) == 16);
    assert!(size_of::<UffdioContinue>() == 32);
    assert!(offset_of!(UffdioContinue, mode) == 16 && offset_of!(UffdioContinue, mapped) == 24);
    assert!(size_of::<UffdioPoison>() == 32);
    assert!(offset_of!(UffdioPoison, mode) == 16 && offset_of!(UffdioPoison, updated) == 24);
};

/// Makes the ioctl `OPCODE` on the userfaultfd `fd`.
///
/// # Safety
///
/// `OPCODE` must be the number whose argument is `T`, and what the call does to the address space must be something
/// that the caller may do.
pub(super) unsafe fn call<const OPCODE: u32, T>(fd: BorrowedFd<'_>, arg: &mut T) -> Result<(), Errno> {
    // SAFETY: the caller pairs number and type; the layouts are asserted above.
    let request = unsafe { rustix::ioctl::Updater::<OPCODE, T>::new(arg) };
    // SAFETY: the kernel reads and writes `*arg` only, and the caller answers for the effect on the address space.
    unsafe { rustix::ioctl::ioctl(fd, request) }
}

//! The test device's interface, as Linux 6.12 has it: numbers, the one struct, the bytes of a snapshot.

use std::ffi::c_ulong;

use hetmem_core::units::{ByteLen, PAGE_SHIFT, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;

/// `/dev/hmm_dmirror` without the number.
pub(crate) const PATH: &[u8] = b"/dev/hmm_dmirror";

/// `_IOC_TYPE` of the device's commands.
const TYPE: u32 = b'H' as u32;
/// `_IOWR('H', 0, struct hmm_dmirror_cmd)`.
const FIRST: u32 = 0xC028_4800;
/// Bytes of the struct.
pub(crate) const SIZE: usize = 40;

const _: () = assert!(FIRST >> 30 == 3 && (FIRST >> 16 & 0x3FFF) as usize == SIZE && FIRST >> 8 & 0xFF == TYPE);

/// Whether a request has the device's type, so that its descriptor is worth a look.
pub(crate) fn is_of_type(request: c_ulong) -> bool {
    request >> 8 & 0xFF == c_ulong::from(TYPE)
}

/// What an ioctl asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    Read,
    Write,
    MigrateToDevice,
    MigrateToSystem,
    Snapshot,
    Exclusive,
    CheckExclusive,
    Release,
}

impl Operation {
    /// Of this request, of which the kernel looks at 32 bits.
    pub(crate) fn of(request: c_ulong) -> Option<Self> {
        let all = [
            Self::Read,
            Self::Write,
            Self::MigrateToDevice,
            Self::MigrateToSystem,
            Self::Snapshot,
            Self::Exclusive,
            Self::CheckExclusive,
            Self::Release,
        ];
        let number = (request & 0xFFFF_FFFF).checked_sub(c_ulong::from(FIRST))?;
        all.get(usize::try_from(number).ok()?).copied()
    }
}

/// `struct hmm_dmirror_cmd`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Command {
    /// Where the range begins.
    addr: u64,
    /// The program's buffer.
    pub(crate) ptr: VirtAddr,
    npages: u64,
    /// Out: pages that were dealt with.
    pub(crate) cpages: u64,
    /// Out: rounds of device faults.
    pub(crate) faults: u64,
}

impl Command {
    pub(crate) fn from_bytes(bytes: [u8; SIZE]) -> Self {
        let word = |i: usize| u64::from_ne_bytes(std::array::from_fn(|j| bytes[i * 8 + j]));
        Self { addr: word(0), ptr: VirtAddr::new(word(1)), npages: word(2), cpages: word(3), faults: word(4) }
    }

    pub(crate) fn to_bytes(self) -> [u8; SIZE] {
        let words = [self.addr, self.ptr.get(), self.npages, self.cpages, self.faults].map(u64::to_ne_bytes);
        std::array::from_fn(|i| words[i / 8][i % 8])
    }

    /// The range, by the checks that every command begins with: `EINVAL` for an address inside a page, no pages, and a range past the end
    /// of the address space. Bits that the multiplication pushes out are lost, as in the kernel.
    pub(crate) fn range(&self) -> Result<PageRange, Errno> {
        let bytes = self.npages.wrapping_shl(PAGE_SHIFT);
        let pages = ByteLen::new(bytes).whole_pages().filter(|pages| !pages.is_zero()).ok_or(Errno::INVAL)?;
        PageRange::new(VirtAddr::new(self.addr), pages).ok_or(Errno::INVAL)
    }
}

/// A page of a snapshot: nothing can be there.
pub(crate) const PROT_ERROR: u8 = 0xFF;
/// Nothing is mapped there.
pub(crate) const PROT_NONE: u8 = 0x00;
/// The entry can be read only.
pub(crate) const PROT_READ: u8 = 0x01;
/// The entry can be written.
pub(crate) const PROT_WRITE: u8 = 0x02;
/// It is of the order of a PMD.
pub(crate) const PROT_PMD: u8 = 0x04;
/// It is of the order of a PUD.
pub(crate) const PROT_PUD: u8 = 0x08;
/// The zero page of 4 KiB.
pub(crate) const PROT_ZERO: u8 = 0x10;
/// A private page of this device.
pub(crate) const PROT_DEV_PRIVATE_LOCAL: u8 = 0x20;
/// A coherent page of this device.
pub(crate) const PROT_DEV_COHERENT_LOCAL: u8 = 0x40;
/// A coherent page of another device.
pub(crate) const PROT_DEV_COHERENT_REMOTE: u8 = 0x50;
/// The order of a PMD and of a PUD.
pub(crate) const ORDERS: [u8; 2] = [9, 18];

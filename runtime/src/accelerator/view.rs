//! How a kernel accesses memory: through the table, a use at a time.
//!
//! While a page is in use nothing of the caller's is touched, as that might be memory which is away, whose return waits for the use.
#![expect(unsafe_code, reason = "kernels access memory by address")]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hetmem_core::device_table::{Await, Leaf, Route};
use hetmem_core::port::Access;
use hetmem_core::units::{BlockNo, PAGE_SIZE, PageCount, PageRange, VirtAddr};
use hetmem_sys::access;
use hetmem_sys::errno::Errno;

use super::{AROUND, Accelerator, AccessError, InPlace, TRIES};

/// Leaves of the table that a view keeps at hand.
const AT_HAND: usize = 16;
/// Bytes that are copied during one use.
const CHUNK: usize = 512;

/// A kernel's view of the program's memory. Words are accessed whole, in no order but that of one thread; with
/// [`InPlace::Checked`] the kernel's copies take the place of loads and stores in place.
#[must_use]
pub struct View<'a> {
    accelerator: &'a Accelerator,
    leaves: [Option<(BlockNo, Arc<Leaf>)>; AT_HAND],
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("View").field(self.accelerator).finish()
    }
}

/// What becomes of an access to a page that the table does not have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// A device fault, and then again.
    Fault,
    /// [`AccessError::NotMapped`].
    Refuse,
}

/// What is done during one use.
enum Operation<'b> {
    Load,
    Store(u64),
    Add(u64),
    Read(&'b mut [u8]),
    Write(&'b [u8]),
}

impl Operation<'_> {
    const fn access(&self) -> Access {
        match self {
            Self::Load | Self::Read(_) => Access::Read,
            Self::Store(_) | Self::Add(_) | Self::Write(_) => Access::Write,
        }
    }

    /// Does it at `at`.
    ///
    /// # Safety
    ///
    /// The bytes may be accessed so.
    unsafe fn directly(&mut self, at: VirtAddr) -> u64 {
        match self {
            // SAFETY: as the caller promised. Relaxed: a kernel's accesses have no order but that of its thread.
            Self::Load => return unsafe { access::word(at) }.load(Ordering::Relaxed),
            // SAFETY: as the caller promised.
            Self::Add(value) => return unsafe { access::word(at) }.fetch_add(*value, Ordering::Relaxed),
            // SAFETY: as the caller promised.
            Self::Store(value) => unsafe { access::word(at) }.store(*value, Ordering::Relaxed),
            // SAFETY: as the caller promised.
            Self::Read(out) => unsafe { access::read(at, out) },
            // SAFETY: as the caller promised.
            Self::Write(from) => unsafe { access::write(at, from) },
        }
        0
    }

    /// Does it at `at`, if that can be.
    ///
    /// # Safety
    ///
    /// The bytes may be accessed so if they can be.
    unsafe fn checked(&mut self, at: VirtAddr) -> Result<u64, Errno> {
        let mut word = [0; 8];
        match self {
            Self::Load => access::read_checked(at, &mut word)?,
            // SAFETY: as the caller promised.
            Self::Store(value) => unsafe { access::write_checked(at, &value.to_ne_bytes()) }?,
            Self::Read(out) => access::read_checked(at, out)?,
            // SAFETY: as the caller promised.
            Self::Write(from) => unsafe { access::write_checked(at, from) }?,
            // No system call adds: the page is held exclusively first.
            Self::Add(_) => return Err(Errno::INVAL),
        }
        Ok(u64::from_ne_bytes(word))
    }
}

impl<'a> View<'a> {
    pub(super) fn new(accelerator: &'a Accelerator) -> Self {
        Self { accelerator, leaves: [const { None }; AT_HAND] }
    }

    /// The word at `addr`, a multiple of eight.
    ///
    /// # Errors
    ///
    /// If it can't be read.
    pub fn load(&mut self, addr: VirtAddr) -> Result<u64, AccessError> {
        self.word(addr, Operation::Load)
    }

    /// Sets the word at `addr`, a multiple of eight.
    ///
    /// # Errors
    ///
    /// If it can't be written.
    pub fn store(&mut self, addr: VirtAddr, value: u64) -> Result<(), AccessError> {
        self.word(addr, Operation::Store(value)).map(|_| ())
    }

    /// Adds to the word at `addr`, a multiple of eight, in one step for everybody, and returns what it was. A page that is not in a frame of the
    /// device is taken for the device alone before, unless a coherent device accesses it directly.
    ///
    /// # Errors
    ///
    /// If it can't be written, or not be held exclusively.
    pub fn fetch_add(&mut self, addr: VirtAddr, value: u64) -> Result<u64, AccessError> {
        self.word(addr, Operation::Add(value))
    }

    /// Copies the bytes from `addr` on to `out`.
    ///
    /// # Errors
    ///
    /// If one can't be read; those of earlier pages are copied.
    pub fn read(&mut self, addr: VirtAddr, out: &mut [u8]) -> Result<(), AccessError> {
        self.read_or(Missing::Fault, addr, out)
    }

    /// Copies the bytes from `addr` on to `out`, as far as the table has their pages: no device fault is made.
    ///
    /// # Errors
    ///
    /// [`AccessError::NotMapped`] at the first page that the table does not have.
    pub fn read_mapped(&mut self, addr: VirtAddr, out: &mut [u8]) -> Result<(), AccessError> {
        self.read_or(Missing::Refuse, addr, out)
    }

    fn read_or(&mut self, missing: Missing, addr: VirtAddr, out: &mut [u8]) -> Result<(), AccessError> {
        let mut at = addr;
        for part in pieces(addr, out.len()) {
            let mut bytes = [0; CHUNK];
            let bytes = &mut bytes[..part.len()];
            self.perform(at, Operation::Read(bytes), missing)?;
            out[part.clone()].copy_from_slice(bytes);
            at = VirtAddr::new(at.get() + part.len() as u64);
        }
        Ok(())
    }

    /// Copies `from` to the bytes from `addr` on.
    ///
    /// # Errors
    ///
    /// If one can't be written; those of earlier pages are copied.
    pub fn write(&mut self, addr: VirtAddr, from: &[u8]) -> Result<(), AccessError> {
        self.write_or(Missing::Fault, addr, from)
    }

    /// Copies `from` to the bytes from `addr` on, as far as the table has their pages for writing: no device fault is made.
    ///
    /// # Errors
    ///
    /// [`AccessError::NotMapped`] at the first page that the table does not have, or not for writing.
    pub fn write_mapped(&mut self, addr: VirtAddr, from: &[u8]) -> Result<(), AccessError> {
        self.write_or(Missing::Refuse, addr, from)
    }

    fn write_or(&mut self, missing: Missing, addr: VirtAddr, from: &[u8]) -> Result<(), AccessError> {
        let mut at = addr;
        for part in pieces(addr, from.len()) {
            let mut bytes = [0; CHUNK];
            let bytes = &mut bytes[..part.len()];
            bytes.copy_from_slice(&from[part.clone()]);
            self.perform(at, Operation::Write(bytes), missing)?;
            at = VirtAddr::new(at.get() + part.len() as u64);
        }
        Ok(())
    }

    fn word(&mut self, addr: VirtAddr, operation: Operation<'_>) -> Result<u64, AccessError> {
        if !addr.get().is_multiple_of(8) {
            return Err(AccessError::OutOfRange(addr));
        }
        self.perform(addr, operation, Missing::Fault)
    }

    /// Does `operation` at `addr`, all of whose bytes are in one page.
    fn perform(&mut self, addr: VirtAddr, mut operation: Operation<'_>, missing: Missing) -> Result<u64, AccessError> {
        let (page, access) = (addr.page_down(), operation.access());
        let accelerator = self.accelerator;
        if !accelerator.subscription.range().contains(page) {
            return Err(AccessError::OutOfRange(addr));
        }
        for _ in 0..TRIES {
            let leaf = self.leaf(page.block());
            let Some(using) = leaf.enter(page.index_in_block(), access) else {
                if missing == Missing::Refuse {
                    return Err(AccessError::NotMapped(page));
                }
                accelerator.fault(page, access, AROUND)?;
                continue;
            };
            let offset = addr.get() - page.get();
            if let Route::Frame(frame) = using.entry().route {
                // SAFETY: the frame is the page's as long as it is in use, and is memory of this process.
                return Ok(unsafe { operation.directly(VirtAddr::new(frame.get() + offset)) });
            }
            if matches!(operation, Operation::Add(_)) && !accelerator.adds_in_place() {
                drop(using);
                accelerator.make_page_exclusive(page)?;
                continue;
            }
            if accelerator.options.in_place == InPlace::Direct {
                // SAFETY: the program promised when the accelerator was made that kernels may do this, and that changes of mappings are announced:
                // they wait for the end of this use.
                return Ok(unsafe { operation.directly(addr) });
            }
            // SAFETY: as above, but for the changes of mappings.
            let done = unsafe { operation.checked(addr) };
            drop(using);
            match done {
                Ok(value) => return Ok(value),
                // The table says what is no longer so.
                Err(_) => {
                    accelerator.mirror.table.erase(PageRange::page_of(page), Await::Frames);
                    if missing == Missing::Fault {
                        accelerator.fault(page, access, AROUND)?;
                    }
                }
            }
        }
        Err(AccessError::Contended(addr))
    }

    fn leaf(&mut self, no: BlockNo) -> &Leaf {
        let at = usize::try_from(no.get()).unwrap_or(0) % AT_HAND;
        let place = &mut self.leaves[at];
        match place {
            Some((known, _)) if *known == no => {}
            _ => *place = Some((no, self.accelerator.mirror.table.leaf(no))),
        }
        &place.as_ref().expect("set above").1
    }
}

impl Accelerator {
    /// Whether the device adds to words in place: a coherent one does, as the processors do.
    fn adds_in_place(&self) -> bool {
        let pagemap = self.engine().device(self.device).map(|device| device.pagemap().memory_type);
        self.options.in_place == InPlace::Direct && pagemap == Some(hetmem_core::physmap::MemoryType::DeviceCoherent)
    }
}

/// Cuts `len` bytes from `addr` on at pages, and into chunks.
fn pieces(addr: VirtAddr, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let page = PageCount::ONE.bytes().as_usize();
    let first = usize::try_from(addr.get() % PAGE_SIZE).unwrap_or(0);
    let mut at = 0;
    std::iter::from_fn(move || {
        let in_page = (first + at) % page;
        let n = (len - at).min(CHUNK).min(page - in_page);
        let piece = at..at + n;
        at += n;
        (n > 0).then_some(piece)
    })
}

//! One mapping in place of another, in one step.
//!
//! Both ways are a single `mremap(2)`, which holds the lock of the address space from the end of the old mapping to the beginning of the new: a touch
//! finds what was there before, or what is there after. Where a mapping is registered with events, the call returns when these were read.
//!
//! *Limits:* a call that fails has in rare cases (no memory for the kernel's own structures) removed the old mapping already;
//! [`is_mapped`](super::is_mapped) tells.
#![expect(unsafe_code, reason = "maps memory over memory that is named by number")]

use std::ffi::CStr;

use hetmem_core::units::{BLOCK_PAGES, PageCount, PageRange, VirtAddr};
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};

use super::advice::{advise, discard, pointer};
use super::arena::{ignore_unsupported, name_memory};
use crate::copy::address;
use crate::errno::Errno;
use crate::raw;

/// Maps what is mapped shared at `from` a second time, in place of what is mapped at `over`. A forked child has it or not as it has the first.
///
/// `EINVAL` if `from` is not shared, or either is not aligned as its file wants; `ENOMEM` if there are too many mappings (`vm.max_map_count`).
///
/// # Safety
///
/// Whatever is mapped in `over`, as long as `from`, may go, and its address be used for the bytes of `from`.
pub unsafe fn map_again_over(from: PageRange, over: VirtAddr) -> Result<(), Errno> {
    // SAFETY: the caller gives up what is there. A length of zero duplicates a shared mapping, mremap(2), and leaves the first as it is.
    unsafe {
        rustix::mm::mremap_fixed(
            pointer(from.start()),
            0,
            from.pages().as_usize() * 4096,
            MremapFlags::MAYMOVE,
            pointer(over),
        )
    }
    .map(|_| ())
}

/// Maps what is mapped at `of`, a file, a second time, as it is mapped there: private or shared, and with the same protection. The first stays as it is,
/// but for page table entries.
///
/// `EFAULT` if that is not one mapping, `EINVAL` if it is not one that can be mapped again.
pub fn map_once_more(of: PageRange) -> Result<VirtAddr, Errno> {
    let (at, len) = (address(of.start()), of.pages().as_usize() * 4096);
    let flags = (MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP).bits() as usize;
    // SAFETY: the contents of both are the file's; without MREMAP_FIXED the kernel chooses a range that nothing uses, for which it wants a hint.
    let mapped = unsafe { raw::syscall5(libc::SYS_mremap, [at, len, len, flags, 0]) }?;
    Ok(VirtAddr::new(mapped as u64))
}

/// The same, in place of what is mapped at `over`.
///
/// # Safety
///
/// Whatever is mapped from `over` on, as long as `of` is, may go, and its address be used for the bytes of `of`, a file's.
pub unsafe fn map_once_more_over(of: PageRange, over: VirtAddr) -> Result<(), Errno> {
    let (at, len) = (pointer(of.start()), of.pages().as_usize() * 4096);
    let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
    // SAFETY: the caller gives up what is there; what is at `of` is the file's still.
    unsafe { rustix::mm::mremap_fixed(at, len, len, flags, pointer(over)) }.map(|_| ())
}

/// Private anonymous memory, nothing of it populated, that is to take the place of other memory; unmapped on drop.
#[derive(Debug)]
pub struct Spare {
    // Invariant: mapped by this value, and nobody knows of it.
    range: PageRange,
}

impl Spare {
    /// Maps `pages` pages, to be backed with huge pages where that can be, and called `name` in `/proc/<pid>/maps`.
    pub fn reserve(pages: PageCount, name: &CStr) -> Result<Self, Errno> {
        // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                pages.as_usize() * 4096,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let range = PageRange::new(VirtAddr::new(mapped.expose_provenance() as u64), pages).ok_or(Errno::INVAL)?;
        // INVARIANT: fresh.
        let spare = Self { range };
        // SAFETY: nobody has the address of this memory yet.
        ignore_unsupported(unsafe { advise(range, Advice::LinuxHugepage) })?;
        name_memory(range, name);
        // A process that locks what it will map (mlockall(2), MCL_FUTURE) has it populated: it must be holes.
        // SAFETY: as above.
        unsafe { rustix::mm::munlock(pointer(range.start()), range.pages().as_usize() * 4096) }?;
        // SAFETY: as above.
        unsafe { discard(range) }?;
        Ok(spare)
    }

    /// The same, to take the place of `over`: huge pages are where they would be there. A forked child has none of it.
    pub fn reserve_for(over: PageRange, name: &CStr) -> Result<Self, Errno> {
        let spare = match over.pages() >= PageCount::BLOCK {
            false => Self::reserve(over.pages(), name)?,
            true => {
                let wide = Self::reserve(over.pages() + PageCount::BLOCK, name)?;
                let wanted = over.start().index_in_block() as u64;
                let ahead = wanted + BLOCK_PAGES - wide.range.start().index_in_block() as u64;
                wide.cut(PageCount::new(ahead % BLOCK_PAGES), over.pages())?
            }
        };
        // SAFETY: nobody has the address of this memory yet.
        unsafe { advise(spare.range, Advice::LinuxDontFork) }?;
        Ok(spare)
    }

    /// Only `pages` pages of it, from page `skip` on.
    fn cut(mut self, skip: PageCount, pages: PageCount) -> Result<Self, Errno> {
        let part = self.range.slice(skip, pages);
        let (before, behind) = (self.range.slice(PageCount::ZERO, skip), part.end());
        for rest in [Some(before), PageRange::between(behind, self.range.end())].into_iter().flatten() {
            if !rest.is_empty() {
                // SAFETY: by the invariant this value's.
                unsafe { rustix::mm::munmap(pointer(rest.start()), rest.pages().as_usize() * 4096) }?;
            }
            // INVARIANT: what is left of it is mapped still.
            self.range = if rest == before { self.range.slice(skip, self.range.pages()) } else { part };
        }
        Ok(self)
    }

    /// It can only be read from now on.
    pub fn forbid_writes(&self) -> Result<(), Errno> {
        // SAFETY: by the invariant this value's.
        unsafe {
            let len = self.range.pages().as_usize() * 4096;
            rustix::mm::mprotect(pointer(self.range.start()), len, rustix::mm::MprotectFlags::READ)
        }
    }

    /// Where it is.
    #[must_use]
    pub const fn range(&self) -> PageRange {
        self.range
    }

    /// Takes the place of what is mapped at `over`. What is registered with userfaultfd and `EVENT_REMAP` stays registered; the events are that of
    /// the move, and with `EVENT_UNMAP` then that of the end of the old address.
    ///
    /// `ENOMEM` if there are too many mappings (`vm.max_map_count`). The spare is handed back then.
    ///
    /// # Safety
    ///
    /// Whatever is mapped from `over` on, as long as this is, may go.
    pub unsafe fn move_over(self, over: VirtAddr) -> Result<(), (Self, Errno)> {
        let len = self.range.pages().as_usize() * 4096;
        let (from, to) = (pointer(self.range.start()), pointer(over));
        // SAFETY: the source is this value's; the caller gives up what is at the destination.
        if let Err(errno) = unsafe { rustix::mm::mremap_fixed(from, len, len, MremapFlags::MAYMOVE, to) } {
            return Err((self, errno));
        }
        // Nothing is left at the old address, which may be another's by now.
        #[expect(clippy::mem_forget, reason = "what would be unmapped has moved")]
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // SAFETY: by the invariant the range is this value's.
        let unmapped = unsafe { rustix::mm::munmap(pointer(self.range.start()), self.range.pages().as_usize() * 4096) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

//! Frames that are memory in this process's address space, one after the other, and the copies into and out of them: what
//! the backends have in common.

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::{MemoryType, Owner, Pagemap};
use hetmem_core::port::{Direction, Progress, Transfer};
use hetmem_core::units::{DeviceId, PageCount, PageRange, VirtAddr};
use hetmem_sys::copy::{clear_pages, copy_pages, stream_pages};

/// A device's frames, as one stretch of this process's memory, with their descriptors.
pub(crate) struct Frames {
    // Invariant: frame i of the pagemap is page i of the range, which is mapped, readable and writable as long as the backend
    // that made this lives, and nobody's but that backend's.
    pub(crate) pagemap: Pagemap,
    range: PageRange,
}

impl Frames {
    /// The frames of a device of that type: the pages of `range`.
    pub(crate) fn new(device: DeviceId, owner: Owner, memory_type: MemoryType, range: PageRange) -> Self {
        Self { pagemap: Pagemap::new(device, memory_type, owner, range.pages()), range }
    }

    /// Where frame 0 is.
    pub(crate) const fn start(&self) -> VirtAddr {
        self.range.start()
    }

    /// Where the frames of `run` are.
    ///
    /// # Panics
    ///
    /// If the device doesn't have them.
    pub(crate) fn place(&self, run: FrameRun) -> PageRange {
        let skip = PageCount::new(u64::from(run.first.get()));
        assert!(skip + run.pages <= self.range.pages(), "the device has the frames");
        self.range.slice(skip, run.pages)
    }

    /// Carries out `transfer`.
    pub(crate) fn copy(&self, transfer: &mut Transfer) {
        let Transfer { direction, frames, memory, .. } = *transfer;
        let place = self.place(frames).start();
        match direction {
            Direction::In => copy(place, memory, frames.pages, NextUser::Nobody),
            // A fault brings few pages, and somebody waits for them; a migration home brings many.
            Direction::Out if frames.pages > FEW => copy(memory, place, frames.pages, NextUser::Nobody),
            Direction::Out => copy(memory, place, frames.pages, NextUser::Cpu),
        }
        transfer.progress = Progress::Done(Ok(()));
    }

    /// As [`hetmem_core::port::Device::clear`].
    #[expect(unsafe_code, reason = "the frames are memory of this process")]
    pub(crate) fn clear(&self, run: FrameRun) {
        let place = self.place(run);
        // SAFETY: frames of this device, which nobody refers to.
        unsafe { clear_pages(place.start(), run.pages) };
    }
}

#[expect(unsafe_code, reason = "the frames are memory of this process")]
fn copy(to: VirtAddr, from: VirtAddr, pages: PageCount, next: NextUser) {
    match next {
        // SAFETY: one side is frames of this device, which the caller has references to; the other, by the contract of
        // the trait, is memory of hetmem that nobody else uses meanwhile.
        NextUser::Cpu => unsafe { copy_pages(to, from, pages) },
        // SAFETY: as above.
        NextUser::Nobody => unsafe { stream_pages(to, from, pages) },
    }
}

/// Who uses pages next after they were copied.
#[derive(Clone, Copy)]
enum NextUser {
    Cpu,
    Nobody,
}

/// Copies of more pages than this are no fault's ([`hetmem_core::fault::MAX_AROUND`]).
const FEW: PageCount = PageCount::new(hetmem_core::fault::MAX_AROUND as u64);

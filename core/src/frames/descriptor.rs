//! Descriptors of frames, and where they are kept.
//!
//! They are made by chunks of 2 MiB, when a frame of a chunk is first used: what is not used costs no books.

use std::sync::OnceLock;

use super::references::Released;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::{FrameIndex, PAGE_SHIFT, PageCount, VirtAddr};

const COUNT_BITS: u32 = 16;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// One descriptor: the reference count in the low 16 bits, the page number above.
#[derive(Debug)]
pub struct FrameDescriptor(AtomicU64);

impl Default for FrameDescriptor {
    fn default() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl FrameDescriptor {
    /// Takes the free frame into use, with one reference.
    ///
    /// # Panics
    ///
    /// If the frame is in use: the free set and the descriptors disagree.
    #[inline]
    pub fn allocate(&self, page: VirtAddr) {
        let word = page.get() >> PAGE_SHIFT << COUNT_BITS | 1;
        // Acquire pairs with the Release in `release`: what the last holder did to the frame is done before its next use.
        let was = self.0.swap(word, Ordering::Acquire);
        assert_eq!(was & COUNT_MASK, 0, "a frame in use is not in the free set");
    }

    /// Takes another reference; `false` if the frame is free.
    #[inline]
    #[must_use]
    pub fn acquire(&self) -> bool {
        self.0
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |w| {
                let count = w & COUNT_MASK;
                assert_ne!(count, COUNT_MASK, "references of a frame fit 16 bits");
                (count != 0).then_some(w + 1)
            })
            .is_ok()
    }

    /// Lets go of a reference.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[inline]
    pub fn release(&self) -> Released {
        // Release pairs with the Acquire in `allocate`; Acquire makes the last `release` see the work of all the others.
        let was = self.0.fetch_sub(1, Ordering::AcqRel) & COUNT_MASK;
        assert_ne!(was, 0, "a reference is let go of once");
        if was == 1 { Released::Last } else { Released::StillReferenced }
    }

    /// The number of references; what holders who have left did with the frame is done.
    #[inline]
    pub(crate) fn references(&self) -> u64 {
        // Acquire pairs with the Release in `release`.
        self.0.load(Ordering::Acquire) & COUNT_MASK
    }

    /// The number of references.
    #[inline]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed) & COUNT_MASK
    }

    /// The page that the frame was last said to hold. A hint, as in the kernel: `mremap` can move a page at any time.
    #[inline]
    pub fn page(&self) -> VirtAddr {
        VirtAddr::new(self.0.load(Ordering::Relaxed) >> COUNT_BITS << PAGE_SHIFT)
    }

    /// Says that the frame now holds `page`.
    pub fn set_page(&self, page: VirtAddr) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |w| {
            Some(page.get() >> PAGE_SHIFT << COUNT_BITS | w & COUNT_MASK)
        });
    }
}

/// Frames whose books are made together: those of 2 MiB.
const CHUNK: usize = PageCount::BLOCK.as_usize();

/// What is known of each frame of a device, or of each place of the pool.
pub(super) struct ByChunk<T> {
    chunks: Box<[OnceLock<Box<[T]>>]>,
    capacity: PageCount,
}

impl<T: Default> ByChunk<T> {
    pub(super) fn new(capacity: PageCount) -> Self {
        Self { chunks: (0..capacity.get().div_ceil(CHUNK as u64)).map(|_| OnceLock::new()).collect(), capacity }
    }

    pub(super) const fn capacity(&self) -> PageCount {
        self.capacity
    }

    /// Of a frame below the capacity.
    #[inline]
    pub(super) fn of(&self, frame: FrameIndex) -> &T {
        let (chunk, frame) = (frame.index() / CHUNK, frame.index() % CHUNK);
        // The last may be smaller.
        let frames = || CHUNK.min(self.capacity.as_usize() - chunk * CHUNK);
        &self.chunks[chunk].get_or_init(|| (0..frames()).map(|_| T::default()).collect())[frame]
    }

    /// The same if it was made.
    pub(super) fn made(&self, frame: FrameIndex) -> Option<&T> {
        self.chunks.get(frame.index() / CHUNK).and_then(OnceLock::get).map(|chunk| &chunk[frame.index() % CHUNK])
    }

    /// Makes what there is not of all frames from number `from` on and below `to`.
    pub(super) fn make(&self, from: PageCount, to: PageCount) {
        (from.as_usize()..to.as_usize()).step_by(CHUNK).for_each(|frame| {
            self.of(FrameIndex::new(u32::try_from(frame).expect("a device has at most 2^32 frames")));
        });
    }

    /// All that were made.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().filter_map(OnceLock::get).flat_map(|chunk| chunk.iter())
    }
}

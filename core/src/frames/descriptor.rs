//! Descriptors of frames, and where they are kept.
//!
//! They are made by chunks of 2 MiB, when a frame of a chunk is first used: what is not used costs no books.

use std::sync::OnceLock;

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::{FrameIndex, PAGE_SHIFT, PageCount, VirtAddr};

/// What [`FrameDescriptor::release`] left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Released {
    /// Others still refer to the frame.
    StillReferenced,
    /// That was the last reference.
    Last,
}

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

/// Frames whose descriptors are made together: those of 2 MiB, and few in the tiny devices that the model checker can bear.
const CHUNK: usize = if cfg!(loom) { 4 } else { PageCount::BLOCK.as_usize() };

/// The descriptors of the frames of a device, or of the places of the pool.
pub(super) struct Descriptors {
    chunks: Box<[OnceLock<Box<[FrameDescriptor]>>]>,
    capacity: PageCount,
}

impl Descriptors {
    pub(super) fn new(capacity: PageCount) -> Self {
        Self { chunks: (0..capacity.get().div_ceil(CHUNK as u64)).map(|_| OnceLock::new()).collect(), capacity }
    }

    pub(super) const fn capacity(&self) -> PageCount {
        self.capacity
    }

    /// The descriptor of a frame below the capacity.
    #[inline]
    pub(super) fn of(&self, frame: FrameIndex) -> &FrameDescriptor {
        let chunk =
            self.chunks[frame.index() / CHUNK].get_or_init(|| (0..CHUNK).map(|_| FrameDescriptor::default()).collect());
        &chunk[frame.index() % CHUNK]
    }

    /// Makes the descriptors of all frames from number `from` on and below `to` that have none.
    pub(super) fn make(&self, from: PageCount, to: PageCount) {
        (from.as_usize()..to.as_usize()).step_by(CHUNK).for_each(|frame| {
            self.of(FrameIndex::new(u32::try_from(frame).expect("a device has at most 2^32 frames")));
        });
    }

    /// Whether somebody refers to the frame; nothing is made for it.
    pub(super) fn is_used(&self, frame: FrameIndex) -> bool {
        let chunk = self.chunks.get(frame.index() / CHUNK).and_then(OnceLock::get);
        chunk.is_some_and(|chunk| chunk[frame.index() % CHUNK].count() > 0)
    }

    /// How many frames somebody refers to.
    pub(super) fn used(&self) -> PageCount {
        let made = self.chunks.iter().filter_map(OnceLock::get);
        PageCount::new(made.flat_map(|chunk| chunk.iter()).filter(|d| d.count() > 0).count() as u64)
    }
}

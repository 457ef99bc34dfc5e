//! Page descriptors: for each frame of a device, who refers to it and which page of the program it holds.
//!
//! A frame is free while its reference count is zero, as the kernel's device pages are. The slot of the page that a
//! frame holds is one reference; a migration or a reader that works on the frame has one more, so that the page may
//! be unmapped meanwhile and the frame still isn't handed to another page before the work is done.
//!
//! | event | count |
//! | --- | --- |
//! | [`FrameTable::allocate`] | 0 → 1 |
//! | [`FrameTable::acquire`] (only while at least 1) | n → n + 1 |
//! | [`FrameTable::release`] | n → n − 1; at 0 the frame is back in the free set |
//!
//! A free frame that a page has left rests with the page's bytes until it is used again or cleared ([`FrameTable::clear_old`]).
//!
//! *Limits:* 2^32 frames a device (16 TiB), 2^16 − 1 references a frame.

use std::fmt;
use std::sync::OnceLock;

use super::clearing::Clearing;
use super::references::Released;
use super::run::FrameRun;
use super::run_set::RunSet;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, lock};
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

/// Frames whose descriptors are made together: those of 2 MiB.
const CHUNK: usize = PageCount::BLOCK.as_usize();

/// The descriptors of a device's frames and the set of free ones. hetmem keeps these books; a device only makes them.
pub struct FrameTable {
    /// By chunks of 2 MiB, each made when a frame of it is first allocated: a device that is not used costs no books.
    descriptors: Box<[OnceLock<Box<[FrameDescriptor]>>]>,
    capacity: PageCount,
    free: Mutex<RunSet>,
    clearing: Clearing,
    /// No frame is taken into use any more.
    closed: AtomicBool,
}

impl fmt::Debug for FrameTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is locked is left out: whoever prints may hold it.
        f.debug_struct("FrameTable").field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

impl FrameTable {
    /// A table of `capacity` free frames.
    #[must_use]
    pub fn new(capacity: PageCount) -> Self {
        let descriptors = (0..capacity.get().div_ceil(CHUNK as u64)).map(|_| OnceLock::new()).collect();
        let free = Mutex::new(RunSet::full(capacity));
        Self { descriptors, capacity, free, clearing: Clearing::default(), closed: AtomicBool::new(false) }
    }

    /// How many frames the device has.
    #[must_use]
    pub fn capacity(&self) -> PageCount {
        self.capacity
    }

    /// How many frames are in use.
    #[must_use]
    pub fn used(&self) -> PageCount {
        self.capacity() - lock(&self.free).len()
    }

    /// Whether the device has a frame numbered `frame`.
    #[inline]
    #[must_use]
    pub fn contains(&self, frame: FrameIndex) -> bool {
        (frame.index() as u64) < self.capacity.get()
    }

    /// The descriptor of `frame`.
    ///
    /// # Panics
    ///
    /// If the device has no such frame.
    #[inline]
    #[doc(hidden)]
    #[must_use]
    pub fn descriptor(&self, frame: FrameIndex) -> &FrameDescriptor {
        assert!(self.contains(frame), "the device has the frame");
        let (chunk, frame) = (frame.index() / CHUNK, frame.index() % CHUNK);
        // The last may be smaller.
        let frames = || CHUNK.min(self.capacity.as_usize() - chunk * CHUNK);
        let make = || (0..frames()).map(|_| FrameDescriptor::default()).collect();
        &self.descriptors[chunk].get_or_init(make)[frame]
    }

    /// Whether somebody refers to the frame; nothing is made for it.
    fn is_used(&self, frame: FrameIndex) -> bool {
        let chunk = self.descriptors.get(frame.index() / CHUNK).and_then(OnceLock::get);
        chunk.is_some_and(|chunk| chunk[frame.index() % CHUNK].count() > 0)
    }

    /// Takes a run of at most `want` free frames for the pages from `page` on, each with one reference.
    #[inline]
    #[must_use]
    pub fn allocate(&self, want: PageCount, page: VirtAddr) -> Option<FrameRun> {
        self.allocate_by(page, |free| free.take(want))
    }

    /// Takes a whole chunk that small pages have not used, if there is one, for the huge page at `page`, with one reference for each frame.
    #[must_use]
    pub fn allocate_whole(&self, page: VirtAddr) -> Option<FrameRun> {
        self.allocate_by(page, RunSet::take_whole)
    }

    /// A chunk, whether small pages have used it or not.
    #[must_use]
    pub fn allocate_chunk(&self, page: VirtAddr) -> Option<FrameRun> {
        self.allocate_by(page, RunSet::take_chunk)
    }

    fn allocate_by(&self, page: VirtAddr, take: impl Fn(&mut RunSet) -> Option<FrameRun>) -> Option<FrameRun> {
        let take = || {
            let mut free = lock(&self.free);
            // Relaxed: set and read under that lock.
            if self.closed.load(Ordering::Relaxed) {
                return (None, false);
            }
            let taken = take(&mut free);
            (taken, free.has_claimed())
        };
        let run = self.clearing.or_once_back(take)?;
        for (i, frame) in (0..).zip(run.iter()) {
            self.descriptor(frame).allocate(page.add_pages(PageCount::new(i)));
        }
        Some(run)
    }

    /// From now on no frame is taken into use, or again each may be.
    pub fn close(&self, closed: bool) {
        let _free = lock(&self.free);
        self.closed.store(closed, Ordering::Relaxed);
    }

    /// The frames in use among `frames`, each with the page that it was last said to hold.
    pub fn in_use(&self, frames: FrameRun) -> impl Iterator<Item = (FrameIndex, VirtAddr)> {
        let known = frames.iter().filter(|frame| self.contains(*frame));
        known.filter(|frame| self.is_used(*frame)).map(|frame| (frame, self.descriptor(frame).page()))
    }

    /// Takes another reference to each frame of `run`, which the caller knows to be in use.
    ///
    /// # Panics
    ///
    /// If one of them is free.
    #[inline]
    pub fn acquire(&self, run: FrameRun) {
        for frame in run.iter() {
            assert!(self.descriptor(frame).acquire(), "the frame is in use");
        }
    }

    /// Lets go of a reference to each frame of `run`, in which pages are; frames without any become free, and rest. Returns how many did; `released`
    /// is told of them before.
    #[inline]
    pub fn release(&self, run: FrameRun, released: impl FnMut(FrameRun)) -> PageCount {
        self.release_by(run, released, RunSet::insert_resting)
    }

    /// Lets go of a reference to each frame of `run`, whose pages were moved away, or are not there for another reason.
    pub fn release_empty(&self, run: FrameRun, released: impl FnMut(FrameRun)) -> PageCount {
        self.release_by(run, released, RunSet::insert)
    }

    fn release_by(
        &self,
        run: FrameRun,
        mut released: impl FnMut(FrameRun),
        insert: impl Fn(&mut RunSet, FrameRun),
    ) -> PageCount {
        let mut freed = PageCount::ZERO;
        let mut start = None;
        for offset in 0..=run.pages.get() {
            let offset = PageCount::new(offset);
            let last = offset < run.pages && self.descriptor(run.frame(offset)).release() == Released::Last;
            match (last, start) {
                (true, None) => start = Some(offset),
                (false, Some(from)) => {
                    let free = run.slice(from, offset - from);
                    released(free);
                    insert(&mut lock(&self.free), free);
                    freed += free.pages;
                    start = None;
                }
                (true, Some(_)) | (false, None) => {}
            }
        }
        freed
    }

    /// Whether a frame rests.
    #[must_use]
    pub fn has_resting(&self) -> bool {
        lock(&self.free).has_resting()
    }

    /// All frames that rest are old from now on.
    pub fn age(&self) {
        lock(&self.free).age();
    }

    /// Has `clear` clear some old frames, unless somebody takes or waits for them just then; `false` if there is none.
    pub fn clear_old(&self, clear: impl FnOnce(FrameRun)) -> bool {
        self.clearing.clear_old(|change| change(&mut lock(&self.free)), clear)
    }

    /// Checks that exactly the frames without references are in the free set.
    ///
    /// # Panics
    ///
    /// If that does not hold.
    pub fn check(&self) {
        let _all_back = self.clearing.all_back();
        let free = lock(&self.free);
        free.check();
        let made = self.descriptors.iter().filter_map(OnceLock::get);
        let referenced = made.flat_map(|chunk| chunk.iter()).filter(|d| d.count() > 0).count() as u64;
        assert_eq!(self.capacity.get() - free.len().get(), referenced, "free frames are those without references");
    }
}

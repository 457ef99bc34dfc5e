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
use super::descriptor::{ByChunk, FrameDescriptor};
use super::quota::Quota;
use super::references::Released;
use super::run::FrameRun;
use super::run_set::RunSet;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, lock};
use crate::units::{FrameIndex, PageCount, VirtAddr};

/// The descriptors of a device's frames and the set of free ones. hetmem keeps these books; a device only makes them.
pub struct FrameTable {
    descriptors: ByChunk<FrameDescriptor>,
    free: Mutex<RunSet>,
    clearing: Clearing,
    /// No frame is taken into use any more.
    closed: AtomicBool,
    /// How many were in use at a time, at most.
    peak: AtomicU64,
    /// What of the frames may be in use here, if others count theirs together with these.
    quota: OnceLock<Box<dyn Quota>>,
}

impl fmt::Debug for FrameTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is locked is left out: whoever prints may hold it.
        f.debug_struct("FrameTable").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

impl FrameTable {
    /// A table of `capacity` free frames.
    #[must_use]
    pub fn new(capacity: PageCount) -> Self {
        let (descriptors, free) = (ByChunk::new(capacity), Mutex::new(RunSet::full(capacity)));
        Self {
            descriptors,
            free,
            clearing: Clearing::default(),
            closed: AtomicBool::new(false),
            peak: AtomicU64::new(0),
            quota: OnceLock::new(),
        }
    }

    /// How many frames the device has.
    #[must_use]
    pub fn capacity(&self) -> PageCount {
        self.descriptors.capacity()
    }

    /// How many frames are in use.
    #[must_use]
    pub fn used(&self) -> PageCount {
        self.capacity() - lock(&self.free).len()
    }

    /// How many frames were in use at a time, at most.
    #[must_use]
    pub fn peak(&self) -> PageCount {
        // Relaxed: a number.
        PageCount::new(self.peak.load(Ordering::Relaxed))
    }

    /// From now on frames are taken into use as far as `quota` has some; said once, before any is in use.
    ///
    /// # Panics
    ///
    /// If it was said before, or a frame is in use.
    #[doc(hidden)]
    pub fn count_with_others(&self, quota: Box<dyn Quota>) {
        assert!(self.used().is_zero() && self.quota.set(quota).is_ok(), "nothing is counted yet");
    }

    /// How many frames could be taken into use now.
    #[must_use]
    pub fn room(&self) -> PageCount {
        let free = lock(&self.free).len();
        self.quota.get().map_or(free, |quota| quota.left().min(free))
    }

    /// Whether the device has a frame numbered `frame`.
    #[inline]
    #[must_use]
    pub fn contains(&self, frame: FrameIndex) -> bool {
        (frame.index() as u64) < self.capacity().get()
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
        self.descriptors.of(frame)
    }

    /// Takes a run of at most `want` free frames for the pages from `page` on, each with one reference.
    #[inline]
    #[must_use]
    pub fn allocate(&self, want: PageCount, page: VirtAddr) -> Option<FrameRun> {
        self.allocate_by(want, page, RunSet::take)
    }

    /// Takes a whole chunk that small pages have not used, if there is one, for the huge page at `page`, with one reference for each frame.
    #[must_use]
    pub fn allocate_whole(&self, page: VirtAddr) -> Option<FrameRun> {
        self.allocate_by(PageCount::BLOCK, page, |free, want| {
            (want == PageCount::BLOCK).then(|| free.take_whole()).flatten()
        })
    }

    /// Whether small pages have used the chunk of `frame`.
    pub(crate) fn is_divided(&self, frame: FrameIndex) -> bool {
        lock(&self.free).is_divided(frame)
    }

    /// A chunk, whether small pages have used it or not.
    #[must_use]
    pub fn allocate_chunk(&self, page: VirtAddr) -> Option<FrameRun> {
        self.allocate_by(PageCount::BLOCK, page, |free, want| {
            (want == PageCount::BLOCK).then(|| free.take_chunk()).flatten()
        })
    }

    /// Takes what `take` takes of at most `want` frames, or of as many as there may be more.
    fn allocate_by(
        &self,
        want: PageCount,
        page: VirtAddr,
        take: impl Fn(&mut RunSet, PageCount) -> Option<FrameRun>,
    ) -> Option<FrameRun> {
        let want = self.quota.get().map_or(want, |quota| quota.take(want));
        let run = if want.is_zero() { None } else { self.allocate_within(want, page, take) };
        let rest = want - run.map_or(PageCount::ZERO, |run| run.pages);
        if !rest.is_zero() {
            self.quota.get().into_iter().for_each(|quota| quota.give(rest));
        }
        run
    }

    fn allocate_within(
        &self,
        want: PageCount,
        page: VirtAddr,
        take: impl Fn(&mut RunSet, PageCount) -> Option<FrameRun>,
    ) -> Option<FrameRun> {
        let take = || {
            let mut free = lock(&self.free);
            // Relaxed: set and read under that lock.
            if self.closed.load(Ordering::Relaxed) {
                return (None, false);
            }
            let taken = take(&mut free, want);
            self.peak.fetch_max((self.capacity() - free.len()).get(), Ordering::Relaxed);
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
        let is_used = |frame: &FrameIndex| self.descriptors.made(*frame).is_some_and(|frame| frame.count() > 0);
        known.filter(is_used).map(|frame| (frame, self.descriptor(frame).page()))
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
                    self.quota.get().into_iter().for_each(|quota| quota.give(free.pages));
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
        let used = self.capacity() - free.len();
        let referenced = self.descriptors.iter().filter(|frame| frame.count() > 0).count() as u64;
        assert_eq!(used.get(), referenced, "free frames are those without references");
    }
}

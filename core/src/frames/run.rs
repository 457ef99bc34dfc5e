//! Runs of frames.

use crate::units::{FrameIndex, PageCount};

/// A run of frames of one device: `first`, `first + 1`, ….
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FrameRun {
    /// The lowest frame.
    pub first: FrameIndex,
    /// How many frames: 1 to 512, as long as they are of one block.
    pub pages: PageCount,
}

impl FrameRun {
    /// The run of one frame.
    #[inline]
    #[must_use]
    pub const fn single(first: FrameIndex) -> Self {
        Self { first, pages: PageCount::ONE }
    }

    /// The frame `offset` places into the run.
    ///
    /// # Panics
    ///
    /// If the run is not that long.
    #[inline]
    #[must_use]
    pub fn frame(self, offset: PageCount) -> FrameIndex {
        assert!(offset < self.pages, "offset lies inside the run");
        FrameIndex::new(self.first.get() + offset_u32(offset))
    }

    /// The part of the run from place `skip` on, `take` frames long.
    ///
    /// # Panics
    ///
    /// If the run does not hold that part.
    #[inline]
    #[must_use]
    pub fn slice(self, skip: PageCount, take: PageCount) -> Self {
        assert!(skip + take <= self.pages, "the slice lies inside the run");
        Self { first: FrameIndex::new(self.first.get() + offset_u32(skip)), pages: take }
    }

    /// Whether `frame` is one of them.
    #[inline]
    #[must_use]
    pub fn contains(self, frame: FrameIndex) -> bool {
        frame.get().checked_sub(self.first.get()).is_some_and(|offset| u64::from(offset) < self.pages.get())
    }

    /// The frames, in order.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = FrameIndex> {
        (0..self.pages.get()).map(move |i| self.frame(PageCount::new(i)))
    }
}

pub(super) fn offset_u32(offset: PageCount) -> u32 {
    u32::try_from(offset.get()).expect("a run is at most 512 frames long")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_contains_its_frames_and_no_others() {
        let run = FrameRun { first: FrameIndex::new(7), pages: PageCount::new(3) };
        let contained: Vec<u32> = (0..20).filter(|i| run.contains(FrameIndex::new(*i))).collect();
        assert_eq!(contained, [7, 8, 9]);
    }
}

//! A table of slots whose frames lie near one another, as those of pages that left together do: two bytes a page.
//!
//! There are two [`Window`]s, of frames of the pool, where pages are on their way, and of a device's, where they stay.

use std::ops::Range;

use super::slots::{Counts, breaks_around, breaks_in, run_of};
use crate::slot::{Frame, SYSTEM_POOL, Slot};
use crate::units::{DeviceId, FrameIndex, PageCount};

/// Bits of a word that say which frame of a window.
const FRAME_BITS: u32 = 13;
const FRAME_MASK: u32 = (1 << FRAME_BITS) - 1;
/// The bit that says which window.
const WHICH_SHIFT: u32 = FRAME_BITS;
const TAG_SHIFT: u32 = FRAME_BITS + 1;
const TAG_MAPPED: u16 = 1;
const TAG_UNMAPPED: u16 = 2;
const TAG_BUSY: u16 = 3;

/// 8192 frames of one device, or of the pool, of whose numbers all bits but the last are the same: those bits, below the device.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Window(u32);

const DEVICE_SHIFT: u32 = 24;
const _: () = assert!(FRAME_BITS + DEVICE_SHIFT >= u32::BITS, "the bits of a frame's number have room");

impl Window {
    /// The one that has `frame`.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "a device has a number below 256")]
    const fn of(frame: Frame) -> Self {
        Self((frame.device.index() as u32) << DEVICE_SHIFT | frame.index.get() >> FRAME_BITS)
    }

    /// The frame of which a word has the last bits.
    #[inline]
    const fn frame(self, word: u16) -> Frame {
        let index = self.0 << FRAME_BITS | word as u32 & FRAME_MASK;
        Frame { device: DeviceId::new((self.0 >> DEVICE_SHIFT) as u8), index: FrameIndex::new(index) }
    }
}

/// The slots of a block, by windows and the frames in them.
pub(super) struct Near {
    /// State, window, frame of the window. All-zero is `System`.
    words: [u16; PageCount::BLOCK.as_usize()],
    /// That of a device, and that of the pool.
    windows: [Window; 2],
    counts: Counts,
    /// Pages that do not go on where those before them end.
    breaks: u16,
}

/// Whether a page with the word `next` goes on where one with `word` ends: both are the system's, or alike in frames that follow one another, which are
/// of one window then.
#[inline]
const fn goes_on(word: u16, next: u16) -> bool {
    if word == 0 { next == 0 } else { word as u32 & FRAME_MASK != FRAME_MASK && next == word + 1 }
}

impl Near {
    pub(super) fn new() -> Self {
        Self { words: [0; PageCount::BLOCK.as_usize()], windows: [Window(0); 2], counts: Counts::default(), breaks: 0 }
    }

    #[expect(
        clippy::inline_always,
        reason = "called for each page of a block: by itself a call costs as much as what it does"
    )]
    #[inline(always)]
    pub(super) fn get(&self, index: usize) -> Slot {
        let word = self.words[index];
        let frame = self.windows[usize::from(word >> WHICH_SHIFT & 1)].frame(word);
        match word >> TAG_SHIFT {
            TAG_MAPPED => Slot::Mapped(frame),
            TAG_UNMAPPED => Slot::Unmapped { frame, busy: false },
            TAG_BUSY => Slot::Unmapped { frame, busy: true },
            _ => Slot::System,
        }
    }

    /// Sets the state of page `index`, which was `was`; `false` if the frame is in another window than others. One that keeps its frame always can.
    #[expect(
        clippy::inline_always,
        reason = "called for each page of a block: by itself a call costs as much as what it does"
    )]
    #[inline(always)]
    pub(super) fn set(&mut self, index: usize, was: Slot, slot: Slot) -> bool {
        let Some(word) = self.word_of(slot, index..index + 1) else { return false };
        self.counts.change(was, slot);
        self.put(index, word);
        true
    }

    /// The same of the `pages` pages from `index` on: they were a run that began with `was`, and become one that begins with `slot`.
    pub(super) fn set_run(&mut self, index: usize, pages: PageCount, was: Slot, slot: Slot) -> bool {
        let behind = pages.get() - 1;
        if slot.frame().is_some_and(|frame| u64::from(frame.index.get() & FRAME_MASK) + behind > u64::from(FRAME_MASK))
        {
            return false;
        }
        let end = index + pages.as_usize();
        let Some(first) = self.word_of(slot, index..end) else { return false };
        self.counts.change_all(was, slot, pages);
        let step = u16::from(first != 0);
        // No run breaks inside, before or after.
        self.breaks -= self.breaks_beside(index, end);
        self.words[index..end].iter_mut().fold(first, |word, place| {
            *place = word;
            word.wrapping_add(step)
        });
        self.breaks += self.breaks_beside(index, end);
        true
    }

    /// How many of the first of the pages `from..to`, and the one behind them, do not go on where the page before them ends.
    fn breaks_beside(&self, from: usize, to: usize) -> u16 {
        let is_break = |at: usize| at > 0 && at < self.words.len() && !goes_on(self.words[at - 1], self.words[at]);
        u16::from(is_break(from)) + u16::from(is_break(to))
    }

    /// The word of the first of `pages`, which are to be a run that begins with `slot`; `None` if its frame is in another window than those of others.
    #[expect(clippy::inline_always, reason = "as of `set`")]
    #[inline(always)]
    fn word_of(&mut self, slot: Slot, pages: Range<usize>) -> Option<u16> {
        let (tag, frame) = match slot {
            Slot::System => return Some(0),
            Slot::Mapped(frame) => (TAG_MAPPED, frame),
            Slot::Unmapped { frame, busy: false } => (TAG_UNMAPPED, frame),
            Slot::Unmapped { frame, busy: true } => (TAG_BUSY, frame),
        };
        let which = u16::from(frame.device == SYSTEM_POOL);
        let window = Window::of(frame);
        if self.windows[usize::from(which)] != window && !self.open(which, pages, window) {
            return None;
        }
        Some(tag << TAG_SHIFT | which << WHICH_SHIFT | (frame.index.get() & FRAME_MASK) as u16)
    }

    #[inline]
    fn put(&mut self, index: usize, word: u16) {
        self.breaks -= breaks_around(&self.words, index, goes_on);
        self.words[index] = word;
        self.breaks += breaks_around(&self.words, index, goes_on);
    }

    pub(super) const fn breaks(&self) -> u16 {
        self.breaks
    }

    /// How many of the `pages` pages from index `first` on are one run.
    pub(super) fn run(&self, first: usize, pages: usize) -> usize {
        run_of(&self.words[first..][..pages], goes_on)
    }

    /// Checks what is counted.
    ///
    /// # Panics
    ///
    /// If it disagrees with the words.
    pub(super) fn check(&self) {
        assert_eq!(self.breaks, breaks_in(&self.words, goes_on), "runs match the slots");
    }

    /// Has `window` take the place of the one that was, if no page but `pages` is in that.
    #[cold]
    fn open(&mut self, which: u16, pages: Range<usize>, window: Window) -> bool {
        let mut words = self.words.iter().enumerate();
        let is_free = words.all(|(i, word)| *word == 0 || word >> WHICH_SHIFT & 1 != which || pages.contains(&i));
        if is_free {
            self.windows[usize::from(which)] = window;
        }
        is_free
    }

    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(device: u8, index: u32) -> Slot {
        Slot::Unmapped { frame: Frame { device: DeviceId::new(device), index: FrameIndex::new(index) }, busy: false }
    }

    fn set(near: &mut Near, page: usize, slot: Slot) -> bool {
        let was = near.get(page);
        let is_set = near.set(page, was, slot);
        assert_eq!(near.get(page), if is_set { slot } else { was });
        is_set
    }

    #[test]
    fn a_window_of_a_device_and_one_of_the_pool_fit_and_no_third() {
        let pool = u8::MAX;
        assert_eq!(DeviceId::new(pool), SYSTEM_POOL);
        for (index, far) in [(5, 1 << 20), (u32::MAX, 0), (0, FRAME_MASK + 1), (FRAME_MASK + 1, FRAME_MASK)] {
            let mut near = Near::new();
            let (device, pooled) = (rest(3, index), rest(pool, index));
            assert!(set(&mut near, 0, device) && set(&mut near, 1, pooled));
            for other in [rest(3, far), rest(2, index), rest(pool, far)] {
                assert!(!set(&mut near, 2, other), "{other:?}");
            }
            // The last page of a window can leave for anywhere, and one that keeps its frame stays.
            assert!(set(&mut near, 1, Slot::Mapped(device.frame().unwrap())));
            assert!(set(&mut near, 2, rest(pool, far)) && !set(&mut near, 0, rest(2, index)));
            assert!(set(&mut near, 0, Slot::System) && set(&mut near, 1, rest(2, far)));
            assert_eq!([0, 1, 2].map(|page| near.get(page)), [Slot::System, rest(2, far), rest(pool, far)]);
        }
    }
}

//! Packed pages, by frames.
//!
//! Everything is under one lock, for as long as it takes to copy a packed page: packing and unpacking are done outside of it. Nothing here allocates.

use hetmem_core::frames::Quota;
use hetmem_core::port::Packing;
use hetmem_core::units::{PAGE_SIZE, PageCount};
use hetmem_sys::copy::PageBytes;
use hetmem_sys::errno::Errno;

use super::contents::{Content, Contents};
use super::slabs::{PAGE, SLAB, SLAB_PAGES, Slabs};

/// What was found in a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// This word, over and over.
    Filled(u32),
    /// So many bytes, which are the page itself if there are as many.
    Packed(usize),
}

/// There is no room for a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NoRoom;

/// Where there was no room for a page.
#[derive(Clone, Copy)]
struct Refused {
    /// How many slabs were to be had then.
    slabs: u32,
    /// How many looks of [`Store::tidy`] it holds for still.
    looks: u32,
}

/// What refused a page may have been the machine, or another process, of which nobody is told: after so many looks it is tried again.
const HOLDS_FOR: u32 = 64;

/// All packed pages of a device.
pub(super) struct Store {
    contents: Contents,
    slabs: Slabs,
    /// Counted here: pages and packed bytes.
    counts: Packing,
    refused: Option<Refused>,
}

impl Store {
    /// A store of `frames` frames in at most `memory`, of which there is at least a slab.
    pub(super) fn new(frames: PageCount, memory: PageCount) -> Result<Self, Errno> {
        let (contents, slabs) = (Contents::new(frames)?, Slabs::new(memory)?);
        Ok(Self { contents, slabs, counts: Packing::default(), refused: None })
    }

    /// From now on memory is taken as far as `quota` has some.
    pub(super) fn count_with_others(&mut self, quota: Box<dyn Quota>) {
        self.slabs.count_with_others(quota);
    }

    /// What there is, and how well it is packed.
    pub(super) fn packing(&self) -> Packing {
        let [memory_limit_bytes, memory_bytes, peak_memory_bytes] = self.slabs.memory();
        let compacted_pages = self.slabs.compacted();
        Packing { memory_bytes, peak_memory_bytes, memory_limit_bytes, compacted_pages, ..self.counts }
    }

    /// Has `frame` be filled with `word`.
    pub(super) fn put_filled(&mut self, frame: u32, word: u32) -> Result<(), NoRoom> {
        self.remove(frame);
        self.contents.open(frame).map_err(|_| NoRoom)?;
        self.contents.set(frame, Content::Filled(word));
        self.counts.pages += 1;
        self.counts.same_filled_pages += 1;
        Ok(())
    }

    /// Has `frame` have `bytes`, which are a packed page, or a page.
    pub(super) fn put(&mut self, frame: u32, bytes: &[u8]) -> Result<(), NoRoom> {
        self.remove(frame);
        self.contents.open(frame).map_err(|_| NoRoom)?;
        self.slabs.put(frame, bytes, &mut self.contents).ok_or(NoRoom)?;
        self.counts.pages += 1;
        self.counts.packed_bytes += bytes.len() as u64;
        self.counts.raw_pages += u64::from(bytes.len() == PAGE);
        Ok(())
    }

    /// What `frame` has: bytes are copied to the beginning of `to`.
    pub(super) fn get(&self, frame: u32, to: &mut PageBytes) -> Found {
        match self.contents.get(frame) {
            Content::Empty => Found::Filled(0),
            Content::Filled(word) => Found::Filled(word),
            Content::Packed { slot, len } => {
                self.slabs.read(slot, &mut to[..len as usize]);
                Found::Packed(len as usize)
            }
        }
    }

    /// `frame` has nothing any more.
    pub(super) fn remove(&mut self, frame: u32) {
        match self.contents.get(frame) {
            Content::Empty => return,
            Content::Filled(_) => self.counts.same_filled_pages -= 1,
            Content::Packed { slot, len } => {
                self.slabs.give(slot, len as usize);
                self.counts.packed_bytes -= u64::from(len);
                self.counts.raw_pages -= u64::from(len as usize == PAGE);
            }
        }
        self.counts.pages -= 1;
        // It had something: its word is open.
        self.contents.set(frame, Content::Empty);
    }

    /// A page was refused, and what came with it is removed again: there is no room until there is more than now.
    pub(super) fn note_refused(&mut self) {
        self.refused = Some(Refused { slabs: self.slabs.to_be_had(), looks: HOLDS_FOR });
    }

    /// How many more pages there is room for, as far as one can say of pages that nobody has seen.
    pub(super) fn room(&self) -> PageCount {
        let slabs = self.slabs.to_be_had();
        // Without pages there is nothing to leave, and nobody would look.
        if self.counts.pages > 0 && self.refused.is_some_and(|refused| slabs <= refused.slabs) {
            return PageCount::ZERO;
        }
        // Those that come are taken to be like those that are there; before there are some, for such as can't be packed.
        let each = match self.counts.pages {
            few if few < SLAB_PAGES.get() => PAGE_SIZE,
            pages => (self.slabs.in_use() / pages).clamp(8, PAGE_SIZE),
        };
        PageCount::new(u64::from(slabs) * SLAB as u64 / each)
    }

    /// Does a little of what can be done when nobody waits.
    pub(super) fn tidy(&mut self) {
        self.slabs.tidy(&mut self.contents);
        self.refused = self.refused.and_then(|refused| {
            let looks = refused.looks.checked_sub(1)?;
            Some(Refused { looks, ..refused })
        });
    }

    /// Checks that books and pages agree.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.slabs.check(&self.contents);
        let (mut pages, mut filled, mut bytes) = (0, 0, 0);
        for frame in 0..u32::try_from(self.contents.capacity()).unwrap() {
            match self.contents.get(frame) {
                Content::Empty => continue,
                Content::Filled(_) => filled += 1,
                Content::Packed { len, .. } => bytes += u64::from(len),
            }
            pages += 1;
        }
        let counts = self.counts;
        assert_eq!((counts.pages, counts.same_filled_pages, counts.packed_bytes), (pages, filled, bytes));
    }
}

#[cfg(test)]
#[path = "store/tests.rs"]
mod tests;

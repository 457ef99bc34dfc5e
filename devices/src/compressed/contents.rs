//! What each frame has: a word of memory for each.

use hetmem_core::units::{ByteLen, PAGE_SIZE, PageCount};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::ByteArena;

use super::slabs::Slot;

/// What a frame has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Content {
    /// Nothing was put there: zeros.
    Empty,
    /// This word, over and over.
    Filled(u32),
    /// So many bytes in that slot.
    Packed { slot: Slot, len: u32 },
}

impl Content {
    const EMPTY: u64 = 0;
    const FILLED: u64 = 1;
    const PACKED: u64 = 2;

    /// ```text
    /// bits 32…  the word, or the slab; 16… length; 2… slot; 0… which
    /// ```
    const fn to_word(self) -> u64 {
        match self {
            Self::Empty => Self::EMPTY,
            Self::Filled(word) => (word as u64) << 32 | Self::FILLED,
            Self::Packed { slot: Slot { slab, number }, len } => {
                (slab as u64) << 32 | (len as u64) << 16 | (number as u64) << 2 | Self::PACKED
            }
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "parts of a word")]
    const fn of_word(word: u64) -> Self {
        match word & 3 {
            Self::FILLED => Self::Filled((word >> 32) as u32),
            Self::PACKED => {
                let slot = Slot { slab: (word >> 32) as u32, number: (word >> 2) as u32 & 0x3FFF };
                Self::Packed { slot, len: (word >> 16) as u32 & 0xFFFF }
            }
            _ => Self::Empty,
        }
    }
}

/// The contents of all frames.
pub(super) struct Contents {
    words: ByteArena,
}

impl Contents {
    /// Those of `frames` empty frames.
    pub(super) fn new(frames: PageCount) -> Result<Self, Errno> {
        let bytes = ByteLen::new((frames.get() * 8).next_multiple_of(PAGE_SIZE));
        Ok(Self { words: ByteArena::reserve(bytes.pages_down(), c"hetmem:compressed")? })
    }

    /// How many frames there can be.
    pub(super) fn capacity(&self) -> u64 {
        self.words.len() as u64 / 8
    }

    /// Sees to it that `frame` can have something.
    pub(super) fn open(&mut self, frame: u32) -> Result<(), Errno> {
        self.words.open(frame as usize * 8 + 8)
    }

    pub(super) fn get(&self, frame: u32) -> Content {
        let mut bytes = [0; 8];
        self.words.read(frame as usize * 8, &mut bytes);
        Content::of_word(u64::from_ne_bytes(bytes))
    }

    /// `frame`, which is open, has `content` from now on.
    pub(super) fn set(&mut self, frame: u32, content: Content) {
        self.words.write(frame as usize * 8, &content.to_word().to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_words() {
        let packed = |slab, number, len| Content::Packed { slot: Slot { slab, number }, len };
        for content in [
            Content::Empty,
            Content::Filled(0),
            Content::Filled(u32::MAX),
            packed(0, 0, 1),
            packed(u32::MAX - 1, (1 << 14) - 1, 4096),
        ] {
            assert_eq!(Content::of_word(content.to_word()), content);
        }
        assert_eq!(Content::of_word(0), Content::Empty);
    }
}

//! How warm memory is: what is known of which pages were used lately.
//!
//! A block has one [`Heat`], under its lock. It is told of touches by those who see them, and asked by policies, chunk by chunk ([`CHUNK_PAGES`]):
//! what was asked is forgotten, so that an answer says what came since.
//!
//! A source of heat is who calls `Heat::touch`, with the block locked, and has a row here:
//!
//! | source | sees |
//! | --- | --- |
//! | [`Engine::fault`](crate::engine::Engine::fault) and its like, by `BlockState::note_touch` | touches of pages in private frames |
//!
//! *Limits:* one bit a chunk: touched or not. Pages that are used where they are, in system memory or on a coherent device, show nothing.

use crate::space::Space;
use crate::units::{BLOCK_PAGES, PageRange};

/// The pages of a chunk (256 KiB): heat is known of no less.
pub const CHUNK_PAGES: u64 = BLOCK_PAGES / 8;

/// What is known of the chunks of one block.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heat(u8);

impl Heat {
    /// Notes that a touch brought page `index` (0 to 511) home.
    pub(crate) fn touch(&mut self, index: usize) {
        self.0 |= bit(index);
    }

    /// Whether something of the chunk that holds page `index` was touched since that was last taken.
    pub(crate) fn is_warm(self, index: usize) -> bool {
        self.0 & bit(index) != 0
    }

    /// Whether something of the chunk that holds page `index` was touched since this was asked last.
    pub(crate) fn take(&mut self, index: usize) -> bool {
        let was = self.0 & bit(index) != 0;
        self.0 &= !bit(index);
        was
    }
}

const fn bit(index: usize) -> u8 {
    1 << (index as u64 / CHUNK_PAGES)
}

impl Space {
    /// How warm `chunk`, which lies in one chunk, is, for people who look on: 0 (cold) to 255. Nothing is forgotten.
    #[must_use]
    pub fn warmth(&self, chunk: PageRange) -> u8 {
        let index = chunk.start().index_in_block();
        let is_warm = self.existing_block(chunk.start().block()).is_some_and(|block| block.lock().heat.is_warm(index));
        if is_warm { u8::MAX } else { 0 }
    }

    /// Whether something of `chunk`, which lies in one chunk, was touched since this was asked last.
    #[must_use]
    pub fn take_warmth(&self, chunk: PageRange) -> bool {
        let index = chunk.start().index_in_block();
        self.existing_block(chunk.start().block()).is_some_and(|block| block.lock().heat.take(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{BlockNo, PageCount};

    #[test]
    fn a_touch_warms_its_chunk_until_that_is_asked() {
        for index in [0, 63, 64, 300, 511] {
            let mut heat = Heat::default();
            heat.touch(index);
            let warm: Vec<usize> = (0..8).filter(|chunk| heat.take(chunk * 64 + 5)).collect();
            assert_eq!(warm, [index / 64]);
            assert!((0..512).all(|index| !heat.take(index)), "what was asked is forgotten");
        }
    }

    #[test]
    fn chunks_are_warm_each_by_itself() {
        let mut heat = Heat::default();
        (0..512).for_each(|index| heat.touch(index));
        assert!(heat.take(64));
        assert!(!heat.take(127), "the same chunk");
        assert!(heat.take(128) && heat.take(63));
    }

    #[test]
    fn what_was_never_migrated_is_cold_and_costs_no_block() {
        let space = Space::default();
        let chunk = BlockNo::new(7).range().slice(PageCount::new(64), PageCount::new(CHUNK_PAGES));
        assert!(!space.take_warmth(chunk) && space.blocks().is_empty());
        space.block(BlockNo::new(7)).lock().heat.touch(65);
        assert_eq!((space.warmth(chunk), space.warmth(chunk)), (255, 255), "a look on forgets nothing");
        assert!(space.take_warmth(chunk) && !space.take_warmth(chunk));
        assert_eq!(space.warmth(chunk), 0);
    }
}

//! Policies: which pages go where, and when.
//!
//! A policy is shown what there is and says what to do next; only migration acts. None of them knows an operating system or a clock.

use crate::heat::CHUNK_PAGES;
use crate::units::{PageCount, PageRange};

/// A small generator of random numbers (SplitMix64, by G. Steele, D. Lea and C. Flood), for choices that only need to be
/// various and repeatable.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence that `seed` begins.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which must not be zero.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Moves random chunks of everything to everywhere, without pause: the test of everything else.
#[derive(Clone, Debug)]
pub struct Chaos {
    random: Random,
}

/// The largest chunk that [`Chaos`] moves (256 KiB).
const CHAOS_PAGES: u64 = 64;

impl Chaos {
    /// The chaos that `seed` begins.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { random: Random::new(seed) }
    }

    /// A chunk of `ranges`, each page as likely as any other, and a number below `targets`; `None` if there is no page or no
    /// target.
    pub fn next(&mut self, ranges: &[PageRange], targets: u64) -> Option<(PageRange, u64)> {
        let total: PageCount = ranges.iter().map(|r| r.pages()).sum();
        if total.is_zero() || targets == 0 {
            return None;
        }
        let mut at = self.random.below(total.get());
        let chunk = ranges.iter().find_map(|range| {
            if at < range.pages().get() {
                // Chunks are aligned, so that they meet again.
                let first = range.start().get() / 4096 + at;
                let aligned = (first / CHAOS_PAGES * CHAOS_PAGES).max(range.start().get() / 4096);
                let skip = aligned - range.start().get() / 4096;
                return Some(range.slice(PageCount::new(skip), PageCount::new(CHAOS_PAGES)));
            }
            at -= range.pages().get();
            None
        })?;
        Some((chunk, self.random.below(targets)))
    }
}

/// The hand of a clock that goes round the managed memory in chunks: the chunk under it is evicted, or given a second chance if
/// it was brought home since the hand came by last.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    hand: u64,
}

impl Clock {
    /// The next chunk under the hand; `None` if there is no page. `ranges` are in order of address.
    pub fn next(&mut self, ranges: &[PageRange]) -> Option<PageRange> {
        let chunk_bytes = CHUNK_PAGES * 4096;
        let under = ranges.iter().find(|r| r.end().get() > self.hand).or_else(|| {
            self.hand = 0;
            ranges.iter().find(|r| !r.is_empty())
        })?;
        let start = under.start().get().max(self.hand);
        let end = (start / chunk_bytes + 1) * chunk_bytes;
        self.hand = end.min(under.end().get());
        PageRange::between(crate::units::VirtAddr::new(start), crate::units::VirtAddr::new(self.hand))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::VirtAddr;

    fn range(page: u64, pages: u64) -> PageRange {
        PageRange::new(VirtAddr::new(page * 4096), PageCount::new(pages)).unwrap()
    }

    #[test]
    fn chaos_reaches_every_page_and_target_and_stays_inside() {
        let ranges = [range(10, 3), range(500, 200)];
        let mut chaos = Chaos::new(1);
        let mut seen = std::collections::BTreeSet::new();
        let mut targets = std::collections::BTreeSet::new();
        for _ in 0..2000 {
            let (chunk, target) = chaos.next(&ranges, 3).unwrap();
            assert!(ranges.iter().any(|r| r.contains_range(chunk)) && !chunk.is_empty());
            seen.extend(chunk.iter());
            targets.insert(target);
        }
        assert_eq!((seen.len(), targets.len()), (203, 3));
        assert!(chaos.next(&[], 3).is_none());
    }

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let ranges = [range(0, 10_000)];
        let run = || (0..50).scan(Chaos::new(7), |c, _| c.next(&ranges, 4)).collect::<Vec<_>>();
        assert_eq!(run(), run());
    }

    #[test]
    fn the_hand_covers_everything_once_a_round() {
        let ranges = [range(10, 100), range(700, 70)];
        let mut clock = Clock::default();
        let mut pages = Vec::new();
        while pages.len() < 170 {
            let chunk = clock.next(&ranges).unwrap();
            assert!(chunk.pages().get() <= CHUNK_PAGES && !chunk.is_empty());
            pages.extend(chunk.iter());
        }
        let expected: Vec<_> = ranges.iter().flat_map(|r| r.iter()).collect();
        assert_eq!(pages, expected);
        assert_eq!(clock.next(&ranges).unwrap().start(), ranges[0].start(), "and round again");
        assert!(clock.next(&[]).is_none());
    }
}

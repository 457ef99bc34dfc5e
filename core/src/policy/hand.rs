//! A hand that goes round the managed memory.

use crate::units::{PAGE_SIZE, PageRange, VirtAddr};

/// Where it is.
#[derive(Debug, Default)]
pub(super) struct Hand {
    at: u64,
}

impl Hand {
    /// What is under the hand: up to the next multiple of `pages` pages, or to the end of the range; and the hand goes on. `None` if there is no page.
    /// `ranges` are in order of address.
    pub(super) fn next(&mut self, ranges: &[PageRange], pages: u64) -> Option<PageRange> {
        let step = pages * PAGE_SIZE;
        let from = |at: u64| {
            let next = ranges.partition_point(|range| range.end().get() <= at);
            ranges[next..].iter().find(|range| !range.is_empty())
        };
        let range = from(self.at).or_else(|| {
            self.at = 0;
            from(0)
        })?;
        let start = range.start().get().max(self.at);
        self.at = ((start / step + 1) * step).min(range.end().get());
        PageRange::between(VirtAddr::new(start), VirtAddr::new(self.at))
    }

    /// What is before `at` was dealt with.
    pub(super) fn skip_to(&mut self, at: VirtAddr) {
        self.at = at.get();
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::range;
    use super::*;

    #[test]
    fn the_hand_covers_everything_once_a_round() {
        let ranges = [range(10, 100), range(300, 0), range(700, 70)];
        for most in [1, 64, 512] {
            let mut hand = Hand::default();
            let mut pages = Vec::new();
            while pages.len() < 170 {
                let part = hand.next(&ranges, most).unwrap();
                assert!(part.pages().get() <= most && !part.is_empty());
                pages.extend(part.iter());
            }
            let expected: Vec<_> = ranges.iter().flat_map(|range| range.iter()).collect();
            assert_eq!(pages, expected);
            assert_eq!(hand.next(&ranges, most).unwrap().start(), ranges[0].start(), "and round again");
            assert!(hand.next(&[], most).is_none());
        }
    }
}

//! A map from disjoint page ranges to values: the regions, and whatever else is said of stretches of address space.
//!
//! A later insertion overwrites what it overlaps, splitting ranges at its ends. Neighbours with equal values stay apart;
//! the caller that wants them joined asks for it.

use std::collections::BTreeMap;

use crate::units::{PageRange, VirtAddr};

/// Values by disjoint page ranges.
#[derive(Clone, Debug)]
pub struct RangeMap<T> {
    // Invariant: ranges are non-empty and disjoint; the key is the start of its range.
    ranges: BTreeMap<VirtAddr, (PageRange, T)>,
}

impl<T> Default for RangeMap<T> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new() }
    }
}

impl<T: Clone> RangeMap<T> {
    /// The value at `addr` and the range it holds for.
    #[must_use]
    pub fn get(&self, addr: VirtAddr) -> Option<(PageRange, &T)> {
        let (_, (range, value)) = self.ranges.range(..=addr).next_back()?;
        range.contains(addr).then_some((*range, value))
    }

    /// The ranges that overlap `within`, whole, in order.
    pub fn overlapping(&self, within: PageRange) -> impl Iterator<Item = (PageRange, &T)> {
        let from = self.get(within.start()).map_or(within.start(), |(range, _)| range.start());
        self.ranges
            .range(from..)
            .map(|(_, (range, value))| (*range, value))
            .take_while(move |(range, _)| range.start() < within.end())
    }

    /// All ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = (PageRange, &T)> {
        self.ranges.values().map(|(range, value)| (*range, value))
    }

    /// Sets `value` for `range`, over whatever was there.
    pub fn insert(&mut self, range: PageRange, value: T) {
        self.remove(range);
        if !range.is_empty() {
            self.ranges.insert(range.start(), (range, value));
        }
    }

    /// Removes what lies in `range` and returns the removed pieces.
    pub fn remove(&mut self, range: PageRange) -> Vec<(PageRange, T)> {
        let hit: Vec<VirtAddr> = self.overlapping(range).map(|(r, _)| r.start()).collect();
        let mut removed = Vec::with_capacity(hit.len());
        for start in hit {
            let Some((old, value)) = self.ranges.remove(&start) else { continue };
            for rest in [PageRange::between(old.start(), range.start()), PageRange::between(range.end(), old.end())] {
                if let Some(rest) = rest.filter(|r| !r.is_empty()) {
                    self.ranges.insert(rest.start(), (rest, value.clone()));
                }
            }
            if let Some(cut) = old.intersect(range) {
                removed.push((cut, value));
            }
        }
        removed
    }

    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }
}

/// How often each page was raised, and not lowered again: claims, exclusions. [`u32::MAX`] stays.
impl RangeMap<u32> {
    /// Adds one for each page of `range`.
    pub fn raise(&mut self, range: PageRange) {
        let mut at = range.start();
        for (part, count) in self.remove(range) {
            self.extend(at, part.start(), 1);
            at = part.end();
            self.insert(part, count.saturating_add(1));
        }
        self.extend(at, range.end(), 1);
    }

    /// Takes one from each page of `range` that has any.
    pub fn lower(&mut self, range: PageRange) {
        for (part, count) in self.remove(range) {
            match count {
                u32::MAX => self.insert(part, count),
                0 | 1 => {}
                _ => self.insert(part, count - 1),
            }
        }
    }

    fn extend(&mut self, from: VirtAddr, to: VirtAddr, count: u32) {
        if let Some(gap) = PageRange::between(from, to) {
            self.insert(gap, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{PAGE_SIZE, PageCount};
    use proptest::prelude::*;

    fn range(start: u64, pages: u64) -> PageRange {
        PageRange::new(VirtAddr::new(start * PAGE_SIZE), PageCount::new(pages)).unwrap()
    }

    proptest! {
        /// Against an array with one cell a page.
        #[test]
        fn counts_like_an_array(ops in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 1..80)) {
            let mut map = RangeMap::default();
            let mut oracle = [0u32; 80];
            for (raise, start, pages) in ops {
                if raise { map.raise(range(start, pages)); } else { map.lower(range(start, pages)); }
                for p in start..start + pages {
                    let cell = &mut oracle[usize::try_from(p).unwrap()];
                    *cell = if raise { *cell + 1 } else { cell.saturating_sub(1) };
                }
                for (p, cell) in oracle.iter().enumerate() {
                    let got = map.get(VirtAddr::new(p as u64 * PAGE_SIZE)).map_or(0, |(_, n)| *n);
                    prop_assert_eq!(got, *cell);
                }
            }
        }

        /// Against an array with one cell a page.
        #[test]
        fn behaves_like_an_array(ops in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20, any::<u8>()), 1..80)) {
            let mut map = RangeMap::default();
            let mut oracle = [None; 80];
            for (insert, start, pages, value) in ops {
                let r = range(start, pages);
                if insert { map.insert(r, value); } else {
                    let removed: u64 = map.remove(r).iter().map(|(r, _)| r.pages().get()).sum();
                    let expected = (start..start + pages).filter(|&p| oracle[usize::try_from(p).unwrap()].is_some()).count();
                    prop_assert_eq!(removed, expected as u64);
                }
                for p in start..start + pages { oracle[usize::try_from(p).unwrap()] = insert.then_some(value); }
                for (p, cell) in oracle.iter().enumerate() {
                    let got = map.get(VirtAddr::new(p as u64 * PAGE_SIZE)).map(|(_, v)| *v);
                    prop_assert_eq!(got, *cell);
                }
                let within = range(10, 30);
                let listed: u64 = map.overlapping(within).filter_map(|(r, _)| r.intersect(within)).map(|r| r.pages().get()).sum();
                prop_assert_eq!(listed, oracle[10..40].iter().filter(|c| c.is_some()).count() as u64);
            }
        }
    }
}

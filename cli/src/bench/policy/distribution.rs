//! How often each page is used: known exactly, so that a placement can be judged.
//!
//! A distribution gives each *unit* a share of the accesses: a page, or 512 of them where pages are huge. [`Distribution::draw`] takes one at random
//! by the alias method (M. D. Vose, 1991): one look into a table, whatever the shares.

use std::cmp::Ordering;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use hetmem_core::policy::Random;

use crate::bench::samples::float;
use crate::bench::setup::shuffled;

/// The exponent of `zipf`, as YCSB has it.
const EXPONENT: f64 = 0.99;
/// One of so many units is hot in `scan`.
const HOT_PART: usize = 16;
/// One of so many accesses of `scan` is the scan's.
pub(super) const SCAN_EVERY: u64 = 64;

/// What each unit's share is proportional to.
#[derive(Debug)]
pub(super) struct Weights(Vec<f64>);

impl Weights {
    /// All alike.
    pub(super) fn uniform(units: usize) -> Self {
        Self(vec![1.0; units])
    }

    /// The n-th hottest unit by n to the power of -0.99; which is the n-th, `seed` determines.
    pub(super) fn zipf(units: usize, seed: u64) -> Self {
        let mut weights = vec![0.0; units];
        for (rank, unit) in (1..).zip(shuffled(units, seed)) {
            weights[unit] = float(rank).powf(-EXPONENT);
        }
        Self(weights)
    }

    /// A sixteenth of the units, all alike, and none of the others.
    pub(super) fn hot(units: usize, seed: u64) -> Self {
        let mut weights = vec![0.0; units];
        for unit in shuffled(units, seed).into_iter().take((units / HOT_PART).max(1)) {
            weights[unit] = 1.0;
        }
        Self(weights)
    }

    /// The share of each, if one of [`SCAN_EVERY`] accesses goes to all alike; the sum is 1.
    pub(super) fn shares(&self, with_scan: bool) -> Vec<f64> {
        let sum: f64 = self.0.iter().sum();
        let scanned = if with_scan { 1.0 / float(SCAN_EVERY) } else { 0.0 };
        let of_scan = scanned / float(self.0.len() as u64);
        self.0.iter().map(|weight| weight / sum * (1.0 - scanned) + of_scan).collect()
    }
}

/// The share of the accesses to the `most` units that have most of them; the last counts in part.
pub(super) fn ideal(shares: &[f64], most: f64) -> f64 {
    let mut sorted = shares.to_vec();
    sorted.sort_by(|a, b| b.partial_cmp(a).unwrap_or(Ordering::Equal));
    let mut left = most;
    let mut sum = 0.0;
    for share in sorted {
        let part = left.clamp(0.0, 1.0);
        sum += share * part;
        left -= part;
    }
    sum
}

/// A table of a word for each unit, in memory that somebody else has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Distribution<'a>(&'a [AtomicU64]);

impl<'a> Distribution<'a> {
    /// Fills `table`, which has a word for each of `weights`.
    pub(super) fn fill(table: &'a [AtomicU64], weights: &Weights) -> Self {
        let Weights(weights) = weights;
        let mean = weights.iter().sum::<f64>() / float(weights.len() as u64);
        let mut left: Vec<f64> = weights.iter().map(|weight| weight / mean).collect();
        let (mut low, mut high): (Vec<usize>, Vec<usize>) = (0..left.len()).partition(|unit| left[*unit] < 1.0);
        while let Some(alias) = high.last().copied()
            && let Some(unit) = low.pop()
        {
            set(&table[unit], left[unit], alias);
            left[alias] -= 1.0 - left[unit];
            if left[alias] < 1.0 {
                low.extend(high.pop());
            }
        }
        // Of both only what is exactly one is left, but for rounding.
        for unit in low.into_iter().chain(high) {
            set(&table[unit], 1.0, unit);
        }
        Self(table)
    }

    /// The unit that `random`, any 64 bits, draws.
    #[inline]
    pub(super) fn draw(self, random: u64) -> u64 {
        let unit = ((random >> 32) * self.0.len() as u64) >> 32;
        // Always inside: the high half times the length, divided by 2^32.
        let word = self.0.get(usize::try_from(unit).unwrap_or(0)).map_or(0, |word| word.load(Relaxed));
        if (random & u64::from(u32::MAX)) < word >> 32 { unit } else { word & u64::from(u32::MAX) }
    }
}

/// `unit` itself with probability `own`, else `alias`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 2^32 - 1")]
fn set(word: &AtomicU64, own: f64, alias: usize) {
    let threshold = (own * 4_294_967_296.0).clamp(0.0, 4_294_967_295.0) as u64;
    word.store(threshold << 32 | alias as u64, Relaxed);
}

/// Numbers drawn for accesses: two of each, as a unit takes all bits of one.
#[derive(Debug)]
pub(super) struct Draws(Random);

impl Draws {
    pub(super) const fn new(seed: u64) -> Self {
        Self(Random::new(seed))
    }

    #[inline]
    pub(super) const fn next(&mut self) -> (u64, u64) {
        (self.0.next(), self.0.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(count: usize) -> Vec<AtomicU64> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn units_are_drawn_by_their_shares() {
        const DRAWS: u32 = 2_000_000;
        for weights in [Weights::zipf(100, 3), Weights::uniform(100), Weights::hot(100, 3)] {
            let table = words(100);
            let distribution = Distribution::fill(&table, &weights);
            let mut draws = Draws::new(5);
            let mut counts = [0_u32; 100];
            for _ in 0..DRAWS {
                counts[usize::try_from(distribution.draw(draws.next().0)).unwrap()] += 1;
            }
            for (share, count) in weights.shares(false).into_iter().zip(counts) {
                let expected = share * f64::from(DRAWS);
                // Five deviations of a Poisson distribution.
                assert!((f64::from(count) - expected).abs() <= 5.0 * expected.sqrt(), "{count}, not {expected}");
            }
        }
    }

    #[test]
    fn shares_add_up_and_a_scan_leaves_nobody_out() {
        for with_scan in [false, true] {
            let shares = Weights::hot(1000, 1).shares(with_scan);
            assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            assert_eq!(shares.iter().filter(|share| **share > 1e-3).count(), 1000 / HOT_PART);
            assert_eq!(shares.contains(&0.0), !with_scan);
        }
    }

    #[test]
    fn the_ideal_has_the_hottest_and_of_the_last_a_part() {
        let shares = [0.1, 0.5, 0.4];
        for (most, share) in [(0.0, 0.0), (1.0, 0.5), (1.5, 0.7), (2.0, 0.9), (3.0, 1.0), (9.0, 1.0)] {
            assert!((ideal(&shares, most) - share).abs() < 1e-12, "{most}");
        }
        let uniform = Weights::uniform(1000).shares(false);
        assert!((ideal(&uniform, 250.0) - 0.25).abs() < 1e-9);
    }

    #[test]
    fn zipf_is_scattered_and_half_of_it_is_in_few_pages() {
        let shares = Weights::zipf(1 << 16, 7).shares(false);
        assert!(ideal(&shares, 1000.0) > 0.6);
        let in_front: f64 = shares[..1 << 15].iter().sum();
        assert!((0.2..0.8).contains(&in_front), "hot pages are not side by side: {in_front}");
    }
}

//! Statistics: medians, spreads, quantiles, and ratios round by round.
//!
//! Times on a shared machine have a long upper tail and no normal distribution: a median with its spread says what a
//! mean with a deviation would hide.

use serde::Serialize;

/// One figure for each round.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Samples(Vec<f64>);

/// The middle and the ends of some samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Samples {
    /// None yet.
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds the figure of the next round.
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// The figures, in the order of the rounds.
    #[cfg(test)]
    fn values(&self) -> &[f64] {
        &self.0
    }

    /// Whether there are none.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all are as `is` says.
    pub(super) fn all(&self, is: impl Fn(f64) -> bool) -> bool {
        self.0.iter().all(|value| is(*value))
    }

    /// What they come to; `None` if there are none.
    pub(super) fn summary(&self) -> Option<Summary> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (below, above) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Summary { median: f64::midpoint(below, above), min, max })
    }

    /// What `combine` makes of this and `other`, round by round. Rounds that only one of them has are left out.
    pub(super) fn map_with(&self, other: &Self, combine: impl Fn(f64, f64) -> f64) -> Self {
        self.0.iter().zip(&other.0).map(|(a, b)| combine(*a, *b)).collect()
    }

    /// This over `base`, round by round. Rounds that only one of them has are left out.
    pub(super) fn over(&self, base: &Self) -> Self {
        self.map_with(base, |a, b| a / b)
    }

    /// This without `base`, round by round. Rounds that only one of them has are left out.
    pub(super) fn minus(&self, base: &Self) -> Self {
        self.map_with(base, |a, b| a - b)
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// The value that `permille` thousandths of `sorted` don't exceed (nearest rank); 0 if there are none.
pub(super) fn quantile(sorted: &[u64], permille: usize) -> u64 {
    let rank = (sorted.len() * permille).div_ceil(1000).max(1);
    sorted.get(rank - 1).copied().unwrap_or(0)
}

/// `value` as a float; exact for all that is measured here (below 2^53).
#[expect(clippy::cast_precision_loss, reason = "counts and nanoseconds stay far below 2^53")]
pub(super) fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use hetmem_core::policy::Random;

    fn samples(values: &[f64]) -> Samples {
        values.iter().copied().collect()
    }

    #[test]
    fn the_median_is_the_middle_or_half_way_between_the_two() {
        assert_eq!(samples(&[3.0, 1.0, 2.0]).summary(), Some(Summary { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(samples(&[4.0, 1.0, 2.0, 8.0]).summary(), Some(Summary { median: 3.0, min: 1.0, max: 8.0 }));
        assert_eq!(samples(&[5.0]).summary(), Some(Summary { median: 5.0, min: 5.0, max: 5.0 }));
        assert_eq!(samples(&[]).summary(), None);
    }

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        // One slow round hits both sides: the ratio doesn't show it, as a ratio of medians over other rounds might.
        let (a, b) = (samples(&[2.0, 20.0, 2.0]), samples(&[1.0, 10.0, 1.0]));
        assert_eq!(a.over(&b).summary(), Some(Summary { median: 2.0, min: 2.0, max: 2.0 }));
        assert_eq!(samples(&[1.0, 2.0]).over(&samples(&[1.0])).values(), [1.0]);
    }

    #[test]
    fn a_difference_is_taken_round_by_round() {
        let (a, b) = (samples(&[2.0, 20.0, 3.0]), samples(&[1.0, 18.0]));
        assert_eq!(a.minus(&b).values(), [1.0, 2.0]);
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let sorted: Vec<u64> = (1..=1000).collect();
        assert_eq!((quantile(&sorted, 500), quantile(&sorted, 990), quantile(&sorted, 1000)), (500, 990, 1000));
        assert_eq!((quantile(&[7], 1), quantile(&[7], 999), quantile(&[], 500)), (7, 7, 0));
    }

    #[test]
    fn half_of_the_samples_lie_on_either_side_of_the_median() {
        let mut random = Random::new(11);
        for n in 1..200 {
            let samples: Samples = (0..n).map(|_| float(random.below(50))).collect();
            let summary = samples.summary().unwrap();
            let below = samples.values().iter().filter(|v| **v <= summary.median).count();
            let above = samples.values().iter().filter(|v| **v >= summary.median).count();
            assert!(2 * below >= n && 2 * above >= n, "{samples:?}");
            assert!(summary.min <= summary.median && summary.median <= summary.max);
        }
    }
}

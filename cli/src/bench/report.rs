//! What was found: rows of samples, ratios against other rows, targets. Its JSON is the file that `--json` writes.

use serde::Serialize;

use super::machine::Machine;
use super::rounds::Plan;
use super::samples::{Samples, Summary};

/// Everything that a run found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    pub(super) machine: Machine,
    pub(super) quick: bool,
    pub(super) rounds: usize,
    pub(super) notes: Vec<String>,
    pub(super) sections: Vec<Section>,
}

impl Report {
    pub(super) fn new(machine: Machine, plan: &Plan) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            machine,
            quick: plan.quick,
            rounds: plan.rounds,
            notes: plan.notes.clone(),
            sections: Vec::new(),
        }
    }
}

/// What one measurement found.
#[derive(Debug, Serialize)]
pub(super) struct Section {
    pub(super) name: &'static str,
    /// What was measured, in a line.
    pub(super) what: String,
    pub(super) notes: Vec<String>,
    pub(super) seconds: f64,
    pub(super) rows: Vec<Row>,
}

impl Section {
    pub(super) fn new(name: &'static str, what: String) -> Self {
        Self { name, what, notes: Vec::new(), seconds: 0.0, rows: Vec::new() }
    }
}

/// One figure, measured in every round.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) samples: Samples,
    #[serde(flatten)]
    pub(super) summary: Option<Summary>,
    /// For a figure that stands for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target: Option<Verdict>,
    pub(super) ratios: Vec<Ratio>,
}

/// A row against another, round by round.
#[derive(Debug, Serialize)]
pub(super) struct Ratio {
    pub(super) against: &'static str,
    pub(super) samples: Samples,
    #[serde(flatten)]
    pub(super) summary: Option<Summary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) target: Option<Verdict>,
}

/// What a median should be.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// A target, and whether it is met.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub(super) struct Verdict {
    #[serde(flatten)]
    pub(super) target: Target,
    pub(super) outcome: Outcome,
}

/// Whether a target is met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// In every round.
    Met,
    /// The median meets it, and not all rounds do.
    MetByTheMedian,
    /// The median does not, and some rounds do.
    MissedByTheMedian,
    /// In every round.
    Missed,
}

impl Target {
    fn judge(self, summary: Option<Summary>) -> Verdict {
        let meets = |figure: f64| match self {
            Self::AtLeast(least) => figure >= least,
            Self::AtMost(most) => figure <= most,
        };
        let outcome =
            match summary.map(|s| (meets(s.min) && meets(s.max), meets(s.median), meets(s.min) || meets(s.max))) {
                Some((true, ..)) => Outcome::Met,
                Some((_, true, _)) => Outcome::MetByTheMedian,
                Some((_, _, true)) => Outcome::MissedByTheMedian,
                Some(_) | None => Outcome::Missed,
            };
        Verdict { target: self, outcome }
    }
}

impl Row {
    pub(super) fn new(name: impl Into<String>, unit: &'static str, samples: Samples) -> Self {
        let summary = samples.summary();
        Self { name: name.into(), unit, samples, summary, target: None, ratios: Vec::new() }
    }

    /// Says what the figure itself should be.
    pub(super) fn aim(mut self, target: Target) -> Self {
        self.target = Some(target.judge(self.summary));
        self
    }

    /// Adds the ratio to `base`, which was measured in the same rounds, and says what it should be, if anything.
    pub(super) fn against(mut self, name: &'static str, base: &Samples, target: Option<Target>) -> Self {
        let samples = self.samples.over(base);
        let summary = samples.summary();
        let target = target.map(|target| target.judge(summary));
        self.ratios.push(Ratio { against: name, samples, summary, target });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        values.iter().copied().collect()
    }

    #[test]
    fn a_target_is_met_if_every_round_meets_it() {
        let ten = samples(&[10.0, 10.0, 10.0]);
        let judged = |figures: &[f64], target| {
            Row::new("a", "GB/s", samples(figures)).against("b", &ten, Some(target)).ratios[0].target.unwrap().outcome
        };
        assert_eq!(judged(&[8.0, 9.0, 8.5], Target::AtLeast(0.8)), Outcome::Met);
        assert_eq!(judged(&[8.0, 9.0, 1.0], Target::AtLeast(0.8)), Outcome::MetByTheMedian);
        assert_eq!(judged(&[8.0, 9.0, 1.0], Target::AtMost(0.7)), Outcome::MissedByTheMedian);
        assert_eq!(judged(&[8.0, 9.0, 7.5], Target::AtMost(0.7)), Outcome::Missed);
        let none = Row::new("none", "B", samples(&[])).aim(Target::AtMost(1.0));
        assert_eq!(none.target.unwrap().outcome, Outcome::Missed);
    }

    #[test]
    fn json_names_the_target_and_whether_it_is_met() {
        let row = Row::new("a", "B", samples(&[1.0])).aim(Target::AtMost(24.0));
        let json = serde_json::to_value(&row).unwrap();
        assert_eq!(json["target"]["at_most"], 24.0);
        assert_eq!(json["target"]["outcome"], "met");
        assert_eq!(json["median"], 1.0);
        assert_eq!(json["samples"][0], 1.0);
    }
}

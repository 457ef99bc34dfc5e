//! How the time of a migration grows: with the size, with the number of mappings, with the threads that migrate at once.
//!
//! ```text
//! sizes      one mapping, a part of it at a time, each four times as large as the one before
//! mappings   many small mappings in one request, against one of the same size
//! threads    as much by more threads, each a part of its own
//! ```
//!
//! Each round takes every step, so that one *exponent* comes of each round: the slope of the logarithm of time over that of what grows, by least
//! squares. It is 1 where time is proportional to it, 2 where each looks at all others, 0 where time does not depend on it.
//!
//! It is taken of memory that is warm: a first migration pays for frames that the machine may have to get from its own host, the more the larger it is.
//!
//! *Limits:* memory for the largest step has to be free four times over, and steps beyond that are left out.

mod mappings;
mod sizes;
mod threads;

use std::time::Duration;

use hetmem::{ByteLen, PageRange, Request, Runtime};

use super::report::{Row, Section, Target};
use super::rounds::{Plan, timed};
use super::samples::{Samples, float};
use super::setup::{home, moved_and_kept, to_device};
use crate::failure::Failure;
use crate::host;
use crate::progress::Progress;

/// The types of device that are tried, one after the other.
const TYPES: [&str; 2] = ["coherent", "private"];
const DIRECTIONS: [&str; 2] = ["out", "back"];
/// What time may grow with, at most, where it is to be linear: with room for caches that what is small fits into.
const LINEAR: Target = Target::AtMost(1.1);

pub(super) fn run(plan: &Plan, progress: &Progress) -> Result<Section, Failure> {
    let what = "time against size, number of mappings, and threads; the exponent is 1 where it is proportional";
    let mut section = Section::new("scale", what.to_owned());
    for kind in TYPES {
        sizes::run(kind, plan, progress, &mut section)?;
    }
    for kind in TYPES {
        mappings::run(kind, plan, progress, &mut section)?;
    }
    for kind in TYPES {
        threads::run(kind, plan, progress, &mut section)?;
    }
    Ok(section)
}

/// Rounds that count: fewer than of others, as the largest step takes long, and an exponent comes of several figures.
fn rounds(plan: &Plan) -> usize {
    plan.rounds.min(5)
}

/// How much may be migrated at once: the program's memory, as much on a device, and what is in transit have to find room.
fn room() -> ByteLen {
    const FOOTPRINT: u64 = 4;
    host::meminfo("MemAvailable").map_or(ByteLen::new(1 << 30), |free| ByteLen::new(free.get() / FOOTPRINT))
}

/// A value of what grows.
#[derive(Clone, Debug)]
struct Step {
    name: String,
    value: u64,
    /// Bytes that are migrated.
    bytes: u64,
}

/// Figures of one direction, from round to round.
struct Series {
    /// By steps, in GB/s.
    speeds: Vec<Samples>,
    exponents: Samples,
}

/// What grows, and how the times of migrations to a device and back grow with it.
struct Growth {
    steps: Vec<Step>,
    /// By directions.
    series: [Series; 2],
}

impl Growth {
    fn new(steps: Vec<Step>) -> Self {
        let series = || Series { speeds: steps.iter().map(|_| Samples::new()).collect(), exponents: Samples::new() };
        Self { series: [series(), series()], steps }
    }

    /// Adds a round: how long each step took, out and back.
    fn push(&mut self, round: &[[Duration; 2]]) {
        for (direction, series) in self.series.iter_mut().enumerate() {
            let seconds = || round.iter().map(|times| times[direction].as_secs_f64());
            for ((step, speeds), seconds) in self.steps.iter().zip(&mut series.speeds).zip(seconds()) {
                speeds.push(float(step.bytes) / 1e9 / seconds);
            }
            let points = self.steps.iter().map(|step| float(step.value)).zip(seconds());
            if let Some(exponent) = slope(points.map(|(value, seconds)| (value.ln(), seconds.ln()))) {
                series.exponents.push(exponent);
            }
        }
    }

    /// The rows of a direction: each step's speed, by `compare` with what it is compared with, and the exponent.
    fn report(self, of: &str, kind: &str, target: Option<Target>, section: &mut Section, compare: impl Compare) {
        for ((number, series), direction) in self.series.iter().enumerate().zip(DIRECTIONS) {
            for (i, (step, speeds)) in self.steps.iter().zip(&series.speeds).enumerate() {
                let row = Row::new(format!("{} {kind} {direction}", step.name), "GB/s", speeds.clone());
                section.rows.push(compare(row, number, i));
            }
            if self.steps.len() > 1 {
                let row = Row::new(format!("{of} {kind} {direction}"), "exponent", series.exponents.clone());
                section.rows.push(match target {
                    Some(target) => row.aim(target),
                    None => row,
                });
            }
        }
    }
}

/// Adds to the row of a direction and a step what it is compared with.
trait Compare: Fn(Row, usize, usize) -> Row {}

impl<F: Fn(Row, usize, usize) -> Row> Compare for F {}

/// The slope of the line through `points` from which their squared distances are least; `None` of fewer than two.
fn slope(points: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let (mut n, mut x, mut y, mut xx, mut xy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (at, value) in points {
        (n, x, y, xx, xy) = (n + 1.0, x + at, y + value, xx + at * at, xy + at * value);
    }
    (n > 1.0).then(|| (n * xy - x * y) / (n * xx - x * x))
}

/// Migrates `ranges` to device 0 and home: how long each took. Pages that were kept are noted.
fn there_and_back(runtime: &Runtime, ranges: &[PageRange], kept: &mut u64) -> [Duration; 2] {
    [to_device(0), home()].map(|request: Request| {
        let (time, outcomes) = timed(|| runtime.migrate_all(ranges, request));
        *kept += moved_and_kept(&outcomes).1;
        time
    })
}

/// Says that pages were kept, if any.
fn note_kept(kept: u64, what: &str, section: &mut Section) {
    if kept > 0 {
        section.notes.push(format!("{what}: {kept} pages were kept where they were"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exponent(times: impl Fn(f64) -> f64) -> f64 {
        let values = [64.0, 256.0, 1024.0, 4096.0_f64];
        slope(values.iter().map(|value| (value.ln(), times(*value).ln()))).unwrap()
    }

    #[test]
    fn the_exponent_is_that_of_the_power_whatever_the_factor() {
        for (power, factor) in [(1.0, 3.0), (2.0, 1e-6), (0.5, 1.0), (0.0, 7.0)] {
            assert!((exponent(|value| factor * value.powf(power)) - power).abs() < 1e-9);
        }
        assert!(exponent(|value| value + 0.01 * value * value) > 1.5);
        assert_eq!(slope([(1.0, 1.0)].into_iter()), None);
    }

    #[test]
    fn a_round_gives_each_step_a_speed_and_each_direction_an_exponent() {
        let step = |value: u64| Step { name: value.to_string(), value, bytes: value * 1_000_000_000 };
        let mut growth = Growth::new(vec![step(1), step(2), step(4)]);
        // Out is linear, back takes as long whatever the size.
        growth.push(&[1, 2, 4].map(|n| [Duration::from_secs(n), Duration::from_secs(1)]));
        let mut section = Section::new("scale", String::new());
        growth.report("size", "private", Some(LINEAR), &mut section, |row, _, _| row);
        let found: Vec<(&str, f64)> =
            section.rows.iter().map(|row| (row.name.as_str(), row.summary.unwrap().median.round())).collect();
        assert_eq!(
            found,
            [
                ("1 private out", 1.0),
                ("2 private out", 1.0),
                ("4 private out", 1.0),
                ("size private out", 1.0),
                ("1 private back", 1.0),
                ("2 private back", 2.0),
                ("4 private back", 4.0),
                ("size private back", 0.0),
            ]
        );
    }
}

//! Figures of a case, from round to round, and the rows that they make.

use super::cases::{Case, PageSize};
use super::contender::Contender;
use super::program::{Course, Look, Phase, Workload};
use crate::bench::report::{Row, Section, Target};
use crate::bench::samples::{Samples, float};

/// Of the best fixed placement's throughput, on a private device.
const OF_PLACEMENT: Target = Target::AtLeast(0.8);
/// Of the native throughput, on a coherent one.
const OF_NATIVE: Target = Target::AtLeast(0.97);
/// Of what the clock misses.
const OF_CLOCK: Target = Target::AtMost(1.0);
/// The data alone may fill the limit.
const KEPT: Target = Target::AtMost(1.0);
/// Percent of the program's time.
const AGENT_LEARNS: Target = Target::AtMost(6.0);
const AGENT_KNOWS: Target = Target::AtMost(1.0);
const AGENT_IDLE: Target = Target::AtMost(0.1);
/// Milliseconds in which the agent learns.
const LEARNING: u64 = 5_000;

/// The rounds of one contender.
struct Rounds {
    contender: Contender,
    /// Millions of accesses a second, at the end.
    speed: Samples,
    /// Percent of the accesses, at the end.
    missed: Samples,
    /// The data in system memory at the end, over the limit.
    resident: Samples,
    /// By phases and marks: the share over the ideal's, and millions of accesses a second since the mark before.
    shares: Vec<Vec<Samples>>,
    speeds: Vec<Vec<Samples>>,
    learning: Samples,
    stable: Samples,
    idle: Samples,
}

/// All rounds of a case.
pub(super) struct Results<'a> {
    case: &'a Case,
    /// Pages that may be in system memory.
    limit: u64,
    marks: &'a [u64],
    native: Samples,
    /// Microseconds of a fault.
    pub(super) costs: Samples,
    /// The ideal placement's share.
    ideal: f64,
    contenders: Vec<Rounds>,
}

impl<'a> Results<'a> {
    pub(super) fn new(case: &'a Case, limit: u64, marks: &'a [u64], contenders: &[Contender]) -> Self {
        let by_marks = || vec![vec![Samples::new(); marks.len()]; case.workload.phases()];
        let rounds = |contender: &Contender| Rounds {
            contender: *contender,
            speed: Samples::new(),
            missed: Samples::new(),
            resident: Samples::new(),
            shares: by_marks(),
            speeds: by_marks(),
            learning: Samples::new(),
            stable: Samples::new(),
            idle: Samples::new(),
        };
        let contenders = contenders.iter().map(rounds).collect();
        Self { case, limit, marks, native: Samples::new(), costs: Samples::new(), ideal: 0.0, contenders }
    }

    pub(super) fn push_native(&mut self, course: &Course) {
        self.native.push(at_the_end(course).map_or(0.0, speed));
    }

    pub(super) fn push(&mut self, contender: Contender, course: &Course) {
        let Some(rounds) = self.contenders.iter_mut().find(|rounds| rounds.contender == contender) else { return };
        for ((phase, shares), speeds) in course.phases.iter().zip(&mut rounds.shares).zip(&mut rounds.speeds) {
            self.ideal = phase.ideal;
            for ((look, shares), speeds) in phase.looks.iter().zip(shares).zip(speeds) {
                shares.push(look.share / phase.ideal);
                speeds.push(speed(look));
            }
        }
        let Some(end) = at_the_end(course) else { return };
        rounds.speed.push(speed(end));
        rounds.resident.push(float(end.resident) / float(self.limit));
        // What is on a coherent device is used in place, and no fault counts it.
        let by_fault = self.case.device.is_private() || contender == Contender::Kernel;
        // The sum of all shares is 1, but for rounding.
        let away = if end.share < 1.0 - 1e-9 { 1.0 - end.share } else { 0.0 };
        let missed = if by_fault { float(end.faults) / float(end.accesses.max(1)) } else { away };
        rounds.missed.push(100.0 * missed);
        let learning: Vec<&Look> = course.phases.iter().flat_map(|phase| self::learning(phase, self.marks)).collect();
        rounds.learning.push(agent(&learning));
        rounds.stable.push(agent(&[end]));
        rounds.idle.push(100.0 * course.idle);
    }

    /// As if `contender` had not been asked for.
    pub(super) fn leave_out(&mut self, contender: Contender) {
        self.contenders.retain(|rounds| rounds.contender != contender);
    }

    /// Millions of accesses a second if the ideal placement stood still: in each round by its native speed and its cost of a fault.
    fn placement(&self) -> Samples {
        let missed = 1.0 - self.ideal;
        self.native.map_with(&self.costs, |native, cost| 1.0 / (1.0 / native + missed * cost))
    }

    pub(super) fn report(self, section: &mut Section) {
        let name = self.case.name();
        let placement = self.placement();
        let speed_of = |who| self.contenders.iter().find(|rounds| rounds.contender == who).map(|rounds| &rounds.speed);
        let missed_of =
            |who| self.contenders.iter().find(|rounds| rounds.contender == who).map(|rounds| &rounds.missed);
        let is_private = self.case.device.is_private();
        for rounds in &self.contenders {
            let judged = rounds.contender == Contender::Limit;
            let aim = |target| Some(target).filter(|_| judged);
            let mut row = Row::new(format!("{name}, {}", rounds.contender.name()), "M/s", rounds.speed.clone());
            row = row.against("native", &self.native, aim(OF_NATIVE).filter(|_| !is_private));
            if is_private {
                row = row.against("best fixed placement", &placement, aim(OF_PLACEMENT));
            }
            let others = [Contender::Clock, Contender::Kernel].into_iter().filter(|other| *other != rounds.contender);
            for (other, speed) in others.filter_map(|other| Some((other, speed_of(other)?))) {
                row =
                    row.against(other.name(), speed, aim(of_kernel(self.case)).filter(|_| other == Contender::Kernel));
            }
            section.rows.push(row);
            for (phase, shares) in rounds.shares.iter().enumerate() {
                for (mark, shares) in self.marks.iter().zip(shares) {
                    let row = Row::new(
                        format!("  share{} after {}", of_phase(phase), time(*mark)),
                        "× ideal",
                        shares.clone(),
                    );
                    section.rows.push(match share_after(self.case, *mark).filter(|_| judged) {
                        Some(target) => row.aim(target),
                        None => row,
                    });
                }
            }
            for (phase, speeds) in rounds.speeds.iter().enumerate() {
                for (mark, speeds) in self.marks.iter().zip(speeds) {
                    let name = format!("  speed{} before {}", of_phase(phase), time(*mark));
                    section.rows.push(Row::new(name, "M/s", speeds.clone()));
                }
            }
            let row = Row::new("  missed", "%", rounds.missed.clone());
            section.rows.push(
                match missed_of(Contender::Clock).filter(|of_clock| judged && of_clock.all(|missed| missed > 0.0)) {
                    Some(of_clock) => row.against("clock", of_clock, Some(OF_CLOCK)),
                    None => row,
                },
            );
            let row = Row::new("  in system memory", "× limit", rounds.resident.clone());
            section.rows.push(if judged { row.aim(KEPT) } else { row });
            if rounds.contender == Contender::Kernel {
                continue;
            }
            let agent = [
                ("  agent, learning", &rounds.learning, AGENT_LEARNS),
                ("  agent, stable", &rounds.stable, AGENT_KNOWS),
                ("  agent, idle", &rounds.idle, AGENT_IDLE),
            ];
            section.rows.extend(agent.map(|(name, samples, target)| {
                let row = Row::new(name, "%", samples.clone());
                if judged { row.aim(target) } else { row }
            }));
        }
        section.rows.push(Row::new(format!("{name}, native"), "M/s", self.native));
        if is_private {
            section.rows.push(Row::new("  best fixed placement", "M/s", placement));
            section.rows.push(Row::new("  fault", "µs", self.costs));
        }
    }
}

/// What of the kernel's throughput: a fault is cheaper there.
fn of_kernel(case: &Case) -> Target {
    Target::AtLeast(if case.limit > 0.5 { 0.5 } else { 1.0 })
}

/// What the share is to be after so many milliseconds.
fn share_after(case: &Case, mark: u64) -> Option<Target> {
    let zipf = matches!(case.workload, Workload::Zipf | Workload::Phase);
    let least = match (case.pages, mark) {
        (PageSize::Huge, 5_000) => 0.95,
        (PageSize::Small, 5_000) if zipf => {
            if case.limit < 0.2 {
                0.6
            } else {
                0.7
            }
        }
        (PageSize::Small, 30_000) if zipf => {
            if case.limit < 0.2 {
                0.85
            } else {
                0.9
            }
        }
        _ => return None,
    };
    Some(Target::AtLeast(least))
}

fn of_phase(phase: usize) -> &'static str {
    if phase == 0 { "" } else { ", changed," }
}

fn time(milliseconds: u64) -> String {
    format!("{} s", float(milliseconds) / 1e3)
}

fn at_the_end(course: &Course) -> Option<&Look> {
    course.phases.last()?.looks.last()
}

/// Millions of accesses a second.
fn speed(look: &Look) -> f64 {
    float(look.accesses) / 1e6 / look.seconds
}

/// The looks that are in the time in which the agent learns.
fn learning<'a>(phase: &'a Phase, marks: &'a [u64]) -> impl Iterator<Item = &'a Look> {
    phase.looks.iter().zip(marks).filter(|(_, mark)| **mark <= LEARNING).map(|(look, _)| look)
}

/// Processor time of the agent, in percent of the time.
fn agent(looks: &[&Look]) -> f64 {
    let seconds: f64 = looks.iter().map(|look| look.seconds).sum();
    100.0 * looks.iter().map(|look| look.agent_seconds).sum::<f64>() / seconds
}

#[cfg(test)]
mod tests {
    use super::super::contender::Device;
    use super::*;

    fn course(shares: &[f64], accesses: u64) -> Course {
        let look = |share: &f64| Look {
            share: *share,
            resident: 900,
            seconds: 1.0,
            accesses,
            faults: accesses / 10,
            agent_seconds: 0.02,
        };
        Course { phases: vec![Phase { ideal: 0.8, looks: shares.iter().map(look).collect() }], idle: 0.001 }
    }

    #[test]
    fn a_share_is_of_the_ideals_and_the_best_placement_pays_for_its_misses() {
        let case = Case { workload: Workload::Zipf, pages: PageSize::Small, limit: 0.5, device: Device::Private };
        let marks = [1_000, 5_000];
        let mut results = Results::new(&case, 1000, &marks, &[Contender::Limit, Contender::Clock]);
        results.costs.push(9.0);
        results.push_native(&course(&[1.0], 5_000_000));
        results.push(Contender::Limit, &course(&[0.4, 0.72], 400_000));
        results.push(Contender::Clock, &course(&[0.4, 0.4], 100_000));
        let mut section = Section::new("policy", String::new());
        results.report(&mut section);
        let row = |name: &str| section.rows.iter().find(|row| row.name == name).unwrap();
        let median = |row: &Row| row.summary.unwrap().median;
        let limit = row("zipf 0.5 private, limit");
        assert!((median(limit) - 0.4).abs() < 1e-9);
        let ratio = |name: &str| limit.ratios.iter().find(|ratio| ratio.against == name).unwrap();
        assert!((ratio("clock").summary.unwrap().median - 4.0).abs() < 1e-9);
        // 0.2 µs natively, and a fifth of the accesses takes 9 µs.
        assert!((median(row("  best fixed placement")) - 0.5).abs() < 1e-9);
        assert!((ratio("best fixed placement").summary.unwrap().median - 0.8).abs() < 1e-9);
        assert!((median(row("  share after 5 s")) - 0.9).abs() < 1e-9);
        assert!(row("  share after 5 s").target.is_some() && row("  share after 1 s").target.is_none());
        assert!((median(row("  missed")) - 10.0).abs() < 1e-9);
        assert!((median(row("  in system memory")) - 0.9).abs() < 1e-9);
        assert!((median(row("  agent, stable")) - 2.0).abs() < 1e-9);
    }
}

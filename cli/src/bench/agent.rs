//! What the agent costs a program that gives it nothing to do: at its start, asleep, at work, in memory.
//!
//! | | natively, and under `hetmem run` by turns |
//! | --- | --- |
//! | start-up | the time from a start to the end of a program that ends at once |
//! | asleep | processor time of a program that sleeps, by the number of its mappings and by their size |
//! | at work | processor time of a program that computes and allocates |
//! | memory | what is resident, and what is readable and writable, of a program that has mapped nothing |
//!
//! The programs are this binary itself ([`target`](super::target)). Under `limit` the limit is twice what they use.
//!
//! *Limits:* processor time is the process's; what the kernel does for it on the account of others is not seen.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use hetmem_core::units::{BLOCK_SIZE, ByteLen, PAGE_SIZE};

use super::report::{Row, Section, Target};
use super::rounds::{Plan, timed};
use super::samples::{Samples, float};
use super::setup::failed;
use super::target::Cost;
use crate::failure::{Failure, chain};
use crate::host;
use crate::progress::Progress;

/// Milliseconds that a start may take longer.
const START_UP: Target = Target::AtMost(3.0);
/// Percent of a processor while the program sleeps.
const ASLEEP: Target = Target::AtMost(0.1);
/// Processor time of a program that works, against its own.
const AT_WORK: Target = Target::AtMost(1.01);

/// Two devices, as small as they may be and still be used.
const DEVICES: [&str; 4] = ["--device", "coherent:emulated,size=64M", "--device", "private:emulated,size=64M"];

/// How a program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Native,
    Manual,
    /// With this limit.
    Limit(ByteLen),
}

/// A program that sleeps: how many mappings, of how many pages each.
#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    mappings: u64,
    pages: u64,
}

const fn small(name: &'static str, mappings: u64) -> Shape {
    Shape { name, mappings, pages: 1 }
}

const fn large(name: &'static str, mib: u64) -> Shape {
    Shape { name, mappings: 1, pages: mib << 8 }
}

const SHAPES: [Shape; 6] = [
    small("10 mappings", 10),
    small("1,000 mappings", 1_000),
    small("10,000 mappings", 10_000),
    small("30,000 mappings", 30_000),
    large("1 GiB", 1 << 10),
    large("8 GiB", 8 << 10),
];
const QUICK_SHAPES: [Shape; 2] = [small("1,000 mappings", 1_000), large("64 MiB", 64)];

impl Shape {
    fn bytes(self) -> ByteLen {
        ByteLen::new(self.mappings * self.pages * PAGE_SIZE)
    }
}

/// How long and how often.
struct Counts {
    rounds: usize,
    starts: u64,
    settle: u64,
    measure: u64,
    turns: u64,
}

pub(super) fn run(plan: &Plan, progress: &Progress) -> Result<Section, Failure> {
    let mut section = Section::new("agent", String::new());
    if let Err(failure) = host::library() {
        section.what = format!("not measured: {}", chain(&failure));
        return Ok(section);
    }
    let counts = if plan.quick {
        Counts { rounds: 1, starts: 5, settle: 100, measure: 200, turns: 200 }
    } else {
        Counts { rounds: 5, starts: 20, settle: 500, measure: 2_000, turns: 4_000 }
    };
    section.what = "a program that gives hetmem nothing to do, against itself without hetmem".to_owned();
    let bench = Bench::new()?;
    bench.start_up(&counts, progress, &mut section)?;
    bench.asleep(plan, &counts, progress, &mut section)?;
    bench.at_work(&counts, progress, &mut section)?;
    Ok(section)
}

struct Bench {
    hetmem: PathBuf,
}

impl Bench {
    fn new() -> Result<Self, Failure> {
        Ok(Self { hetmem: std::env::current_exe().map_err(failed("hetmem can't tell where its own executable is"))? })
    }

    /// The command that runs `program` in one way.
    fn command(&self, way: Way, program: &[String]) -> Command {
        let managed = |policy: &[&str]| {
            let mut command = Command::new(&self.hetmem);
            command.args(["run", "--quiet"]).args(DEVICES).args(policy).arg("--").args(program);
            command
        };
        let mut command = match way {
            Way::Native => {
                let mut command = Command::new(&program[0]);
                command.args(&program[1..]);
                command
            }
            Way::Manual => managed(&["--policy", "manual"]),
            Way::Limit(limit) => managed(&["--policy", "limit", "--system-limit", &limit.get().to_string()]),
        };
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        command
    }

    /// This binary in a role of [`target`](super::target).
    fn target(&self, role: &[String]) -> Vec<String> {
        let own = self.hetmem.to_string_lossy().into_owned();
        [own, "bench-target".to_owned()].into_iter().chain(role.iter().cloned()).collect()
    }

    /// Runs a role to its end, and returns what it says.
    fn cost(&self, way: Way, role: &[String]) -> Result<Cost, Failure> {
        let output = self.command(way, &self.target(role)).output().map_err(failed("a program can't be started"))?;
        if !output.status.success() {
            return Err(Failure::Bench(format!("the measured program ended with {}", output.status)));
        }
        serde_json::from_slice(&output.stdout).map_err(failed("the measured program doesn't say what it cost"))
    }

    fn start_up(&self, counts: &Counts, progress: &Progress, section: &mut Section) -> Result<(), Failure> {
        let programs =
            [("/bin/true", vec!["/bin/true".to_owned()]), ("hetmem itself", self.target(&["end".to_owned()]))];
        for (name, program) in programs {
            progress.begin(&format!("start-up: {name}"), counts.rounds + 1);
            let [mut native, mut managed, mut added] = [const { Samples::new() }; 3];
            for round in 0..=counts.rounds {
                let mut sums = [0.0; 2];
                for turn in 0..counts.starts {
                    let ways = [(0, Way::Native), (1, Way::Manual)];
                    // Who comes first changes.
                    for (which, way) in if turn % 2 == 0 { ways } else { [ways[1], ways[0]] } {
                        let mut command = self.command(way, &program);
                        let (time, ended) = timed(|| command.stdout(Stdio::null()).status());
                        if !ended.map_err(failed("a program can't be started"))?.success() {
                            return Err(Failure::Bench(format!("{name} failed")));
                        }
                        sums[which] += time.as_secs_f64() * 1e3;
                    }
                }
                if round > 0 {
                    let [of_native, of_managed] = sums.map(|sum| sum / float(counts.starts));
                    native.push(of_native);
                    managed.push(of_managed);
                    added.push(of_managed - of_native);
                }
                progress.step();
            }
            section.rows.extend([
                Row::new(format!("start-up of {name}, added"), "ms", added).aim(START_UP),
                Row::new("  managed", "ms", managed),
                Row::new("  native", "ms", native),
            ]);
        }
        Ok(())
    }

    fn asleep(&self, plan: &Plan, counts: &Counts, progress: &Progress, section: &mut Section) -> Result<(), Failure> {
        for shape in if plan.quick { &QUICK_SHAPES[..] } else { &SHAPES } {
            let free = host::meminfo("MemAvailable").unwrap_or(ByteLen::new(0));
            // The program, what hetmem has in stock for it, and the devices.
            let needed = ByteLen::new(shape.bytes().get() / 4 * 5 + (512 << 20));
            if free < needed {
                section.notes.push(format!("{} asleep not measured: {free} of memory is free", shape.name));
                continue;
            }
            let twice = 2 * shape.bytes().get().next_multiple_of(BLOCK_SIZE);
            let limit = ByteLen::new(twice.clamp(64 << 20, host::memory()?.get() / PAGE_SIZE * PAGE_SIZE));
            let ways = [Way::Native, Way::Manual, Way::Limit(limit)];
            progress.begin(&format!("asleep: {}", shape.name), counts.rounds);
            let mut percents: [Samples; 3] = Default::default();
            for round in 0..counts.rounds {
                for turn in 0..ways.len() {
                    let which = (round + turn) % ways.len();
                    let role = ["sleep".to_owned()].into_iter().chain(
                        [shape.mappings, shape.pages, counts.settle, counts.measure].map(|number| number.to_string()),
                    );
                    let cost = self.cost(ways[which], &role.collect::<Vec<_>>())?;
                    percents[which].push(float(cost.cpu_nanoseconds) / 1e4 / float(counts.measure));
                }
                progress.step();
            }
            let [native, manual, limited] = percents;
            for (policy, managed) in [("manual", manual), ("limit", limited)] {
                let added = managed.minus(&native);
                let row = Row::new(format!("asleep, {}, {policy}, added", shape.name), "% CPU", added);
                section.rows.push(row.aim(ASLEEP));
            }
            section.rows.push(Row::new("  native", "% CPU", native));
        }
        Ok(())
    }

    fn at_work(&self, counts: &Counts, progress: &Progress, section: &mut Section) -> Result<(), Failure> {
        let ways = [Way::Native, Way::Manual, Way::Limit(ByteLen::new(1 << 30))];
        let role = ["work".to_owned(), counts.turns.to_string()];
        let nothing = ["sleep", "0", "0", "50", "50"].map(str::to_owned);
        progress.begin("at work", counts.rounds + 1);
        let mut milliseconds: [Samples; 3] = Default::default();
        let [mut resident, mut writable]: [[Samples; 3]; 2] = Default::default();
        for round in 0..=counts.rounds {
            for turn in 0..ways.len() {
                let which = (round + turn) % ways.len();
                let cost = self.cost(ways[which], &role)?;
                let idle = self.cost(ways[which], &nothing)?;
                if round > 0 {
                    let mib = |bytes: u64| float(bytes) / float(1 << 20);
                    milliseconds[which].push(float(cost.cpu_nanoseconds) / 1e6);
                    resident[which].push(mib(idle.resident_bytes));
                    writable[which].push(mib(idle.writable_bytes));
                }
            }
            progress.step();
        }
        let [native, manual, limited] = milliseconds;
        for (policy, managed) in [("manual", manual), ("limit", limited)] {
            let row = Row::new(format!("at work, {policy}"), "ms of CPU", managed);
            section.rows.push(row.against("native", &native, Some(AT_WORK)));
        }
        section.rows.push(Row::new("  native", "ms of CPU", native));
        for (what, [native, manual, limited]) in [("resident", resident), ("writable", writable)] {
            for (policy, managed) in [("manual", manual), ("limit", limited)] {
                let added = managed.minus(&native);
                section.rows.push(Row::new(format!("{what} memory, {policy}, added"), "MiB", added));
            }
            section.rows.push(Row::new("  native", "MiB", native));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_managed_program_is_the_native_one_behind_a_separator() {
        let bench = Bench { hetmem: "/h/hetmem".into() };
        let program = bench.target(&["end".to_owned()]);
        let words = |way| {
            let command = bench.command(way, &program);
            let all = std::iter::once(command.get_program()).chain(command.get_args());
            all.map(|word| word.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(words(Way::Native), program);
        for way in [Way::Manual, Way::Limit(ByteLen::new(1 << 20))] {
            let managed = words(way);
            let at = managed.iter().position(|word| word == "--").unwrap();
            assert_eq!(managed[at + 1..], program);
        }
    }
}

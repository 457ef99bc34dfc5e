//! `hetmem bench`: what moving pages costs on this host, against the least that it could cost.
//!
//! ```text
//! mod ── migrate ─┐
//!        fault    │   each runs its contenders by turns ── rounds
//!        touch    ├─► and returns a Section ── report (rows, ratios, targets; JSON) ── table
//!        steady   │                              └─ samples (median, spread)
//!        bookkeeping │                             machine (what it was measured on)
//!        places   │
//!        alternate │
//!        mirror   │
//!        scale    │
//!        kernel   │
//!        agent ───┤ ── target (the program that it measures)
//!        policy ──┘ ── target, and a folder of its own
//! ```
//!
//! Absolute figures of two runs can't be compared: machines are shared, clocks change. So whatever is compared is measured
//! in the same run, in turns (A B A B …), and a ratio is the median of the ratios of each round, with its spread.
//!
//! *Limits:* targets are reported and never decide the exit status. Devices are emulated, but for
//! `kernel` and `places`: their memory is this machine's.

mod agent;
mod alternate;
mod bookkeeping;
mod fault;
mod kernel;
mod machine;
mod migrate;
mod mirror;
mod places;
mod policy;
mod report;
mod rounds;
mod samples;
mod scale;
mod setup;
mod steady;
mod table;
pub(crate) mod target;
mod touch;

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::failure::Failure;
use crate::progress::Progress;
use crate::run::output::Output;
use crate::shown;
use report::{Report, Section};
use rounds::Plan;

/// What is printed.
const RESULTS: &str = "the results";

/// Measure migration and faults on this host, against the least that each could cost
///
/// Everything that is compared is measured in the same run, by turns. Whether a target is met never changes the exit
/// status.
#[derive(clap::Args, Debug)]
#[command(after_help = "Options of policy: see --manual.", after_long_help = "")]
pub(crate) struct Args {
    /// Write the results to this file, as JSON, with every sample
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Measure little, to see that it works
    ///
    /// The figures mean nothing then.
    #[arg(long)]
    pub(crate) quick: bool,

    /// The measurements to make [default: all]
    #[arg(value_name = "NAME", value_enum)]
    pub(crate) names: Vec<Name>,

    /// Have `places` compare with zram (root)
    ///
    /// It makes a zram device, and swaps to it, until the end.
    #[arg(long)]
    pub(crate) zram: bool,

    #[command(flatten)]
    pub(crate) policy: policy::Options,
}

/// A measurement.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Name {
    /// Migration to a device and back, against the best copy and the plain way
    Migrate,
    /// CPU faults on private memory, against a bare handler
    Fault,
    /// Places that are not just memory (compressed), against an emulated device; with `--zram` against the kernel's
    Places,
    /// Touching private memory in order and at random
    Touch,
    /// Using coherent-resident memory, against native memory
    Steady,
    /// Bytes of books for each page on a device
    Bookkeeping,
    /// CPU and accelerator by turns on the same data: private, coherent, explicit copies
    Alternate,
    /// Range faults against PAGEMAP_SCAN, and hits in a device's page table
    Mirror,
    /// How the time of a migration grows with the size, the number of mappings, and the threads that migrate at once
    Scale,
    /// Migration between two NUMA nodes, against move_pages(2) and mbind(2)
    Kernel,
    /// What the agent costs a program that gives it nothing to do, asleep and at work
    Agent,
    /// How soon and how well a policy keeps what is used most in system memory, by workload, limit and device (about half an hour)
    Policy,
}

impl Name {
    const ALL: [Self; 12] = [
        Self::Migrate,
        Self::Fault,
        Self::Places,
        Self::Touch,
        Self::Steady,
        Self::Bookkeeping,
        Self::Alternate,
        Self::Mirror,
        Self::Scale,
        Self::Kernel,
        Self::Agent,
        Self::Policy,
    ];

    fn run(self, plan: &Plan, args: &Args, progress: &Progress) -> Result<Section, Failure> {
        match self {
            Self::Migrate => migrate::run(plan, progress),
            Self::Fault => fault::run(plan, progress),
            Self::Places => places::run(plan, args.zram, progress),
            Self::Touch => touch::run(plan, progress),
            Self::Steady => steady::run(plan, progress),
            Self::Bookkeeping => bookkeeping::run(plan, progress),
            Self::Alternate => alternate::run(plan, progress),
            Self::Mirror => mirror::run(plan, progress),
            Self::Scale => scale::run(plan, progress),
            Self::Kernel => kernel::run(plan, progress),
            Self::Agent => agent::run(plan, progress),
            Self::Policy => policy::run(plan, &args.policy, progress),
        }
    }
}

/// Makes the measurements.
pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    if !args.policy.is_empty() && !args.names.is_empty() && !args.names.contains(&Name::Policy) {
        return Err(Failure::Usage("options of `policy` are given, and it is not among the measurements".to_owned()));
    }
    if args.zram && !args.names.is_empty() && !args.names.contains(&Name::Places) {
        return Err(Failure::Usage("--zram is for `places`, which is not among the measurements".to_owned()));
    }
    let output = match &args.json {
        None => None,
        Some(path) => {
            let prepared = Output::prepare(path).map_err(|error| unwritable(path, &error))?;
            Some((prepared, path))
        }
    };
    let plan = Plan::new(args.quick);
    let mut report = Report::new(machine::Machine::look(), &plan);
    shown::print(&table::head(&report), RESULTS)?;
    for name in Name::ALL.into_iter().filter(|name| args.names.is_empty() || args.names.contains(name)) {
        let (progress, start) = (Progress::new(), Instant::now());
        let mut section = name.run(&plan, args, &progress)?;
        drop(progress);
        section.seconds = start.elapsed().as_secs_f64();
        let is_wanted = shown::print_on(&table::section(&section), RESULTS)? || output.is_some();
        report.sections.push(section);
        if !is_wanted {
            break;
        }
    }
    if let Some((output, path)) = output {
        let mut text = serde_json::to_vec_pretty(&report)
            .map_err(|error| Failure::Bench(format!("the results can't be put into JSON: {error}")))?;
        text.push(b'\n');
        output.write(&text).map_err(|error| unwritable(path, &error))?;
    }
    Ok(0)
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Bench(format!("results can't be written to {}: {error}", path.display()))
}

//! Policies: how soon the pages that are used most are in system memory, and what the program does meanwhile.
//!
//! ```text
//! cases         which are measured: workload, size of pages, limit, device
//! contender     who keeps the program within the limit, and how it is run under each
//! kernel        a memory cgroup with zram
//! program       the program that is measured, in a process of its own
//! distribution  how often it uses each page
//! places        where each of its pages is
//! cost          what a fault costs
//! results       figures of a case, from round to round, and the rows that they make
//! ```
//!
//! The program knows how often it uses each page. So the *share* of accesses that find their page in system memory is exact at any moment, and so is
//! the share under the ideal placement: the pages that are used most fill the limit. In each round every contender runs the same program, by turns.
//!
//! *Limits:* one thread; devices are emulated, and the machine's memory plays them: what leaves for the first time waits until the kernel has
//! zeroed it, which a virtual machine may do slowly. A look at all pages stops nothing, and may be wrong for
//! those that move at that moment: they count as away.

mod cases;
mod contender;
mod cost;
mod distribution;
mod kernel;
mod places;
pub(super) mod program;
mod results;

use hetmem_core::quantity;
use hetmem_core::units::{BLOCK_SIZE, ByteLen};

use super::report::Section;
use super::rounds::{Plan, pages};
use crate::progress::Progress;

use crate::failure::{Failure, chain};
use crate::host;
use cases::{Case, PageSize, cases};
use contender::{Contender, Device, Runner, Way};
pub(super) use kernel::Swap;
use kernel::{Group, Interrupts};
use program::{Course, Task, Workload};
use results::Results;

/// Seconds after which is looked at where pages are.
const MARKS: [u64; 6] = [1, 3, 5, 10, 20, 30];
/// Milliseconds, where the figures mean nothing.
const QUICK_MARKS: [u64; 2] = [300, 700];
/// Seconds for which the program runs natively, at most.
const NATIVE: u64 = 3;
/// Rounds if nobody says: each takes minutes.
const ROUNDS: usize = 3;
/// Milliseconds for which it does nothing at the end.
const IDLE: u64 = 1_000;

/// What of `policy` is measured.
#[derive(clap::Args, Clone, Default, Debug)]
#[command(next_help_heading = "Options of policy")]
pub(crate) struct Options {
    /// The workloads [default: all, with the base of the other options]
    #[arg(long, hide_short_help = true, value_name = "NAME", value_enum, value_delimiter = ',')]
    workload: Vec<Workload>,

    /// The sizes of pages [base: small]
    #[arg(long, hide_short_help = true, value_name = "SIZE", value_enum, value_delimiter = ',')]
    pages: Vec<PageSize>,

    /// The limits, as parts of the data [base: 0.5]
    #[arg(long, hide_short_help = true, value_name = "PART", value_parser = part, value_delimiter = ',')]
    limit: Vec<f64>,

    /// The devices [base: private, coherent]
    #[arg(long, hide_short_help = true, value_name = "DEVICE", value_enum, value_delimiter = ',')]
    device: Vec<Device>,

    /// Who is compared, beside the native program [default: limit, clock]
    #[arg(long, hide_short_help = true, value_name = "WHO", value_enum, value_delimiter = ',')]
    contender: Vec<Contender>,

    /// The program's data [default: 1G]
    #[arg(long, hide_short_help = true, value_name = "SIZE", value_parser = quantity::size)]
    data: Option<ByteLen>,

    /// How long each phase of a program takes [default: 10]
    #[arg(long, hide_short_help = true, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: Option<u64>,

    /// How often everything is measured [default: 3]
    #[arg(long, hide_short_help = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: Option<u16>,
}

fn part(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(part) if part > 0.0 && part <= 1.0 => Ok(part),
        _ => Err("a limit is a part of the data: above 0, and at most 1".to_owned()),
    }
}

impl Options {
    /// Whether none is given.
    pub(super) const fn is_empty(&self) -> bool {
        self.chooses_no_case()
            && self.contender.is_empty()
            && self.data.is_none()
            && self.seconds.is_none()
            && self.rounds.is_none()
    }

    const fn chooses_no_case(&self) -> bool {
        self.workload.is_empty() && self.pages.is_empty() && self.limit.is_empty() && self.device.is_empty()
    }
}

/// How much, how long, how often.
struct Settings {
    data: ByteLen,
    rounds: usize,
    marks: Vec<u64>,
    idle: u64,
    contenders: Vec<Contender>,
}

impl Settings {
    fn new(options: &Options, quick: bool, notes: &mut Vec<String>) -> Self {
        let wanted = options.data.unwrap_or(ByteLen::new(if quick { 64 << 20 } else { 1 << 30 }));
        // The program's data, as much on a device and in stock, and the rest of the machine.
        let free = host::meminfo("MemAvailable").map_or(wanted, |free| ByteLen::new(free.get() / 3));
        let data = ByteLen::new((wanted.min(free).get() / BLOCK_SIZE * BLOCK_SIZE).max(8 * BLOCK_SIZE));
        if data != wanted {
            notes.push(format!("{data} of data instead of {wanted}"));
        }
        let last = options.seconds.unwrap_or(MARKS[3]);
        let marks = MARKS.into_iter().filter(|mark| *mark < last).chain([last]).map(|mark| mark * 1000);
        let marks = if quick && options.seconds.is_none() { QUICK_MARKS.to_vec() } else { marks.collect() };
        let rounds = options.rounds.map_or(if quick { 1 } else { ROUNDS }, usize::from);
        let contenders = &options.contender[..];
        let contenders = if contenders.is_empty() { &[Contender::Limit, Contender::Clock] } else { contenders };
        let idle = if quick { 0 } else { IDLE };
        Self { data, rounds, marks, idle, contenders: contenders.to_vec() }
    }
}

pub(super) fn run(plan: &Plan, options: &Options, progress: &Progress) -> Result<Section, Failure> {
    let mut section = Section::new("policy", String::new());
    if let Err(failure) = host::library() {
        section.what = format!("not measured: {}", chain(&failure));
        return Ok(section);
    }
    let mut settings = Settings::new(options, plan.quick, &mut section.notes);
    section.what = format!(
        "{} of data, of which the hottest are to be in system memory; rounds: {}",
        settings.data, settings.rounds
    );
    let kernel = match settings.contenders.contains(&Contender::Kernel) {
        false => None,
        true => match Kernel::new(settings.data) {
            Ok(kernel) => Some(kernel),
            Err(failure) => {
                settings.contenders.retain(|contender| *contender != Contender::Kernel);
                section.notes.push(chain(&failure));
                None
            }
        },
    };
    let bench = Bench { runner: Runner::new()?, kernel, settings };
    for case in cases(options, plan.quick) {
        bench.measure(&case, progress, &mut section)?;
    }
    section.notes.extend(NOTES.map(str::to_owned));
    Ok(section)
}

const NOTES: [&str; 5] = [
    "share: of accesses that find their page in system memory, over that of the ideal placement; more than 1 while there is more than the limit",
    "best fixed placement: the ideal placement's misses, each at the cost of a fault, and no page ever moves",
    "M/s, missed: in the time before the last look",
    "agent: processor time of hetmem's threads, those that serve faults included, in percent of the program's time; learning: to 5 s",
    "kernel: only where --contender names it",
];

/// What it takes to be compared with the kernel.
struct Kernel {
    group: Group,
    _swap: Swap,
    // Dropped last: a signal ends this process once the others are gone.
    interrupts: Interrupts,
}

impl Kernel {
    fn new(data: ByteLen) -> Result<Self, Failure> {
        let interrupts = Interrupts::new()?;
        // In this order: what can't be had costs nothing before.
        let group = Group::new()?;
        Ok(Self { group, _swap: Swap::new(ByteLen::new(2 * data.get()))?, interrupts })
    }
}

struct Bench {
    runner: Runner,
    kernel: Option<Kernel>,
    settings: Settings,
}

impl Bench {
    /// All contenders by turns, in each round another begins.
    fn measure(&self, case: &Case, progress: &Progress, section: &mut Section) -> Result<(), Failure> {
        let settings = &self.settings;
        let contenders = [&[None][..], &settings.contenders.iter().copied().map(Some).collect::<Vec<_>>()].concat();
        progress.begin(&format!("policy: {}", case.name()), settings.rounds * contenders.len());
        let limit = case.limit_of(settings.data);
        let mut results = Results::new(case, pages(limit).get(), &settings.marks, &settings.contenders);
        for round in 0..settings.rounds {
            if case.device.is_private() {
                results.costs.push(cost::fault(case.device)?);
            }
            for turn in 0..contenders.len() {
                let contender = contenders[(round + turn) % contenders.len()];
                let course = self.course(case, contender, limit);
                // It came to the program, too.
                self.kernel.as_ref().map_or(Ok(()), |kernel| kernel.interrupts.check())?;
                match (contender, course) {
                    (None, course) => results.push_native(&course?),
                    // It may end a program that uses more than there is, whatever there is to swap to.
                    (Some(Contender::Kernel), Err(failure)) => {
                        results.leave_out(Contender::Kernel);
                        section.notes.push(format!("{}, kernel: {}", case.name(), chain(&failure)));
                    }
                    (Some(contender), course) => results.push(contender, &course?),
                }
                progress.step();
            }
        }
        results.report(section);
        Ok(())
    }

    /// One run of the program.
    fn course(&self, case: &Case, contender: Option<Contender>, limit: ByteLen) -> Result<Course, Failure> {
        let settings = &self.settings;
        let mut task = Task {
            workload: case.workload,
            pages: pages(settings.data).get(),
            huge: case.pages == PageSize::Huge,
            limit: pages(limit).get(),
            marks: settings.marks.clone(),
            idle: settings.idle,
        };
        let managed = |policy| Way::Managed { policy, device: case.device, limit };
        let way = match (contender, &self.kernel) {
            (None, _) | (Some(Contender::Kernel), None) => {
                task.marks.retain(|mark| *mark <= NATIVE * 1000);
                task.idle = 0;
                Way::Native
            }
            (Some(Contender::Kernel), Some(kernel)) => {
                kernel.group.set_limit(ByteLen::new(limit.get() + program::shared_bytes(&task).get()))?;
                Way::Grouped(&kernel.group)
            }
            (Some(contender), _) => managed(contender.name()),
        };
        self.runner.run(&way, &task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_at_the_marks_and_at_the_end() {
        let marks = |seconds| {
            let options = Options { seconds: Some(seconds), data: Some(ByteLen::new(16 << 20)), ..Options::default() };
            Settings::new(&options, false, &mut Vec::new()).marks
        };
        assert_eq!(marks(5), [1000, 3000, 5000]);
        assert_eq!(marks(7), [1000, 3000, 5000, 7000]);
        assert_eq!(marks(1), [1000]);
    }

    #[test]
    fn data_of_another_size_than_was_asked_for_is_a_note() {
        for (wanted, notes) in [(1_u64 << 20, 1), (16 << 20, 0), (17 << 20, 1), (1 << 62, 1)] {
            let options = Options { data: Some(ByteLen::new(wanted)), ..Options::default() };
            let mut said = Vec::new();
            let data = Settings::new(&options, false, &mut said).data;
            assert_eq!(said.len(), notes, "{wanted}: {data} {said:?}");
        }
    }

    #[test]
    fn a_limit_is_a_part() {
        assert_eq!(part("0.25"), Ok(0.25));
        for text in ["0", "1.1", "-1", "NaN", "half", ""] {
            assert!(part(text).is_err(), "{text}");
        }
    }
}

//! The program that is measured: one thread uses memory as a workload says, another looks on.
//!
//! ```text
//! first thread                                   worker
//! ------------                                   ------
//! memory, contents, tables ────────────────────► one access after the other
//! from time to time: accesses, faults, processor time
//! at each mark: where each page is
//! the next phase: another table ───────────────► goes on by that
//! stop ────────────────────────────────────────► ends
//! nothing: what the agent costs then
//! ```
//!
//! Tables and counts are in shared memory, which nobody moves: what is managed is the data, and the little that any program has.
//!
//! *Limits:* one worker. A look asks the agent, or the kernel, for all pages: at a mark the program is slower for some milliseconds.

use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use hetmem_agent::config::{Config, VARIABLE};
use hetmem_agent::ledger::Ledger;
use hetmem_core::policy::Random;
use hetmem_core::units::{BLOCK_PAGES, ByteLen, PageCount};
use hetmem_sys::mapping::HugePages;
use hetmem_sys::thread::{current_tid, processor_time};
use hetmem_sys::yardstick::{Buffer, SharedWords};
use serde::{Deserialize, Serialize};

use super::distribution::{Distribution, Draws, SCAN_EVERY, Weights, ideal};
use super::places::Witness;
use crate::bench::samples::float;
use crate::bench::setup::{WORDS, failed, shuffled};
use crate::bench::target;
use crate::failure::Failure;

/// How memory is used.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Workload {
    /// Pages at random, by Zipf's law with the exponent 0.99; the hot ones are scattered
    Zipf,
    /// Pages at random, all alike
    Uniform,
    /// Pages of a hot sixteenth at random; one of 64 accesses goes round all pages in order
    Scan,
    /// As zipf; then other pages are hot
    Phase,
    /// From page to page, each says which is next, in a random order that has all pages
    Chase,
}

impl Workload {
    /// What it is called on the command line and in results.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Zipf => "zipf",
            Self::Uniform => "uniform",
            Self::Scan => "scan",
            Self::Phase => "phase",
            Self::Chase => "chase",
        }
    }

    pub(super) const fn phases(self) -> usize {
        if matches!(self, Self::Phase) { 2 } else { 1 }
    }

    fn weights(self, units: usize, phase: u64) -> Weights {
        match self {
            Self::Zipf | Self::Phase => Weights::zipf(units, 1 + phase),
            Self::Uniform | Self::Chase => Weights::uniform(units),
            Self::Scan => Weights::hot(units, 1),
        }
    }
}

/// What the program is to do.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(in crate::bench) struct Task {
    pub(super) workload: Workload,
    /// Its memory, in small pages.
    pub(super) pages: u64,
    /// Whether that is in huge pages.
    pub(super) huge: bool,
    /// Pages that are to be in system memory, by which the ideal placement is reckoned.
    pub(super) limit: u64,
    /// Milliseconds from the start of a phase to each look, in order; with the last the phase ends.
    pub(super) marks: Vec<u64>,
    /// Milliseconds without accesses at the end.
    pub(super) idle: u64,
}

/// What came of it.
#[derive(Debug, Deserialize, Serialize)]
pub(in crate::bench) struct Course {
    pub(super) phases: Vec<Phase>,
    /// Processor time of the agent while the program did nothing, as a part of that time.
    pub(super) idle: f64,
}

/// What was seen between two changes.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(in crate::bench) struct Phase {
    /// The share of accesses that find their page in system memory under the ideal placement.
    pub(super) ideal: f64,
    /// At each mark.
    pub(super) looks: Vec<Look>,
}

/// What was seen at a mark.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(in crate::bench) struct Look {
    /// The share of accesses that find their page in system memory.
    pub(super) share: f64,
    /// Pages of the data that are in system memory.
    pub(super) resident: u64,
    /// Since the last mark.
    pub(super) seconds: f64,
    pub(super) accesses: u64,
    /// Touches that the agent has served, or, where there is none, that the kernel has read a page for.
    pub(super) faults: u64,
    /// Processor time of threads that are not the program's.
    pub(super) agent_seconds: f64,
}

/// The words that both threads use, in front of the tables.
struct Shared<'a> {
    accesses: &'a AtomicU64,
    /// The phase, and [`STOP`].
    phase: &'a AtomicU64,
    /// The worker's number.
    worker: &'a AtomicU64,
    /// A table for each phase.
    tables: Vec<Distribution<'a>>,
    /// For each phase the share of each unit, as bits.
    shares: Vec<&'a [AtomicU64]>,
}

/// A phase after which nothing comes.
const STOP: u64 = u64::MAX;
/// A cache line each.
const COUNTS: [usize; 3] = [0, 8, 16];
const FIRST_TABLE: usize = 24;
/// Accesses between two looks of the worker for what it is to do: few enough where each takes a fault.
const BATCH: u64 = 128;

/// How much of the program's memory is shared.
pub(super) fn shared_bytes(task: &Task) -> ByteLen {
    ByteLen::new((FIRST_TABLE as u64 + 2 * task.workload.phases() as u64 * units(task)) * 8)
}

/// What has a share of the accesses of its own.
const fn units(task: &Task) -> u64 {
    task.pages / unit_pages(task)
}

const fn unit_pages(task: &Task) -> u64 {
    if task.huge { BLOCK_PAGES } else { 1 }
}

/// Does `task`.
pub(in crate::bench) fn run(task: &Task) -> Result<Course, Failure> {
    let no_memory = failed("no memory for the measured program");
    let huge = if task.huge { HugePages::Prefer } else { HugePages::Never };
    let (unit_pages, units) = (unit_pages(task), usize::try_from(units(task)).unwrap_or(0));
    let phases = task.workload.phases();
    let words = SharedWords::new(FIRST_TABLE + 2 * phases * units).map_err(&no_memory)?;
    let (counts, tables) = words.split_at(FIRST_TABLE);
    let [accesses, phase, worker] = COUNTS.map(|at| &counts[at]);
    let mut shared = Shared { accesses, phase, worker, tables: Vec::new(), shares: Vec::new() };
    for (number, part) in (0..).zip(tables.chunks(2 * units)) {
        let (table, shares) = part.split_at(units);
        let weights = task.workload.weights(units, number);
        shared.tables.push(Distribution::fill(table, &weights));
        for (word, share) in shares.iter().zip(weights.shares(task.workload == Workload::Scan)) {
            word.store(share.to_bits(), Relaxed);
        }
        shared.shares.push(shares);
    }
    let buffer = Buffer::of_program(PageCount::new(task.pages), huge).map_err(&no_memory)?;
    write_contents(buffer.words());
    if task.workload == Workload::Chase {
        link(buffer.words());
    }
    let mut watch = Watch::new(&buffer, &shared, unit_pages)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Release pairs with the load of the first thread, which reads the thread's files.
            shared.worker.store(u64::from(current_tid()), Release);
            match task.workload {
                Workload::Chase => chase(buffer.words(), &shared),
                Workload::Scan => random::<true>(buffer.words(), unit_pages, &shared),
                Workload::Zipf | Workload::Uniform | Workload::Phase => {
                    random::<false>(buffer.words(), unit_pages, &shared)
                }
            }
        });
        let seen = watch.all(task);
        shared.phase.store(STOP, Relaxed);
        seen
    })
    .and_then(|phases| Ok(Course { phases, idle: idle(task)? }))
}

/// Half of each page can't be compressed, and the other half is zeros.
fn write_contents(words: &[AtomicU64]) {
    let mut random = Random::new(0);
    for page in words.chunks_exact(WORDS) {
        page[..WORDS / 2].iter().for_each(|word| word.store(random.next(), Relaxed));
    }
}

/// The word of `page` by which it is linked: not in the same cache set for all pages.
const fn link_of(page: usize) -> usize {
    page * WORDS + page % (WORDS / 8) * 8
}

/// Has the link of each page say which word is the next one.
fn link(words: &[AtomicU64]) {
    let order = shuffled(words.len() / WORDS, 1);
    for (i, page) in order.iter().enumerate() {
        let next = order[(i + 1) % order.len()];
        words[link_of(*page)].store(link_of(next) as u64, Relaxed);
    }
}

/// Accesses by the table of the phase; with `SCAN` one of so many goes round all pages. One of four changes what it reads.
fn random<const SCAN: bool>(words: &[AtomicU64], unit_pages: u64, shared: &Shared<'_>) {
    let mut draws = Draws::new(2);
    let pages = (words.len() / WORDS) as u64;
    let (mut accesses, mut scanned) = (0, 0);
    while let Some(table) = table_of_now(shared) {
        for i in 0..BATCH {
            let (random, place) = draws.next();
            let page = if SCAN && i % SCAN_EVERY == 0 {
                scanned = if scanned + 1 == pages { 0 } else { scanned + 1 };
                scanned
            } else {
                table.draw(random) * unit_pages + (place & (unit_pages - 1))
            };
            // A cache line of the page.
            let word = page * WORDS as u64 + (place >> 32) % (WORDS as u64 / 8) * 8;
            let word = &words[usize::try_from(word).unwrap_or(0)];
            let value = word.load(Relaxed);
            if place >> 62 == 0 {
                word.store(value.wrapping_add(1), Relaxed);
            } else {
                black_box(value);
            }
        }
        accesses += BATCH;
        shared.accesses.store(accesses, Relaxed);
    }
}

fn chase(words: &[AtomicU64], shared: &Shared<'_>) {
    let (mut at, mut accesses) = (link_of(0), 0);
    while table_of_now(shared).is_some() {
        for _ in 0..BATCH {
            at = usize::try_from(words[at].load(Relaxed)).unwrap_or(0);
        }
        accesses += BATCH;
        shared.accesses.store(accesses, Relaxed);
    }
    black_box(at);
}

/// By which the worker goes on; `None` if it is to stop.
fn table_of_now<'a>(shared: &Shared<'a>) -> Option<Distribution<'a>> {
    shared.tables.get(usize::try_from(shared.phase.load(Relaxed)).unwrap_or(usize::MAX)).copied()
}

/// The first thread's view.
struct Watch<'a> {
    buffer: &'a Buffer,
    shared: &'a Shared<'a>,
    unit_pages: u64,
    witness: Witness,
    ledger: Option<Ledger>,
    last: Figures,
}

/// What has been counted so far.
#[derive(Clone, Copy)]
struct Figures {
    at: Instant,
    accesses: u64,
    faults: u64,
    agent_nanoseconds: u64,
}

impl<'a> Watch<'a> {
    fn new(buffer: &'a Buffer, shared: &'a Shared<'a>, unit_pages: u64) -> Result<Self, Failure> {
        let config = std::env::var(VARIABLE).ok();
        let config = config.map(|text| Config::decode(&text).map_err(failed("the agent's configuration")));
        let ledger = config.transpose()?.map(|config| Ledger::open(&config.ledger)).transpose()?;
        let last = Figures { at: Instant::now(), accesses: 0, faults: 0, agent_nanoseconds: 0 };
        Ok(Self { buffer, shared, unit_pages, witness: Witness::find()?, ledger, last })
    }

    /// All phases of `task`.
    fn all(&mut self, task: &Task) -> Result<Vec<Phase>, Failure> {
        // Acquire: see the worker's start.
        while self.shared.worker.load(Acquire) == 0 {
            hetmem_sys::thread::yield_now();
        }
        self.last = self.figures()?;
        let mut phases = Vec::new();
        for number in 0..task.workload.phases() {
            self.shared.phase.store(number as u64, Relaxed);
            let start = Instant::now();
            let shares: Vec<f64> = self.shared.shares[number].iter().map(share).collect();
            let mut phase =
                Phase { ideal: ideal(&shares, float(task.limit) / float(self.unit_pages)), looks: Vec::new() };
            drop(shares);
            for mark in &task.marks {
                wait_until(start + Duration::from_millis(*mark))?;
                phase.looks.push(self.look(number)?);
            }
            phases.push(phase);
        }
        Ok(phases)
    }

    fn look(&mut self, phase: usize) -> Result<Look, Failure> {
        let (before, now) = (self.last, self.figures()?);
        self.last = now;
        let there = self.witness.in_system_memory(self.buffer.range())?;
        let unit_pages = usize::try_from(self.unit_pages).unwrap_or(1);
        let of_unit = |(pages, word): (&[bool], &AtomicU64)| {
            share(word) * float(pages.iter().filter(|page| **page).count() as u64) / float(self.unit_pages)
        };
        Ok(Look {
            share: there.chunks(unit_pages).zip(self.shared.shares[phase]).map(of_unit).sum(),
            resident: there.iter().filter(|page| **page).count() as u64,
            seconds: (now.at - before.at).as_secs_f64(),
            accesses: now.accesses - before.accesses,
            faults: now.faults - before.faults,
            agent_seconds: float(now.agent_nanoseconds.saturating_sub(before.agent_nanoseconds)) / 1e9,
        })
    }

    fn figures(&self) -> Result<Figures, Failure> {
        let faults = match &self.ledger {
            Some(ledger) => ledger.counters_of(std::process::id()).map_or(0, |own| own.cpu_faults.load(Relaxed)),
            None => major_faults()?,
        };
        let worker = self.shared.worker.load(Relaxed);
        let own = target::cpu_nanoseconds().saturating_sub(worker_nanoseconds(worker)?);
        let this_thread = u64::try_from(processor_time().as_nanos()).unwrap_or(0);
        Ok(Figures {
            at: Instant::now(),
            accesses: self.shared.accesses.load(Relaxed),
            faults,
            agent_nanoseconds: own.saturating_sub(this_thread),
        })
    }
}

fn share(word: &AtomicU64) -> f64 {
    f64::from_bits(word.load(Relaxed))
}

/// Reads of pages from swap, which the kernel calls major faults.
fn major_faults() -> Result<u64, Failure> {
    let text = std::fs::read_to_string("/proc/self/stat").map_err(failed("/proc/self/stat can't be read"))?;
    // Behind the name, which may have any characters: the tenth figure.
    let figure = text.rsplit_once(')').and_then(|(_, figures)| figures.split_whitespace().nth(9)?.parse().ok());
    figure.ok_or_else(|| Failure::Bench("/proc/self/stat has no count of faults".to_owned()))
}

/// Processor time of the thread `tid`.
fn worker_nanoseconds(tid: u64) -> Result<u64, Failure> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{tid}/schedstat"))
        .map_err(failed("the processor time of a thread can't be read"))?;
    let time = text.split(' ').next().and_then(|time| time.parse().ok());
    time.ok_or_else(|| Failure::Bench("/proc/self/task/N/schedstat has no figures".to_owned()))
}

/// Sleeps, with nothing to wake it.
fn wait_until(end: Instant) -> Result<(), Failure> {
    target::sleep(end.saturating_duration_since(Instant::now()))
}

/// The agent's part of the processor while the program does nothing.
fn idle(task: &Task) -> Result<f64, Failure> {
    if task.idle == 0 {
        return Ok(0.0);
    }
    // What is under way comes to its end.
    target::sleep(Duration::from_millis(task.idle))?;
    let (start, before) = (Instant::now(), target::cpu_nanoseconds());
    target::sleep(Duration::from_millis(task.idle))?;
    Ok(float(target::cpu_nanoseconds() - before) / 1e9 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chase_comes_by_every_page_before_it_comes_by_one_again() {
        let words: Vec<AtomicU64> = (0..100 * WORDS).map(|_| AtomicU64::new(0)).collect();
        link(&words);
        let (mut at, mut seen) = (link_of(0), std::collections::BTreeSet::new());
        for _ in 0..100 {
            at = usize::try_from(words[at].load(Relaxed)).unwrap();
            assert_eq!(at, link_of(at / WORDS));
            assert!(seen.insert(at / WORDS));
        }
        assert_eq!(at, link_of(0));
    }

    #[test]
    fn a_course_has_its_looks_and_all_is_in_system_memory_where_nothing_is_moved() {
        for (workload, huge) in [(Workload::Phase, false), (Workload::Scan, true), (Workload::Chase, false)] {
            let task = Task { workload, pages: 4 * BLOCK_PAGES, huge, limit: BLOCK_PAGES, marks: vec![1, 3], idle: 0 };
            let course = run(&task).unwrap();
            assert_eq!(course.phases.len(), workload.phases());
            for phase in course.phases {
                assert!((0.2..1.0).contains(&phase.ideal), "{phase:?}");
                assert_eq!(phase.looks.len(), 2);
                assert!(phase.looks.iter().all(|look| (look.share - 1.0).abs() < 1e-6), "{phase:?}");
            }
        }
    }
}

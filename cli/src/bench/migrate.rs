//! Migration to each type of device and back, against the best copy and the plain way.
//!
//! A unit is a run of consecutive pages, and each is a range of its own in the request. Units of 2 MiB are whole huge pages. For
//! the smaller ones huge pages are turned off, for all contenders: they show what small pages cost. They come twice: one after
//! the other, and as every other run of a buffer twice as large (*apart*), so that no two can be moved together.
//!
//! Each contender gets all units in one request, or one loop:
//!
//! | contender | out | back |
//! | --- | --- | --- |
//! | hetmem | `Runtime::migrate_all` to the device | the same, home |
//! | copies | a copy of each unit into other populated memory, in each way ([`CopyWay`]) | a copy back |
//! | plain way | a copy of each unit, then `MADV_DONTNEED` of it | `UFFDIO_COPY` of each unit |
//!
//! The *best copy* is the way whose round trips have the best median. Memory to copy between is populated, with huge pages where the host gives them;
//! the runtime is as its users get it, with the stock that it has by itself.

use std::time::Duration;

use hetmem::{BLOCK_PAGES, ByteLen, FaultPath, Mapping, PageCount, PageRange, Request, Runtime};
use hetmem_sys::mapping::HugePages;
use hetmem_sys::yardstick::{Buffer, CopyRun, CopyWay, PlainMover};

use super::report::{Row, Section, Target};
use super::rounds::{Plan, pages, timed};
use super::samples::{Samples, float};
use super::setup::{failed, fill, home, is_intact, moved_and_kept, page_words, runtime, to_device};
use crate::failure::Failure;
use crate::progress::Progress;

/// A size of unit, and what is expected of it.
struct Unit {
    name: &'static str,
    pages: PageCount,
    /// How far apart units begin, in units.
    stride: u64,
    of_best: f64,
    of_plain: f64,
}

impl Unit {
    const fn is_huge(&self) -> bool {
        self.pages.get() == BLOCK_PAGES
    }
}

const UNITS: [Unit; 5] = [
    Unit { name: "2 MiB", pages: PageCount::new(512), stride: 1, of_best: 0.9, of_plain: 2.0 },
    Unit { name: "64 KiB", pages: PageCount::new(16), stride: 1, of_best: 0.8, of_plain: 2.0 },
    Unit { name: "4 KiB", pages: PageCount::new(1), stride: 1, of_best: 0.6, of_plain: 1.2 },
    Unit { name: "64 KiB apart", pages: PageCount::new(16), stride: 2, of_best: 0.2, of_plain: 1.2 },
    Unit { name: "4 KiB apart", pages: PageCount::new(1), stride: 2, of_best: 0.2, of_plain: 1.2 },
];

/// The types of the runtime's devices, in the order of their ids.
const TYPES: [&str; 2] = ["coherent", "private"];

pub(super) fn run(plan: &Plan, progress: &Progress) -> Result<Section, Failure> {
    let what = format!("{} to a device and back, in one request; devices are warm", plan.data);
    let mut section = Section::new("migrate", what);
    for unit in &UNITS {
        progress.begin(&format!("migrate in units of {}", unit.name), plan.rounds + 1);
        let _small = if unit.is_huge() { None } else { Some(SmallPages::begin()?) };
        let mut contest = Contest::new(unit, plan.data)?;
        for round in 0..=plan.rounds {
            contest.round(round)?;
            progress.step();
        }
        contest.report(unit, &mut section);
    }
    section
        .notes
        .push("4 KiB, 64 KiB: no huge pages; apart: every other unit, none has a neighbour to move with".to_owned());
    Ok(section)
}

/// A time without huge pages, for everybody in this process.
struct SmallPages;

impl SmallPages {
    fn begin() -> Result<Self, Failure> {
        rustix::thread::disable_transparent_huge_pages(true).map_err(failed("huge pages can't be turned off"))?;
        Ok(Self)
    }
}

impl Drop for SmallPages {
    fn drop(&mut self) {
        // What could be turned off can be turned on again.
        let _ = rustix::thread::disable_transparent_huge_pages(false);
    }
}

/// Times of one contender, a figure for each round.
#[derive(Default)]
struct Speeds {
    out: Samples,
    back: Samples,
    round_trip: Samples,
}

impl Speeds {
    fn push(&mut self, bytes: u64, out: Duration, back: Duration) {
        let speed = |bytes: u64, time: Duration| float(bytes) / 1e9 / time.as_secs_f64();
        self.out.push(speed(bytes, out));
        self.back.push(speed(bytes, back));
        self.round_trip.push(speed(2 * bytes, out + back));
    }

    fn rows(&self) -> [(&'static str, &Samples); 3] {
        [("out", &self.out), ("back", &self.back), ("round trip", &self.round_trip)]
    }
}

/// The contenders over units of one size, each with memory of its own.
struct Contest {
    // The mapping goes before the runtime that manages it.
    mapping: Mapping,
    runtime: Runtime,
    source: Buffer,
    destination: Buffer,
    plain: PlainMover,
    runs: Vec<CopyRun>,
    back: Vec<CopyRun>,
    ranges: Vec<PageRange>,
    bytes: u64,
    hetmem: [Speeds; 2],
    copies: [Speeds; CopyWay::ALL.len()],
    plain_way: Speeds,
    kept: u64,
}

impl Contest {
    fn new(unit: &Unit, data: ByteLen) -> Result<Self, Failure> {
        let units = pages(data).get() / unit.pages.get();
        let packed = PageCount::new(units * unit.pages.get());
        let spread = PageCount::new(packed.get() * unit.stride);
        let run = |i: u64| CopyRun {
            from: PageCount::new(i * unit.stride * unit.pages.get()),
            to: PageCount::new(i * unit.pages.get()),
            pages: unit.pages,
        };
        let runs: Vec<CopyRun> = (0..units).map(run).collect();
        let runtime = runtime(&TYPES, packed.bytes(), None, FaultPath::Thread)?;
        let mapping = runtime.map(spread.bytes(), FaultPath::Thread).map_err(failed("no memory for hetmem"))?;
        let no_memory = failed("no memory to compare with");
        fill(mapping.words(), 0);
        Ok(Self {
            ranges: runs.iter().map(|run| mapping.range().slice(run.from, run.pages)).collect(),
            back: runs.iter().map(|run| run.back()).collect(),
            source: Buffer::new(spread, HugePages::Prefer).map_err(&no_memory)?,
            destination: Buffer::new(packed, HugePages::Prefer).map_err(&no_memory)?,
            plain: PlainMover::new(spread, packed).map_err(failed("no userfaultfd to compare with"))?,
            runs,
            runtime,
            mapping,
            bytes: packed.bytes().get(),
            hetmem: Default::default(),
            copies: Default::default(),
            plain_way: Speeds::default(),
            kept: 0,
        })
    }

    /// One turn of everybody. Round 0 warms up: whatever is allocated once is allocated there.
    fn round(&mut self, round: usize) -> Result<(), Failure> {
        let seed = round as u64;
        fill(self.mapping.words(), seed);
        fill(self.source.words(), seed);
        fill(self.plain.words().unwrap_or_default(), seed);
        let counts = round > 0;
        for device in 0..TYPES.len() {
            let (out, kept_out) = self.request(to_device(u8::try_from(device).unwrap_or(0)));
            let (back, kept_back) = self.request(home());
            if counts {
                self.hetmem[device].push(self.bytes, out, back);
                self.kept += kept_out + kept_back;
            }
            if !is_intact(self.mapping.words(), seed) {
                return Err(Failure::Bench("memory that was migrated has other contents than before".to_owned()));
            }
            // Each of the two to compare with comes after one of hetmem's turns.
            if device == 0 {
                for (way, speeds) in CopyWay::ALL.into_iter().zip(&mut self.copies) {
                    let (out, ()) = timed(|| self.source.copy_runs(&mut self.destination, &self.runs, way));
                    let (back, ()) = timed(|| self.destination.copy_runs(&mut self.source, &self.back, way));
                    if counts {
                        speeds.push(self.bytes, out, back);
                    }
                }
            } else {
                let (out, done) = timed(|| self.plain.out(&self.runs));
                done.map_err(failed("the plain way out"))?;
                let (back, done) = timed(|| self.plain.back(&self.runs));
                done.map_err(failed("the plain way back"))?;
                if counts {
                    self.plain_way.push(self.bytes, out, back);
                }
            }
        }
        let first = self.runs.first().map_or(PageCount::ONE, |run| run.pages);
        let intact = is_intact(page_words(self.destination.words(), PageCount::ZERO, first), seed)
            && is_intact(self.plain.words().unwrap_or_default(), seed);
        if intact { Ok(()) } else { Err(Failure::Bench("memory to compare with has wrong contents".to_owned())) }
    }

    /// Migrates all units; how long that took, and how many pages were kept.
    fn request(&self, request: Request) -> (Duration, u64) {
        let (time, outcomes) = timed(|| self.runtime.migrate_all(&self.ranges, request));
        (time, moved_and_kept(&outcomes).1)
    }

    fn best_copy(&self) -> (CopyWay, &Speeds) {
        let median = |speeds: &Speeds| speeds.round_trip.summary().map_or(0.0, |summary| summary.median);
        let ways = CopyWay::ALL.into_iter().zip(&self.copies);
        ways.max_by(|(_, a), (_, b)| median(a).total_cmp(&median(b))).unwrap_or((CopyWay::Library, &self.copies[0]))
    }

    fn report(self, unit: &Unit, section: &mut Section) {
        const SPEED: &str = "GB/s";
        let (best_way, best) = self.best_copy();
        section.notes.push(format!("{}: the best copy is {}", unit.name, best_way.name()));
        for (kind, speeds) in TYPES.into_iter().zip(&self.hetmem) {
            let bases = best.rows().into_iter().zip(self.plain_way.rows());
            for ((direction, samples), ((_, best), (_, plain))) in speeds.rows().into_iter().zip(bases) {
                let row = Row::new(format!("{} {kind} {direction}", unit.name), SPEED, samples.clone())
                    .against("best copy", best, Some(Target::AtLeast(unit.of_best)))
                    .against("plain way", plain, Some(Target::AtLeast(unit.of_plain)));
                section.rows.push(row);
            }
        }
        let copies = CopyWay::ALL.map(CopyWay::name).into_iter().zip(&self.copies);
        for (name, speeds) in copies.chain([("plain way", &self.plain_way)]) {
            for (direction, samples) in speeds.rows() {
                section.rows.push(Row::new(format!("{} {name} {direction}", unit.name), SPEED, samples.clone()));
            }
        }
        if self.kept > 0 {
            section.notes.push(format!("{}: {} pages were kept where they were", unit.name, self.kept));
        }
    }
}

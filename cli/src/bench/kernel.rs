//! hetmem against the kernel's own migration: the same bytes, between the same two nodes, in turns.
//!
//! | contender | out | back |
//! | --- | --- | --- |
//! | hetmem | `Runtime::migrate` to a coherent device on the other node | home, into the stock of populated pages |
//! | `move_pages` | `move_pages(2)`, all pages in one call | the same |
//! | `mbind` | `mbind(2)` with `MPOL_BIND` and `MPOL_MF_MOVE` | the same |
//!
//! Each has memory of its own, with pages of 4 KiB or huge ones. After each way, in every round, contents are compared and each
//! page is asked for its node: hetmem's and the kernel's must all be on the other node after the way out, and on the first after the way
//! back. The kernel allocates and frees pages each time; hetmem's devices and stock are populated once, in the round that doesn't count,
//! which is the point of having them.

use std::time::Duration;

use hetmem::{BLOCK_SIZE, ByteLen, FaultPath, Mapping, PageCount, PageRange, Request, Runtime};
use hetmem_sys::mapping::HugePages;
use hetmem_sys::numa::{Node, keep_from_balancing, nodes_with_memory};
use hetmem_sys::yardstick::{KernelWay, NodeMover, pages_on};

use super::report::{Row, Section, Target};
use super::rounds::{Plan, pages, timed};
use super::samples::{Samples, float};
use super::setup::{failed, fill, home, is_intact, moved_and_kept, to_device};
use crate::failure::Failure;
use crate::progress::Progress;

/// A size of page, and what is expected of hetmem against `move_pages(2)`.
struct Size {
    name: &'static str,
    huge: HugePages,
    of_move_pages: f64,
}

const SIZES: [Size; 2] = [
    Size { name: "4 KiB", huge: HugePages::Never, of_move_pages: 2.0 },
    Size { name: "huge", huge: HugePages::Prefer, of_move_pages: 5.0 },
];

const WAYS: [(KernelWay, &str); 2] = [(KernelWay::MovePages, "move_pages"), (KernelWay::Mbind, "mbind")];

pub(super) fn run(plan: &Plan, progress: &Progress) -> Result<Section, Failure> {
    let mut section = Section::new("kernel", String::new());
    let nodes = nodes_with_memory();
    let &[near, far, ..] = &nodes[..] else {
        section.what =
            "not measured: this machine has one NUMA node with memory, and the kernel moves pages between two"
                .to_owned();
        return Ok(section);
    };
    // The kernel's balancing would move pages on its own account.
    keep_from_balancing().map_err(failed("NUMA balancing can't be kept away"))?;
    let data = ByteLen::new(plan.data.get() / 4 / BLOCK_SIZE * BLOCK_SIZE);
    section.what =
        format!("{data} from node {near} to node {far} and back; checked by content and by node after each way");
    for size in &SIZES {
        progress.begin(&format!("between nodes, {} pages", size.name), plan.rounds + 1);
        let mut contest = Contest::new(size, data, near, far)?;
        for round in 0..=plan.rounds {
            contest.round(round)?;
            progress.step();
        }
        contest.report(size, &mut section);
    }
    Ok(section)
}

/// Speeds of one contender, a figure for each round.
#[derive(Default)]
struct Speeds {
    out: Samples,
    back: Samples,
}

impl Speeds {
    fn push(&mut self, bytes: u64, out: Duration, back: Duration) {
        let speed = |time: Duration| float(bytes) / 1e9 / time.as_secs_f64();
        self.out.push(speed(out));
        self.back.push(speed(back));
    }

    fn rows(&self) -> [(&'static str, &Samples); 2] {
        [("out", &self.out), ("back", &self.back)]
    }
}

struct Contest {
    // The mapping goes before the runtime that manages it.
    mapping: Mapping,
    runtime: Runtime,
    movers: [NodeMover; WAYS.len()],
    near: Node,
    far: Node,
    bytes: u64,
    hetmem: Speeds,
    kernel: [Speeds; WAYS.len()],
}

impl Contest {
    fn new(size: &Size, data: ByteLen, near: Node, far: Node) -> Result<Self, Failure> {
        let pages = pages(data);
        let spec = format!("coherent:node={far},size={}K", data.get() >> 10);
        let spec = spec.parse().map_err(failed::<hetmem::SpecError>("a device can't be described"))?;
        let runtime = Runtime::builder()
            .stock(data)
            .device(spec)
            .start()
            .map_err(|error| Failure::Bench(crate::failure::chain(&error)))?;
        let mapping = runtime.map(data, FaultPath::Thread).map_err(failed("no memory for hetmem"))?;
        near.prefer_for(mapping.range()).map_err(failed("memory can't be placed"))?;
        if size.huge == HugePages::Never {
            hetmem_sys::mapping::forbid_huge_pages(mapping.range()).map_err(failed("huge pages can't be kept away"))?;
        }
        fill(mapping.words(), 0);
        let mover = |way| NodeMover::new(pages, size.huge, way).map_err(failed("no memory to compare with"));
        let movers = [mover(WAYS[0].0)?, mover(WAYS[1].0)?];
        for mover in &movers {
            mover.move_to(near).map_err(failed("the kernel can't move pages"))?;
        }
        let (hetmem, kernel) = (Speeds::default(), Default::default());
        Ok(Self { mapping, runtime, movers, near, far, bytes: data.get(), hetmem, kernel })
    }

    /// One turn of everybody. Round 0 warms up: whatever is allocated once is allocated there.
    fn round(&mut self, round: usize) -> Result<(), Failure> {
        let (seed, counts) = (round as u64, round > 0);
        fill(self.mapping.words(), seed);
        let out = self.migrate(to_device(0))?;
        all_on("hetmem", self.mapping.range(), self.far)?;
        let back = self.migrate(home())?;
        if counts {
            all_on("hetmem", self.mapping.range(), self.near)?;
            self.hetmem.push(self.bytes, out, back);
        }
        intact("hetmem", is_intact(self.mapping.words(), seed))?;
        for ((mover, speeds), (_, name)) in self.movers.iter().zip(&mut self.kernel).zip(WAYS) {
            fill(mover.words(), seed);
            let (out, done) = timed(|| mover.move_to(self.far));
            done.map_err(failed("the kernel can't move pages"))?;
            all_on(name, mover.range(), self.far)?;
            let (back, done) = timed(|| mover.move_to(self.near));
            done.map_err(failed("the kernel can't move pages"))?;
            all_on(name, mover.range(), self.near)?;
            intact(name, is_intact(mover.words(), seed))?;
            if counts {
                speeds.push(self.bytes, out, back);
            }
        }
        Ok(())
    }

    fn migrate(&self, request: Request) -> Result<Duration, Failure> {
        let (time, outcomes) = timed(|| self.runtime.migrate(self.mapping.range(), request));
        match moved_and_kept(&[outcomes]) {
            (_, 0) => Ok(time),
            (_, kept) => Err(Failure::Bench(format!("hetmem left {kept} pages where they were"))),
        }
    }

    fn report(self, size: &Size, section: &mut Section) {
        const SPEED: &str = "GB/s";
        let [move_pages, mbind] = &self.kernel;
        let hetmem = self.hetmem.rows().into_iter().zip(move_pages.rows()).zip(mbind.rows());
        for (((direction, samples), (_, move_pages)), (_, mbind)) in hetmem {
            let row = Row::new(format!("{} hetmem {direction}", size.name), SPEED, samples.clone())
                .against("move_pages", move_pages, Some(Target::AtLeast(size.of_move_pages)))
                .against("mbind", mbind, None);
            section.rows.push(row);
        }
        for ((_, name), speeds) in WAYS.iter().zip(&self.kernel) {
            for (direction, samples) in speeds.rows() {
                section.rows.push(Row::new(format!("{} {name} {direction}", size.name), SPEED, samples.clone()));
            }
        }
    }
}

fn all_on(who: &str, range: PageRange, node: Node) -> Result<(), Failure> {
    let there = pages_on(range, node).map_err(failed("pages can't be asked for their node"))?;
    let missing: PageCount = range.pages() - there;
    if missing.is_zero() {
        Ok(())
    } else {
        Err(Failure::Bench(format!("{who}: {} pages are not on node {node}", missing.get())))
    }
}

fn intact(who: &str, intact: bool) -> Result<(), Failure> {
    if intact {
        Ok(())
    } else {
        Err(Failure::Bench(format!("{who}: memory that was moved has other contents than before")))
    }
}

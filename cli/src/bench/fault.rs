//! CPU faults on private memory, one page each, against bare handlers, one on each processor, that answer each with one `UFFDIO_COPY`.
//!
//! Threads touch the pages of a range in random order, so that fault-around finds no sequence, and time each touch: what the program waits. Between
//! rounds everything is sent out again, which isn't timed. The scheduler puts the threads where it likes.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hetmem::{FaultPath, Mapping, Runtime};
use hetmem_sys::yardstick::{FaultFloor, FloorPath, SigbusTurn};

use super::report::{Row, Section, Target};
use super::rounds::{Plan, pages};
use super::samples::{Samples, float, quantile};
use super::setup::{WORDS, failed, fill, runtime, send_out, shuffled};
use crate::failure::Failure;
use crate::progress::Progress;

/// A way in which faults are served, and with how many threads that touch it is tried.
struct Served {
    path: FaultPath,
    floor: FloorPath,
    name: &'static str,
    touchers: &'static [usize],
    p50: Target,
}

const PATHS: [Served; 2] = [
    Served {
        path: FaultPath::Thread,
        floor: FloorPath::Thread,
        name: "thread",
        touchers: &[1, 2, 8, 32],
        p50: Target::AtMost(1.3),
    },
    Served {
        path: FaultPath::Sigbus,
        floor: FloorPath::Sigbus,
        name: "SIGBUS",
        touchers: &[1, 2],
        p50: Target::AtMost(1.2),
    },
];
/// How many pages a second at least, of those that bare handlers bring.
const RATE: Target = Target::AtLeast(0.8);

pub(super) fn run(plan: &Plan, progress: &Progress) -> Result<Section, Failure> {
    let what = format!("single pages of {} come home from a private device, in random order", plan.faulted);
    let mut section = Section::new("fault", what);
    for served in &PATHS {
        for &touchers in served.touchers {
            progress.begin(&format!("fault: {}, {touchers} touching", served.name), plan.rounds + 1);
            let mut contest = Contest::new(plan, served)?;
            for round in 0..=plan.rounds {
                contest.round(round, touchers)?;
                progress.step();
            }
            contest.report(&format!("{} {touchers}t", served.name), served.p50, &mut section);
        }
    }
    section.notes.push(
        "1t, 2t, …: touching threads; floor: a handler on each processor (or the signal), one UFFDIO_COPY".to_owned(),
    );
    Ok(section)
}

#[derive(Default)]
struct Figures {
    p50: Samples,
    p99: Samples,
    rate: Samples,
}

impl Figures {
    fn push(&mut self, touched: &Touched) {
        let micros = |permille| float(quantile(&touched.sorted_ns, permille)) / 1e3;
        self.p50.push(micros(500));
        self.p99.push(micros(990));
        self.rate.push(float(touched.sorted_ns.len() as u64) / touched.wall.as_secs_f64());
    }
}

struct Contest {
    // The mapping goes before the runtime that manages it.
    mapping: Mapping,
    runtime: Runtime,
    floor: FaultFloor,
    path: FaultPath,
    hetmem: Figures,
    bare: Figures,
    together: u64,
}

impl Contest {
    fn new(plan: &Plan, served: &Served) -> Result<Self, Failure> {
        let path = served.path;
        let runtime = runtime(&["private"], plan.faulted, None, path)?;
        let mapping = runtime.map(plan.faulted, path).map_err(failed("no memory for hetmem"))?;
        fill(mapping.words(), 0);
        let floor = FaultFloor::new(pages(plan.faulted), served.floor).map_err(failed("no floor to compare with"))?;
        let (hetmem, bare) = Default::default();
        Ok(Self { mapping, runtime, floor, path, hetmem, bare, together: 0 })
    }

    fn round(&mut self, round: usize, touchers: usize) -> Result<(), Failure> {
        let pages = self.mapping.range().pages().as_usize();
        let order = shuffled(pages, round as u64 + 1);
        let orders: Vec<&[usize]> = order.chunks(pages.div_ceil(touchers)).collect();
        send_out(&self.runtime, self.mapping.range())?;
        let before = self.runtime.statistics().cpu_faults;
        let by_hetmem = touch(self.mapping.words(), &orders);
        let served = self.runtime.statistics().cpu_faults - before;
        self.floor.rearm().map_err(failed("the floor's pages don't leave"))?;
        let by_floor = match self.path {
            FaultPath::Thread => touch(self.floor.words(), &orders),
            FaultPath::Sigbus => {
                let turn = SigbusTurn::begin(&self.floor).map_err(failed("no bare handler for SIGBUS"))?;
                touch(turn.words(), &orders)
            }
        };
        if round > 0 {
            self.hetmem.push(&by_hetmem);
            self.bare.push(&by_floor);
            self.together += (pages as u64).saturating_sub(served);
        }
        Ok(())
    }

    fn report(self, name: &str, p50: Target, section: &mut Section) {
        let (hetmem, bare) = (self.hetmem, self.bare);
        section.rows.extend([
            Row::new(format!("{name} p50"), "µs", hetmem.p50).against("floor", &bare.p50, Some(p50)),
            Row::new(format!("{name} p99"), "µs", hetmem.p99).against("floor", &bare.p99, None),
            Row::new(format!("{name} rate"), "faults/s", hetmem.rate).against("floor", &bare.rate, Some(RATE)),
            Row::new(format!("{name} floor p50"), "µs", bare.p50),
            Row::new(format!("{name} floor p99"), "µs", bare.p99),
            Row::new(format!("{name} floor rate"), "faults/s", bare.rate),
        ]);
        if self.together > 0 {
            section.notes.push(format!("{name}: {} pages came home with a neighbour, in all rounds", self.together));
        }
    }
}

/// What touching all pages took.
pub(super) struct Touched {
    wall: Duration,
    pub(super) sorted_ns: Vec<u64>,
}

/// Touches the pages of each of `orders` on a thread of its own, all at once.
pub(super) fn touch(words: &[AtomicU64], orders: &[&[usize]]) -> Touched {
    let ready = Barrier::new(orders.len());
    let toucher = |order: &[usize]| {
        // Written, so that recording a time never faults.
        let mut times = vec![u64::MAX; order.len()];
        ready.wait();
        let start = Instant::now();
        let mut last = start;
        for (page, time) in order.iter().zip(&mut times) {
            black_box(words[page * WORDS].load(Relaxed));
            let now = Instant::now();
            *time = u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX);
            last = now;
        }
        (start, last, times)
    };
    let done: Vec<_> = std::thread::scope(|scope| {
        let toucher = &toucher;
        let threads: Vec<_> = orders.iter().map(|order| scope.spawn(move || toucher(order))).collect();
        // A toucher doesn't panic.
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let start = done.iter().map(|(start, ..)| *start).min();
    let end = done.iter().map(|(_, end, _)| *end).max();
    let wall = end.zip(start).map_or(Duration::ZERO, |(end, start)| end - start);
    let mut sorted_ns: Vec<u64> = done.into_iter().flat_map(|(.., times)| times).collect();
    sorted_ns.sort_unstable();
    Touched { wall, sorted_ns }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_touch_is_timed_once() {
        let words: Vec<AtomicU64> = (0..10 * WORDS as u64).map(AtomicU64::new).collect();
        let order: Vec<usize> = (0..10).collect();
        let orders: Vec<&[usize]> = order.chunks(5).collect();
        let touched = touch(&words, &orders);
        assert_eq!(touched.sorted_ns.len(), 10);
        assert!(touched.sorted_ns.is_sorted() && touched.sorted_ns[9] < u64::MAX);
    }
}

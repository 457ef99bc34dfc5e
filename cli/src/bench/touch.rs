//! Touching memory that is on a private device: in order, where fault-around brings neighbours along, and at random,
//! against page by page: descending, an order in which no touch ever continues a sequence.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hetmem::FaultPath;

use super::report::{Row, Section, Target};
use super::rounds::{Plan, timed};
use super::samples::{Samples, float};
use super::setup::{WORDS, failed, fill, runtime, send_out, shuffled};
use crate::failure::Failure;
use crate::progress::Progress;

/// How much faster than page by page touching in order is to be.
const OF_SINGLE: Target = Target::AtLeast(5.0);

pub(super) fn run(plan: &Plan, progress: &Progress) -> Result<Section, Failure> {
    let mut section =
        Section::new("touch", format!("{} come home from a private device as they are read", plan.touched));
    for (path, name) in [(FaultPath::Thread, "thread"), (FaultPath::Sigbus, "SIGBUS")] {
        progress.begin(&format!("touch: {name}"), plan.rounds + 1);
        let runtime = runtime(&["private"], plan.touched, Some(plan.touched), path)?;
        let mapping = runtime.map(plan.touched, path).map_err(failed("no memory for hetmem"))?;
        fill(mapping.words(), 0);
        let pages = mapping.range().pages().as_usize();
        let [mut sequential, mut random, mut single] = [const { Vec::new() }; 3];
        for round in 0..=plan.rounds {
            let orders: [(Vec<usize>, &mut Vec<f64>); 3] = [
                ((0..pages).collect(), &mut sequential),
                ((0..pages).rev().collect(), &mut single),
                (shuffled(pages, round as u64 + 1), &mut random),
            ];
            for (order, rates) in orders {
                send_out(&runtime, mapping.range())?;
                let (time, ()) = timed(|| touch(mapping.words(), &order));
                if round > 0 {
                    rates.push(float(pages as u64) / time.as_secs_f64());
                }
            }
            progress.step();
        }
        let [sequential, random, single] = [sequential, random, single].map(Samples::from_iter);
        section.rows.extend([
            Row::new(format!("{name} sequential"), "pages/s", sequential).against(
                "page by page",
                &single,
                Some(OF_SINGLE),
            ),
            Row::new(format!("{name} random"), "pages/s", random).against("page by page", &single, None),
            Row::new(format!("{name} page by page"), "pages/s", single),
        ]);
    }
    Ok(section)
}

fn touch(words: &[AtomicU64], order: &[usize]) {
    for page in order {
        black_box(words[page * WORDS].load(Relaxed));
    }
}

//! Time against the number of threads that migrate at once, each its own part of one mapping; all parts together are as large, however many.

use std::time::Duration;

use hetmem::{BLOCK_PAGES, ByteLen, FaultPath, PageCount, PageRange, Request, Runtime};

use super::{Growth, Step, note_kept, rounds};
use crate::bench::report::Section;
use crate::bench::rounds::{Plan, pages, timed};
use crate::bench::samples::Samples;
use crate::bench::setup::{failed, fill, home, is_intact, moved_and_kept, runtime, to_device};
use crate::failure::Failure;
use crate::progress::Progress;

const THREADS: [u64; 3] = [1, 2, 4];

pub(super) fn run(kind: &str, plan: &Plan, progress: &Progress, section: &mut Section) -> Result<(), Failure> {
    progress.begin(&format!("scale: threads, {kind}"), rounds(plan) + 1);
    // In blocks, of which each thread gets as many.
    let part = pages(plan.data).get() / BLOCK_PAGES / 4 * BLOCK_PAGES;
    let all = PageCount::new(part.max(BLOCK_PAGES) * 4);
    let name = |n: u64| format!("{n} thread{}", if n == 1 { "" } else { "s" });
    let steps = THREADS.map(|n| Step { name: name(n), value: n, bytes: all.bytes().get() });
    let runtime = runtime(&[kind], all.bytes(), None, FaultPath::Thread)?;
    let mapping = runtime.map(all.bytes(), FaultPath::Thread).map_err(failed("no memory for hetmem"))?;
    fill(mapping.words(), 0);
    let mut growth = Growth::new(steps.to_vec());
    let mut kept = 0;
    for round in 0..=rounds(plan) {
        let times = THREADS.map(|n| {
            let size = PageCount::new(all.get() / n);
            let parts: Vec<PageRange> =
                (0..n).map(|i| mapping.range().slice(PageCount::new(i * size.get()), size)).collect();
            [to_device(0), home()].map(|request| at_once(&runtime, &parts, request, &mut kept))
        });
        if round > 0 {
            growth.push(&times);
        }
        progress.step();
    }
    if !is_intact(mapping.words(), 0) {
        return Err(Failure::Bench("memory that was migrated has other contents than before".to_owned()));
    }
    let single: Vec<Samples> = growth.series.iter().map(|series| series.speeds[0].clone()).collect();
    growth.report("threads", kind, None, section, |row, direction, step| match step {
        0 => row,
        _ => row.against("one thread", &single[direction], None),
    });
    section.notes.push(format!("threads, {kind}: {} in all, whatever their number", ByteLen::new(all.bytes().get())));
    note_kept(kept, &format!("threads, {kind}"), section);
    Ok(())
}

/// Has a thread for each of `parts` migrate it: how long it took until all were done.
fn at_once(runtime: &Runtime, parts: &[PageRange], request: Request, kept: &mut u64) -> Duration {
    let (time, pages) = timed(|| {
        std::thread::scope(|scope| {
            let migrate = |part: PageRange| moved_and_kept(&[runtime.migrate(part, request)]).1;
            let threads: Vec<_> = parts.iter().map(|part| scope.spawn(move || migrate(*part))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or(0)).sum::<u64>()
        })
    });
    *kept += pages;
    time
}

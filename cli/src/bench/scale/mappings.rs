//! Time against the number of mappings: many of 64 KiB in one request, against one of the same size.
//!
//! Both are in small pages, as mappings of 64 KiB have no others: what differs is the number of mappings.

use std::sync::atomic::Ordering::Relaxed;

use hetmem::{ByteLen, FaultPath, PageCount, Runtime};
use hetmem_sys::yardstick::Pieces;

use super::{Growth, LINEAR, Step, note_kept, room, rounds, there_and_back};
use crate::bench::report::{Section, Target};
use crate::bench::rounds::Plan;
use crate::bench::setup::{failed, runtime};
use crate::failure::Failure;
use crate::progress::Progress;

/// Of each mapping.
const PAGES: PageCount = PageCount::new(16);
/// The most mappings of the program's that are tried.
const MOST: u64 = 30_000;
/// How fast many mappings are to be, against one of their size.
const OF_ONE: Target = Target::AtLeast(0.5);

fn steps(plan: &Plan, room: ByteLen, allowed: u64) -> Vec<Step> {
    // Each has a guard behind it, which is a mapping, too; hetmem has some of its own.
    const OTHERS: u64 = 2000;
    let most = if plan.quick { 512 } else { MOST };
    let most = most.min(allowed.saturating_sub(OTHERS) / 2).min(room.get() / PAGES.bytes().get()).max(16);
    let step =
        |count: u64| Step { name: format!("{count} mappings"), value: count, bytes: count * PAGES.bytes().get() };
    [16, 4, 1].into_iter().map(|part| step(most / part)).collect()
}

/// How many mappings a process may have (`vm.max_map_count`).
fn allowed() -> u64 {
    const USUAL: u64 = 65_530;
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    text.trim().parse().unwrap_or(USUAL)
}

pub(super) fn run(kind: &str, plan: &Plan, progress: &Progress, section: &mut Section) -> Result<(), Failure> {
    progress.begin(&format!("scale: mappings, {kind}"), rounds(plan) + 1);
    // Beside the many there is the one.
    let steps = steps(plan, ByteLen::new(room().get() / 2), allowed());
    let count = steps.last().map_or(1, |step| step.value);
    let all = PageCount::new(count * PAGES.get());
    let count = usize::try_from(count).unwrap_or(1);
    let no_memory = failed("no memory in so many mappings");
    let many = Pieces::new(count, PAGES).map_err(&no_memory)?;
    let one = Pieces::new(1, all).map_err(&no_memory)?;
    // Ends before the memory that it manages.
    let runtime = runtime(&[kind], all.bytes(), None, FaultPath::Thread)?;
    for pieces in [&many, &one] {
        adopt(&runtime, pieces)?;
        mark(pieces);
    }
    let (mut growth, mut single) = (Growth::new(steps.clone()), Growth::new(steps));
    let mut kept = 0;
    for round in 0..=rounds(plan) {
        let (mut of_many, mut of_one) = (Vec::new(), Vec::new());
        for step in &growth.steps {
            let n = usize::try_from(step.value).unwrap_or(1);
            of_many.push(there_and_back(&runtime, &many.ranges()[..n], &mut kept));
            let part = one.ranges()[0].slice(PageCount::ZERO, PageCount::new(step.value * PAGES.get()));
            of_one.push(there_and_back(&runtime, &[part], &mut kept));
        }
        if round > 0 {
            growth.push(&of_many);
            single.push(&of_one);
        }
        progress.step();
    }
    for pieces in [&many, &one] {
        if !is_marked(pieces) {
            return Err(Failure::Bench("memory that was migrated has other contents than before".to_owned()));
        }
    }
    growth.report("mappings", kind, Some(LINEAR), section, |row, direction, step| {
        row.against("one mapping", &single.series[direction].speeds[step], Some(OF_ONE))
    });
    note_kept(kept, &format!("mappings, {kind}"), section);
    Ok(())
}

/// Puts each mapping under management.
#[expect(unsafe_code, reason = "the memory is promised to be nobody else's")]
fn adopt(runtime: &Runtime, pieces: &Pieces) -> Result<(), Failure> {
    for range in pieces.ranges() {
        // SAFETY: memory of its own, of which nobody uses anything but by atomic words, and which outlives the runtime.
        unsafe { runtime.adopt(*range, FaultPath::Thread) }.map_err(failed("a mapping can't be managed"))?;
    }
    Ok(())
}

/// Gives each page contents of its own.
fn mark(pieces: &Pieces) {
    for (i, word) in (1..).zip(pieces.first_words()) {
        word.store(i, Relaxed);
    }
}

fn is_marked(pieces: &Pieces) -> bool {
    (1..).zip(pieces.first_words()).all(|(i, word)| word.load(Relaxed) == i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_mappings_as_the_kernel_and_the_memory_allow() {
        let counts = |room: u64, allowed: u64| {
            steps(&Plan::new(false), ByteLen::new(room), allowed).iter().map(|s| s.value).collect::<Vec<_>>()
        };
        assert_eq!(counts(8 << 30, 65_530), [1875, 7500, 30_000]);
        assert_eq!(counts(8 << 30, 34_000), [1000, 4000, 16_000]);
        assert_eq!(counts(64 << 20, 65_530), [64, 256, 1024]);
        assert_eq!(counts(0, 0), [1, 4, 16]);
    }
}

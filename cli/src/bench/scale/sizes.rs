//! Time against size: the first part of one mapping, each four times as large as the one before.

use hetmem::{ByteLen, FaultPath, PageCount};

use super::{Growth, LINEAR, Step, note_kept, room, rounds, there_and_back};
use crate::bench::report::Section;
use crate::bench::rounds::{Plan, pages};
use crate::bench::setup::{failed, fill, is_intact, page_words, runtime};
use crate::failure::Failure;
use crate::progress::Progress;

const MIB: u64 = 1 << 20;

fn steps(plan: &Plan, room: ByteLen) -> Vec<Step> {
    let mib: &[u64] = if plan.quick { &[16, 64] } else { &[64, 256, 1024, 4096] };
    let fits = |(i, mib): &(usize, &u64)| *i == 0 || **mib * MIB <= room.get();
    let step = |mib: &u64| Step { name: ByteLen::new(mib * MIB).to_string(), value: *mib, bytes: mib * MIB };
    mib.iter().enumerate().filter(fits).map(|(_, mib)| step(mib)).collect()
}

pub(super) fn run(kind: &str, plan: &Plan, progress: &Progress, section: &mut Section) -> Result<(), Failure> {
    progress.begin(&format!("scale: sizes, {kind}"), rounds(plan) + 1);
    let steps = steps(plan, room());
    let largest = ByteLen::new(steps.last().map_or(MIB, |step| step.bytes));
    let runtime = runtime(&[kind], largest, None, FaultPath::Thread)?;
    let mapping = runtime.map(largest, FaultPath::Thread).map_err(failed("no memory for hetmem"))?;
    fill(mapping.words(), 0);
    let mut growth = Growth::new(steps);
    let mut kept = 0;
    for round in 0..=rounds(plan) {
        let part = |bytes: u64| mapping.range().slice(PageCount::ZERO, pages(ByteLen::new(bytes)));
        let times: Vec<_> =
            growth.steps.iter().map(|step| there_and_back(&runtime, &[part(step.bytes)], &mut kept)).collect();
        if round > 0 {
            growth.push(&times);
        }
        progress.step();
    }
    // All has been there and back: that of the last step as often as the others.
    if !is_intact(page_words(mapping.words(), PageCount::ZERO, pages(largest)), 0) {
        return Err(Failure::Bench("memory that was migrated has other contents than before".to_owned()));
    }
    growth.report("size", kind, Some(LINEAR), section, |row, _, _| row);
    note_kept(kept, &format!("sizes, {kind}"), section);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_the_machine_has_no_room_for_are_left_out() {
        let sizes =
            |room: u64| steps(&Plan::new(false), ByteLen::new(room)).iter().map(|s| s.value).collect::<Vec<_>>();
        assert_eq!(sizes(4 << 30), [64, 256, 1024, 4096]);
        assert_eq!(sizes((1 << 30) + 1), [64, 256, 1024]);
        assert_eq!(sizes(0), [64]);
    }
}

//! Using memory that is on a coherent device, against native memory of the same layout: once it is there, it must cost
//! nothing.
//!
//! * *read and write*: every word is read, changed and written, in order;
//! * *pointer chase*: every cache line is visited once, in random order, each naming the next.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hetmem::{FaultPath, PageRange};
use hetmem_sys::mapping::HugePages;
use hetmem_sys::pagemap::{Categories, PagemapScanner, Region, ScanQuery};
use hetmem_sys::yardstick::Buffer;

use super::report::{Row, Section, Target};
use super::rounds::{Plan, pages, timed};
use super::samples::{Samples, float};
use super::setup::{failed, fill, runtime, send_out, shuffled};
use crate::failure::Failure;
use crate::progress::Progress;

/// Times that all words are changed in a round.
const PASSES: u32 = 4;
/// Words of a cache line.
const LINE: usize = 8;

pub(super) fn run(plan: &Plan, progress: &Progress) -> Result<Section, Failure> {
    let mut section = Section::new("steady", format!("{} on a coherent device in use", plan.touched));
    progress.begin("steady", plan.rounds + 1);
    let runtime = runtime(&["coherent"], plan.touched, None, FaultPath::Thread)?;
    let mapping = runtime.map(plan.touched, FaultPath::Thread).map_err(failed("no memory for hetmem"))?;
    fill(mapping.words(), 0);
    let native = Buffer::new(pages(plan.touched), HugePages::Prefer).map_err(failed("no memory to compare with"))?;
    fill(native.words(), 0);
    send_out(&runtime, mapping.range())?;
    let contenders = [native.words(), mapping.words()];
    let order = shuffled(mapping.len() / 8 / LINE, 1);
    for words in contenders {
        link(words, &order);
    }
    let (mut speed, mut step) = ([const { Vec::new() }; 2], [const { Vec::new() }; 2]);
    for round in 0..=plan.rounds {
        // Who comes first changes: neither has always the caches that the other left.
        for contender in [round % 2, 1 - round % 2] {
            let words = contenders[contender];
            let (time, ()) = timed(|| (0..PASSES).for_each(|_| change_all(words)));
            if round > 0 {
                let bytes = float(words.len() as u64 * 8) * f64::from(PASSES);
                speed[contender].push(bytes / 1e9 / time.as_secs_f64());
            }
        }
        for contender in [round % 2, 1 - round % 2] {
            let (time, _) = timed(|| black_box(chase(contenders[contender], order.len())));
            if round > 0 {
                step[contender].push(time.as_secs_f64() * 1e9 / float(order.len() as u64));
            }
        }
        progress.step();
    }
    let [native_speed, speed] = speed.map(Samples::from_iter);
    let [native_step, step] = step.map(Samples::from_iter);
    section.rows.extend([
        Row::new("read and write", "GB/s", speed).against("native", &native_speed, Some(Target::AtLeast(0.98))),
        Row::new("native read and write", "GB/s", native_speed),
        Row::new("pointer chase", "ns/line", step).against("native", &native_step, Some(Target::AtMost(1.02))),
        Row::new("native pointer chase", "ns/line", native_step),
    ]);
    let share =
        |range| huge_share(range).map_or_else(|| "unknown".to_owned(), |share| format!("{:.0} %", share * 100.0));
    let note = format!("in huge pages: {} on the device, {} native", share(mapping.range()), share(native.range()));
    section.notes.push(note);
    Ok(section)
}

/// Changes every word, in order. The top bit only, and twice a pair of passes: the links of the chase stay.
fn change_all(words: &[AtomicU64]) {
    for word in words {
        word.store(word.load(Relaxed) ^ 1 << 63, Relaxed);
    }
}

/// Makes the first word of each line name the line after it in `order`, around.
fn link(words: &[AtomicU64], order: &[usize]) {
    for (at, next) in order.iter().zip(order.iter().cycle().skip(1)) {
        words[at * LINE].store(*next as u64, Relaxed);
    }
}

/// Follows the links for `steps` lines.
fn chase(words: &[AtomicU64], steps: usize) -> usize {
    let mut at = 0;
    for _ in 0..steps {
        at = usize::try_from(words[at * LINE].load(Relaxed)).unwrap_or(0);
    }
    at
}

/// The share of the pages of `range` that are mapped by huge pages.
fn huge_share(range: PageRange) -> Option<f64> {
    let scanner = PagemapScanner::open().ok()?;
    let query = ScanQuery { any_of: Categories::HUGE, report: Categories::HUGE, ..ScanQuery::default() };
    let mut found = [Region::default(); 64];
    let (mut huge, mut rest) = (0, range);
    while !rest.is_empty() {
        let (n, end) = scanner.scan(rest, query, &mut found).ok()?;
        huge += found[..n].iter().map(|region| region.range().pages().get()).sum::<u64>();
        rest = PageRange::between(end, range.end()).filter(|next| next.pages() < rest.pages())?;
    }
    Some(float(huge) / float(range.pages().get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chase_visits_every_line_and_comes_back_and_passes_keep_the_links() {
        let words: Vec<AtomicU64> = (0..100 * LINE as u64).map(AtomicU64::new).collect();
        link(&words, &shuffled(100, 3));
        (0..PASSES).for_each(|_| change_all(&words));
        assert_eq!(chase(&words, 100), 0);
        assert!((1..100).all(|steps| chase(&words, steps) != 0));
    }
}

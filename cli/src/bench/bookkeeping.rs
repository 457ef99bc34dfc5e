//! What hetmem remembers of each page on a device, as the allocator counts it: before a runtime is made, when it is there,
//! and when the pages are on the device.

use hetmem::{BLOCK_PAGES, ByteLen, FaultPath, PAGE_SIZE, PageCount, PageRange};
use hetmem_sys::yardstick::heap_bytes;

use super::report::{Row, Section, Target};
use super::rounds::Plan;
use super::samples::{Samples, float};
use super::setup::{WORDS, failed, moved_and_kept, runtime, to_device};
use crate::failure::Failure;
use crate::progress::Progress;

/// All bytes for each page of a full device.
const A_PAGE: Target = Target::AtMost(16.0);
/// What a page costs that is alone in its block. What a runtime has anyway is divided by few pages there, and is no matter of theirs.
const A_LONE_PAGE: Target = Target::AtMost(64.0);
/// Counts differ by what threads cache, and by nothing else.
const ROUNDS: usize = 3;

pub(super) fn run(plan: &Plan, progress: &Progress) -> Result<Section, Failure> {
    progress.begin("bookkeeping", 2 * (ROUNDS + 1));
    let what = format!(
        "bytes allocated for each page on a full private device, {} dense, one page in 2 MiB sparse",
        plan.data
    );
    let mut section = Section::new("bookkeeping", what);
    let dense = PageCount::new(plan.data.get() / PAGE_SIZE);
    let sparse = PageCount::new(dense.get() / 256);
    for (name, pages, stride) in [("dense", dense, 1), ("sparse", sparse, BLOCK_PAGES)] {
        let (mut all, mut moved) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let books = measure(pages, stride)?;
            progress.step();
            if round > 0 {
                all.push(books.all);
                moved.push(books.moved);
            }
        }
        let [all, moved] = [all, moved].map(Samples::from_iter);
        let everything = Row::new(format!("{name}, everything"), "B/page", all);
        let by_migrating = Row::new(format!("{name}, by migrating"), "B/page", moved);
        section.rows.extend(match stride {
            1 => [everything.aim(A_PAGE), by_migrating],
            _ => [everything, by_migrating.aim(A_LONE_PAGE)],
        });
    }
    section.notes.push("everything: with the tables of the device, of the stock and of room for transit".to_owned());
    Ok(section)
}

/// Bytes for each page.
struct Books {
    /// Of all that a runtime allocates.
    all: f64,
    /// Of what migration adds.
    moved: f64,
}

/// Migrates `pages` pages, every `stride`-th of a range, to a device that they fill.
fn measure(pages: PageCount, stride: u64) -> Result<Books, Failure> {
    let ranges_of = |range: PageRange| -> Vec<PageRange> {
        if stride == 1 {
            return vec![range];
        }
        (0..pages.get()).map(|i| range.slice(PageCount::new(i * stride), PageCount::ONE)).collect()
    };
    let start = heap_bytes();
    let runtime = runtime(&["private"], pages.bytes(), None, FaultPath::Thread)?;
    let len = ByteLen::new(pages.bytes().get() * stride);
    let mapping = runtime.map(len, FaultPath::Thread).map_err(failed("no memory for hetmem"))?;
    let ranges = ranges_of(mapping.range());
    for range in &ranges {
        let first = range.start().pages_since(mapping.range().start()).as_usize();
        for page in first..first + range.pages().as_usize() {
            mapping.words()[page * WORDS].store(1, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let list = ranges.capacity() * size_of::<PageRange>();
    let before = heap_bytes();
    let (_, kept) = moved_and_kept(&runtime.migrate_all(&ranges, to_device(0)));
    let after = heap_bytes();
    if kept > 0 {
        return Err(Failure::Bench(format!("{kept} pages did not move to the device")));
    }
    let a_page = |bytes: usize| float(bytes as u64) / float(pages.get());
    Ok(Books {
        all: a_page(after.saturating_sub(start).saturating_sub(list)),
        moved: a_page(after.saturating_sub(before)),
    })
}

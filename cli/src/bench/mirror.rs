//! What a mirror costs: asking where pages are (`range_fault`, which faults nothing in), against PAGEMAP_SCAN, which it asks itself; and a
//! kernel's access through the device's page table.

use std::hint::black_box;

use hetmem::accelerator::{AccessError, InPlace, Options};
use hetmem::mirror::{MirrorPage, RangeFault};
use hetmem::{BLOCK_SIZE, ByteLen, DeviceId, FaultPath, PageRange, Runtime, VirtAddr};
use hetmem_sys::mapping::HugePages;
use hetmem_sys::pagemap::{Categories, PagemapScanner, Region, ScanQuery};
use hetmem_sys::yardstick::Buffer;

use super::progress::Progress;
use super::report::{Row, Section, Target};
use super::rounds::{Plan, pages, timed};
use super::samples::{Samples, float};
use super::setup::{failed, fill, runtime, send_out, to_device};
use crate::failure::Failure;

/// Pages that one thread is to be told of in a second.
const PAGES: Target = Target::AtLeast(20.0);
/// Times that all is asked for in a round.
const PASSES: u32 = 4;
/// Words whose pages are in the table.
const LOOKED_UP: usize = 1 << 17;

pub(super) fn run(plan: &Plan, progress: &Progress) -> Result<Section, Failure> {
    let what = format!("a snapshot of {} by one thread, and accesses through a device's page table", plan.data);
    let mut section = Section::new("mirror", what);
    progress.begin("mirror: snapshots", 3 * (plan.rounds + 1));
    let runtime = runtime(&["private", "coherent"], plan.data, Some(plan.data), FaultPath::Thread)?;
    for (name, huge_pages) in [("4 KiB pages", HugePages::Never), ("huge pages", HugePages::Prefer)] {
        let buffer = Buffer::new(pages(plan.data), huge_pages).map_err(failed("no memory to look at"))?;
        snapshots(&mut section, name, &runtime, buffer.range(), plan, progress)?;
    }
    let mapping = runtime.map(plan.data, FaultPath::Thread).map_err(failed("no memory for hetmem"))?;
    fill(mapping.words(), 0);
    let _outcomes = runtime.migrate(mapping.range(), to_device(1));
    snapshots(&mut section, "on a coherent device", &runtime, mapping.range(), plan, progress)?;
    drop(mapping);
    hits(&mut section, &runtime, plan, progress)?;
    Ok(section)
}

fn snapshots(
    section: &mut Section,
    name: &str,
    runtime: &Runtime,
    range: PageRange,
    plan: &Plan,
    progress: &Progress,
) -> Result<(), Failure> {
    let scanner = PagemapScanner::open().map_err(failed("the page map can't be read"))?;
    let mut out = vec![MirrorPage::default(); range.pages().as_usize()];
    let (mut asked, mut scanned) = (Samples::default(), Samples::default());
    let speed = |seconds: f64| float(range.pages().get()) * f64::from(PASSES) / 1e6 / seconds;
    for round in 0..=plan.rounds {
        let (time, answers) =
            timed(|| (0..PASSES).try_for_each(|_| runtime.range_fault(range, RangeFault::default(), &mut out)));
        answers.map_err(failed("a range fault"))?;
        let (least, found) = timed(|| (0..PASSES).fold(None, |_, _| scan(&scanner, range)));
        if out.iter().any(|page| !page.is_valid()) || found != Some(range.pages().get()) {
            return Err(Failure::Bench(format!("{name}: not all populated pages were found")));
        }
        if round > 0 {
            asked.push(speed(time.as_secs_f64()));
            scanned.push(speed(least.as_secs_f64()));
        }
        progress.step();
    }
    let row = Row::new(format!("range_fault, {name}"), "Mpages/s", asked).aim(PAGES);
    section.rows.push(row.against("PAGEMAP_SCAN", &scanned, None));
    section.rows.push(Row::new(format!("PAGEMAP_SCAN, {name}"), "Mpages/s", scanned));
    Ok(())
}

/// How many pages of `range` the kernel says are there, by the question that hetmem asks.
fn scan(scanner: &PagemapScanner, range: PageRange) -> Option<u64> {
    let query = ScanQuery {
        any_of: Categories::PRESENT,
        report: Categories::PRESENT | Categories::FILE | Categories::PFNZERO | Categories::HUGE,
        ..ScanQuery::default()
    };
    let mut found = [Region::default(); 512];
    let (mut present, mut rest) = (0, range);
    while !rest.is_empty() {
        let (n, end) = scanner.scan(rest, query, &mut found).ok()?;
        present += found[..n].iter().map(|region| region.range().pages().get()).sum::<u64>();
        rest = PageRange::between(end, range.end()).filter(|next| next.pages() < rest.pages())?;
    }
    Some(present)
}

fn hits(section: &mut Section, runtime: &Runtime, plan: &Plan, progress: &Progress) -> Result<(), Failure> {
    let mapping = runtime
        .map(ByteLen::new(BLOCK_SIZE.max(LOOKED_UP as u64 * 8)), FaultPath::Thread)
        .map_err(failed("no memory for hetmem"))?;
    fill(mapping.words(), 0);
    progress.begin("mirror: hits", 2 * (plan.rounds + 1));
    for (name, device, in_place) in
        [("hit, in place", DeviceId::new(1), InPlace::Direct), ("hit, in a frame", DeviceId::new(0), InPlace::Direct)]
    {
        if device == DeviceId::new(0) {
            send_out(runtime, mapping.range())?;
        }
        let options = Options { workers: 1, in_place };
        let accelerator = mapping.accelerator(device, options).map_err(failed("no accelerator"))?;
        let first = mapping.range().start().get();
        let mut view = accelerator.view();
        let mut load_all = || -> Result<u64, AccessError> {
            (0..LOOKED_UP as u64).try_fold(0u64, |sum, i| Ok(sum ^ view.load(VirtAddr::new(first + i * 8))?))
        };
        let mut times = Samples::default();
        for round in 0..=plan.rounds {
            let (time, sum) = timed(|| black_box(load_all()));
            sum.map_err(failed("a kernel on the accelerator"))?;
            if round > 0 {
                times.push(time.as_secs_f64() * 1e9 / float(LOOKED_UP as u64));
            }
            progress.step();
        }
        section.rows.push(Row::new(name, "ns/access", times));
    }
    Ok(())
}

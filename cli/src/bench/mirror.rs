//! What a mirror costs: asking where pages are (`range_fault`, which faults nothing in), page by page and by runs, against PAGEMAP_SCAN, which it
//! asks itself; and a kernel's access through the device's page table.
//!
//! Of pages in private frames the kernel knows nothing: what is told of them is held against a scan of as many pages that are there.

use std::hint::black_box;
use std::time::Duration;

use hetmem::accelerator::{AccessError, InPlace, Options};
use hetmem::mirror::{MirrorPage, RangeFault};
use hetmem::{BLOCK_SIZE, ByteLen, DeviceId, FaultPath, Owner, PageCount, PageRange, Runtime, VirtAddr};
use hetmem_sys::mapping::HugePages;
use hetmem_sys::pagemap::{Categories, PagemapScanner, Region, ScanQuery};
use hetmem_sys::yardstick::Buffer;

use super::report::{Row, Section, Target};
use super::rounds::{Plan, pages, timed};
use super::samples::{Samples, float};
use super::setup::{failed, fill, runtime, send};
use crate::failure::Failure;
use crate::progress::Progress;

/// Pages that one thread is to be told of in a second.
const PAGES: Target = Target::AtLeast(20.0);
/// What answers by runs are to be of the speed of the kernel's own, which are by runs, too.
const RUNS: Target = Target::AtLeast(0.8);
/// Times that all is asked for in a round.
const PASSES: u32 = 16;
/// Words whose pages are in the table.
const LOOKED_UP: usize = 1 << 17;

pub(super) fn run(plan: &Plan, progress: &Progress) -> Result<Section, Failure> {
    let what = format!("a snapshot of {} by one thread, and accesses through a device's page table", plan.data);
    let mut section = Section::new("mirror", what);
    progress.begin("mirror: snapshots", 4 * (plan.rounds + 1));
    let runtime = runtime(&["private", "coherent"], plan.data, Some(plan.data), FaultPath::Thread)?;
    for (name, huge_pages) in [("4 KiB pages", HugePages::Never), ("huge pages", HugePages::Prefer)] {
        let buffer = Buffer::new(pages(plan.data), huge_pages).map_err(failed("no memory to look at"))?;
        let asked = Asked { name, range: buffer.range(), scanned: buffer.range(), owner: None };
        snapshots(&mut section, &runtime, asked, plan, progress)?;
    }
    let map = || runtime.map(plan.data, FaultPath::Thread).map_err(failed("no memory for hetmem"));
    let (coherent, private) = (map()?, map()?);
    for (mapping, device) in [(&coherent, DeviceId::new(1)), (&private, DeviceId::new(0))] {
        fill(mapping.words(), 0);
        send(&runtime, mapping.range(), device)?;
    }
    let scanned = coherent.range();
    for (name, mapping, owner) in
        [("on a coherent device", &coherent, None), ("on a private device", &private, runtime.owner(DeviceId::new(0)))]
    {
        snapshots(&mut section, &runtime, Asked { name, range: mapping.range(), scanned, owner }, plan, progress)?;
    }
    drop((coherent, private));
    hits(&mut section, &runtime, plan, progress)?;
    Ok(section)
}

/// Pages that are asked about.
struct Asked<'a> {
    name: &'a str,
    range: PageRange,
    /// As many pages that are all there, which the kernel is asked about.
    scanned: PageRange,
    /// Whose private frames they are in, if they are.
    owner: Option<Owner>,
}

fn snapshots(
    section: &mut Section,
    runtime: &Runtime,
    asked: Asked<'_>,
    plan: &Plan,
    progress: &Progress,
) -> Result<(), Failure> {
    let Asked { name, range, scanned, owner } = asked;
    let scanner = PagemapScanner::open().map_err(failed("the page map can't be read"))?;
    let request = RangeFault { owner, ..RangeFault::default() };
    let (mut out, mut runs) = (vec![MirrorPage::default(); range.pages().as_usize()], Vec::new());
    let [mut by_pages, mut by_runs, mut by_scan] = [const { Samples::new() }; 3];
    let speed = |time: Duration| float(range.pages().get()) * f64::from(PASSES) / 1e6 / time.as_secs_f64();
    for round in 0..=plan.rounds {
        let (of_pages, told) = timed(|| (0..PASSES).try_for_each(|_| runtime.range_fault(range, request, &mut out)));
        told.map_err(failed("a range fault"))?;
        let (of_runs, told) =
            timed(|| (0..PASSES).try_for_each(|_| runtime.range_fault_runs(range, request, &mut runs)));
        told.map_err(failed("a range fault by runs"))?;
        let (of_scan, found) = timed(|| (0..PASSES).fold(None, |_, _| scan(&scanner, scanned)));
        let told = runs.iter().filter(|run| run.first.is_valid()).map(|run| run.range.pages()).sum::<PageCount>();
        if out.iter().any(|page| !page.is_valid()) || told != range.pages() || found != Some(range.pages().get()) {
            return Err(Failure::Bench(format!("{name}: not all populated pages were found")));
        }
        if round > 0 {
            by_pages.push(speed(of_pages));
            by_runs.push(speed(of_runs));
            by_scan.push(speed(of_scan));
        }
        progress.step();
    }
    let row = Row::new(format!("range_fault, {name}"), "Mpages/s", by_pages).aim(PAGES);
    section.rows.push(row.against("PAGEMAP_SCAN", &by_scan, None));
    let row = Row::new(format!("range_fault_runs, {name}"), "Mpages/s", by_runs);
    section.rows.push(row.against("PAGEMAP_SCAN", &by_scan, Some(RUNS)));
    section.rows.push(Row::new(format!("PAGEMAP_SCAN, {name}"), "Mpages/s", by_scan));
    Ok(())
}

/// How many pages of `range`, which is anonymous memory, the kernel says are there, by the question that hetmem asks.
fn scan(scanner: &PagemapScanner, range: PageRange) -> Option<u64> {
    let query = ScanQuery {
        any_of: Categories::PRESENT,
        report: Categories::PRESENT | Categories::PFNZERO | Categories::HUGE,
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
            send(runtime, mapping.range(), device)?;
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

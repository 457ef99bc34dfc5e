//! Places that are not just memory, against an emulated device, and on request against the kernel's compressed swap (zram).
//!
//! All contenders have the same pages: those of a Python heap, where there is a Python to have one, repeated as often as needed. A round sends
//! everything out with one thread, touches it page by page in random order, with one thread and after another migration with eight, sends it out with two
//! threads, and brings it home by one request. The kernel's pages go out by `madvise(2)` (`MADV_PAGEOUT`) and come home by touches only.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hetmem::{ByteLen, FaultPath, Mapping, PAGE_SIZE, PageRange, Runtime};
use hetmem_sys::mapping::{HugePages, page_out};
use hetmem_sys::yardstick::Buffer;

use super::fault::{Touched, touch};
use super::policy::Swap;
use super::report::{Row, Section, Target};
use super::rounds::{Plan, pages, timed};
use super::samples::{Samples, float, quantile};
use super::setup::{WORDS, failed, home, send_out, shuffled};
use crate::failure::Failure;
use crate::progress::Progress;

/// The places, by their devices; what others are compared with comes first.
const PLACES: [(&str, &str); 2] = [("emulated", "private:emulated"), ("compressed", "private:compressed")];
const MANY: usize = 8;
/// By how many µs a fault may be slower than on an emulated device, how many pages a second at least go out, and pages for each page of memory.
const BEYOND: Target = Target::AtMost(6.0);
const RATE: Target = Target::AtLeast(120_000.0);
const RATIO: Target = Target::AtLeast(2.2);
/// What has a heap of the kind that programs have: strings, numbers, lists, a table.
const HEAP: &str =
    "d = {i: ('key-%d' % i, i * 3.5, [i, i + 1]) for i in range(150000)}\nprint('ready', flush=True)\ninput()";

pub(super) fn run(plan: &Plan, with_zram: bool, progress: &Progress) -> Result<Section, Failure> {
    let what = format!("{} of small pages, out and home, by place", plan.touched);
    let mut section = Section::new("places", what);
    let contents = python_heap(plan.touched).unwrap_or_else(|why| {
        section.notes.push(format!("{why}: the pages are made up, and packed as well as such are"));
        made_up(plan.touched)
    });
    let swap = with_zram.then(|| Swap::new(plan.touched)).transpose()?;
    let mut contenders = Vec::new();
    for (name, spec) in PLACES {
        contenders.push(Contender::on_device(name, spec, &contents)?);
    }
    if swap.is_some() {
        contenders.push(Contender::on_swap(&contents)?);
    }
    progress.begin("places", plan.rounds + 1);
    for round in 0..=plan.rounds {
        for contender in &mut contenders {
            contender.round(round)?;
        }
        progress.step();
    }
    let emulated = std::mem::take(&mut contenders[0].figures);
    for contender in &mut contenders[1..] {
        let figures = std::mem::take(&mut contender.figures);
        report(contender.name, figures, Some(&emulated), &mut section);
    }
    report(contenders[0].name, emulated, None, &mut section);
    // Memory that is swapped out comes home before there is no swap any more.
    drop(contenders);
    drop(swap);
    section
        .notes
        .push("1t, 2t, 8t: threads that migrate, or touch; beyond: slower than the emulated device".to_owned());
    Ok(section)
}

#[derive(Default)]
struct Figures {
    out: [Samples; 2],
    home: Samples,
    p50: [Samples; 2],
    p99: [Samples; 2],
    ratio: Samples,
}

fn report(name: &str, figures: Figures, emulated: Option<&Figures>, section: &mut Section) {
    let is_compressed = name == "compressed";
    let base = |row: Row, of: fn(&Figures) -> &Samples| match emulated {
        Some(emulated) => row.against("emulated", of(emulated), None),
        None => row,
    };
    let Figures { out: [out, out_many], home, p50: [p50, p50_many], p99: [p99, p99_many], ratio } = figures;
    if let Some(emulated) = emulated {
        let beyond = Row::new(format!("{name} fault 1t p50 beyond"), "µs", p50.minus(&emulated.p50[0]));
        section.rows.push(if is_compressed { beyond.aim(BEYOND) } else { beyond });
    }
    let row = |what: &str, unit, samples| Row::new(format!("{name} {what}"), unit, samples);
    section.rows.extend([
        base(row("fault 1t p50", "µs", p50), |of| &of.p50[0]),
        base(row("fault 1t p99", "µs", p99), |of| &of.p99[0]),
        base(row("fault 8t p50", "µs", p50_many), |of| &of.p50[1]),
        base(row("fault 8t p99", "µs", p99_many), |of| &of.p99[1]),
        base(row("out 1t", "pages/s", out), |of| &of.out[0]),
    ]);
    if !out_many.is_empty() {
        let row = row("out 2t", "pages/s", out_many);
        section.rows.push(base(if is_compressed { row.aim(RATE) } else { row }, |of| &of.out[1]));
    }
    if !home.is_empty() {
        section.rows.push(base(row("home", "pages/s", home), |of| &of.home));
    }
    if !ratio.is_empty() {
        section.rows.push(row("pages for each page of memory", "×", ratio).aim(RATIO));
    }
}

/// Where pages go.
enum Place {
    // The mapping goes before the runtime that manages it.
    Device(Mapping, Box<Runtime>),
    Swap(Buffer),
}

struct Contender {
    name: &'static str,
    place: Place,
    figures: Figures,
}

impl Contender {
    fn on_device(name: &'static str, spec: &str, contents: &[u64]) -> Result<Self, Failure> {
        let size = ByteLen::new((contents.len() * 8) as u64);
        let spec = format!("{spec},size={}K", size.get() >> 10);
        let spec = spec.parse().map_err(failed("a device can't be described"))?;
        let runtime = Runtime::builder().device(spec).start();
        let runtime = runtime.map_err(|error| Failure::Bench(crate::failure::chain(&error)))?;
        let mapping = runtime.map(size, FaultPath::Thread).map_err(failed("no memory for hetmem"))?;
        fill(mapping.words(), contents);
        Ok(Self { name, place: Place::Device(mapping, Box::new(runtime)), figures: Figures::default() })
    }

    fn on_swap(contents: &[u64]) -> Result<Self, Failure> {
        let count = pages(ByteLen::new((contents.len() * 8) as u64));
        let buffer = Buffer::new(count, HugePages::Never).map_err(failed("no memory to swap out"))?;
        fill(buffer.words(), contents);
        Ok(Self { name: "zram", place: Place::Swap(buffer), figures: Figures::default() })
    }

    fn words(&self) -> &[AtomicU64] {
        match &self.place {
            Place::Device(mapping, _) => mapping.words(),
            Place::Swap(buffer) => buffer.words(),
        }
    }

    fn send_out(&self, threads: usize) -> Result<Duration, Failure> {
        match &self.place {
            Place::Device(mapping, runtime) => {
                let range = mapping.range();
                let part = range.pages().as_usize().div_ceil(threads) as u64;
                let parts: Vec<PageRange> = (0..threads as u64)
                    .map(|at| range.slice(hetmem::PageCount::new(at * part), hetmem::PageCount::new(part)))
                    .collect();
                let send = |part: PageRange| send_out(runtime, part);
                let (time, sent) = timed(|| {
                    std::thread::scope(|scope| {
                        let all: Vec<_> = parts.iter().map(|part| scope.spawn(move || send(*part))).collect();
                        // Who sends doesn't panic.
                        all.into_iter().filter_map(|one| one.join().ok()).collect::<Result<Vec<()>, Failure>>()
                    })
                });
                sent.map(|_| time)
            }
            Place::Swap(buffer) => {
                let (time, done) = timed(|| page_out(buffer.range()));
                done.map_err(failed("pages are not swapped out"))?;
                Ok(time)
            }
        }
    }

    fn round(&mut self, round: usize) -> Result<(), Failure> {
        let count = self.words().len() / WORDS;
        let order = shuffled(count, round as u64 + 1);
        let rate = |time: Duration| float(count as u64) / time.as_secs_f64();
        let first = self.send_out(1)?;
        let ratio = self.ratio();
        let one = touch(self.words(), &[&order[..]]);
        let mut out = None;
        let mut home_time = None;
        if let Place::Device(mapping, runtime) = &self.place {
            out = Some(self.send_out(2)?);
            let (time, _) = timed(|| runtime.migrate(mapping.range(), home()));
            home_time = Some(time);
        }
        self.send_out(1)?;
        let orders: Vec<&[usize]> = order.chunks(count.div_ceil(MANY)).collect();
        let many = touch(self.words(), &orders);
        if round == 0 {
            return Ok(());
        }
        let figures = &mut self.figures;
        figures.out[0].push(rate(first));
        out.into_iter().for_each(|time| figures.out[1].push(rate(time)));
        home_time.into_iter().for_each(|time| figures.home.push(rate(time)));
        ratio.into_iter().for_each(|ratio| figures.ratio.push(ratio));
        let micros = |touched: &Touched, permille| float(quantile(&touched.sorted_ns, permille)) / 1e3;
        for (at, touched) in [one, many].iter().enumerate() {
            figures.p50[at].push(micros(touched, 500));
            figures.p99[at].push(micros(touched, 990));
        }
        Ok(())
    }

    /// How many pages there are for each page of the memory that they take, if they are packed.
    fn ratio(&self) -> Option<f64> {
        let Place::Device(_, runtime) = &self.place else { return None };
        let packing = runtime.statistics().devices.first()?.packing?;
        Some(float(packing.pages * PAGE_SIZE) / float(packing.memory_bytes.max(1)))
    }
}

fn fill(words: &[AtomicU64], contents: &[u64]) {
    words.iter().zip(contents).for_each(|(word, value)| word.store(*value, Relaxed));
}

/// Pages of a heap of Python's, `size` of them; or why there are none.
fn python_heap(size: ByteLen) -> Result<Vec<u64>, String> {
    let mut command = Command::new("python3");
    command.args(["-c", HEAP]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("python3: {error}"))?;
    let mut ready = String::new();
    let said = child.stdout.take().map(|out| BufReader::new(out).read_line(&mut ready));
    let heap = match said {
        Some(Ok(bytes)) if bytes > 0 => heap_of(child.id(), size).map_err(|error| format!("python3's heap: {error}")),
        Some(_) | None => Err("python3 has no heap to show".to_owned()),
    };
    // It waits for a line; without one it ends, too.
    let _ = child.kill();
    let _ = child.wait();
    heap
}

fn heap_of(pid: u32, size: ByteLen) -> std::io::Result<Vec<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    let mut words = Vec::new();
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_heap = matches!(fields[..], [_, "rw-p", _, _, "0"] | [_, "rw-p", _, _, "0", "[heap]"]);
        let range = fields.first().and_then(|range| range.split_once('-'));
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let Some((Some(start), Some(end))) = range.map(|(start, end)| (hexadecimal(start), hexadecimal(end))) else {
            continue;
        };
        let mut page = [0; ByteLen::new(PAGE_SIZE).as_usize()];
        for at in (start..end).step_by(page.len()).filter(|_| is_heap) {
            memory.read_exact_at(&mut page, at)?;
            // What was never written takes nothing anywhere.
            if page != [0; ByteLen::new(PAGE_SIZE).as_usize()] {
                words.extend(page.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)));
            }
        }
    }
    if words.len() < WORDS {
        return Err(std::io::Error::other("there is nothing in it"));
    }
    let wanted = size.as_usize() / 8;
    Ok(words.into_iter().cycle().take(wanted).collect())
}

/// Pages of records such as programs have: addresses near one another, counts, a few letters, a number of which every bit counts.
fn made_up(size: ByteLen) -> Vec<u64> {
    let record = |at: u64| {
        let random = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        [1, 0x7f3a_1c00_0000 + at * 64, at, random, 0x7f3a_1c00_0000 + (random >> 44), 0x6b65_7900 + at % 10, 0, 0]
    };
    (0..size.get() / 64).flat_map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_to_try_with_are_as_many_as_are_asked_for() {
        let size = ByteLen::new(1 << 20);
        assert_eq!(made_up(size).len() * 8, size.as_usize());
        match python_heap(size) {
            Ok(heap) => {
                assert_eq!(heap.len() * 8, size.as_usize());
                assert!(heap.chunks(WORDS).all(|page| page.iter().any(|word| *word != 0)));
            }
            Err(why) => assert!(why.starts_with("python3"), "{why}"),
        }
    }
}

//! CPU and accelerator by turns on the same data, a word in each page (4 KiB strides): on a private device, on a coherent one, and with
//! explicit copies to the accelerator's memory and back.
//!
//! | | a round |
//! | --- | --- |
//! | private | the data migrate to the device, the kernel uses them in its frames, the CPU's touches bring them home |
//! | coherent | the kernel uses them in place, the CPU uses them in place |
//! | explicit copies | all is copied to another buffer, the kernel uses that, all is copied back, the CPU uses it |
//!
//! Each is done in two orders: *in disorder*, and *in order*, where each touch continues a sequence and fault-around brings private pages home
//! in runs. The target is one for both; in order it is the harder one.
//!
//! The accelerator accesses coherent pages as such hardware does, by loads and stores ([`InPlace::Direct`]). With
//! [`InPlace::Checked`] each access is a system call, which is measured beside it, without a target.
//!
//! A touch of a mirrored page is the handler thread's to serve on either fault path, so a fault costs a round trip to another thread: on machines
//! whose idle processors wake slowly that is most of the private device's time in disorder, and little of it in order.
//!
//! *Limits:* the accelerator is emulated: its memory is as near as the CPU's, so copies are as fast as they ever are, and so is
//! the coherent device. The kernel of the explicit copies uses no device table.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use hetmem::accelerator::{AccessError, InPlace, OnMapping, Options};
use hetmem::{
    BLOCK_SIZE, ByteLen, DeviceId, FaultPath, Mapping, PageCount, Request, Runtime, Target as Destination, VirtAddr,
};
use hetmem_sys::mapping::HugePages;
use hetmem_sys::yardstick::{Buffer, CopyRun, CopyWay};

use super::report::{Row, Section, Target};
use super::rounds::{Plan, pages};
use super::samples::{Samples, float};
use super::setup::{WORDS, failed, fill, is_intact, moved_and_kept, runtime, send_out, shuffled};
use crate::failure::Failure;
use crate::progress::Progress;

/// How much longer than with a coherent device a round with a private one is to take.
const OF_COHERENT: Target = Target::AtLeast(10.0);
/// Pages of the coherent device that a round is to move.
const MOVED: Target = Target::AtMost(0.0);

/// How often the counters are looked at until they are settled.
const SETTLED_WITHIN: u32 = 100_000;

const CONTENDERS: usize = 5;
const PRIVATE: DeviceId = DeviceId::new(0);
const COHERENT: DeviceId = DeviceId::new(1);

/// What a contender took in each round that counts, for each page of the data.
#[derive(Default)]
struct Taken {
    nanoseconds: Samples,
    moved: Samples,
    bytes: Samples,
}

/// Ways to work by turns.
enum Contender<'m> {
    /// On a device, in memory of hetmem's.
    Shared { mapping: &'m Mapping, device: OnMapping<'m>, comes_and_goes: bool },
    /// Explicit copies.
    Copies { host: Buffer, device: Buffer },
}

pub(super) fn run(plan: &Plan, progress: &Progress) -> Result<Section, Failure> {
    let what = format!("CPU and accelerator change a word of each page of {} by turns", plan.faulted);
    let mut section = Section::new("alternate", what);
    // Room for the data of two contenders, and somewhat more: the handler thread lets go of the last frame a moment after the touch that it serves.
    let size = ByteLen::new(2 * plan.faulted.get() + BLOCK_SIZE);
    let runtime = runtime(&["private", "coherent"], size, Some(plan.faulted), FaultPath::Sigbus)?;
    let map = |path| runtime.map(plan.faulted, path).map_err(failed("no memory for hetmem"));
    let (thread, sigbus) = (map(FaultPath::Thread)?, map(FaultPath::Sigbus)?);
    let (coherent, checked) = (map(FaultPath::Thread)?, map(FaultPath::Thread)?);
    let buffer = || Buffer::new(pages(plan.faulted), HugePages::Prefer).map_err(failed("no memory to compare with"));
    let mut contenders = [
        ("coherent", shared(&coherent, COHERENT, InPlace::Direct)?),
        ("private (thread)", shared(&thread, PRIVATE, InPlace::Direct)?),
        ("private (SIGBUS)", shared(&sigbus, PRIVATE, InPlace::Direct)?),
        ("coherent (checked)", shared(&checked, COHERENT, InPlace::Checked)?),
        ("explicit copies", Contender::Copies { host: buffer()?, device: buffer()? }),
    ];
    for (_, contender) in &contenders {
        fill(contender.words(), 0);
    }
    // The first placement.
    let placed = [coherent.range(), checked.range()];
    let outcomes = runtime.migrate_all(&placed, Request::all_to(Destination::Device(COHERENT)));
    let (placed, kept) = moved_and_kept(&outcomes);
    if kept > 0 {
        return Err(Failure::Bench(format!("{kept} pages did not move to the coherent device")));
    }
    let n = pages(plan.faulted).as_usize();
    for (name, disorder) in [("in disorder", true), ("in order", false)] {
        progress.begin(&format!("alternate: {name}"), plan.rounds + 1);
        let mut taken: [Taken; CONTENDERS] = Default::default();
        for round in 0..=plan.rounds {
            let order = if disorder { shuffled(n, round as u64 + 1) } else { (0..n).collect() };
            for ((_, contender), taken) in contenders.iter_mut().zip(&mut taken) {
                let before = Traffic::settled(&runtime, PageCount::new(placed));
                let start = Instant::now();
                let copied = contender.round(&runtime, &order)?;
                let time = start.elapsed();
                let traffic = Traffic::settled(&runtime, PageCount::new(placed));
                if round > 0 {
                    let a_page = |count: u64| float(count) / float(n as u64);
                    taken.nanoseconds.push(time.as_secs_f64() * 1e9 / float(n as u64));
                    taken.moved.push(float(traffic.moved - before.moved));
                    taken.bytes.push(a_page(copied + traffic.bytes - before.bytes));
                }
            }
            progress.step();
        }
        rows(&mut section, name, &contenders.each_ref().map(|(name, _)| *name), taken);
    }
    let rounds = 2 * (plan.rounds as u64 + 1);
    for (name, contender) in &contenders {
        contender.verify(2 * rounds).map_err(|()| Failure::Bench(format!("{name}: a change of a word was lost")))?;
    }
    section.notes.push("the target is one for both orders; checked: each access in place is a system call".to_owned());
    Ok(section)
}

/// The rows of one order of touches. The first contender is the one that the others are compared with.
fn rows(section: &mut Section, order: &str, names: &[&str; CONTENDERS], taken: [Taken; CONTENDERS]) {
    let base = taken[0].nanoseconds.clone();
    for (i, (name, taken)) in names.iter().zip(taken).enumerate() {
        let time = Row::new(format!("{name}, {order}"), "ns/page", taken.nanoseconds);
        let moved = Row::new("  pages moved", "a round", taken.moved);
        let target = name.starts_with("private").then_some(OF_COHERENT);
        section.rows.push(if i == 0 { time } else { time.against("coherent", &base, target) });
        section.rows.push(if name.starts_with("coherent") { moved.aim(MOVED) } else { moved });
        section.rows.push(Row::new("  bytes copied", "B/page", taken.bytes));
    }
}

fn shared(mapping: &Mapping, device: DeviceId, in_place: InPlace) -> Result<Contender<'_>, Failure> {
    let options = Options { workers: 1, in_place };
    let comes_and_goes = device == PRIVATE;
    let device = mapping.accelerator(device, options).map_err(failed("no accelerator"))?;
    Ok(Contender::Shared { mapping, device, comes_and_goes })
}

impl Contender<'_> {
    fn words(&self) -> &[AtomicU64] {
        match self {
            Self::Shared { mapping, .. } => mapping.words(),
            Self::Copies { host, .. } => host.words(),
        }
    }

    /// Both change all pages, the accelerator first. Returns what was copied past hetmem's counters.
    fn round(&mut self, runtime: &Runtime, order: &[usize]) -> Result<u64, Failure> {
        match self {
            Self::Shared { mapping, device, comes_and_goes } => {
                if *comes_and_goes {
                    send_out(runtime, mapping.range())?;
                }
                let first = mapping.range().start();
                kernel(device, first, order).map_err(failed("a kernel on the accelerator"))?;
                change(mapping.words(), order);
                Ok(0)
            }
            Self::Copies { host, device } => {
                let all = CopyRun { from: PageCount::ZERO, to: PageCount::ZERO, pages: host.range().pages() };
                host.copy_runs(device, &[all], CopyWay::Library);
                change(device.words(), order);
                device.copy_runs(host, &[all], CopyWay::Library);
                change(host.words(), order);
                Ok(2 * all.pages.bytes().get())
            }
        }
    }

    /// Whether each page's word was changed `times` times, and nothing else was.
    fn verify(&self, times: u64) -> Result<(), ()> {
        let words = self.words();
        for page in words.chunks(WORDS) {
            page[0].fetch_sub(times, Relaxed);
        }
        if is_intact(words, 0) { Ok(()) } else { Err(()) }
    }
}

/// The CPU's part, and the kernel of those who copy.
fn change(words: &[AtomicU64], order: &[usize]) {
    for page in order {
        let word = &words[page * WORDS];
        word.store(word.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

/// The accelerator's part.
fn kernel(device: &OnMapping<'_>, first: VirtAddr, order: &[usize]) -> Result<(), AccessError> {
    device.launch(order.len(), |view, i| {
        let word = first.add_pages(PageCount::new(order[i] as u64));
        let value = view.load(word)?;
        view.store(word, value.wrapping_add(1))
    })
}

/// What hetmem has moved so far.
struct Traffic {
    moved: u64,
    bytes: u64,
}

impl Traffic {
    /// The counters when all but `away` pages are home: the handler thread counts the last one a moment after the touch that it serves.
    fn settled(runtime: &Runtime, away: PageCount) -> Self {
        let mut counted = runtime.statistics();
        for _ in 0..SETTLED_WITHIN {
            if counted.pages_migrated_to_device == counted.pages_migrated_to_system + away.get() {
                break;
            }
            std::thread::yield_now();
            counted = runtime.statistics();
        }
        let moved = counted.pages_migrated_to_device + counted.pages_migrated_to_system;
        Self { moved, bytes: counted.bytes_copied }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_is_lost_is_noticed() {
        let buffer = || Buffer::new(PageCount::new(4), HugePages::Never).unwrap();
        let contender = Contender::Copies { host: buffer(), device: buffer() };
        fill(contender.words(), 0);
        change(contender.words(), &[3, 0, 2, 1]);
        assert_eq!(contender.verify(1), Ok(()));
        change(contender.words(), &[3, 0, 2]);
        assert_eq!(contender.verify(1), Err(()));
    }
}

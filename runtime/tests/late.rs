//! A device that takes long: whoever touches a page of it waits for that page, and for nobody else's. So it is with a file on a disk.
#![expect(unsafe_code, reason = "of the module that tests share, and of a bare disk to compare with")]
#![expect(clippy::print_stderr, reason = "what was measured, and why a test can't run here")]

mod common;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use common::{PRIVATE, WORDS, fill, map, to, verify};
use hetmem::{FaultPath, PageCount, Request, Residency, Runtime, Target, VirtAddr};
use hetmem_sys::scratch::{Piece, Scratch};

const LATENCY: Duration = Duration::from_millis(50);
const TOUCHERS: u32 = 100;
/// Between two touched pages lies one that nobody touches, so that no neighbour comes along.
const PAGES: u64 = 2 * TOUCHERS as u64;

fn runtime() -> Runtime {
    let spec = format!("private:emulated,size=64M,latency={}ms", LATENCY.as_millis());
    Runtime::builder().device(spec.parse().unwrap()).start().unwrap()
}

/// One after the other they would take a hundred times the latency. That all take less than half of it, on however busy a machine, is because they
/// wait together: as many as can be under way at a time, and then the others.
#[test]
fn touches_wait_together() {
    let runtime = runtime();
    let mapping = map(&runtime, PAGES, FaultPath::Thread);
    fill(&mapping);
    let start = Instant::now();
    assert_eq!(runtime.migrate(mapping.range(), to(PRIVATE)).moved(), PageCount::new(PAGES));
    assert!(start.elapsed() >= LATENCY, "the device takes its time, once for the whole batch");
    let ready = Barrier::new(TOUCHERS as usize + 1);
    let slowest = Mutex::new(Duration::ZERO);
    let took = std::thread::scope(|scope| {
        for toucher in 0..TOUCHERS as usize {
            let (ready, slowest, words) = (&ready, &slowest, mapping.words());
            scope.spawn(move || {
                ready.wait();
                let start = Instant::now();
                std::hint::black_box(words[2 * toucher * WORDS].load(Relaxed));
                let mut slowest = slowest.lock().unwrap();
                *slowest = start.elapsed().max(*slowest);
            });
        }
        ready.wait();
        Instant::now()
    });
    let took = took.elapsed();
    assert!(*slowest.lock().unwrap() >= LATENCY, "the device takes its time");
    assert!(took < LATENCY * TOUCHERS / 2, "{TOUCHERS} touches took {took:?}");
    let residency = runtime.residency(mapping.range());
    for (page, at) in residency.iter().enumerate() {
        let expected = if page % 2 == 0 { Residency::System } else { Residency::Device(PRIVATE) };
        assert_eq!(*at, expected, "page {page}");
    }
    // All at once, or each of the others would be waited for by itself.
    assert_eq!(runtime.migrate(mapping.range(), Request::all_to(Target::System)).moved().get(), PAGES / 2);
    verify(&mapping);
    runtime.check();
}

/// While touches wait for the device, the handler thread serves what needs none: here first touches of holes.
#[test]
fn who_needs_no_device_does_not_wait_for_it() {
    const HOLES: usize = 1024;
    const TOUCHES: usize = 8;
    let runtime = runtime();
    let (away, sparse) = (map(&runtime, PAGES, FaultPath::Thread), map(&runtime, 16 * HOLES as u64, FaultPath::Thread));
    fill(&away);
    sparse.words()[0].store(1, Relaxed);
    assert_eq!(runtime.migrate(away.range(), to(PRIVATE)).moved(), PageCount::new(PAGES));
    // The mapping is trapped as long as a page of it is away: touches of its holes are reported, and 16 are filled at a time.
    let first = sparse.range().slice(PageCount::ZERO, PageCount::ONE);
    assert_eq!(runtime.migrate(first, to(PRIVATE)).moved(), PageCount::ONE);
    let under_way = Barrier::new(2);
    std::thread::scope(|scope| {
        let touch = scope.spawn(|| {
            under_way.wait();
            for number in 0..TOUCHES {
                std::hint::black_box(away.words()[2 * number * WORDS].load(Relaxed));
            }
        });
        under_way.wait();
        let holes = 1..HOLES;
        let filled =
            holes.take_while(|_| !touch.is_finished()).filter(|i| sparse.words()[16 * i * WORDS].load(Relaxed) == 0);
        let filled = filled.count();
        assert!(filled > TOUCHES, "{filled} holes were filled while {TOUCHES} touches waited for the device");
    });
    let home = runtime.migrate(away.range(), Request::all_to(Target::System)).moved();
    assert!(home.get() < PAGES, "touches brought some home");
    verify(&away);
    assert_eq!(sparse.words()[0].load(Relaxed), 1);
    runtime.check();
}

/// A folder on a disk, as that for temporary files may be memory.
const FOLDER: &str = env!("CARGO_TARGET_TMPDIR");

/// With pages of it in a file; `None`, with a line, if there is no disk here.
fn on_disk() -> Option<Runtime> {
    let spec = format!("private:file={FOLDER},size=128M").parse().unwrap();
    match Runtime::builder().device(spec).sigbus().single_faults().start() {
        Ok(runtime) => Some(runtime),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// Some are touched by many at once while others go out, and the rest comes home by request.
#[test]
fn pages_in_a_file_come_back_to_who_touches_them_on_both_paths() {
    let Some(runtime) = on_disk() else { return };
    for path in [FaultPath::Thread, FaultPath::Sigbus] {
        let (touched, other) = (map(&runtime, 2048, path), map(&runtime, 2048, path));
        fill(&touched);
        fill(&other);
        assert_eq!(runtime.migrate(touched.range(), to(PRIVATE)).moved().get(), 2048);
        std::thread::scope(|scope| {
            for toucher in 0..8 {
                let words = touched.words();
                // From its own place on, so that all pages are touched by several.
                let order = (0..2048).map(move |i| (i * 5 + toucher * 256) % 2048);
                scope.spawn(move || order.for_each(|page| _ = std::hint::black_box(words[page * WORDS].load(Relaxed))));
            }
            scope.spawn(|| assert_eq!(runtime.migrate(other.range(), to(PRIVATE)).moved().get(), 2048));
        });
        verify(&touched);
        assert_eq!(runtime.migrate(other.range(), Request::all_to(Target::System)).moved().get(), 2048);
        verify(&other);
        runtime.check();
    }
}

/// Calls `touch` with each page of `order`, by so many threads, and says how long each took, in order.
fn timed(order: &[usize], threads: usize, touch: impl Fn(usize) + Sync) -> Vec<f64> {
    let part = |pages: &[usize]| -> Vec<f64> {
        let one = |page: &usize| {
            let start = Instant::now();
            touch(*page);
            start.elapsed().as_secs_f64() * 1e6
        };
        pages.iter().map(one).collect()
    };
    let mut all: Vec<f64> = std::thread::scope(|scope| {
        let part = &part;
        let parts: Vec<_> =
            order.chunks(order.len().div_ceil(threads)).map(|pages| scope.spawn(move || part(pages))).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    });
    all.sort_by(f64::total_cmp);
    all
}

/// Both, each of them first by turns.
fn by_turns<R>(round: u64, bare: &dyn Fn() -> R, ours: &dyn Fn() -> R) -> (R, R) {
    if round.is_multiple_of(2) {
        let first = bare();
        return (first, ours());
    }
    let first = ours();
    (bare(), first)
}

/// Prints how pages in a file compare with the disk itself: by turns, as what else the disk does changes from one second to the next.
#[test]
#[ignore = "measures, and prints what it finds"]
fn how_a_file_compares_with_its_disk() {
    const PAGES: u64 = 16_384;
    const ROUNDS: u64 = 5;
    let Some(runtime) = on_disk() else { return };
    let (mapping, memory) = (map(&runtime, PAGES, FaultPath::Thread), map(&runtime, PAGES, FaultPath::Thread));
    let disk = Scratch::create(FOLDER).unwrap();
    disk.reserve(0, PAGES * 4096).unwrap();
    let at = |page: u64| -> VirtAddr { memory.range().start().add_pages(PageCount::new(page)) };
    let bare_page = |page: usize| {
        let page = page as u64;
        // SAFETY: memory of this test's, a page for each.
        assert_eq!(unsafe { disk.read(&[Piece::new(at(page), PageCount::ONE)], page * 4096) }, Ok(4096));
    };
    let bare_blocks = |write: bool| {
        let start = Instant::now();
        for page in (0..PAGES).step_by(512) {
            let piece = [Piece::new(at(page), PageCount::new(512))];
            let done = if write {
                // SAFETY: memory of this test's, which nobody else uses.
                unsafe { disk.write(&piece, page * 4096) }
            } else {
                // SAFETY: as above.
                unsafe { disk.read(&piece, page * 4096) }
            };
            assert_eq!(done, Ok(2 << 20));
        }
        start.elapsed().as_secs_f64()
    };
    let migrate = |request: Request| {
        let start = Instant::now();
        assert_eq!(runtime.migrate(mapping.range(), request).moved().get(), PAGES);
        start.elapsed().as_secs_f64()
    };
    // Pages that migrate are small ones, of which a disk is asked in more pieces.
    hetmem_sys::mapping::forbid_huge_pages(memory.range()).unwrap();
    hetmem_sys::mapping::forbid_huge_pages(mapping.range()).unwrap();
    fill(&mapping);
    fill(&memory);
    let touch = |page: usize| _ = std::hint::black_box(mapping.words()[page * WORDS].load(Relaxed));
    let mut rows: Vec<(&str, Vec<f64>)> = Vec::new();
    let mut note = |round: u64, what: &'static str, ratio: f64, ours: f64, bare: f64| {
        eprintln!("round {round}: {what:18} {ours:10.1} bare {bare:10.1} ratio {ratio:.2}");
        match rows.iter_mut().find(|(name, _)| *name == what) {
            _ if round == 0 => {}
            Some((_, ratios)) => ratios.push(ratio),
            None => rows.push((what, vec![ratio])),
        }
    };
    for round in 0..=ROUNDS {
        let rate = |seconds: f64| PAGES as f64 / 256.0 / seconds;
        let (bare, ours) = by_turns(round, &|| bare_blocks(true), &|| migrate(to(PRIVATE)));
        note(round, "out, MiB/s", bare / ours, rate(ours), rate(bare));
        let home = Request::all_to(Target::System);
        let (bare, ours) = by_turns(round, &|| bare_blocks(false), &|| migrate(home));
        note(round, "home, MiB/s", bare / ours, rate(ours), rate(bare));
        migrate(to(PRIVATE));
        // A step that has no divisor in common with the number of pages: each once, and none behind another.
        let order: Vec<usize> = (0..PAGES).map(|i| ((i * 7919 + round * 31) % PAGES) as usize).collect();
        let (one, many) = order.split_at(2048);
        for (threads, order, names) in [
            (1, one, ["1 thread p50, us", "1 thread p99, us"]),
            (8, &many[..8192], ["8 threads p50, us", "8 threads p99, us"]),
        ] {
            let (bare, ours) = by_turns(round, &|| timed(order, threads, bare_page), &|| timed(order, threads, touch));
            for (name, permille) in names.into_iter().zip([500, 990]) {
                let (ours, bare) = (ours[order.len() * permille / 1000], bare[order.len() * permille / 1000]);
                note(round, name, ours / bare, ours, bare);
            }
        }
        runtime.migrate(mapping.range(), Request::all_to(Target::System));
        verify(&mapping);
    }
    for (what, mut ratios) in rows {
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        eprintln!("{what:18} ratio {:.2} ({least:.2} to {most:.2})", ratios[ratios.len() / 2]);
    }
}

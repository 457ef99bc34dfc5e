//! A device that takes long: whoever touches a page of it waits for that page, and for nobody else's.
#![expect(unsafe_code, reason = "of the module that tests share")]

mod common;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use common::{PRIVATE, WORDS, fill, map, to, verify};
use hetmem::{FaultPath, PageCount, Request, Residency, Runtime, Target};

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

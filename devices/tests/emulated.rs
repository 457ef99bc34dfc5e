//! The emulated device passes the conformance suite in both types, and so it does with latency; what is to be injected is.

use std::time::{Duration, Instant};

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::{MemoryType, Owner};
use hetmem_core::port::{Device, Progress, Ticket, Transfer};
use hetmem_core::units::{ByteLen, DeviceId, PageCount, VirtAddr};
use hetmem_devices::spec::parse_all;
use hetmem_devices::{conformance, kind};
use hetmem_sys::mapping::{Arena, ArenaOptions};
use hetmem_sys::timer::await_readable;

fn device(spec: &str) -> Box<dyn Device> {
    let specs = parse_all(&[spec], ByteLen::new(1 << 40)).unwrap();
    kind::make(DeviceId::new(0), Owner::new(1), &specs[0]).unwrap()
}

fn page() -> Arena {
    Arena::reserve(PageCount::ONE, &ArenaOptions::default()).unwrap()
}

fn allocate(device: &dyn Device, pages: u64) -> FrameRun {
    device.pagemap().frames.allocate(PageCount::new(pages), VirtAddr::default()).unwrap()
}

#[test]
fn both_types_conform_whether_transfers_end_at_once_or_late() {
    for kind in [MemoryType::DevicePrivate, MemoryType::DeviceCoherent] {
        for injected in ["", ",latency=3us", ",latency=1ms", ",bandwidth=1G"] {
            let size = |capacity: PageCount| capacity.bytes().get();
            conformance::check(|capacity| {
                device(&format!("{}:emulated,size={}{injected}", kind.label(), size(capacity)))
            });
        }
    }
}

#[test]
fn every_third_copy_fails_when_asked_to() {
    let device = device("private:emulated,size=1M,fail=3");
    let page = page();
    let run = allocate(&*device, 1);
    let mut batch = [Transfer::into_frames(run, page.range().start()); 4];
    device.transfer(&mut batch[..2]);
    device.transfer(&mut batch[2..3]);
    device.submit(&mut batch[3..]);
    assert_eq!(batch.map(|transfer| transfer.result().is_ok()), [true, true, false, true]);
}

#[test]
fn latency_and_bandwidth_are_lower_bounds_of_a_copy() {
    let device = device("coherent:emulated,size=1M,latency=300us,bandwidth=4M");
    let page = page();
    let run = allocate(&*device, 1);
    let start = Instant::now();
    let mut batch = [Transfer::into_frames(run, page.range().start()); 2];
    device.transfer(&mut batch);
    // 4 KiB at 4 MiB/s take 976 microseconds; the second waits for the first to have passed, and both for the latency together.
    assert!(start.elapsed() >= Duration::from_micros(300 + 2 * 976));
    assert!(batch.iter().all(|transfer| transfer.result().is_ok()));
}

#[test]
fn what_takes_long_is_under_way_until_its_time_has_come() {
    let device = device("private:emulated,size=1M,latency=30ms");
    let page = page();
    let run = allocate(&*device, 1);
    let start = Instant::now();
    let late = Duration::from_millis(30);
    for number in 0..3 {
        let mut batch = [Transfer::into_frames(run, page.range().start()).with_ticket(Ticket::new(number))];
        device.submit(&mut batch);
        assert_eq!(batch[0].progress, Progress::UnderWay);
    }
    let mut ended = Vec::new();
    while ended.len() < 3 {
        await_readable(device.completion_descriptor().unwrap());
        device.completions(&mut |ticket, result| {
            assert!(start.elapsed() >= late && result.is_ok());
            ended.push(ticket.get());
        });
    }
    ended.sort_unstable();
    assert_eq!(ended, [0, 1, 2]);
}

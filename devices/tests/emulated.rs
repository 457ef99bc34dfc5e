//! The emulated device passes the conformance suite in both types, and injects what it is told to.

use std::time::{Duration, Instant};

use hetmem_core::physmap::{MemoryType, Owner};
use hetmem_core::port::Device;
use hetmem_core::units::{ByteLen, DeviceId, PageCount, VirtAddr};
use hetmem_devices::spec::parse_all;
use hetmem_devices::{Emulated, conformance};
use hetmem_sys::mapping::{Arena, ArenaOptions};

fn device(spec: &str) -> Emulated {
    let specs = parse_all(&[spec], ByteLen::new(1 << 40)).unwrap();
    Emulated::new(DeviceId::new(0), Owner::new(1), &specs[0]).unwrap()
}

#[test]
fn both_types_conform() {
    for kind in [MemoryType::DevicePrivate, MemoryType::DeviceCoherent] {
        conformance::check(|capacity| device(&format!("{}:emulated,size={}", kind.label(), capacity.bytes().get())));
    }
}

#[test]
fn every_third_copy_fails_when_asked_to() {
    let device = device("private:emulated,size=1M,fail=3");
    let page = Arena::reserve(PageCount::ONE, &ArenaOptions::default()).unwrap();
    let run = device.pagemap().frames.allocate(PageCount::ONE, VirtAddr::default()).unwrap();
    let results: Vec<bool> = (0..6).map(|_| device.copy_in(run, page.range().start()).is_ok()).collect();
    assert_eq!(results, [true, true, false, true, true, false]);
}

#[test]
fn latency_and_bandwidth_are_lower_bounds_of_a_copy() {
    let device = device("coherent:emulated,size=1M,latency=300us,bandwidth=4M");
    let page = Arena::reserve(PageCount::ONE, &ArenaOptions::default()).unwrap();
    let run = device.pagemap().frames.allocate(PageCount::ONE, VirtAddr::default()).unwrap();
    let start = Instant::now();
    device.copy_in(run, page.range().start()).unwrap();
    // 4 KiB at 4 MiB/s take 976 microseconds.
    assert!(start.elapsed() >= Duration::from_micros(300 + 976));
}

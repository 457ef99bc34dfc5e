//! What a user of the crate has in his hands: how long it lives, what it says of itself, and that `hetmem` alone names it.
#![expect(unsafe_code, reason = "memory is adopted, and a child is forked")]

mod common;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use common::{COHERENT, PRIVATE, Raw, builder, fill, map, runtime, to, verify};
use hetmem::accelerator::Options;
use hetmem::mirror::{Event, Subscription};
use hetmem::{DeviceSpec, FaultPath, KeptReason, PageCount, PageRange, Residency, Runtime, Statistics};

const PAGES: u64 = 64;

/// Subscribes to everything, and counts the ends that are told.
fn ends(runtime: &Runtime) -> (Subscription, Arc<Mutex<u32>>) {
    let ends = Arc::new(Mutex::new(0));
    let subscription = runtime
        .subscribe(PageRange::ALL, {
            let ends = Arc::clone(&ends);
            move |notice| {
                notice.set_seq();
                *ends.lock().unwrap() += u32::from(notice.event() == Event::Release);
            }
        })
        .unwrap();
    (subscription, ends)
}

#[test]
fn a_mapping_keeps_its_runtime() {
    for path in [FaultPath::Thread, FaultPath::Sigbus] {
        let runtime = runtime();
        let (_subscription, ends) = ends(&runtime);
        let (mapping, other) = (map(&runtime, PAGES, path), map(&runtime, PAGES, path));
        fill(&mapping);
        fill(&other);
        assert_eq!(runtime.migrate(mapping.range(), to(PRIVATE)).moved(), PageCount::new(PAGES));
        assert_eq!(runtime.migrate(other.range(), to(PRIVATE)).moved(), PageCount::new(PAGES));
        drop(runtime);
        assert_eq!(*ends.lock().unwrap(), 0);
        // Touches are served.
        verify(&mapping);
        drop(mapping);
        verify(&other);
        assert_eq!(*ends.lock().unwrap(), 0);
        drop(other);
        assert_eq!(*ends.lock().unwrap(), 1, "the last handle is the end");
    }
}

#[test]
fn an_accelerator_keeps_its_runtime() {
    let memory = Raw::anonymous(PAGES);
    memory.fill();
    let runtime = runtime();
    let (_subscription, ends) = ends(&runtime);
    // SAFETY: no allocator and no thread uses it.
    unsafe { runtime.adopt(memory.range(), FaultPath::Thread) }.unwrap();
    assert_eq!(runtime.migrate(memory.range(), to(PRIVATE)).moved(), PageCount::new(PAGES));
    // SAFETY: nobody else uses the memory.
    let accelerator = unsafe { runtime.accelerator(PRIVATE, memory.range(), Options::default()) }.unwrap();
    drop(runtime);
    assert_eq!(*ends.lock().unwrap(), 0);
    for page in memory.range().iter() {
        accelerator.view().store(page, 5).unwrap();
    }
    drop(accelerator);
    assert_eq!(*ends.lock().unwrap(), 1);
    assert!((0..PAGES).all(|page| memory.get(page) == 5), "everything came home");
}

#[test]
fn in_a_forked_child_dropping_ends_nothing() {
    let runtime = runtime();
    let mapping = map(&runtime, PAGES, FaultPath::Thread);
    fill(&mapping);
    runtime.migrate(mapping.range(), to(COHERENT));
    // SAFETY: the child drops what it has, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: ends the child if it waits for ever.
        unsafe { libc::alarm(60) };
        drop(runtime);
        drop(mapping);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    let mut status = -1;
    // SAFETY: the child is this test's own.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(runtime.residency(mapping.range()), [Residency::Device(COHERENT); 64]);
    verify(&mapping);
    assert_eq!(runtime.migrate(mapping.range(), to(PRIVATE)).moved(), PageCount::new(PAGES));
    verify(&mapping);
}

#[test]
fn statistics_are_a_copy_in_the_units_that_they_name() {
    let runtime = builder().start().unwrap();
    let before = runtime.statistics();
    assert_eq!(before.devices.len(), 2, "one for each device");
    let mut nothing = Statistics::default();
    nothing.devices.resize_with(2, Default::default);
    assert_eq!(before, nothing);
    let mapping = map(&runtime, PAGES, FaultPath::Sigbus);
    mapping.words()[0].store(1, Relaxed);
    runtime.migrate(mapping.range(), to(PRIVATE));
    let out = runtime.statistics();
    assert_eq!(before, nothing, "a snapshot does not change");
    assert_eq!(out.adopted_bytes, PAGES * hetmem::PAGE_SIZE);
    assert_eq!((out.pages_migrated_to_device, out.pages_migrated_to_system), (1, 0));
    assert_eq!(out.pages_kept.iter().collect::<Vec<_>>(), [(&KeptReason::Hole, &(PAGES - 1))]);
    assert_eq!(out.devices[0].used_bytes, hetmem::PAGE_SIZE);
    assert_eq!((out.bytes_copied, out.cpu_faults), (hetmem::PAGE_SIZE, 0));
    assert_eq!(mapping.words()[0].load(Relaxed), 1);
    let home = runtime.statistics();
    assert_eq!((home.cpu_faults, home.pages_migrated_to_system), (1, 1));
    assert!(home.fault_latency_p50_ns > 0 && home.fault_latency_p50_ns <= home.fault_latency_max_ns);
    assert_eq!((home.devices[0].used_bytes, home.devices[0].peak_used_bytes), (0, hetmem::PAGE_SIZE));
}

#[test]
fn specs_are_read_from_text_and_printed_as_such() {
    for text in ["private:emulated,size=64M,name=gpu", "coherent:node=0,size=1G,name=n,latency=2us,bandwidth=4G,fail=3"]
    {
        let spec: DeviceSpec = text.parse().unwrap();
        assert_eq!(spec.to_string(), text);
        assert_eq!(spec.to_string().parse(), Ok(spec));
    }
    let wrong =
        ["", "private", "shared:emulated", "private:emulated,size=1", "private:emulated,size=64MB", "private:disk"];
    for text in wrong {
        let line = text.parse::<DeviceSpec>().unwrap_err().to_string();
        assert!(line.starts_with(&format!("device `{text}`: ")) && !line.contains('\n'), "{line}");
    }
}

#[test]
fn handles_are_shared_by_threads_and_say_what_they_are() {
    fn shared<T: Send + Sync + std::fmt::Debug>(value: &T) -> String {
        format!("{value:?}")
    }
    let builder = builder();
    assert!(shared(&builder).contains("private:emulated"));
    let runtime = builder.start().unwrap();
    assert_eq!(shared(&runtime), "Runtime { devices: [DevicePrivate, DeviceCoherent], .. }");
    let mapping = map(&runtime, PAGES, FaultPath::Thread);
    assert_eq!(shared(&mapping), format!("Mapping({})", mapping.range()));
    let (subscription, _) = ends(&runtime);
    assert_eq!(shared(&subscription), format!("Subscription({})", PageRange::ALL));
    let accelerator = mapping.accelerator(PRIVATE, Options::default()).unwrap();
    assert!(shared(&*accelerator).contains("device: DeviceId(0)"));
}

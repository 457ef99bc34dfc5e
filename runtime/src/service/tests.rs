//! What a handler thread does when it can't go on.
#![expect(unsafe_code, reason = "a test's own process limits itself")]

use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::Ordering::SeqCst;

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::{Owner, Pagemap};
use hetmem_core::port::{Device, Direction, Reach, Transfer};
use hetmem_core::units::{ByteLen, DeviceId};
use hetmem_devices::Emulated;
use hetmem_devices::spec::DeviceSpec;
use hetmem_sys::thread::Processors;

use super::*;
use crate::mirror::Event as MirrorEvent;
use crate::{Request, Runtime, Target};

/// A device that panics when a page is to come home.
struct Panics(Emulated);

impl Device for Panics {
    fn clear(&self, run: FrameRun) {
        self.0.clear(run);
    }

    fn pagemap(&self) -> &Pagemap {
        self.0.pagemap()
    }

    fn reach(&self) -> Reach {
        self.0.reach()
    }

    fn transfer(&self, batch: &mut [Transfer]) {
        assert!(batch.iter().all(|transfer| transfer.direction == Direction::In), "the device is on fire");
        self.0.transfer(batch);
    }
}

/// The test's own process, if that is what this is, and what is to happen in it.
fn own_process() -> Option<String> {
    let case = std::env::var("HETMEM_TEST_CASE").ok()?;
    // SAFETY: no core is wanted.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 }) };
    // SAFETY: whoever waits for ever is ended by another signal than the one that is expected.
    unsafe { libc::alarm(60) };
    Some(case)
}

/// The first of the threads that serve clears, and may be asleep when others have served.
#[test]
fn what_pages_leave_is_cleared_whoever_serves_the_touches() {
    let device: DeviceSpec = "private:emulated,size=16M".parse().unwrap();
    let runtime = Runtime::builder().device(device).start().unwrap();
    let mapping = runtime.map(ByteLen::new(1 << 20), FaultPath::Thread).unwrap();
    mapping.words().iter().for_each(|word| word.store(1, SeqCst));
    let moved = runtime.migrate(mapping.range(), Request::all_to(Target::Device(DeviceId::new(0)))).moved();
    assert_eq!(moved, mapping.range().pages());
    let await_cleared = || {
        let begun = Instant::now();
        while runtime.inner.engine.has_resting() {
            assert!(begun.elapsed() < Duration::from_secs(20), "nobody clears what pages have left");
            hetmem_sys::thread::yield_now();
        }
    };
    await_cleared();
    let processors = Processors::of_this_thread();
    for (nth, page) in (0..processors.len()).rev().zip(mapping.words().chunks(512).step_by(7)) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                processors.stay_on(nth).unwrap();
                assert_eq!(page[0].load(SeqCst), 1);
            });
        });
        await_cleared();
    }
}

/// Touchers would wait for ever for a thread that is no more.
#[test]
fn a_panic_where_touches_are_served_ends_the_program_with_a_line() {
    let lines = [
        (
            "device",
            "hetmem: the thread that serves touches has panicked, so the program is stopped: the device is on fire",
        ),
        (
            "callback",
            "hetmem: the thread that serves touches has panicked, so the program is stopped: the callback is wrong",
        ),
        // In the touching thread, out of whose signal handler nothing may unwind.
        ("sigbus", "the device is on fire"),
    ];
    for (case, line) in lines {
        let ended = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", "service::tests::panics"])
            .env("HETMEM_TEST_CASE", case)
            .output()
            .unwrap();
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{case}: {ended:?}");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(said.contains(line), "{case}: {said}");
    }
}

#[test]
#[ignore = "is run by a_panic_where_touches_are_served_ends_the_program_with_a_line"]
fn panics() {
    let Some(case) = own_process() else { return };
    let spec: DeviceSpec = "private:emulated,size=16M".parse().unwrap();
    let device = Emulated::new(DeviceId::new(0), Owner::new(1), &spec).unwrap();
    // SAFETY: an emulated device, but for its panics.
    let runtime = unsafe { Runtime::builder().sigbus().custom(Box::new(Panics(device))) }.start().unwrap();
    let path = if case == "sigbus" { FaultPath::Sigbus } else { FaultPath::Thread };
    let mapping = runtime.map(ByteLen::new(1 << 20), path).unwrap();
    mapping.words()[0].store(1, SeqCst);
    let moved = runtime.migrate(mapping.range(), Request::all_to(Target::Device(DeviceId::new(0)))).moved();
    assert_eq!(moved, PageCount::ONE);
    let _told = (case == "callback").then(|| {
        // Of a touch only: the end of the runtime is told, too, and must not be what ends the process.
        let callback = |notice: &crate::mirror::Notice<'_>| {
            assert!(!matches!(notice.event(), MirrorEvent::Migrate(None)), "the callback is wrong");
            notice.set_seq();
        };
        runtime.subscribe(mapping.range(), callback).unwrap()
    });
    std::hint::black_box(mapping.words()[0].load(SeqCst));
}

//! Devices of the program's own: they are used as any other, refused if they contradict themselves, and what they can't give back is never lost.
#![expect(unsafe_code, reason = "devices are made, and memory is adopted")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use common::{Raw, fill, map, to, verify};
use hetmem::device::{Direction, NoBacking, Pagemap, Progress, Reach, Transfer, TransferError};
use hetmem::{
    BLOCK_PAGES, Builder, Device, DeviceId, DeviceSpec, ErrorKind, FaultPath, FrameRun, KeptReason, MemoryType, Owner,
    PageCount, Request, Residency, Runtime, Target, VirtAddr,
};
use hetmem_devices::Emulated;

const FIRST: DeviceId = DeviceId::new(0);
const SECOND: DeviceId = DeviceId::new(1);
const PAGES: u64 = 64;

fn emulated(id: DeviceId, kind: &str) -> Emulated {
    let spec: DeviceSpec = format!("{kind}:emulated,size=16M").parse().unwrap();
    Emulated::new(id, Owner::new(7), &spec).unwrap()
}

fn custom(builder: Builder, device: impl Device + 'static) -> Builder {
    // SAFETY: the tests' devices give back what they were given, or an error; those that name wrong addresses are refused before they are used.
    unsafe { builder.custom(Box::new(device)) }
}

/// An emulated device that gives nothing back while it is broken, and says of itself what a test has it say.
struct Wrapped {
    device: Emulated,
    broken: Arc<AtomicBool>,
    pagemap: Option<Pagemap>,
    reach: Reach,
}

impl Wrapped {
    fn new(id: DeviceId, kind: &str) -> Self {
        let device = emulated(id, kind);
        let reach = device.reach();
        Self { device, broken: Arc::default(), pagemap: None, reach }
    }
}

impl Device for Wrapped {
    fn pagemap(&self) -> &Pagemap {
        self.pagemap.as_ref().unwrap_or(self.device.pagemap())
    }

    fn reach(&self) -> Reach {
        self.reach
    }

    fn prepare(&self, run: FrameRun) -> Result<PageCount, NoBacking> {
        self.device.prepare(run)
    }

    fn transfer(&self, batch: &mut [Transfer]) {
        self.device.transfer(batch);
        let broken = self.broken.load(SeqCst);
        for transfer in batch.iter_mut().filter(|transfer| broken && transfer.direction == Direction::Out) {
            transfer.progress = Progress::Done(Err(TransferError::Transient));
        }
    }

    fn clear(&self, run: FrameRun) {
        self.device.clear(run);
    }
}

#[test]
fn devices_of_the_programs_own_are_used_as_others_are() {
    let described = || "coherent:emulated,size=16M".parse().unwrap();
    let builder = custom(Runtime::builder().sigbus().device(described()), Wrapped::new(SECOND, "private"));
    let runtime = custom(builder, Wrapped::new(DeviceId::new(2), "coherent")).start().unwrap();
    let (private, coherent) = (MemoryType::DevicePrivate, MemoryType::DeviceCoherent);
    assert_eq!(runtime.devices(), [coherent, private, coherent]);
    assert_eq!(runtime.owner(SECOND), Some(Owner::new(7)));
    for path in [FaultPath::Thread, FaultPath::Sigbus] {
        let mapping = map(&runtime, PAGES, path);
        fill(&mapping);
        for device in [SECOND, FIRST, DeviceId::new(2), SECOND] {
            assert_eq!(runtime.migrate(mapping.range(), to(device)).moved(), PageCount::new(PAGES));
            assert!(runtime.residency(mapping.range()).iter().all(|at| *at == Residency::Device(device)));
        }
        verify(&mapping);
        runtime.check();
    }
}

#[test]
fn a_device_that_contradicts_itself_is_refused_in_one_line() {
    let pagemap = |kind, capacity| Pagemap::new(FIRST, kind, Owner::new(1), PageCount::new(capacity));
    let (private, coherent) = (MemoryType::DevicePrivate, MemoryType::DeviceCoherent);
    let wrapped = |change: fn(&mut Wrapped)| {
        let mut device = Wrapped::new(FIRST, "coherent");
        change(&mut device);
        device
    };
    let used = Wrapped::new(FIRST, "private");
    let _run = used.device.pagemap().frames.allocate(PageCount::ONE, VirtAddr::default());
    let cases = [
        ("is device 1", Wrapped::new(SECOND, "private")),
        ("in use", used),
        ("no address", wrapped(|device| device.reach = Reach::Copied)),
        ("begin at a page", wrapped(|device| device.reach = Reach::Movable(VirtAddr::new(4097)))),
        ("begin at a page", wrapped(|device| device.reach = Reach::Movable(VirtAddr::new(!0xfff)))),
        (
            "whole blocks",
            Wrapped {
                pagemap: Some(pagemap(coherent, BLOCK_PAGES + 1)),
                reach: Reach::Laid(VirtAddr::new(4096)),
                ..Wrapped::new(FIRST, "coherent")
            },
        ),
        ("it is private", Wrapped { pagemap: Some(pagemap(private, BLOCK_PAGES)), ..Wrapped::new(FIRST, "coherent") }),
        ("it is coherent", Wrapped { pagemap: Some(pagemap(coherent, BLOCK_PAGES)), ..Wrapped::new(FIRST, "private") }),
    ];
    for (why, device) in cases {
        let error = custom(Runtime::builder(), device).start().expect_err(why);
        let line = error.to_string();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{line}");
        assert!(line.starts_with("device 0: ") && line.contains(why) && !line.contains('\n'), "{why}: {line}");
    }
    let many =
        (0..17).fold(Runtime::builder(), |builder, i| custom(builder, Wrapped::new(DeviceId::new(i), "private")));
    assert!(many.start().expect_err("too many").to_string().contains("at most 16"));
}

#[test]
fn what_a_device_does_not_give_back_stays_and_comes_home_later() {
    let device = Wrapped::new(FIRST, "private");
    let broken = Arc::clone(&device.broken);
    let runtime = custom(Runtime::builder(), device).start().unwrap();
    let mapping = map(&runtime, PAGES, FaultPath::Thread);
    fill(&mapping);
    runtime.migrate(mapping.range(), to(FIRST));
    broken.store(true, SeqCst);
    let home = Request::all_to(Target::System);
    assert_eq!(runtime.migrate(mapping.range(), home).kept(KeptReason::DeviceError), PageCount::new(PAGES));
    broken.store(false, SeqCst);
    assert_eq!(runtime.migrate(mapping.range(), home).moved(), PageCount::new(PAGES));
    verify(&mapping);
}

/// Without the handler thread and the registrations the program would read zeros.
#[test]
fn adopted_pages_that_cannot_come_home_at_the_end_are_served_still() {
    for path in [FaultPath::Thread, FaultPath::Sigbus] {
        let memory = Raw::anonymous(PAGES);
        memory.fill();
        let device = Wrapped::new(FIRST, "private");
        let broken = Arc::clone(&device.broken);
        let runtime = custom(Runtime::builder().sigbus(), device).start().unwrap();
        // SAFETY: no allocator and no thread uses it, and no system call is given it.
        unsafe { runtime.adopt(memory.range(), path) }.unwrap();
        assert_eq!(runtime.migrate(memory.range(), to(FIRST)).moved(), PageCount::new(PAGES));
        broken.store(true, SeqCst);
        drop(runtime);
        broken.store(false, SeqCst);
        memory.verify();
    }
}

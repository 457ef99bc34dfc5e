//! Devices of the program's own: they are used as any other, refused if they contradict themselves, and what they can't give back is never lost.
#![expect(unsafe_code, reason = "devices are made, and memory is adopted")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};

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

/// A device that begins no batch of a migration before it is let.
struct Stepped {
    device: Emulated,
    steps: Arc<Steps>,
}

/// How many batches have come to the device, and how many it was let do.
#[derive(Default)]
struct Steps {
    state: Mutex<(u32, u32)>,
    changed: Condvar,
}

impl Steps {
    /// In the device: a batch has come, and waits until it is let.
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.0 += 1;
        let number = state.0;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, let_by)| *let_by < number).unwrap());
    }

    fn let_by(&self, batches: u32) {
        self.state.lock().unwrap().1 = batches;
        self.changed.notify_all();
    }

    fn await_come(&self, batches: u32) {
        drop(self.changed.wait_while(self.state.lock().unwrap(), |(come, _)| *come < batches).unwrap());
    }
}

impl Device for Stepped {
    fn pagemap(&self) -> &Pagemap {
        self.device.pagemap()
    }

    fn reach(&self) -> Reach {
        self.device.reach()
    }

    fn prepare(&self, run: FrameRun) -> Result<PageCount, NoBacking> {
        self.device.prepare(run)
    }

    fn transfer(&self, batch: &mut [Transfer]) {
        // What a touch asks for is one page.
        if batch.iter().any(|transfer| transfer.frames.pages > PageCount::ONE) {
            self.steps.pass();
        }
        self.device.transfer(batch);
    }

    fn clear(&self, run: FrameRun) {
        self.device.clear(run);
    }
}

/// Each batch stands still until all that may not wait for it has been done, by whoever touches: if one waited, the test would not end.
#[test]
fn a_touch_waits_for_the_batch_that_its_page_is_in_and_for_no_other() {
    const BLOCKS: u64 = 4;
    let steps = Arc::new(Steps::default());
    let device = Stepped { device: emulated(FIRST, "private"), steps: Arc::clone(&steps) };
    let runtime = custom(Runtime::builder().single_faults(), device).start().unwrap();
    let mapping = map(&runtime, BLOCKS * BLOCK_PAGES, FaultPath::Thread);
    let page = |block: u64, page: u64| {
        let at = usize::try_from((block * BLOCK_PAGES + page) * hetmem::PAGE_SIZE / 8).unwrap();
        &mapping.words()[at]
    };
    let mut let_by = 0;
    for round in 0..3 {
        mapping.words().iter().step_by(512).for_each(|word| word.store(round, SeqCst));
        for target in [Target::Device(FIRST), Target::System] {
            std::thread::scope(|scope| {
                let moved = scope.spawn(|| runtime.migrate(mapping.range(), Request::all_to(target)).moved());
                for block in 0..BLOCKS {
                    steps.await_come(let_by + 1);
                    let others = (0..BLOCKS).filter(|other| *other != block);
                    // What has moved, what is still to move, and what was brought home in between.
                    others.for_each(|other| assert_eq!(page(other, block).load(SeqCst), round));
                    let toucher = scope.spawn(move || page(block, 100).load(SeqCst));
                    let_by += 1;
                    steps.let_by(let_by);
                    // The next batch stands still, and this one's pages are there.
                    assert_eq!(toucher.join().unwrap(), round);
                }
                assert!(!moved.join().unwrap().is_zero());
            });
        }
    }
    let_by += 1000;
    steps.let_by(let_by);
    runtime.check();
}

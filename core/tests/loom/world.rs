//! One page, two devices of one frame each, and an engine, small enough for the model checker.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use hetmem_core::engine::{CountersAt, Engine, Residency};
use hetmem_core::fault::FaultResolution;
use hetmem_core::frames::FrameRun;
use hetmem_core::frames::{PoolSize, SystemPool};
use hetmem_core::migrate::{Request, Target};
use hetmem_core::outcome::KeptReason;
use hetmem_core::physmap::{MemoryType, Owner, Pagemap};
use hetmem_core::port::{
    Arrived, Device, Direction, FaultPath, Host, How, InstallStop, Progress, Reach, Taken, Transfer,
};
use hetmem_core::slot::Slot;
use hetmem_core::space::Region;
use hetmem_core::sync::{Arc, Condvar, Mutex, lock};
use hetmem_core::units::{BLOCK_SIZE, DeviceId, PAGE_SIZE, PageCount, PageRange, VirtAddr};
use loom::thread;

pub(crate) const PAGE: VirtAddr = VirtAddr::new(4 * BLOCK_SIZE);
const POOL: u64 = 1 << 40;
const ARENA: u64 = 1 << 41;
/// Where the private device's frames can be read, if they can.
const PRIVATE_FRAMES: u64 = 1 << 42;
pub(crate) const PRIVATE: DeviceId = DeviceId::new(0);
pub(crate) const COHERENT: DeviceId = DeviceId::new(1);

/// What the page holds at the start.
pub(crate) const CONTENT: u64 = 77;

pub(crate) fn page() -> PageRange {
    PageRange::page_of(PAGE)
}

#[derive(Clone, Copy)]
pub(crate) enum Event {
    Unmap(PageRange),
    Remove(PageRange),
}

/// The program's pages and hetmem's own, and who sleeps.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) mapped: BTreeSet<u64>,
    pub(crate) present: BTreeMap<u64, u64>,
    pub(crate) own: BTreeMap<u64, u64>,
    pub(crate) private: BTreeMap<u32, u64>,
    pub(crate) is_readable: bool,
    pub(crate) events: VecDeque<Event>,
    pub(crate) removing: bool,
    pub(crate) waiters: BTreeSet<u64>,
}

#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) memory: Mutex<Memory>,
    pub(crate) changed: Condvar,
}

pub(crate) struct ModelHost(Arc<Shared>);

impl ModelHost {
    fn put(&self, to: PageRange, wakes: bool, mut content: impl FnMut(&mut Memory, u64) -> u64) -> Arrived {
        let memory = &mut *lock(&self.0.memory);
        let mut done = 0;
        let stop = 'pages: {
            if !memory.events.is_empty() {
                break 'pages Some(InstallStop::EventsPending);
            }
            for page in to.iter() {
                if !memory.mapped.contains(&page.get()) {
                    break 'pages Some(InstallStop::Gone);
                }
                if memory.present.contains_key(&page.get()) {
                    break 'pages Some(InstallStop::Occupied);
                }
                let content = content(memory, done);
                memory.present.insert(page.get(), content);
                if wakes {
                    memory.waiters.remove(&page.get());
                }
                done += 1;
            }
            None
        };
        self.0.changed.notify_all();
        Arrived { pages: PageCount::new(done), stop }
    }
}

impl Host for ModelHost {
    fn trapped(&self, _path: FaultPath, range: PageRange) -> Result<PageCount, KeptReason> {
        Ok(range.pages())
    }

    fn take_out(&self, _path: FaultPath, from: PageRange, to: VirtAddr) -> Taken {
        let mut memory = lock(&self.0.memory);
        let mut done = PageCount::ZERO;
        let stop = 'pages: {
            if !memory.events.is_empty() {
                break 'pages Some((KeptReason::Raced, from.pages()));
            }
            for page in from.iter() {
                assert!(memory.mapped.contains(&page.get()), "what is managed and without an event is mapped");
                let Some(content) = memory.present.remove(&page.get()) else {
                    break 'pages Some((KeptReason::Hole, PageCount::ONE));
                };
                memory.own.insert(to.add_pages(done).get(), content);
                done += PageCount::ONE;
            }
            None
        };
        Taken { pages: done, stop }
    }

    fn install(&self, _path: FaultPath, to: PageRange, from: VirtAddr, how: How) -> Arrived {
        let wakes = !matches!(how, How::Fetch | How::FetchTouched);
        self.put(to, wakes, |memory, i| {
            let at = from.add_pages(PageCount::new(i)).get();
            match how {
                How::Move => memory.own.remove(&at).expect("no hole is moved in"),
                How::Copy => memory.own[&at],
                // From a place of the pool, or from a frame.
                How::Fetch | How::FetchTouched => memory
                    .own
                    .get(&at)
                    .copied()
                    .unwrap_or_else(|| memory.private[&u32::try_from((at - PRIVATE_FRAMES) / PAGE_SIZE).unwrap()]),
            }
        })
    }

    fn zero_fill(&self, _path: FaultPath, range: PageRange) -> Arrived {
        // The neighbours are of no interest here, and not mapped.
        self.put(range.slice(PageCount::ZERO, PageCount::ONE), true, |_, _| 0)
    }

    fn wake(&self, _path: FaultPath, range: PageRange) {
        lock(&self.0.memory).waiters.retain(|page| !range.contains(VirtAddr::new(*page)));
        self.0.changed.notify_all();
    }

    fn copy(&self, from: VirtAddr, to: VirtAddr, _pages: PageCount) {
        let mut memory = lock(&self.0.memory);
        let content = memory.own[&from.get()];
        memory.own.insert(to.get(), content);
    }

    fn clear(&self, at: VirtAddr, _pages: PageCount) {
        lock(&self.0.memory).own.insert(at.get(), 0);
    }

    fn discard(&self, at: VirtAddr, _pages: PageCount) -> bool {
        lock(&self.0.memory).own.remove(&at.get());
        true
    }

    fn await_events(&self) {
        let mut memory = lock(&self.0.memory);
        while !memory.events.is_empty() {
            memory = self.0.changed.wait(memory).unwrap();
        }
    }

    fn removal_is_over(&self, _range: PageRange, _looks: u32) -> bool {
        !lock(&self.0.memory).removing
    }

    fn stop_the_program(&self, page: VirtAddr, why: &'static str) -> ! {
        panic!("the program is stopped over {page}: {why}")
    }
}

struct ModelDevice {
    pagemap: Pagemap,
    shared: Arc<Shared>,
}

impl Device for ModelDevice {
    fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    fn reach(&self) -> Reach {
        match self.pagemap.memory_type {
            MemoryType::DeviceCoherent => Reach::Movable(VirtAddr::new(ARENA)),
            MemoryType::DevicePrivate => Reach::Copied,
        }
    }

    fn readable(&self) -> Option<VirtAddr> {
        let is_readable = self.reach() == Reach::Copied && lock(&self.shared.memory).is_readable;
        is_readable.then_some(VirtAddr::new(PRIVATE_FRAMES))
    }

    fn transfer(&self, batch: &mut [Transfer]) {
        for Transfer { direction, frames, memory: at, progress, .. } in batch {
            let mut memory = lock(&self.shared.memory);
            let (frame, at) = (frames.first.get(), at.get());
            let place = self.reach().movable().map(|arena| arena.add_pages(PageCount::new(u64::from(frame))).get());
            match direction {
                Direction::In => {
                    let content = memory.own[&at];
                    match place {
                        Some(place) => memory.own.insert(place, content),
                        None => memory.private.insert(frame, content),
                    };
                }
                Direction::Out => {
                    let content = place.map_or_else(|| memory.private[&frame], |place| memory.own[&place]);
                    memory.own.insert(at, content);
                }
            }
            *progress = Progress::Done(Ok(()));
        }
    }

    fn clear(&self, run: FrameRun) {
        let mut memory = lock(&self.shared.memory);
        match self.reach().movable() {
            Some(arena) => memory.own.insert(arena.add_pages(PageCount::new(u64::from(run.first.get()))).get(), 0),
            None => memory.private.insert(run.first.get(), 0),
        };
    }
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) engine: Arc<Engine<ModelHost>>,
    pub(crate) shared: Arc<Shared>,
}

impl World {
    /// One page, written.
    pub(crate) fn new() -> Self {
        let shared = Arc::new(Shared::default());
        {
            let mut memory = lock(&shared.memory);
            memory.mapped.insert(PAGE.get());
            memory.present.insert(PAGE.get(), CONTENT);
        }
        let kinds = [(PRIVATE, MemoryType::DevicePrivate), (COHERENT, MemoryType::DeviceCoherent)];
        let device = |(id, memory_type)| {
            let pagemap = Pagemap::new(id, memory_type, Owner::new(1), PageCount::ONE);
            Box::new(ModelDevice { pagemap, shared: Arc::clone(&shared) }) as Box<dyn Device>
        };
        let devices = kinds.into_iter().map(device).collect();
        let places = PageCount::new(3);
        let size = PoolSize { grown: places, ready: places, capacity: places };
        let pool = SystemPool::new(VirtAddr::new(POOL), size, PageCount::ONE);
        let host = ModelHost(Arc::clone(&shared));
        let engine = Engine::new(host, devices, pool, CountersAt::Own(Box::default()));
        engine.manage(page(), Region::default());
        Self { engine: Arc::new(engine), shared }
    }

    pub(crate) fn on_device(device: DeviceId) -> Self {
        let world = Self::new();
        world.migrate(Target::Device(device));
        assert_eq!(world.engine.residency(page()), [Residency::Device(device)]);
        world
    }

    /// On the private device, which can be read or not.
    pub(crate) fn on_private(is_readable: bool) -> Self {
        let world = Self::on_device(PRIVATE);
        lock(&world.shared.memory).is_readable = is_readable;
        world
    }

    pub(crate) fn migrate(&self, target: Target) {
        let _ = self.engine.migrate(page(), Request::all_to(target));
    }

    pub(crate) fn spawn<T: 'static>(&self, work: impl FnOnce(&Self) -> T + 'static) -> thread::JoinHandle<T> {
        let world = self.clone();
        thread::spawn(move || work(&world))
    }

    /// A touch, with a handler thread that has nothing else to do.
    pub(crate) fn touch(&self) -> u64 {
        let mut memory = lock(&self.shared.memory);
        loop {
            if let Some(content) = memory.present.get(&PAGE.get()) {
                return *content;
            }
            memory.waiters.insert(PAGE.get());
            drop(memory);
            while self.engine.fault(PAGE, FaultPath::Thread) == FaultResolution::EventsPending {
                self.engine.host().await_events();
            }
            memory = lock(&self.shared.memory);
            while memory.waiters.contains(&PAGE.get()) {
                memory = self.shared.changed.wait(memory).unwrap();
            }
        }
    }

    /// A touch that is served in the touching thread.
    pub(crate) fn touch_by_signal(&self) -> u64 {
        loop {
            if let Some(content) = lock(&self.shared.memory).present.get(&PAGE.get()) {
                return *content;
            }
            if self.engine.fault(PAGE, FaultPath::Sigbus) == FaultResolution::EventsPending {
                self.engine.host().await_events();
            }
        }
    }

    /// The program's call, as far as it goes before the event is read.
    pub(crate) fn raise(&self, event: Event) {
        let mut memory = lock(&self.shared.memory);
        if let Event::Unmap(range) = event {
            memory.mapped.retain(|page| !range.contains(VirtAddr::new(*page)));
            memory.present.retain(|page, _| !range.contains(VirtAddr::new(*page)));
        }
        memory.removing |= matches!(event, Event::Remove(_));
        memory.events.push_back(event);
        self.shared.changed.notify_all();
    }

    /// The handler thread reads an event and applies it. The program goes on as soon as it is read.
    pub(crate) fn handle(&self) {
        let mut memory = lock(&self.shared.memory);
        while memory.events.is_empty() {
            memory = self.shared.changed.wait(memory).unwrap();
        }
        drop(memory);
        self.handle_if_any();
    }

    /// The same, if there is an event.
    pub(crate) fn handle_if_any(&self) {
        let events = self.engine.events();
        let event = lock(&self.shared.memory).events.pop_front();
        self.shared.changed.notify_all();
        match event {
            Some(Event::Unmap(range)) => self.engine.unmapped(&events, range),
            Some(Event::Remove(range)) => self.engine.removed(&events, range),
            None => {}
        }
    }

    /// The program's call and the handler thread's answer to it.
    pub(crate) fn call(&self, event: Event) {
        self.raise(event);
        self.handle();
    }

    pub(crate) fn zap(&self) {
        let mut memory = lock(&self.shared.memory);
        memory.present.clear();
        memory.removing = false;
    }

    pub(crate) fn slot(&self) -> Slot {
        self.engine.slot(PAGE)
    }
}

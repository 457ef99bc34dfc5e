//! An engine, its devices and a program to begin with.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use hetmem_core::engine::{CountersAt, Engine, Residency};
use hetmem_core::frames::FrameRun;
use hetmem_core::frames::{PoolSize, Purpose, SystemPool};
use hetmem_core::home::Home;
use hetmem_core::migrate::{Request, Target};
use hetmem_core::outcome::Outcomes;
use hetmem_core::physmap::{MemoryType, Owner, Pagemap};
use hetmem_core::port::{Device, FaultPath, Reach};
use hetmem_core::space::Region;
use hetmem_core::units::{BLOCK_SIZE, DeviceId, FrameIndex, PageCount, PageRange, VirtAddr};

use super::{Gives, Memory, Model, ModelDevice, ModelEngine, ModelHost, ZERO, nth, pages};

/// Where the pool lies.
pub(crate) const POOL: VirtAddr = VirtAddr::new(1 << 40);
/// Where device 0's frames lie; the others follow.
const FRAMES: u64 = 1 << 41;
/// The first block of the program.
pub(crate) const BASE: VirtAddr = VirtAddr::new(64 * BLOCK_SIZE);
const POOL_PAGES: u64 = 256;

pub(crate) const PRIVATE: DeviceId = DeviceId::new(0);
pub(crate) const COHERENT: DeviceId = DeviceId::new(1);
pub(crate) const PRIVATE_B: DeviceId = DeviceId::new(2);
pub(crate) const COHERENT_B: DeviceId = DeviceId::new(3);
/// Of [`World::with_overlays`] only.
pub(crate) const OVERLAY: DeviceId = DeviceId::new(4);
pub(crate) const OVERLAY_B: DeviceId = DeviceId::new(5);

/// Memory of which hetmem says that nobody else maps, unmaps or protects it.
pub(crate) const OWNED: Region = Region {
    path: FaultPath::Thread,
    home: Home::Anonymous,
    pinned: false,
    preferred: None,
    not_soon: false,
    ending: false,
    owned: true,
};

/// Where the frames of `device` lie.
pub(crate) fn frames_of(device: DeviceId) -> VirtAddr {
    VirtAddr::new(FRAMES + ((device.index() as u64) << 36))
}

/// A device of a [`World`].
#[derive(Clone, Copy)]
struct DeviceKind {
    pub(crate) memory_type: MemoryType,
    pub(crate) owner: u64,
    pub(crate) capacity: u64,
    /// Whether its pages come to be there by being laid over.
    pub(crate) lays: bool,
}

/// Two private and two coherent devices, of owners 1 and 2.
fn four(capacity: u64) -> [DeviceKind; 4] {
    use MemoryType::{DeviceCoherent, DevicePrivate};
    [(DevicePrivate, 1), (DeviceCoherent, 1), (DevicePrivate, 2), (DeviceCoherent, 2)]
        .map(|(memory_type, owner)| DeviceKind { memory_type, owner, capacity, lays: false })
}

/// See the module.
pub(crate) struct World {
    pub(crate) model: Arc<Model>,
    pub(crate) engine: Arc<ModelEngine>,
    pool_pages: u64,
}

impl World {
    /// Four devices of `capacity` frames: [`PRIVATE`] and [`COHERENT`] of owner 1, [`PRIVATE_B`] and [`COHERENT_B`] of owner 2.
    pub(crate) fn new(capacity: u64) -> Self {
        Self::build(&four(capacity), POOL_PAGES, false)
    }

    /// The same, with so large a pool that whole blocks pass through it.
    pub(crate) fn large(capacity: u64) -> Self {
        Self::build(&four(capacity), 4 * 512, false)
    }

    /// As [`World::new`], for a program and an engine of several threads.
    pub(crate) fn threaded(capacity: u64) -> Self {
        Self::build(&four(capacity), POOL_PAGES, true)
    }

    /// The four devices and two more of coherent memory that is laid over the program's, two blocks each: [`OVERLAY`] of owner 1 and [`OVERLAY_B`] of
    /// owner 2.
    pub(crate) fn with_overlays(threaded: bool) -> Self {
        let overlay = |owner| DeviceKind { memory_type: MemoryType::DeviceCoherent, owner, capacity: 1024, lays: true };
        let mut kinds = four(1024).to_vec();
        kinds.extend([1, 2].map(overlay));
        Self::build(&kinds, 2048, threaded)
    }

    fn build(kinds: &[DeviceKind], pool_pages: u64, threaded: bool) -> Self {
        let model = Arc::new(Model {
            memory: Mutex::new(Memory::default()),
            changed: Condvar::new(),
            engine: OnceLock::new(),
            threaded,
        });
        let devices = (0..)
            .zip(kinds)
            .map(|(id, kind)| {
                let pagemap = Pagemap::new(
                    DeviceId::new(id),
                    kind.memory_type,
                    Owner::new(kind.owner),
                    PageCount::new(kind.capacity),
                );
                let frames = frames_of(DeviceId::new(id));
                let reach = match kind.memory_type {
                    MemoryType::DevicePrivate => Reach::Copied,
                    MemoryType::DeviceCoherent if kind.lays => Reach::Laid(frames),
                    MemoryType::DeviceCoherent => Reach::Movable(frames),
                };
                let descriptor = File::open("/dev/null").expect("there is /dev/null");
                Box::new(ModelDevice { pagemap, reach, frames, model: Arc::clone(&model), descriptor })
                    as Box<dyn Device>
            })
            .collect();
        // It grows on the way, where a test says that the host refuses it, too.
        let size = PoolSize {
            grown: PageCount::new(pool_pages.min(256)),
            ready: PageCount::new(pool_pages),
            capacity: PageCount::new(pool_pages),
        };
        let pool = SystemPool::new(POOL, size, PageCount::new(8));
        pool.keep_warm(PageCount::new(24));
        let host = ModelHost(Arc::clone(&model));
        let engine = Arc::new(Engine::new(host, devices, pool, CountersAt::Own(Box::default())));
        assert!(model.engine.set(Arc::downgrade(&engine)).is_ok(), "the model has one engine");
        Self { model, engine, pool_pages }
    }

    /// Maps and manages `count` pages from page `first` of the program on.
    pub(crate) fn with_nothing_in(self, first: u64, count: u64) -> Self {
        self.with_region(first, count, Region::default())
    }

    /// The same, of which that `region` is said.
    pub(crate) fn with_region(self, first: u64, count: u64, region: Region) -> Self {
        let range = self.at(first, count);
        self.model.map(range, false);
        assert!(self.model.adopt(range, region), "nothing is unread at the start");
        self
    }

    /// Writes all pages of `range`.
    pub(crate) fn write_all(&self, range: PageRange) {
        range.iter().for_each(|page| self.model.write(page));
    }

    /// The same, with all pages written.
    pub(crate) fn with_pages(self, first: u64, count: u64) -> Self {
        let world = self.with_nothing_in(first, count);
        world.at(first, count).iter().for_each(|page| world.model.write(page));
        world
    }

    /// The same, with devices that give pages so.
    pub(crate) fn giving(self, gives: Gives) -> Self {
        self.model.lock().gives = gives;
        self
    }

    /// `count` pages from page `first` of the program on.
    pub(crate) fn at(&self, first: u64, count: u64) -> PageRange {
        pages(nth(BASE, first), count)
    }

    /// Migrates all of `range` to `target`, whatever it takes.
    pub(crate) fn migrate(&self, range: PageRange, target: Target) -> Outcomes {
        self.engine.migrate(range, Request::all_to(target))
    }

    /// Puts all of `range` where a test wants it to begin.
    pub(crate) fn place(&self, range: PageRange, target: Target) {
        let outcomes = self.migrate(range, target);
        assert_eq!(outcomes.moved(), range.pages(), "the test begins with its pages in place: {outcomes:?}");
    }

    pub(crate) fn residency(&self, range: PageRange) -> Vec<Residency> {
        self.engine.residency(range)
    }

    /// Uses the pool up, down to `left` places; the runs are to be given back.
    pub(crate) fn hog_pool(&self, left: u64) -> Vec<FrameRun> {
        let pool = self.engine.pool();
        while pool.grow(Purpose::Migration, |_, _| true) {}
        let mut hogged = Vec::new();
        loop {
            let spare = self.pool_pages - pool.in_use().get();
            let Some(want) = spare.checked_sub(left).filter(|want| *want > 0) else { return hogged };
            hogged.extend(pool.take_stocked(PageCount::new(want), Purpose::Fault));
        }
    }

    pub(crate) fn unhog_pool(&self, hogged: Vec<FrameRun>) {
        for run in hogged {
            self.engine.pool().release(run);
        }
    }

    /// Uses a device's frames up, down to `left`.
    pub(crate) fn hog_device(&self, device: DeviceId, left: u64) -> Vec<FrameRun> {
        let frames = &self.engine.devices()[device.index()].pagemap().frames;
        let mut hogged = Vec::new();
        loop {
            let spare = (frames.capacity() - frames.used()).get();
            let Some(want) = spare.checked_sub(left).filter(|want| *want > 0) else { return hogged };
            hogged.extend(frames.allocate(PageCount::new(want), VirtAddr::default()));
        }
    }

    pub(crate) fn unhog_device(&self, device: DeviceId, hogged: Vec<FrameRun>) {
        for run in hogged {
            self.engine.devices()[device.index()].pagemap().frames.release(run, |_| {});
        }
    }

    /// How many places of the pool have a page.
    pub(crate) fn places_with_a_page(&self) -> PageCount {
        let end = nth(POOL, self.pool_pages).get();
        PageCount::new(self.model.lock().own.range(POOL.get()..end).count() as u64)
    }

    /// Once all that rests is cleared, nothing of a page is in a frame or place that nobody uses.
    fn check_cleared(&self) {
        let pool = self.engine.pool();
        self.engine.age();
        // Idle from here on: what was kept warm goes, too.
        self.engine.look_for_use();
        self.engine.look_for_use();
        while self.engine.clear_old() {}
        assert!(!self.engine.has_resting());
        let free = std::iter::from_fn(|| pool.take_stocked(PageCount::new(256), Purpose::Fault));
        for place in free.collect::<Vec<_>>().iter().flat_map(|run| run.iter()).map(FrameRun::single) {
            let content = self.model.lock().own.get(&pool.address(place).get()).copied();
            match content {
                None => pool.release_empty(place),
                Some(content) => {
                    assert_eq!(content, ZERO, "what is in stock is cleared");
                    pool.release(place);
                }
            }
        }
        for device in self.engine.devices() {
            let Pagemap { device: id, frames, .. } = device.pagemap();
            let all = FrameRun { first: FrameIndex::new(0), pages: frames.capacity() };
            let used: Vec<_> = frames.in_use(all).map(|(frame, _)| frame).collect();
            let memory = self.model.lock();
            for frame in all.iter().filter(|frame| !used.contains(frame)) {
                let content = memory.own.get(&nth(frames_of(*id), u64::from(frame.get())).get());
                assert_eq!(content.copied().unwrap_or(ZERO), ZERO, "{id:?}: what is free is cleared");
            }
        }
    }

    /// Reads what is unread and serves what waits; compares every page with the truth where it lies, then by a touch, and checks
    /// every structure.
    pub(crate) fn verify(&self) {
        self.model.lock().calm();
        self.model.raise_late();
        self.model.deliver();
        self.model.serve(false);
        self.model.deliver();
        self.model.zap_all();
        self.model.compare_in_place();
        self.engine.check();
        self.model.read_all();
        self.engine.check();
        self.model.unguard_all();
        self.model.read_all();
        self.engine.check();
        self.check_cleared();
    }
}

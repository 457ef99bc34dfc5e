//! What there is to be seen of what is managed.

use std::sync::atomic::Ordering::Relaxed;

use hetmem_core::engine::Residency;
use hetmem_core::heat::CHUNK_PAGES;
use hetmem_core::physmap::MemoryType;
use hetmem_core::policy::{DeviceState, Turnover};
use hetmem_core::port::Device;
use hetmem_core::units::{BLOCK_PAGES, ByteLen, DeviceId, PAGE_SHIFT, PageCount, PageRange, VirtAddr};

use super::{IN_SYSTEM_MEMORY, Managed, ON_ITS_WAY};

/// What there is to be seen.
impl Managed {
    /// How many pages of `range` are on devices, or on their way.
    #[must_use]
    pub fn away_in(&self, range: PageRange) -> PageCount {
        let (unmapped, mapped) = self.0.engine.away_in(range);
        unmapped + mapped
    }

    /// What the kernel says of the pages of `range` (`mincore(2)`), and of those that are away what it would say; empty where it refuses.
    #[must_use]
    pub fn residency(&self, range: PageRange) -> Vec<u8> {
        // With the gate held alone nothing is on its way.
        let _events = self.0.engine.events();
        let Ok(mut seen) = hetmem_sys::mapping::resident(range) else { return Vec::new() };
        self.0.engine.each_away(range, |page| seen[page.start().pages_since(range.start()).as_usize()] |= 1);
        seen
    }

    /// Where the pages of `range` are, a byte for each: [`IN_SYSTEM_MEMORY`], [`ON_ITS_WAY`], or the number of a device and one.
    #[must_use]
    pub fn each_place(&self, range: PageRange) -> Vec<u8> {
        let place = |page| match page {
            Residency::System => IN_SYSTEM_MEMORY,
            Residency::Migrating => ON_ITS_WAY,
            Residency::Device(device) => u8::try_from(device.index() + 1).unwrap_or(ON_ITS_WAY),
        };
        self.0.engine.residency(range).into_iter().map(place).collect()
    }

    /// How many pages are on private devices.
    #[must_use]
    pub fn on_private_devices(&self) -> PageCount {
        let private = self.0.engine.devices().iter().map(|device| device.pagemap());
        private
            .filter(|pagemap| pagemap.memory_type == MemoryType::DevicePrivate)
            .map(|pagemap| pagemap.frames.used())
            .sum()
    }

    /// Counts the pages of `ranges` that are in system memory.
    #[must_use]
    pub fn count_resident(&self, ranges: &[PageRange]) -> PageCount {
        self.0.resident(ranges) + self.0.engine.pool().in_use()
    }

    /// Counts those that no other process maps.
    #[must_use]
    pub fn count_own(&self, ranges: &[PageRange]) -> PageCount {
        self.0.own(ranges) + self.0.engine.pool().in_use()
    }

    /// How many pages are on devices.
    #[must_use]
    pub fn on_devices(&self) -> PageCount {
        self.0.engine.devices().iter().map(|device| device.pagemap().frames.used()).sum()
    }

    /// From now on of the populated system pages that may be kept for pages on their way home as large a part is kept as `part` is of `whole`.
    pub fn limit_stock(&self, part: PageCount, whole: PageCount) {
        if self.0.engine.pool().limit_stock(part, whole) {
            self.0.tell_of_resting();
        }
    }

    /// How many pages of `range` are in system memory, and on each device. What is on its way, or nowhere yet, is in neither.
    #[must_use]
    pub fn places(&self, range: PageRange) -> Vec<PageCount> {
        let mut places = vec![PageCount::ZERO; 1 + self.0.engine.devices().len()];
        places[0] = self.0.resident(&[range]);
        // Elsewhere nothing is but in system memory.
        let parts = self.0.engine.migrated_parts(range);
        for (_, part) in parts.into_iter().flat_map(PageRange::by_block) {
            for residency in self.0.engine.residency(part) {
                if let Residency::Device(device) = residency {
                    places[1 + device.index()] += PageCount::ONE;
                }
            }
        }
        places
    }

    /// How warm the pages of `range` are, together: each is as warm as its chunk, 0 to 255.
    #[must_use]
    pub fn warmth(&self, range: PageRange) -> u64 {
        let warmth = |mut part: PageRange| {
            let mut sum = 0;
            while !part.is_empty() {
                let to_chunks_end = CHUNK_PAGES - (part.start().get() >> PAGE_SHIFT) % CHUNK_PAGES;
                let chunk = part.slice(PageCount::ZERO, PageCount::new(to_chunks_end));
                part = part.slice(chunk.pages(), part.pages());
                sum += chunk.pages().get() * u64::from(self.0.engine.warmth(chunk));
            }
            sum
        };
        // Elsewhere nothing is known.
        self.0.engine.migrated_parts(range).into_iter().map(warmth).sum()
    }

    /// Populated system pages that are kept for pages on their way home.
    #[must_use]
    pub fn stocked(&self) -> PageCount {
        self.0.engine.pool().stocked()
    }

    /// Populated system pages that hetmem keeps, about: the stock, the memory that devices pack pages into, and of those whose frames stay populated as many
    /// as ever were in use, a huge page at a time.
    #[must_use]
    pub fn kept_populated(&self) -> PageCount {
        let kept = |device: &dyn Device| match device.packing() {
            Some(packing) => ByteLen::new(packing.memory_bytes).pages_down(),
            None if device.is_kept_populated() => {
                PageCount::new(device.pagemap().frames.peak().get().next_multiple_of(BLOCK_PAGES))
            }
            None => PageCount::ZERO,
        };
        self.0.engine.devices().iter().map(|device| kept(&**device)).sum::<PageCount>() + self.stocked()
    }

    /// Pages that have come home.
    #[must_use]
    pub fn came_home(&self) -> u64 {
        self.0.engine.counters().pages_migrated_to_system.load(Relaxed)
    }

    /// What has left, and what of that came back at once.
    #[must_use]
    pub fn turnover(&self) -> Turnover {
        let counters = self.0.engine.counters();
        let (left, refaults) = (&counters.pages_migrated_to_device, &counters.refaults);
        Turnover { left: left.load(Relaxed), refaults: refaults.load(Relaxed) }
    }

    /// The policy has found for `micros` microseconds more that memory is turned over for nothing.
    pub fn count_thrashing(&self, micros: u64) {
        self.0.engine.counters().thrashing_micros.fetch_add(micros, Relaxed);
    }

    /// Touches that were served.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.0.engine.counters().cpu_faults.load(Relaxed)
    }

    /// The devices, in the order of their ids.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceState> {
        let devices = (0..self.0.engine.devices().len()).map(|id| DeviceId::new(u8::try_from(id).unwrap_or(u8::MAX)));
        devices.filter_map(|id| self.device(id)).collect()
    }

    /// The device `id`, if there is one.
    #[must_use]
    pub fn device(&self, id: DeviceId) -> Option<DeviceState> {
        let device = self.0.engine.device(id)?;
        let pagemap = device.pagemap();
        // What others have is taken, too, and what there is no room for.
        let (capacity, room) = (pagemap.frames.capacity(), pagemap.frames.room().min(device.room()));
        Some(DeviceState { id, memory_type: pagemap.memory_type, capacity, used: capacity - room })
    }

    /// The device on which the page at `page` is best kept.
    #[must_use]
    pub fn preferred(&self, page: VirtAddr) -> Option<DeviceId> {
        self.0.engine.region_at(page).and_then(|(_, region)| self.0.engine.preferred(&region))
    }

    /// Whether something of `chunk` was used since this was asked last.
    #[must_use]
    pub fn take_warmth(&self, chunk: PageRange) -> bool {
        self.0.engine.take_warmth(chunk)
    }
}

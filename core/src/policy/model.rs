//! A program for tests of policies: pages in system memory and on devices, and what was asked about them.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use super::{Act, DeviceState, Move, Signs, Turnover, View};
use crate::heat::{self, BlockHeat, CHUNK_PAGES};
use crate::migrate::{Place, Seen, Select, Survey, Target};
use crate::physmap::MemoryType;
use crate::units::{BLOCK_PAGES, BlockNo, DeviceId, PAGE_SIZE, PageCount, PageRange, VirtAddr};

/// `pages` pages from page `page` on.
pub(super) fn range(page: u64, pages: u64) -> PageRange {
    PageRange::new(VirtAddr::new(page * PAGE_SIZE), PageCount::new(pages)).unwrap()
}

/// A program without a process: where each of its pages is, what devices it has, and what a policy has asked of it.
pub(super) struct Model {
    ranges: Vec<PageRange>,
    /// Where each page is; holes are nowhere.
    pages: BTreeMap<u64, Target>,
    /// Those that are out as samples.
    out: BTreeSet<u64>,
    heat: BTreeMap<BlockNo, BlockHeat>,
    pub(super) devices: Vec<DeviceState>,
    pub(super) preferred: Option<DeviceId>,
    /// What the program has said is not used soon.
    pub(super) not_soon: Vec<PageRange>,
    /// What it may have of the limit.
    pub(super) share: Option<PageCount>,
    /// Chunks that are warm, by their numbers.
    pub(super) warm: BTreeSet<u64>,
    pub(super) faults: u64,
    pub(super) moved_out: u64,
    pub(super) moved_home: u64,
    /// Pages that were touched soon after they had left.
    refaults: u64,
    changes: u64,
    pub(super) now: u64,
    /// Whether it uses a processor.
    pub(super) uses: bool,
    /// Whether pages of a block that are in one place are one huge page.
    pub(super) huge: bool,
    /// Whether devices refuse pages, though they have room.
    pub(super) refuses: bool,
    /// Whether pages may be sampled.
    pub(super) samples: bool,
    used: Cell<u64>,
    /// What samples, and other moves, have cost.
    spent: u64,
    /// What was asked, in order, but for what costs nothing.
    pub(super) asked: Vec<&'static str>,
}

impl Model {
    pub(super) const BUDGET: PageCount = PageCount::new(1024);

    /// A program with these ranges, all in system memory, and private devices of these capacities.
    pub(super) fn new(ranges: &[(u64, u64)], devices: &[u64]) -> Self {
        let ranges: Vec<PageRange> = ranges.iter().map(|(page, pages)| range(*page, *pages)).collect();
        let numbers = ranges.iter().flat_map(|range| range.iter()).map(|page| page.get() / PAGE_SIZE);
        let device = |(at, pages): (usize, &u64)| DeviceState {
            id: DeviceId::new(u8::try_from(at).unwrap()),
            memory_type: MemoryType::DevicePrivate,
            capacity: PageCount::new(*pages),
            used: PageCount::ZERO,
        };
        Self {
            pages: numbers.map(|page| (page, Target::System)).collect(),
            ranges,
            out: BTreeSet::new(),
            heat: BTreeMap::new(),
            devices: devices.iter().enumerate().map(device).collect(),
            preferred: None,
            not_soon: Vec::new(),
            share: None,
            warm: BTreeSet::new(),
            faults: 0,
            moved_out: 0,
            moved_home: 0,
            refaults: 0,
            changes: 0,
            now: 0,
            uses: true,
            huge: false,
            refuses: false,
            samples: true,
            used: Cell::new(0),
            spent: 0,
            asked: Vec::new(),
        }
    }

    /// Only these are known to be managed.
    pub(super) fn set_ranges(&mut self, ranges: &[(u64, u64)]) {
        self.ranges = ranges.iter().map(|(page, pages)| range(*page, *pages)).collect();
        self.changes += 1;
    }

    /// Its devices are coherent.
    pub(super) fn coherent(mut self) -> Self {
        self.devices.iter_mut().for_each(|device| device.memory_type = MemoryType::DeviceCoherent);
        self
    }

    fn is_coherent(&self, at: Target) -> bool {
        match at {
            Target::System => false,
            Target::Device(id) => self.devices[id.index()].memory_type == MemoryType::DeviceCoherent,
        }
    }

    fn heat(&mut self, page: u64) -> (&mut BlockHeat, usize) {
        let (at, now) = (VirtAddr::new(page * PAGE_SIZE), heat::tick(self.now));
        let block = self.heat.entry(at.block()).or_insert_with(|| BlockHeat::new(now));
        block.divide();
        block.look(now);
        (block, at.index_in_block())
    }

    /// The program touches page `page`.
    pub(super) fn touch(&mut self, page: u64) {
        let Some(at) = self.pages.get(&page).copied() else { return };
        let is_away = at != Target::System && !self.is_coherent(at);
        if !self.out.remove(&page) && !is_away {
            return;
        }
        if self.huge {
            let block = page / BLOCK_PAGES * BLOCK_PAGES;
            self.out.retain(|page| !(block..block + BLOCK_PAGES).contains(page));
        }
        self.faults += 1;
        let now = heat::tick(self.now);
        let (heat, index) = self.heat(page);
        let is_soon = heat.touched(index, now);
        if let Target::Device(device) = at
            && is_away
        {
            self.refaults += u64::from(is_soon);
            self.devices[device.index()].used = self.devices[device.index()].used - PageCount::ONE;
            self.pages.insert(page, Target::System);
            self.moved_home += 1;
        }
    }

    /// How many pages are out as samples.
    pub(super) fn sampled(&self) -> usize {
        self.out.len()
    }

    /// Whether page `page` is out as a sample.
    pub(super) fn is_out(&self, page: u64) -> bool {
        self.out.contains(&page)
    }

    /// Where page `page` is.
    pub(super) fn place(&self, page: u64) -> Option<Target> {
        self.pages.get(&page).copied()
    }

    /// Puts page `page` on device `device`.
    pub(super) fn put(&mut self, page: u64, device: u8) {
        let device = DeviceId::new(device);
        self.devices[device.index()].used += PageCount::ONE;
        self.pages.insert(page, Target::Device(device));
    }

    fn sample(&mut self, what: &Move, from: Select) -> PageCount {
        assert!(self.samples, "{what:?}");
        let mut sampled = PageCount::ZERO;
        for page in what.ranges.iter().flat_map(|range| range.iter()).map(|page| page.get() / PAGE_SIZE) {
            let Some(at) = self.pages.get(&page).copied() else { continue };
            let kind = if at == Target::System { Select::SYSTEM } else { Select::DEVICE_COHERENT };
            if from.contains(kind) && (at == Target::System || self.is_coherent(at)) && self.out.insert(page) {
                let (heat, index) = self.heat(page);
                heat.taken_out(index);
                sampled += PageCount::ONE;
            }
        }
        sampled
    }

    fn put_back(&mut self, what: &Move) -> PageCount {
        let mut put = PageCount::ZERO;
        for page in what.ranges.iter().flat_map(|range| range.iter()).map(|page| page.get() / PAGE_SIZE) {
            if self.out.remove(&page) {
                let (heat, index) = self.heat(page);
                heat.put_back(index);
                put += PageCount::ONE;
            }
        }
        put
    }

    /// Moves what there is room for; how much that is.
    pub(super) fn carry_out(&mut self, what: &Move) -> PageCount {
        // A call for each run, and something for each page.
        self.spent += what.ranges.iter().map(|range| 4 + range.pages().get() / 2).sum::<u64>();
        let (from, to) = match &what.act {
            Act::Migrate { from, to } => (*from, to),
            Act::Sample { from } => return self.sample(what, *from),
            Act::PutBack => return self.put_back(what),
        };
        let mut moved = PageCount::ZERO;
        for page in what.ranges.iter().flat_map(|range| range.iter()).map(|page| page.get() / PAGE_SIZE) {
            let Some(at) = self.pages.get(&page).copied() else { continue };
            let kind = match at {
                Target::System if self.out.contains(&page) && !from.contains(Select::SYSTEM) => Select::SAMPLED,
                Target::System => Select::SYSTEM,
                Target::Device(_) if self.is_coherent(at) => Select::DEVICE_COHERENT,
                Target::Device(_) => Select::DEVICE_PRIVATE,
            };
            let has_room = |to: &&Target| match to {
                Target::System => true,
                Target::Device(device) => !self.refuses && !self.devices[device.index()].room().is_zero(),
            };
            let Some(to) = to.iter().find(has_room).copied() else {
                // It comes back.
                self.out.remove(&page);
                continue;
            };
            if !from.contains(kind) || to == at {
                continue;
            }
            if let Target::Device(device) = at {
                self.devices[device.index()].used = self.devices[device.index()].used - PageCount::ONE;
            }
            if !self.samples {
                let (heat, index) = self.heat(page);
                heat.taken_out(index);
            }
            match to {
                Target::System => self.moved_home += 1,
                Target::Device(device) => {
                    self.devices[device.index()].used += PageCount::ONE;
                    self.moved_out += 1;
                }
            }
            self.out.remove(&page);
            self.pages.insert(page, to);
            moved += PageCount::ONE;
        }
        moved
    }

    pub(super) fn resident_pages(&self) -> u64 {
        self.pages.values().filter(|at| **at == Target::System).count() as u64
    }

    /// Makes holes of the pages that `which` names by number.
    pub(super) fn drop_pages(&mut self, which: impl Fn(u64) -> bool) {
        self.pages.retain(|page, _| !which(*page));
    }

    pub(super) fn bring_all_home(&mut self) {
        for at in self.pages.values_mut().filter(|at| **at != Target::System) {
            *at = Target::System;
            self.moved_home += 1;
        }
        self.devices.iter_mut().for_each(|device| device.used = PageCount::ZERO);
    }

    /// The chunks of which something is on a device.
    pub(super) fn away(&self) -> Vec<u64> {
        let away = self.pages.iter().filter(|(_, at)| **at != Target::System).map(|(page, _)| page / CHUNK_PAGES);
        away.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

impl View for Model {
    fn signs(&mut self) -> Signs {
        self.asked.push("signs");
        Signs {
            anonymous: PageCount::new(self.pages.len() as u64),
            own: PageCount::ZERO,
            home: self.moved_home,
            faults: self.faults,
            changes: self.changes,
        }
    }

    fn system_limit(&mut self, told: PageCount) -> PageCount {
        self.share.map_or(told, |share| share.min(told))
    }

    fn ranges(&self) -> &[PageRange] {
        &self.ranges
    }

    fn resident(&mut self, _signs: Signs) -> PageCount {
        self.asked.push("resident");
        PageCount::new(self.resident_pages())
    }

    fn devices(&self) -> Vec<DeviceState> {
        self.devices.clone()
    }

    fn preferred(&self, _page: VirtAddr) -> Option<DeviceId> {
        self.preferred
    }

    fn take_not_soon(&mut self, most: PageCount) -> Option<PageRange> {
        let range = self.not_soon.first_mut()?;
        let taken = range.slice(PageCount::ZERO, most);
        *range = range.slice(taken.pages(), range.pages());
        self.not_soon.retain(|range| !range.is_empty());
        Some(taken)
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn used(&self) -> u64 {
        if self.uses {
            self.used.set(self.now);
        }
        // As two clocks differ, of which one is read after the other.
        self.used.get() + self.now / 1000 % 2
    }

    fn spent(&self) -> u64 {
        self.spent
    }

    fn takes_samples(&self) -> bool {
        self.samples
    }

    fn turnover(&self) -> Turnover {
        Turnover { left: self.moved_out, refaults: self.refaults }
    }

    fn survey(&mut self, range: PageRange, survey: &mut Survey) {
        self.asked.push("survey");
        survey.pages.clear();
        for page in range.iter().map(|page| page.get() / PAGE_SIZE) {
            let place = match self.pages.get(&page).copied() {
                None => Place::Nowhere,
                Some(Target::System) if self.out.contains(&page) => Place::Sampled,
                Some(Target::System) => Place::System,
                Some(Target::Device(device)) if self.out.contains(&page) => Place::SampledOn(device),
                Some(Target::Device(device)) => Place::Device(device),
            };
            let is_known = self.heat.contains_key(&VirtAddr::new(page * PAGE_SIZE).block());
            let heat = if is_known { self.heat(page) } else { (&mut BlockHeat::new(0), 0) };
            survey.pages.push(Seen { place, heat: heat.0.page(heat.1) });
        }
        let first = survey.pages.first().map_or(Place::Nowhere, |page| page.place);
        survey.huge = self.huge
            && range == range.start().block().range()
            && matches!(first, Place::System | Place::Device(_))
            && survey.pages.iter().all(|page| page.place == first);
    }

    fn take_warmth(&mut self, chunk: PageRange) -> bool {
        self.asked.push("warmth");
        self.warm.remove(&(chunk.start().get() / PAGE_SIZE / CHUNK_PAGES))
    }
}

//! A program without a process, as a policy sees it: where each page is that the trace has, by chunks.
//!
//! *Limits:* moves take no time and never fail; a touch brings as many pages home as it did when it was recorded, and one of an imported trace
//! brings one.

use std::collections::HashMap;

use hetmem_core::heat::{self, BlockHeat, CHUNK_PAGES};
use hetmem_core::migrate::{Place, Seen, Select, Survey, Target};
use hetmem_core::physmap::MemoryType;
use hetmem_core::policy::{Act, DeviceState, Move, Signs, Turnover, View};
use hetmem_core::record::CHUNK;
use hetmem_core::units::{BLOCK_PAGES, BlockNo, DeviceId, PAGE_SIZE, PageCount, PageRange, VirtAddr};

use crate::space::{Mix, Numbers, Page, Sampling, number};

const _: () = assert!(CHUNK == CHUNK_PAGES, "a chunk of policies is one of records");

/// What a device of a simulation is.
#[derive(Clone, Copy, Debug)]
pub struct SimulatedDevice {
    /// What the CPU can do with its memory.
    pub memory_type: MemoryType,
    /// Its pages.
    pub pages: PageCount,
    /// Whether touches copy pages from where they are on it into the program, and so need none of the stock.
    pub is_readable: bool,
}

/// Where the pages of a program are.
#[derive(Debug)]
pub(crate) struct Model {
    /// The pages of each chunk that are in system memory.
    system: Vec<u64>,
    /// Those that are on each device.
    away: Vec<Vec<u64>>,
    /// Those of either that are out as samples.
    sampled: Vec<u64>,
    /// What is known of blocks of which something was sampled, by their numbers.
    heats: HashMap<u64, BlockHeat, Mix>,
    /// Whether touches brought something of the chunk home since that was asked.
    warm: Vec<bool>,
    devices: Vec<DeviceState>,
    /// Those from which pages come home without one of the stock.
    readable: Vec<bool>,
    resident: u64,
    stocked: u64,
    stock: u64,
    ranges: Vec<PageRange>,
    blocks: Blocks,
    changes: u64,
    faults: u64,
    refaults: u64,
    /// Microseconds since the beginning.
    pub(crate) now: u64,
    /// Pages that have come home.
    pub(crate) home: u64,
    /// Pages that have moved to devices.
    pub(crate) out: u64,
    /// Microseconds that moves would have cost.
    spent: u64,
}

/// The blocks of a trace that has no ranges, in order.
#[derive(Debug, Default)]
struct Blocks {
    known: Vec<u64>,
    new: Vec<u64>,
}

/// What a touch found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// The page in system memory.
    There,
    /// Nothing: it is there now.
    Nothing,
    /// The page on a device.
    Away,
}

impl Model {
    /// Of `devices`, of which the part has as large a part, and as much of the `stock`.
    pub(crate) fn new(devices: &[SimulatedDevice], stock: PageCount, sampling: Sampling) -> Self {
        let state = |(id, device): (u8, &SimulatedDevice)| DeviceState {
            id: DeviceId::new(id),
            memory_type: device.memory_type,
            capacity: PageCount::new(sampling.of(device.pages.get())),
            used: PageCount::ZERO,
        };
        let stock = if stock.is_zero() { 0 } else { sampling.of(stock.get()) };
        Self {
            system: Vec::new(),
            away: vec![Vec::new(); devices.len()],
            sampled: Vec::new(),
            heats: HashMap::default(),
            warm: Vec::new(),
            devices: (0..).zip(devices).map(state).collect(),
            readable: devices.iter().map(|device| device.is_readable).collect(),
            resident: 0,
            stocked: 0,
            stock,
            ranges: Vec::new(),
            blocks: Blocks::default(),
            changes: 0,
            faults: 0,
            refaults: 0,
            now: 0,
            home: 0,
            out: 0,
            spent: 0,
        }
    }

    /// There are so many chunks.
    pub(crate) fn reach(&mut self, chunks: usize) {
        self.system.resize(chunks, 0);
        self.away.iter_mut().for_each(|away| away.resize(chunks, 0));
        self.sampled.resize(chunks, 0);
        self.warm.resize(chunks, false);
    }

    /// Pages in system memory, with those that are kept populated.
    pub(crate) const fn resident(&self) -> u64 {
        self.resident + self.stocked
    }

    /// The device that has a page.
    #[inline]
    fn device_of(&self, page: Page) -> Option<usize> {
        self.away.iter().position(|away| away[page.chunk as usize] >> page.bit & 1 == 1)
    }

    /// A touch of `page`; it comes home if it is on a private device, and if `counts` it counts as one that did.
    #[inline]
    pub(crate) fn touch(&mut self, page: Page, numbers: &Numbers, counts: bool) -> Found {
        let at = page.chunk as usize;
        if self.sampled[at] >> page.bit & 1 == 1 {
            self.sampled[at] &= !(1 << page.bit);
            self.faults += u64::from(counts);
            self.heat(page, numbers);
        }
        if self.system[at] >> page.bit & 1 == 1 {
            return Found::There;
        }
        let Some(device) = self.device_of(page) else {
            self.system[at] |= 1 << page.bit;
            self.resident += 1;
            return Found::Nothing;
        };
        if self.devices[device].memory_type == MemoryType::DevicePrivate {
            self.come_home(page, device);
            if counts {
                self.warm[at] = true;
                self.faults += 1;
                self.refaults += u64::from(self.heat(page, numbers));
            }
        }
        Found::Away
    }

    /// A touch of `page` was seen; whether it was seen lately.
    fn heat(&mut self, page: Page, numbers: &Numbers) -> bool {
        let page = numbers.first_of(page.chunk) + u64::from(page.bit);
        let heat = self.heats.get_mut(&(page / BLOCK_PAGES));
        heat.is_some_and(|heat| heat.touched(in_block(page), heat::tick(self.now)))
    }

    /// `pages` of a chunk have been taken out; with `expects`, more is to be known of them.
    fn take_out(&mut self, at: usize, pages: u64, numbers: &Numbers, expects: bool) {
        let first = numbers.first_of(u32::try_from(at).unwrap_or_default());
        let tick = heat::tick(self.now);
        let heats = &mut self.heats;
        if expects {
            heats.entry(first / BLOCK_PAGES).or_insert_with(|| BlockHeat::new(tick)).divide();
        }
        if let Some(heat) = heats.get_mut(&(first / BLOCK_PAGES)) {
            heat.look(tick);
            bits(pages).for_each(|bit| heat.taken_out(in_block(first + bit)));
        }
    }

    /// Where page `bit` of chunk `at` is.
    fn place(&self, at: usize, bit: u64) -> Place {
        let is_in = |pages: &[u64]| pages[at] >> bit & 1 == 1;
        let sampled = is_in(&self.sampled);
        let device = self.away.iter().zip(&self.devices).find(|(away, _)| is_in(away)).map(|(_, device)| device.id);
        match device {
            Some(id) if sampled => Place::SampledOn(id),
            Some(id) => Place::Device(id),
            None if !is_in(&self.system) => Place::Nowhere,
            None if sampled => Place::Sampled,
            None => Place::System,
        }
    }

    fn come_home(&mut self, page: Page, device: usize) {
        let (at, bit) = (page.chunk as usize, 1 << page.bit);
        self.away[device][at] &= !bit;
        self.system[at] |= bit;
        let state = &mut self.devices[device];
        state.used = state.used - PageCount::ONE;
        self.home += 1;
        self.resident += 1;
        self.stocked = self.stocked.saturating_sub(u64::from(!self.readable[device]));
    }

    /// Something is at `page`, in system memory if that is not known to be elsewhere.
    pub(crate) fn appear(&mut self, page: Page) {
        if self.device_of(page).is_none() && self.system[page.chunk as usize] >> page.bit & 1 == 0 {
            self.system[page.chunk as usize] |= 1 << page.bit;
            self.resident += 1;
        }
    }

    /// Nothing is at `page` any more.
    pub(crate) fn vanish(&mut self, page: Page) {
        let (at, bit) = (page.chunk as usize, 1 << page.bit);
        if let Some(device) = self.device_of(page) {
            self.away[device][at] &= !bit;
            self.devices[device].used = self.devices[device].used - PageCount::ONE;
        }
        self.resident -= u64::from(self.system[at] & bit != 0);
        self.system[at] &= !bit;
        self.sampled[at] &= !bit;
    }

    /// What was at `from` is at `to`.
    pub(crate) fn rename(&mut self, from: Page, to: Page) {
        self.vanish(to);
        let (at, bit) = (to.chunk as usize, 1 << to.bit);
        self.sampled[from.chunk as usize] &= !(1 << from.bit);
        if let Some(device) = self.device_of(from) {
            self.away[device][from.chunk as usize] &= !(1 << from.bit);
            self.away[device][at] |= bit;
        } else if self.system[from.chunk as usize] >> from.bit & 1 == 1 {
            self.system[from.chunk as usize] &= !(1 << from.bit);
            self.system[at] |= bit;
        }
    }

    /// `range` is managed from now on, or no longer.
    pub(crate) fn manage(&mut self, range: PageRange, managed: bool) {
        let outside = |part: &PageRange| {
            let before = PageRange::between(part.start(), range.start().max(part.start()).min(part.end()));
            let after = PageRange::between(range.end().min(part.end()).max(part.start()), part.end());
            [before, after].into_iter().flatten().filter(|part| !part.is_empty())
        };
        let mut parts: Vec<PageRange> = self.ranges.iter().flat_map(outside).collect();
        if managed && !range.is_empty() {
            parts.push(range);
            parts.sort_unstable();
        }
        self.ranges = parts;
        self.changes += 1;
    }

    /// Something of the block of page number `page` is known for the first time, of a trace that has no ranges.
    pub(crate) fn found(&mut self, page: u64) {
        self.blocks.new.push(page / BLOCK_PAGES);
    }

    /// Looks at what there is to manage, if there is enough that is new.
    pub(crate) fn look(&mut self) {
        let Blocks { known, new } = &mut self.blocks;
        if new.is_empty() || new.len() * 16 < known.len() {
            return;
        }
        known.append(new);
        known.sort_unstable();
        known.dedup();
        self.ranges.clear();
        for run in known.chunk_by(|a, b| a + 1 == *b) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            self.ranges.extend(PageRange::between(BlockNo::new(*first).start(), BlockNo::new(last + 1).start()));
        }
        self.changes += 1;
    }

    /// Does what a policy wants done; how many pages have moved.
    pub(crate) fn carry_out(&mut self, numbers: &Numbers, what: &Move) -> PageCount {
        // About what a call for each run costs, and each page of it.
        self.spent += what.ranges.iter().map(|range| 4 + range.pages().get() / 2).sum::<u64>();
        PageCount::new(what.ranges.iter().map(|range| self.act(numbers, *range, &what.act)).sum())
    }

    fn act(&mut self, numbers: &Numbers, range: PageRange, act: &Act) -> u64 {
        let mut moved = 0;
        let (first, end) = (number(range.start()), number(range.end()));
        for chunk in first / CHUNK..end.div_ceil(CHUNK) {
            let Some(at) = numbers.chunk_of(chunk * CHUNK) else { continue };
            let inside = |page: u64| page.clamp(chunk * CHUNK, (chunk + 1) * CHUNK) - chunk * CHUNK;
            // The pages below the second bound, without those below the first.
            let below = |bound: u64| if bound == CHUNK { u64::MAX } else { (1 << bound) - 1 };
            let within = below(inside(end)) & !below(inside(first));
            moved += match act {
                Act::Migrate { from, to } => self.migrate(at as usize, within, numbers, *from, to),
                Act::Sample { from } => self.sample(at as usize, within, numbers, *from),
                Act::PutBack => self.put_back(at as usize, within, numbers),
            };
        }
        moved
    }

    /// Takes those of the pages `within` chunk `at` that are among `from` out as samples.
    fn sample(&mut self, at: usize, within: u64, numbers: &Numbers, from: Select) -> u64 {
        let mut pages = if from.contains(Select::SYSTEM) { self.system[at] } else { 0 };
        for (device, away) in self.devices.iter().zip(&self.away) {
            if device.memory_type == MemoryType::DeviceCoherent && from.contains(Select::DEVICE_COHERENT) {
                pages |= away[at];
            }
        }
        let pages = pages & within & !self.sampled[at];
        self.sampled[at] |= pages;
        self.take_out(at, pages, numbers, true);
        u64::from(pages.count_ones())
    }

    /// Puts those of the pages `within` chunk `at` back that are out as samples.
    fn put_back(&mut self, at: usize, within: u64, numbers: &Numbers) -> u64 {
        let pages = self.sampled[at] & within;
        self.sampled[at] &= !pages;
        let first = numbers.first_of(u32::try_from(at).unwrap_or_default());
        if let Some(heat) = self.heats.get_mut(&(first / BLOCK_PAGES)) {
            bits(pages).for_each(|bit| heat.put_back(in_block(first + bit)));
        }
        u64::from(pages.count_ones())
    }

    /// Moves those of the pages `within` chunk `at` that are among `from`.
    fn migrate(&mut self, at: usize, within: u64, numbers: &Numbers, from: Select, to: &[Target]) -> u64 {
        let mut moved = 0;
        if from.contains(Select::SYSTEM) || from.contains(Select::SAMPLED) {
            let samples = if from.contains(Select::SYSTEM) { u64::MAX } else { self.sampled[at] };
            let pages = self.system[at] & within & samples;
            let left = self.send(at, pages, to, None);
            self.system[at] &= !(pages & !left);
            self.sampled[at] &= !(pages & !left);
            self.take_out(at, pages & !left, numbers, false);
            let went = u64::from((pages & !left).count_ones());
            self.resident -= went;
            self.stocked = (self.stocked + went).min(self.stock.max(self.stocked));
            moved += went;
        }
        for device in 0..self.devices.len() {
            let kind = match self.devices[device].memory_type {
                MemoryType::DevicePrivate => Select::DEVICE_PRIVATE,
                MemoryType::DeviceCoherent => Select::DEVICE_COHERENT,
            };
            let pages = self.away[device][at] & within;
            if !from.contains(kind) || pages == 0 {
                continue;
            }
            let left = self.send(at, pages, to, Some(device));
            let went = pages & !left;
            self.away[device][at] &= !went;
            self.sampled[at] &= !went;
            let count = u64::from(went.count_ones());
            self.devices[device].used = self.devices[device].used - PageCount::new(count);
            moved += count;
        }
        moved
    }

    /// Puts `pages` of a chunk to the first of `to` that has room for each, but for `but`; those that stay where they are.
    fn send(&mut self, at: usize, mut pages: u64, to: &[Target], but: Option<usize>) -> u64 {
        for target in to {
            match *target {
                Target::System if but.is_none() => return pages,
                Target::System => {
                    let came = u64::from(pages.count_ones());
                    self.system[at] |= pages;
                    self.home += came;
                    self.resident += came;
                    self.stocked = self.stocked.saturating_sub(came);
                    return 0;
                }
                Target::Device(id) if Some(id.index()) == but => return pages,
                Target::Device(id) => {
                    let Some(device) = self.devices.get_mut(id.index()) else { continue };
                    let mut fit = pages;
                    while u64::from(fit.count_ones()) > device.room().get() {
                        fit &= !(1 << (63 - fit.leading_zeros()));
                    }
                    let count = u64::from(fit.count_ones());
                    device.used += PageCount::new(count);
                    self.away[id.index()][at] |= fit;
                    self.out += count;
                    pages &= !fit;
                    if pages == 0 {
                        return 0;
                    }
                }
            }
        }
        pages
    }
}

/// The places of a word's bits that are set.
fn bits(mut word: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| u64::from(word.trailing_zeros()))?;
        word &= word - 1;
        Some(bit)
    })
}

/// The place of page number `page` in its block.
fn in_block(page: u64) -> usize {
    PageCount::new(page % BLOCK_PAGES).as_usize()
}

/// The program, as a policy sees it.
pub(crate) struct Shown<'a> {
    pub(crate) model: &'a mut Model,
    pub(crate) numbers: &'a Numbers,
}

impl View for Shown<'_> {
    fn signs(&mut self) -> Signs {
        let Model { home, faults, changes, .. } = *self.model;
        Signs { anonymous: PageCount::new(self.model.resident()), own: PageCount::ZERO, home, faults, changes }
    }

    fn ranges(&self) -> &[PageRange] {
        &self.model.ranges
    }

    fn resident(&mut self, _signs: Signs) -> PageCount {
        PageCount::new(self.model.resident())
    }

    fn devices(&self) -> Vec<DeviceState> {
        self.model.devices.clone()
    }

    fn preferred(&self, _page: VirtAddr) -> Option<DeviceId> {
        None
    }

    fn take_warmth(&mut self, chunk: PageRange) -> bool {
        let at = self.numbers.chunk_of(chunk.start().get() / PAGE_SIZE);
        at.is_some_and(|at| std::mem::take(&mut self.model.warm[at as usize]))
    }

    fn now(&self) -> u64 {
        self.model.now
    }

    fn used(&self) -> u64 {
        self.model.now
    }

    fn spent(&self) -> u64 {
        self.model.spent
    }

    fn turnover(&self) -> Turnover {
        Turnover { left: self.model.out, refaults: self.model.refaults }
    }

    fn survey(&mut self, range: PageRange, survey: &mut Survey) {
        survey.huge = false;
        survey.pages.clear();
        let tick = heat::tick(self.model.now);
        let block = number(range.start()) / BLOCK_PAGES;
        self.model.heats.entry(block).and_modify(|heat| heat.look(tick));
        let model = &*self.model;
        let heat = model.heats.get(&block);
        let mut chunk = (u64::MAX, None);
        survey.pages.extend(range.iter().map(number).map(|page| {
            if chunk.0 != page / CHUNK {
                chunk = (page / CHUNK, self.numbers.chunk_of(page));
            }
            let place = chunk.1.map_or(Place::Nowhere, |at| model.place(at as usize, page % CHUNK));
            Seen { place, heat: heat.map(|heat| heat.page(in_block(page))).unwrap_or_default() }
        }));
    }
}

//! The address space under management: its regions, and where each of its pages is.
//!
//! Slots ([`crate::slot`]) are kept in blocks of 2 MiB, each with a lock of its own. A block exists only where something was
//! migrated once; memory that never was costs nothing.
//!
//! # The gate
//!
//! Two activities must never overlap: reading what the program did to its mappings (events), and putting pages into those
//! mappings. Whoever installs or takes out pages holds the gate shared ([`Gate::share`]); whoever reads and applies events
//! holds it alone ([`Gate::events`]). So an event is applied to all slots before any later page is installed:
//!
//! ```text
//! migration                                   handler thread
//! --------------------------------------     ----------------------------------------
//! gate.share(); MOVE -> EAGAIN               (the program calls munmap: event queued)
//! let go of the gate, await_events()          gate.events(); read event; drop slots
//! gate.share(); the slot is gone: keep       let go of the gate
//! ```
//!
//! *Limits:* a block, once made, stays as long as its memory is managed (4 KiB for each 2 MiB of which anything was migrated).

mod kept;
mod runs;

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::heat::Heat;
use crate::home::Home;
use crate::migrate::Target;
use crate::outcome::KeptReason;
use crate::port::FaultPath;
use crate::range_map::RangeMap;
use crate::slot::{Slot, SlotWord};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, lock, read, write};
use crate::units::{BlockNo, DeviceId, PAGE_SIZE, PageCount, PageRange, VirtAddr};
use kept::Removal;

/// What is said of a stretch of managed memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Region {
    /// How touches of its missing pages are served.
    pub path: FaultPath,
    /// What its pages are where hetmem has nothing of them.
    pub home: Home,
    /// Whether its pages must stay where they are.
    pub pinned: bool,
    /// The device on which its pages are best kept.
    pub preferred: Option<DeviceId>,
    /// Whether its management is about to end: pins keep its pages from coming home no longer.
    pub ending: bool,
    /// Whether nobody but hetmem maps, unmaps or protects what is there, so that device memory may be laid over it ([`crate::exchange`]).
    pub owned: bool,
}

/// The lock between those who install or take out pages and who applies events.
#[derive(Default)]
pub struct Gate(RwLock<()>);

/// Permission to install pages in the program's mappings, and to take them out.
pub struct Shared<'a> {
    _guard: RwLockReadGuard<'a, ()>,
}

/// Permission to read and apply events.
pub struct Events<'a> {
    _guard: RwLockWriteGuard<'a, ()>,
}

impl Gate {
    /// Waits until nobody applies events.
    pub fn share(&self) -> Shared<'_> {
        Shared { _guard: read(&self.0) }
    }

    /// Waits until nobody installs or takes out.
    pub fn events(&self) -> Events<'_> {
        Events { _guard: write(&self.0) }
    }
}

/// The pages of one 2 MiB block.
pub struct Block {
    state: Mutex<BlockState>,
    settled: Condvar,
}

/// What a block's lock guards.
pub struct BlockState {
    slots: Box<[SlotWord]>,
    /// Whether a thread was told to wait for a busy page since the block last had none.
    waited: bool,
    /// Another mapping is about to take the place of the block's ([`crate::exchange`]): touches of all its pages wait.
    pub(crate) exchanging: bool,
    busy: u16,
    unmapped: u16,
    mapped: u16,
    /// Pages whose slots do not go on where those before them end ([`SlotWord::goes_on_with`]): with none, the block is one run.
    breaks: u16,
    /// How warm its pages are.
    pub(crate) heat: Heat,
    /// Where the last fault's run ended, and how long the next one may be: the fault-around's memory.
    pub(crate) stream: Stream,
}

/// Sequential touches are recognised by the page at which the next one would fall.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stream {
    /// The index in the block that continues the stream.
    pub(crate) next: u16,
    /// Pages that the stream's last fault brought home.
    pub(crate) window: u16,
}

impl Default for Block {
    fn default() -> Self {
        let slots = vec![SlotWord::default(); PageCount::BLOCK.as_usize()].into_boxed_slice();
        let state = BlockState {
            slots,
            waited: false,
            exchanging: false,
            busy: 0,
            unmapped: 0,
            mapped: 0,
            breaks: 0,
            heat: Heat::default(),
            stream: Stream::default(),
        };
        Self { state: Mutex::new(state), settled: Condvar::new() }
    }
}

impl Block {
    /// Locks the block.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, BlockState> {
        lock(&self.state)
    }

    /// Waits, with the lock let go, until some page of the block is no longer busy.
    pub fn wait_settled<'a>(&'a self, mut state: MutexGuard<'a, BlockState>) -> MutexGuard<'a, BlockState> {
        state.waited = true;
        self.settled.wait(state).expect("no thread panicked while it held this lock")
    }

    /// Wakes those who wait in [`Block::wait_settled`].
    pub fn notify_settled(&self) {
        self.settled.notify_all();
    }
}

impl BlockState {
    /// The state of page `index` (0 to 511).
    #[inline]
    #[must_use]
    pub fn slot(&self, index: usize) -> Slot {
        self.slots[index].get()
    }

    /// Sets the state of page `index`.
    ///
    /// # Panics
    ///
    /// If the page may not come from its state to that one: a page would be lost or doubled ([`Slot::may_become`]).
    #[inline]
    pub fn set(&mut self, index: usize, slot: Slot) {
        let was = self.slots[index].get();
        assert!(was.may_become(slot), "a page that is {was:?} does not become {slot:?}");
        match was {
            Slot::System => {}
            Slot::Mapped(_) => self.mapped -= 1,
            Slot::Unmapped { busy, .. } => {
                self.unmapped -= 1;
                self.busy -= u16::from(busy);
            }
        }
        match slot {
            Slot::System => {}
            Slot::Mapped(_) => self.mapped += 1,
            Slot::Unmapped { busy, .. } => {
                self.unmapped += 1;
                self.busy += u16::from(busy);
            }
        }
        self.breaks -= self.breaks_around(index);
        self.slots[index] = SlotWord::new(slot);
        self.breaks += self.breaks_around(index);
    }

    /// Notes that a touch has brought `pages` home, or is about to, of which there might have been `window`.
    pub(crate) fn note_touch(&mut self, pages: PageRange, window: u16) {
        let first = pages.start().index_in_block();
        self.heat.touch(first);
        let next = u16::try_from(first + pages.pages().as_usize()).expect("a block has 512 pages");
        self.stream = Stream { next, window };
    }

    /// Notes that a thread waits for a busy page.
    #[inline]
    pub fn note_waiter(&mut self) {
        self.waited = true;
    }

    /// Whether somebody may wait for pages that were busy; forgotten once no page is, and none waits for an exchange.
    #[inline]
    pub fn take_waited(&mut self) -> bool {
        let waited = self.waited;
        if self.busy == 0 && !self.exchanging {
            self.waited = false;
        }
        waited
    }

    /// Pages whose bytes lie in a frame that the program doesn't map.
    #[inline]
    #[must_use]
    pub const fn unmapped(&self) -> u16 {
        self.unmapped
    }

    /// Pages that lie in a mapped frame of a coherent device.
    #[inline]
    #[must_use]
    pub const fn mapped(&self) -> u16 {
        self.mapped
    }

    /// Checks the counts.
    ///
    /// # Panics
    ///
    /// If they disagree with the slots.
    pub fn check(&self) {
        let (mut busy_n, mut unmapped, mut mapped) = (0, 0, 0);
        for word in &self.slots {
            match word.get() {
                Slot::System => {}
                Slot::Mapped(_) => mapped += 1,
                Slot::Unmapped { busy, .. } => {
                    unmapped += 1;
                    busy_n += u16::from(busy);
                }
            }
        }
        assert_eq!((self.busy, self.unmapped, self.mapped), (busy_n, unmapped, mapped), "counts match the slots");
        let breaks = self.slots.windows(2).filter(|pair| !pair[0].goes_on_with(pair[1])).count();
        assert_eq!(usize::from(self.breaks), breaks, "so do the runs");
    }
}

/// Regions, slots, and what else is said of stretches of the address space.
#[derive(Default)]
pub struct Space {
    /// Orders events against installs.
    pub gate: Gate,
    regions: RwLock<RangeMap<Region>>,
    /// How many exclusions hold for a range; `u32::MAX` if one never ends.
    excluded: RwLock<RangeMap<u32>>,
    removals: Mutex<RangeMap<Removal>>,
    index: RwLock<BTreeMap<BlockNo, Arc<Block>>>,
}

impl Space {
    /// The block numbered `no`, made if need be.
    pub fn block(&self, no: BlockNo) -> Arc<Block> {
        if let Some(block) = self.existing_block(no) {
            return block;
        }
        Arc::clone(write(&self.index).entry(no).or_default())
    }

    /// The block numbered `no`, if anything in it was ever migrated.
    #[must_use]
    pub fn existing_block(&self, no: BlockNo) -> Option<Arc<Block>> {
        read(&self.index).get(&no).cloned()
    }

    /// Runs `f` while block `no` does not exist and can't be made; `None` if it exists.
    pub fn while_absent<R>(&self, no: BlockNo, f: impl FnOnce() -> R) -> Option<R> {
        let index = read(&self.index);
        if index.contains_key(&no) { None } else { Some(f()) }
    }

    /// The existing blocks that overlap `range`, in order.
    #[must_use]
    pub fn blocks_in(&self, range: PageRange) -> Vec<(BlockNo, Arc<Block>)> {
        if range.is_empty() {
            return Vec::new();
        }
        let last = range.slice(range.pages() - PageCount::ONE, range.pages()).start().block();
        read(&self.index).range(range.start().block()..=last).map(|(no, b)| (*no, Arc::clone(b))).collect()
    }

    /// Calls `visit` with each existing block that overlaps `range`, locked, and the part of it that `range` has, in order. No block is made meanwhile.
    pub(crate) fn visit_blocks(&self, range: PageRange, mut visit: impl FnMut(PageRange, &BlockState)) {
        let index = read(&self.index);
        for (no, block) in index.range(range.start().block()..) {
            let Some(part) = range.intersect(no.range()) else { break };
            visit(part, &block.lock());
        }
    }

    /// The first existing block after the one numbered `after`, or of all.
    pub(crate) fn block_after(&self, after: Option<BlockNo>) -> Option<(BlockNo, Arc<Block>)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        read(&self.index).range((from, Bound::Unbounded)).next().map(|(no, block)| (*no, Arc::clone(block)))
    }

    /// Forgets the blocks of `range` whose pages are all the system's: the books hold nothing of memory that is gone. Whoever
    /// looks a block up to act on it does so with the gate held, so that nobody acts on a forgotten one.
    pub fn forget_blocks(&self, _events: &Events<'_>, range: PageRange) {
        for (no, block) in self.blocks_in(range) {
            let all_system = {
                let state = block.lock();
                state.unmapped() == 0 && state.mapped() == 0
            };
            if all_system {
                write(&self.index).remove(&no);
            }
        }
    }

    /// All existing blocks, in order.
    #[must_use]
    pub fn blocks(&self) -> Vec<(BlockNo, Arc<Block>)> {
        read(&self.index).iter().map(|(no, b)| (*no, Arc::clone(b))).collect()
    }

    /// Puts `range` under management.
    pub fn add_region(&self, range: PageRange, region: Region) {
        write(&self.regions).insert(range, region);
    }

    /// Puts `range` under management if no part of it is.
    ///
    /// # Errors
    ///
    /// A part that is managed already; nothing has changed then.
    pub fn add_new_region(&self, range: PageRange, region: Region) -> Result<(), PageRange> {
        let mut regions = write(&self.regions);
        if let Some((managed, _)) = regions.overlapping(range).next() {
            return Err(managed.intersect(range).unwrap_or(managed));
        }
        regions.insert(range, region);
        Ok(())
    }

    /// Puts those parts of `range` under management that are not, and returns them, in order.
    pub fn add_rest(&self, range: PageRange, region: Region) -> Vec<PageRange> {
        let mut regions = write(&self.regions);
        let rest: Vec<PageRange> =
            parts_of(&regions, range).into_iter().filter(|(_, known)| known.is_none()).map(|(part, _)| part).collect();
        rest.iter().for_each(|part| regions.insert(*part, region));
        rest
    }

    /// Changes what is said of the managed parts of `range`.
    pub fn change_region(&self, range: PageRange, change: impl Fn(&mut Region)) {
        let mut regions = write(&self.regions);
        for (part, mut region) in regions.remove(range) {
            change(&mut region);
            regions.insert(part, region);
        }
    }

    /// Ends the management of `range`; its pages must be home.
    pub fn remove_region(&self, range: PageRange) {
        write(&self.regions).remove(range);
    }

    /// Moves what is managed in `from` to the same places after `to`'s start.
    pub(crate) fn move_regions(&self, from: PageRange, to: PageRange) {
        let mut regions = write(&self.regions);
        let moved = regions.remove(from);
        regions.remove(to);
        for (part, region) in moved {
            let at = to.slice(part.start().pages_since(from.start()), part.pages());
            regions.insert(at, region);
        }
    }

    /// The region at `page`, if it is managed.
    #[must_use]
    pub fn region_at(&self, page: VirtAddr) -> Option<(PageRange, Region)> {
        read(&self.regions).get(page).map(|(range, region)| (range, *region))
    }

    /// Whether touches of all pages of `range` are served by `path`.
    pub(crate) fn is_managed(&self, range: PageRange, path: FaultPath) -> bool {
        self.is_all(range, |region| region.path == path)
    }

    /// Whether all pages of `range` are managed, and `what` is so of each region.
    pub(crate) fn is_all(&self, range: PageRange, what: impl Fn(&Region) -> bool) -> bool {
        let regions = read(&self.regions);
        let mut at = range.start();
        for (found, region) in regions.overlapping(range) {
            if found.start() > at || !what(region) {
                return false;
            }
            at = found.end();
        }
        at >= range.end()
    }

    /// `range` cut at region boundaries, with the region of each part; `None` for the unmanaged parts.
    #[must_use]
    pub fn regions_in(&self, range: PageRange) -> Vec<(PageRange, Option<Region>)> {
        parts_of(&read(&self.regions), range)
    }

    /// The extents of `ranges`, in order: each region that overlaps one of them, joined with those before and behind it that touch it and have its
    /// path. An extent is one mapping to the kernel. The cost is that of the regions that are named or joined, however many others there are.
    #[must_use]
    pub fn extents(&self, ranges: &[PageRange]) -> Vec<(PageRange, FaultPath)> {
        let mut ranges: Vec<PageRange> = ranges.iter().copied().filter(|range| !range.is_empty()).collect();
        ranges.sort_unstable_by_key(|range| range.start());
        let regions = read(&self.regions);
        let mut extents: Vec<(PageRange, FaultPath)> = Vec::new();
        for range in ranges {
            // What lies in the last extent is in the list.
            let from = extents.last().map_or(range.start(), |(last, _)| range.start().max(last.end()));
            let Some(rest) = PageRange::between(from, range.end()).filter(|rest| !rest.is_empty()) else { continue };
            for (region, Region { path, .. }) in regions.overlapping(rest) {
                if extents.last().is_none_or(|(last, _)| last.end() <= region.start()) {
                    extents.push((joined(&regions, region, *path), *path));
                }
            }
        }
        extents
    }

    /// All regions, in order.
    #[must_use]
    pub fn regions(&self) -> Vec<(PageRange, Region)> {
        read(&self.regions).iter().map(|(range, region)| (range, *region)).collect()
    }

    /// Checks every block.
    ///
    /// # Panics
    ///
    /// If an invariant does not hold.
    pub fn check(&self) {
        for (_, block) in self.blocks() {
            block.lock().check();
        }
    }
}

/// `region` and its neighbours on both sides that touch one another and have the same path.
fn joined(regions: &RangeMap<Region>, region: PageRange, path: FaultPath) -> PageRange {
    let of_path = |at: VirtAddr| regions.get(at).filter(|(_, region)| region.path == path).map(|(range, _)| range);
    let (mut start, mut end) = (region.start(), region.end());
    while let Some(before) = start.get().checked_sub(PAGE_SIZE).and_then(|at| of_path(VirtAddr::new(at))) {
        start = before.start();
    }
    while let Some(behind) = of_path(end) {
        end = behind.end();
    }
    PageRange::between(start, end).unwrap_or(region)
}

fn parts_of(regions: &RangeMap<Region>, range: PageRange) -> Vec<(PageRange, Option<Region>)> {
    let (mut parts, mut at) = (Vec::new(), range.start());
    for (found, region) in regions.overlapping(range) {
        let Some(part) = found.intersect(range) else { continue };
        if let Some(gap) = PageRange::between(at, part.start()).filter(|g| !g.is_empty()) {
            parts.push((gap, None));
        }
        parts.push((part, Some(*region)));
        at = part.end();
    }
    if let Some(gap) = PageRange::between(at, range.end()).filter(|g| !g.is_empty()) {
        parts.push((gap, None));
    }
    parts
}

/// Why a page of `region` may not be moved to `target`, if so.
pub(crate) const fn kept_by_advice(region: &Region, target: Target) -> Option<KeptReason> {
    if region.pinned && !(region.ending && matches!(target, Target::System)) { Some(KeptReason::Advised) } else { None }
}

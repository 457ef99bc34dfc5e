//! The engine: everything that a migration, a fault or an event works on, in one place.
//!
//! Key types: [`Engine`] owns the space, the devices and the pool, and reaches the program's memory through its [`Host`]. Nobody else does:
//! [`crate::managed`] is what the crates above may see and change of them. [`crate::migrate`], [`crate::fault`] and [`crate::events`] are what it
//! does.

use std::ops::Deref;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use crate::exchange::Exchanges;
use crate::fault::UnderWay;
use crate::frames::{FrameRefs, FrameRun, Frames, Keep, Left, Purpose, SystemPool};
use crate::notifier::{EmptyRange, Event, Invalidation, Notice, Notifiers, Subscription};
use crate::port::{Device, Host, NoBacking, Reach};
use crate::slot::{Frame, SYSTEM_POOL, Slot};
use crate::space::{Shared, Space};
use crate::stats::Counters;
use crate::sync::atomic::AtomicU32;
use crate::units::{DeviceId, PageCount, PageRange, VirtAddr};

/// Counters of the engine's own, or of a supervisor.
pub enum CountersAt {
    /// In memory of this process.
    Own(Box<Counters>),
    /// In memory that outlives the engine, such as a supervisor's.
    Shared(&'static Counters),
}

impl Deref for CountersAt {
    type Target = Counters;
    fn deref(&self) -> &Counters {
        match self {
            Self::Own(counters) => counters,
            Self::Shared(counters) => counters,
        }
    }
}

/// Where one page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Residency {
    /// In system memory, or nowhere yet.
    System,
    /// On a device.
    Device(DeviceId),
    /// On its way.
    Migrating,
}

/// The books of a program's managed memory, and what is done by them.
pub struct Engine<H> {
    /// The program's memory.
    pub(crate) host: H,
    /// The address space.
    pub(crate) space: Space,
    /// System pages at rest.
    pub(crate) pool: SystemPool,
    pub(crate) counters: CountersAt,
    /// Who is told of changes.
    pub(crate) notifiers: Notifiers,
    /// Whether a touch may bring neighbours of its page along.
    pub(crate) fault_around: bool,
    /// Whether the touch of a hole may fill the holes behind it, with zeros: a program that asks what is a hole would notice.
    pub(crate) zero_around: AtomicBool,
    devices: Vec<Box<dyn Device>>,
    /// Of heat.
    pub(crate) tick: AtomicU32,
    /// Who wants no page to leave.
    holds: AtomicU32,
    pub(crate) has_overlays: bool,
    /// Whether files were ever managed.
    pub(crate) has_files: AtomicBool,
    pub(crate) exchanges: Exchanges,
    pub(crate) under_way: UnderWay,
}

impl<H: Host> Engine<H> {
    /// An engine over `devices`; each one's pagemap bears its place in the list as its id.
    ///
    /// # Panics
    ///
    /// If a pagemap's device is not its place in the list.
    #[must_use]
    pub fn new(host: H, devices: Vec<Box<dyn Device>>, pool: SystemPool, counters: CountersAt) -> Self {
        for (i, device) in devices.iter().enumerate() {
            assert_eq!(device.pagemap().device.index(), i, "a device's id is its place");
        }
        let (space, notifiers) = (Space::default(), Notifiers::default());
        let has_overlays = devices.iter().any(|device| device.reach().laid().is_some());
        let exchanges = Exchanges::default();
        let under_way = UnderWay::new(&devices);
        Self {
            host,
            space,
            pool,
            counters,
            notifiers,
            fault_around: true,
            zero_around: AtomicBool::new(true),
            devices,
            tick: AtomicU32::new(0),
            holds: AtomicU32::new(0),
            has_overlays,
            has_files: AtomicBool::new(false),
            exchanges,
            under_way,
        }
    }

    /// Subscribes `callback` to changes in `range`. On return nothing changes pages there that does not know of it.
    ///
    /// # Errors
    ///
    /// If the range has no page.
    pub fn subscribe(
        &self,
        range: PageRange,
        callback: impl Fn(&Notice<'_>) + Send + Sync + 'static,
    ) -> Result<Subscription, EmptyRange> {
        let subscription = self.notifiers.subscribe(range, callback)?;
        // Whoever found no subscription acts upon that with the gate held.
        drop(self.space.gate.events());
        Ok(subscription)
    }

    /// The gate, to take pages of `range` out, which mirrors may know of: they are told first, with no lock held.
    pub(crate) fn share_noticed(&self, range: PageRange, event: Event) -> (Shared<'_>, Option<Invalidation<'_>>) {
        let shared = self.space.gate.share();
        if self.notifiers.is_empty() {
            return (shared, None);
        }
        drop(shared);
        let notice = self.notifiers.start(range, event, true);
        (self.space.gate.share(), Some(notice))
    }

    /// From here until [`Engine::release_pages`] no page is taken out of the program, and migrations keep those that would be, as
    /// [`KeptReason::Raced`](crate::outcome::KeptReason). They do not wait: who waited might hold what the caller needs next. What is out already
    /// comes home as ever, and batches under way end; after [`Engine::bring_all_home`] has left none, nothing is away. The caller holds no lock.
    pub fn hold_pages(&self) {
        // Relaxed: the gate orders it.
        self.holds.fetch_add(1, Relaxed);
        // Whoever found no hold acts upon that with the gate held.
        drop(self.space.gate.events());
    }

    /// Ends [`Engine::hold_pages`].
    pub fn release_pages(&self) {
        self.holds.fetch_sub(1, Relaxed);
    }

    /// Whether pages are held; asked with the gate held.
    pub(crate) fn holds_pages(&self, _shared: &Shared<'_>) -> bool {
        self.holds.load(Relaxed) > 0
    }

    /// The devices, in the order of their ids.
    #[must_use]
    pub fn devices(&self) -> &[Box<dyn Device>] {
        &self.devices
    }

    /// The device `id`, if there is one.
    #[must_use]
    pub fn device(&self, id: DeviceId) -> Option<&dyn Device> {
        self.devices.get(id.index()).map(Box::as_ref)
    }

    /// The device `id` of a frame that a slot names.
    pub(crate) fn device_of(&self, id: DeviceId) -> &dyn Device {
        self.device(id).expect("a slot names a device that exists")
    }

    pub(crate) fn is_private(&self, id: DeviceId) -> bool {
        id != SYSTEM_POOL && self.device_of(id).reach() == Reach::Copied
    }

    /// Where the frames lie in this process while the program does not map them; `None` if pages are copied to them and from them, as those of a
    /// private device.
    pub(crate) fn address(&self, frames: Frames) -> Option<VirtAddr> {
        if frames.is_pool() {
            return Some(self.pool.address(frames.run));
        }
        let start = self.device_of(frames.device).reach().movable()?;
        Some(start.add_pages(PageCount::new(u64::from(frames.run.first.get()))))
    }

    /// Where the frames of a private device can be read without a transfer.
    pub(crate) fn readable(&self, frames: Frames) -> Option<VirtAddr> {
        if !self.is_private(frames.device) {
            return None;
        }
        let start = self.device_of(frames.device).readable()?;
        Some(start.add_pages(PageCount::new(u64::from(frames.run.first.get()))))
    }

    /// Whether pages that go home from there can be copied into the program by the host, without a transfer.
    pub(crate) fn fetches_from(&self, frames: Frames) -> bool {
        let reads = self.device(frames.device).is_some_and(|device| device.readable().is_some());
        reads && (self.is_private(frames.device) || self.address(frames).is_some())
    }

    /// How many refer to `frame`; what those who no longer do did with it is done.
    pub(crate) fn references(&self, frame: Frame) -> u64 {
        if frame.device == SYSTEM_POOL {
            self.pool.references(frame.index)
        } else {
            self.device_of(frame.device).pagemap().frames.descriptor(frame.index).references()
        }
    }

    /// Takes free frames of a device into use for the pages from `page` on, ready to be filled. For a `huge` page frames are preferred that can hold
    /// it whole.
    pub(crate) fn allocate_ready(
        &self,
        id: DeviceId,
        want: PageCount,
        page: VirtAddr,
        huge: bool,
    ) -> Option<FrameRefs<'_, H>> {
        let frames = &self.device_of(id).pagemap().frames;
        let whole = huge.then(|| frames.allocate_whole(page)).flatten();
        self.ready(id, whole.or_else(|| frames.allocate(want, page))?)
    }

    /// A whole block of frames, ready to be filled.
    pub(crate) fn allocate_block(&self, id: DeviceId, page: VirtAddr) -> Option<FrameRefs<'_, H>> {
        self.ready(id, self.device_of(id).pagemap().frames.allocate_chunk(page)?)
    }

    fn ready(&self, device: DeviceId, run: FrameRun) -> Option<FrameRefs<'_, H>> {
        let counters = &self.counters.devices[device.index()];
        counters.add(run.pages.bytes().get());
        let refs = FrameRefs::counted(self, Frames { device, run });
        match self.device_of(device).prepare(run) {
            Ok(strays) => {
                counters.stray_pages.fetch_add(strays.get(), Relaxed);
                Some(refs)
            }
            Err(NoBacking) => {
                refs.release(Left::Nothing);
                None
            }
        }
    }

    /// Places of the pool, which grows while `take` finds none, as far as the host lets it.
    pub(crate) fn take_places(
        &self,
        purpose: Purpose,
        take: impl Fn(&SystemPool) -> Option<FrameRun>,
    ) -> Option<FrameRefs<'_, H>> {
        loop {
            let taken = take(&self.pool);
            if taken.is_some() || !self.grow_pool(purpose) {
                return taken.map(|run| self.places(run));
            }
        }
    }

    /// Places that were taken out of the pool, with the reference that was counted then.
    pub(crate) const fn places(&self, run: FrameRun) -> FrameRefs<'_, H> {
        FrameRefs::counted(self, Frames { device: SYSTEM_POOL, run })
    }

    fn grow_pool(&self, purpose: Purpose) -> bool {
        self.pool.grow(purpose, |at, pages| self.host.open_places(at, pages))
    }

    /// Takes places of the pool to copy pages into.
    pub(crate) fn take_stocked(&self, want: PageCount, purpose: Purpose) -> Option<FrameRefs<'_, H>> {
        self.take_places(purpose, |pool| pool.take_stocked(want, purpose))
    }

    /// Gives stocked system pages beyond what is kept back to the host.
    pub fn trim_pool(&self, keep: Keep) {
        while self.give_back(keep) {}
    }

    /// Gives some back; `false` if there are no more, or they can't be.
    fn give_back(&self, keep: Keep) -> bool {
        self.pool.take_surplus(keep).is_some_and(|run| self.discard(self.places(run)))
    }

    /// So many system pages that others have left may stay, beyond the stock, while migrations go on.
    pub fn keep_warm(&self, pages: PageCount) {
        self.pool.keep_warm(pages);
    }

    /// Makes room in the pool for `pages` pages in transit: it grows, and where it can't, the stock gives way to them.
    pub(crate) fn make_room(&self, pages: PageCount) {
        while self.pool.empty() < pages && self.grow_pool(Purpose::Migration) {}
        while let Some(run) = self.pool.take_for_room(pages) {
            if !self.discard(self.places(run)) {
                break;
            }
        }
    }

    /// Empties places that were taken out of the stock. `false` if they can't be: then they are in stock again, as a place that is not empty must
    /// never be taken for one that is.
    fn discard(&self, places: FrameRefs<'_, H>) -> bool {
        let Frames { run, .. } = places.frames();
        let discarded = self.host.discard(self.pool.address(run), run.pages);
        places.release(if discarded { Left::Nothing } else { Left::Page });
        discarded
    }

    /// Whether somewhere a page's bytes rest in a frame that it has left, or system pages wait to be given back.
    #[must_use]
    pub fn has_resting(&self) -> bool {
        self.pool.has_resting()
            || self.pool.has_surplus()
            || self.devices.iter().any(|device| device.pagemap().frames.has_resting())
    }

    /// Looks whether pages come and go. Called from time to time: what was kept beyond the stock is given back by [`Engine::clear_old`] if none has
    /// from one call to the next.
    pub fn look_for_use(&self) {
        self.pool.look_for_use();
    }

    /// All that rests is old from now on. Called again and again, with [`Engine::clear_old`] until it says `false` before each call: then nothing
    /// rests longer than from one call to the next but one.
    pub fn age(&self) {
        self.pool.age();
        self.devices.iter().for_each(|device| device.pagemap().frames.age());
    }

    /// Clears some of the frames that are old, or gives some back; `false` if there is none. The caller holds no lock.
    pub fn clear_old(&self) -> bool {
        self.pool.in_turn(|| self.give_back(Keep::Warm))
            || self.pool.clear_old(|run| self.host.clear(self.pool.address(run), run.pages))
            || self.devices.iter().any(|device| device.pagemap().frames.clear_old(|run| device.clear(run)))
    }

    /// Where each page of `range` is: by hetmem's books, and by the device's word where the program maps it. Nothing is faulted in.
    #[must_use]
    pub fn residency(&self, range: PageRange) -> Vec<Residency> {
        let mut pages = vec![Residency::System; range.pages().as_usize()];
        // Events that were read are applied before anybody sees the gate open.
        let _shared = self.space.gate.share();
        for (no, block) in self.space.blocks_in(range) {
            let Some(part) = range.intersect(no.range()) else { continue };
            let state = block.lock();
            for page in part.iter() {
                let place = match state.slot(page.index_in_block()) {
                    Slot::System => Residency::System,
                    Slot::Unmapped { busy: true, .. } => Residency::Migrating,
                    Slot::Unmapped { frame, .. } if frame.device == SYSTEM_POOL => Residency::System,
                    Slot::Mapped(frame) | Slot::Unmapped { frame, .. } => Residency::Device(frame.device),
                };
                pages[page.pages_since(range.start()).as_usize()] = place;
            }
            self.each_stray(&state, part, None, |page, _| {
                pages[page.pages_since(range.start()).as_usize()] = Residency::System;
            });
        }
        pages
    }

    /// Whether the program doesn't map some page of `range` that hetmem has.
    #[must_use]
    pub fn is_any_away(&self, range: PageRange) -> bool {
        self.space.any_block(range, |part, state| {
            let is_away = |page: VirtAddr| matches!(state.slot(page.index_in_block()), Slot::Unmapped { .. });
            state.unmapped() > 0 && (part.pages() == PageCount::BLOCK || part.iter().any(is_away))
        })
    }

    /// How many pages of `range` the program doesn't map, and how many it maps in frames of coherent devices.
    #[must_use]
    pub fn away_in(&self, range: PageRange) -> (PageCount, PageCount) {
        let (mut unmapped, mut mapped) = (0, 0);
        for (no, block) in self.space.blocks_in(range) {
            let state = block.lock();
            if range.contains_range(no.range()) {
                unmapped += u64::from(state.unmapped());
                mapped += u64::from(state.mapped());
                continue;
            }
            for page in range.intersect(no.range()).into_iter().flat_map(PageRange::iter) {
                match state.slot(page.index_in_block()) {
                    Slot::System => {}
                    Slot::Mapped(_) => mapped += 1,
                    Slot::Unmapped { .. } => unmapped += 1,
                }
            }
        }
        (PageCount::new(unmapped), PageCount::new(mapped))
    }

    /// Calls `visit` with each page of `range` that the program doesn't map and whose bytes hetmem has.
    pub fn each_away(&self, range: PageRange, mut visit: impl FnMut(PageRange)) {
        for (no, block) in self.space.blocks_in(range) {
            let Some(part) = range.intersect(no.range()) else { continue };
            let state = block.lock();
            if state.unmapped() == 0 {
                continue;
            }
            let is_away = |page: VirtAddr| matches!(state.slot(page.index_in_block()), Slot::Unmapped { .. });
            let away: Vec<PageRange> = part.iter().filter(|page| is_away(*page)).map(PageRange::page_of).collect();
            // The caller's memory is touched with no lock held.
            drop(state);
            away.into_iter().for_each(&mut visit);
        }
    }

    /// Checks every structure against every other; nothing may be in flight.
    ///
    /// # Panics
    ///
    /// If an invariant does not hold.
    pub fn check(&self) {
        self.space.check();
        let in_use = self.pool.check();
        if self.has_overlays() {
            self.check_overlays();
        }
        self.check_files();
        let mut held = vec![0u64; self.devices.len()];
        let mut pooled = 0;
        for (_, block) in self.space.blocks() {
            let state = block.lock();
            for index in 0..PageCount::BLOCK.as_usize() {
                match state.slot(index) {
                    Slot::System => {}
                    Slot::Mapped(frame) | Slot::Unmapped { frame, .. } if frame.device != SYSTEM_POOL => {
                        held[frame.device.index()] += 1;
                    }
                    Slot::Mapped(_) => panic!("only device frames are mapped"),
                    Slot::Unmapped { .. } => pooled += 1,
                }
            }
        }
        for (device, held) in self.devices.iter().zip(held) {
            device.pagemap().frames.check();
            assert_eq!(device.pagemap().frames.used().get(), held, "each used frame is in one slot");
        }
        assert_eq!(in_use.get(), pooled, "each used place of the pool is in one slot");
    }
}

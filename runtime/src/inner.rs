//! What a runtime's threads share.

use std::time::Instant;

use hetmem_core::engine::{CountersAt, Engine};
use hetmem_core::frames::{PoolSize, SystemPool};
use hetmem_core::migrate::{Request, Sampled, Select, Target};
use hetmem_core::notifier::{Notice, Subscription};
use hetmem_core::outcome::{KeptReason, Outcomes, PageOutcome};
use hetmem_core::port::{Device, Host};
use hetmem_core::record::Record;
use hetmem_core::units::{BLOCK_PAGES, ByteLen, PageCount, PageRange};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Access, Arena, ArenaOptions, HugePages, OnDump, OnFork};
use hetmem_sys::uffd::Mode;

use crate::builder::DEFAULT_STOCK;
use crate::delegate::Delegated;
use crate::error::Error;
use crate::forks::Forks;
use crate::guards::Guards;
use crate::host::UserMemory;
use crate::host::contexts::Contexts;
use crate::probe::Probe;
use crate::recorder::Recorder;
use crate::rest::{self, Warmth};
use crate::service::crew::Crew;
use crate::service::late::Moves;
use crate::service::{MEMORY_PATIENCE, Start};

/// Room in the pool for pages in transit, beside the stock.
const TRANSIT: PageCount = PageCount::new(64 * BLOCK_PAGES);

/// How often pages are asked home that others are at work on.
const HOME_TRIES: u32 = 1000;

/// What a migration does with pages that other processes map as well, after a fork.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Others {
    /// This process gets pages of its own, which move; the others keep theirs.
    Copy,
    /// They stay: as long as the others have them nothing is gained.
    Leave,
}

/// The engine, and by what a runtime's threads tell one another that there is something to do. The runtime and its handler thread share one.
pub(crate) struct Inner {
    pub(crate) engine: Engine<UserMemory>,
    pub(crate) delegated: Delegated,
    pub(crate) forks: Forks,
    pub(crate) guards: Guards,
    pub(crate) probe: Probe,
    pub(crate) resting: rest::Known,
    pub(crate) warmth: Warmth,
    pub(crate) crew: Crew,
    pub(crate) moves: Moves,
    pub(crate) started: Start,
    /// Where what happens is recorded, if it is.
    pub(crate) recorder: Option<Recorder>,
    /// The process whose memory it is.
    process: u32,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.is_of_this_process() {
            self.unregister_own();
        }
    }
}

impl Inner {
    pub(crate) fn new(
        contexts: Contexts,
        devices: Vec<Box<dyn Device>>,
        stock_limit: ByteLen,
        warmth: Warmth,
        counters: CountersAt,
        on_fatal: fn(&str),
    ) -> Result<Self, Errno> {
        let stock = stock_limit.whole_pages().ok_or(Errno::INVAL)?;
        let blocks = |pages: PageCount| PageCount::new(pages.get().next_multiple_of(BLOCK_PAGES));
        let ready = blocks(stock.min(DEFAULT_STOCK.pages_down()) + TRANSIT);
        let capacity = blocks(stock + warmth.most() + TRANSIT);
        // Pages get huge by coming from huge mappings; a touch of one place must not populate its neighbours.
        let options = ArenaOptions {
            huge_pages: HugePages::Never,
            on_fork: OnFork::Omit,
            on_dump: OnDump::Omit,
            access: Access::AsOpened,
            name: Some(c"hetmem:pool"),
            ..ArenaOptions::default()
        };
        // Before anything is registered, and so ended after: memory that is registered can't be unmapped while nobody reads events.
        let (guards, delegated, crew) = (Guards::new()?, Delegated::new()?, Crew::new()?);
        let probe = Probe::new()?;
        let host = UserMemory::new(contexts, Arena::reserve(capacity, &options)?, on_fatal)?;
        let places = host.pool.range();
        host.open_window(places)?;
        // Pages can come home whatever the process may have later.
        let first = PageCount::new(BLOCK_PAGES);
        host.pool.open(places.slice(PageCount::ZERO, first))?;
        for device in &devices {
            if let Some(start) = device.reach().movable() {
                let frames = PageRange::new(start, device.pagemap().frames.capacity()).ok_or(Errno::INVAL)?;
                host.open_window(frames)?;
            }
        }
        host.open_window(guards.bell())?;
        host.contexts.thread.register(probe.places(), Mode::MISSING)?;
        let pool = SystemPool::new(places.start(), PoolSize { grown: first, ready, capacity }, stock);
        pool.keep_warm(warmth.now());
        let engine = Engine::new(host, devices, pool, counters);
        Ok(Self {
            engine,
            delegated,
            forks: Forks::default(),
            guards,
            probe,
            resting: rest::Known::default(),
            warmth,
            crew,
            moves: Moves::default(),
            started: Start::begin(),
            recorder: None,
            process: std::process::id(),
        })
    }

    /// Ends the registrations of hetmem's own memory, before that is unmapped. Contexts that nobody reads any more end with their last descriptor, which
    /// a forked child may have: until it ends, too, nothing that is registered with them can be unmapped.
    fn unregister_own(&self) {
        let context = &self.engine.host().contexts.thread;
        let frames = self
            .engine
            .devices()
            .iter()
            .filter_map(|device| PageRange::new(device.reach().movable()?, device.pagemap().frames.capacity()));
        let own = [self.engine.host().pool.range(), self.guards.bell(), self.probe.places()];
        // One that is not registered needs no unregistering.
        own.into_iter().chain(frames).for_each(|range| _ = context.unregister(range));
    }

    /// Whether the caller is not a forked child, whose descriptors name the parent's memory, and which has no handler thread.
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process == std::process::id()
    }

    /// Leaves `record` to who has asked for records.
    pub(crate) fn record(&self, record: Record) {
        self.recorder.iter().for_each(|recorder| recorder.push(record));
    }

    /// Migrates what `request` selects of `ranges`; the outcomes are those of all pages, in order.
    pub(crate) fn migrate(&self, ranges: &[PageRange], request: Request) -> Vec<Outcomes> {
        self.migrate_beside(ranges, request, Others::Copy)
    }

    /// The same; what other processes map as well is as `others` says.
    pub(crate) fn migrate_beside(&self, ranges: &[PageRange], request: Request, others: Others) -> Vec<Outcomes> {
        if !self.is_of_this_process() {
            let unmanaged = |range: &PageRange| Outcomes::all_kept(range.pages(), KeptReason::Unmanaged);
            return ranges.iter().map(unmanaged).collect();
        }
        let lays = matches!(request.target, Target::Device(device) if self.engine.lays(device));
        if lays {
            self.fill_holes(ranges);
        }
        if request.target != Target::System {
            self.ask_for_leases(ranges);
        }
        let claim = self.trapped_all(ranges);
        let mut refused = claim.refused().to_vec();
        if self.engine.has_overlays() {
            // What others have laid since needs no trap.
            refused.retain(|(part, _)| !self.engine.region_at(part.start()).is_some_and(|(_, region)| region.owned));
        }
        let outcomes = if refused.is_empty() {
            let mut all = self.engine.migrate_all(ranges, request);
            for (range, outcomes) in ranges.iter().zip(&mut all) {
                if outcomes.kept(KeptReason::Shared).is_zero() {
                    continue;
                }
                if lays {
                    self.migrate_shared_blocks(*range, request, outcomes);
                } else {
                    self.migrate_shared(*range, request, outcomes, others);
                }
            }
            all
        } else {
            ranges.iter().map(|range| self.migrate_trapped(*range, request, &refused, others)).collect()
        };
        drop(claim);
        if let Some(recorder) = &self.recorder {
            let each = ranges.iter().zip(&outcomes);
            each.for_each(|(range, outcomes)| recorder.moved(*range, request.target, outcomes));
        }
        self.tell_of_resting();
        outcomes
    }

    /// A subscription, and the events of what is managed in its range.
    pub(crate) fn subscribe(
        &self,
        range: PageRange,
        callback: impl Fn(&Notice<'_>) + Send + Sync + 'static,
    ) -> Result<Subscription, Error> {
        let subscription = self.engine.subscribe(range, callback).map_err(|error| Error::invalid(error.to_string()))?;
        self.watch(range);
        Ok(subscription)
    }

    /// Has the program's changes to what is managed in `range` reported, for mirrors. What can't be registered is not.
    pub(crate) fn watch(&self, range: PageRange) {
        drop(self.trapped(range));
    }

    /// Gives each hole of `range` a page of zeros of its own, and no neighbour of it: in a trapped range the kernel makes no huge page. A page that
    /// can't be had stays a hole.
    pub(crate) fn populate(&self, range: PageRange) {
        let claim = self.trapped(range);
        UserMemory::unshare(range);
        drop(claim);
    }

    fn migrate_trapped(
        &self,
        range: PageRange,
        request: Request,
        refused: &[(PageRange, KeptReason)],
        others: Others,
    ) -> Outcomes {
        if let Some((part, reason)) = refused.iter().find_map(|(r, reason)| Some((r.intersect(range)?, *reason))) {
            let mut all = Outcomes::default();
            for piece in [
                PageRange::between(range.start(), part.start()),
                Some(part),
                PageRange::between(part.end(), range.end()),
            ] {
                match piece.filter(|p| !p.is_empty()) {
                    Some(piece) if piece == part => {
                        self.engine.counters().count_kept(reason, part.pages().get());
                        all.append(Outcomes::all_kept(part.pages(), reason));
                    }
                    Some(piece) => all.append(self.migrate_trapped(piece, request, refused, others)),
                    None => {}
                }
            }
            return all;
        }
        let mut outcomes = self.engine.migrate(range, request);
        if !outcomes.kept(KeptReason::Shared).is_zero() {
            self.migrate_shared(range, request, &mut outcomes, others);
        }
        outcomes
    }

    /// After a fork pages are shared until they are written: make them this process's own, then try again. What still can't be moved is
    /// pinned, which shows of the first page of each try only: those behind it were not asked for, and are tried by themselves.
    fn migrate_shared(&self, range: PageRange, request: Request, outcomes: &mut Outcomes, others: Others) {
        let shared = PageOutcome::Kept(KeptReason::Shared);
        // How far pages are this process's own now, and how many are tried at once: few where pages are pinned.
        let (mut own, mut step) = (0, BLOCK_PAGES);
        let mut at = 0;
        while at < outcomes.as_slice().len() {
            let n = outcomes.as_slice()[at..].iter().take_while(|o| **o == shared).count();
            if n == 0 {
                at += 1;
                continue;
            }
            let run = range.slice(PageCount::new(at as u64), PageCount::new(n as u64));
            if at >= own {
                let (is_left, pages) = match others {
                    Others::Copy => (false, run.pages()),
                    Others::Leave => self.engine.host().mapped_by_others(run),
                };
                let same = run.slice(PageCount::ZERO, pages);
                if is_left {
                    at += same.pages().as_usize();
                    continue;
                }
                UserMemory::unshare(same);
                own = at + same.pages().as_usize();
            }
            let run = run.slice(PageCount::ZERO, PageCount::new((own - at) as u64));
            let part = run.slice(PageCount::ZERO, PageCount::new(step));
            let tried = self.engine.migrate(part, request);
            outcomes.copy_from(at, &tried, 0, tried.as_slice().len());
            step = (step * 2).min(BLOCK_PAGES);
            if outcomes.as_slice()[at] == shared {
                outcomes.set(at, PageOutcome::Kept(KeptReason::Pinned));
                self.engine.counters().count_kept(KeptReason::Pinned, 1);
                step = 1;
            }
            at += 1;
        }
    }

    /// Takes the pages of `ranges` that `select` names out as samples; how many those are. What other processes map as well is as `others` says.
    pub(crate) fn sample(&self, ranges: &[PageRange], select: Select, others: Others) -> PageCount {
        // The copy of a page that others have on a device would be in system memory.
        let others = if select == Select::SYSTEM { others } else { Others::Leave };
        let claim = self.trapped_all(ranges);
        let Sampled { mut pages, shared } = self.engine.sample(ranges, select);
        pages += shared.into_iter().map(|range| self.sample_shared(range, select, others)).sum();
        drop(claim);
        // What was found to be no page any more has left its frame.
        self.tell_of_resting();
        pages
    }

    /// As [`Self::migrate_shared`]: what a fork has left shared is made this process's own, and tried again, and what can't be taken out then is pinned.
    fn sample_shared(&self, range: PageRange, select: Select, others: Others) -> PageCount {
        let (mut rest, mut own, mut step) = (range, range.start(), PageCount::BLOCK);
        let mut sampled = PageCount::ZERO;
        while !rest.is_empty() {
            if rest.start() >= own {
                let (by_others, alike) = match others {
                    Others::Copy => (false, rest.pages()),
                    Others::Leave => self.engine.host().mapped_by_others(rest),
                };
                let same = rest.slice(PageCount::ZERO, alike);
                own = same.end();
                if by_others {
                    self.engine.refuse_samples(same);
                    rest = rest.slice(alike, rest.pages());
                    continue;
                }
                UserMemory::unshare(same);
            }
            let part = rest.slice(PageCount::ZERO, own.pages_since(rest.start()).min(step));
            let tried = self.engine.sample(&[part], select);
            sampled += tried.pages;
            let mut done = part.pages();
            step = PageCount::new((step.get() * 2).min(BLOCK_PAGES));
            // Of a page that is pinned, and those behind it, the first is known.
            if let Some(pinned) = tried.shared.first().map(|range| range.slice(PageCount::ZERO, PageCount::ONE)) {
                self.engine.refuse_samples(pinned);
                done = pinned.end().pages_since(part.start());
                step = PageCount::ONE;
            }
            rest = rest.slice(done, rest.pages());
        }
        sampled
    }

    /// Ends every registration of `range`, unless pages of it are away after all. Waits while the program changes mappings.
    pub(crate) fn unregister(&self, range: PageRange) {
        let host = self.engine.host();
        let start = Instant::now();
        let ended = || {
            self.engine.while_no_event_is_read(|| {
                !self.engine.away_in(range).0.is_zero() || host.traps.forget(&host.contexts, range)
            })
        };
        while !ended() && start.elapsed() <= MEMORY_PATIENCE {
            host.await_events();
        }
    }

    /// Ends every registration of the mappings that `range` touches, known or not, unless pages of them are away after all.
    pub(crate) fn unregister_around(&self, range: PageRange) {
        let mut hull = range;
        for (extent, _) in self.engine.extents(&[range]) {
            let (start, end) = (hull.start().min(extent.start()), hull.end().max(extent.end()));
            hull = PageRange::between(start, end).unwrap_or(hull);
        }
        self.unregister(hull);
        if !self.engine.away_in(hull).0.is_zero() {
            return;
        }
        // Where the mappings can't be read, those that the books don't know stay registered, and the kernel refuses what they stand in the way of.
        let mappings = crate::mappings::mappings_in(&self.engine.host().contexts.maps, hull).unwrap_or_default();
        for (mapping, _) in mappings.into_iter().filter(|(_, anonymous)| *anonymous) {
            for (uffd, _) in self.engine.host().program_contexts() {
                // One that is not registered needs no unregistering.
                let _ = uffd.unregister(mapping);
            }
        }
    }

    /// Pages of `ranges` that are in memory and not on a device.
    pub(crate) fn resident(&self, ranges: &[PageRange]) -> PageCount {
        ranges
            .iter()
            .map(|range| {
                let present = match &self.recorder {
                    None => self.engine.host().present(*range),
                    Some(recorder) => {
                        let parts = self.engine.host().present_parts(*range);
                        recorder.present(&parts);
                        parts.iter().map(|part| part.pages()).sum()
                    }
                };
                let (_, mapped) = self.engine.away_in(*range);
                PageCount::new(present.get().saturating_sub(mapped.get()))
            })
            .sum()
    }

    /// Pages of `ranges` that are in memory and that no other process maps, without those on a device.
    pub(crate) fn own(&self, ranges: &[PageRange]) -> PageCount {
        let each = |range: &PageRange| {
            let present = self.engine.host().present_here_only(*range);
            let (_, mapped) = self.engine.away_in(*range);
            PageCount::new(present.get().saturating_sub(mapped.get()))
        };
        ranges.iter().map(each).sum()
    }

    /// Brings every page home that a forked child would not have; `false` if some could not come while it tried.
    pub(crate) fn bring_home(&self) -> bool {
        self.lift_all();
        self.bring_files_home();
        for _ in 0..HOME_TRIES {
            let left = self.engine.bring_all_home();
            self.tell_of_resting();
            if left.is_zero() {
                self.release_idle();
                return true;
            }
            // Others are at work on them: a touch, an event.
            self.engine.host().await_events();
        }
        false
    }
}

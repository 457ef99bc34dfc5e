//! CPU faults: a touch of a page that the program doesn't map.
//!
//! Concurrent touches of one page make one migration: the first marks the page busy, the others wait for it. Neighbours come along
//! as long as touches go on in sequence ([`MAX_AROUND`]); a touch out of sequence brings one page, and so does each one without
//! [`Engine::set_fault_around`]. Only the touched page is owed: neighbours that the device does not give back are left where they are.
//!
//! Nothing here allocates, and no memory is touched but hetmem's own: this runs while memory of the program is away.

mod cluster;
mod notify;
mod under_way;

use std::sync::atomic::Ordering::Relaxed;

use crate::engine::Engine;
use crate::frames::{FrameRefs, Frames, Purpose, restate};
use crate::install::{Installed, Source, Ways};
use crate::notifier::Invalidation;
use crate::port::{FaultPath, Host, TransferError};
use crate::slot::{Frame, Slot};
use crate::space::{Block, BlockState};
use crate::units::{BLOCK_PAGES, PageCount, PageRange, VirtAddr};
use cluster::{Around, Cluster};
use notify::Notify;
pub(crate) use under_way::UnderWay;
pub use under_way::{Ended, MAX_FAULTS, MAX_UNDER_WAY};

/// Pages that one fault brings home at most.
pub const MAX_AROUND: u16 = 64;
/// As many pages are best copied into the program. A move has each processor forget where they were, which a copy does not; but for that a move of many
/// costs less than copies of them.
pub(crate) const MAX_COPIED: PageCount = PageCount::new(16);
/// How often a device may fail to give a page back that is owed, before the program is stopped.
pub(crate) const DEVICE_TRIES: u32 = 8;

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultResolution {
    /// This many pages came home from a device.
    Home(PageCount),
    /// This many pages, which were out as samples or in transit, are back: where they were.
    Back(PageCount),
    /// The page had never been written and reads as zeros now, or was there all along.
    Present,
    /// Somebody else works on the page and will wake who waits for it.
    Waiting,
    /// The program changed its mappings: read events, then call again.
    EventsPending,
    /// The host has no memory for the page now: call again later.
    NoMemory,
    /// A mirror must be told first, which a signal handler can't do: have another thread call [`Engine::fault`].
    Mirrored,
    /// The device is at work: [`Engine::end_faults`] will say what became of it. Only of [`Engine::begin_fault`].
    UnderWay,
    /// As many faults are under way as can be: call again when some have ended. Only of [`Engine::begin_fault`].
    NoRoom,
}

impl<H: Host> Engine<H> {
    /// Serves a touch at `addr`.
    ///
    /// On [`FaultPath::Sigbus`] it waits itself for pages that are busy, unless a mirror had to be told: then it returns
    /// [`FaultResolution::Waiting`], and is to be called again.
    pub fn fault(&self, addr: VirtAddr, path: FaultPath) -> FaultResolution {
        self.fault_or_begin(addr, path, None)
    }

    /// Serves a touch; with a `token` it may be under way on return.
    fn fault_or_begin(&self, addr: VirtAddr, path: FaultPath, token: Option<u64>) -> FaultResolution {
        let mut told: Option<(Notify, Invalidation<'_>)> = None;
        loop {
            let notify = match self.fault_if_told(addr, path, told.as_ref().map(|(notify, _)| *notify), token) {
                Ok(resolution) => return resolution,
                Err(notify) => notify,
            };
            // The last notice ends first: nobody has acted on it.
            drop(told.take());
            told = Some((notify, self.notifiers.start(notify.range, notify.event, false)));
        }
    }

    /// Serves a touch at `addr` in a signal handler, where no callback may run: [`FaultResolution::Mirrored`] if one would have to.
    pub fn fault_in_signal(&self, addr: VirtAddr) -> FaultResolution {
        self.fault_if_told(addr, FaultPath::Sigbus, None, None).unwrap_or(FaultResolution::Mirrored)
    }

    /// Serves a touch, or says what mirrors must be told first, unless that is what they were `told`.
    fn fault_if_told(
        &self,
        addr: VirtAddr,
        path: FaultPath,
        told: Option<Notify>,
        token: Option<u64>,
    ) -> Result<FaultResolution, Notify> {
        let page = addr.page_down();
        let shared = self.space.gate.share();
        let Some(block) = self.space.existing_block(page.block()) else {
            let holes = self.holes_at(page, None);
            let filled = self.space.while_absent(page.block(), || self.fill(path, holes));
            drop(shared);
            return filled.map_or_else(|| self.fault_if_told(addr, path, told, token), Ok);
        };
        let mut state = block.lock();
        let slot = state.slot(page.index_in_block());
        match slot {
            _ if slot.is_busy() || state.exchanging => match (path, told) {
                // Nobody waits between the start and the end of a notice.
                (FaultPath::Thread, _) | (FaultPath::Sigbus, Some(_)) => {
                    state.note_waiter();
                    Ok(FaultResolution::Waiting)
                }
                (FaultPath::Sigbus, None) => {
                    // The gate is let go: events must not wait for this thread.
                    drop(shared);
                    drop(block.wait_settled(state));
                    self.fault_if_told(addr, path, told, token)
                }
            },
            Slot::Unmapped { frame, .. } => {
                // A device may use the page in that frame: its own, or one that it holds exclusively. In no other state do mirrors use
                // a page that a fault changes.
                let has_address = self.address(Frames::single(frame)).is_some();
                let notify = Notify::of_touch(page, has_address, self.fault_around);
                if told != Some(notify) && self.notifiers.any_in(notify.range) {
                    return Err(notify);
                }
                if has_address {
                    return Ok(self.install_touched(&block, &mut state, path, page, frame));
                }
                let around = Around::of(self, &state, page);
                if let Some(resolution) = self.copy_touched(&mut state, path, around, frame) {
                    drop(state);
                    drop(shared);
                    // Who is woken may run at once in place of this thread, which others would wait for if it had the locks still. Nobody else waits
                    // where touches are served by who touches.
                    if let (FaultPath::Thread, FaultResolution::Home(pages)) = (path, resolution) {
                        self.host.wake(path, around.pages.slice(PageCount::ZERO, pages));
                    }
                    return Ok(resolution);
                }
                // Who was told is told the end, too, which is when this returns.
                let token = token.filter(|_| told.is_none() && self.completes_late(frame.device));
                if token.is_some() && self.is_full() {
                    return Ok(FaultResolution::NoRoom);
                }
                // Large, so it stays where it is: those who work on it borrow it.
                let mut cluster = Cluster::begin(self, &mut state, around);
                drop(state);
                drop(shared);
                match token {
                    Some(token) => Ok(self.set_out(block, addr, token, cluster)),
                    None => Ok(self.bring_home(&block, path, &mut cluster)),
                }
            }
            Slot::Mapped(_) => Ok(self.fill_dropped(&mut state, path, page)),
            Slot::System => {
                let holes = self.holes_at(page, Some(&mut state));
                Ok(self.fill(path, holes))
            }
        }
    }

    /// Installs a page that lies in a frame with an address, by moving it where that can be.
    fn install_touched(
        &self,
        block: &Block,
        state: &mut BlockState,
        path: FaultPath,
        page: VirtAddr,
        frame: Frame,
    ) -> FaultResolution {
        let one = PageRange::page_of(page);
        let mut installed = self.install_whole(state, path, page);
        if installed.is_none_or(|installed| installed.settled().is_zero() && installed != Installed::EventsPending) {
            let mut bytes = self.refer_to(Frames::single(frame));
            installed = Some(self.install(state, path, one, Source::Slots(&mut bytes), Ways::MoveOrCopy));
        }
        let result = match installed.unwrap_or(Installed::EventsPending) {
            Installed::Pages(pages) => {
                // Only blocks of which something was sampled keep heat.
                if state.heat.is_some() {
                    self.counters.sample_touches.fetch_add(1, Relaxed);
                }
                // Of a whole block it need not be among those that came, and is looked for again.
                self.wake_unless_there(state, path, page);
                FaultResolution::Back(pages)
            }
            Installed::Discarded(_) => {
                self.host.wake(path, one);
                FaultResolution::Present
            }
            Installed::EventsPending => return FaultResolution::EventsPending,
            Installed::NoMemory => return FaultResolution::NoMemory,
            Installed::Refused => self.is_refused(page),
            Installed::Occupied => self.is_there_twice(page),
        };
        state.note_use(page.index_in_block(), self.tick());
        self.counters.cpu_faults.fetch_add(1, Relaxed);
        if state.take_waited() {
            self.host.wake(path, one);
            block.notify_settled();
        }
        result
    }

    /// Installs the block of `page`, if it was one huge page when it was taken out as a sample, whole. Mirrors are told of one page only, so that where
    /// there are some each page comes by itself.
    fn install_whole(&self, state: &mut BlockState, path: FaultPath, page: VirtAddr) -> Option<Installed> {
        let all = page.block().range();
        state.heat.as_ref().filter(|heat| heat.is_whole())?;
        let frames = state.resting_run(all).filter(|frames| {
            frames.run.pages == PageCount::BLOCK && u64::from(frames.run.first.get()).is_multiple_of(BLOCK_PAGES)
        })?;
        if !self.space.is_managed(all, path) || self.notifiers.any_in(all) {
            return None;
        }
        let mut bytes = self.refer_to(frames);
        Some(self.install(state, path, all, Source::Slots(&mut bytes), Ways::Move))
    }

    fn wake_unless_there(&self, state: &BlockState, path: FaultPath, page: VirtAddr) {
        if matches!(state.slot(page.index_in_block()), Slot::Unmapped { .. }) {
            self.host.wake(path, PageRange::page_of(page));
        }
    }

    /// Copies a page, and neighbours of it, into the program from where their private frames can be read; whoever waits for those that came home is to be
    /// woken. `None` where another way is better, or the only one.
    fn copy_touched(
        &self,
        state: &mut BlockState,
        path: FaultPath,
        around: Around,
        frame: Frame,
    ) -> Option<FaultResolution> {
        let Around { pages, window } = around;
        if u64::from(window) > MAX_COPIED.get() || self.readable(Frames::single(frame)).is_none() {
            return None;
        }
        let mut done = PageCount::ZERO;
        while done < pages.pages() {
            let rest = pages.slice(done, pages.pages());
            let Some(frames) = state.resting_run(rest).filter(|frames| frames.device == frame.device) else { break };
            let to = rest.slice(PageCount::ZERO, frames.run.pages);
            let mut refs = self.refer_to(frames);
            let ways = if window == 1 { Ways::Touched } else { Ways::MoveOrCopy };
            match self.install(state, path, to, Source::Slots(&mut refs), ways) {
                Installed::Pages(pages) => done += pages,
                Installed::Occupied => self.is_there_twice(to.start()),
                // A neighbour is not owed.
                _ if !done.is_zero() => break,
                Installed::Discarded(_) => {
                    self.host.wake(path, PageRange::page_of(pages.start()));
                    self.counters.cpu_faults.fetch_add(1, Relaxed);
                    return Some(FaultResolution::Present);
                }
                Installed::EventsPending => return Some(FaultResolution::EventsPending),
                Installed::Refused | Installed::NoMemory => return None,
            }
        }
        let came = pages.slice(PageCount::ZERO, done);
        self.note_touch(state, came, window);
        Some(self.served(came.end(), done, window))
    }

    /// A touch has brought `pages` home, or is about to.
    fn note_touch(&self, state: &mut BlockState, pages: PageRange, window: u16) {
        if state.note_touch(pages, window, self.tick()) {
            self.counters.refaults.fetch_add(pages.pages().get(), Relaxed);
        }
    }

    /// Copies the pages of `cluster` out of their private frames and installs them.
    fn bring_home(&self, block: &Block, path: FaultPath, cluster: &mut Cluster<'_, H>) -> FaultResolution {
        let all = cluster.rest();
        let mut result = FaultResolution::Home(PageCount::ZERO);
        while !cluster.is_empty() {
            let Some(mut places) = self.take_stocked(cluster.pages(), Purpose::Fault) else {
                result = FaultResolution::NoMemory;
                break;
            };
            let fetched = self.fetch(cluster, places.frames());
            if fetched.is_zero() {
                // Neighbours, as the touched page comes or the program stops.
                break;
            }
            let copies = places.take_front(fetched);
            drop(places);
            let _shared = self.space.gate.share();
            let mut state = block.lock();
            if let Some(stop) = self.install_cluster(&mut state, path, cluster, copies) {
                result = stop;
                break;
            }
            if cluster.is_empty() {
                self.release_waiters(block, &mut state, path, all);
            }
        }
        self.came_home(block, path, cluster, all, result)
    }

    /// Of the pages `all` those have come home that are not in `cluster`: what the fault resolves to, which is `result` if there is none.
    fn came_home(
        &self,
        block: &Block,
        path: FaultPath,
        cluster: &mut Cluster<'_, H>,
        all: PageRange,
        result: FaultResolution,
    ) -> FaultResolution {
        let (done, window) = (all.pages() - cluster.pages(), cluster.window());
        if !cluster.is_empty() {
            self.give_up(block, path, cluster, all);
        }
        if done.is_zero() {
            return result;
        }
        self.served(all.start().add_pages(done), done, window)
    }

    /// A fault has brought `pages` pages home, which end at `end`.
    fn served(&self, end: VirtAddr, pages: PageCount, window: u16) -> FaultResolution {
        self.counters.cpu_faults.fetch_add(1, Relaxed);
        self.counters.pages_migrated_to_system.fetch_add(pages.get(), Relaxed);
        self.continue_stream(end, window);
        FaultResolution::Home(pages)
    }

    /// What did not come home of the pages `all` is no longer busy; the waiter of the touched page itself, if that is among them, tries again.
    fn give_up(&self, block: &Block, path: FaultPath, cluster: &mut Cluster<'_, H>, all: PageRange) {
        let _shared = self.space.gate.share();
        let mut state = block.lock();
        while !cluster.is_empty() {
            if !cluster.ours(&state, PageCount::ONE).is_zero() {
                let page = cluster.rest().slice(PageCount::ZERO, PageCount::ONE);
                let frame = Frames::single(cluster.frame(PageCount::ZERO));
                restate(&mut state, page, frame, |frame| Slot::Unmapped { frame, busy: false });
            }
            cluster.advance(PageCount::ONE);
        }
        self.release_waiters(block, &mut state, path, all);
    }

    /// Copies the frames of the first pages of `cluster` into `to`, and says how many came: fewer where the device does not give a neighbour back. If
    /// it does not give the touched page back, there is no place for that one: the program is stopped.
    fn fetch(&self, cluster: &Cluster<'_, H>, to: Frames) -> PageCount {
        let mut at = PageCount::ZERO;
        while at < to.run.pages {
            let from = cluster.run(at, to.run.pages - at);
            match self.copy_owed(from, to.slice(at, from.run.pages)) {
                Ok(()) => at += from.run.pages,
                Err(error) if at.is_zero() && cluster.owes_touched() => {
                    let one = |frames: Frames| frames.slice(PageCount::ZERO, PageCount::ONE);
                    self.fetch_owed(cluster.rest().start(), one(from), one(to), error);
                    return PageCount::ONE;
                }
                Err(_) => return at,
            }
        }
        at
    }

    /// Copies the touched page once more, which the device did not give back, as often as may be of use. There is no other place where its bytes are:
    /// the program is stopped if they don't come.
    fn fetch_owed(&self, page: VirtAddr, from: Frames, to: Frames, mut error: TransferError) {
        for _ in 1..DEVICE_TRIES {
            if error == TransferError::Lost {
                break;
            }
            match self.copy_owed(from, to) {
                Ok(()) => return,
                Err(again) => error = again,
            }
        }
        self.host.stop_the_program(page, "the device does not give a page back")
    }

    /// Installs the first pages of `cluster`, of which `copies` are. Returns what stopped it.
    fn install_cluster(
        &self,
        state: &mut BlockState,
        path: FaultPath,
        cluster: &mut Cluster<'_, H>,
        mut copies: FrameRefs<'_, H>,
    ) -> Option<FaultResolution> {
        while !copies.pages().is_zero() {
            // As many pages as are still ours go in with one call.
            let ours = cluster.ours(state, copies.pages());
            let first = cluster.rest().slice(PageCount::ZERO, PageCount::ONE);
            if ours.is_zero() {
                // The program dropped or moved the page meanwhile. Nothing is installed, so nothing else wakes the toucher.
                self.host.wake(path, first);
                drop(copies.take_front(PageCount::ONE));
                cluster.advance(PageCount::ONE);
                continue;
            }
            let to = cluster.rest().slice(PageCount::ZERO, ours);
            let few = u64::from(cluster.window()) <= MAX_COPIED.get();
            let ways = if few { Ways::Copied } else { Ways::MoveOrCopy };
            let installed = self.install(state, path, to, Source::Copies(&mut copies), ways);
            cluster.advance(installed.settled());
            match installed {
                // Who moves pages wakes by that.
                Installed::Pages(pages) if ways != Ways::MoveOrCopy => {
                    self.host.wake(path, to.slice(PageCount::ZERO, pages));
                }
                Installed::Pages(_) => {}
                Installed::Discarded(_) => self.host.wake(path, first),
                Installed::EventsPending => return Some(FaultResolution::EventsPending),
                Installed::NoMemory => return Some(FaultResolution::NoMemory),
                Installed::Refused => self.is_refused(first.start()),
                Installed::Occupied => self.is_there_twice(first.start()),
            }
        }
        None
    }

    /// Lets the block at `end` know that a stream runs into it.
    fn continue_stream(&self, end: VirtAddr, window: u16) {
        if end.index_in_block() == 0
            && let Some(next) = self.space.existing_block(end.block())
        {
            let mut state = next.lock();
            state.stream.next = 0;
            state.stream.window = window;
        }
    }
}

//! CPU faults: a touch of a page that the program doesn't map.
//!
//! Concurrent touches of one page make one migration: the first marks the page busy, the others wait for it. Neighbours come along
//! as long as touches go on in sequence ([`MAX_AROUND`]); a touch out of sequence brings one page, and so does each one without
//! [`Engine::fault_around`]. Only the touched page is owed: neighbours that the device does not give back are left where they are.
//!
//! Nothing here allocates, and no memory is touched but hetmem's own: this runs while memory of the program is away.

mod notify;

use std::sync::atomic::Ordering::Relaxed;

use crate::engine::{Engine, Held};
use crate::migrate::{Origin, Piece, PutFailure};
use crate::notifier::Invalidation;
use crate::outcome::KeptReason;
use crate::pool::Purpose;
use crate::port::{FaultPath, Host, Install, PutStop};
use crate::slot::{Frame, SYSTEM_POOL, Slot};
use crate::space::{Block, BlockState};
use crate::units::{BLOCK_PAGES, DeviceId, FrameIndex, PageCount, PageRange, VirtAddr};
use notify::Notify;

/// Pages that one fault brings home at most.
pub const MAX_AROUND: u16 = 64;
/// Never written pages that one fault makes readable at most.
const MAX_ZERO_AROUND: u16 = 16;
/// Transfers of faults that are under way at a time, at most: of each device.
pub const MAX_UNDER_WAY: usize = 256;
/// How often a device may fail to give a page back that is owed, before the program is stopped.
pub(crate) const DEVICE_TRIES: u32 = 8;

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultResolution {
    /// This many pages came home from a device or the pool.
    Home(PageCount),
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
}

impl<H: Host> Engine<H> {
    /// Serves a touch at `addr`.
    ///
    /// On [`FaultPath::Sigbus`] it waits itself for pages that are busy, unless a mirror had to be told: then it returns
    /// [`FaultResolution::Waiting`], and is to be called again.
    pub fn fault(&self, addr: VirtAddr, path: FaultPath) -> FaultResolution {
        let mut told: Option<(Notify, Invalidation<'_>)> = None;
        loop {
            let notify = match self.fault_if_told(addr, path, told.as_ref().map(|(notify, _)| *notify)) {
                Ok(resolution) => return resolution,
                Err(notify) => notify,
            };
            // The last notice ends first: nobody has acted on it.
            drop(told.take());
            told = Some((notify, self.notifiers.start(notify.range, notify.event, false)));
        }
    }

    /// The same in a signal handler, where no callback may run: [`FaultResolution::Mirrored`] if one would have to.
    pub fn fault_in_signal(&self, addr: VirtAddr) -> FaultResolution {
        self.fault_if_told(addr, FaultPath::Sigbus, None).unwrap_or(FaultResolution::Mirrored)
    }

    /// Serves a touch, or says what mirrors must be told first, unless that is what they were `told`.
    fn fault_if_told(&self, addr: VirtAddr, path: FaultPath, told: Option<Notify>) -> Result<FaultResolution, Notify> {
        let page = addr.page_down();
        let installing = self.space.gate.install();
        let Some(block) = self.space.existing_block(page.block()) else {
            let range = self.zero_range(page, None);
            let zeroed = self.space.while_absent(page.block(), || self.zero(path, range));
            drop(installing);
            return zeroed.map_or_else(|| self.fault_if_told(addr, path, told), Ok);
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
                    drop(installing);
                    drop(block.wait_settled(state));
                    self.fault_if_told(addr, path, told)
                }
            },
            Slot::Unmapped { frame, .. } => {
                // A device may use the page in that frame: its own, or one that it holds exclusively. In no other state do mirrors use
                // a page that a fault changes.
                let has_address = self.address(Held::single(frame)).is_some();
                let notify = Notify::of_touch(page, has_address, self.fault_around);
                if told != Some(notify) && self.notifiers.any_in(notify.range) {
                    return Err(notify);
                }
                if has_address {
                    return Ok(self.move_in(&block, &mut state, path, page, frame));
                }
                let mut run = Around::plan(self, &mut state, page);
                run.mark(self, &mut state);
                drop(state);
                drop(installing);
                Ok(self.bring_home(&block, path, &run))
            }
            Slot::Mapped(frame) => {
                // Present, unless the program dropped the page while nobody watched.
                let one = PageRange::page_of(page);
                let put = self.host.zero_fill(path, one);
                if put.stop.is_none() {
                    state.set(page.index_in_block(), Slot::System);
                    self.put_moved(Held::single(frame));
                    return Ok(FaultResolution::Present);
                }
                Ok(self.present_or(path, one, put.stop))
            }
            Slot::System => {
                let range = self.zero_range(page, Some(&mut state));
                Ok(self.zero(path, range))
            }
        }
    }

    /// Moves a page in that lies in a frame with an address: no copy.
    fn move_in(
        &self,
        block: &Block,
        state: &mut BlockState,
        path: FaultPath,
        page: VirtAddr,
        frame: Frame,
    ) -> FaultResolution {
        let (at, held) = (PageRange::page_of(page), Held::single(frame));
        let from = self.address(held).expect("the caller looked");
        // A batch that lost the page may still read the frame: then the page must stay in it.
        let mut how = if self.is_read_by_others(held, 1) { Install::Copy } else { Install::Move };
        let mut put = self.host.put_in(path, at, from, how);
        if put.stop == Some(PutStop::Refused) {
            how = Install::Copy;
            put = self.host.put_in(path, at, from, how);
        }
        let result = match put.stop.map(|stop| (stop, self.put_failure(page, stop))) {
            None => FaultResolution::Home(PageCount::ONE),
            Some((_, PutFailure::LookAgain)) => return FaultResolution::EventsPending,
            Some((PutStop::NoMemory, _)) => return FaultResolution::NoMemory,
            Some((_, PutFailure::StaysAway)) => {
                self.host.stop_the_program(page, "the kernel accepts a page neither by moving nor by copying")
            }
            Some((_, PutFailure::Dropped)) => {
                self.host.wake(path, at);
                FaultResolution::Present
            }
        };
        if put.stop.is_none() && how == Install::Move && frame.device != SYSTEM_POOL {
            state.set(page.index_in_block(), Slot::Mapped(frame));
        } else {
            state.set(page.index_in_block(), Slot::System);
            if put.stop.is_none() && how == Install::Move { self.put_moved(held) } else { self.put(held) }
        }
        self.counters.cpu_faults.fetch_add(1, Relaxed);
        if state.take_waited() {
            self.host.wake(path, at);
            block.notify_settled();
        }
        result
    }

    /// Copies the pages of `run` out of their private frames and puts them in.
    fn bring_home(&self, block: &Block, path: FaultPath, run: &Around) -> FaultResolution {
        let mut done = PageCount::ZERO;
        let mut result = FaultResolution::Home(PageCount::ZERO);
        while done < run.pages() {
            let Some(place) = self.take_stocked(run.pages() - done, run.page(done), Purpose::Fault) else {
                result = FaultResolution::NoMemory;
                break;
            };
            let to = Held { device: SYSTEM_POOL, run: place };
            let fetched = self.fetch(run, done, to);
            if fetched < place.pages {
                self.put(to.slice(fetched, place.pages - fetched));
            }
            if fetched.is_zero() {
                // Neighbours, as the touched page comes or the program stops.
                break;
            }
            let to = to.slice(PageCount::ZERO, fetched);
            let _installing = self.space.gate.install();
            let mut state = block.lock();
            let (n, stop) = self.put_around(&mut state, path, run, done, to);
            done += n;
            if let Some(stop) = stop {
                result = stop;
                break;
            }
            if done == run.pages() {
                self.release_waiters(block, &mut state, path, run.range());
            }
        }
        if done < run.pages() {
            self.give_up(block, path, run, done);
        }
        if done.is_zero() {
            return result;
        }
        self.counters.cpu_faults.fetch_add(1, Relaxed);
        self.counters.pages_migrated_to_system.fetch_add(done.get(), Relaxed);
        self.continue_stream(run, done);
        FaultResolution::Home(done)
    }

    /// What did not come home is no longer busy; the waiter of the page itself, if that is among them, tries again.
    fn give_up(&self, block: &Block, path: FaultPath, run: &Around, done: PageCount) {
        let _installing = self.space.gate.install();
        let mut state = block.lock();
        let mut at = done;
        while at < run.pages() {
            let piece = run.piece(at);
            if piece.same_fate(&state, PageCount::ZERO).0 {
                self.put_back_ours(&mut state, path, piece);
            } else {
                self.put(piece.bytes);
            }
            at += PageCount::ONE;
        }
        self.release_waiters(block, &mut state, path, run.range());
    }

    /// Copies the frames of pages `from` on into `to`, and says how many came: fewer where the device does not give a neighbour back. If it
    /// does not give the touched page back, which is the first, there is no place for that one: the program is stopped.
    fn fetch(&self, run: &Around, from: PageCount, to: Held) -> PageCount {
        let mut at = PageCount::ZERO;
        while at < to.run.pages {
            let mut n = PageCount::ONE;
            let first = run.frame(from + at);
            while at + n < to.run.pages {
                let next = run.frame(from + at + n);
                let follows = u64::from(first.index.get()) + n.get() == u64::from(next.index.get());
                if next.device != first.device || !follows {
                    break;
                }
                n += PageCount::ONE;
            }
            let frames = Held { device: first.device, run: crate::run_set::FrameRun { first: first.index, pages: n } };
            let copy = |n| self.copy_owed(frames.slice(PageCount::ZERO, n), to.slice(at, n));
            if copy(n) {
                at += n;
                continue;
            }
            let owed = (from + at).is_zero();
            if !owed {
                return at;
            }
            if (1..DEVICE_TRIES).any(|_| copy(PageCount::ONE)) {
                return PageCount::ONE;
            }
            self.host.stop_the_program(run.page(from + at), "the device does not give a page back");
        }
        at
    }

    /// Puts the pages in `from` in at pages `at` on of `run`. Returns how many are dealt with, and what stopped it.
    fn put_around(
        &self,
        state: &mut BlockState,
        path: FaultPath,
        run: &Around,
        at: PageCount,
        from: Held,
    ) -> (PageCount, Option<FaultResolution>) {
        let mut n = PageCount::ZERO;
        let mut stop = None;
        while n < from.run.pages && stop.is_none() {
            // As many pages as are still ours go in with one call.
            let mut ours = PageCount::ZERO;
            while n + ours < from.run.pages && run.piece(at + n + ours).same_fate(state, PageCount::ZERO).0 {
                ours += PageCount::ONE;
            }
            if ours.is_zero() {
                // The program dropped or moved the page meanwhile. Nothing is put in, so nothing else wakes the toucher.
                self.host.wake(path, run.piece(at + n).at);
                self.put(run.piece(at + n).bytes);
                self.put(from.slice(n, PageCount::ONE));
                n += PageCount::ONE;
                continue;
            }
            let target = run.range().slice(at + n, ours);
            let part = from.slice(n, ours);
            let address = self.pool.address(part.run);
            let mut how = Install::Move;
            let mut put = self.host.put_in(path, target, address, how);
            if put.pages.is_zero() && put.stop == Some(PutStop::Refused) {
                how = Install::Copy;
                put = self.host.put_in(path, target, address, how);
            }
            let mut settled = put.pages;
            if let Some(why) = put.stop.filter(|_| put.pages.is_zero()) {
                match self.put_failure(target.start(), why) {
                    PutFailure::LookAgain => stop = Some(FaultResolution::EventsPending),
                    PutFailure::StaysAway if why == PutStop::NoMemory => stop = Some(FaultResolution::NoMemory),
                    PutFailure::StaysAway => self
                        .host
                        .stop_the_program(target.start(), "the kernel accepts a page neither by moving nor by copying"),
                    PutFailure::Dropped => {
                        self.host.wake(path, target.slice(PageCount::ZERO, PageCount::ONE));
                        settled = PageCount::ONE;
                    }
                }
            }
            for i in 0..settled.get() {
                let i = PageCount::new(i);
                let piece = run.piece(at + n + i);
                state.set(piece.at.start().index_in_block(), Slot::System);
                self.put(piece.bytes);
                self.put(piece.bytes);
            }
            if !settled.is_zero() {
                let used = from.slice(n, settled);
                if how == Install::Move && !put.pages.is_zero() { self.put_moved(used) } else { self.put(used) }
            }
            n += settled;
        }
        if n < from.run.pages {
            self.put(from.slice(n, from.run.pages - n));
        }
        (n, stop)
    }

    /// Makes holes of `range` readable; its first page is the one that was touched.
    fn zero(&self, path: FaultPath, range: PageRange) -> FaultResolution {
        let put = self.host.zero_fill(path, range);
        if !put.pages.is_zero() {
            return FaultResolution::Present;
        }
        self.present_or(path, range.slice(PageCount::ZERO, PageCount::ONE), put.stop)
    }

    fn present_or(&self, path: FaultPath, page: PageRange, stop: Option<PutStop>) -> FaultResolution {
        match stop {
            Some(PutStop::EventsPending) => FaultResolution::EventsPending,
            Some(PutStop::NoMemory) => FaultResolution::NoMemory,
            // Occupied: it is there. Gone, guarded or refused: the touch itself will tell the program.
            Some(PutStop::Occupied | PutStop::Gone | PutStop::Guarded | PutStop::Refused) | None => {
                self.host.wake(path, page);
                FaultResolution::Present
            }
        }
    }

    /// The hole at `page` and those that follow it, as far as nothing in them was migrated.
    fn zero_range(&self, page: VirtAddr, state: Option<&mut BlockState>) -> PageRange {
        let region = self.space.region_at(page).map(|(range, _)| range);
        let mut pages = 1;
        if let Some(region) = region.filter(|_| self.fault_around && self.zero_around.load(Relaxed)) {
            let first = page.index_in_block();
            let end = (first + usize::from(MAX_ZERO_AROUND)).min(512);
            let mut index = first + 1;
            while index < end
                && region.contains(page.add_pages(PageCount::new((index - first) as u64)))
                && state.as_ref().is_none_or(|s| s.slot(index) == Slot::System)
            {
                index += 1;
            }
            pages = (index - first) as u64;
        }
        PageRange::new(page, PageCount::new(pages)).unwrap_or_else(|| PageRange::page_of(page))
    }

    /// Lets the next block know that a stream runs into it.
    fn continue_stream(&self, run: &Around, done: PageCount) {
        let end = run.range().start().add_pages(done);
        if end.index_in_block() == 0
            && let Some(next) = self.space.existing_block(end.block())
        {
            let mut state = next.lock();
            state.stream.next = 0;
            state.stream.window = run.window;
        }
    }

    /// Brings every page home that the program doesn't map, and returns how many could not come.
    pub fn bring_all_home(&self) -> PageCount {
        use crate::migrate::{Request, Target};
        let mut left = PageCount::ZERO;
        for (no, block) in self.space.blocks() {
            if block.lock().unmapped() == 0 {
                continue;
            }
            for (part, region) in self.space.regions_in(no.range()) {
                let Some(mut region) = region else { continue };
                region.pinned = false;
                let mut at = PageCount::ZERO;
                while at < part.pages() {
                    // Only runs of missing pages: what a coherent device holds mapped may stay.
                    let (skip, take) = {
                        let state = block.lock();
                        let away = |i: u64| {
                            let page = part.start().add_pages(PageCount::new(i));
                            matches!(state.slot(page.index_in_block()), Slot::Unmapped { .. })
                        };
                        let n = part.pages().get();
                        let start = (at.get()..n).find(|&i| away(i)).unwrap_or(n);
                        let end = (start..n).find(|&i| !away(i)).unwrap_or(n);
                        (start, end - start)
                    };
                    let run = part.slice(PageCount::new(skip), PageCount::new(take));
                    if !run.is_empty() {
                        let outcomes = self.migrate_batch(run, region, Request::all_to(Target::System));
                        self.counters.pages_migrated_to_system.fetch_add(outcomes.moved().get(), Relaxed);
                        left += run.pages() - outcomes.moved() - outcomes.kept(KeptReason::AlreadyThere);
                    }
                    at = PageCount::new(skip + take);
                }
            }
        }
        self.trim_pool();
        left
    }
}

/// A run of missing pages around a touched one, each in some private frame. It lies on the stack: faults don't allocate.
struct Around {
    start: VirtAddr,
    len: u16,
    window: u16,
    frames: [Frame; MAX_AROUND as usize],
}

impl Around {
    /// The page at `page` and its neighbours, as the block's stream suggests.
    fn plan<H: Host>(engine: &Engine<H>, state: &mut BlockState, page: VirtAddr) -> Self {
        let first = page.index_in_block();
        state.touch(first);
        let none = Frame { device: DeviceId::new(0), index: FrameIndex::new(0) };
        let sequential = engine.fault_around && usize::from(state.stream.next) == first && state.stream.window > 0;
        let window = if sequential { (state.stream.window * 4).min(MAX_AROUND) } else { 1 };
        let mut this = Self { start: page, len: 0, window, frames: [none; MAX_AROUND as usize] };
        // The page itself needs no look at its region.
        let region = match window {
            1 => PageRange::page_of(page),
            _ => engine.space.region_at(page).map_or(PageRange::page_of(page), |(range, _)| range),
        };
        while this.len < window {
            let index = first + usize::from(this.len);
            if index as u64 == BLOCK_PAGES || !region.contains(page.add_pages(PageCount::new(u64::from(this.len)))) {
                break;
            }
            match state.slot(index) {
                Slot::Unmapped { frame, busy: false } if engine.address(Held::single(frame)).is_none() => {
                    this.frames[usize::from(this.len)] = frame;
                    this.len += 1;
                }
                Slot::Unmapped { .. } | Slot::Mapped(_) | Slot::System => break,
            }
        }
        if this.len == 0 {
            // The region ended under the fault; the page itself is still owed.
            if let Slot::Unmapped { frame, .. } = state.slot(first) {
                this.frames[0] = frame;
            }
            this.len = 1;
        }
        state.stream.next = u16::try_from(first).unwrap_or(0) + this.len;
        state.stream.window = window;
        this
    }

    fn mark<H: Host>(&mut self, engine: &Engine<H>, state: &mut BlockState) {
        for i in 0..self.len {
            let frame = self.frames[usize::from(i)];
            engine.get(Held::single(frame));
            let index = self.page(PageCount::new(u64::from(i))).index_in_block();
            state.set(index, Slot::Unmapped { frame, busy: true });
        }
    }

    fn pages(&self) -> PageCount {
        PageCount::new(u64::from(self.len))
    }

    fn page(&self, offset: PageCount) -> VirtAddr {
        self.start.add_pages(offset)
    }

    fn range(&self) -> PageRange {
        PageRange::new(self.start, self.pages()).unwrap_or_else(|| PageRange::page_of(self.start))
    }

    fn frame(&self, offset: PageCount) -> Frame {
        self.frames[offset.as_usize()]
    }

    fn piece(&self, offset: PageCount) -> Piece {
        let at = PageRange::page_of(self.page(offset));
        Piece { at, bytes: Held::single(self.frame(offset)), origin: Origin::Unmapped, huge: false }
    }
}

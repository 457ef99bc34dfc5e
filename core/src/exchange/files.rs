//! Files that are mapped to be read: anonymous memory stands in for their mappings where pages are on a device.
//!
//! The kernel's page cache can't be taken out of a program's mapping, and has no need to be: it is what the file's pages are, and stays that. What a
//! device has are copies, which are true as long as nobody writes the file. So nothing is ever lost, and a block comes home by mapping the file again:
//!
//! ```text
//!            bytes are read into frames                 exchanged                          the file is mapped again
//! the file's ──────────────────────────► the file's ──────────────► a stand-in, in which ────────────────────────► the file's
//!  mapping                                mapping      (one step)    private: nothing is     (one step)             mapping
//!                                                                    coherent: the frames
//! ```
//!
//! Until the exchange nobody waits: who reads finds the page cache. Afterwards a page of a coherent device is used in place, and one of a private
//! device is copied in by the touch that asks for it, as of any other region. What of a stand-in is in no frame (the program or a touch has let go of
//! the frame) is read from the file when it is touched (`Engine::fill_from_file`).
//!
//! The pages of a block go together, or what there is of a block in the region: those that were asked for take the others along, to a device and
//! home. The stand-in can only be read, as the file's mapping. Pages are moved between mappings that can be written, so none is ever moved in
//! or out of one; a block that changes devices goes home first.
//!
//! # Who may write the file
//!
//! Nobody, as long as anything stands in for its pages. The host sees to it ([`Host::is_unwritten`]): before somebody may write it has all pages of the
//! file come home ([`Engine::bring_files_home`]), and says from then on that the file may be written.
//!
//! ```text
//! migration                                      who must give way to a writer
//! -------------------------------------------    -----------------------------------------------
//! claims the part (it is `changing`)             is_unwritten() is false from here on
//! is_unwritten()? If not, it gives up            waits until no part of the file is changing
//! reads the file, exchanges                      brings home what stands in
//! what stands in is noted; no longer changing    lets the writer go on
//! ```
//!
//! *Limits:* device memory that is laid ([`super::overlay`]) takes no file's pages. No page of a file is taken as a sample, or made exclusive. Who maps,
//! unmaps, or protects what is there has to be hetmem, or to keep migrations away meanwhile ([`Region::owned`](crate::space::Region)).

use std::sync::atomic::Ordering::Relaxed;

use crate::engine::Engine;
use crate::frames::{FrameRefs, Frames, Left, Purpose};
use crate::home::{FileHome, FileId, Home};
use crate::migrate::{Request, Select, Target};
use crate::outcome::{KeptReason, Outcomes, PageOutcome};
use crate::port::{Arrived, Backing, FaultPath, Host, InstallStop, Instead};
use crate::slot::{SYSTEM_POOL, Slot};
use crate::space::{Block, BlockState, Region, kept_by_advice};
use crate::transfer::FrameCopy;
use crate::units::{DeviceId, PageCount, PageRange, VirtAddr};

/// Pages of a file, and the frames of a device that have their bytes.
struct Read<'e, H: Host> {
    at: PageRange,
    frames: FrameRefs<'e, H>,
}

/// A part of a block that is claimed for an exchange, and will be no longer when this is dropped.
struct Claimed<'a, H: Host> {
    engine: &'a Engine<H>,
    part: PageRange,
    block: &'a Block,
    path: FaultPath,
}

impl<H: Host> Drop for Claimed<'_, H> {
    fn drop(&mut self) {
        let mut state = self.block.lock();
        state.exchanging = false;
        {
            let mut exchanges = self.engine.exchanges.lock();
            exchanges.changing.retain(|changing| *changing != self.part);
        }
        self.engine.exchanges.ended.notify_all();
        // Whoever waits for any page of the block.
        self.engine.release_waiters(self.block, &mut state, self.path, self.part.start().block().range());
    }
}

impl<H: Host> Engine<H> {
    /// From now on there may be regions whose home is a file.
    pub fn expect_files(&self) {
        self.has_files.store(true, Relaxed);
        // Whoever found none acts upon that with the gate held.
        drop(self.space.gate.events());
    }

    /// Whether some region's home is, or was, a file.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.has_files.load(Relaxed)
    }

    /// Whether what is mapped at `page` is a file's, or stands in for it.
    #[must_use]
    pub fn is_of_a_file(&self, page: VirtAddr) -> bool {
        self.has_files() && self.region_at(page).is_some_and(|(_, region)| region.home != Home::Anonymous)
    }

    /// Migrates the parts of `batch`, all of one block and of regions that say the same as `region`. The batch is empty then.
    pub(crate) fn migrate_file_parts(
        &self,
        batch: &mut Vec<(PageRange, usize)>,
        home: FileHome,
        region: Region,
        request: Request,
        ranges: &[PageRange],
        all: &mut [Outcomes],
    ) {
        while let Some((first, _)) = batch.first().copied() {
            // What is mapped elsewhere in the block may be the same file's, and another mapping.
            let found = self
                .space
                .region_at(first.start())
                .and_then(|(range, _)| range.intersect(first.start().block().range()));
            let whole = found.unwrap_or(first);
            let together = batch.iter().take_while(|(part, _)| whole.contains_range(*part)).count().max(1);
            let asked: Vec<(PageRange, usize)> = batch.drain(..together).collect();
            let parts: Vec<PageRange> = asked.iter().filter_map(|(part, _)| part.intersect(whole)).collect();
            let outcomes = self.migrate_file_part(whole, &parts, home, region, request);
            for (part, i) in asked {
                let at = part.start().pages_since(ranges[i].start()).as_usize();
                let skip = part.start().pages_since(whole.start()).as_usize();
                all[i].copy_from(at, &outcomes, skip, part.pages().min(whole.pages()).as_usize());
            }
        }
    }

    /// Migrates `whole`, a part of a block, if one of the pages `asked` is to go. The outcomes are those of all its pages.
    fn migrate_file_part(
        &self,
        whole: PageRange,
        asked: &[PageRange],
        home: FileHome,
        region: Region,
        request: Request,
    ) -> Outcomes {
        let kept = |reason| Outcomes::all_kept(whole.pages(), reason);
        if let Some(reason) = kept_by_advice(&region, request.target) {
            return kept(reason);
        }
        let stands_in = !self.stood_in(whole).is_zero();
        if request.target == Target::System && !stands_in {
            return kept(KeptReason::AlreadyThere);
        }
        let (shared, _notice) = self.share_noticed(whole, request.event());
        let block = self.space.block(whole.start().block());
        // The region was looked up earlier.
        if !self.space.is_all(whole, |now| now.home == region.home && now.path == region.path) {
            return kept(KeptReason::Raced);
        }
        let excluded = match self.space.excluded() {
            Some(excluded) => excluded.overlapping(whole).next().is_some(),
            None => return kept(KeptReason::Raced),
        };
        let mut state = block.lock();
        let mut outcomes = kept(KeptReason::Raced);
        for (i, page) in whole.iter().enumerate() {
            let outcome = self.plan_of_file_page(state.slot(page.index_in_block()), request);
            outcomes.set(i, outcome.map_or_else(PageOutcome::Kept, |()| PageOutcome::Moved));
        }
        let index = |page: VirtAddr| page.pages_since(whole.start()).as_usize();
        let goes = |part: &PageRange| {
            outcomes.as_slice()[index(part.start())..index(part.end())].contains(&PageOutcome::Moved)
        };
        // Copies that touches have left are of no use to anybody.
        let is_left = || whole.iter().all(|page| state.slot(page.index_in_block()) == Slot::System);
        if !asked.iter().any(goes) && (request.target != Target::System || !is_left()) {
            return outcomes;
        }
        if state.exchanging {
            return kept(KeptReason::Raced);
        }
        let begun = match request.target {
            Target::System => self.exchanges.lock().begin(whole, &mut state),
            Target::Device(_) if self.holds_pages(&shared) => Err(KeptReason::Raced),
            Target::Device(_) if excluded => Err(KeptReason::ThreadState),
            Target::Device(device) if self.lays(device) => Err(KeptReason::Unsupported),
            Target::Device(_) => {
                let mut exchanges = self.exchanges.lock();
                if exchanges.holds > 0 { Err(KeptReason::Raced) } else { exchanges.begin(whole, &mut state) }
            }
        };
        if let Err(reason) = begun {
            return kept(reason);
        }
        drop(state);
        drop(shared);
        let claimed = Claimed { engine: self, part: whole, block: &block, path: region.path };
        let done = match request.target {
            Target::System => claimed.go_home(home),
            Target::Device(device) => claimed.go_to(device, home),
        };
        done.map_or_else(kept, |()| outcomes)
    }

    /// Whether `request` takes a page of a file elsewhere.
    fn plan_of_file_page(&self, slot: Slot, request: Request) -> Result<(), KeptReason> {
        match slot {
            Slot::System if request.target == Target::System => Err(KeptReason::AlreadyThere),
            Slot::System if !request.select.contains(Select::SYSTEM) => Err(KeptReason::NotSelected),
            Slot::System => Ok(()),
            Slot::Mapped(frame) | Slot::Unmapped { frame, .. } if frame.device != SYSTEM_POOL => {
                self.selects(frame, request)
            }
            Slot::Mapped(_) | Slot::Unmapped { .. } => Err(KeptReason::Raced),
        }
    }

    /// Has the pages of all files come home that `which` names: their mappings are the files'. How many pages stand in for them still. The caller holds no
    /// lock.
    pub fn bring_files_home(&self, which: impl Fn(FileId) -> bool) -> PageCount {
        if !self.has_files() {
            return PageCount::ZERO;
        }
        let mut left = PageCount::ZERO;
        for (range, region) in self.space.regions() {
            if let Home::File(home) = region.home
                && which(home.file)
            {
                left += self.bring_file_home(range, home, region.path);
            }
        }
        left
    }

    /// Has the pages of files in `range` come home, and ends the management of what is a file's there; how many pages stand in for them still, which are
    /// managed still. The caller holds no lock.
    pub fn release_files_in(&self, range: PageRange) -> PageCount {
        let mut left = PageCount::ZERO;
        for (part, region) in self.space.regions_in(range) {
            let Some(Region { home: Home::File(home), path, .. }) = region else { continue };
            // Nothing leaves any more.
            self.space.change_region(part, |region| (region.pinned, region.ending) = (true, true));
            left += self.bring_file_home(part, home, path);
            left += self.end_management(part).err().unwrap_or_default();
        }
        left
    }

    /// Maps files again where touches have brought everything home that was away: what is there are copies, of use to nobody. The caller holds no lock.
    pub fn bring_copies_home(&self) {
        if !self.has_files() {
            return;
        }
        let parts: Vec<PageRange> = self.exchanges.lock().stood_in.iter().map(|(part, ())| part).collect();
        for (_, part) in parts.into_iter().flat_map(PageRange::by_block) {
            for (part, region) in self.space.regions_in(part) {
                let Some(region) = region.filter(|_| self.away_in(part) == (PageCount::ZERO, PageCount::ZERO)) else {
                    continue;
                };
                if let Home::File(home) = region.home {
                    // What is taken out just now is brought back, or comes home another time.
                    let _ = self.bring_file_home(part, home, region.path);
                }
            }
        }
    }

    /// Has the pages of `range`, all of one file, come home, as [`Engine::bring_files_home`] does.
    fn bring_file_home(&self, range: PageRange, home: FileHome, path: FaultPath) -> PageCount {
        // What is about to stand in does then.
        self.await_exchanges(range);
        for (no, part) in range.by_block() {
            if self.stood_in(part).is_zero() {
                continue;
            }
            let (shared, _notice) = self.share_noticed(part, crate::notifier::Event::Migrate(None));
            let block = self.space.block(no);
            let mut state = block.lock();
            // If somebody else is at it, or the memory is gone, that shows below.
            if !self.space.is_all(part, |now| now.home == Home::File(home))
                || self.exchanges.lock().begin(part, &mut state).is_err()
            {
                continue;
            }
            drop(state);
            drop(shared);
            let claimed = Claimed { engine: self, part, block: &block, path };
            let (unmapped, mapped) = self.away_in(part);
            if claimed.go_home(home).is_ok() {
                let pages = unmapped + mapped;
                self.counters.pages_migrated_to_system.fetch_add(pages.get(), Relaxed);
            }
        }
        self.stood_in(range)
    }

    /// How many pages of `range` are such that something stands in for their file's mapping.
    #[must_use]
    pub fn stood_in(&self, range: PageRange) -> PageCount {
        let state = self.exchanges.lock();
        state.stood_in.overlapping(range).filter_map(|(part, ())| part.intersect(range)).map(PageRange::pages).sum()
    }

    /// Fills holes of what stands in for a file's mapping; the first was touched. With the gate held. Allocates nothing.
    pub(crate) fn fill_from_file(&self, path: FaultPath, home: FileHome, range: PageRange) -> Arrived {
        if !self.exchanges.stands_in(range.start()) {
            // It is the file that is mapped: the touch looks again.
            return Arrived { pages: PageCount::ZERO, stop: None };
        }
        let none = |stop| Arrived { pages: PageCount::ZERO, stop: Some(stop) };
        let Some(places) = self.take_stocked(range.pages(), Purpose::Fault) else { return none(InstallStop::NoMemory) };
        let (Some(from), range) = (places.address(), range.slice(PageCount::ZERO, places.pages())) else {
            return none(InstallStop::NoMemory);
        };
        if self.host.read_file(home, range.start(), from, range.pages()).is_err() {
            // A neighbour is not owed.
            let one = range.slice(PageCount::ZERO, PageCount::ONE);
            if range == one || self.host.read_file(home, one.start(), from, one.pages()).is_err() {
                self.host.stop_the_program(one.start(), "its file can't be read");
            }
            return self.host.install(path, one, from, crate::port::How::Copy);
        }
        self.host.install(path, range, from, crate::port::How::Copy)
    }

    /// Checks that pages of files are away only where something stands in for their mappings; nothing may be in flight.
    pub(crate) fn check_files(&self) {
        let stood_in = {
            let state = self.exchanges.lock();
            assert!(state.changing.is_empty(), "nothing is being exchanged");
            state.stood_in.clone()
        };
        for (range, ()) in stood_in.iter() {
            assert!(self.space.is_all(range, |region| region.home != Home::Anonymous), "{range} is no file's");
        }
        for (range, region) in self.space.regions() {
            if region.home == Home::Anonymous {
                continue;
            }
            for (_, block) in self.space.blocks_in(range) {
                assert!(!block.lock().exchanging, "nothing is about to take its place");
            }
            for page in range.iter().filter(|page| stood_in.get(*page).is_none()) {
                assert_eq!(self.slot(page), Slot::System, "{page} is in its file");
            }
        }
    }
}

impl<'a, H: Host> Claimed<'a, H> {
    /// Waits until no page is busy: touches that others serve end, and none begins as long as the part is claimed.
    fn await_faults(&self) {
        let mut state = self.block.lock();
        while self.part.iter().any(|page| state.slot(page.index_in_block()).is_busy()) {
            state = self.block.wait_settled(state);
        }
    }

    /// The file is mapped again.
    fn go_home(&self, home: FileHome) -> Result<(), KeptReason> {
        self.await_faults();
        let Self { engine, part, .. } = *self;
        engine.host.exchange(self.path, part, Backing::File(home))?;
        let _shared = engine.space.gate.share();
        let mut state = self.block.lock();
        engine.vacate_part(&mut state, part);
        engine.exchanges.lock().stood_in.remove(part);
        engine.host.wake(self.path, part);
        Ok(())
    }

    /// The bytes go to `device`, and something stands in for the file.
    fn go_to(&self, device: DeviceId, home: FileHome) -> Result<(), KeptReason> {
        let Self { engine, part, .. } = *self;
        // From the claim on: whoever lets somebody write waits until it ends, or it finds that here.
        engine.host.is_unwritten(home.file)?;
        self.await_faults();
        if !self.is_home_or_on(device) {
            self.go_home(home)?;
        }
        let missing = self.system_parts();
        engine.make_room(missing.iter().map(|part| part.pages()).sum());
        let mut read: Vec<Read<'a, H>> = Vec::new();
        for part in missing {
            engine.read_into(device, home, part, &mut read)?;
        }
        let placed = |Read { at, frames }: &Read<'_, H>| Some((*at, frames.address()?));
        let placed: Vec<(PageRange, VirtAddr)> = read.iter().filter_map(placed).collect();
        let instead = match engine.exchanges.stands_in(part.start()) {
            true => Instead::OfStandIn(home),
            false => Instead::OfFile(home),
        };
        engine.host.exchange(self.path, part, Backing::StandIn(instead, &placed))?;
        let _shared = engine.space.gate.share();
        let mut state = self.block.lock();
        state.expect(part.pages());
        for Read { at, frames } in read {
            let is_mapped = frames.address().is_some();
            engine.occupy(&mut state, at, frames, |frame| match is_mapped {
                true => Slot::Mapped(frame),
                false => Slot::Unmapped { frame, busy: false },
            });
        }
        // What the program has unmapped meanwhile is another's by now.
        for (part, region) in engine.space.regions_in(part) {
            if region.is_some_and(|region| region.home == Home::File(home)) {
                engine.exchanges.lock().stood_in.insert(part, ());
                continue;
            }
            engine.vacate_part(&mut state, part);
        }
        Ok(())
    }

    /// Whether all pages are home, or some in frames of `device`, which is private, and the others holes, or copies that touches have left.
    fn is_home_or_on(&self, device: DeviceId) -> bool {
        let state = self.block.lock();
        let mut away = self.part.iter().filter_map(|page| state.slot(page.index_in_block()).frame()).peekable();
        away.peek().is_none() || (self.engine.is_private(device) && away.all(|frame| frame.device == device))
    }

    /// The pages that are in no frame.
    fn system_parts(&self) -> Vec<PageRange> {
        let state = self.block.lock();
        let mut parts: Vec<PageRange> = Vec::new();
        for page in self.part.iter().filter(|page| state.slot(page.index_in_block()) == Slot::System) {
            let one = PageRange::page_of(page);
            match parts.last_mut() {
                Some(last) if last.end() == page => {
                    *last = PageRange::between(last.start(), one.end()).unwrap_or(*last)
                }
                _ => parts.push(one),
            }
        }
        parts
    }
}

impl<H: Host> Engine<H> {
    /// The pages of `part` are in no frame any more, as what stood in for the file is gone.
    fn vacate_part(&self, state: &mut BlockState, part: PageRange) {
        for page in part.iter() {
            let left = match state.slot(page.index_in_block()) {
                Slot::System => continue,
                // It went with the stand-in.
                Slot::Mapped(_) => Left::Nothing,
                Slot::Unmapped { .. } => Left::Page,
            };
            self.vacate(state, PageRange::page_of(page), left);
        }
    }

    /// Reads the pages of `part`, all of one block, from their file into frames of `device`, which are added to `read`.
    fn read_into<'a>(
        &'a self,
        device: DeviceId,
        home: FileHome,
        part: PageRange,
        read: &mut Vec<Read<'a, H>>,
    ) -> Result<(), KeptReason> {
        let mut rest = part;
        while !rest.is_empty() {
            let huge = rest.pages() == PageCount::BLOCK;
            let frames = self.allocate_ready(device, rest.pages(), rest.start(), huge).ok_or(KeptReason::NoFrame)?;
            let at = rest.slice(PageCount::ZERO, frames.pages());
            match frames.address() {
                Some(to) => {
                    self.host.read_file(home, at.start(), to, at.pages())?;
                    self.counters.bytes_copied.fetch_add(at.pages().bytes().get(), Relaxed);
                }
                None => self.read_through_pool(home, at, frames.frames())?,
            }
            read.push(Read { at, frames });
            rest = rest.slice(at.pages(), rest.pages());
        }
        Ok(())
    }

    /// Reads the pages of `at` from their file, and has the device copy them to its frames.
    fn read_through_pool(&self, home: FileHome, at: PageRange, to: Frames) -> Result<(), KeptReason> {
        let mut done = PageCount::ZERO;
        while done < at.pages() {
            let part = at.slice(done, at.pages());
            let places = self.take_stocked(part.pages(), Purpose::Migration).ok_or(KeptReason::NoMemory)?;
            let via = places.address().ok_or(KeptReason::NoMemory)?;
            self.host.read_file(home, part.start(), via, places.pages())?;
            let mut copies = [FrameCopy::new(places.frames(), to.slice(done, places.pages()))];
            self.copy_all(&mut copies);
            copies[0].result?;
            done += places.pages();
        }
        Ok(())
    }
}

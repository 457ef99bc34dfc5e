//! Home: what a page is where no frame of hetmem's holds it.
//!
//! What becomes of a page for that reason is decided here alone:
//!
//! | question | of anonymous memory | of a file | answered by |
//! | --- | --- | --- | --- |
//! | what fills a hole | zeros | the file's bytes | `Engine::fill` |
//! | what becomes of a mapped page that was dropped unseen | a hole | a hole | `Engine::fill_dropped` |
//! | what `MADV_DONTNEED` leaves | a hole, and nothing in the frame that is the program's | the same | `Engine::discard_pages` |
//! | what comes back when a page goes home | its bytes, which are nowhere else: it is owed | the file's mapping, by whole blocks, or, to a touch, its bytes from the device | `Engine::bring_all_home`, migrations to [`Target::System`], touches |
//! | what a forked child must have | a copy of all that is away | the file's mapping | `Engine::for_each_unmapped`, `Engine::bring_files_home` |

use std::sync::atomic::Ordering::Relaxed;

use crate::engine::Engine;
use crate::fault::{DEVICE_TRIES, FaultResolution};
use crate::frames::{Frames, Keep, Left, Purpose};
use crate::migrate::{Request, Target};
use crate::outcome::KeptReason;
use crate::port::{Arrived, FaultPath, Host, InstallStop, TransferError};
use crate::slot::{Frame, Slot};
use crate::space::{BlockState, Events};
use crate::units::{PageCount, PageRange, VirtAddr};

/// Where the pages of a region come from, and go to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Home {
    /// Private anonymous memory: a page is zeros until it is written, and its bytes are in one place only.
    #[default]
    Anonymous,
    /// A file that is mapped to be read, and that nobody writes while anything of it is on a device ([`crate::exchange::files`]).
    File(FileHome),
}

/// One of the files that the host knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileId(u32);

impl FileId {
    /// The file that the host calls so.
    #[must_use]
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// Its number.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Which pages of which file a region maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileHome {
    /// The file.
    pub file: FileId,
    // The address at which the file would be mapped from its first byte on; it wraps around.
    origin: u64,
}

impl FileHome {
    /// The file's byte `offset`, a multiple of the page, is mapped at `page`, and what is around it accordingly.
    #[must_use]
    pub const fn new(file: FileId, page: VirtAddr, offset: u64) -> Self {
        Self { file, origin: page.get().wrapping_sub(offset) }
    }

    /// Which byte of the file is the first of the page at `page`.
    #[must_use]
    pub const fn offset_at(self, page: VirtAddr) -> u64 {
        page.get().wrapping_sub(self.origin)
    }
}

impl Home {
    /// What it is when the pages from `from` on are at `to`.
    pub(crate) const fn moved(self, from: VirtAddr, to: VirtAddr) -> Self {
        match self {
            Self::Anonymous => self,
            Self::File(home) => Self::File(FileHome::new(home.file, to, home.offset_at(from))),
        }
    }
}

/// Never written pages that one touch fills at most.
const MAX_FILLED: u64 = 16;

/// A touched hole, those that are filled with it, and with what.
pub(crate) struct Holes {
    range: PageRange,
    home: Home,
}

impl<H: Host> Engine<H> {
    /// The hole at `page` and those that follow it, as far as nothing in them was migrated.
    pub(crate) fn holes_at(&self, page: VirtAddr, state: Option<&mut BlockState>) -> Holes {
        let one = PageRange::page_of(page);
        // One that is managed no longer is what any other would be.
        let Some((region, of)) = self.space.region_at(page) else { return Holes { range: one, home: Home::default() } };
        let mut range = one;
        // Relaxed: it orders nothing.
        if self.fault_around && self.zero_around.load(Relaxed) {
            let block = page.block().range();
            let most = block.slice(page.pages_since(block.start()), PageCount::new(MAX_FILLED));
            let is_hole = |page: &VirtAddr| {
                let slot = state.as_ref().map_or(Slot::System, |state| state.slot(page.index_in_block()));
                region.contains(*page) && slot == Slot::System
            };
            let others = most.iter().skip(1).take_while(is_hole).count() as u64;
            range = most.slice(PageCount::ZERO, PageCount::new(1 + others));
        }
        Holes { range, home: of.home }
    }

    /// Fills holes; the first was touched.
    pub(crate) fn fill(&self, path: FaultPath, holes: Holes) -> FaultResolution {
        let filled = self.fill_by(path, holes.home, holes.range);
        if !filled.pages.is_zero() {
            return FaultResolution::Present;
        }
        self.present_or(path, holes.range.slice(PageCount::ZERO, PageCount::ONE), filled.stop)
    }

    /// A mapped page was touched, which is present, unless the program dropped it while nobody watched.
    pub(crate) fn fill_dropped(&self, state: &mut BlockState, path: FaultPath, page: VirtAddr) -> FaultResolution {
        let one = PageRange::page_of(page);
        let home = self.space.region_at(page).map_or_else(Home::default, |(_, region)| region.home);
        let filled = self.fill_by(path, home, one);
        if filled.stop.is_none() {
            self.vacate(state, one, Left::Nothing);
            return FaultResolution::Present;
        }
        self.present_or(path, one, filled.stop)
    }

    fn fill_by(&self, path: FaultPath, home: Home, range: PageRange) -> Arrived {
        match home {
            Home::Anonymous => self.host.zero_fill(path, range),
            Home::File(home) => self.fill_from_file(path, home, range),
        }
    }

    fn present_or(&self, path: FaultPath, page: PageRange, stop: Option<InstallStop>) -> FaultResolution {
        match stop {
            Some(InstallStop::EventsPending) => FaultResolution::EventsPending,
            Some(InstallStop::NoMemory) => FaultResolution::NoMemory,
            // Occupied: it is there. Gone, guarded or refused: the touch itself will tell the program.
            Some(InstallStop::Occupied | InstallStop::Gone | InstallStop::Guarded | InstallStop::Refused) | None => {
                self.host.wake(path, page);
                FaultResolution::Present
            }
        }
    }

    /// The program drops the pages of `range` (`munmap`, `MADV_DONTNEED`, guard markers), but for those that are mapped in frames which `keep`
    /// theirs: what is left are holes.
    pub(crate) fn discard_pages(&self, _events: &Events<'_>, range: PageRange, keep: impl Fn(Frame) -> bool) {
        for (no, block) in self.space.blocks_in(range) {
            let Some(part) = range.intersect(no.range()) else { continue };
            let mut state = block.lock();
            if state.unmapped() == 0 && state.mapped() == 0 {
                continue;
            }
            for page in part.iter() {
                match state.slot(page.index_in_block()) {
                    Slot::System => {}
                    Slot::Mapped(frame) if keep(frame) => {}
                    Slot::Mapped(_) => self.vacate(&mut state, PageRange::page_of(page), Left::Nothing),
                    Slot::Unmapped { .. } => self.vacate(&mut state, PageRange::page_of(page), Left::Page),
                }
            }
            drop(state);
            self.wake_all(&block, part);
        }
    }

    /// Calls `visit` with each stretch of pages that the program does not map, and with an address at which their bytes are. Allocates
    /// nothing: whoever forks by the C library holds the locks of its `malloc` until this is done.
    ///
    /// # Errors
    ///
    /// [`TransferError`] if a device does not give its pages; `visit` was called for some.
    pub fn for_each_unmapped(
        &self,
        _events: &Events<'_>,
        mut visit: impl FnMut(PageRange, VirtAddr),
    ) -> Result<(), TransferError> {
        let mut after = None;
        while let Some((no, block)) = self.space.block_after(after) {
            after = Some(no);
            let state = block.lock();
            if state.unmapped() == 0 {
                continue;
            }
            for page in no.range().iter() {
                let Slot::Unmapped { frame, .. } = state.slot(page.index_in_block()) else { continue };
                // No child has the memory that stands in for a file's.
                if self.exchanges.stands_in(page) {
                    continue;
                }
                let bytes = Frames::single(frame);
                let one = PageRange::page_of(page);
                if let Some(address) = self.address(bytes) {
                    visit(one, address);
                    continue;
                }
                let via = self.take_stocked(PageCount::ONE, Purpose::Fault).ok_or(TransferError::Transient)?;
                // Each page is owed, as nobody can ask for it again: the child's memory is a copy of this moment.
                let copied = (0..DEVICE_TRIES).any(|_| self.copy_owed(bytes, via.frames()).is_ok());
                if !copied {
                    return Err(TransferError::Transient);
                }
                visit(one, via.address().ok_or(TransferError::Transient)?);
            }
        }
        Ok(())
    }

    /// Brings every page home that the program doesn't map, and all of files, and returns how many could not come.
    pub fn bring_all_home(&self) -> PageCount {
        let mut left = self.bring_files_home(|_| true);
        for (no, block) in self.space.blocks() {
            if block.lock().unmapped() == 0 {
                continue;
            }
            for (part, region) in self.space.regions_in(no.range()) {
                let Some(mut region) = region.filter(|region| region.home == Home::Anonymous) else { continue };
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
        self.trim_pool(Keep::Warm);
        left
    }
}

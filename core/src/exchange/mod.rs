//! Exchanges: another mapping takes the place of a block's, in one step.
//!
//! Whoever touches the block finds what was there before, or what is there after, or waits for a page of it: there is no moment in between
//! ([`Host::exchange`]). A block of managed memory is backed by anonymous memory of the program's, until something else takes its place
//! ([`Backing`]): a device's memory ([`overlay`]). And a file's mapping gives way to anonymous memory, whose pages can be away ([`files`]).
//!
//! An exchange is a change of the program's mappings, of which the kernel tells the handler thread as of any other and waits until it has read that.
//! So it is made with no lock held, while the block's pages are busy. [`Engine::is_own_change`] tells it from the program's. From before that until
//! the slots say what came of it, the block is `exchanging`: also pages that the program drops meanwhile, which are busy no longer, are left alone. A
//! touch of one waits for the end, as what it would write now would be mapped over; no migration takes one out.
//!
//! ```text
//! gate, block locked    begin_exchange: the block is claimed, and exchanging; its pages are busy
//! nothing locked        Host::exchange
//! gate, block locked    the slots say what came of it; who waits looks again
//! ```

pub mod files;
pub mod overlay;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use crate::engine::Engine;
use crate::migrate::Target;
use crate::outcome::KeptReason;
use crate::port::{Backing, FaultPath, Host};
use crate::range_map::RangeMap;
use crate::space::{Block, BlockState, Region, kept_by_advice};
use crate::sync::{Condvar, Mutex, MutexGuard, lock};
use crate::units::{BlockNo, DeviceId, PageCount, PageRange, VirtAddr};

/// Which blocks are backed by what is not the program's, or about to be.
#[derive(Default)]
pub(crate) struct Exchanges {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// Blocks over which a device's frames are laid, each with the device.
    laid: BTreeMap<BlockNo, DeviceId>,
    /// Where something stands in for a file's mapping.
    stood_in: RangeMap<()>,
    /// What is being exchanged: blocks, or parts of them, one of each block.
    changing: Vec<PageRange>,
    /// How many exchanges have begun.
    begun: u64,
    /// While there are such, no block is laid, and nothing comes to stand in for a file's mapping.
    holds: u32,
}

impl Exchanges {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn laid_on(&self, no: BlockNo) -> Option<DeviceId> {
        self.lock().laid.get(&no).copied()
    }

    fn end(&self, no: BlockNo, laid_on: Option<DeviceId>) {
        let mut state = self.lock();
        state.changing.retain(|changing| *changing != no.range());
        match laid_on {
            Some(device) => _ = state.laid.insert(no, device),
            None => _ = state.laid.remove(&no),
        }
        self.ended.notify_all();
    }

    /// Waits until nothing that `overlaps` is being exchanged. The result is how many exchanges of anything have begun.
    fn settle(&self, overlaps: impl Fn(PageRange) -> bool) -> u64 {
        let mut state = self.lock();
        while state.changing.iter().any(|part| overlaps(*part)) {
            state = self.ended.wait(state).expect("no thread panicked while it held this lock");
        }
        state.begun
    }

    /// Whether something stands in for a file's mapping at `page`. Allocates nothing.
    pub(crate) fn stands_in(&self, page: VirtAddr) -> bool {
        self.lock().stood_in.get(page).is_some()
    }

    /// The program has moved what was at `from`.
    pub(crate) fn moved(&self, from: PageRange, to: PageRange) {
        let mut state = self.lock();
        let moved = state.stood_in.remove(from);
        state.stood_in.remove(to);
        for (part, ()) in moved {
            state.stood_in.insert(to.slice(part.start().pages_since(from.start()), part.pages()), ());
        }
    }

    /// `range` was unmapped.
    pub(crate) fn forget(&self, range: PageRange) {
        let mut state = self.lock();
        state.laid.retain(|no, _| !no.range().overlaps(range));
        state.stood_in.remove(range);
    }
}

impl State {
    /// Claims `part` for an exchange, whose block is locked.
    fn begin(&mut self, part: PageRange, block: &mut BlockState) -> Result<(), KeptReason> {
        if self.changing.iter().any(|changing| changing.start().block() == part.start().block()) {
            return Err(KeptReason::Raced);
        }
        self.changing.push(part);
        self.begun += 1;
        block.exchanging = true;
        Ok(())
    }
}

impl<H: Host> Engine<H> {
    /// Whether a change of the mappings of just this range is hetmem's own, and no event of the program's.
    #[must_use]
    pub fn is_own_change(&self, range: PageRange) -> bool {
        self.may_exchange() && self.exchanges.lock().changing.contains(&range)
    }

    /// Whether anything is ever exchanged.
    #[must_use]
    pub fn may_exchange(&self) -> bool {
        // Relaxed: who has a file managed waits for who found none.
        self.has_overlays || self.has_files.load(Relaxed)
    }

    /// From here until [`Engine::release_exchanges`] no block is laid, nothing comes to stand in for a file's mapping, and what was about to has. The
    /// caller holds no lock.
    pub fn hold_exchanges(&self) {
        self.exchanges.lock().holds += 1;
        self.exchanges.settle(|_| true);
    }

    /// Ends [`Engine::hold_exchanges`].
    pub fn release_exchanges(&self) {
        self.exchanges.lock().holds -= 1;
    }

    /// Lays nothing over `range` any more: it is about to be another's. The caller holds no lock.
    pub fn end_overlays(&self, range: PageRange) {
        if self.has_overlays {
            self.space.change_region(range, |region| region.owned = false);
            self.await_exchanges(range);
        }
    }

    /// Waits until nothing of `range` is being exchanged, and returns how many exchanges there were so far. The caller holds no lock.
    ///
    /// Meanwhile a page can be touched already that is on its way by the books, and Linux 6.18 lists no mapping there for a moment (`PROCMAP_QUERY`
    /// no longer waits for who changes others), although a touch finds one at any time.
    pub fn await_exchanges(&self, range: PageRange) -> u64 {
        if self.may_exchange() { self.exchanges.settle(|part| part.overlaps(range)) } else { 0 }
    }

    /// How many pages of `range` are such that something stands in for their file's mapping, or is exchanged just now. With the gate held alone none
    /// begins to be.
    pub(crate) fn exchanged_in(&self, range: PageRange) -> PageCount {
        if !self.may_exchange() {
            return PageCount::ZERO;
        }
        let state = self.exchanges.lock();
        let stood_in = state.stood_in.overlapping(range).map(|(part, ())| part);
        stood_in
            .chain(state.changing.iter().copied())
            .filter_map(|part| part.intersect(range))
            .map(PageRange::pages)
            .sum()
    }

    /// Claims the block for an exchange, with its lock held. One that is to be laid must be hetmem's alone, and touches of it served by that path;
    /// one that is to be lifted must not be pinned, not even a part of it.
    fn begin_exchange(&self, no: BlockNo, block: &mut BlockState, lay_in: Option<FaultPath>) -> Result<(), KeptReason> {
        let mut state = self.exchanges.lock();
        match lay_in {
            Some(path) => {
                let is_owned = |region: &Region| region.owned && region.path == path;
                if state.holds > 0 || !self.space.is_all(no.range(), is_owned) {
                    return Err(KeptReason::Raced);
                }
            }
            // Under the lock: whoever pins it waits for changes under way, and then relies on there being none.
            None if !self.space.is_all(no.range(), |region| kept_by_advice(region, Target::System).is_none()) => {
                return Err(KeptReason::Advised);
            }
            None => {}
        }
        state.begin(no.range(), block)
    }

    /// Exchanges the mapping of the block that was claimed. `settle` is told whether it was, has the slots say so, and says on which device the block
    /// is laid then. The caller holds no lock.
    fn exchange(
        &self,
        no: BlockNo,
        block: &Block,
        path: FaultPath,
        backing: Backing<'_>,
        settle: impl FnOnce(&mut BlockState, bool) -> Option<DeviceId>,
    ) -> Result<(), KeptReason> {
        let range = no.range();
        let exchanged = self.host.exchange(path, range, backing);
        let _shared = self.space.gate.share();
        let mut state = block.lock();
        let laid_on = settle(&mut state, exchanged.is_ok());
        state.exchanging = false;
        self.exchanges.end(no, laid_on);
        self.release_waiters(block, &mut state, path, range);
        exchanged
    }
}

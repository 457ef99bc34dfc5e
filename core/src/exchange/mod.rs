//! Exchanges: another mapping takes the place of a block's, in one step.
//!
//! Whoever touches the block finds what was there before, or what is there after, or waits for a page of it: there is no moment in between
//! ([`Host::exchange`]). A block of managed memory is backed by anonymous memory of the program's, until something else takes its place
//! ([`Backing`]). For now that is a device's memory ([`overlay`]).
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

pub mod overlay;

use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::migrate::Target;
use crate::outcome::KeptReason;
use crate::port::{Backing, FaultPath, Host};
use crate::space::{Block, BlockState, Region, kept_by_advice};
use crate::sync::{Condvar, Mutex, MutexGuard, lock};
use crate::units::{BlockNo, DeviceId, PageRange};

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
    /// Blocks whose mappings are being exchanged.
    changing: Vec<BlockNo>,
    /// How many exchanges have begun.
    begun: u64,
    /// While there are such, no block is laid.
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
        state.changing.retain(|changing| *changing != no);
        match laid_on {
            Some(device) => _ = state.laid.insert(no, device),
            None => _ = state.laid.remove(&no),
        }
        self.ended.notify_all();
    }

    /// Waits until no block that `overlaps` is being exchanged. The result is how many exchanges of any block have begun.
    fn settle(&self, overlaps: impl Fn(BlockNo) -> bool) -> u64 {
        let mut state = self.lock();
        while state.changing.iter().any(|no| overlaps(*no)) {
            state = self.ended.wait(state).expect("no thread panicked while it held this lock");
        }
        state.begun
    }

    pub(crate) fn forget(&self, range: PageRange) {
        self.lock().laid.retain(|no, _| !no.range().overlaps(range));
    }
}

impl<H: Host> Engine<H> {
    /// Whether a change of the mappings of just this range is hetmem's own, and no event of the program's.
    #[must_use]
    pub fn is_own_change(&self, range: PageRange) -> bool {
        self.has_overlays && self.exchanges.lock().changing.iter().any(|no| no.range() == range)
    }

    /// From here until [`Engine::release_overlays`] no block is laid, and those that were being laid are. The caller holds no lock.
    pub fn hold_overlays(&self) {
        self.exchanges.lock().holds += 1;
        self.exchanges.settle(|_| true);
    }

    /// Ends [`Engine::hold_overlays`].
    pub fn release_overlays(&self) {
        self.exchanges.lock().holds -= 1;
    }

    /// Lays nothing over `range` any more: it is about to be another's. The caller holds no lock.
    pub fn end_overlays(&self, range: PageRange) {
        if self.has_overlays {
            self.space.change_region(range, |region| region.owned = false);
            self.await_exchanges(range);
        }
    }

    /// Waits until no block of `range` is being laid or lifted, and returns how many were so far. The caller holds no lock.
    ///
    /// Meanwhile a page can be touched already that is on its way by the books, and Linux 6.18 lists no mapping there for a moment (`PROCMAP_QUERY`
    /// no longer waits for who changes others), although a touch finds one at any time.
    pub fn await_exchanges(&self, range: PageRange) -> u64 {
        if self.has_overlays { self.exchanges.settle(|no| no.range().overlaps(range)) } else { 0 }
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
        if state.changing.contains(&no) {
            return Err(KeptReason::Raced);
        }
        state.changing.push(no);
        state.begun += 1;
        block.exchanging = true;
        Ok(())
    }

    /// Exchanges the mapping of the block that was claimed. `settle` is told whether it was, has the slots say so, and says on which device the block
    /// is laid then. The caller holds no lock.
    fn exchange(
        &self,
        no: BlockNo,
        block: &Block,
        path: FaultPath,
        backing: Backing,
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

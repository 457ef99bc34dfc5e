//! Frames that are out of their set to be cleared.
//!
//! They are free all the same: whoever finds too little while some are out waits until they are back, a matter of a few pages, and looks again.

use super::run::FrameRun;
use super::run_set::RunSet;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Mutex, MutexGuard, lock};
use crate::units::PageCount;

/// How many frames are cleared at a time.
const AT_A_TIME: PageCount = PageCount::new(16);

/// Whose turn it is to have frames out of a set, and who waits for that.
#[derive(Default)]
pub(crate) struct Clearing {
    /// Held while frames are out; before the lock of the set.
    turn: Mutex<()>,
    /// Who waits for it. A lock goes to whoever comes first, and who clears comes again at once.
    waiting: AtomicU32,
}

impl Clearing {
    /// What `take` takes; at the second try where it says that frames are out which it may have missed.
    pub(crate) fn or_once_back<R>(&self, take: impl Fn() -> (Option<R>, bool)) -> Option<R> {
        let (taken, some_are_out) = take();
        if taken.is_some() || !some_are_out {
            return taken;
        }
        // Relaxed: it orders nothing.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let turn = self.all_back();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        let (taken, _) = take();
        drop(turn);
        taken
    }

    /// No frame is out while the result lives.
    pub(crate) fn all_back(&self) -> MutexGuard<'_, ()> {
        lock(&self.turn)
    }

    /// Has `clear` clear some old frames of the set that `change` lets somebody change, unless somebody takes or waits for them just then; `false` if
    /// there is none.
    pub(crate) fn clear_old(&self, change: impl Fn(&mut dyn FnMut(&mut RunSet)), clear: impl FnOnce(FrameRun)) -> bool {
        let mut any = false;
        change(&mut |set| any = set.has_old());
        if !any {
            return false;
        }
        if self.waiting.load(Ordering::Relaxed) > 0 {
            return true;
        }
        let _turn = self.all_back();
        let mut claimed = None;
        change(&mut |set| claimed = set.claim_old(AT_A_TIME));
        if let Some(run) = claimed {
            clear(run);
            change(&mut |set| set.give_cleared(run));
        }
        true
    }
}

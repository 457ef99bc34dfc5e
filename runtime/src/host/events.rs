//! Events that were applied, counted: who needs one read first waits for the next batch.

use std::time::Duration;

use hetmem_core::sync::{Condvar, Mutex, lock};

/// How long one wait for an event lasts at most: the time after which it is worth trying again.
const EVENT_WAIT: Duration = Duration::from_millis(1);

/// Counts the batches of events that were applied, so that others can wait for the next.
#[derive(Default)]
pub(crate) struct EventCount {
    count: Mutex<u64>,
    grew: Condvar,
}

impl EventCount {
    pub(crate) fn advance(&self) {
        *lock(&self.count) += 1;
        self.grew.notify_all();
    }

    pub(super) fn wait(&self) {
        self.wait_after(self.count());
    }

    /// How many there were. Whoever asks for something, to wait for its batch, reads this before asking: it may be done at once.
    pub(crate) fn count(&self) -> u64 {
        *lock(&self.count)
    }

    /// Waits until there are more than `before`, but not for long.
    pub(crate) fn wait_after(&self, before: u64) {
        let count = lock(&self.count);
        // The result says only which of the two it was.
        let _ = self
            .grew
            .wait_timeout_while(count, EVENT_WAIT, |count| *count == before)
            .expect("no thread panicked while it held this lock");
    }
}

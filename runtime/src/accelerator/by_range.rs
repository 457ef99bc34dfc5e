//! What a driver does by ranges, as the kernel's test device does: it faults a range, and then copies what the table has.

use std::time::{Duration, Instant};

use hetmem_core::mirror::{MirrorPage, RangeFault, Want};
use hetmem_core::units::{PageCount, PageRange};

use super::{Accelerator, AccessError, BATCH};

impl Accelerator {
    /// Device faults on all pages of `range`, in batches of 64: each is faulted in as `want` says, and entered in the table where there is one.
    /// A batch is tried again for as long as `patience` lasts if others change its pages meanwhile.
    ///
    /// # Errors
    ///
    /// The first page that is not as wanted; batches before its own are in the table.
    pub fn fault_range(&self, range: PageRange, want: Want, patience: Duration) -> Result<(), AccessError> {
        self.settle();
        let mut at = PageCount::ZERO;
        while at < range.pages() {
            let batch = range.slice(at, BATCH);
            let began = Instant::now();
            self.fill(batch, want, &[], || began.elapsed() <= patience)?;
            at += batch.pages();
        }
        Ok(())
    }

    /// What there is in `range`, in a moment in which nobody changes it, for the owner of this accelerator's device. Nothing is faulted in, and the
    /// table stays as it is.
    ///
    /// # Errors
    ///
    /// [`AccessError::Contended`] if there is no such moment while `patience` lasts.
    ///
    /// # Panics
    ///
    /// If `out` has not one place for each page.
    pub fn snapshot(&self, range: PageRange, out: &mut [MirrorPage], patience: Duration) -> Result<(), AccessError> {
        let began = Instant::now();
        while began.elapsed() <= patience {
            let seq = self.subscription.read_begin();
            let request = RangeFault { owner: Some(self.mirror.owner), ..RangeFault::default() };
            self.engine().range_fault(range, request, out)?;
            if !self.subscription.check_retry(seq) {
                return Ok(());
            }
        }
        Err(AccessError::Contended(range.start()))
    }

    /// Whether a page of `range` is held exclusively now.
    #[must_use]
    pub fn any_exclusive(&self, range: PageRange) -> bool {
        self.settle();
        self.mirror.table.any(range, |entry| entry.exclusive)
    }

    /// Returns once the table knows of all changes of mappings that were over before: their events have been read by then, and are applied
    /// before the gate opens.
    pub fn settle(&self) {
        self.engine().while_no_event_is_read(|| ());
    }
}

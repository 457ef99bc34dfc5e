//! Mirrors: how a device keeps a table of where the program's pages are, and is told before that changes.
//!
//! ```no_run
//! use std::sync::{Arc, Mutex};
//! use hetmem::mirror::{MirrorPage, RangeFault, RangeFaultError, Want};
//! use hetmem::{ByteLen, FaultPath, Runtime};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = Runtime::builder().start()?;
//! let mapping = runtime.map(ByteLen::new(1 << 20), FaultPath::Thread)?;
//! let range = mapping.range();
//!
//! // The device's table, and the callback that empties it before pages change.
//! let table: Arc<Mutex<Vec<MirrorPage>>> = Arc::default();
//! let subscription = runtime.subscribe(range, {
//!     let table = Arc::clone(&table);
//!     move |notice| {
//!         let mut table = table.lock().unwrap();
//!         notice.set_seq();
//!         table.clear();
//!     }
//! })?;
//!
//! // Fill it: begin, ask, lock, changed meanwhile? use.
//! let mut pages = vec![MirrorPage::default(); range.pages().as_usize()];
//! loop {
//!     let seq = subscription.read_begin();
//!     let request = RangeFault { want: Want::Write, unless_changed: Some((&subscription, seq)), ..RangeFault::default() };
//!     match runtime.range_fault(range, request, &mut pages) {
//!         Err(RangeFaultError::Changed) => continue,
//!         other => other?,
//!     }
//!     let mut table = table.lock().unwrap();
//!     if !subscription.read_retry(seq) {
//!         *table = pages;
//!         break;
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # The rule
//!
//! An answer of [`Runtime::range_fault`] is one of the past when it is given. It may be used only if nothing of the range has changed since, which a
//! sequence number tells (the kernel's rule, `mm/mmu_notifier.c`):
//!
//! ```text
//! who fills the table                          who changes pages of the range
//! -----------------------------------------    ------------------------------------------
//! seq = read_begin()   (sleeps meanwhile) ···  the callback: locks the table, set_seq, erases, unlocks
//! range_fault: where are the pages?            changes pages
//! lock the table                               ends: who sleeps in read_begin goes on
//! read_retry(seq)? unlock, start over
//! fill, unlock
//! ```
//!
//! *What a callback may do.* It takes the lock of the table, calls [`Notice::set_seq`], makes sure that nobody uses what it erases, and returns. It
//! runs in the thread that changes pages, so it calls nothing of hetmem but [`Notice`]'s methods, and touches no managed memory. The lock that it
//! takes is one under which nobody touches managed memory, or calls hetmem except for [`Subscription::read_retry`]. No callback ever runs in a signal
//! handler. A callback that drops a subscription waits for itself.
//!
//! *Lifetime.* A subscription does not keep the runtime: the runtime's end is the last that it is told ([`Event::Release`]).
//!
//! What each page's answer means is said at [`RangeFault`].
//!
//! # What is told, and when
//!
//! | change | told |
//! | --- | --- |
//! | a migration, a touch that brings a page home, eviction: all that hetmem does | before it |
//! | what is announced by [`Runtime::announce`] | before it, and until it is done |
//! | `munmap`, `mremap` of managed memory; `fork`, where the process may have fork events (`CAP_SYS_PTRACE`) | after it |
//! | `MADV_DONTNEED`, `MADV_FREE` of managed memory | about when it happens |
//! | `mprotect`; anything in memory that is not managed | never: announce it, or look again before each use |
//!
//! What is told after it is told before hetmem does anything else to the range, and perhaps after the system call has returned: the kernel lets
//! the caller go on as soon as its event was read. [`Runtime::announce`] leaves no such gap.

use hetmem_core::units::PageRange;

pub use hetmem_core::mirror::{MirrorPage, MirrorRun, Place, RangeFault, RangeFaultError, Want};
pub use hetmem_core::notifier::{Event, Notice, Seq, Subscription};
pub use hetmem_core::slot::Frame;

use crate::error::Error;
use crate::runtime::Runtime;

impl Runtime {
    /// Has `callback` called before pages of `range`, managed or not, change. Managed memory in it is watched from now on, so that what
    /// the program does to its mappings is told too. The subscription ends when it is dropped.
    ///
    /// # Errors
    ///
    /// If the range is empty.
    pub fn subscribe(
        &self,
        range: PageRange,
        callback: impl Fn(&Notice<'_>) + Send + Sync + 'static,
    ) -> Result<Subscription, Error> {
        self.inner.subscribe(range, callback)
    }

    /// Says of each page of `range` where it is and what it allows, and faults pages in as far as `request` asks for that. The answers may be used
    /// only under [the rule](self#the-rule). Not to be called by a callback, or with a lock held that a callback takes.
    ///
    /// # Errors
    ///
    /// If a page is not as it was asked for, and can't be made so.
    ///
    /// # Panics
    ///
    /// If `out` has not one place for each page.
    pub fn range_fault(
        &self,
        range: PageRange,
        request: RangeFault<'_>,
        out: &mut [MirrorPage],
    ) -> Result<(), RangeFaultError> {
        let result = self.inner.engine.range_fault(range, request, out);
        // Where touches are served by SIGBUS the caller has brought the pages home.
        self.inner.tell_of_resting();
        result
    }

    /// Answers as [`Runtime::range_fault`] does, by runs of pages that are answered alike: huge pages, pages in frames that follow one another, holes.
    /// Where most are, that is much faster than page by page. `out` is cleared first. Its runs cover the range, in order, each as long as can be.
    ///
    /// # Errors
    ///
    /// As for [`Runtime::range_fault`]. `out` ends before the page that the error names.
    pub fn range_fault_runs(
        &self,
        range: PageRange,
        request: RangeFault<'_>,
        out: &mut Vec<MirrorRun>,
    ) -> Result<(), RangeFaultError> {
        let result = self.inner.engine.range_fault_runs(range, request, out);
        self.inner.tell_of_resting();
        result
    }

    /// Makes a `change` to mappings in `range` that hetmem can't see, or sees too late: `mprotect`, `munmap` of memory in use by a device,
    /// anything in memory that is not managed. Mirrors are told before, and fill no table until it is done.
    pub fn announce<R>(&self, range: PageRange, event: Event, change: impl FnOnce() -> R) -> R {
        let _invalidation = self.inner.engine.announce(range, event);
        change()
    }
}

//! Traces that other tools record, as records: one [`Record::Touch`](hetmem_core::record::Record::Touch) for each touch of a page.
//!
//! ```text
//! lackey   the text of `valgrind --tool=lackey --trace-mem=yes`
//! oracle   oracleGeneral of libCacheSim
//! damo     the JSON of `damo report access --json`
//! ```
//!
//! Each hands its records on in batches, and keeps no more than one.

pub(crate) mod damo;
pub(crate) mod lackey;
pub(crate) mod oracle;

use hetmem_core::record::Record;
use hetmem_core::units::{PAGE_SHIFT, VirtAddr};

/// Records that are handed on at a time.
const BATCH: usize = 1 << 14;

/// Gathers records, and hands them on.
pub(crate) struct Batches<'a> {
    batch: Vec<Record>,
    sink: &'a mut dyn FnMut(&[Record]),
}

impl<'a> Batches<'a> {
    pub(crate) fn new(sink: &'a mut dyn FnMut(&[Record])) -> Self {
        Self { batch: Vec::with_capacity(BATCH), sink }
    }

    /// A touch of page number `page` (below 2^48).
    #[inline]
    fn touch(&mut self, page: u64, write: bool, time: u64) {
        self.batch.push(Record::Touch { page: VirtAddr::new(page << PAGE_SHIFT), write, time });
        if self.batch.len() == BATCH {
            self.hand_on();
        }
    }

    fn hand_on(&mut self) {
        (self.sink)(&self.batch);
        self.batch.clear();
    }
}

impl Drop for Batches<'_> {
    /// What was read before something that can't be read is handed on, too.
    fn drop(&mut self) {
        if !self.batch.is_empty() {
            self.hand_on();
        }
    }
}

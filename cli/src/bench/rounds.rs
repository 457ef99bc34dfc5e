//! How much is measured, and how often.

use std::time::{Duration, Instant};

use hetmem::{BLOCK_SIZE, ByteLen, PageCount};

use crate::host;

/// The sizes and counts of a run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Whether the run only shows that it works.
    pub(super) quick: bool,
    /// Rounds that count; one more goes before, to warm up.
    pub(super) rounds: usize,
    /// Bytes that are migrated.
    pub(super) data: ByteLen,
    /// Bytes that are touched and used.
    pub(super) touched: ByteLen,
    /// Bytes that each thread faults in, page by page.
    pub(super) faulted: ByteLen,
    /// What was cut down, and why.
    pub(super) notes: Vec<String>,
}

/// Memory that is in use at once, as a multiple of the data: the source twice as large as the data for hetmem, memcpy and the
/// plain way, two devices, the stock, and two destinations.
const FOOTPRINT: u64 = 12;

impl Plan {
    /// The run that was asked for, cut down to the memory there is.
    pub(super) fn new(quick: bool) -> Self {
        let mib = |n: u64| ByteLen::new(n << 20);
        let mut plan = if quick {
            Self { quick, rounds: 3, data: mib(64), touched: mib(16), faulted: mib(4), notes: Vec::new() }
        } else {
            Self { quick, rounds: 9, data: mib(256), touched: mib(64), faulted: mib(16), notes: Vec::new() }
        };
        if let Some(free) = host::meminfo("MemAvailable") {
            plan.fit(free);
        }
        plan
    }

    fn fit(&mut self, free: ByteLen) {
        let room = ByteLen::new((free.get() / FOOTPRINT / BLOCK_SIZE * BLOCK_SIZE).max(2 * BLOCK_SIZE));
        if room < self.data {
            self.notes.push(format!("{} of data instead of {}: {free} of memory is free", room, self.data));
            self.data = room;
            self.touched = self.touched.min(room);
            self.faulted = self.faulted.min(room);
        }
    }
}

/// `len` in pages; every length of a plan is whole pages.
pub(super) fn pages(len: ByteLen) -> PageCount {
    PageCount::new(len.get() / hetmem::PAGE_SIZE)
}

/// How long `work` takes, and what it returns.
pub(super) fn timed<R>(work: impl FnOnce() -> R) -> (Duration, R) {
    let start = Instant::now();
    let result = work();
    (start.elapsed(), result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_measures_less_and_says_so() {
        let mut plan = Plan { notes: Vec::new(), ..Plan::new(false) };
        plan.data = ByteLen::new(256 << 20);
        plan.fit(ByteLen::new(1 << 30));
        assert!(plan.data < ByteLen::new(90 << 20) && plan.data.get().is_multiple_of(BLOCK_SIZE));
        assert_eq!(plan.notes.len(), 1);
        let mut plan = Plan { notes: Vec::new(), data: ByteLen::new(256 << 20), ..plan };
        plan.fit(ByteLen::new(64 << 30));
        assert!(plan.notes.is_empty());
    }
}

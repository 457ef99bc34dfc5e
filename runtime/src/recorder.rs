//! Leaves records of what happens to who has asked for them ([`hetmem_core::record`]). Waits for nobody, and on the way of a fault allocates nothing.
//!
//! What is there is known when it is counted, and said once: of it [`Recorder`] keeps a word for each chunk (256 KiB of memory), until something is
//! gone. It takes no more than half of the ring, so that there is room for faults.

use std::collections::BTreeMap;

use hetmem_core::migrate::Target;
use hetmem_core::outcome::{Outcomes, PageOutcome};
use hetmem_core::record::{MOST_RENAMED, Record, Ring, by_chunks};
use hetmem_core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{PAGE_SHIFT, PageCount, PageRange, VirtAddr};
use hetmem_sys::thread::time_since_boot;

use crate::service::Start;

/// Where records go.
pub(crate) struct Recorder {
    ring: &'static Ring,
    /// When [`Start`] was, in nanoseconds since the machine was booted.
    start: u64,
    /// What was said to be there, by chunks.
    said: Mutex<BTreeMap<VirtAddr, u64>>,
    /// Whether something of it may be gone.
    gone: AtomicBool,
}

impl Recorder {
    pub(crate) fn new(ring: &'static Ring, start: Start) -> Self {
        let now = u64::try_from(time_since_boot().as_nanos()).unwrap_or(u64::MAX);
        let start = now.saturating_sub(start.now());
        Self { ring, start, said: Mutex::new(BTreeMap::new()), gone: AtomicBool::new(false) }
    }

    /// The time `since` nanoseconds after the start.
    pub(crate) const fn at(&self, since: u64) -> u64 {
        self.start.saturating_add(since)
    }

    pub(crate) fn push(&self, record: Record) {
        self.ring.push(record);
    }

    /// A touch, that was read `since` nanoseconds after the start, has brought `pages` pages home.
    pub(crate) fn fault(&self, page: VirtAddr, pages: PageCount, since: u64) {
        let pages = u8::try_from(pages.get()).unwrap_or(u8::MAX);
        if pages > 0 {
            self.push(Record::Fault { page, pages, time: self.at(since) });
        }
    }

    /// A touch, that was read `since` nanoseconds after the start, has found `pages` pages out as samples, and they are where they were.
    pub(crate) fn sample(&self, page: VirtAddr, pages: PageCount, since: u64) {
        if let Some(order) = pages.get().checked_ilog2().and_then(|order| u8::try_from(order).ok()) {
            // The first of them.
            let page = VirtAddr::new(page.get() >> PAGE_SHIFT >> order << order << PAGE_SHIFT);
            self.push(Record::Sample { page, order, touched: true, time: self.at(since) });
        }
    }

    /// What was in `range` is gone.
    pub(crate) fn gone(&self, range: PageRange) {
        self.gone.store(true, Relaxed);
        self.push(Record::Gone(range));
    }

    /// The pages of `from` are at `to` now.
    pub(crate) fn renamed(&self, from: PageRange, to: VirtAddr) {
        self.gone.store(true, Relaxed);
        let mut done = PageCount::ZERO;
        while done < from.pages() {
            let part = from.slice(done, MOST_RENAMED);
            self.push(Record::Renamed { from: part, to: to.add_pages(done) });
            done += part.pages();
        }
    }

    /// Pages of `range` have moved to `to`, those of which `outcomes` says so.
    pub(crate) fn moved(&self, range: PageRange, to: Target, outcomes: &Outcomes) {
        let outcomes = outcomes.as_slice();
        let has_moved = |at: usize| matches!(outcomes.get(at), Some(PageOutcome::Moved));
        by_chunks(range, has_moved).for_each(|(chunk, pages)| self.push(Record::Moved { chunk, to, pages }));
    }

    /// All pages of `parts` are there. What there is no room for is said when they are counted again.
    pub(crate) fn present(&self, parts: &[PageRange]) {
        let mut said = lock(&self.said);
        if self.gone.swap(false, Relaxed) {
            said.clear();
        }
        for (chunk, pages) in parts.iter().flat_map(|part| by_chunks(*part, |_| true)) {
            let said = said.entry(chunk).or_default();
            let new = pages & !*said;
            if new == 0 {
                continue;
            }
            if self.ring.is_half_full() {
                return;
            }
            *said |= new;
            self.push(Record::Present { chunk, pages: new });
        }
    }
}

#[cfg(test)]
mod tests {
    use hetmem_core::record::{CHUNK, PLACES};
    use hetmem_core::units::PAGE_SIZE;

    use super::*;

    fn recorder() -> Recorder {
        Recorder::new(Box::leak(Box::default()), Start::begin())
    }

    fn page(page: u64) -> VirtAddr {
        VirtAddr::new(page * PAGE_SIZE)
    }

    fn range(first: u64, pages: u64) -> PageRange {
        PageRange::new(page(first), PageCount::new(pages)).unwrap()
    }

    fn left(recorder: &Recorder) -> Vec<Record> {
        let mut left = Vec::new();
        recorder.ring.drain(false, |words| left.push(Record::decode(words).unwrap()));
        left
    }

    #[test]
    fn touches_of_samples_are_told_from_touches_of_what_was_away() {
        let recorder = recorder();
        recorder.fault(page(7), PageCount::new(3), 5);
        recorder.sample(page(7), PageCount::ONE, 6);
        recorder.sample(page(513), PageCount::new(512), 7);
        recorder.sample(page(9), PageCount::ZERO, 8);
        let sample = |first, order, time| Record::Sample { page: page(first), order, touched: true, time };
        let time = |since| recorder.at(since);
        let fault = Record::Fault { page: page(7), pages: 3, time: time(5) };
        assert_eq!(left(&recorder), [fault, sample(7, 0, time(6)), sample(512, 9, time(7))]);
    }

    #[test]
    fn what_is_there_is_said_once_until_something_is_gone() {
        let recorder = recorder();
        let present = |chunk, pages| Record::Present { chunk: page(chunk * CHUNK), pages };
        recorder.present(&[range(0, 2), range(65, 1)]);
        assert_eq!(left(&recorder), [present(0, 0b11), present(1, 0b10)]);
        recorder.present(&[range(0, 3), range(65, 1)]);
        assert_eq!(left(&recorder), [present(0, 0b100)], "and no more than is new");
        recorder.gone(range(0, 1));
        recorder.present(&[range(1, 1)]);
        assert_eq!(left(&recorder), [Record::Gone(range(0, 1)), present(0, 0b10)]);
        recorder.renamed(range(1, 1), page(64));
        recorder.present(&[range(64, 1)]);
        assert_eq!(left(&recorder), [Record::Renamed { from: range(1, 1), to: page(64) }, present(1, 1)]);
    }

    #[test]
    fn what_is_there_leaves_half_of_the_ring_to_faults_and_is_said_later() {
        let recorder = recorder();
        let chunks = PLACES as u64;
        let mut said = 0;
        while said < chunks {
            recorder.present(&[range(0, chunks * CHUNK)]);
            let now = left(&recorder).len() as u64;
            assert!(now == PLACES as u64 / 2, "{now}");
            said += now;
        }
        recorder.present(&[range(0, chunks * CHUNK)]);
        assert_eq!((left(&recorder).len(), recorder.ring.take_dropped()), (0, 0));
    }

    #[test]
    fn pages_that_have_another_address_are_named_in_parts_that_fit() {
        let recorder = recorder();
        let many = MOST_RENAMED.get() + 5;
        recorder.renamed(range(10, many), page(1 << 20));
        let first = Record::Renamed { from: range(10, many - 5), to: page(1 << 20) };
        let second = Record::Renamed { from: range(10 + many - 5, 5), to: page((1 << 20) + many - 5) };
        assert_eq!(left(&recorder), [first, second]);
    }
}

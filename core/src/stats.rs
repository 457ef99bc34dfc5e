//! Counters of one process, laid out so that they can live in memory shared with the supervising `hetmem run`.
//!
//! Everything is an `AtomicU64` with relaxed ordering: a reader sees each counter whole, and counters agree with one
//! another only once the process has ended. All-zero memory is a valid, empty set of counters.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::outcome::{KeptReason, Outcomes};
use crate::port::Packing;

/// Devices with counters of their own; `run` refuses more.
pub const MAX_DEVICES: usize = 16;
/// Places for kept reasons: more than there are today, so that the layout outlives a new one.
const KEPT_SLOTS: usize = 32;

/// Counters of one device.
#[repr(C)]
#[derive(Debug, Default)]
pub struct DeviceCounters {
    /// Bytes of frames that hold a page of the program.
    pub used_bytes: AtomicU64,
    /// The largest value that `used_bytes` ever had.
    pub peak_used_bytes: AtomicU64,
    /// Pages that were found elsewhere than on the device.
    pub stray_pages: AtomicU64,
    /// How its pages are packed, if it packs them.
    pub packing: PackingCounters,
}

/// [`Packing`], as it was when the device was last asked.
#[repr(C)]
#[derive(Debug, Default)]
pub struct PackingCounters {
    pages: AtomicU64,
    same_filled_pages: AtomicU64,
    raw_pages: AtomicU64,
    packed_bytes: AtomicU64,
    memory_bytes: AtomicU64,
    peak_memory_bytes: AtomicU64,
    compacted_pages: AtomicU64,
}

impl PackingCounters {
    const fn all(&self) -> [&AtomicU64; 7] {
        let Self { pages, same_filled_pages, raw_pages, packed_bytes, .. } = self;
        [
            pages,
            same_filled_pages,
            raw_pages,
            packed_bytes,
            &self.memory_bytes,
            &self.peak_memory_bytes,
            &self.compacted_pages,
        ]
    }

    /// Says how pages are packed now. (What memory there may be is known without.)
    pub fn set(&self, packing: &Packing) {
        let Packing { pages, same_filled_pages, raw_pages, packed_bytes, .. } = *packing;
        let Packing { memory_bytes, peak_memory_bytes, compacted_pages, .. } = *packing;
        let all = [pages, same_filled_pages, raw_pages, packed_bytes, memory_bytes, peak_memory_bytes, compacted_pages];
        self.all().into_iter().zip(all).for_each(|(word, value)| word.store(value, Relaxed));
    }

    /// What they say of the present is true no longer.
    pub fn forget_present(&self) {
        let Packing { peak_memory_bytes, compacted_pages, .. } = self.get(0);
        self.set(&Packing { peak_memory_bytes, compacted_pages, ..Packing::default() });
    }

    /// What was said, of a device that may take `memory_limit_bytes` of memory.
    #[must_use]
    pub fn get(&self, memory_limit_bytes: u64) -> Packing {
        let load = |word: &AtomicU64| word.load(Relaxed);
        Packing {
            pages: load(&self.pages),
            same_filled_pages: load(&self.same_filled_pages),
            raw_pages: load(&self.raw_pages),
            packed_bytes: load(&self.packed_bytes),
            memory_bytes: load(&self.memory_bytes),
            peak_memory_bytes: load(&self.peak_memory_bytes),
            memory_limit_bytes,
            compacted_pages: load(&self.compacted_pages),
        }
    }
}

impl DeviceCounters {
    /// Records that `bytes` more are in use.
    pub fn add(&self, bytes: u64) {
        // Of what others write nothing is trusted.
        let now = self.used_bytes.fetch_add(bytes, Relaxed).wrapping_add(bytes);
        self.peak_used_bytes.fetch_max(now, Relaxed);
    }

    /// Records that `bytes` fewer are in use.
    pub fn sub(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Relaxed);
    }
}

/// All counters of a process.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes of the program's memory under management at the last look.
    pub adopted_bytes: AtomicU64,
    /// Pages moved from system memory or another device to a device.
    pub pages_migrated_to_device: AtomicU64,
    /// Pages moved home to system memory, by request or by a CPU fault.
    pub pages_migrated_to_system: AtomicU64,
    /// CPU touches that were served: of private pages, and of pages that were out as samples.
    pub cpu_faults: AtomicU64,
    /// Those of pages that were out as samples.
    pub sample_touches: AtomicU64,
    /// Pages that touches brought home less than a minute after they had left, as far as that is known.
    pub refaults: AtomicU64,
    /// For how many microseconds the policy has found that memory is turned over for nothing.
    pub thrashing_micros: AtomicU64,
    /// Bytes copied between frames.
    pub bytes_copied: AtomicU64,
    /// Failures that were not the program's and were survived.
    pub errors: AtomicU64,
    kept: [AtomicU64; KEPT_SLOTS],
    /// Time from a touch to its return: from the read of its message on as it was, and the rest as it was found by probing.
    pub fault_latency: Histogram,
    /// Counters of each device, in the order of the command line.
    pub devices: [DeviceCounters; MAX_DEVICES],
}

const _: () = assert!(KeptReason::ALL.len() <= KEPT_SLOTS);

impl Counters {
    /// Counts `pages` pages kept for `reason`.
    pub fn count_kept(&self, reason: KeptReason, pages: u64) {
        self.kept[reason.index()].fetch_add(pages, Relaxed);
    }

    /// Pages kept for `reason` so far.
    #[must_use]
    pub fn kept(&self, reason: KeptReason) -> u64 {
        self.kept[reason.index()].load(Relaxed)
    }

    /// Counts the kept pages of `outcomes`.
    pub fn count_outcomes(&self, outcomes: &Outcomes) {
        for outcome in outcomes.as_slice() {
            if let crate::outcome::PageOutcome::Kept(reason) = outcome {
                self.count_kept(*reason, 1);
            }
        }
    }

    /// Adds everything in `other` to this set; peaks add up too, as each process has devices of its own.
    pub fn absorb(&self, other: &Self) {
        let pairs = [
            (&self.adopted_bytes, &other.adopted_bytes),
            (&self.pages_migrated_to_device, &other.pages_migrated_to_device),
            (&self.pages_migrated_to_system, &other.pages_migrated_to_system),
            (&self.cpu_faults, &other.cpu_faults),
            (&self.sample_touches, &other.sample_touches),
            (&self.refaults, &other.refaults),
            (&self.thrashing_micros, &other.thrashing_micros),
            (&self.bytes_copied, &other.bytes_copied),
            (&self.errors, &other.errors),
        ];
        let kept = self.kept.iter().zip(&other.kept);
        let devices = self.devices.iter().zip(&other.devices).flat_map(|(a, b)| {
            [(&a.used_bytes, &b.used_bytes), (&a.peak_used_bytes, &b.peak_used_bytes), (&a.stray_pages, &b.stray_pages)]
        });
        let packing = self.devices.iter().zip(&other.devices);
        let packing = packing.flat_map(|(a, b)| a.packing.all().into_iter().zip(b.packing.all()));
        for (to, from) in pairs.into_iter().chain(kept).chain(devices).chain(packing) {
            to.store(to.load(Relaxed).saturating_add(from.load(Relaxed)), Relaxed);
        }
        self.fault_latency.absorb(&other.fault_latency);
    }
}

const SUB_BITS: u32 = 4;
const SUB: usize = 1 << SUB_BITS;
const BUCKETS: usize = SUB * 40;

/// A histogram of durations in nanoseconds with 16 buckets to each power of two: quantiles are exact to 6.25 %, from
/// 1 ns to about four hours.
#[repr(C)]
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), max: AtomicU64::new(0) }
    }
}

impl Histogram {
    #[expect(clippy::cast_possible_truncation, reason = "the index is clamped to the number of buckets")]
    fn bucket(value: u64) -> usize {
        if value < SUB as u64 {
            return value as usize;
        }
        let exponent = value.ilog2() - SUB_BITS;
        let index = (exponent as usize + 1) * SUB + ((value >> exponent) as usize - SUB);
        index.min(BUCKETS - 1)
    }

    /// The largest value that falls into bucket `index`.
    fn upper(index: usize) -> u64 {
        if index < SUB {
            return index as u64;
        }
        let exponent = index / SUB - 1;
        (((index % SUB + SUB) as u64 + 1) << exponent) - 1
    }

    /// Records one duration of `nanoseconds`.
    pub fn record(&self, nanoseconds: u64) {
        self.buckets[Self::bucket(nanoseconds)].fetch_add(1, Relaxed);
        self.max.fetch_max(nanoseconds, Relaxed);
    }

    /// The number of recorded durations.
    #[must_use]
    pub fn count(&self) -> u64 {
        // Of what others write nothing is trusted, here and below.
        self.buckets.iter().fold(0, |sum, b| sum.saturating_add(b.load(Relaxed)))
    }

    /// The largest recorded duration in nanoseconds, exactly; 0 if there is none.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max.load(Relaxed)
    }

    /// The duration in nanoseconds that `permille` thousandths of the recorded ones don't exceed; 0 if there is none.
    #[must_use]
    pub fn quantile(&self, permille: u64) -> u64 {
        let rank = (u128::from(self.count()) * u128::from(permille)).div_ceil(1000).max(1);
        let mut seen = 0_u128;
        for (i, bucket) in self.buckets.iter().enumerate() {
            seen += u128::from(bucket.load(Relaxed));
            if seen >= rank {
                return Self::upper(i).min(self.max());
            }
        }
        self.max()
    }

    /// What was recorded since `earlier`, which is a copy of this one; its maximum is as exact as a quantile, and no more than that of all.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let recorded = |at: usize| self.buckets[at].load(Relaxed).saturating_sub(earlier.buckets[at].load(Relaxed));
        let max = (0..BUCKETS).rfind(|at| recorded(*at) != 0).map_or(0, |at| Self::upper(at).min(self.max()));
        Self { buckets: std::array::from_fn(|at| AtomicU64::new(recorded(at))), max: AtomicU64::new(max) }
    }

    fn absorb(&self, other: &Self) {
        for (to, from) in self.buckets.iter().zip(&other.buckets) {
            to.store(to.load(Relaxed).saturating_add(from.load(Relaxed)), Relaxed);
        }
        self.max.fetch_max(other.max(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_sixteenth() {
        let h = Histogram::default();
        for v in 1..=10_000 {
            h.record(v);
        }
        for (permille, exact) in [(500, 5_000), (990, 9_900), (1000, 10_000)] {
            let got = h.quantile(permille);
            assert!(got >= exact && got <= exact + exact / 16 + 1, "{permille}: {got}");
        }
        assert_eq!(h.max(), 10_000);
        assert_eq!(h.count(), 10_000);
    }

    #[test]
    fn what_came_since_is_told_apart() {
        let (h, earlier) = (Histogram::default(), Histogram::default());
        h.record(1000);
        earlier.absorb(&h);
        assert_eq!(h.since(&earlier).count(), 0);
        (0..10).for_each(|_| h.record(10));
        assert_eq!((h.since(&earlier).count(), h.since(&earlier).quantile(1000)), (10, 10));
        assert_eq!((h.since(&earlier).max(), h.since(&h).max()), (10, 0));
    }

    #[test]
    fn an_empty_histogram_reports_zero() {
        assert_eq!(Histogram::default().quantile(500), 0);
    }

    #[test]
    fn every_value_lies_in_its_own_bucket() {
        for v in (0..100_000).chain([u64::MAX]) {
            let b = Histogram::bucket(v);
            assert!(b == BUCKETS - 1 || (v <= Histogram::upper(b) && (b == 0 || v > Histogram::upper(b - 1))), "{v}");
        }
    }

    #[test]
    fn whatever_is_written_into_counters_they_can_be_read_and_added() {
        for value in [u64::MAX, u64::MAX / 2, 1 << 63, 1] {
            let (counters, sum) = (Counters::default(), Counters::default());
            let h = &counters.fault_latency;
            let single = [
                &counters.adopted_bytes,
                &counters.pages_migrated_to_device,
                &counters.pages_migrated_to_system,
                &counters.cpu_faults,
                &counters.sample_touches,
                &counters.refaults,
                &counters.thrashing_micros,
                &counters.bytes_copied,
                &counters.errors,
                &h.max,
            ];
            let devices = counters.devices.iter().flat_map(|d| [&d.used_bytes, &d.peak_used_bytes, &d.stray_pages]);
            let packing = counters.devices.iter().flat_map(|d| d.packing.all());
            let all = single.into_iter().chain(&counters.kept).chain(&h.buckets).chain(devices).chain(packing);
            all.for_each(|word| word.store(value, Relaxed));
            sum.absorb(&counters);
            sum.absorb(&counters);
            for h in [&counters.fault_latency, &sum.fault_latency] {
                assert!(h.quantile(500) <= h.quantile(990) && h.quantile(990) <= h.max());
                assert!(h.count() >= value);
            }
            counters.devices[0].add(4096);
            counters.devices[0].sub(u64::MAX);
        }
    }

    #[test]
    fn absorbing_adds_counters_and_keeps_the_larger_maximum() {
        let (a, b) = (Counters::default(), Counters::default());
        a.count_kept(KeptReason::Pinned, 2);
        b.count_kept(KeptReason::Pinned, 3);
        b.devices[1].add(4096);
        b.fault_latency.record(77);
        a.absorb(&b);
        assert_eq!(a.kept(KeptReason::Pinned), 5);
        assert_eq!(a.devices[1].peak_used_bytes.load(Relaxed), 4096);
        assert_eq!(a.fault_latency.max(), 77);
    }
}

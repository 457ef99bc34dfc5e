//! What a runtime has counted, as plain numbers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hetmem_core::outcome::KeptReason;
use hetmem_core::port::Packing;
use hetmem_core::stats::{Counters, DeviceCounters};

use crate::runtime::Runtime;

/// What was counted since the runtime began, from [`Runtime::statistics`]: a copy, which does not change. Each number is whole; while the runtime is
/// busy they need not agree with one another. The names are those of the C interface and of `hetmem run --stats`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Statistics {
    /// Bytes of memory under management, mapped and adopted, now.
    pub adopted_bytes: u64,
    /// Pages moved to a device, from system memory or another device.
    pub pages_migrated_to_device: u64,
    /// Pages moved home to system memory, by request or by a touch.
    pub pages_migrated_to_system: u64,
    /// Touches of pages that were away, served.
    pub cpu_faults: u64,
    /// Bytes copied between frames. What was moved without a copy is not in it.
    pub bytes_copied: u64,
    /// Failures that were not the program's and were survived, such as those of devices.
    pub errors: u64,
    /// Time from a touch to its return, as the program waits, in nanoseconds, that half of the touches did not exceed; 0 if there was no touch. Exact to
    /// one part in 16, of each touch: how long serving it took, from the read of the kernel's message on, and how long a touch of a page of hetmem's own
    /// waited beside that, which is tried every 10 ms while touches are served. Of a touch that is served by SIGBUS: from the signal handler's first
    /// instruction to its last.
    pub fault_latency_p50_ns: u64,
    /// The time that 99 % of the touches did not exceed, measured and rounded likewise.
    pub fault_latency_p99_ns: u64,
    /// The longest such time.
    pub fault_latency_max_ns: u64,
    /// Pages that requests left where they were, by reason; reasons that kept no page are absent.
    pub pages_kept: BTreeMap<KeptReason, u64>,
    /// Of each device, in the order of the ids.
    pub devices: Vec<DeviceStatistics>,
}

/// What was counted of one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct DeviceStatistics {
    /// Bytes of frames that hold a page of the program, now.
    pub used_bytes: u64,
    /// The most that it ever was.
    pub peak_used_bytes: u64,
    /// Pages that were found elsewhere than on the device.
    pub stray_pages: u64,
    /// How its pages are packed, if it packs them, as `private:compressed` does.
    pub packing: Option<Packing>,
}

impl Runtime {
    /// What was counted so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let engine = &self.inner.engine;
        let mut statistics = Statistics::of(engine.counters(), engine.devices().len());
        for (of_device, device) in statistics.devices.iter_mut().zip(engine.devices()) {
            of_device.packing = device.packing();
        }
        statistics
    }
}

fn read(counter: &AtomicU64) -> u64 {
    // Relaxed: each is a number of its own.
    counter.load(Relaxed)
}

impl Statistics {
    fn of(counters: &Counters, devices: usize) -> Self {
        let kept = KeptReason::ALL.iter().map(|reason| (*reason, counters.kept(*reason)));
        Self {
            adopted_bytes: read(&counters.adopted_bytes),
            pages_migrated_to_device: read(&counters.pages_migrated_to_device),
            pages_migrated_to_system: read(&counters.pages_migrated_to_system),
            cpu_faults: read(&counters.cpu_faults),
            bytes_copied: read(&counters.bytes_copied),
            errors: read(&counters.errors),
            fault_latency_p50_ns: counters.fault_latency.quantile(500),
            fault_latency_p99_ns: counters.fault_latency.quantile(990),
            fault_latency_max_ns: counters.fault_latency.max(),
            pages_kept: kept.filter(|(_, pages)| *pages > 0).collect(),
            devices: counters.devices.iter().take(devices).map(DeviceStatistics::of).collect(),
        }
    }
}

impl DeviceStatistics {
    fn of(counters: &DeviceCounters) -> Self {
        Self {
            used_bytes: read(&counters.used_bytes),
            peak_used_bytes: read(&counters.peak_used_bytes),
            stray_pages: read(&counters.stray_pages),
            packing: None,
        }
    }
}

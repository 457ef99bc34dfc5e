//! The statistics file of a managed run.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::launch::Setting;

/// What `hetmem run --stats` writes, as its users are promised it.
#[derive(Debug, Deserialize)]
pub(crate) struct Stats {
    pub(crate) program: serde_json::Value,
    pub(crate) exit_code: i32,
    pub(crate) wall_seconds: f64,
    pub(crate) devices: Vec<Device>,
    pub(crate) adopted_bytes: u64,
    pub(crate) pages_migrated_to_device: u64,
    pub(crate) pages_migrated_to_system: u64,
    pub(crate) pages_kept: BTreeMap<String, u64>,
    pub(crate) cpu_faults: u64,
    pub(crate) fault_latency_us: Latency,
    pub(crate) bytes_copied: u64,
    pub(crate) errors: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) memory_type: String,
    pub(crate) backend: String,
    pub(crate) capacity_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) peak_used_bytes: u64,
    /// Of a device that packs its pages.
    pub(crate) packing: Option<Packing>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Packing {
    pub(crate) peak_memory_bytes: u64,
    pub(crate) memory_limit_bytes: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Stats {
    /// Reads the file; complains if the devices aren't those of `setting`.
    pub(crate) fn read(path: &Path, setting: Setting) -> Result<Self, String> {
        let text = std::fs::read(path).map_err(|error| format!("no statistics ({error})"))?;
        let stats: Self = serde_json::from_slice(&text)
            .map_err(|error| format!("bad statistics ({error}): {}", String::from_utf8_lossy(&text)))?;
        let wanted = setting.devices();
        let matching = stats.devices.iter().zip(wanted).filter(|(device, (kind, capacity))| {
            device.memory_type == *kind
                && device.capacity_bytes == *capacity
                && device.backend == setting.backend()
                && !device.name.is_empty()
                && device.used_bytes <= device.peak_used_bytes
                && device.packing.is_some() == (setting.backend() == "compressed")
                && device.packing.as_ref().is_none_or(|packing| packing.peak_memory_bytes <= packing.memory_limit_bytes)
        });
        if matching.count() != wanted.len() || stats.devices.len() != wanted.len() {
            return Err(format!("statistics of other devices than {wanted:?}: {:?}", stats.devices));
        }
        Ok(stats)
    }

    /// Pages that moved, in both directions.
    pub(crate) fn moved(&self) -> u64 {
        self.pages_migrated_to_device + self.pages_migrated_to_system
    }

    /// Complains if there were errors, too few moves, nothing managed in the end, or numbers that contradict one another or the program's `code`.
    pub(crate) fn check(&self, code: i32, least_moved: u64, to_the_end: bool) -> Result<(), String> {
        let latency = &self.fault_latency_us;
        let claims = [
            ("no error", self.errors == 0),
            ("the exit status of the program", self.exit_code == code),
            ("enough pages moved", self.moved() >= least_moved),
            ("copies of all that moved", self.bytes_copied >= self.pages_migrated_to_device.saturating_mul(4096)),
            ("latencies in order", latency.p50 <= latency.p99 && latency.p99 <= latency.max),
            ("a fault has a latency", (self.cpu_faults == 0) == (latency.max == 0.0)),
            ("a duration", self.wall_seconds > 0.0),
            // One that ends at once may do so before it was looked at; pages that moved were adopted in any case.
            ("memory was adopted", !to_the_end || self.adopted_bytes > 0 || self.wall_seconds < 1.0),
            ("the program has a name", !self.program.is_null()),
        ];
        match claims.iter().find(|(_, holds)| !holds) {
            None => Ok(()),
            Some((claim, _)) => {
                Err(format!("the statistics should show {claim} (at least {least_moved} pages): {self:#?}"))
            }
        }
    }

    /// One line for whoever watches the tests.
    pub(crate) fn summary(&self) -> String {
        let kept: u64 = self.pages_kept.values().sum();
        format!(
            "{} pages out, {} home, {kept} kept, {} faults, p99 {:.0} µs",
            self.pages_migrated_to_device, self.pages_migrated_to_system, self.cpu_faults, self.fault_latency_us.p99
        )
    }
}

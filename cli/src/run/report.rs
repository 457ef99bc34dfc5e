//! What a run reports: the JSON of `--stats` and the summary on standard error.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hetmem_core::outcome::KeptReason;
use hetmem_core::physmap::MemoryType;
use hetmem_core::policy::PolicySpec;
use hetmem_core::stats::{Counters, Histogram};
use hetmem_core::units::ByteLen;
use hetmem_devices::spec::DeviceSpec;
use serde::Serialize;

use crate::control::figures::seconds;
use crate::control::protocol::Packing;
use crate::shown;

/// The reasons that the summary names; the statistics have all.
const REASONS_SHOWN: usize = 3;

/// The statistics of a run, over all its processes.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    program: String,
    /// The exit status that hetmem passes on: 128+N for signal N.
    exit_code: u8,
    wall_seconds: f64,
    /// Processes that were managed.
    processes: u64,
    devices: Vec<DeviceReport>,
    adopted_bytes: u64,
    pages_migrated_to_device: u64,
    pages_migrated_to_system: u64,
    /// By reason; reasons that kept no page are left out.
    pages_kept: BTreeMap<&'static str, u64>,
    /// Touches that were served, those of samples among them.
    cpu_faults: u64,
    sample_touches: u64,
    /// Pages that came home less than a minute after they had left.
    refaults: u64,
    thrashing_seconds: f64,
    fault_latency_us: Latency,
    bytes_copied: u64,
    errors: u64,
}

#[derive(Debug, Serialize)]
struct DeviceReport {
    name: String,
    memory_type: &'static str,
    backend: &'static str,
    capacity_bytes: u64,
    used_bytes: u64,
    peak_used_bytes: u64,
    stray_pages: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    packing: Option<Packing>,
}

/// In microseconds; zero if there was no fault.
#[derive(Debug, Serialize)]
struct Latency {
    p50: f64,
    p99: f64,
    max: f64,
}

impl Latency {
    fn of(histogram: &Histogram) -> Self {
        let us = |nanoseconds| Duration::from_nanos(nanoseconds).as_secs_f64() * 1e6;
        Self { p50: us(histogram.quantile(500)), p99: us(histogram.quantile(990)), max: us(histogram.max()) }
    }
}

/// How the program ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) exit_code: u8,
    pub(crate) signal: Option<i32>,
    pub(crate) core_dumped: bool,
    /// What of the program was on private devices at its end: its dump, if there is one, is without.
    pub(crate) away: ByteLen,
    pub(crate) wall: Duration,
}

/// What of a process with these `counters` is on private devices.
pub(crate) fn away(devices: &[DeviceSpec], counters: &Counters) -> ByteLen {
    let used = devices.iter().zip(&counters.devices);
    let private = used.filter(|(spec, _)| spec.memory_type == MemoryType::DevicePrivate);
    ByteLen::new(private.fold(0, |sum, (_, counters)| sum.saturating_add(counters.used_bytes.load(Relaxed))))
}

impl Report {
    pub(crate) fn new(program: String, end: End, processes: u64, devices: &[DeviceSpec], counters: &Counters) -> Self {
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        let device = |(spec, used): (&DeviceSpec, &hetmem_core::stats::DeviceCounters)| DeviceReport {
            name: spec.name.clone(),
            memory_type: spec.memory_type.label(),
            backend: spec.backend.kind().name(),
            capacity_bytes: spec.size.get(),
            used_bytes: load(&used.used_bytes),
            peak_used_bytes: load(&used.peak_used_bytes),
            stray_pages: load(&used.stray_pages),
            packing: Packing::of(spec, &used.packing),
        };
        let kept = KeptReason::ALL.iter().map(|reason| (reason.label(), counters.kept(*reason)));
        Self {
            program,
            exit_code: end.exit_code,
            wall_seconds: end.wall.as_secs_f64(),
            processes,
            devices: devices.iter().zip(&counters.devices).map(device).collect(),
            adopted_bytes: load(&counters.adopted_bytes),
            pages_migrated_to_device: load(&counters.pages_migrated_to_device),
            pages_migrated_to_system: load(&counters.pages_migrated_to_system),
            pages_kept: kept.filter(|(_, pages)| *pages != 0).collect(),
            cpu_faults: load(&counters.cpu_faults),
            sample_touches: load(&counters.sample_touches),
            refaults: load(&counters.refaults),
            thrashing_seconds: seconds(load(&counters.thrashing_micros)),
            fault_latency_us: Latency::of(&counters.fault_latency),
            bytes_copied: load(&counters.bytes_copied),
            errors: load(&counters.errors),
        }
    }

    /// The JSON of `--stats`, with a newline at its end.
    pub(crate) fn json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("numbers and strings are JSON");
        text.push(b'\n');
        text
    }

    /// The summary for people.
    pub(crate) fn summary<'a>(&'a self, end: End, policy: &'a PolicySpec) -> Summary<'a> {
        Summary { report: self, end, policy }
    }
}

/// Prints as four lines and one for each device, in columns, and one more if memory thrashed.
pub(crate) struct Summary<'a> {
    report: &'a Report,
    end: End,
    policy: &'a PolicySpec,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        let width = report.devices.iter().map(|device| device.name.len()).fold("faults".len(), usize::max);
        let program = crate::failure::one_line(&report.program);
        let how = match self.end.signal {
            Some(signal) => format!("killed by signal {signal}{}", self.dump()),
            None => format!("exit status {}", report.exit_code),
        };
        writeln!(f, "hetmem: {program}: {how} after {:.2} s, policy {}", report.wall_seconds, self.policy)?;
        for device in &report.devices {
            let (used, peak) = (short(device.used_bytes), short(device.peak_used_bytes));
            let capacity = short(device.capacity_bytes);
            let kind = device.memory_type;
            write!(f, "  {:<width$}  {kind}, {capacity}: {used} used at the end, {peak} at the peak", device.name)?;
            if let Some(packing) = &device.packing {
                write!(f, ", compressed into {} at most", short(packing.peak_memory_bytes))?;
            }
            // Only where somebody moved pages behind hetmem's back.
            match device.stray_pages {
                0 => writeln!(f)?,
                strays => writeln!(f, ", {} pages astray", grouped(strays))?,
            }
        }
        let (out, home) = (grouped(report.pages_migrated_to_device), grouped(report.pages_migrated_to_system));
        let adopted = short(report.adopted_bytes);
        let processes = shown::processes(report.processes);
        writeln!(
            f,
            "  {:<width$}  {out} to devices, {home} to system memory; {adopted} managed in {processes}",
            "pages"
        )?;
        writeln!(f, "  {:<width$}  {}", "kept", self.kept())?;
        let Latency { p50, p99, max } = report.fault_latency_us;
        if report.thrashing_seconds > 0.0 {
            let (time, back) = (report.thrashing_seconds, grouped(report.refaults));
            writeln!(
                f,
                "  {:<width$}  for {time:.1} s more was in use than the limit leaves: {back} pages were back within a minute",
                "thrash"
            )?;
        }
        write!(f, "  {:<width$}  {} served", "faults", grouped(report.cpu_faults))?;
        if report.sample_touches != 0 {
            write!(f, ", {} of them of samples", grouped(report.sample_touches))?;
        }
        if report.cpu_faults != 0 {
            write!(f, ", p50 {p50:.1} us, p99 {p99:.1} us, max {max:.0} us")?;
        }
        writeln!(f, "; {} errors", grouped(report.errors))
    }
}

impl Summary<'_> {
    /// What is to be known of the core dump, if there is one: the kernel writes what is mapped, and waits for nothing that is missing
    /// (`handle_userfault` of fs/userfaultfd.c).
    fn dump(&self) -> String {
        match self.end.away.get() {
            _ if !self.end.core_dumped => String::new(),
            0 => ", core dumped".to_owned(),
            away => format!(", core dumped without the {} on private devices", short(away)),
        }
    }

    fn kept(&self) -> String {
        let mut kept: Vec<_> = self.report.pages_kept.iter().collect();
        if kept.is_empty() {
            return "none".to_owned();
        }
        kept.sort_by_key(|(label, pages)| (std::cmp::Reverse(**pages), **label));
        let rest = kept.iter().skip(REASONS_SHOWN).fold(0_u64, |sum, (_, pages)| sum.saturating_add(**pages));
        let shown = kept.iter().take(REASONS_SHOWN);
        let mut parts: Vec<_> =
            shown.map(|(label, pages)| format!("{} {}", grouped(**pages), label.replace('_', " "))).collect();
        if rest != 0 {
            parts.push(format!("{} for other reasons", grouped(rest)));
        }
        parts.join(", ")
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i != 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A length in the largest unit that leaves a whole part, with one decimal unless it is exact.
pub(crate) fn short(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >> shift != 0 {
            if bytes.trailing_zeros() >= shift {
                return format!("{} {unit}", bytes >> shift);
            }
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    ByteLen::new(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> (Report, End) {
        let counters = Counters::default();
        counters.adopted_bytes.store(3 << 20, Relaxed);
        counters.pages_migrated_to_device.store(1_234_567, Relaxed);
        counters.count_kept(KeptReason::Hole, 5);
        counters.count_kept(KeptReason::ThreadState, 1000);
        counters.devices[1].add(1_572_864);
        counters.cpu_faults.store(1, Relaxed);
        counters.fault_latency.record(4_000);
        let devices: Vec<DeviceSpec> =
            ["coherent:emulated,size=64M", "private:emulated,size=1G,name=gpu"].map(|s| s.parse().unwrap()).into();
        let (away, wall) = (away(&devices, &counters), Duration::from_millis(1500));
        let end = End { exit_code: 137, signal: Some(9), core_dumped: false, away, wall };
        (Report::new("ls".into(), end, 2, &devices, &counters), end)
    }

    /// The statistics that docs/run.md shows.
    fn documented() -> serde_json::Value {
        let (_, after) = include_str!("../../../docs/run.md").split_once("```json\n").unwrap();
        serde_json::from_str(after.split_once("```").unwrap().0).unwrap()
    }

    #[test]
    fn the_json_has_exactly_the_documented_fields() {
        let (json, documented): (serde_json::Value, _) =
            (serde_json::from_slice(&example().0.json()).unwrap(), documented());
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&json), keys(&documented));
        assert_eq!(keys(&json["fault_latency_us"]), keys(&documented["fault_latency_us"]));
        assert_eq!(keys(&json["devices"][0]), keys(&documented["devices"][0]));
        for reason in keys(&documented["pages_kept"]) {
            assert!(KeptReason::ALL.iter().any(|known| known.label() == reason), "{reason}");
        }
        assert_eq!(
            json["devices"][1],
            serde_json::json!({
                "name": "gpu", "memory_type": "private", "backend": "emulated", "capacity_bytes": 1 << 30,
                "used_bytes": 1_572_864, "peak_used_bytes": 1_572_864, "stray_pages": 0,
            })
        );
        assert_eq!(json["pages_kept"], serde_json::json!({"hole": 5, "thread_state": 1000}));
        assert_eq!(json["exit_code"], 137);
        assert_eq!(json["fault_latency_us"]["max"], 4.0);
    }

    #[test]
    fn the_summary_is_short_and_aligned() {
        let (report, end) = example();
        assert_eq!(
            report.summary(end, &"chaos=42".parse().unwrap()).to_string(),
            "hetmem: ls: killed by signal 9 after 1.50 s, policy chaos=0x2a\n\
             \x20 coherent0  coherent, 64 MiB: 0 B used at the end, 0 B at the peak\n\
             \x20 gpu        private, 1 GiB: 1.5 MiB used at the end, 1.5 MiB at the peak\n\
             \x20 pages      1,234,567 to devices, 0 to system memory; 3 MiB managed in 2 processes\n\
             \x20 kept       1,000 thread state, 5 hole\n\
             \x20 faults     1 served, p50 4.0 us, p99 4.0 us, max 4 us; 0 errors\n"
        );
    }

    #[test]
    fn the_summary_says_that_memory_thrashed_and_which_touches_were_of_samples() {
        let counters = Counters::default();
        counters.cpu_faults.store(5000, Relaxed);
        counters.sample_touches.store(1000, Relaxed);
        counters.refaults.store(3500, Relaxed);
        counters.thrashing_micros.store(2_340_000, Relaxed);
        let (_, end) = example();
        let text = Report::new("ls".into(), end, 1, &[], &counters).summary(end, &PolicySpec::default()).to_string();
        let last: Vec<&str> = text.lines().skip(3).collect();
        assert_eq!(
            last,
            [
                "  thrash  for 2.3 s more was in use than the limit leaves: 3,500 pages were back within a minute",
                "  faults  5,000 served, 1,000 of them of samples, p50 0.0 us, p99 0.0 us, max 0 us; 0 errors"
            ]
        );
    }

    #[test]
    fn the_summary_says_what_a_core_dump_lacks() {
        let (report, end) = example();
        assert_eq!(end.away.get(), 1_572_864);
        let first_line = |core_dumped, away| {
            let end = End { signal: Some(6), core_dumped, away: ByteLen::new(away), ..end };
            let text = report.summary(end, &PolicySpec::default()).to_string();
            text.lines().next().unwrap().to_owned()
        };
        let said = |how: &str| format!("hetmem: ls: killed by signal 6{how} after 1.50 s, policy manual");
        assert_eq!(first_line(true, 1_572_864), said(", core dumped without the 1.5 MiB on private devices"));
        assert_eq!(first_line(true, 0), said(", core dumped"));
        assert_eq!(first_line(false, 1_572_864), said(""));
    }

    #[test]
    fn numbers_are_grouped_and_lengths_short() {
        assert_eq!([0, 999, 1000, 1_000_000].map(grouped), ["0", "999", "1,000", "1,000,000"]);
        assert_eq!([0, 1023, 4096, 1_572_865].map(short), ["0 B", "1023 B", "4 KiB", "1.5 MiB"]);
    }
}

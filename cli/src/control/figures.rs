//! The figures of a run while it is under way: from the statistics memory and `/proc`, without asking anybody.
//!
//! *Limits:* of a process in another process namespace `/proc` says nothing here: it is taken to be there.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hetmem_agent::ledger::{self, Ledger};
use hetmem_core::policy::PolicySpec;
use hetmem_core::stats::{Counters, Histogram};
use hetmem_core::sync::Arc;
use hetmem_core::units::ByteLen;
use hetmem_devices::spec::DeviceSpec;

use super::protocol::{Interval, Latency, Packing, Place, Process, Run, State, Statistics, Sums};

/// Ticks of `/proc/PID/stat` in a second (`USER_HZ`, the same on every architecture that hetmem runs on).
const TICKS: u64 = 100;

/// The run that is asked about.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) devices: Vec<DeviceSpec>,
    pub(crate) policy: PolicySpec,
    pub(crate) stock: ByteLen,
    /// Whether each process has the limit, and the sizes of devices, for itself.
    pub(crate) per_process: bool,
    /// The machine's memory.
    pub(crate) memory: ByteLen,
    pub(crate) program: String,
    pub(crate) program_pid: u32,
    pub(crate) started: Instant,
}

/// Something to compare with later.
#[derive(Debug)]
pub(crate) struct Earlier {
    at: Instant,
    sum: Counters,
}

/// What `/proc` says of a process.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Stat {
    name: String,
    state: State,
    /// Since the machine was booted.
    started: Duration,
}

impl Subject {
    /// Which run this is.
    pub(crate) fn run(&self) -> Run {
        self.run_of(&self.processes(None))
    }

    fn run_of(&self, processes: &[Process]) -> Run {
        let sum = |of: fn(&Process) -> u64| processes.iter().map(of).fold(0, u64::saturating_add);
        Run {
            pid: std::process::id(),
            program: self.program.clone(),
            program_pid: self.program_pid,
            policy: self.policy.to_string(),
            system_limit_bytes: self.limit().map(ByteLen::get),
            per_process: self.per_process,
            seconds: self.started.elapsed().as_secs_f64(),
            processes: processes.len() as u64,
            managed_bytes: sum(|process| process.managed_bytes),
            device_bytes: sum(|process| process.device_bytes.iter().fold(0, |sum, bytes| sum.saturating_add(*bytes))),
            cpu_faults: self.ledger.sum().cpu_faults.load(Relaxed),
        }
    }

    /// What the processes, or each of them, may keep in system memory now, if the policy goes by that.
    pub(crate) fn limit(&self) -> Option<ByteLen> {
        let told = self.policy.limit()?;
        Some(self.ledger.system_limit().unwrap_or(told))
    }

    /// Everything; what processes have counted for look `look` or later is fresh.
    pub(crate) fn statistics(&self, look: u64, earlier: Option<&Earlier>) -> (Statistics, Earlier) {
        let (at, sum) = (Instant::now(), self.ledger.sum());
        let processes = self.processes(Some(look));
        let interval = earlier.map(|earlier| Interval {
            seconds: at.saturating_duration_since(earlier.at).as_secs_f64(),
            sums: sums(&sum, &earlier.sum),
        });
        let statistics = Statistics {
            run: self.run_of(&processes),
            places: self.places(&processes),
            processes,
            processes_total: self.ledger.processes(),
            total: sums(&sum, &Counters::default()),
            interval,
        };
        (statistics, Earlier { at, sum })
    }

    fn places(&self, processes: &[Process]) -> Vec<Place> {
        let each = processes.len() as u64;
        let counted: Option<Vec<u64>> = processes.iter().map(|process| process.system_bytes).collect();
        let system = Place {
            name: "system".to_owned(),
            memory_type: "system".to_owned(),
            used_bytes: counted.map(|bytes| bytes.into_iter().fold(0, u64::saturating_add)),
            capacity_bytes: self
                .limit()
                .map(|limit| limit.get().saturating_mul(if self.per_process { each } else { 1 })),
            packing: None,
        };
        let device = |(at, spec): (usize, &DeviceSpec)| Place {
            name: spec.name.clone(),
            memory_type: spec.memory_type.label().to_owned(),
            used_bytes: Some(processes.iter().fold(0, |sum, process| sum.saturating_add(process.device_bytes[at]))),
            capacity_bytes: Some(spec.size.get().saturating_mul(if self.shares(spec) { 1 } else { each })),
            packing: self.packing(at, spec, each),
        };
        std::iter::once(system).chain(self.devices.iter().enumerate().map(device)).collect()
    }

    /// How device `at` packs pages, in the `each` processes that are there now.
    fn packing(&self, at: usize, spec: &DeviceSpec, each: u64) -> Option<Packing> {
        let sum = Counters::default();
        let here = self.ledger.each_process().filter(|process| !process.is_here || present(process).is_some());
        Packing::of(spec, &sum.devices[at].packing)?;
        here.for_each(|process| sum.absorb(process.counters));
        let mut packing = Packing::of(spec, &sum.devices[at].packing)?;
        packing.memory_limit_bytes = spec.memory().get().saturating_mul(if self.shares(spec) { 1 } else { each });
        if self.shares(spec) {
            // Not all have had the most at the same time.
            packing.peak_memory_bytes = self.ledger.peak_memory(at).get();
        }
        Some(packing)
    }

    /// Whether that device has one size for the run.
    fn shares(&self, device: &DeviceSpec) -> bool {
        !self.per_process && device.backend.kind().shares_size()
    }

    /// The names of all places.
    pub(crate) fn place_names(&self) -> Vec<String> {
        std::iter::once("system".to_owned()).chain(self.devices.iter().map(|device| device.name.clone())).collect()
    }

    /// The managed processes that are there now.
    fn processes(&self, look: Option<u64>) -> Vec<Process> {
        self.ledger.each_process().filter_map(|process| self.process(&process, look)).collect()
    }

    fn process(&self, process: &ledger::Process<'_>, look: Option<u64>) -> Option<Process> {
        let stat = if process.is_here { Some(present(process)?) } else { None };
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        let counters = process.counters;
        Some(Process {
            pid: process.pid,
            name: stat.as_ref().map(|stat| stat.name.clone()),
            state: stat.map_or(State::Unknown, |stat| stat.state),
            managed_bytes: load(&counters.adopted_bytes),
            system_bytes: process.resident.map(|(pages, _)| pages.bytes().get()),
            is_fresh: process.resident.is_some_and(|(_, looked)| look.is_some_and(|look| looked >= look)),
            device_bytes: counters
                .devices
                .iter()
                .take(self.devices.len())
                .map(|device| load(&device.used_bytes))
                .collect(),
            cpu_faults: load(&counters.cpu_faults),
            pages_migrated_to_device: load(&counters.pages_migrated_to_device),
            pages_migrated_to_system: load(&counters.pages_migrated_to_system),
            errors: load(&counters.errors),
        })
    }

    /// Whether process `pid` is managed and can answer; the error says why not.
    pub(super) fn can_answer(&self, pid: u32) -> Result<(), String> {
        let found = self.ledger.each_process().filter(|process| process.is_here && process.pid == pid);
        match found.filter_map(|process| present(&process)).next() {
            None => Err(format!("no process {pid} of this run is managed here")),
            Some(stat) if stat.state == State::Stopped => Err(format!("process {pid} is stopped, and can't answer")),
            Some(_) => Ok(()),
        }
    }
}

/// What is known of a process that has counted, if it is there still, and no other has its number.
fn present(process: &ledger::Process<'_>) -> Option<Stat> {
    let stat = stat(&std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).ok()?)?;
    // It counts since after it has started, as exactly as that is told.
    (stat.started <= process.since + Duration::from_millis(1000 / TICKS)).then_some(stat)
}

/// Reads `/proc/PID/stat`; `None` of a process that has ended. The name may have anything in it.
fn stat(text: &str) -> Option<Stat> {
    let (name, rest) = (text.split_once('(')?.1).rsplit_once(") ")?;
    // The state is field 3, the number of threads 20, the start 22.
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    let threads: u64 = fields.nth(20 - 4)?.parse().ok()?;
    let ticks: u64 = fields.nth(22 - 21)?.parse().ok()?;
    let state = match state {
        "R" => State::Running,
        "T" | "t" => State::Stopped,
        // Its first thread has ended; without others it has itself.
        "Z" | "X" | "x" if threads < 2 => return None,
        _ => State::Sleeping,
    };
    let started = Duration::from_millis(ticks.checked_mul(1000 / TICKS)?);
    Some(Stat { name: name.to_owned(), state, started })
}

/// What was counted by `now`, and was not `before`.
fn sums(now: &Counters, before: &Counters) -> Sums {
    let since = |of: fn(&Counters) -> &AtomicU64| of(now).load(Relaxed).saturating_sub(of(before).load(Relaxed));
    Sums {
        pages_migrated_to_device: since(|counters| &counters.pages_migrated_to_device),
        pages_migrated_to_system: since(|counters| &counters.pages_migrated_to_system),
        bytes_copied: since(|counters| &counters.bytes_copied),
        cpu_faults: since(|counters| &counters.cpu_faults),
        sample_touches: since(|counters| &counters.sample_touches),
        refaults: since(|counters| &counters.refaults),
        thrashing_seconds: seconds(since(|counters| &counters.thrashing_micros)),
        errors: since(|counters| &counters.errors),
        fault_latency_us: latency(&now.fault_latency.since(&before.fault_latency)),
    }
}

/// So many microseconds.
pub(crate) fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

/// In microseconds; zero if there was no fault.
pub(crate) fn latency(histogram: &Histogram) -> Latency {
    let us = |nanoseconds| Duration::from_nanos(nanoseconds).as_secs_f64() * 1e6;
    Latency { p50: us(histogram.quantile(500)), p99: us(histogram.quantile(990)), max: us(histogram.max()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_a_process_does_and_since_when() {
        let line = |state: &str, threads: u32| {
            format!(
                "12 (a) b (c)) {state} 1 1 1 0 -1 4194560 90 0 0 0 0 0 0 0 20 0 {threads} 0 4200 2535424 200 18446744073709551615\n"
            )
        };
        let expected = |state| Stat { name: "a) b (c)".into(), state, started: Duration::from_secs(42) };
        for (letter, state) in
            [("R", State::Running), ("S", State::Sleeping), ("D", State::Sleeping), ("T", State::Stopped)]
        {
            assert_eq!(stat(&line(letter, 1)), Some(expected(state)));
        }
        assert_eq!(stat(&line("Z", 1)), None);
        assert_eq!(stat(&line("Z", 2)), Some(expected(State::Sleeping)));
        assert_eq!(stat("12 (a"), None);
        let own = stat(&std::fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        assert!(own.started <= hetmem_sys::thread::time_since_boot());
    }
}

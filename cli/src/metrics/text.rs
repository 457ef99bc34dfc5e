//! The metrics of a moment, in Prometheus' text format.

use std::fmt;

use hetmem_core::sync::Arc;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::control::Subject;
use crate::control::protocol::{Place, Statistics};

/// All of them.
pub(super) fn of(subject: &Subject) -> String {
    let (statistics, _) = subject.statistics(0, None);
    // Nobody is waited for: what processes count now is told the next time.
    subject.ledger.look();
    write(statistics)
}

fn write(statistics: Statistics) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Metrics(Arc::new(statistics))));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).expect("a string takes any text");
    text
}

#[derive(Debug)]
struct Metrics(Arc<Statistics>);

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (run, total) = (&self.0.run, &self.0.total);
        let mut counter = |name: &str, help: &str, unit: Option<&Unit>, value: u64| {
            encoder
                .encode_descriptor(name, help, unit, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, u64>(&value, None)
        };
        counter("hetmem_cpu_faults", "Touches of pages that were away, and were served", None, total.cpu_faults)?;
        counter("hetmem_sample_touches", "Of these, of pages that were out as samples", None, total.sample_touches)?;
        counter(
            "hetmem_refaults",
            "Pages that came home less than a minute after they had left",
            None,
            total.refaults,
        )?;
        counter(
            "hetmem_pages_migrated_to_device",
            "Pages that moved to a device",
            None,
            total.pages_migrated_to_device,
        )?;
        counter(
            "hetmem_pages_migrated_to_system",
            "Pages that moved to system memory",
            None,
            total.pages_migrated_to_system,
        )?;
        counter("hetmem_copied", "What was copied between frames", Some(&Unit::Bytes), total.bytes_copied)?;
        counter("hetmem_errors", "Failures that were not the program's, and were survived", None, total.errors)?;
        counter("hetmem_processes_managed", "Processes that were managed", None, self.0.processes_total)?;
        let help = "How long memory was turned over for nothing, in all processes";
        encoder
            .encode_descriptor("hetmem_thrashing", help, Some(&Unit::Seconds), MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, u64>(&total.thrashing_seconds, None)?;
        gauge(&mut encoder, "hetmem_processes", "Managed processes that are there", None, run.processes)?;
        let bytes = Some(&Unit::Bytes);
        gauge(&mut encoder, "hetmem_managed", "How much memory is managed", bytes, run.managed_bytes)?;
        if let Some(limit) = run.system_limit_bytes {
            gauge(&mut encoder, "hetmem_system_limit", "What may stay in system memory", bytes, limit)?;
        }
        gauge(&mut encoder, "hetmem_run", "How long the program has been running", Some(&Unit::Seconds), run.seconds)?;
        self.places(&mut encoder, "hetmem_place_used", "How much of what is managed is there", |place| {
            place.used_bytes
        })?;
        self.places(&mut encoder, "hetmem_place_capacity", "How much may be there", |place| place.capacity_bytes)?;
        let packed = self.0.places.iter().any(|place| place.packing.is_some());
        if packed {
            let of = "The memory that packed pages take";
            self.places(&mut encoder, "hetmem_place_memory", of, |place| Some(place.packing?.memory_bytes))?;
            let of = "The memory that packed pages may take";
            self.places(&mut encoder, "hetmem_place_memory_limit", of, |place| {
                Some(place.packing?.memory_limit_bytes)
            })?;
            let of = "What packed pages are, without the holes between them";
            self.places(&mut encoder, "hetmem_place_packed", of, |place| Some(place.packing?.packed_bytes))?;
        }
        let latency = total.fault_latency_us;
        let help = "How long faults take, from the touch to its return, since the start";
        let mut faults =
            encoder.encode_descriptor("hetmem_fault_latency", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for (quantile, us) in [("0.5", latency.p50), ("0.99", latency.p99), ("1", latency.max)] {
            faults.encode_family(&[("quantile", quantile)])?.encode_gauge(&(us / 1e6))?;
        }
        Ok(())
    }
}

impl Metrics {
    /// A gauge of each place of which it is known.
    fn places(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        value: fn(&Place) -> Option<u64>,
    ) -> Result<(), fmt::Error> {
        let mut places = encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
        for place in &self.0.places {
            if let Some(value) = value(place) {
                let labels = [("place", place.name.as_str()), ("memory_type", place.memory_type.as_str())];
                places.encode_family(&labels)?.encode_gauge(&value)?;
            }
        }
        Ok(())
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: impl EncodeGaugeValue,
) -> Result<(), fmt::Error> {
    encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
}

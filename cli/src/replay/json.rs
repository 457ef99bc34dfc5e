//! What came of a simulation, for programs. `format` changes whenever a reader of an older one would misread it.

use hetmem_core::units::PAGE_SIZE;
use hetmem_trace::format::{Ending, Recording};
use serde::Serialize;

use super::Done;
use super::table::share;

const FORMAT: u32 = 1;

#[derive(Serialize)]
struct Report<'a> {
    format: u32,
    file: &'a str,
    trace_format: &'a str,
    recording: Option<&'a Recording>,
    cut_off: bool,
    records: u64,
    dropped: u64,
    processes: u64,
    duration_ns: u64,
    recorded_faults: u64,
    recorded_pages_home: u64,
    recorded_pages_out: u64,
    touches: u64,
    first_touches: f64,
    pages: f64,
    /// The part of the memory that was simulated.
    sample_rate: f64,
    records_per_second: f64,
    results: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    policy: &'a str,
    textbook: bool,
    limit_bytes: u64,
    misses: f64,
    misses_error: f64,
    miss_ratio: f64,
    bytes_out: Option<f64>,
    bytes_home: Option<f64>,
}

/// All of it.
#[expect(clippy::cast_precision_loss, reason = "figures need no 64 bits")]
pub(super) fn text(done: &Done) -> String {
    let Done { survey, outcomes, .. } = done;
    let bytes = |pages: f64| pages * PAGE_SIZE as f64;
    let results = outcomes.all.iter().map(|outcome| Row {
        policy: &outcome.policy,
        textbook: !outcome.is_real,
        limit_bytes: outcome.limit.bytes().get(),
        misses: outcome.misses,
        misses_error: outcome.error,
        miss_ratio: share(outcome.misses, outcomes.touches),
        bytes_out: outcome.moved.map(|(out, _)| bytes(out)),
        bytes_home: outcome.moved.map(|(_, home)| bytes(home)),
    });
    let report = Report {
        format: FORMAT,
        file: &done.file,
        trace_format: done.played.format.name(),
        recording: done.played.recording.as_ref(),
        cut_off: done.played.ending == Ending::CutOff,
        records: survey.records,
        dropped: survey.dropped,
        processes: survey.processes,
        duration_ns: survey.duration,
        recorded_faults: survey.faults,
        recorded_pages_home: survey.home,
        recorded_pages_out: survey.moved,
        touches: outcomes.touches,
        first_touches: outcomes.first_touches,
        pages: outcomes.pages,
        sample_rate: done.sampling.rate(),
        records_per_second: survey.records as f64 / done.took.as_secs_f64().max(1e-9),
        results: results.collect(),
    };
    let mut text = serde_json::to_string_pretty(&report).expect("texts and numbers are JSON");
    text.push('\n');
    text
}

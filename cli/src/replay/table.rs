//! What came of a simulation, for people: a row for each policy and limit.

use std::fmt::Write as _;

use hetmem_trace::Format;
use hetmem_trace::format::Ending;

use super::Done;
use crate::shown;

/// All of it.
pub(super) fn text(done: &Done) -> String {
    let Done { survey, outcomes, .. } = done;
    let mut text = String::new();
    let mut line = |of: String| {
        let _infallible = writeln!(text, "{of}");
    };
    let seconds = |nanoseconds: u64| std::time::Duration::from_nanos(nanoseconds).as_secs_f64();
    line(format!(
        "{} ({}): {} records, {} touches of {:.0} pages in {:.1} s, {:.0} of them the first of their page",
        done.file,
        done.played.format.name(),
        survey.records,
        outcomes.touches,
        outcomes.pages,
        seconds(survey.duration),
        outcomes.first_touches
    ));
    if let Some(recording) = &done.played.recording {
        line(format!(
            "recorded of {} under {}: {} touches brought {} pages home, {} moved to devices; {}",
            recording.program,
            recording.policy,
            survey.faults,
            survey.home,
            survey.moved,
            shown::processes(survey.processes)
        ));
    }
    if survey.dropped > 0 {
        line(format!("note: {} records are missing in it, for which there was no room in time", survey.dropped));
    }
    if done.played.format == Format::Hetmem && done.played.ending == Ending::CutOff {
        line("note: the recording was cut off; what is there of it is sound".to_owned());
    }
    if done.played.format == Format::Oracle {
        line("note: each object counts as a page, whatever its size".to_owned());
    }
    if !done.sampling.is_all() {
        line(format!(
            "note: simulated is a part of the memory, {:.3} % of it; ± is two standard errors of that choice",
            done.sampling.rate() * 100.0
        ));
    }
    line(String::new());
    line(format!(
        "{:>12}  {:<9} {:>16} {:>9} {:>16} {:>16}",
        "limit", "policy", "misses", "of all", "MiB to devices", "MiB home"
    ));
    for limit in &done.limits {
        let mut first = true;
        for outcome in outcomes.all.iter().filter(|outcome| outcome.limit == *limit) {
            let name = if outcome.is_real { outcome.policy.clone() } else { format!("({})", outcome.policy) };
            let (out, home) =
                outcome.moved.map_or(("-".to_owned(), "-".to_owned()), |(out, home)| (mib(out), mib(home)));
            let of_all = share(outcome.misses, outcomes.touches);
            let error = if done.sampling.is_all() {
                String::new()
            } else {
                format!(" ± {:.3}", share(outcome.error, outcomes.touches) * 100.0)
            };
            let limit = if first { limit.bytes().to_string() } else { String::new() };
            let misses = format!("{:.0}", outcome.misses);
            line(format!("{limit:>12}  {name:<9} {misses:>16} {:>7.3} %{error} {out:>16} {home:>16}", of_all * 100.0));
            first = false;
        }
    }
    line(String::new());
    line("A miss finds its page on a device. In brackets: textbook policies, which see every touch and move pages at no cost.".to_owned());
    text
}

/// The share that `misses` are of all touches.
#[expect(clippy::cast_precision_loss, reason = "a share needs no 64 bits")]
pub(super) fn share(misses: f64, touches: u64) -> f64 {
    if touches == 0 { 0.0 } else { misses / touches as f64 }
}

fn mib(pages: f64) -> String {
    format!("{:.1}", pages / 256.0)
}

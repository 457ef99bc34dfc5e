//! What was found, for people: one line a row, one below it for each ratio.

use std::fmt::Write as _;

use super::report::{Outcome, Report, Section, Target, Verdict};
use super::samples::Summary;

/// What it is measured on.
pub(super) fn head(report: &Report) -> String {
    let m = &report.machine;
    let mut text = format!(
        "Linux {}, {} processors ({}), {} MiB of memory, huge pages: {}\n{} rounds; median (min .. max)\n",
        m.kernel, m.cpus, m.cpu_model, m.memory_mib, m.transparent_huge_pages, report.rounds
    );
    if report.quick {
        text.push_str("quick: these figures show that it works, and no more\n");
    }
    if let Some(load) = m.load_average_1min.filter(|load| *load > 0.5) {
        let _infallible = writeln!(text, "note: others use the machine (load average {load:.1}): spreads will be wide");
    }
    for note in &report.notes {
        let _infallible = writeln!(text, "note: {note}");
    }
    text
}

/// What one measurement found.
pub(super) fn section(section: &Section) -> String {
    let mut text = format!("\n{}: {} ({:.0} s)\n", section.name, section.what, section.seconds);
    let width = section.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(16);
    for row in &section.rows {
        let figures = spread(row.summary);
        let line = format!("  {:<width$} {figures} {:<10}{}", row.name, row.unit, verdict(row.target));
        let _infallible = writeln!(text, "{}", line.trim_end());
        for ratio in &row.ratios {
            let name = format!("  × {}", ratio.against);
            let line = format!("  {name:<width$} {} {:<10}{}", spread(ratio.summary), "", verdict(ratio.target));
            let _infallible = writeln!(text, "{}", line.trim_end());
        }
    }
    for note in &section.notes {
        let _infallible = writeln!(text, "  note: {note}");
    }
    text
}

fn spread(summary: Option<Summary>) -> String {
    let Some(s) = summary else { return format!("{:>32}", "-") };
    format!("{:>9} ({:>9} .. {:>9})", figure(s.median), figure(s.min), figure(s.max))
}

/// Three digits that matter, or all of those before the point.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn verdict(verdict: Option<Verdict>) -> String {
    let Some(Verdict { target, outcome }) = verdict else { return String::new() };
    let outcome = match outcome {
        Outcome::Met => "met",
        Outcome::MetByTheMedian => "met by the median",
        Outcome::MissedByTheMedian => "missed by the median",
        Outcome::Missed => "missed",
    };
    match target {
        Target::AtLeast(least) => format!("target ≥ {least}: {outcome}"),
        Target::AtMost(most) => format!("target ≤ {most}: {outcome}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Row;

    #[test]
    fn figures_have_three_digits_or_all_before_the_point() {
        let shown: Vec<_> = [123_456.7, 12.345, 1.2345, 0.5, 0.012_34, 0.0].into_iter().map(figure).collect();
        assert_eq!(shown, ["123457", "12.3", "1.23", "0.50", "0.0123", "0.00"]);
    }

    #[test]
    fn each_ratio_has_a_line_with_its_verdict() {
        let mut found = Section::new("x", "y".to_owned());
        let base = [2.0].into_iter().collect();
        let row = Row::new("a", "GB/s", [1.0].into_iter().collect());
        found.rows.push(row.against("memcpy", &base, Some(Target::AtLeast(0.85))));
        let text = section(&found);
        let ratio = text.lines().last().unwrap();
        assert!(
            ratio.contains("× memcpy") && ratio.contains("0.50") && ratio.ends_with("target ≥ 0.85: missed"),
            "{text}"
        );
    }
}

//! The tables: ranges, disagreements, sources.

use std::fmt::Write as _;

use hetmem_topology::model::{Claim, ClaimKind, Known, Range};
use hetmem_topology::{SourceState, Span, Topology};

use super::figures::size;

/// What is smaller is told in sum, unless it is memory.
const LARGE: u64 = 2 << 20;

/// What the short words mean.
const LEGEND: &str = "\
pfn: pfn_valid holds. map: in the direct map. coherent, private: a kernel driver can make DEVICE_COHERENT or
DEVICE_PRIVATE memory of it (later: when its holder has given it back).
";
/// The widest name of a holder in a table.
const HOLDER: usize = 27;

/// Whether a range of a device or a reservation is worth a line.
pub(super) fn is_large(range: &Range) -> bool {
    range.size_bytes >= LARGE
}

/// Whether a range has a line of its own in the table, and a box in the picture.
pub(super) fn is_listed(range: &Range) -> bool {
    let kind = range.claim.kind;
    let other = matches!(kind, ClaimKind::PciDevice | ClaimKind::Platform | ClaimKind::Reserved | ClaimKind::Acpi);
    kind != ClaimKind::PciWindow && (!other || is_large(range))
}

/// Who holds a range: `kmem dax0.0`.
pub(super) fn holder(claim: &Claim) -> String {
    match (&claim.by, claim.kind) {
        (None, kind) => kind.label().to_owned(),
        // The name says already what it is.
        (Some(by), ClaimKind::CxlWindow | ClaimKind::CxlRegion | ClaimKind::Platform | ClaimKind::PciDevice) => {
            by.clone()
        }
        (Some(by), kind) => format!("{} {by}", kind.label()),
    }
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= HOLDER {
        return name.to_owned();
    }
    name.chars().take(HOLDER - 1).chain(['…']).collect()
}

/// Lines of columns, each as wide as its widest cell; the first and the last are not padded.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let _infallible = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

/// The ranges, in the order of their addresses.
pub(super) fn ranges(found: &Topology) -> String {
    if found.ranges.is_empty() {
        return String::new();
    }
    let head = ["range", "size", "firmware", "claimed by", "struct pages", "pfn", "map", "coherent", "private", "node"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(found.ranges.iter().filter(|range| is_listed(range)).map(row));
    let mut text = aligned(&rows);
    let rest: Vec<_> = found.ranges.iter().filter(|range| !is_listed(range)).collect();
    let (windows, small): (Vec<_>, Vec<_>) = rest.into_iter().partition(|r| r.claim.kind == ClaimKind::PciWindow);
    text.push_str(LEGEND);
    let mut told = Vec::new();
    if !small.is_empty() {
        let bytes = small.iter().map(|range| range.size_bytes).sum();
        told.push(format!("{} of less than {} ({} together)", small.len(), size(LARGE), size(bytes)));
    }
    if !windows.is_empty() {
        told.push(format!("{} free in PCI windows", windows.len()));
    }
    if !told.is_empty() {
        let _infallible = writeln!(text, "not shown: {}; --json has them", told.join(", "));
    }
    text
}

fn row(range: &Range) -> Vec<String> {
    let firmware = range.firmware.map_or_else(String::new, |firmware| {
        let special = if firmware.special_purpose == Known::Unknown { "?" } else { "" };
        format!("{}{special}", firmware.kind.label())
    });
    let inferred = if range.claim.inferred { " *" } else { "" };
    vec![
        range.span().map_or_else(String::new, |span| span.to_string()),
        size(range.size_bytes),
        if firmware.is_empty() { "-".to_owned() } else { firmware },
        format!("{}{inferred}", shortened(&holder(&range.claim))),
        range.struct_pages.label().to_owned(),
        range.pfn_valid.label().to_owned(),
        range.direct_map.label().to_owned(),
        range.device_source.coherent.label().to_owned(),
        range.device_source.private.label().to_owned(),
        range.node.map_or_else(|| "-".to_owned(), |node| node.to_string()),
    ]
}

/// Where sources contradict each other.
pub(super) fn disagreements(found: &Topology) -> String {
    let mut text = String::new();
    for (i, disagreement) in found.disagreements.iter().enumerate() {
        if i == 0 {
            text.push_str("sources disagree\n");
        }
        let span = disagreement.start.zip(disagreement.end).and_then(|(start, end)| Span::new(start.get(), end.get()));
        let place = span.map_or_else(String::new, |span| format!("{span}: "));
        let _infallible = writeln!(text, "  {place}{}", disagreement.text);
    }
    text
}

/// What could not be measured.
pub(super) fn measurement_notes(found: &Topology) -> String {
    found.measurement_notes.iter().map(|note| format!("not measured: {note}\n")).collect()
}

/// How well each source could be read, with what is wrong with it below.
pub(super) fn sources(found: &Topology) -> String {
    let rows: Vec<_> = found
        .sources
        .iter()
        .map(|source| vec![format!("  {}", source.path), source.state.label().to_owned(), source.detail.clone()])
        .collect();
    let mut text = "sources\n".to_owned();
    for (line, source) in aligned(&rows).lines().zip(&found.sources) {
        let _infallible = writeln!(text, "{line}");
        for problem in &source.problems {
            let _infallible = writeln!(text, "    {problem}");
        }
    }
    if found.ranges.iter().any(|range| range.claim.inferred) {
        text.push_str("* inferred: /proc/iomem does not tell\n");
    }
    if found.sources.iter().any(|source| matches!(source.state, SourceState::Hidden | SourceState::Denied)) {
        text.push_str("root sees more\n");
    }
    text
}

//! The picture: the physical address space from its first address down to its last, as SVG that needs nothing else.
//!
//! A range is a box as high as the logarithm of its size; a gap between two is a dashed line, however long it is. The colour is the
//! holder's, and the words in the box say the same.

use hetmem_topology::model::{ClaimKind, Range};
use hetmem_topology::{PhysAddr, Topology};
use svg::Document;
use svg::node::element::{Line, Rectangle, Text, Title};

use super::figures::{performance, size};
use super::table::{holder, is_listed};

const WIDTH: u64 = 1120;
const MARGIN: u64 = 24;
/// Where the boxes begin and how wide they are; addresses stand left of them, words right of them.
const BOX: (u64, u64) = (190, 310);
const WORDS: u64 = BOX.0 + BOX.1 + 16;
const GAP: u64 = 40;
const LINE: u64 = 17;
/// The most characters that fit into a box, and beside it.
const FIT: (usize, usize) = (40, 88);

/// Draws `found`.
pub(super) fn draw(found: &Topology, name: &str) -> Document {
    let ranges: Vec<_> = found.ranges.iter().filter(|range| is_listed(range)).collect();
    let title = format!("Physical address space of {}", printable(name, 70));
    let mut picture = Document::new()
        .set("width", WIDTH)
        .set("font-family", "DejaVu Sans Mono, Menlo, Consolas, monospace")
        .set("font-size", 12)
        .set("role", "img")
        .add(Title::new(title.as_str()))
        .add(Rectangle::new().set("width", "100%").set("height", "100%").set("fill", "#ffffff"))
        .add(words(MARGIN, 34, &title).set("font-size", 17).set("font-weight", "bold"))
        .add(words(MARGIN, 56, &subtitle(found, ranges.len())).set("fill", "#555555"));
    let mut y = 80;
    let mut before: Option<PhysAddr> = None;
    for range in &ranges {
        if before.is_some_and(|end| end < range.start) {
            picture = gap(picture, y, range.start.get() - before.map_or(0, PhysAddr::get));
            y += GAP;
        }
        let height = height(range.size_bytes);
        picture = boxed(picture, range, y, height);
        y += height;
        before = Some(range.end);
    }
    if ranges.is_empty() {
        picture = picture.add(words(MARGIN, y + 12, "Nothing is known of its memory: no source could be read."));
        y += 30;
    }
    let (picture, y) = legend(picture, &ranges, y + 34);
    picture.set("height", y).set("viewBox", (0, 0, WIDTH, y))
}

fn subtitle(found: &Topology, drawn: usize) -> String {
    let ram: u64 = found.ranges.iter().filter(|range| range.claim.kind.is_ram()).map(|range| range.size_bytes).sum();
    let hidden = found.ranges.len() - drawn;
    let more = if hidden == 0 { String::new() } else { format!("; {hidden} small ranges and PCI windows not drawn") };
    let nodes = if found.nodes.len() == 1 { "1 node".to_owned() } else { format!("{} nodes", found.nodes.len()) };
    format!("{} of System RAM, {nodes}; low addresses above{more}", size(ram))
}

/// Two lines of words for the smallest, some more for each doubling.
fn height(bytes: u64) -> u64 {
    44 + 4 * u64::from((bytes >> 21).max(1).ilog2())
}

fn words(x: u64, y: u64, text: &str) -> Text {
    Text::new(text).set("x", x).set("y", y)
}

fn boxed(picture: Document, range: &Range, y: u64, height: u64) -> Document {
    let (fill, dashed) = colour(range.claim.kind);
    let mut outline = Rectangle::new()
        .set("x", BOX.0)
        .set("y", y)
        .set("width", BOX.1)
        .set("height", height)
        .set("fill", fill)
        .set("stroke", "#444444");
    if dashed {
        outline = outline.set("stroke-dasharray", "5 3");
    }
    let last = range.span().map_or(range.start, |span| span.last());
    let address =
        |text: PhysAddr, y| words(BOX.0 - 10, y, &text.to_string()).set("text-anchor", "end").set("font-size", 11);
    let middle = BOX.0 + BOX.1 / 2;
    let centre = y + height / 2;
    let mut picture = picture
        .add(outline)
        .add(address(range.start, y + 12))
        .add(address(last, y + height - 4))
        .add(
            words(middle, centre - 3, &printable(&holder(&range.claim), FIT.0))
                .set("text-anchor", "middle")
                .set("font-weight", "bold"),
        )
        .add(words(middle, centre + 13, &size(range.size_bytes)).set("text-anchor", "middle"));
    let lines = beside(range);
    let first = centre + 4 - LINE * (lines.len() as u64 - 1) / 2;
    for (i, line) in (0..).zip(&lines) {
        picture = picture.add(words(WORDS, first + LINE * i, &printable(line, FIT.1)).set("font-size", 11));
    }
    picture
}

/// What stands right of a range: a line on its pages, and one on its use, or else on its speed.
fn beside(range: &Range) -> Vec<String> {
    let mut first =
        range.firmware.map_or_else(Vec::new, |firmware| vec![format!("firmware: {}", firmware.kind.label())]);
    first.push(format!("pages: {}", range.struct_pages.label()));
    first.push(format!("pfn valid: {}", range.pfn_valid.label()));
    first.push(format!("direct map: {}", range.direct_map.label()));
    first.extend(range.node.map(|node| format!("node {node}")));
    let mut lines = vec![first.join(" · ")];
    lines.extend(
        range.specs.first().map(|spec| format!("→ {spec}")).or_else(|| range.performance.as_ref().map(performance)),
    );
    lines
}

fn gap(picture: Document, y: u64, bytes: u64) -> Document {
    let x = BOX.0 + BOX.1 / 2;
    let line = Line::new().set("x1", x).set("x2", x).set("y1", y + 3).set("y2", y + GAP - 3);
    picture
        .add(line.set("stroke", "#888888").set("stroke-width", 2).set("stroke-dasharray", "2 4"))
        .add(words(x + 12, y + GAP / 2 + 4, &format!("gap of {}", size(bytes))).set("fill", "#777777"))
}

fn legend(mut picture: Document, ranges: &[&Range], mut y: u64) -> (Document, u64) {
    let mut kinds: Vec<_> = ranges.iter().map(|range| range.claim.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for (i, kind) in (0..).zip(&kinds) {
        let x = MARGIN + 300 * (i % 3);
        let (fill, dashed) = colour(*kind);
        let mut sample = Rectangle::new().set("x", x).set("y", y - 11).set("width", 22).set("height", 13);
        sample = sample.set("fill", fill).set("stroke", "#444444");
        if dashed {
            sample = sample.set("stroke-dasharray", "5 3");
        }
        picture = picture.add(sample).add(words(x + 30, y, kind.label()));
        if i % 3 == 2 && i + 1 < kinds.len() as u64 {
            y += 22;
        }
    }
    let how = "Heights grow with the logarithm of the size; gaps are compressed.";
    (picture.add(words(MARGIN, y + 28, how).set("fill", "#555555")), y + 28 + MARGIN)
}

/// The colour of a holder, light enough for words, and whether its outline is dashed: for memory that nobody uses.
fn colour(kind: ClaimKind) -> (&'static str, bool) {
    #[expect(clippy::wildcard_enum_match_arm, reason = "who is nobody has no colour")]
    match kind {
        ClaimKind::SystemRam => ("#bcd9ef", false),
        ClaimKind::Kmem => ("#7db7e0", false),
        ClaimKind::DriverRam => ("#9fd3c7", false),
        ClaimKind::SoftReserved => ("#ffe08a", true),
        ClaimKind::Dax => ("#ffb45e", false),
        ClaimKind::DaxUnbound => ("#ffd3a0", true),
        ClaimKind::Persistent => ("#d3c0e6", false),
        ClaimKind::CxlRegion => ("#a9d98b", true),
        ClaimKind::CxlWindow | ClaimKind::HotPlugWindow => ("#e3f3d8", true),
        ClaimKind::DevicePrivate => ("#f6a5a0", false),
        ClaimKind::PciDevice => ("#e8d5f0", false),
        ClaimKind::PciWindow => ("#f5eefa", true),
        ClaimKind::Acpi => ("#e6dcc3", false),
        ClaimKind::Platform => ("#e2e2e2", false),
        ClaimKind::Reserved => ("#d0d0d0", false),
        _ => ("#ffffff", true),
    }
}

/// `text` without what XML refuses, and not longer than fits.
fn printable(text: &str, fit: usize) -> String {
    let clean = text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    let clean: String = clean.collect();
    if clean.chars().count() <= fit {
        return clean;
    }
    clean.chars().take(fit - 1).chain(['…']).collect()
}

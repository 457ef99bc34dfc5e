//! From facts to ranges of which the same holds everywhere.
//!
//! The ends of everything that any source names cut the address space into pieces. Of each piece is concluded: who holds it
//! (`claim`), its page descriptors and what follows from them (`pages`), its node (`nodes`), its use (`usage`).
//! Neighbours that are alike are made one again. Descriptors exist section by section, so the sections of the memory of the
//! boot, which are known only when the claims are, cut once more.

mod claim;
mod disagree;
mod nodes;
mod pages;
mod usage;

use std::collections::BTreeSet;
use std::path::Path;

use crate::facts::Facts;
use crate::model::{ClaimKind, Evidence, FORMAT, Firmware, FirmwareType, Known, Node, Range, Topology};
use crate::read::blocks::BlockState;
use crate::source::SourceId;
use crate::span::{Span, union};

use nodes::Domains;

/// Concludes.
pub(crate) fn reconcile(root: &Path, facts: Facts) -> Topology {
    let domains = Domains::of(&facts);
    let nodes = nodes::nodes(&facts, &domains);
    let ranges = ranges(&facts, &domains, &nodes);
    let mut disagreements = disagree::of_ranges(&facts, &ranges);
    disagreements.extend(nodes::disagreements(&facts, &domains));
    Topology {
        format: FORMAT,
        root: root.display().to_string(),
        nodes,
        ranges,
        dax_devices: facts.dax.iter().map(|device| usage::dax_device(&facts, device)).collect(),
        cxl_memories: facts.cxl.memories,
        disagreements,
        measurement_notes: Vec::new(),
        sources: facts.sources,
    }
}

/// What any source names.
fn named(facts: &Facts) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for map in [&facts.memmap, &facts.boot_params, &facts.efi] {
        spans.extend(map.iter().map(|entry| entry.span));
    }
    spans.extend(facts.resources.iter().map(|resource| resource.span));
    spans.extend(facts.dax.iter().flat_map(|device| &device.spans));
    spans.extend(facts.cxl.windows.iter().chain(&facts.cxl.regions).map(|part| part.span));
    spans.extend(facts.bars.iter().map(|bar| bar.span));
    spans.extend(facts.srat.memory.iter().map(|memory| memory.span));
    spans.extend(facts.blocks.runs.iter().map(|run| run.span));
    spans
}

/// The pieces of what `whole` covers between all `ends`.
fn pieces(whole: &[Span], ends: &BTreeSet<u64>) -> Vec<Span> {
    let mut pieces = Vec::new();
    for span in whole {
        let (mut from, last) = (span.start().get(), span.end().get());
        for &end in ends.range(from + 1..=last) {
            pieces.extend(Span::new(from, end));
            from = end;
        }
    }
    pieces
}

fn ranges(facts: &Facts, domains: &Domains, nodes: &[Node]) -> Vec<Range> {
    let spans = named(facts);
    let mut ends: BTreeSet<u64> = spans.iter().flat_map(|span| [span.start().get(), span.end().get()]).collect();
    let whole = union(spans);
    let boot = boot_sections(facts, &pieces(&whole, &ends));
    ends.extend(boot.iter().flat_map(|span| [span.start().get(), span.end().get()]));
    let mut ranges: Vec<Range> = Vec::new();
    for piece in pieces(&whole, &ends) {
        let next = range(facts, domains, nodes, &boot, piece);
        // A block or a table's entry that reaches past all memory makes no range.
        if next.claim.kind == ClaimKind::Nobody && next.evidence.iter().all(|e| e.source == SourceId::MemoryBlocks) {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.end == next.start && alike(last, &next) => {
                last.end = next.end;
                last.size_bytes += next.size_bytes;
            }
            _ => ranges.push(next),
        }
    }
    ranges
}

/// The sections that hold memory of the boot.
fn boot_sections(facts: &Facts, pieces: &[Span]) -> Vec<Span> {
    let section = facts.blocks.block_size.map_or(pages::SECTION, |block| block.min(pages::SECTION));
    let memory = pieces.iter().filter(|piece| claim::decide(facts, **piece).kind == ClaimKind::SystemRam);
    union(memory.map(|piece| piece.aligned_around(section)).collect())
}

fn alike(a: &Range, b: &Range) -> bool {
    let (b_start, b_end, b_size) = (a.start, a.end, a.size_bytes);
    *a == Range { start: b_start, end: b_end, size_bytes: b_size, ..b.clone() }
}

fn range(facts: &Facts, domains: &Domains, nodes: &[Node], boot: &[Span], at: Span) -> Range {
    let claim = claim::decide(facts, at);
    let firmware = claim::firmware_type(facts, at);
    let struct_pages = pages::struct_pages(facts, at, &claim, boot);
    let node = nodes::node_of(facts, domains, at, claim.kind.is_ram());
    let is_memory = claim.kind.is_ram()
        || matches!(
            claim.kind,
            ClaimKind::SoftReserved | ClaimKind::Dax | ClaimKind::DaxUnbound | ClaimKind::CxlRegion
        );
    let of_node = node.filter(|_| is_memory).and_then(|node| nodes.iter().find(|found| found.node == node));
    Range {
        start: at.start(),
        end: at.end(),
        size_bytes: at.len().get(),
        firmware: firmware.map(|kind| Firmware { kind, special_purpose: special_purpose(facts, at, kind) }),
        struct_pages,
        pfn_valid: struct_pages.pfn_valid(),
        direct_map: pages::direct_map(facts, at, &claim, struct_pages),
        device_source: pages::device_source(facts, at, &claim, firmware),
        node,
        performance: of_node.and_then(|node| node.performance.first().copied()),
        specs: usage::specs(facts, &claim, struct_pages, node),
        hint: usage::hint(facts, &claim, struct_pages),
        evidence: evidence(facts, at),
        claim,
    }
}

/// Whether the firmware set the special-purpose attribute. With `efi=nosoftreserve` the map that Linux shows has lost it.
fn special_purpose(facts: &Facts, at: Span, kind: FirmwareType) -> Known {
    let efi = facts.efi.iter().any(|entry| entry.special_purpose && entry.span.contains(at));
    if efi || kind == FirmwareType::SoftReserved {
        Known::Yes
    } else if kind == FirmwareType::SystemRam && facts.command_line.no_soft_reserve() {
        Known::Unknown
    } else {
        Known::No
    }
}

/// What each source says of `at`.
fn evidence(facts: &Facts, at: Span) -> Vec<Evidence> {
    let mut said = Vec::new();
    let mut add = |source, says: Option<String>| said.extend(says.map(|says| Evidence { source, says }));
    for (source, map) in [
        (SourceId::FirmwareMap, &facts.memmap),
        (SourceId::BootParams, &facts.boot_params),
        (SourceId::EfiRuntimeMap, &facts.efi),
    ] {
        let entry = map.iter().find(|entry| entry.span.contains(at));
        add(source, entry.map(|entry| entry.kind.label().to_owned()));
    }
    add(SourceId::Iomem, claim::resource(facts, at).map(|resource| resource.path.join(" > ")));
    let block = facts.blocks.runs.iter().find(|run| run.span.contains(at));
    add(
        SourceId::MemoryBlocks,
        block.map(|run| {
            let state = match run.state {
                BlockState::Online => "online",
                BlockState::Offline => "offline",
                BlockState::Unknown => "in an unknown state",
            };
            run.node.map_or_else(|| state.to_owned(), |node| format!("{state}, node {node}"))
        }),
    );
    add(
        SourceId::Dax,
        claim::dax_device(facts, at).map(|device| {
            let driver = device.driver.as_deref().unwrap_or("no driver");
            let node = device.target_node.map_or_else(String::new, |node| format!(", for node {node}"));
            format!("{}, {driver}{node}", device.name)
        }),
    );
    let part = facts.cxl.regions.iter().chain(&facts.cxl.windows).find(|part| part.span.contains(at));
    add(SourceId::Cxl, part.map(|part| part.name.clone()));
    let bar = facts.bars.iter().find(|bar| bar.span.contains(at));
    add(SourceId::Pci, bar.map(|bar| format!("{} BAR {}, {}", bar.device, bar.index, bar.class_label())));
    let memory = facts.srat.memory.iter().find(|memory| memory.span.contains(at));
    add(
        SourceId::Srat,
        memory.map(|memory| {
            let flags = [
                (memory.hot_pluggable, ", hot-pluggable"),
                (memory.non_volatile, ", non-volatile"),
                (memory.specific_purpose, ", specific-purpose"),
            ];
            let flags: String = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
            format!("proximity domain {}{flags}", memory.domain)
        }),
    );
    said
}

//! Where sources contradict each other about a range.

use crate::facts::Facts;
use crate::model::{ClaimKind, Disagreement, FirmwareType, Range, StructPages};
use crate::source::SourceId;
use crate::span::Span;

/// What the kernel takes for itself of memory that the firmware calls usable is told from this size on. Smaller pieces are the
/// first page, tables and the like; they show in the ranges.
const WORTH_TELLING: u64 = 2 << 20;

/// All that is contradictory in `ranges`; neighbours with the same contradiction are told once.
pub(super) fn of_ranges(facts: &Facts, ranges: &[Range]) -> Vec<Disagreement> {
    let mut found: Vec<Disagreement> = Vec::new();
    for range in ranges {
        let Some(span) = range.span() else { continue };
        for (sources, text) in about(facts, range, span) {
            let same = found.iter_mut().find(|d| d.text == text && d.end == Some(range.start));
            match same {
                Some(before) => before.end = Some(range.end),
                None => {
                    let (start, end) = (Some(range.start), Some(range.end));
                    found.push(Disagreement { sources, start, end, text });
                }
            }
        }
    }
    found.extend(devices(facts, ranges));
    found.extend(blocks(facts, ranges));
    found
}

type Said = (Vec<SourceId>, String);

fn about(facts: &Facts, range: &Range, span: Span) -> Vec<Said> {
    let mut said = Vec::new();
    said.extend(maps(facts, span));
    said.extend(firmware_and_kernel(facts, range));
    if super::pages::is_named_ram(facts, span)
        && facts.is_complete(SourceId::MemoryBlocks)
        && !facts.blocks.runs.iter().any(|run| run.span.intersect(span).is_some())
    {
        let text = "System RAM by /proc/iomem, without a memory block".to_owned();
        said.push((vec![SourceId::Iomem, SourceId::MemoryBlocks], text));
    }
    said
}

/// The three maps of the firmware against each other.
fn maps(facts: &Facts, span: Span) -> Option<Said> {
    let find = |map: &[crate::read::firmware::Entry]| map.iter().find(|entry| entry.span.contains(span)).copied();
    let (memmap, loader, efi) = (find(&facts.memmap), find(&facts.boot_params), find(&facts.efi));
    if let (Some(a), Some(b)) = (memmap, loader)
        && a.kind != b.kind
        && a.kind != FirmwareType::Unknown
    {
        let text = format!("{} in the firmware's map, {} in the boot loader's", a.kind.label(), b.kind.label());
        return Some((vec![SourceId::FirmwareMap, SourceId::BootParams], text));
    }
    let (efi, map) = (efi?, memmap.or(loader)?);
    (efi.special_purpose && map.kind == FirmwareType::SystemRam).then(|| {
        let why = if facts.command_line.no_soft_reserve() { ", as efi=nosoftreserve says" } else { "" };
        let text = format!("special-purpose in the EFI map, plain system RAM in the map made from it{why}");
        (vec![SourceId::EfiRuntimeMap, SourceId::FirmwareMap], text)
    })
}

/// What the firmware calls a range against what the kernel does with it.
fn firmware_and_kernel(facts: &Facts, range: &Range) -> Option<Said> {
    let firmware = range.firmware?.kind;
    let kind = range.claim.kind;
    if range.claim.inferred && kind != ClaimKind::Kmem {
        return None;
    }
    let changes: Vec<_> = facts.command_line.map_changes().collect();
    let cause = match (&changes[..], facts.was_read(SourceId::CommandLine)) {
        ([], true) => "; nothing on the command line explains it".to_owned(),
        ([], false) => "; the command line can't be read".to_owned(),
        (changes, _) => format!("; the command line has {}", changes.join(" ")),
    };
    let kernel = kind.label();
    let text = match (firmware, kind) {
        (FirmwareType::SystemRam, kind) if kind.is_ram() && kind != ClaimKind::Kmem => return None,
        (
            FirmwareType::SystemRam,
            ClaimKind::SoftReserved | ClaimKind::Dax | ClaimKind::DaxUnbound | ClaimKind::Kmem,
        ) => format!("system RAM by the firmware, special-purpose memory for the kernel ({kernel}){cause}"),
        (FirmwareType::SystemRam, ClaimKind::Nobody | ClaimKind::Reserved) if range.size_bytes >= WORTH_TELLING => {
            format!("system RAM by the firmware, and the kernel does not use it{cause}")
        }
        (FirmwareType::SystemRam, _) => return None,
        (FirmwareType::SoftReserved, ClaimKind::SystemRam) => {
            format!("soft reserved by the firmware, ordinary System RAM for the kernel{cause}")
        }
        (FirmwareType::SoftReserved | FirmwareType::Persistent | FirmwareType::Unknown, _) => return None,
        (other, kind) if kind.is_ram() => format!("{} by the firmware, {kernel} for the kernel{cause}", other.label()),
        _ => return None,
    };
    Some((vec![SourceId::FirmwareMap, SourceId::Iomem], text))
}

/// DAX devices against the kernel's resources.
fn devices(facts: &Facts, ranges: &[Range]) -> Vec<Disagreement> {
    let mut found = Vec::new();
    if !facts.is_complete(SourceId::Iomem) {
        return found;
    }
    for device in &facts.dax {
        for span in &device.spans {
            let inside = |range: &&Range| range.span().is_some_and(|r| r.intersect(*span).is_some());
            let named =
                facts.resources.iter().any(|r| r.span.intersect(*span).is_some() && r.path.contains(&device.name));
            let is_memory = ranges.iter().filter(inside).any(|range| range.struct_pages == StructPages::Online);
            let text = match device.driver.as_deref() {
                Some(driver) if !named => format!("{} is bound to {driver}, and /proc/iomem has no {0}", device.name),
                Some("kmem") if !is_memory => format!("{} is bound to kmem, and none of it is online", device.name),
                _ => continue,
            };
            let (start, end) = (Some(span.start()), Some(span.end()));
            found.push(Disagreement { sources: vec![SourceId::Dax, SourceId::Iomem], start, end, text });
        }
    }
    found
}

/// Memory blocks without memory in them.
fn blocks(facts: &Facts, ranges: &[Range]) -> Vec<Disagreement> {
    if !facts.is_complete(SourceId::Iomem) {
        return Vec::new();
    }
    let memory = |span: Span| {
        ranges.iter().any(|r| r.claim.kind.is_ram() && r.span().is_some_and(|r| r.intersect(span).is_some()))
    };
    let empty = facts.blocks.runs.iter().filter(|run| !memory(run.span));
    empty
        .map(|run| Disagreement {
            sources: vec![SourceId::MemoryBlocks, SourceId::Iomem],
            start: Some(run.span.start()),
            end: Some(run.span.end()),
            text: "memory blocks without System RAM in /proc/iomem".to_owned(),
        })
        .collect()
}

//! SRAT: which memory and which processors belong together (ACPI specification, System Resource Affinity Table).

use std::collections::BTreeSet;

use super::{entries, open, u32_at, u64_at};
use crate::source::Problems;
use crate::span::Span;

/// Entries begin behind the header, a revision and eight reserved bytes.
const BODY: usize = 48;
/// The type of entries for devices that read and write memory.
const GENERIC_INITIATOR: u8 = 5;
const ENABLED: u32 = 1;
const HOT_PLUGGABLE: u32 = 1 << 1;
const NON_VOLATILE: u32 = 1 << 2;
const SPECIFIC_PURPOSE: u32 = 1 << 3;

/// Memory of a proximity domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Memory {
    pub(crate) domain: u32,
    pub(crate) span: Span,
    pub(crate) hot_pluggable: bool,
    pub(crate) non_volatile: bool,
    pub(crate) specific_purpose: bool,
}

/// What the table says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Srat {
    pub(crate) memory: Vec<Memory>,
    /// The domains in the order in which Linux meets them: those of processors and initiators, then those of memory. Node numbers
    /// are given in this order.
    pub(crate) domains: Vec<u32>,
    /// Those of processors.
    pub(crate) processors: BTreeSet<u32>,
}

/// Reads a table.
///
/// # Errors
///
/// If nothing in `bytes` can be read, with the reason in one line.
pub(crate) fn parse(bytes: &[u8], problems: &mut Problems) -> Result<Srat, String> {
    let table = open(bytes, "SRAT", BODY, problems)?;
    let entries = entries(table.bytes, BODY, 2, |rest| rest.get(1).map(|&len| usize::from(len)), problems);
    let mut srat = Srat::default();
    let mut later = Vec::new();
    for (offset, entry) in entries {
        match entry[0] {
            1 => match memory(entry) {
                Some(Ok(memory)) => {
                    later.extend(memory.map(|memory| memory.domain));
                    srat.memory.extend(memory);
                }
                Some(Err(why)) => problems.add(format!("the memory at offset {offset}: {why}")),
                None => problems.add(format!("the memory at offset {offset} has {} bytes, and needs 40", entry.len())),
            },
            kind @ (0 | 2 | 3 | GENERIC_INITIATOR) => match initiator(kind, entry) {
                Some(domain) => {
                    srat.domains.extend(domain);
                    srat.processors.extend(domain.filter(|_| kind != GENERIC_INITIATOR));
                }
                None => problems.add(format!("the processor at offset {offset} has only {} bytes", entry.len())),
            },
            // Interrupt translation, generic ports and what came later: nothing about memory.
            _ => {}
        }
    }
    srat.domains.extend(later);
    let mut seen = BTreeSet::new();
    srat.domains.retain(|domain| seen.insert(*domain));
    Ok(srat)
}

/// A memory affinity structure, if it is enabled. `None` if it is too short; `Some(Err)` if it is no range.
fn memory(entry: &[u8]) -> Option<Result<Option<Memory>, String>> {
    let (domain, base, len) = (u32_at(entry, 2)?, u64_at(entry, 8)?, u64_at(entry, 16)?);
    let flags = u32_at(entry, 28)?;
    let has = |flag| flags & flag != 0;
    // Firmware fills tables up with entries that are disabled or empty.
    if !has(ENABLED) || len == 0 {
        return Some(Ok(None));
    }
    let Some(span) = Span::sized(base, len) else {
        return Some(Err(format!("{len:#x} bytes from {base:#x} are no range")));
    };
    Some(Ok(Some(Memory {
        domain,
        span,
        hot_pluggable: has(HOT_PLUGGABLE),
        non_volatile: has(NON_VOLATILE),
        specific_purpose: has(SPECIFIC_PURPOSE),
    })))
}

/// The domain of a processor or initiator, if it is enabled. `None` if the entry is too short.
fn initiator(kind: u8, entry: &[u8]) -> Option<Option<u32>> {
    let (domain, flags) = match kind {
        // A local APIC: the domain's first byte, and three more behind the SAPIC's number.
        0 => {
            let high = entry.get(9..12)?;
            (u32::from_le_bytes([*entry.get(2)?, high[0], high[1], high[2]]), u32_at(entry, 4)?)
        }
        // A local x2APIC.
        2 => (u32_at(entry, 4)?, u32_at(entry, 12)?),
        // The CPU interface of an arm64 GIC.
        3 => (u32_at(entry, 2)?, u32_at(entry, 10)?),
        // A generic initiator: a device that reads and writes memory.
        _ => (u32_at(entry, 4)?, u32_at(entry, 24)?),
    };
    Some((flags & ENABLED != 0).then_some(domain))
}

//! HMAT: latencies and bandwidths from initiators to memory (ACPI specification, Heterogeneous Memory Attribute Table).

use super::{entries, open, u16_at, u32_at, u64_at};
use crate::source::Problems;

/// Structures begin behind the header and four reserved bytes.
const BODY: usize = 40;
/// Linux has at most 1024 nodes; more rows or columns are no table.
const MOST_DOMAINS: usize = 1024;
/// Where the lists of a locality structure begin.
const LISTS: usize = 32;
/// The most figures that are taken from one table.
const MOST_FIGURES: usize = 1 << 20;

/// What a figure is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    ReadLatency,
    WriteLatency,
    ReadBandwidth,
    WriteBandwidth,
}

/// One figure: nanoseconds, or MB/s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Figure {
    pub(crate) initiator: u32,
    pub(crate) target: u32,
    pub(crate) kind: Kind,
    pub(crate) value: u64,
}

/// What the table says, by proximity domains.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Hmat {
    pub(crate) figures: Vec<Figure>,
    /// Memory, and the initiator that it is attached to.
    pub(crate) attached: Vec<(u32, u32)>,
    /// Memory, and the size of the cache in front of it.
    pub(crate) caches: Vec<(u32, u64)>,
}

/// Reads a table.
///
/// # Errors
///
/// If nothing in `bytes` can be read, with the reason in one line.
pub(crate) fn parse(bytes: &[u8], problems: &mut Problems) -> Result<Hmat, String> {
    let table = open(bytes, "HMAT", BODY, problems)?;
    let length = |rest: &[u8]| u32_at(rest, 4).map(|len| len as usize);
    let mut hmat = Hmat::default();
    for (offset, entry) in entries(table.bytes, BODY, 8, length, problems) {
        let read = match u16_at(entry, 0) {
            Some(0) => attached(entry).map(|found| hmat.attached.extend(found)),
            Some(1) => locality(entry, table.revision, &mut hmat.figures),
            Some(2) => cache(entry).map(|found| hmat.caches.extend(found)),
            // Structures of later revisions.
            _ => Ok(()),
        };
        if let Err(why) = read {
            problems.add(format!("the structure at offset {offset}: {why}"));
        }
    }
    Ok(hmat)
}

fn short() -> String {
    "too short for what it is".to_owned()
}

/// Memory Proximity Domain Attributes.
fn attached(entry: &[u8]) -> Result<Option<(u32, u32)>, String> {
    let read = || Some((u16_at(entry, 8)?, u32_at(entry, 12)?, u32_at(entry, 16)?));
    let (flags, initiator, memory) = read().ok_or_else(short)?;
    Ok((flags & 1 != 0).then_some((memory, initiator)))
}

/// Memory Side Cache Information. Of several levels the outermost counts: it is in front of all others.
fn cache(entry: &[u8]) -> Result<Option<(u32, u64)>, String> {
    let read = || Some((u32_at(entry, 8)?, u64_at(entry, 16)?));
    let (memory, size) = read().ok_or_else(short)?;
    Ok((size > 0).then_some((memory, size)))
}

/// System Locality Latency and Bandwidth Information: a matrix, a row for each initiator.
fn locality(entry: &[u8], revision: u8, figures: &mut Vec<Figure>) -> Result<(), String> {
    let read = || Some((*entry.get(8)?, *entry.get(9)?, u32_at(entry, 12)?, u32_at(entry, 16)?, u64_at(entry, 24)?));
    let (flags, data, rows, columns, unit) = read().ok_or_else(short)?;
    let kinds: &[Kind] = match data {
        0 => &[Kind::ReadLatency, Kind::WriteLatency],
        1 => &[Kind::ReadLatency],
        2 => &[Kind::WriteLatency],
        3 => &[Kind::ReadBandwidth, Kind::WriteBandwidth],
        4 => &[Kind::ReadBandwidth],
        5 => &[Kind::WriteBandwidth],
        other => return Err(format!("{other} is no type of data")),
    };
    let (rows, columns) = (rows as usize, columns as usize);
    if rows > MOST_DOMAINS || columns > MOST_DOMAINS {
        return Err(format!("{rows} initiators and {columns} targets are more than {MOST_DOMAINS} nodes"));
    }
    let (targets, matrix) = (LISTS + 4 * rows, LISTS + 4 * (rows + columns));
    let needed = matrix + 2 * rows * columns;
    if entry.len() < needed {
        return Err(format!("{} bytes, and {rows} × {columns} figures need {needed}", entry.len()));
    }
    // Caches in front of the memory have figures of their own.
    if flags & 0xf != 0 {
        return Ok(());
    }
    for row in 0..rows {
        for column in 0..columns {
            let initiator = u32_at(entry, LISTS + 4 * row).ok_or_else(short)?;
            let target = u32_at(entry, targets + 4 * column).ok_or_else(short)?;
            let raw = u16_at(entry, matrix + 2 * (row * columns + column)).ok_or_else(short)?;
            let Some(value) = normal(raw, unit, data <= 2, revision) else { continue };
            for &kind in kinds {
                if figures.len() == MOST_FIGURES {
                    return Err(format!("more than {MOST_FIGURES} figures: the rest was not read"));
                }
                figures.push(Figure { initiator, target, kind, value });
            }
        }
    }
    Ok(())
}

/// A figure in nanoseconds or MB/s, as Linux reads it. Zero and all ones mean that there is none.
fn normal(raw: u16, unit: u64, is_latency: bool, revision: u8) -> Option<u64> {
    if raw == 0 || raw == u16::MAX {
        return None;
    }
    let value = unit.checked_mul(u64::from(raw)).filter(|value| *value <= u64::from(u32::MAX))?;
    let value = match (revision, is_latency) {
        // The first revision counts tenths of the unit.
        (1, _) => value.div_ceil(10),
        // Later ones count picoseconds.
        (_, true) => value.div_ceil(1000),
        (_, false) => value,
    };
    (value > 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_nanoseconds_and_megabytes_a_second() {
        assert_eq!(normal(80, 1000, true, 2), Some(80));
        assert_eq!(normal(80, 100, false, 2), Some(8000));
        assert_eq!(normal(800, 1, true, 1), Some(80));
        assert_eq!(normal(0xffff, 1, true, 2), None);
        assert_eq!(normal(0, 1000, true, 2), None);
        assert_eq!(normal(2, u64::MAX, true, 2), None);
    }
}

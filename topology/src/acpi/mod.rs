//! The two ACPI tables that describe memory: SRAT and HMAT, from their bytes.
//!
//! Firmware is often wrong, and files are cut: whatever the bytes are, what can be read is read, and what can't is told in one line.
//! Nothing is taken from a table without looking whether it is there.
//!
//! *Why own parsing:* the crate `acpi` maps tables at physical addresses for kernels, and reads no HMAT; `acpi_tables`
//! writes tables and reads none; `hwlocality` needs a C library and knows no physical addresses. The tables are flat arrays.

pub(crate) mod hmat;
pub(crate) mod srat;

#[cfg(test)]
#[path = "../../tests/tables/mod.rs"]
mod tables;
#[cfg(test)]
mod tests;

use crate::source::Problems;

/// The header that all tables share.
const HEADER: usize = 36;

/// The two bytes at `offset`, little-endian, if they are there.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|raw| u16::from_le_bytes(*raw))
}

/// The four bytes at `offset`, little-endian, if they are there.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|raw| u32::from_le_bytes(*raw))
}

/// The eight bytes at `offset`, little-endian, if they are there.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|raw| u64::from_le_bytes(*raw))
}

/// A table whose header was checked.
struct Table<'a> {
    revision: u8,
    /// The table from its first byte to its last, or to where it is cut.
    bytes: &'a [u8],
}

/// The table in `bytes`, which should be a `signature` whose entries begin at offset `body`.
fn open<'a>(bytes: &'a [u8], signature: &str, body: usize, problems: &mut Problems) -> Result<Table<'a>, String> {
    let (Some(found), Some(said), Some(&revision)) = (bytes.get(..4), u32_at(bytes, 4), bytes.get(8)) else {
        return Err(format!("truncated after {} bytes: the header alone has {HEADER}", bytes.len()));
    };
    if found != signature.as_bytes() {
        return Err(format!("not an {signature}: its signature is `{}`", found.escape_ascii()));
    }
    let said = said as usize;
    if said < body {
        return Err(format!("its header says {said} bytes: an {signature} has at least {body}"));
    }
    let bytes = match bytes.get(..said) {
        Some(table) => {
            if table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) != 0 {
                problems.add("its checksum is wrong: its figures may be, too");
            }
            table
        }
        None if bytes.len() < body => {
            return Err(format!("truncated after {} of {said} bytes, before its first entry", bytes.len()));
        }
        None => {
            problems.add(format!("truncated: {} of {said} bytes are there", bytes.len()));
            bytes
        }
    };
    Ok(Table { revision, bytes })
}

/// Walks over the entries of a table from offset `from` on. `header` says the length of the entry that begins a slice, and `least` how
/// long the shortest is. An entry whose length can't be right ends the walk.
fn entries<'a>(
    table: &'a [u8],
    from: usize,
    least: usize,
    length: impl Fn(&[u8]) -> Option<usize>,
    problems: &mut Problems,
) -> Vec<(usize, &'a [u8])> {
    let mut found = Vec::new();
    let mut offset = from;
    while let Some(rest) = table.get(offset..).filter(|rest| !rest.is_empty()) {
        let Some(said) = length(rest) else {
            problems.add(format!("the entry at offset {offset} is cut in its header"));
            break;
        };
        if said < least {
            problems.add(format!("the entry at offset {offset} says {said} bytes: what follows can't be read"));
            break;
        }
        let Some(entry) = rest.get(..said) else {
            problems.add(format!("the entry at offset {offset} is cut: {} of {said} bytes are there", rest.len()));
            break;
        };
        found.push((offset, entry));
        offset += said;
    }
    found
}

//! What the firmware says of memory: the map that the kernel keeps of it, the one that the boot loader handed over, and the
//! runtime part of the EFI map.
//!
//! The first two are E820 maps on x86; an EFI boot stub translates into them and turns usable memory with the
//! special-purpose attribute into the type *soft reserved*. Neither shows what `memmap=` on the command line changed.

use serde::Serialize;

use crate::root::{Root, Unreadable, number};
use crate::source::{MAX_ENTRIES, Problems, Source, SourceId, count};
use crate::span::Span;

/// What the firmware calls a range.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FirmwareType {
    /// Usable memory.
    SystemRam,
    /// Usable memory with the special-purpose attribute: the kernel leaves it to a driver.
    SoftReserved,
    /// Persistent memory.
    Persistent,
    /// ACPI tables.
    AcpiTables,
    /// Memory that ACPI keeps over sleep.
    AcpiNvs,
    /// Code or data of the firmware's runtime services.
    Runtime,
    /// Registers of devices that the firmware uses.
    Mmio,
    /// Memory with errors.
    Unusable,
    /// Not for the system.
    Reserved,
    /// A type that this version does not know.
    Unknown,
}

impl FirmwareType {
    /// The words for it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::SystemRam => "system ram",
            Self::SoftReserved => "soft reserved",
            Self::Persistent => "persistent",
            Self::AcpiTables => "acpi tables",
            Self::AcpiNvs => "acpi nvs",
            Self::Runtime => "efi runtime",
            Self::Mmio => "efi mmio",
            Self::Unusable => "unusable",
            Self::Reserved => "reserved",
            Self::Unknown => "unknown type",
        }
    }

    fn of_memmap(text: &str) -> Self {
        match text {
            "System RAM" => Self::SystemRam,
            "Soft Reserved" => Self::SoftReserved,
            "Persistent Memory" | "Persistent Memory (legacy)" => Self::Persistent,
            "ACPI Tables" => Self::AcpiTables,
            "ACPI Non-volatile Storage" => Self::AcpiNvs,
            "Unusable memory" => Self::Unusable,
            // Older kernels write it small.
            "Reserved" | "reserved" => Self::Reserved,
            _ => Self::Unknown,
        }
    }

    const fn of_e820(code: u32) -> Self {
        match code {
            1 => Self::SystemRam,
            2 => Self::Reserved,
            3 => Self::AcpiTables,
            4 => Self::AcpiNvs,
            5 => Self::Unusable,
            7 | 12 => Self::Persistent,
            0xefff_ffff => Self::SoftReserved,
            _ => Self::Unknown,
        }
    }

    /// By the numbers of the UEFI specification.
    const fn of_efi(code: u64, special: bool) -> Self {
        match code {
            7 if special => Self::SoftReserved,
            1..=4 | 7 => Self::SystemRam,
            0 => Self::Reserved,
            5 | 6 => Self::Runtime,
            8 => Self::Unusable,
            9 => Self::AcpiTables,
            10 => Self::AcpiNvs,
            11 | 12 => Self::Mmio,
            14 => Self::Persistent,
            _ => Self::Unknown,
        }
    }
}

/// A range of a firmware's map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) span: Span,
    pub(crate) kind: FirmwareType,
    pub(crate) special_purpose: bool,
}

/// `/sys/firmware/memmap/N/{start,end,type}`.
pub(crate) fn memmap(root: &Root) -> (Source, Vec<Entry>) {
    numbered(root, SourceId::FirmwareMap, |dir| {
        let (start, end) = (root.number(&format!("{dir}/start"))?, root.number(&format!("{dir}/end"))?);
        let text = root.text(&format!("{dir}/type"))?;
        let span = Span::inclusive(start, end)
            .ok_or_else(|| Unreadable::Failed(format!("{dir}: {start:#x} to {end:#x} is no range")))?;
        let kind = FirmwareType::of_memmap(&text);
        Ok(Entry { span, kind, special_purpose: kind == FirmwareType::SoftReserved })
    })
}

/// The attribute EFI_MEMORY_SP.
const EFI_SPECIAL_PURPOSE: u64 = 0x4_0000;
/// EFI counts in pages of 4 KiB on every machine.
const EFI_PAGE: u64 = 4096;

/// `/sys/firmware/efi/runtime-map/N/{phys_addr,num_pages,type,attribute}`.
pub(crate) fn efi_runtime_map(root: &Root) -> (Source, Vec<Entry>) {
    numbered(root, SourceId::EfiRuntimeMap, |dir| {
        let field = |name: &str| root.number(&format!("{dir}/{name}"));
        let (start, pages) = (field("phys_addr")?, field("num_pages")?);
        let special_purpose = field("attribute")? & EFI_SPECIAL_PURPOSE != 0;
        let kind = FirmwareType::of_efi(field("type")?, special_purpose);
        let span = pages
            .checked_mul(EFI_PAGE)
            .and_then(|len| Span::sized(start, len))
            .ok_or_else(|| Unreadable::Failed(format!("{dir}: {pages} pages from {start:#x} are no range")))?;
        Ok(Entry { span, kind, special_purpose })
    })
}

/// A directory with a directory for each entry, named by numbers.
fn numbered(root: &Root, id: SourceId, entry: impl Fn(&str) -> Result<Entry, Unreadable>) -> (Source, Vec<Entry>) {
    let names = match root.names(id.path()) {
        Ok(names) => names,
        Err(why) => return (Source::unreadable(id, &why), Vec::new()),
    };
    let names: Vec<_> = names.into_iter().filter(|name| number(name).is_some()).collect();
    let mut problems = Problems::default();
    let mut entries = Vec::new();
    let mut denied = 0;
    for name in names.iter().take(MAX_ENTRIES) {
        match entry(&format!("{}/{name}", id.path())) {
            Ok(entry) => entries.push(entry),
            Err(Unreadable::Denied) => denied += 1,
            Err(Unreadable::Absent) => problems.add(format!("{}/{name}: lacks a file", id.path())),
            Err(Unreadable::Failed(why)) => problems.add(why),
        }
    }
    if denied > 0 && entries.is_empty() {
        return (Source::unreadable(id, &Unreadable::Denied), entries);
    }
    if denied > 0 {
        problems.add(format!("{}: root may read it", count(denied, "entry", "entries")));
    }
    if names.len() > MAX_ENTRIES {
        problems.add(format!("{} entries are too many: the first {MAX_ENTRIES} were read", names.len()));
    }
    (Source::read(id, count(entries.len(), "entry", "entries"), problems), entries)
}

/// Where `struct boot_params` counts its E820 entries, and where they are (Linux, the x86 boot protocol's zero page).
const E820_COUNT: usize = 0x1e8;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY: usize = 20;
const E820_MOST: usize = 128;
/// Where what a boot loader hands over besides is shown, each with its type and data (`arch/x86/kernel/ksysfs.c`), and the type of those that hold
/// the entries for which `struct boot_params` has no room (`SETUP_E820_EXT`).
const SETUP_DATA: &str = "/sys/kernel/boot_params/setup_data";
const SETUP_E820_EXT: u64 = 1;

/// The E820 map of `struct boot_params`, and its continuation.
pub(crate) fn boot_params(root: &Root) -> (Source, Vec<Entry>) {
    let id = SourceId::BootParams;
    let bytes = match root.bytes(id.path()) {
        Ok(bytes) => bytes,
        Err(why) => return (Source::unreadable(id, &why), Vec::new()),
    };
    let mut problems = Problems::default();
    let (mut entries, said) = e820(&bytes, &mut problems);
    if said == 0 && bytes.len() <= E820_COUNT {
        let why = format!("{}: truncated after {} bytes, before its map", id.path(), bytes.len());
        return (Source::unreadable(id, &Unreadable::Failed(why)), entries);
    }
    entries.extend(e820_continued(root, &mut problems));
    (Source::read(id, format!("{} of E820", count(entries.len(), "entry", "entries")), problems), entries)
}

/// The entries, and how many there should be.
fn e820(params: &[u8], problems: &mut Problems) -> (Vec<Entry>, usize) {
    let said = params.get(E820_COUNT).map_or(0, |&n| usize::from(n));
    let table = params.get(E820_TABLE..).unwrap_or_default();
    if said > E820_MOST {
        problems.add(format!("it counts {said} entries and has room for {E820_MOST}"));
    }
    let wanted = said.min(E820_MOST);
    let (raw, _) = table.as_chunks::<E820_ENTRY>();
    if raw.len() < wanted {
        problems.add(format!("truncated: {} of {wanted} entries are there", raw.len()));
    }
    (e820_entries(raw.iter().take(wanted), problems), said)
}

/// The entries that did not fit into `struct boot_params`.
fn e820_continued(root: &Root, problems: &mut Problems) -> Vec<Entry> {
    let mut entries = Vec::new();
    for name in root.names(SETUP_DATA).unwrap_or_default().iter().take(MAX_ENTRIES) {
        if !root.number(&format!("{SETUP_DATA}/{name}/type")).is_ok_and(|kind| kind == SETUP_E820_EXT) {
            continue;
        }
        match root.bytes(&format!("{SETUP_DATA}/{name}/data")) {
            Ok(bytes) => {
                let (raw, rest) = bytes.as_chunks::<E820_ENTRY>();
                if !rest.is_empty() {
                    problems.add(format!("{SETUP_DATA}/{name}: truncated in its last entry"));
                }
                let room = MAX_ENTRIES - entries.len();
                if raw.len() > room {
                    problems
                        .add(format!("{SETUP_DATA}/{name}: more than {MAX_ENTRIES} entries: the rest was not read"));
                }
                entries.extend(e820_entries(raw.iter().take(room), problems));
            }
            Err(why) => problems.add(format!("{SETUP_DATA}/{name}: {}", why.words())),
        }
    }
    entries
}

fn e820_entries<'a>(raw: impl Iterator<Item = &'a [u8; E820_ENTRY]>, problems: &mut Problems) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (i, raw) in raw.enumerate() {
        let (start, len) = (crate::acpi::u64_at(raw, 0), crate::acpi::u64_at(raw, 8));
        let kind = FirmwareType::of_e820(crate::acpi::u32_at(raw, 16).unwrap_or(0));
        match start.zip(len).and_then(|(start, len)| Span::sized(start, len)) {
            Some(span) => entries.push(Entry { span, kind, special_purpose: kind == FirmwareType::SoftReserved }),
            None => problems.add(format!("entry {i} is no range")),
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_purpose_is_an_attribute_of_usable_memory() {
        assert_eq!(FirmwareType::of_efi(7, true), FirmwareType::SoftReserved);
        assert_eq!(FirmwareType::of_efi(7, false), FirmwareType::SystemRam);
        assert_eq!(FirmwareType::of_efi(0, true), FirmwareType::Reserved);
        assert_eq!(FirmwareType::of_e820(0xefff_ffff), FirmwareType::SoftReserved);
        assert_eq!(FirmwareType::of_memmap("Soft Reserved"), FirmwareType::SoftReserved);
    }

    #[test]
    fn a_truncated_map_keeps_its_first_entries() {
        let mut params = vec![0; E820_TABLE];
        params[E820_COUNT] = 2;
        params.extend([0; 8]);
        params.extend(0x1000_u64.to_le_bytes());
        params.extend(1_u32.to_le_bytes());
        params.extend([0; 7]);
        let mut problems = Problems::default();
        let (entries, said) = e820(&params, &mut problems);
        assert_eq!((entries.len(), said), (1, 2));
        assert_eq!(entries[0].span, Span::new(0, 0x1000).unwrap());
        let source = Source::read(SourceId::BootParams, String::new(), problems);
        assert_eq!(source.problems, ["truncated: 1 of 2 entries are there"]);
    }
}

//! What each source said, and how well.

use serde::Serialize;

use crate::root::Unreadable;

/// The most entries that are taken from one source; what lies behind them is left out, and the source says so.
pub(crate) const MAX_ENTRIES: usize = 8192;

/// A source of facts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SourceId {
    /// The firmware's memory map, `/sys/firmware/memmap`.
    FirmwareMap,
    /// The memory map that the boot loader gave to the kernel, `/sys/kernel/boot_params/data`.
    BootParams,
    /// The part of the EFI memory map that is for the runtime, `/sys/firmware/efi/runtime-map`. Linux does not show the rest.
    EfiRuntimeMap,
    /// The kernel's resources, `/proc/iomem`.
    Iomem,
    /// Memory blocks, `/sys/devices/system/memory`.
    MemoryBlocks,
    /// NUMA nodes, `/sys/devices/system/node`.
    Nodes,
    /// DAX devices, `/sys/bus/dax/devices`.
    Dax,
    /// CXL, `/sys/bus/cxl/devices`.
    Cxl,
    /// PCI devices and their BARs, `/sys/bus/pci/devices`.
    Pci,
    /// The ACPI table that says which memory is near which processors.
    Srat,
    /// The ACPI table of latencies and bandwidths.
    Hmat,
    /// The kernel's command line, which may change the map.
    CommandLine,
}

impl SourceId {
    /// Where it is below the root.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::FirmwareMap => "/sys/firmware/memmap",
            Self::BootParams => "/sys/kernel/boot_params/data",
            Self::EfiRuntimeMap => "/sys/firmware/efi/runtime-map",
            Self::Iomem => "/proc/iomem",
            Self::MemoryBlocks => "/sys/devices/system/memory",
            Self::Nodes => "/sys/devices/system/node",
            Self::Dax => "/sys/bus/dax/devices",
            Self::Cxl => "/sys/bus/cxl/devices",
            Self::Pci => "/sys/bus/pci/devices",
            Self::Srat => "/sys/firmware/acpi/tables/SRAT",
            Self::Hmat => "/sys/firmware/acpi/tables/HMAT",
            Self::CommandLine => "/proc/cmdline",
        }
    }
}

/// How well a source could be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SourceState {
    /// All of it.
    Read,
    /// A part of it: it is truncated, or some of its entries are wrong or need privilege.
    Partial,
    /// It shows no addresses to who may not see them.
    Hidden,
    /// Permission is denied.
    Denied,
    /// Nothing in it makes sense, or it can't be read.
    Invalid,
    /// It is not there.
    Absent,
}

impl SourceState {
    /// The word for it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Partial => "partial",
            Self::Hidden => "hidden",
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::Absent => "absent",
        }
    }
}

/// A source, and what came of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Source {
    /// Which one.
    pub id: SourceId,
    /// Where it is below the root.
    pub path: &'static str,
    /// How well it could be read.
    pub state: SourceState,
    /// What was read, or why not.
    pub detail: String,
    /// What is wrong with it, each in one line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

impl Source {
    /// One of which `detail` was read, with these problems.
    pub(crate) fn read(id: SourceId, detail: String, problems: Problems) -> Self {
        let state = if problems.lines.is_empty() { SourceState::Read } else { SourceState::Partial };
        Self { id, path: id.path(), state, detail, problems: problems.into_lines() }
    }

    /// One of which nothing could be read.
    pub(crate) fn unreadable(id: SourceId, why: &Unreadable) -> Self {
        let (state, detail) = match why {
            Unreadable::Absent => (SourceState::Absent, "not there".to_owned()),
            Unreadable::Denied => (SourceState::Denied, "root may read it".to_owned()),
            Unreadable::Failed(why) => (SourceState::Invalid, why.clone()),
        };
        Self { id, path: id.path(), state, detail, problems: Vec::new() }
    }

    /// One with this state and these words.
    pub(crate) fn stated(id: SourceId, state: SourceState, detail: String, problems: Problems) -> Self {
        Self { id, path: id.path(), state, detail, problems: problems.into_lines() }
    }
}

/// What is wrong with a source. Of many problems the first are told, and how many more there are.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    lines: Vec<String>,
    more: usize,
}

impl Problems {
    const TOLD: usize = 8;

    pub(crate) fn add(&mut self, line: impl Into<String>) {
        if self.lines.len() < Self::TOLD {
            self.lines.push(line.into());
        } else {
            self.more += 1;
        }
    }

    fn into_lines(mut self) -> Vec<String> {
        if self.more > 0 {
            self.lines.push(format!("and {} more like these", self.more));
        }
        self.lines
    }
}

/// `3 entries`, `1 entry`.
pub(crate) fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

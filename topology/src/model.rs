//! What is known of a machine's memory, in the form in which it is printed.
//!
//! Serialised with serde, this is what `hetmem topology --json` prints. Field names and words are stable: what changes in them changes
//! [`FORMAT`]. Addresses are texts (`"0x880000000"`, ends are exclusive), sizes are numbers of bytes, what is not known is
//! `"unknown"` where there is a word and absent where there is a number.

use serde::Serialize;

pub use crate::read::cxl::CxlMemory;
pub use crate::read::firmware::FirmwareType;
use crate::source::{Source, SourceId};
use crate::span::{PhysAddr, Span};

/// The version of the form.
pub const FORMAT: u32 = 1;

/// All that was found of a machine's memory, and which sources said so.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Topology {
    /// [`FORMAT`].
    pub format: u32,
    /// The directory that was read.
    pub root: String,
    /// Each source, and how well it could be read.
    pub sources: Vec<Source>,
    /// The NUMA nodes: those of the system, and those that only firmware tables name.
    pub nodes: Vec<Node>,
    /// The ranges of the physical address space that any source says something of, in order and without overlap.
    pub ranges: Vec<Range>,
    /// DAX devices, also those whose addresses are not known.
    pub dax_devices: Vec<DaxDevice>,
    /// CXL memory devices.
    pub cxl_memories: Vec<CxlMemory>,
    /// Where sources disagree, each in one line.
    pub disagreements: Vec<Disagreement>,
    /// What could not be measured, and why, each in one line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub measurement_notes: Vec<String>,
}

/// Yes, no, or not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Known {
    /// It is so.
    Yes,
    /// It is not.
    No,
    /// No source says.
    Unknown,
}

impl Known {
    /// The word for it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "?",
        }
    }
}

/// Who holds a range.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ClaimKind {
    /// The kernel, as ordinary memory, since boot or by hot-plug of the platform.
    SystemRam,
    /// The kernel, as memory of a node: `dax_kmem` gave it a DAX device's memory.
    Kmem,
    /// The kernel, as memory that another driver added (virtio-mem, a GPU's).
    DriverRam,
    /// Nobody: special-purpose memory that waits for a driver.
    SoftReserved,
    /// A DAX device that programs can map: `/dev/daxX.Y`.
    Dax,
    /// A DAX device without a driver.
    DaxUnbound,
    /// Persistent memory.
    Persistent,
    /// A CXL region that nothing uses yet.
    CxlRegion,
    /// A part of a CXL window without a region.
    CxlWindow,
    /// Nobody: address space in which the platform may plug memory in.
    HotPlugWindow,
    /// A driver that made struct pages for memory that the CPU does not address (`DEVICE_PRIVATE`).
    DevicePrivate,
    /// A BAR of a PCI device.
    PciDevice,
    /// A part of a PCI bus window that no device has.
    PciWindow,
    /// ACPI tables, or memory that ACPI keeps.
    Acpi,
    /// Another device or function of the platform.
    Platform,
    /// The firmware or the kernel reserve it.
    Reserved,
    /// Nobody, although firmware names it.
    Nobody,
    /// The sources that say it need privilege, or are not there.
    Unknown,
}

impl ClaimKind {
    /// The words for it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::SystemRam => "System RAM",
            Self::Kmem => "kmem",
            Self::DriverRam => "RAM by driver",
            Self::SoftReserved => "nobody: Soft Reserved",
            Self::Dax => "device_dax",
            Self::DaxUnbound => "dax, no driver",
            Self::Persistent => "persistent memory",
            Self::CxlRegion => "CXL region",
            Self::CxlWindow => "CXL window",
            Self::HotPlugWindow => "hot-plug window",
            Self::DevicePrivate => "DEVICE_PRIVATE",
            Self::PciDevice => "PCI",
            Self::PciWindow => "PCI window",
            Self::Acpi => "ACPI",
            Self::Platform => "platform",
            Self::Reserved => "reserved",
            Self::Nobody => "nobody",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the kernel's general allocator uses it.
    #[must_use]
    pub const fn is_ram(self) -> bool {
        matches!(self, Self::SystemRam | Self::Kmem | Self::DriverRam)
    }
}

/// Who holds a range, by name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Claim {
    /// What kind of holder.
    pub kind: ClaimKind,
    /// Its name: a DAX device, a PCI device, a driver, a window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Whether it was concluded from other sources because `/proc/iomem` does not tell.
    pub inferred: bool,
}

/// The page descriptors of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StructPages {
    /// There are, and the pages are in use or free.
    Online,
    /// There are, and the pages are set aside: their memory block is offline.
    Offline,
    /// There are, in ZONE_DEVICE: a driver owns the pages.
    ZoneDevice,
    /// There are, because the range shares a section (128 MiB) with memory of the boot: `pfn_valid` holds, and no more. The pages
    /// are reserved, and `pfn_to_online_page` finds none that lies 2 MiB or more from memory.
    BootSection,
    /// There are none.
    None,
    /// No source says.
    Unknown,
}

impl StructPages {
    /// The words for it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::ZoneDevice => "ZONE_DEVICE",
            Self::BootSection => "boot section",
            Self::None => "none",
            Self::Unknown => "?",
        }
    }

    /// Whether `pfn_valid` holds: whether there is a page descriptor, of whatever kind.
    #[must_use]
    pub const fn pfn_valid(self) -> Known {
        match self {
            Self::Online | Self::Offline | Self::ZoneDevice | Self::BootSection => Known::Yes,
            Self::None => Known::No,
            Self::Unknown => Known::Unknown,
        }
    }
}

/// Whether a kernel driver could make device memory of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Possible {
    /// As things are.
    Now,
    /// When who holds it has given it back.
    AfterRelease,
    /// Never.
    No,
    /// It can't be told.
    Unknown,
}

impl Possible {
    /// The word for it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Now => "yes",
            Self::AfterRelease => "later",
            Self::No => "no",
            Self::Unknown => "?",
        }
    }
}

/// What kind of device memory a range can be in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct DeviceSource {
    /// `MEMORY_DEVICE_COHERENT`.
    pub coherent: Possible,
    /// `MEMORY_DEVICE_PRIVATE`.
    pub private: Possible,
    /// Why.
    pub why: &'static str,
}

/// What the firmware says of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Firmware {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: FirmwareType,
    /// Whether it has the special-purpose attribute.
    pub special_purpose: Known,
}

/// What one source says of a range.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Evidence {
    /// Which one.
    pub source: SourceId,
    /// What it says, in its own words.
    pub says: String,
}

/// A range of the physical address space of which the same holds everywhere.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Range {
    /// Its first address.
    pub start: PhysAddr,
    /// The first address behind it.
    pub end: PhysAddr,
    /// Its length.
    pub size_bytes: u64,
    /// What the firmware's map says; absent if that does not name the range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// Who holds it.
    pub claim: Claim,
    /// Whether it has page descriptors (`struct page`), and of which kind.
    pub struct_pages: StructPages,
    /// Whether `pfn_valid` holds.
    pub pfn_valid: Known,
    /// Whether the kernel's direct map covers it.
    pub direct_map: Known,
    /// What kind of device memory it can be.
    pub device_source: DeviceSource,
    /// Its node, or the one that it would make.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<u32>,
    /// How fast it is, by the best source; for processors, if one says that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub performance: Option<Performance>,
    /// The devices of `hetmem run` that use it. None where that would overwrite data that it keeps.
    pub specs: Vec<String>,
    /// What would let hetmem use it, if it can't now, or in another way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What each source says.
    pub evidence: Vec<Evidence>,
}

impl Range {
    /// Its addresses.
    #[must_use]
    pub fn span(&self) -> Option<Span> {
        Span::new(self.start.get(), self.end.get())
    }
}

/// Where figures are from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FigureSource {
    /// The ACPI table HMAT.
    Hmat,
    /// `/sys/devices/system/node/node*/access1`, or `access0`.
    Sysfs,
    /// Measured by `--measure`.
    Measured,
}

impl FigureSource {
    /// The word for it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Hmat => "HMAT",
            Self::Sysfs => "sysfs",
            Self::Measured => "measured",
        }
    }
}

/// How fast memory is, as seen from one node.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Performance {
    /// Who says so.
    pub source: FigureSource,
    /// From which node; absent if the source does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_node: Option<u32>,
    /// Whether that node has processors, which use the memory in place. What a device on a node without processors gets from it is another matter.
    pub from_processors: Known,
    /// Nanoseconds to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_latency_ns: Option<u64>,
    /// Nanoseconds to write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_latency_ns: Option<u64>,
    /// Megabytes (10^6) a second that can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_bandwidth_mb_s: Option<u64>,
    /// Megabytes (10^6) a second that can be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_bandwidth_mb_s: Option<u64>,
}

/// A NUMA node.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Node {
    /// Its number.
    pub node: u32,
    /// Whether the system has it; otherwise only firmware tables name it.
    pub online: bool,
    /// Its processors, as in `0-3,8`; empty if it has none.
    pub cpus: String,
    /// The memory that the kernel manages on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// What of it is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Its distances to the nodes of the system, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub distances: Vec<u64>,
    /// The cache in front of its memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_side_cache_bytes: Option<u64>,
    /// How fast its memory is, by each source that says; the best source first, and what only holds for devices last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub performance: Vec<Performance>,
    /// The device of `hetmem run` that takes its free memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<String>,
}

/// A DAX device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct DaxDevice {
    /// `dax0.0`.
    pub name: String,
    /// `device_dax`, `kmem`, or absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// What mappings of it must be aligned to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub align_bytes: Option<u64>,
    /// The node that its memory belongs to, or would make.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<u32>,
    /// Whether a source says where it is.
    pub addresses_known: bool,
    /// The devices of `hetmem run` that use it. None where that would overwrite data that it keeps.
    pub specs: Vec<String>,
    /// What a use would overwrite.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A place where sources contradict each other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Disagreement {
    /// Who.
    pub sources: Vec<SourceId>,
    /// Where; absent if it is about a node or a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<PhysAddr>,
    /// The first address behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<PhysAddr>,
    /// About what, in one line.
    pub text: String,
}

impl Topology {
    /// Adds what was measured of a node's memory: to the node, and to its ranges if nothing better is known of them.
    pub fn add_measurement(&mut self, node: u32, measured: Performance) {
        for found in self.nodes.iter_mut().filter(|found| found.node == node) {
            found.performance.push(measured);
        }
        for range in self.ranges.iter_mut().filter(|range| range.node == Some(node) && range.claim.kind.is_ram()) {
            range.performance.get_or_insert(measured);
        }
    }
}

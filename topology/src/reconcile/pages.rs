//! Page descriptors, the direct map, and what device memory a range can be.
//!
//! Facts about Linux on x86-64 that the conclusions rest on:
//!
//! * Memory of the boot has descriptors section by section. Whatever else lies in such a section has descriptors too, and
//!   `pfn_valid` holds there; `pfn_to_online_page`, and so `/proc/kpageflags`, go by units of 2 MiB and see less.
//! * Memory that is added later (kmem, a driver's) has descriptors for what was added, in units of 2 MiB.
//! * `device_dax` makes descriptors in ZONE_DEVICE when it binds; soft-reserved memory has none before.
//! * The direct map covers what was added as memory and what ZONE_DEVICE types that the CPU addresses cover.

use crate::facts::Facts;
use crate::model::{Claim, ClaimKind, DeviceSource, FirmwareType, Known, Possible, StructPages};
use crate::read::blocks::BlockState;
use crate::read::iomem::SYSTEM_RAM;
use crate::source::SourceId;
use crate::span::Span;

/// A section: what the kernel keeps descriptors for as a whole.
pub(super) const SECTION: u64 = 128 << 20;
/// The unit in which descriptors can be made later.
pub(super) const SUBSECTION: u64 = 2 << 20;
/// The kernel maps this much of the beginning of the address space on x86, whatever it is.
const FIRST: u64 = 1 << 20;

/// The descriptors of `at`. `boot` are the sections that hold memory of the boot.
pub(super) fn struct_pages(facts: &Facts, at: Span, claim: &Claim, boot: &[Span]) -> StructPages {
    if claim.kind.is_ram() {
        let block = facts.blocks.runs.iter().find(|run| run.span.intersect(at).is_some());
        return match block.map(|run| run.state) {
            Some(BlockState::Offline) => StructPages::Offline,
            Some(BlockState::Unknown) => StructPages::Unknown,
            // A driver holds the range and could not add it as memory; or the sources contradict each other.
            None if facts.is_complete(SourceId::MemoryBlocks) && !is_named_ram(facts, at) => StructPages::None,
            None if facts.is_complete(SourceId::MemoryBlocks) => StructPages::Unknown,
            // A kernel without memory hot-plug has no blocks; its memory is all online.
            Some(BlockState::Online) | None => StructPages::Online,
        };
    }
    if matches!(claim.kind, ClaimKind::Dax | ClaimKind::DevicePrivate) {
        return StructPages::ZoneDevice;
    }
    if boot.iter().any(|section| section.contains(at)) {
        return StructPages::BootSection;
    }
    // Persistent memory has descriptors in the modes `fsdax` and `devdax`, and else not.
    let untold = matches!(claim.kind, ClaimKind::Persistent | ClaimKind::Unknown);
    let no_memory_seen = boot.is_empty() && !facts.was_read(SourceId::Iomem);
    if untold || no_memory_seen { StructPages::Unknown } else { StructPages::None }
}

/// Whether `/proc/iomem` calls `at` System RAM, in words.
pub(super) fn is_named_ram(facts: &Facts, at: Span) -> bool {
    let name = super::claim::resource(facts, at).and_then(|resource| resource.path.last());
    name.is_some_and(|name| name.starts_with(SYSTEM_RAM))
}

/// Whether the direct map covers `at`.
pub(super) fn direct_map(facts: &Facts, at: Span, claim: &Claim, pages: StructPages) -> Known {
    match pages {
        StructPages::Online | StructPages::Offline => Known::Yes,
        StructPages::ZoneDevice if claim.kind == ClaimKind::DevicePrivate => Known::No,
        StructPages::ZoneDevice => Known::Yes,
        StructPages::BootSection | StructPages::None => {
            // Only x86 has such firmware maps.
            let x86 = facts.was_read(SourceId::FirmwareMap) || facts.was_read(SourceId::BootParams);
            if x86 && at.end().get() <= FIRST { Known::Yes } else { Known::No }
        }
        StructPages::Unknown => Known::Unknown,
    }
}

/// What a kernel driver could make of memory that keeps data.
const PERSISTENT: (Possible, Possible, &str) = (Possible::No, Possible::No, "persistent memory has drivers of its own");

/// What device memory a kernel driver could make of `at`.
pub(super) fn device_source(facts: &Facts, at: Span, claim: &Claim, firmware: Option<FirmwareType>) -> DeviceSource {
    let keeps_data = || claim.by.as_ref().is_some_and(|name| super::usage::keeps_data(facts, name));
    let (coherent, private, why) = match claim.kind {
        ClaimKind::DaxUnbound if keeps_data() => PERSISTENT,
        ClaimKind::SoftReserved | ClaimKind::DaxUnbound | ClaimKind::CxlRegion => {
            if at.aligned_inside(SUBSECTION).is_some() {
                (Possible::Now, Possible::Now, "memory that the CPU addresses, without an owner")
            } else {
                (Possible::No, Possible::No, "smaller than the 2 MiB in which descriptors are made")
            }
        }
        ClaimKind::Dax => (Possible::AfterRelease, Possible::AfterRelease, "device_dax has its descriptors"),
        ClaimKind::Kmem => {
            (Possible::AfterRelease, Possible::AfterRelease, "it is System RAM until it is taken offline")
        }
        ClaimKind::SystemRam if claim.inferred && super::claim::may_be_added(facts, at) => {
            (Possible::Unknown, Possible::Unknown, "kmem may have added it")
        }
        ClaimKind::SystemRam | ClaimKind::DriverRam => {
            (Possible::No, Possible::No, "System RAM is refused to drivers (-ENXIO)")
        }
        ClaimKind::DevicePrivate => (Possible::No, Possible::Now, "its driver made DEVICE_PRIVATE descriptors"),
        ClaimKind::PciDevice => pci(facts, at),
        ClaimKind::CxlWindow => (Possible::No, Possible::No, "no region is committed there"),
        ClaimKind::HotPlugWindow => (Possible::No, Possible::No, "no memory is plugged in there"),
        ClaimKind::Unknown => (Possible::Unknown, Possible::Unknown, "who holds it is not known"),
        ClaimKind::Persistent => PERSISTENT,
        ClaimKind::Nobody if firmware == Some(FirmwareType::SystemRam) => {
            (Possible::Now, Possible::Now, "memory that the kernel was told not to use")
        }
        ClaimKind::PciWindow | ClaimKind::Acpi | ClaimKind::Platform | ClaimKind::Reserved | ClaimKind::Nobody => {
            (Possible::No, Possible::No, "not memory for drivers")
        }
    };
    DeviceSource { coherent, private, why }
}

fn pci(facts: &Facts, at: Span) -> (Possible, Possible, &'static str) {
    let bar = facts.bars.iter().find(|bar| bar.span.contains(at));
    match bar {
        Some(bar) if bar.prefetchable && bar.is_accelerator() => (
            Possible::No,
            Possible::Now,
            "memory of a PCI device: its driver may; the CPU does not address it coherently",
        ),
        _ => (Possible::No, Possible::No, "registers of a device"),
    }
}

//! Who holds a range: by `/proc/iomem` where that tells, else by what the other sources allow to conclude.

use crate::facts::Facts;
use crate::model::{Claim, ClaimKind, FirmwareType};
use crate::read::blocks::{BlockState, Run};
use crate::read::cxl::Part;
use crate::read::dax;
use crate::read::firmware::Entry;
use crate::read::iomem::{Resource, SYSTEM_RAM};
use crate::root::numbered;
use crate::source::SourceId;
use crate::span::Span;

use super::pages::{SECTION, SUBSECTION};

/// What the drivers that make `DEVICE_PRIVATE` memory call the address space that they take for it, if it is not the name of
/// their PCI device.
const PRIVATE_NAMES: [&str; 5] = ["nvidia-uvm-hmm", "nouveau", "hmm_dmirror", "HMM_DMIRROR", "amdgpu"];

const SOFT_RESERVED: &str = "Soft Reserved";
const CXL_WINDOW: &str = "CXL Window";
/// What Linux calls a range whose type it has no name for (`e820_type_to_string`, arch/x86/kernel/e820.c).
const UNKNOWN_TYPE: &str = "Unknown E820 type";

/// The innermost resource around `at`.
pub(super) fn resource(facts: &Facts, at: Span) -> Option<&Resource> {
    facts.resources.iter().filter(|resource| resource.span.contains(at)).max_by_key(|resource| resource.path.len())
}

/// The DAX device that lies around `at`.
pub(super) fn dax_device(facts: &Facts, at: Span) -> Option<&dax::Device> {
    facts.dax.iter().find(|device| device.spans.iter().any(|span| span.contains(at)))
}

/// The firmware's type: by the kernel's copy of the map, else by the boot loader's. That has numbers, and the kernel not a name for each.
pub(super) fn firmware_type(facts: &Facts, at: Span) -> Option<FirmwareType> {
    let [memmap, loader] = [&facts.memmap, &facts.boot_params]
        .map(|map| map.iter().find(|entry| entry.span.contains(at)).map(|entry| entry.kind));
    memmap.filter(|kind| *kind != FirmwareType::Unknown).or(loader).or(memmap)
}

/// The firmware's map of which there is one: the kernel's copy, else the boot loader's.
fn firmware_map(facts: &Facts) -> &[Entry] {
    if facts.memmap.is_empty() { &facts.boot_params } else { &facts.memmap }
}

/// Who holds `at`.
pub(super) fn decide(facts: &Facts, at: Span) -> Claim {
    let told = resource(facts, at).and_then(|resource| by_resource(facts, at, &resource.path));
    told.unwrap_or_else(|| by_other_sources(facts, at))
}

fn claim(kind: ClaimKind, by: Option<String>) -> Claim {
    Claim { kind, by, inferred: false }
}

/// The innermost resource that is known decides; what is in it and not known is the name of a driver or a part.
fn by_resource(facts: &Facts, at: Span, path: &[String]) -> Option<Claim> {
    for (depth, name) in path.iter().enumerate().rev() {
        let outer = depth.checked_sub(1).map(|above| path[above].as_str());
        let inner = path.last().filter(|last| *last != name).cloned();
        let named = || Some(name.clone());
        if name == SYSTEM_RAM {
            // Before Linux 5.8 kmem called what it added so, too (`register_memory_resource`, mm/memory_hotplug.c).
            let added = path[..depth].iter().rev().find(|outer| dax::is_device(outer));
            let kind = if added.is_some() { ClaimKind::Kmem } else { ClaimKind::SystemRam };
            return Some(claim(kind, added.cloned()));
        }
        if let Some(driver) = Resource::adder(name) {
            if driver == "kmem" {
                return Some(claim(ClaimKind::Kmem, outer.map(str::to_owned)));
            }
            return Some(claim(ClaimKind::DriverRam, Some(driver.to_owned())));
        }
        if dax::is_device(name) {
            return Some(dax_claim(facts, name));
        }
        if numbered(name, "region").is_some() {
            return Some(
                dax_device(facts, at)
                    .map_or_else(|| claim(ClaimKind::CxlRegion, named()), |device| dax_claim(facts, &device.name)),
            );
        }
        let window = path[..=depth].iter().find(|outer| outer.starts_with(CXL_WINDOW)).cloned();
        let may_be_soft = name.starts_with(CXL_WINDOW) || name == UNKNOWN_TYPE;
        if name == SOFT_RESERVED || may_be_soft && is_soft_reserved(facts, at, &path[..depth]) {
            return Some(
                dax_device(facts, at)
                    .map_or_else(|| claim(ClaimKind::SoftReserved, window), |device| dax_claim(facts, &device.name)),
            );
        }
        if name.starts_with(CXL_WINDOW) {
            return Some(claim(ClaimKind::CxlWindow, named()));
        }
        if is_persistent_memory(name) {
            return Some(claim(ClaimKind::Persistent, inner.or_else(named)));
        }
        if name == UNKNOWN_TYPE {
            return Some(claim(ClaimKind::Unknown, named()));
        }
        if name.starts_with("ACPI") {
            return Some(claim(ClaimKind::Acpi, None));
        }
        if name.eq_ignore_ascii_case("reserved") || name == "Unusable memory" {
            return Some(claim(ClaimKind::Reserved, inner));
        }
        if name.starts_with("PCI Bus") {
            // Bridges and drivers inside a bus have names of their own; a device is found by its address.
            return Some(bar_claim(facts, at).unwrap_or_else(|| claim(ClaimKind::PciWindow, named())));
        }
        let outermost = if depth == 0 { outermost(facts, at) } else { None };
        if PRIVATE_NAMES.contains(&name.as_str()) && outermost.is_some_and(|span| is_whole(span, SUBSECTION)) {
            return Some(claim(ClaimKind::DevicePrivate, named()));
        }
        if is_pci_address(name) {
            let kind = outermost.map_or(ClaimKind::PciDevice, |span| outside_of_buses(facts, span, name));
            return Some(bar_claim(facts, at).unwrap_or_else(|| claim(kind, named())));
        }
    }
    // Something that this program has no word for: the outermost name says most.
    path.first().map(|name| claim(ClaimKind::Platform, Some(name.clone())))
}

/// Whether the firmware made special-purpose memory of `at`: a CXL window in it is not free. `around` are the resources around; from Linux 7.0 on
/// none of them says so.
fn is_soft_reserved(facts: &Facts, at: Span, around: &[String]) -> bool {
    around.iter().any(|outer| outer == SOFT_RESERVED) || firmware_type(facts, at) == Some(FirmwareType::SoftReserved)
}

/// Whether a resource of this name, and all in it, is memory that keeps data.
pub(super) fn is_persistent_memory(name: &str) -> bool {
    name.starts_with("namespace") || name.starts_with("Persistent Memory")
}

/// The resource around `at` that lies in no other.
fn outermost(facts: &Facts, at: Span) -> Option<Span> {
    facts.resources.iter().find(|found| found.path.len() == 1 && found.span.contains(at)).map(|found| found.span)
}

fn is_whole(span: Span, unit: u64) -> bool {
    span.aligned_inside(unit) == Some(span)
}

/// What `span` is, which lies in no bus's window and no known BAR, and has the name of a PCI device. For private pages a driver takes whole
/// sections of free address space, which get its device's name (`devm_request_free_mem_region`, kernel/resource.c). Registers get it, too. Smaller
/// than a subsection, or between two, there can be no descriptors of its own (`check_pfn_span`, mm/memory_hotplug.c).
fn outside_of_buses(facts: &Facts, span: Span, name: &str) -> ClaimKind {
    if !is_whole(span, SUBSECTION) {
        return ClaimKind::PciDevice;
    }
    let bars_are_known = facts.bars.iter().any(|bar| bar.device == name);
    if is_whole(span, SECTION) && bars_are_known { ClaimKind::DevicePrivate } else { ClaimKind::Unknown }
}

/// A BAR as its device's.
fn bar_claim(facts: &Facts, at: Span) -> Option<Claim> {
    let bar = facts.bars.iter().filter(|bar| bar.span.contains(at)).min_by_key(|bar| bar.span.len())?;
    let driver = bar.driver.as_ref().map_or_else(String::new, |driver| format!(" ({driver})"));
    Some(claim(ClaimKind::PciDevice, Some(format!("{} BAR {}{driver}", bar.device, bar.index))))
}

fn dax_claim(facts: &Facts, name: &str) -> Claim {
    let driver = facts.dax.iter().find(|device| device.name == name).map(|device| device.driver.as_deref());
    let kind = match driver {
        Some(Some("kmem")) => ClaimKind::Kmem,
        Some(None) => ClaimKind::DaxUnbound,
        // Who holds the resource without a device in sysfs is a device that sysfs was not recorded of.
        Some(Some(_)) | None => ClaimKind::Dax,
    };
    claim(kind, Some(name.to_owned()))
}

fn by_other_sources(facts: &Facts, at: Span) -> Claim {
    let complete = facts.is_complete(SourceId::Iomem);
    if let Some(device) = dax_device(facts, at) {
        return Claim { inferred: !complete, ..dax_claim(facts, &device.name) };
    }
    if let Some(bar) = bar_claim(facts, at) {
        return Claim { inferred: !complete, ..bar };
    }
    let firmware = firmware_type(facts, at);
    let run = facts.blocks.runs.iter().find(|run| run.span.contains(at));
    if !complete
        && let Some(run) = run.filter(|run| run.state != BlockState::Unknown)
        && let Some(claim) = by_block(facts, at, run, firmware)
    {
        return claim;
    }
    if !complete
        && firmware == Some(FirmwareType::SoftReserved)
        && let Some(device) = only_fitting_dax_device(facts, at)
    {
        return Claim { inferred: true, ..dax_claim(facts, &device.name) };
    }
    let within = |parts: &[Part]| parts.iter().find(|part| part.span.contains(at)).map(|part| part.name.clone());
    if let Some(region) = within(&facts.cxl.regions) {
        return Claim { kind: ClaimKind::CxlRegion, by: Some(region), inferred: !complete };
    }
    if let Some(window) = within(&facts.cxl.windows) {
        let kind = match firmware {
            Some(FirmwareType::SoftReserved) if complete => ClaimKind::SoftReserved,
            Some(FirmwareType::SoftReserved) => ClaimKind::Unknown,
            _ => ClaimKind::CxlWindow,
        };
        return Claim { kind, by: Some(window), inferred: !complete };
    }
    let kind = match firmware {
        // From Linux 7.0 on, nobody's soft-reserved memory is not in /proc/iomem.
        Some(FirmwareType::SoftReserved) if complete => ClaimKind::SoftReserved,
        Some(FirmwareType::SoftReserved) => ClaimKind::Unknown,
        Some(FirmwareType::SystemRam) if complete || facts.was_read(SourceId::MemoryBlocks) => ClaimKind::Nobody,
        Some(FirmwareType::SystemRam) => ClaimKind::Unknown,
        Some(FirmwareType::Persistent) => ClaimKind::Persistent,
        Some(FirmwareType::AcpiTables | FirmwareType::AcpiNvs) => ClaimKind::Acpi,
        // What a new kernel has a new name for may be memory.
        Some(FirmwareType::Unknown) => ClaimKind::Unknown,
        Some(_) => ClaimKind::Reserved,
        None if complete && is_hot_plug_window(facts, at) => ClaimKind::HotPlugWindow,
        None if complete => ClaimKind::Nobody,
        None => ClaimKind::Unknown,
    };
    Claim { kind, by: None, inferred: !complete }
}

/// Who holds what lies in a memory block, as far as it shows without resources. `None`: it is no memory of the kernel's.
fn by_block(facts: &Facts, at: Span, run: &Run, firmware: Option<FirmwareType>) -> Option<Claim> {
    let kmem = kmem_devices(facts, run);
    // All of the node is kmem's if its devices are as large; a part is if the boot found no memory in its block.
    let nodes = facts.blocks.runs.iter().filter(|other| other.node == run.node).map(|run| run.span.len().get());
    let is_whole_node = nodes.sum::<u64>() <= kmem.iter().filter_map(|device| device.size).sum();
    let block = facts.blocks.block_size.map_or(at, |block| at.aligned_around(block));
    let map = firmware_map(facts);
    let is_of_boot =
        map.iter().any(|entry| entry.kind == FirmwareType::SystemRam && entry.span.intersect(block).is_some());
    let is_added = is_whole_node || !map.is_empty() && !is_of_boot;
    let kind = match firmware {
        Some(FirmwareType::SoftReserved) => ClaimKind::Kmem,
        None | Some(FirmwareType::SystemRam | FirmwareType::Unknown | FirmwareType::Persistent)
            if is_added && !kmem.is_empty() =>
        {
            ClaimKind::Kmem
        }
        // A hole in a block of the boot's.
        None if is_of_boot => return None,
        None | Some(FirmwareType::SystemRam | FirmwareType::Unknown) => ClaimKind::SystemRam,
        Some(_) => return None,
    };
    // Which device it is can be told only if there is no choice.
    let by = if let (ClaimKind::Kmem, [only]) = (kind, &kmem[..]) { Some(only.name.clone()) } else { None };
    Some(Claim { kind, by, inferred: true })
}

/// The devices whose memory kmem has added to the node of `run`.
fn kmem_devices<'a>(facts: &'a Facts, run: &Run) -> Vec<&'a dax::Device> {
    let is_on_node = |device: &&dax::Device| device.target_node.is_some() && device.target_node == run.node;
    facts.dax.iter().filter(|device| device.driver.as_deref() == Some("kmem")).filter(is_on_node).collect()
}

/// Whether kmem may have added the System RAM at `at`: it is on the node of such a device, and without a map it can't be told from the boot's.
pub(super) fn may_be_added(facts: &Facts, at: Span) -> bool {
    let run = facts.blocks.runs.iter().find(|run| run.span.contains(at));
    firmware_map(facts).is_empty() && run.is_some_and(|run| !kmem_devices(facts, run).is_empty())
}

/// Whether `at` is where the platform may plug memory in, and nothing more: SRAT tells of such windows in advance.
fn is_hot_plug_window(facts: &Facts, at: Span) -> bool {
    facts.srat.memory.iter().any(|memory| memory.hot_pluggable && memory.span.contains(at))
}

/// The DAX device that must be the soft-reserved range around `at`, although its address is not for users to see: it is the only one of
/// that size, and the range the only one, too.
fn only_fitting_dax_device(facts: &Facts, at: Span) -> Option<&dax::Device> {
    let soft = || firmware_map(facts).iter().filter(|entry| entry.kind == FirmwareType::SoftReserved);
    let around = soft().find(|entry| entry.span.contains(at))?;
    let size = around.span.len().get();
    let mut fitting = facts.dax.iter().filter(|device| device.spans.is_empty() && device.size == Some(size));
    let device = fitting.next()?;
    let unique = fitting.next().is_none() && soft().filter(|entry| entry.span.len().get() == size).count() == 1;
    // What kmem holds shows in the memory blocks.
    (unique && device.driver.as_deref() != Some("kmem")).then_some(device)
}

/// `0000:00:01.0`.
fn is_pci_address(name: &str) -> bool {
    let parts: Vec<_> = name.split([':', '.']).collect();
    matches!(parts[..], [domain, bus, device, function] if domain.len() >= 4 && bus.len() == 2 && device.len() == 2
        && function.len() == 1)
        && name.bytes().all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_recognised() {
        assert!(is_pci_address("0000:00:01.0") && is_pci_address("10000:e1:00.7"));
        assert!(!is_pci_address("AMZNC10C:00") && !is_pci_address("PCI Bus 0000:00"));
    }
}

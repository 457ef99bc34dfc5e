//! Who holds a range: by `/proc/iomem` where that tells, else by what the other sources allow to conclude.

use crate::facts::Facts;
use crate::model::{Claim, ClaimKind, FirmwareType};
use crate::read::blocks::BlockState;
use crate::read::dax;
use crate::read::iomem::{Resource, SYSTEM_RAM};
use crate::root::numbered;
use crate::source::SourceId;
use crate::span::Span;

/// What the drivers that make `DEVICE_PRIVATE` memory call the address space that they take for it, if it is not the name of
/// their PCI device.
const PRIVATE_NAMES: [&str; 5] = ["nvidia-uvm-hmm", "nouveau", "hmm_dmirror", "HMM_DMIRROR", "amdgpu"];

/// The innermost resource around `at`.
pub(super) fn resource(facts: &Facts, at: Span) -> Option<&Resource> {
    facts.resources.iter().filter(|resource| resource.span.contains(at)).max_by_key(|resource| resource.path.len())
}

/// The DAX device that lies around `at`.
pub(super) fn dax_device(facts: &Facts, at: Span) -> Option<&dax::Device> {
    facts.dax.iter().find(|device| device.spans.iter().any(|span| span.contains(at)))
}

/// The firmware's type: by the kernel's copy of the map, else by the boot loader's.
pub(super) fn firmware_type(facts: &Facts, at: Span) -> Option<FirmwareType> {
    let [memmap, loader] = [&facts.memmap, &facts.boot_params]
        .map(|map| map.iter().find(|entry| entry.span.contains(at)).map(|entry| entry.kind));
    memmap.or(loader)
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
            return Some(claim(ClaimKind::SystemRam, None));
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
        if name.starts_with("CXL Window") {
            return Some(claim(ClaimKind::CxlWindow, named()));
        }
        if name.starts_with("namespace") || name.starts_with("Persistent Memory") {
            return Some(claim(ClaimKind::Persistent, inner.or_else(named)));
        }
        if name == "Soft Reserved" {
            return Some(
                dax_device(facts, at)
                    .map_or_else(|| claim(ClaimKind::SoftReserved, None), |device| dax_claim(facts, &device.name)),
            );
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
        if PRIVATE_NAMES.contains(&name.as_str()) && depth == 0 {
            return Some(claim(ClaimKind::DevicePrivate, named()));
        }
        if is_pci_address(name) {
            // A PCI device's name outside of all buses is address space that its driver took for private pages.
            let bus = path[..depth].iter().any(|outer| outer.starts_with("PCI Bus"));
            let known = bus || facts.bars.iter().any(|bar| bar.span.contains(at));
            let kind = if known { ClaimKind::PciDevice } else { ClaimKind::DevicePrivate };
            return Some(bar_claim(facts, at).unwrap_or_else(|| claim(kind, named())));
        }
    }
    // Something that this program has no word for: the outermost name says most.
    path.first().map(|name| claim(ClaimKind::Platform, Some(name.clone())))
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
    let inferred = |kind, by| Claim { kind, by, inferred: true };
    if let Some(device) = dax_device(facts, at) {
        return Claim { inferred: !complete, ..dax_claim(facts, &device.name) };
    }
    if let Some(bar) = bar_claim(facts, at) {
        return Claim { inferred: !complete, ..bar };
    }
    let firmware = firmware_type(facts, at);
    let block = facts.blocks.runs.iter().find(|run| run.span.contains(at)).map(|run| run.state);
    if !complete && matches!(block, Some(BlockState::Online | BlockState::Offline)) {
        match firmware {
            Some(FirmwareType::SystemRam) | None => return inferred(ClaimKind::SystemRam, None),
            Some(FirmwareType::SoftReserved) => {
                let kmem: Vec<_> = facts.dax.iter().filter(|d| d.driver.as_deref() == Some("kmem")).collect();
                // Which device it is can be told only if there is no choice.
                let by = if let [only] = kmem[..] { Some(only.name.clone()) } else { None };
                return inferred(ClaimKind::Kmem, by);
            }
            Some(_) => {}
        }
    }
    if !complete
        && firmware == Some(FirmwareType::SoftReserved)
        && let Some(device) = only_fitting_dax_device(facts, at)
    {
        return Claim { inferred: true, ..dax_claim(facts, &device.name) };
    }
    for (parts, kind) in [(&facts.cxl.regions, ClaimKind::CxlRegion), (&facts.cxl.windows, ClaimKind::CxlWindow)] {
        if let Some(part) = parts.iter().find(|part| part.span.contains(at)) {
            return Claim { kind, by: Some(part.name.clone()), inferred: !complete };
        }
    }
    let kind = match firmware {
        // From Linux 7.0 on, nobody's soft-reserved memory is not in /proc/iomem.
        Some(FirmwareType::SoftReserved) if complete => ClaimKind::SoftReserved,
        Some(FirmwareType::SoftReserved) => ClaimKind::Unknown,
        Some(FirmwareType::SystemRam) if complete || facts.was_read(SourceId::MemoryBlocks) => ClaimKind::Nobody,
        Some(FirmwareType::SystemRam) => ClaimKind::Unknown,
        Some(FirmwareType::Persistent) => ClaimKind::Persistent,
        Some(FirmwareType::AcpiTables | FirmwareType::AcpiNvs) => ClaimKind::Acpi,
        Some(_) => ClaimKind::Reserved,
        None if complete => ClaimKind::Nobody,
        None => ClaimKind::Unknown,
    };
    Claim { kind, by: None, inferred: !complete }
}

/// The DAX device that must be the soft-reserved range around `at`, although its address is not for users to see: it is the only one of
/// that size, and the range the only one, too.
fn only_fitting_dax_device(facts: &Facts, at: Span) -> Option<&dax::Device> {
    let map = if facts.memmap.is_empty() { &facts.boot_params } else { &facts.memmap };
    let soft = || map.iter().filter(|entry| entry.kind == FirmwareType::SoftReserved);
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

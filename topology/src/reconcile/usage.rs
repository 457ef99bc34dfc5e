//! Which devices of `hetmem run` use a range, and what would let one.

use crate::facts::Facts;
use crate::model::{Claim, ClaimKind, DaxDevice, FirmwareType, Known, StructPages};
use crate::read::dax;
use crate::read::firmware::Entry;
use crate::span::Span;

use super::claim::is_persistent_memory;

/// Nodes with less free memory than this are no devices.
const LEAST: u64 = 2 << 20;

/// The spec of the device that takes the free memory of `node`, in whole GiB or MiB.
pub(super) fn node_spec(node: u32, free: u64) -> Option<String> {
    let size = match (free >> 30, free >> 20) {
        (gib, _) if gib >= 1 => format!("{gib}G"),
        (_, mib) if free >= LEAST => format!("{}M", mib & !1),
        _ => return None,
    };
    Some(format!("coherent:node={node},size={size}"))
}

/// Mappings of a DAX device are shared and in blocks of its alignment, which no program may notice that doesn't know of it: it is private memory.
fn dax_specs(name: &str) -> Vec<String> {
    vec![format!("private:dax=/dev/{name}")]
}

/// Whether the memory of a DAX device keeps data of its owner, or may do so: then a use is named with what it does, and not proposed.
pub(super) fn keeps_data(facts: &Facts, name: &str) -> bool {
    let device = facts.dax.iter().find(|device| device.name == name);
    match device.map_or(Known::Unknown, |device| device.persistent) {
        Known::Yes => return true,
        Known::No => return false,
        Known::Unknown => {}
    }
    let spans = device.map_or(&[][..], |device| &device.spans);
    let below = |span: Span| spans.iter().any(|own| own.intersect(span).is_some());
    let is_named = |path: &[String]| path.iter().any(|found| found == name);
    let keeps = |path: &[String]| path.iter().any(|found| is_persistent_memory(found));
    // At addresses that are not shown, it may be any that is large enough.
    let is_unlocated = spans.is_empty() && !facts.resources.iter().any(|found| is_named(&found.path));
    let size = device.and_then(|device| device.size).unwrap_or(0);
    let may_be = |entry: &Entry| below(entry.span) || is_unlocated && entry.span.len().get() >= size;
    let mut maps = facts.memmap.iter().chain(&facts.boot_params);
    facts.resources.iter().any(|found| keeps(&found.path) && (is_named(&found.path) || below(found.span)))
        || maps.any(|entry| entry.kind == FirmwareType::Persistent && may_be(entry))
        || facts.srat.memory.iter().any(|memory| memory.non_volatile && below(memory.span))
}

/// The specs that use what `claim` holds on `node`.
pub(super) fn specs(facts: &Facts, claim: &Claim, pages: StructPages, node: Option<u32>) -> Vec<String> {
    match (claim.kind, &claim.by) {
        (ClaimKind::Dax, Some(name)) if !keeps_data(facts, name) => dax_specs(name),
        (kind, _) if kind.is_ram() && pages == StructPages::Online => {
            let found = node.and_then(|node| facts.nodes.iter().find(|found| found.id == node));
            found.and_then(|node| node_spec(node.id, node.free?)).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// What would let hetmem use what `claim` holds, or use it in another way.
pub(super) fn hint(facts: &Facts, claim: &Claim, pages: StructPages) -> Option<String> {
    if claim.kind.is_ram() && pages == StructPages::Offline {
        return Some(
            "echo online_movable > /sys/devices/system/memory/memoryN/state, for each of its blocks".to_owned(),
        );
    }
    let name = claim.by.as_deref().unwrap_or("daxX.Y");
    #[expect(clippy::wildcard_enum_match_arm, reason = "only these wait for something that their owner can do")]
    match claim.kind {
        // dax_hmem leaves it to the CXL drivers (`hmem_register_device`, drivers/dax/hmem/hmem.c).
        ClaimKind::SoftReserved if claim.by.is_some() => Some(
            "modprobe cxl_acpi cxl_pci dax_cxl device_dax: the region that the firmware made becomes a DAX device, or a node if kmem takes it"
                .to_owned(),
        ),
        ClaimKind::SoftReserved => {
            Some("modprobe dax_hmem device_dax: it becomes a DAX device, or a node if kmem takes it".to_owned())
        }
        ClaimKind::Dax if keeps_data(facts, name) => Some(format!("{}; {}", overwriting(name), other_ways(name))),
        ClaimKind::Dax => Some(other_ways(name)),
        ClaimKind::DaxUnbound => {
            let warning = if keeps_data(facts, name) { format!("; {}", overwriting(name)) } else { String::new() };
            Some(format!("daxctl reconfigure-device --mode=devdax {name}: it becomes /dev/{name}{warning}"))
        }
        ClaimKind::CxlRegion => Some("modprobe dax_cxl device_dax: it becomes /dev/daxX.Y".to_owned()),
        ClaimKind::CxlWindow => Some("cxl create-region, if a memory device has capacity left".to_owned()),
        _ => None,
    }
}

/// The ways to use a DAX device without a private device.
fn other_ways(name: &str) -> String {
    let own = format!("coherent:dax=/dev/{name} for memory that hetmem maps");
    format!("{own}; daxctl reconfigure-device --mode=system-ram {name}: a node, for coherent:node=N")
}

/// The word of warning, with the spec that is not proposed.
fn overwriting(name: &str) -> String {
    format!("persistent memory, whose data is overwritten by every use: private:dax=/dev/{name}")
}

/// A DAX device, as it is printed.
pub(super) fn dax_device(facts: &Facts, device: &dax::Device) -> DaxDevice {
    let (is_mapped, keeps) = (device.driver.as_deref() == Some("device_dax"), keeps_data(facts, &device.name));
    DaxDevice {
        name: device.name.clone(),
        driver: device.driver.clone(),
        size_bytes: device.size,
        align_bytes: device.align,
        node: device.target_node,
        addresses_known: !device.spans.is_empty(),
        specs: if is_mapped && !keeps { dax_specs(&device.name) } else { Vec::new() },
        hint: (is_mapped && keeps).then(|| overwriting(&device.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_spec_takes_what_is_free_in_whole_units() {
        assert_eq!(node_spec(2, (5 << 30) + 4096).as_deref(), Some("coherent:node=2,size=5G"));
        assert_eq!(node_spec(0, (7 << 20) + 4096).as_deref(), Some("coherent:node=0,size=6M"));
        assert_eq!(node_spec(0, 1 << 20), None);
    }
}

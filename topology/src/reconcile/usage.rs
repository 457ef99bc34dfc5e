//! Which devices of `hetmem run` use a range, and what would let one.

use crate::facts::Facts;
use crate::model::{Claim, ClaimKind, DaxDevice, StructPages};
use crate::read::dax;

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

/// The specs that use what `claim` holds on `node`.
pub(super) fn specs(facts: &Facts, claim: &Claim, pages: StructPages, node: Option<u32>) -> Vec<String> {
    match (claim.kind, &claim.by) {
        (ClaimKind::Dax, Some(name)) => dax_specs(name),
        (kind, _) if kind.is_ram() && pages == StructPages::Online => {
            let found = node.and_then(|node| facts.nodes.iter().find(|found| found.id == node));
            found.and_then(|node| node_spec(node.id, node.free?)).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// What would let hetmem use what `claim` holds, or use it in another way.
pub(super) fn hint(claim: &Claim, pages: StructPages) -> Option<String> {
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
        ClaimKind::Dax => {
            let own = format!("coherent:dax=/dev/{name} for memory that hetmem maps");
            Some(format!("{own}; daxctl reconfigure-device --mode=system-ram {name}: a node, for coherent:node=N"))
        }
        ClaimKind::DaxUnbound => {
            Some(format!("daxctl reconfigure-device --mode=devdax {name}: it becomes /dev/{name}"))
        }
        ClaimKind::CxlRegion => Some("modprobe dax_cxl device_dax: it becomes /dev/daxX.Y".to_owned()),
        ClaimKind::CxlWindow => Some("cxl create-region, if a memory device has capacity left".to_owned()),
        _ => None,
    }
}

/// A DAX device, as it is printed.
pub(super) fn dax_device(device: &dax::Device) -> DaxDevice {
    DaxDevice {
        name: device.name.clone(),
        driver: device.driver.clone(),
        size_bytes: device.size,
        align_bytes: device.align,
        node: device.target_node,
        addresses_known: !device.spans.is_empty(),
        specs: match device.driver.as_deref() {
            Some("device_dax") => dax_specs(&device.name),
            _ => Vec::new(),
        },
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

//! Recorded machines: what is concluded of each.
//!
//! `qemu-dax` was recorded from a virtual machine with a stock Linux 6.12. The other trees below `fixtures` are in the form of
//! real ones, shortened: memory blocks of 2 GiB, few devices. Their ACPI tables are
//! written by `tables`; with `HETMEM_WRITE_FIXTURES` set, the test that compares them writes them anew.

mod tables;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use hetmem_topology::model::{ClaimKind, Range};
use hetmem_topology::{Root, SourceId, SourceState, Topology};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn look(machine: &str) -> Topology {
    hetmem_topology::look(&Root::open(&fixtures().join(machine)).unwrap())
}

fn state(found: &Topology, id: SourceId) -> SourceState {
    found.sources.iter().find(|source| source.id == id).unwrap().state
}

/// The ranges that are memory or could be, a line each: addresses, firmware, holder, descriptors, `pfn_valid`, direct map, whether
/// a driver could make coherent and private memory of it, node, and the specs.
fn summary(found: &Topology) -> String {
    let mut text = String::new();
    for range in &found.ranges {
        let little = matches!(
            range.claim.kind,
            ClaimKind::Reserved | ClaimKind::Acpi | ClaimKind::Platform | ClaimKind::PciWindow
        ) || range.size_bytes < 2 << 20;
        if !little {
            writeln!(text, "{}", line(range)).unwrap();
        }
    }
    text
}

fn line(range: &Range) -> String {
    let firmware = range.firmware.map_or("-", |firmware| firmware.kind.label());
    let by = range.claim.by.as_ref().map_or_else(String::new, |by| format!(" {by}"));
    let inferred = if range.claim.inferred { "*" } else { "" };
    let node = range.node.map_or_else(|| "-".to_owned(), |node| node.to_string());
    format!(
        "{} | {firmware} | {}{by}{inferred} | {} {} {} | {} {} | {node} | {}",
        range.span().unwrap(),
        range.claim.kind.label(),
        range.struct_pages.label(),
        range.pfn_valid.label(),
        range.direct_map.label(),
        range.device_source.coherent.label(),
        range.device_source.private.label(),
        range.specs.join(" ")
    )
    .trim_end()
    .to_owned()
}

#[track_caller]
fn is(machine: &str, expected: &str) {
    let found = look(machine);
    let expected: String = expected.trim().lines().map(|line| format!("{}\n", line.trim())).collect();
    assert_eq!(summary(&found), expected, "{machine}");
}

const RAM: &str = "\
00100000-7dffffff | system ram | System RAM | online yes yes | no no | 0 | coherent:node=0,size=5G
100000000-27fffffff | system ram | System RAM | online yes yes | no no | 0 | coherent:node=0,size=5G
";

/// The kernel knows the range and gave it no descriptors; the firmware's tables say which node it would make, and how fast.
#[test]
fn soft_reserved_memory_before_the_claim_has_no_valid_pfns() {
    let line = "280000000-47fffffff | soft reserved | nobody: Soft Reserved | none no no | yes yes | 1 |";
    is("soft-reserved", &format!("{RAM}{line}"));
    let found = look("soft-reserved");
    assert_eq!(found.disagreements, []);
    let soft = found.ranges.iter().find(|range| range.claim.kind == ClaimKind::SoftReserved).unwrap();
    let figures = soft.performance.unwrap();
    assert_eq!((figures.read_latency_ns, figures.write_bandwidth_mb_s), (Some(160), Some(40_000)));
    assert!(soft.hint.as_ref().unwrap().contains("dax_hmem"));
}

/// From Linux 7.0 on `/proc/iomem` has no "Soft Reserved": the other sources must do.
#[test]
fn soft_reserved_memory_is_found_without_iomem() {
    assert_eq!(summary(&look("soft-reserved-7.0")), summary(&look("soft-reserved")));
}

#[test]
fn soft_reserved_memory_claimed_by_dax_has_zone_device_pages() {
    let specs = "private:dax=/dev/dax0.0";
    let line = "280000000-47fffffff | soft reserved | device_dax dax0.0 | ZONE_DEVICE yes yes | later later | 1 |";
    is("soft-reserved-dax", &format!("{RAM}{line} {specs}"));
    assert_eq!(look("soft-reserved-dax").disagreements, []);
}

#[test]
fn soft_reserved_memory_onlined_by_kmem_is_a_node() {
    let line = "280000000-47fffffff | soft reserved | kmem dax0.0 | online yes yes | later later | 1 |";
    is("soft-reserved-kmem", &format!("{RAM}{line} coherent:node=1,size=7G"));
    let found = look("soft-reserved-kmem");
    // HMAT and what the kernel made of it agree.
    assert_eq!(found.disagreements, []);
    assert_eq!(found.nodes[1].performance.len(), 2);
    assert_eq!(found.nodes[1].cpus, "");
}

/// A region in a window, half of it offline; the rest of the window is free. The window's domain is 7, and its node 1.
#[test]
fn cxl_memory_is_named_by_its_region_and_window() {
    is(
        "cxl",
        "
        00100000-7dffffff | system ram | System RAM | online yes yes | no no | 0 | coherent:node=0,size=5G
        100000000-27fffffff | system ram | System RAM | online yes yes | no no | 0 | coherent:node=0,size=5G
        280000000-37fffffff | - | kmem dax0.0 | online yes yes | later later | 1 | coherent:node=1,size=3G
        380000000-47fffffff | - | kmem dax0.0 | offline yes yes | later later | 1 |
        480000000-67fffffff | - | CXL window CXL Window 0 | none no no | no no | 1 |
    ",
    );
    let found = look("cxl");
    assert_eq!(found.disagreements, []);
    assert_eq!(found.cxl_memories[0].volatile_bytes, Some(16 << 30));
    let window = found.ranges.last().unwrap();
    let said: Vec<_> = window.evidence.iter().map(|evidence| evidence.says.as_str()).collect();
    assert_eq!(said, ["CXL Window 0", "decoder0.0", "proximity domain 7, hot-pluggable, specific-purpose"]);
    // HMAT has no figures for memory that came later; sysfs has.
    assert_eq!(found.nodes[1].performance[0].read_latency_ns, Some(250));
}

#[test]
fn hbm_in_flat_mode_is_a_node_without_processors() {
    is(
        "hbm-flat",
        "
        00100000-7dffffff | system ram | System RAM | online yes yes | no no | 0 | coherent:node=0,size=5G
        100000000-27fffffff | system ram | System RAM | online yes yes | no no | 0 | coherent:node=0,size=5G
        280000000-37fffffff | system ram | System RAM | online yes yes | no no | 1 | coherent:node=1,size=3G
    ",
    );
    let found = look("hbm-flat");
    assert_eq!(found.nodes[1].performance[0].read_bandwidth_mb_s, Some(400_000));
    assert_eq!(found.nodes[0].memory_side_cache_bytes, Some(64 << 20));
}

#[test]
fn a_gpus_memory_on_a_node_is_its_drivers() {
    is(
        "gpu-node",
        "
        80000000-fffeffff | - | System RAM | online yes yes | no no | 0 | coherent:node=0,size=6G
        100000000-27fffffff | - | System RAM | online yes yes | no no | 0 | coherent:node=0,size=6G
        28000000000-28000ffffff | - | PCI 0009:01:00.0 BAR 0 (nvidia) | none no no | no yes | 0 |
        28002000000-28003ffffff | - | PCI 0009:01:00.0 BAR 1 (nvidia) | none no no | no yes | 0 |
        42000000000-421ffffffff | - | RAM by driver NVIDIA | online yes yes | no no | 1 | coherent:node=1,size=7G
    ",
    );
}

#[test]
fn private_pages_of_a_gpu_have_descriptors_and_no_direct_map() {
    is(
        "gpu-private",
        "
        00100000-7dffffff | system ram | System RAM | online yes yes | no no | 0 | coherent:node=0,size=5G
        90800000-90ffffff | - | PCI 0000:41:00.0 BAR 0 (nvidia) | none no no | no no | 0 |
        100000000-27fffffff | system ram | System RAM | online yes yes | no no | 0 | coherent:node=0,size=5G
        4000000000-43ffffffff | - | PCI 0000:41:00.0 BAR 1 (nvidia) | none no no | no yes | 0 |
        4400000000-4401ffffff | - | PCI 0000:41:00.0 BAR 3 (nvidia) | none no no | no yes | 0 |
        3ffc00000000-3fffffffffff | - | DEVICE_PRIVATE nvidia-uvm-hmm | ZONE_DEVICE yes no | no yes | - |
    ",
    );
}

/// A user sees zeros in `/proc/iomem`: what memory there is follows from the firmware's map and the memory blocks.
#[test]
fn without_privilege_memory_is_inferred_and_marked_so() {
    is(
        "laptop",
        "
        00100000-6bffffff | system ram | System RAM* | online yes yes | no no | 0 | coherent:node=0,size=1G
        100000000-17fffffff | system ram | System RAM* | online yes yes | no no | 0 | coherent:node=0,size=1G
        4000000000-400fffffff | - | PCI 0000:00:02.0 BAR 2 (i915)* | none no no | no yes | - |
        6000000000-6000ffffff | - | PCI 0000:00:02.0 BAR 0 (i915)* | none no no | no no | - |
    ",
    );
    assert_eq!(state(&look("laptop"), SourceId::Iomem), SourceState::Hidden);
}

/// The ends of the range share their sections with memory of the boot: there pfns are valid before any claim.
#[test]
fn the_command_line_makes_memory_special_and_explains_the_disagreement() {
    is(
        "vm-memmap",
        "
        00100000-23ffffff | system ram | System RAM | online yes yes | no no | 0 | coherent:node=0,size=400M
        24000000-27ffffff | system ram | nobody: Soft Reserved | boot section yes no | yes yes | - |
        28000000-2fffffff | system ram | nobody: Soft Reserved | none no no | yes yes | - |
        30000000-33ffffff | system ram | nobody: Soft Reserved | boot section yes no | yes yes | - |
        34000000-3ffdffff | system ram | System RAM | online yes yes | no no | 0 | coherent:node=0,size=400M
    ",
    );
    let found = look("vm-memmap");
    let [only] = &found.disagreements[..] else { panic!("{:?}", found.disagreements) };
    assert!(only.text.contains("memmap=256M%0x24000000-1+0xefffffff"), "{}", only.text);
    assert_eq!(only.sources, [SourceId::FirmwareMap, SourceId::Iomem]);
    assert_eq!((only.start.unwrap().get(), only.end.unwrap().get()), (0x2400_0000, 0x3400_0000));
}

/// Recorded, and not written: QEMU's tables and Linux's own numbers of nodes, beside the figures that Linux made of the tables.
#[test]
fn a_recorded_virtual_machine_is_understood() {
    is("qemu-dax", "
        00100000-3fffffff | system ram | System RAM | online yes yes | no no | 0 | coherent:node=0,size=918M
        40000000-7ffdffff | system ram | System RAM | online yes yes | no no | 1 | coherent:node=1,size=926M
        100000000-13fffffff | system ram | device_dax dax0.0 | ZONE_DEVICE yes yes | later later | 2 | private:dax=/dev/dax0.0
    ");
    let found = look("qemu-dax");
    for id in [SourceId::BootParams, SourceId::Srat, SourceId::Hmat] {
        assert_eq!(state(&found, id), SourceState::Read, "{id:?}");
    }
    let [only] = &found.disagreements[..] else { panic!("{:?}", found.disagreements) };
    assert!(only.text.contains("memmap=1G%4G-1+0xefffffff"), "{}", only.text);
    // Two sources for each node of the system, which say the same; the third node is in the tables alone.
    assert_eq!(found.nodes[1].performance.len(), 2);
    assert_eq!(found.nodes[2].performance[0].read_latency_ns, Some(50));
    assert!(!found.nodes[2].online);
}

/// Registers have a PCI device's name outside of all buses, too. What is not whole subsections has no descriptors of its own; what is may be
/// registers unless the device's BARs are known, and lie elsewhere.
#[test]
fn registers_outside_of_all_buses_are_not_private_memory() {
    is(
        "top-level-pci",
        "
        00100000-7dffffff | - | System RAM | online yes yes | no no | 0 | coherent:node=0,size=5G
        90000000-9fffffff | - | PCI 0000:41:00.0 BAR 0 (amdgpu) | none no no | no yes | 0 |
        d0000000-d7ffffff | - | unknown 0000:07:00.0 | ? ? ? | ? ? | - |
        f8000000-fbffffff | - | unknown 0000:00:05.0 | ? ? ? | ? ? | - |
        fe700000-fe8fffff | - | PCI 0000:00:0f.0 | none no no | no no | - |
        100000000-27fffffff | - | System RAM | online yes yes | no no | 0 | coherent:node=0,size=5G
        3ff800000000-3ffbffffffff | - | DEVICE_PRIVATE 0000:41:00.0 | ZONE_DEVICE yes no | no yes | - |
    ",
    );
    let found = look("top-level-pci");
    let page = found.ranges.iter().find(|range| range.size_bytes == 4096).unwrap();
    assert_eq!(line(page), "fe600000-fe600fff | - | PCI 0000:00:05.4 | none no no | no no | - |");
}

#[test]
fn a_co_processors_memory_is_not_its_registers() {
    let found = look("co-processor");
    let memory = "4000000000-41ffffffff | - | PCI 0000:81:00.0 BAR 0 (mic) | none no no | no yes | 0 |";
    assert_eq!(found.ranges.iter().map(line).find(|line| line.starts_with("4000000000-")).unwrap(), memory);
    let registers = found.ranges.iter().find(|range| range.start.get() == 0x42_0000_0000).unwrap();
    assert_eq!(registers.device_source.why, "registers of a device");
}

/// Around the window, in a part of it, and where the firmware's map alone says so: the memory is there, and no window is free.
#[test]
fn a_cxl_window_with_special_purpose_memory_is_not_free() {
    is(
        "cxl-soft-reserved",
        &format!(
            "{RAM}280000000-47fffffff | soft reserved | nobody: Soft Reserved CXL Window 0 | none no no | yes yes | - |
        480000000-57fffffff | soft reserved | nobody: Soft Reserved CXL Window 1 | none no no | yes yes | - |
        580000000-67fffffff | - | CXL window CXL Window 1 | none no no | no no | - |
        680000000-77fffffff | soft reserved | nobody: Soft Reserved CXL Window 2 | none no no | yes yes | - |
        780000000-87fffffff | - | CXL window CXL Window 2 | none no no | no no | - |
    "
        ),
    );
    let found = look("cxl-soft-reserved");
    for range in found.ranges.iter().filter(|range| range.claim.kind == ClaimKind::SoftReserved) {
        let hint = range.hint.as_ref().unwrap();
        assert!(hint.starts_with("modprobe cxl_acpi cxl_pci dax_cxl"), "{hint}");
    }
}

#[test]
fn a_use_that_overwrites_data_is_not_proposed_and_says_so() {
    is("pmem-two-devices", &format!("{RAM}280000000-287ffffff | persistent | persistent memory namespace0.0 | ? ? ? | no no | - |
        288000000-37fffffff | persistent | device_dax dax0.0 | ZONE_DEVICE yes yes | later later | 1 |
        380000000-47fffffff | soft reserved | device_dax dax1.0 | ZONE_DEVICE yes yes | later later | 2 | private:dax=/dev/dax1.0
    "));
    let found = look("pmem-two-devices");
    let persistent = found.ranges.iter().find(|range| range.claim.by.as_deref() == Some("dax0.0")).unwrap();
    let warning = "persistent memory, whose data is overwritten by every use: private:dax=/dev/dax0.0";
    assert!(persistent.hint.as_ref().unwrap().starts_with(warning), "{:?}", persistent.hint);
    let [keeping, other] = &found.dax_devices[..] else { panic!("{:?}", found.dax_devices) };
    assert_eq!((&keeping.specs[..], keeping.hint.as_deref()), (&[][..], Some(warning)));
    assert_eq!((&other.specs[..], &other.hint), (&["private:dax=/dev/dax1.0".to_owned()][..], &None));
}

/// A user sees which node a kmem device's memory belongs to, and not where it is. The memory of node 3 was taken out by `memmap=`.
#[test]
fn without_privilege_a_node_of_kmem_devices_is_not_ordinary_memory() {
    is(
        "kmem-user",
        "
        00100000-7dffffff | system ram | System RAM* | online yes yes | no no | 0 | coherent:node=0,size=5G
        100000000-27fffffff | system ram | System RAM* | online yes yes | no no | 0 | coherent:node=0,size=5G
        280000000-37fffffff | - | kmem dax0.0* | online yes yes | later later | 1 | coherent:node=1,size=3G
        380000000-3ffffffff | persistent | kmem dax1.0* | online yes yes | later later | 2 | coherent:node=2,size=1G
        400000000-47fffffff | system ram | kmem dax2.0* | online yes yes | later later | 3 | coherent:node=3,size=1G
    ",
    );
}

/// The memory of node 2 is 8 ns from the device that it is next to; the processors have 77 ns. Of node 3 only the device's figures are known.
#[test]
fn performance_is_that_of_processors_or_says_whose_it_is() {
    let found = look("generic-initiator");
    let figures = |node: usize| -> Vec<_> {
        let all = found.nodes[node].performance.iter();
        all.map(|p| (p.source.label(), p.from_node, p.from_processors.label(), p.read_latency_ns)).collect()
    };
    assert_eq!(figures(2), [("HMAT", Some(0), "yes", Some(77)), ("sysfs", Some(0), "yes", Some(77))]);
    assert_eq!(figures(3), [("HMAT", Some(1), "no", Some(12)), ("sysfs", Some(1), "no", Some(12))]);
    let range = found.ranges.iter().find(|range| range.node == Some(2)).unwrap();
    assert_eq!(range.performance.unwrap().read_latency_ns, Some(77));
    assert_eq!(found.disagreements, []);
}

/// Before Linux 5.8 what kmem added is System RAM by name, inside its device. A resource without a name makes nothing unknown.
#[test]
fn old_names_of_kmem_memory_and_no_name_at_all_are_understood() {
    let kmem = "300000000-37fffffff | - | kmem dax0.0 | online yes yes | later later | 1 | coherent:node=1,size=1G";
    let found = look("old-kernel");
    assert_eq!(line(found.ranges.last().unwrap()), kmem);
    assert_eq!(state(&found, SourceId::Iomem), SourceState::Read);
    let unnamed = found.ranges.iter().find(|range| range.start.get() == 0x7e90_0000).unwrap();
    assert_eq!(line(unnamed), "7e900000-7e900fff | - | platform (no name) | boot section yes no | no no | - |");
    assert_eq!(found.disagreements, []);
}

#[test]
fn a_window_for_memory_to_come_is_not_memory() {
    let line = "280000000-fffffffff | - | hot-plug window | none no no | no no | 0 |";
    is("hot-plug", &format!("{RAM}{line}"));
}

/// The entries past the 128th are in the boot loader's `setup_data`, among other things.
#[test]
fn a_map_that_is_continued_in_setup_data_is_read_to_its_end() {
    let line = "280000000-47fffffff | soft reserved | nobody: Soft Reserved | none no no | yes yes | - |";
    is("e820-many", &format!("{RAM}{line}"));
    let found = look("e820-many");
    let source = found.sources.iter().find(|source| source.id == SourceId::BootParams).unwrap();
    assert_eq!((source.state, source.detail.as_str()), (SourceState::Read, "130 entries of E820"));
}

/// Kernels to come have names of their own. The boot loader's map has numbers, which stay.
#[test]
fn a_type_without_a_known_name_is_unknown_and_not_reserved() {
    is(
        "unknown-type",
        &format!(
            "{RAM}280000000-37fffffff | unknown type | unknown | ? ? ? | ? ? | - |
        380000000-47fffffff | unknown type | unknown Unknown E820 type | ? ? ? | ? ? | - |
        480000000-57fffffff | soft reserved | nobody: Soft Reserved | none no no | yes yes | - |
    "
        ),
    );
    assert_eq!(look("unknown-type").disagreements, []);
}

#[test]
fn a_container_with_nothing_is_no_error() {
    let found = look("container");
    assert!(found.ranges.is_empty() && found.nodes.is_empty());
    assert!(found.sources.iter().all(|source| source.state == SourceState::Absent), "{:?}", found.sources);
}

#[test]
fn ranges_are_in_order_and_never_overlap() {
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let machine = entry.unwrap().file_name().into_string().unwrap();
        let found = look(&machine);
        assert!(found.ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{machine}");
        assert!(found.ranges.iter().all(|range| range.end.get() - range.start.get() == range.size_bytes), "{machine}");
    }
}

#[test]
fn the_tables_of_the_fixtures_are_those_of_the_generator() {
    for (machine, table, bytes) in tables::of_fixtures() {
        let path = fixtures().join(machine).join("sys/firmware/acpi/tables").join(table);
        if std::env::var_os("HETMEM_WRITE_FIXTURES").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{}", path.display());
    }
}

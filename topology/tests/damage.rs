//! Files that are cut, overwritten, missing or of another kind: every source tells, and nothing panics.

mod tables;

use std::fs;
use std::path::{Path, PathBuf};

use hetmem_topology::{Root, Source, SourceId, SourceState, Topology};
use proptest::prelude::*;

fn fixture(machine: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(machine)
}

/// A copy that may be damaged. Links stay links.
fn copy(from: &Path, to: &Path, files: &mut Vec<PathBuf>) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        let kind = fs::symlink_metadata(&from).unwrap().file_type();
        if kind.is_dir() {
            copy(&from, &to, files);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from).unwrap(), &to).unwrap();
        } else {
            fs::write(&to, fs::read(&from).unwrap()).unwrap();
            files.push(to);
        }
    }
}

struct Machine {
    directory: tempfile::TempDir,
    files: Vec<PathBuf>,
}

impl Machine {
    fn of(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        copy(&fixture(name), directory.path(), &mut files);
        files.sort();
        Self { directory, files }
    }

    fn file(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn look(&self) -> Topology {
        hetmem_topology::look(&Root::open(self.directory.path()).unwrap())
    }
}

fn source(found: &Topology, id: SourceId) -> &Source {
    found.sources.iter().find(|source| source.id == id).unwrap()
}

#[test]
fn a_truncated_iomem_is_partial_and_nothing_behind_the_cut_is_called_free() {
    let machine = Machine::of("soft-reserved-dax");
    let path = machine.file("proc/iomem");
    let text = fs::read_to_string(&path).unwrap();
    let cut = text.find("280000000-47fffffff : Soft").unwrap() + 20;
    fs::write(&path, &text[..cut]).unwrap();
    let found = machine.look();
    assert_eq!(source(&found, SourceId::Iomem).state, SourceState::Partial);
    // The DAX device itself says where it is.
    let last = found.ranges.last().unwrap();
    assert_eq!(last.claim.by.as_deref(), Some("dax0.0"));
    assert!(last.claim.inferred);
    fs::remove_dir_all(machine.file("sys/bus/dax")).unwrap();
    assert_eq!(machine.look().ranges.last().unwrap().claim.kind.label(), "unknown");
}

#[test]
fn a_truncated_table_is_partial_and_gives_what_it_has() {
    let machine = Machine::of("soft-reserved");
    let path = machine.file("sys/firmware/acpi/tables/SRAT");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let found = machine.look();
    let srat = source(&found, SourceId::Srat);
    assert_eq!((srat.state, srat.detail.as_str()), (SourceState::Partial, "2 memory ranges"));
    assert!(srat.problems[0].starts_with("truncated: 183 of 184 bytes"), "{:?}", srat.problems);
    fs::write(&path, b"junk").unwrap();
    let found = machine.look();
    assert_eq!(source(&found, SourceId::Srat).state, SourceState::Invalid);
    fs::write(&path, b"").unwrap();
    assert_eq!(source(&machine.look(), SourceId::Srat).detail, "truncated after 0 bytes: the header alone has 36");
}

#[test]
fn sources_that_contradict_each_other_are_told() {
    let machine = Machine::of("soft-reserved-kmem");
    let sysfs = "sys/devices/system/node/node1/access0/initiators/read_latency";
    fs::write(machine.file(sysfs), "999\n").unwrap();
    let iomem = fs::read_to_string(machine.file("proc/iomem")).unwrap();
    fs::write(
        machine.file("proc/iomem"),
        iomem.replace("7e000000-7e7fffff : ACPI Tables", "7e000000-7e7fffff : System RAM"),
    )
    .unwrap();
    for block in 2..=4 {
        fs::remove_dir_all(machine.file(&format!("sys/devices/system/memory/memory{block}"))).unwrap();
    }
    let found = machine.look();
    let told: Vec<_> = found.disagreements.iter().map(|d| d.text.as_str()).collect();
    for part in [
        "node 1: read latency is 160 ns in HMAT and 999 ns in sysfs",
        "acpi tables by the firmware, System RAM for the kernel",
        "System RAM by /proc/iomem, without a memory block",
    ] {
        assert!(told.iter().any(|text| text.contains(part)), "no `{part}` in {told:#?}");
    }
    // A source that is not all there contradicts nobody by what it lacks.
    fs::write(machine.file("sys/devices/system/memory/memory5/state"), "sleeping").unwrap();
    let found = machine.look();
    assert!(source(&found, SourceId::MemoryBlocks).problems[0].contains("`sleeping` is no state"));
    assert!(
        found.disagreements.iter().all(|d| !d.text.contains("without a memory block")),
        "{:?}",
        found.disagreements
    );
}

#[test]
fn an_unbound_device_is_named_with_what_would_bind_it() {
    let machine = Machine::of("soft-reserved-dax");
    fs::remove_file(machine.file("sys/bus/dax/devices/dax0.0/driver")).unwrap();
    let iomem = fs::read_to_string(machine.file("proc/iomem")).unwrap();
    fs::write(machine.file("proc/iomem"), iomem.replace("  280000000-47fffffff : dax0.0\n", "")).unwrap();
    let found = machine.look();
    let last = found.ranges.last().unwrap();
    assert_eq!((last.claim.kind.label(), last.struct_pages.label()), ("dax, no driver", "none"));
    assert!(last.hint.as_ref().unwrap().contains("--mode=devdax dax0.0"), "{:?}", last.hint);
    assert_eq!(found.disagreements, []);
}

#[test]
fn a_device_that_iomem_does_not_know_is_a_disagreement() {
    let machine = Machine::of("soft-reserved-dax");
    let iomem = fs::read_to_string(machine.file("proc/iomem")).unwrap();
    fs::write(machine.file("proc/iomem"), iomem.replace("  280000000-47fffffff : dax0.0\n", "")).unwrap();
    let found = machine.look();
    let told: Vec<_> = found.disagreements.iter().map(|d| d.text.as_str()).collect();
    assert_eq!(told, ["dax0.0 is bound to device_dax, and /proc/iomem has no dax0.0"]);
}

/// A user may see a DAX device's size and driver, and not where it is: if there is no choice, that follows.
#[test]
fn without_privilege_the_only_fitting_device_is_the_holder() {
    let machine = Machine::of("soft-reserved-dax");
    let device = machine.file("sys/bus/dax/devices/dax0.0");
    fs::write(machine.file("proc/iomem"), "00000000-00000000 : Reserved\n").unwrap();
    fs::remove_file(device.join("resource")).unwrap();
    fs::remove_dir_all(device.join("mapping0")).unwrap();
    let found = machine.look();
    let last = found.ranges.last().unwrap();
    assert_eq!((last.claim.kind.label(), last.claim.by.as_deref()), ("device_dax", Some("dax0.0")));
    assert!(last.claim.inferred && !found.dax_devices[0].addresses_known);
    assert_eq!(last.specs[0], "private:dax=/dev/dax0.0");
    // With another size it may be a part of the range, or elsewhere: then nobody knows, and the device is named apart.
    fs::write(device.join("size"), "4096\n").unwrap();
    let found = machine.look();
    let last = found.ranges.last().unwrap();
    assert_eq!((last.claim.kind.label(), last.pfn_valid.label()), ("unknown", "?"));
    assert_eq!(found.dax_devices[0].specs[0], "private:dax=/dev/dax0.0");
}

/// Without a map of the firmware's a node that has other memory, too, does not show which part kmem added.
#[test]
fn without_privilege_and_map_a_part_of_a_node_may_be_kmems() {
    let machine = Machine::of("kmem-user");
    fs::remove_dir_all(machine.file("sys/firmware")).unwrap();
    fs::write(machine.file("sys/bus/dax/devices/dax0.0/size"), "2147483648\n").unwrap();
    let found = machine.look();
    let of_node = |node| {
        let range = found.ranges.iter().find(|range| range.node == Some(node)).unwrap();
        (range.claim.kind.label(), range.device_source.private.label())
    };
    assert_eq!([of_node(0), of_node(1), of_node(2)], [("System RAM", "no"), ("System RAM", "?"), ("kmem", "later")]);
}

/// Sysfs shows the bus of a device to every user. In a copy without links the resources or the firmware's map say what memory it may be on.
#[test]
fn a_device_that_may_be_on_persistent_memory_is_not_proposed() {
    let machine = Machine::of("pmem-two-devices");
    let device = machine.file("sys/bus/dax/devices/dax0.0");
    let proposed = || {
        let found = machine.look();
        let devices = found.dax_devices.into_iter().map(|device| (device.specs.len(), device.hint.is_some()));
        devices.collect::<Vec<_>>()
    };
    let right = [(0, true), (1, false)];
    assert_eq!(proposed(), right);
    fs::write(machine.file("proc/iomem"), "00000000-00000000 : Reserved\n").unwrap();
    fs::remove_file(device.join("resource")).unwrap();
    fs::remove_dir_all(machine.file("sys/firmware")).unwrap();
    assert_eq!(proposed(), right);
    let machine = Machine::of("pmem-two-devices");
    let device = machine.file("sys/bus/dax/devices/dax0.0");
    let real = fs::canonicalize(&device).unwrap();
    fs::remove_file(&device).unwrap();
    fs::rename(real, &device).unwrap();
    let proposed = || machine.look().dax_devices[0].specs.clone();
    assert_eq!(proposed(), [""; 0]);
    let driver = device.join("driver");
    let bound = fs::read_link(&driver).unwrap();
    fs::remove_file(&driver).unwrap();
    let found = machine.look();
    let unbound = found.ranges.iter().find(|range| range.claim.kind.label() == "dax, no driver").unwrap();
    assert_eq!(unbound.device_source.why, "persistent memory has drivers of its own");
    assert!(unbound.hint.as_ref().unwrap().contains("overwritten by every use"), "{:?}", unbound.hint);
    std::os::unix::fs::symlink(bound, driver).unwrap();
    fs::remove_file(device.join("resource")).unwrap();
    fs::write(machine.file("proc/iomem"), "00000000-00000000 : Reserved\n").unwrap();
    assert_eq!(proposed(), [""; 0]);
    fs::remove_dir_all(machine.file("sys/firmware")).unwrap();
    assert_eq!(proposed(), ["private:dax=/dev/dax0.0"]);
}

#[test]
fn a_device_whose_memory_kmem_could_not_add_has_no_pages() {
    let machine = Machine::of("soft-reserved-kmem");
    let iomem = fs::read_to_string(machine.file("proc/iomem")).unwrap();
    fs::write(machine.file("proc/iomem"), iomem.replace("    280000000-47fffffff : System RAM (kmem)\n", "")).unwrap();
    for block in 5..=8 {
        fs::remove_dir_all(machine.file(&format!("sys/devices/system/memory/memory{block}"))).unwrap();
    }
    let found = machine.look();
    assert_eq!(found.ranges.last().unwrap().struct_pages.label(), "none");
    let told: Vec<_> = found.disagreements.iter().map(|d| d.text.as_str()).collect();
    assert_eq!(told, ["dax0.0 is bound to kmem, and none of it is online"]);
}

#[test]
fn memory_on_another_node_than_the_table_says_is_a_disagreement() {
    let machine = Machine::of("hbm-flat");
    let block = machine.file("sys/devices/system/memory/memory3");
    fs::remove_file(block.join("node0")).unwrap();
    std::os::unix::fs::symlink("../../node/node1", block.join("node1")).unwrap();
    let found = machine.look();
    let told: Vec<_> = found.disagreements.iter().map(|d| d.text.as_str()).collect();
    assert_eq!(told, ["proximity domain 0, which is node 0, by SRAT, and memory blocks of node 1"]);
}

#[test]
fn a_pipe_in_place_of_a_file_is_not_waited_for() {
    let machine = Machine::of("vm-memmap");
    let path = machine.file("proc/iomem");
    fs::remove_file(&path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    let found = machine.look();
    assert!(source(&found, SourceId::Iomem).detail.contains("not a regular file"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_damage_to_the_files_makes_it_panic(
        kind in 0_usize..4,
        damage in proptest::collection::vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0_u8..4), 1..12)
    ) {
        let machine = Machine::of(["vm-memmap", "gpu-private", "cxl", "soft-reserved-kmem"][kind]);
        for (file, at, byte, how) in damage {
            let path = &machine.files[file.index(machine.files.len())];
            let Ok(mut bytes) = fs::read(path) else { continue };
            let at = at.index(bytes.len().max(1));
            match how {
                0 => bytes.truncate(at),
                1 if !bytes.is_empty() => bytes[at] = byte,
                2 => bytes.splice(at..at, b"ffffffffffffffff".iter().copied()).for_each(drop),
                _ => {
                    fs::remove_file(path).unwrap();
                    continue;
                }
            }
            fs::write(path, bytes).unwrap();
        }
        let found = machine.look();
        prop_assert!(found.ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
        prop_assert!(serde_json::to_string(&found).is_ok());
    }
}

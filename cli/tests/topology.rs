//! `hetmem topology`: what it prints of recorded machines and of this one, and what it refuses.
#![expect(clippy::print_stderr, reason = "a test that can't run here says so")]

#[path = "support/users.rs"]
mod users;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use users::built;

fn fixture(machine: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../topology/tests/fixtures").join(machine)
}

fn topology(args: &[&str]) -> Output {
    Command::new(built("hetmem")).arg("topology").args(args).output().unwrap()
}

fn recorded(machine: &str, args: &[&str]) -> Output {
    let root = fixture(machine);
    topology(&[&["--root", root.to_str().unwrap()], args].concat())
}

#[track_caller]
fn said(run: &Output) -> String {
    assert!(run.status.success(), "{run:?}");
    assert_eq!(String::from_utf8_lossy(&run.stderr), "");
    String::from_utf8(run.stdout.clone()).unwrap()
}

#[track_caller]
fn refused(run: &Output, status: i32, parts: &[&str]) {
    let text = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(status), "{run:?}");
    assert!(text.starts_with("hetmem: ") && text.lines().count() == 1, "{text}");
    for part in parts {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    assert_eq!(run.stdout, b"");
}

fn json(run: &Output) -> Value {
    serde_json::from_str(&said(run)).unwrap()
}

/// All of what is printed of one machine; the first line names the place of the fixture.
#[test]
fn the_tree_and_the_tables_are_as_documented() {
    let text = said(&recorded("soft-reserved-dax", &[]));
    let (_, text) = text.split_once('\n').unwrap();
    let document = include_str!("../../docs/machine.md");
    let shown =
        document.split("--root topology/tests/fixtures/soft-reserved-dax\n").nth(1).expect("the document has it");
    let shown = shown.split("```").next().unwrap();
    let mut rest = text;
    // The document leaves lines out, and says so by an ellipsis.
    for part in shown.lines().skip(1).filter(|line| *line != "…") {
        let at = rest.find(part).unwrap_or_else(|| panic!("no `{part}` in order in:\n{text}"));
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn before_and_after_the_claim_the_range_its_holder_and_its_pfns_are_named() {
    for (machine, line) in [
        ("soft-reserved", ["soft reserved", "nobody: Soft Reserved", "none", "no"]),
        ("soft-reserved-7.0", ["soft reserved", "nobody: Soft Reserved", "none", "no"]),
        ("soft-reserved-dax", ["soft reserved", "device_dax dax0.0", "ZONE_DEVICE", "yes"]),
        ("soft-reserved-kmem", ["soft reserved", "kmem dax0.0", "online", "yes"]),
    ] {
        let text = said(&recorded(machine, &[]));
        let row = text.lines().find(|row| row.starts_with("280000000-47fffffff")).unwrap();
        let cells: Vec<_> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(cells[2..6], line, "{machine}: {row}");
    }
}

#[test]
fn json_has_every_documented_field() {
    let all = json(&recorded("soft-reserved-kmem", &["--json"]));
    let fields = |value: &Value| {
        let mut names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(all["format"], 1);
    assert_eq!(fields(&all), "cxl_memories dax_devices disagreements format nodes ranges root sources");
    let range = all["ranges"].as_array().unwrap().iter().find(|range| range["start"] == "0x280000000").unwrap();
    assert_eq!(
        fields(range),
        "claim device_source direct_map end evidence firmware node performance pfn_valid size_bytes specs start \
         struct_pages"
    );
    assert_eq!(range["firmware"], serde_json::json!({ "type": "soft_reserved", "special_purpose": "yes" }));
    assert_eq!(range["claim"], serde_json::json!({ "kind": "kmem", "by": "dax0.0", "inferred": false }));
    assert_eq!(range["device_source"]["coherent"], "after_release");
    assert_eq!((&range["struct_pages"], &range["pfn_valid"]), (&"online".into(), &"yes".into()));
    assert_eq!(range["performance"]["source"], "hmat");
    assert_eq!(fields(&all["nodes"][1]), "cpus distances free_bytes memory_bytes node online performance spec");
    assert_eq!(fields(&all["sources"][0]), "detail id path state");
    assert_eq!(fields(&all["dax_devices"][0]), "addresses_known align_bytes driver name node size_bytes specs");
    // What an unprivileged user can't see is in there, as such.
    let laptop = json(&recorded("laptop", &["--json"]));
    let iomem = laptop["sources"].as_array().unwrap().iter().find(|source| source["id"] == "iomem").unwrap();
    assert_eq!(iomem["state"], "hidden");
}

/// What is printed can be pasted: each spec has the grammar of `--device`.
#[test]
fn each_spec_is_one_that_run_reads() {
    let mut read = 0;
    for machine in ["soft-reserved-dax", "soft-reserved-kmem", "cxl", "hbm-flat", "gpu-node", "qemu-dax"] {
        let all = json(&recorded(machine, &["--json"]));
        let ranges = all["ranges"].as_array().unwrap().iter().flat_map(|range| range["specs"].as_array().unwrap());
        let nodes = all["nodes"].as_array().unwrap().iter().filter_map(|node| node.get("spec"));
        for spec in ranges.chain(nodes) {
            let spec = spec.as_str().unwrap();
            spec.parse::<hetmem_devices::spec::DeviceSpec>().unwrap_or_else(|error| panic!("{spec}: {error}"));
            read += 1;
        }
    }
    assert!(read > 10, "{read}");
}

#[test]
fn a_container_with_nothing_is_no_failure() {
    let text = said(&recorded("container", &[]));
    assert!(text.contains("nothing is known of its memory"), "{text}");
    assert_eq!(text.matches("absent").count(), 12, "{text}");
}

#[test]
fn a_wrong_root_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    refused(&topology(&["--root", dir.path().join("none").to_str().unwrap()]), 2, &["--root", "no such directory"]);
    refused(&topology(&["--root", file.to_str().unwrap()]), 2, &["--root", "not a directory"]);
    let root = dir.path().to_str().unwrap();
    refused(&topology(&["--root", root, "--measure"]), 2, &["--measure", "cannot be used with", "--root"]);
}

#[test]
fn a_picture_that_cannot_be_written_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no/such.svg");
    for (path, part) in [(missing.to_str().unwrap(), "No such file"), (dir.path().to_str().unwrap(), "Is a directory")]
    {
        refused(&recorded("cxl", &["--svg", path]), 125, &["the picture can't be written to", part]);
    }
}

#[test]
fn the_picture_has_each_range_its_holder_and_its_legend() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("picture.svg");
    for (machine, words) in [
        ("cxl", &["CXL Window 0", "kmem dax0.0", "480000000", "67fffffff", "gap of 1.7 GiB", "pages: offline"][..]),
        ("soft-reserved", &["nobody: Soft Reserved", "firmware: soft reserved", "pfn valid: no"]),
        ("container", &["Nothing is known"]),
    ] {
        said(&recorded(machine, &["--svg", path.to_str().unwrap()]));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("<?xml") && text.trim_end().ends_with("</svg>"), "{text}");
        for word in words {
            assert!(text.contains(word), "no `{word}` in the picture of {machine}");
        }
    }
}

/// What files say is quoted; a terminal must not obey it, nor a picture be broken by it.
#[test]
fn names_with_control_characters_and_markup_stay_words() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("proc")).unwrap();
    std::fs::write(dir.path().join("proc/iomem"), "100000-8fffff : \u{1b}[31m<b>&x\n").unwrap();
    let picture = dir.path().join("picture.svg");
    let text = said(&topology(&["--root", dir.path().to_str().unwrap(), "--svg", picture.to_str().unwrap()]));
    assert!(!text.contains('\u{1b}') && text.contains("<b>&x"), "{text}");
    let drawn = std::fs::read_to_string(&picture).unwrap();
    assert!(drawn.contains("&lt;b&gt;&amp;x") && !drawn.contains('\u{1b}'), "{drawn}");
}

#[test]
fn this_machine_is_described_with_and_without_privilege() {
    let privileged = json(&topology(&["--json"]));
    assert_eq!(privileged["sources"].as_array().unwrap().len(), 12);
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped in part: only root can become somebody without privilege");
    }
    const NOBODY: u32 = 65534;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = dir.path().join("hetmem");
    // By another process: a child of a test beside this one would inherit the descriptor and keep the file busy.
    let copied = Command::new("cp").arg(built("hetmem")).arg(&copy).status().unwrap();
    assert!(copied.success());
    let run =
        Command::new(&copy).args(["topology", "--json"]).current_dir("/").uid(NOBODY).gid(NOBODY).output().unwrap();
    // The addresses of /proc/iomem are for CAP_SYS_ADMIN.
    let all = json(&run);
    let iomem = all["sources"].as_array().unwrap().iter().find(|source| source["id"] == "iomem").unwrap();
    assert_ne!(iomem["state"], "read", "{iomem}");
    let ranges = all["ranges"].as_array().unwrap();
    assert!(ranges.iter().all(|range| range["claim"]["inferred"] == true), "{ranges:#?}");
}

/// Figures are of a machine that others use too; that there are some, of this node, is what can be asked.
#[test]
fn each_node_is_measured_or_the_reason_is_named() {
    let all = json(&topology(&["--json", "--measure"]));
    for node in all["nodes"].as_array().unwrap() {
        let figures =
            node["performance"].as_array().into_iter().flatten().find(|figure| figure["source"] == "measured");
        let number = format!("node {}:", node["node"]);
        let notes = all["measurement_notes"].as_array();
        let noted = notes.into_iter().flatten().any(|note| note.as_str().unwrap().starts_with(&number));
        match figures {
            Some(figures) => {
                assert!(figures["read_latency_ns"].as_u64().unwrap() > 0, "{figures}");
                assert!(figures["read_bandwidth_mb_s"].as_u64().unwrap() > 0, "{figures}");
            }
            None => assert!(noted || node["memory_bytes"].is_null() || node["memory_bytes"] == 0, "{node}"),
        }
    }
}

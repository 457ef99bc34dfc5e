//! `hetmem replay`: what it prints of a trace, and what it refuses.

#[path = "support/users.rs"]
mod users;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use users::built;

fn replay(file: &Path, args: &[&str]) -> Output {
    Command::new(built("hetmem")).arg("replay").arg(file).args(args).output().unwrap()
}

/// A trace of lackey's: so many pages, twice, in order.
fn trace(folder: &Path, pages: u64) -> PathBuf {
    let path = folder.join("lackey.txt");
    let lines = (0..2 * pages).map(|number| format!(" L {:08x},8\n", 0x10_0000 + number % pages * 4096));
    std::fs::write(&path, lines.collect::<String>()).unwrap();
    path
}

fn refused(run: &Output, status: i32, part: &str) {
    let text = String::from_utf8_lossy(&run.stderr);
    assert_eq!(run.status.code(), Some(status), "{run:?}");
    assert!(text.starts_with("hetmem: ") && text.lines().count() == 1 && text.contains(part), "{text}");
    assert_eq!(run.stdout, b"");
}

#[test]
fn json_has_each_policy_at_each_limit() {
    let folder = tempfile::tempdir().unwrap();
    let run = replay(&trace(folder.path(), 256), &["--system-limit", "512K,2M", "--policy", "clock", "--json"]);
    assert!(run.status.success() && run.stderr.is_empty(), "{run:?}");
    let found: Value = serde_json::from_slice(&run.stdout).unwrap();
    let documented = include_str!("../../docs/traces.md");
    let fields = |of: &Value| of.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for field in [fields(&found), fields(&found["results"][0])].concat() {
        let of = format!("`{field}`");
        let in_table = |line: &str| line.split('|').nth(1).is_some_and(|cell| cell.contains(&of));
        assert!(documented.lines().any(in_table), "docs/traces.md says nothing of {field}");
    }
    for (field, value) in [("format", 1), ("records", 512), ("touches", 512), ("dropped", 0), ("recorded_faults", 0)] {
        assert_eq!(found[field], value, "{field}");
    }
    assert_eq!((&found["trace_format"], &found["first_touches"]), (&"lackey".into(), &256.0.into()));
    let rows = found["results"].as_array().unwrap();
    assert_eq!(rows.len(), 5 * 2);
    for row in rows {
        assert_eq!(row["textbook"], row["policy"] != "clock");
        // A loop over twice the limit: all are missed by LRU, and half by the optimum. What fits is not.
        let misses = row["misses"].as_f64().unwrap();
        match (row["limit_bytes"].as_u64().unwrap(), row["policy"].as_str().unwrap()) {
            (0x8_0000, "LRU" | "CLOCK") => assert!((misses - 256.0).abs() < 0.5, "{row}"),
            (0x8_0000, "Belady") => assert!((misses - 128.0).abs() < 0.5, "{row}"),
            (0x8_0000, _) => assert!(misses > 128.0, "{row}"),
            _ => assert!(misses < 0.5, "{row}"),
        }
    }
}

#[test]
fn the_table_has_a_row_for_each_and_the_picture_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("misses.svg");
    let run = replay(&trace(folder.path(), 256), &["--system-limit", "2M,512K", "--svg", svg.to_str().unwrap()]);
    let text = String::from_utf8(run.stdout.clone()).unwrap();
    assert!(run.status.success(), "{run:?}");
    for part in
        ["512 touches of 256 pages", "512 KiB  limit", "2 MiB  limit", "(CLOCK)", "(LRU)", "(S3-FIFO)", "(Belady)"]
    {
        assert!(text.contains(part), "no `{part}` in: {text}");
    }
    let picture = std::fs::read_to_string(svg).unwrap();
    assert_eq!(picture.matches("<polyline").count(), 5);
    assert_eq!(picture.matches("<circle").count(), 10);
}

#[test]
fn a_part_is_named_with_its_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = trace(folder.path(), 20_000);
    let run = replay(&file, &["--system-limit", "16M", "--sample", "2"]);
    let text = String::from_utf8(run.stdout.clone()).unwrap();
    assert!(
        run.status.success() && text.contains("note: simulated is a part of the memory") && text.contains(" ± "),
        "{run:?}"
    );
}

#[test]
fn what_is_wrong_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = trace(folder.path(), 4);
    for (args, part) in [
        (&[][..], "this trace says of no limit; give one with --system-limit SIZE"),
        (&["--system-limit", "0"], "a limit of 0 B is not a positive multiple of the page"),
        (&["--system-limit", "1M,5000"], "a limit of 5000 B is not a positive multiple of the page"),
        (&["--system-limit", "1M", "--policy", "manual"], "are replayed, without it (limit, clock)"),
        (&["--system-limit", "1M", "--policy", "limit=2M"], "only policies that hold a limit are replayed"),
        (&["--system-limit", "1M", "--policy", "lru"], "unknown policy `lru`"),
        (
            &["--system-limit", "1M", "--format", "csv"],
            "unknown format `csv`; the formats are hetmem, lackey, oracleGeneral, damo",
        ),
        (&["--system-limit", "1M", "--sample", "0"], "0 is not in 1.."),
        (&["--system-limit", "1M", "--memory", "100"], "nothing of this trace is in the part of it"),
    ] {
        refused(&replay(&file, args), 2, part);
    }
    refused(&replay(&folder.path().join("no"), &["--system-limit", "1M"]), 125, "it can't be read: No such file");
    refused(&replay(folder.path(), &["--system-limit", "1M"]), 125, "it can't be read: ");
    let run = replay(Path::new("/dev/null"), &["--system-limit", "1M"]);
    refused(&run, 125, "it is read twice, so it has to be a regular file");
    // Before what may take long is read.
    refused(&replay(&folder.path().join("no"), &["--system-limit", "0"]), 2, "a limit of 0 B is not");
    std::fs::write(&file, "hello\n").unwrap();
    refused(&replay(&file, &["--system-limit", "1M"]), 125, "it is no trace that is known");
    std::fs::write(&file, " L 1000,8\nhello\n").unwrap();
    refused(&replay(&file, &["--system-limit", "1M"]), 125, "line 2 is not one of lackey: `hello`");
    let picture = folder.path().join("no/picture.svg");
    let file = trace(folder.path(), 4);
    let run = replay(&file, &["--system-limit", "1M", "--svg", picture.to_str().unwrap()]);
    refused(&run, 125, "the picture can't be written to");
}

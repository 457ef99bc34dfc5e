//! What shows `limit` how pages are used, and that it says when memory thrashes.
#![expect(clippy::print_stderr, reason = "figures are told")]

#[path = "support/c.rs"]
mod c;
#[path = "support/users.rs"]
mod users;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use users::built;

/// Writes so many pages of 64 MiB, and then goes through them so often, but for two seconds of processors at least, as all may be gone through before
/// the first page has left. It ends early where contents are wrong.
const PROGRAM: &str = r#"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { PAGES = 16384, PAGE = 4096 };

int main(int argc, char **argv) {
    if (argc != 3)
        return 1;
    unsigned pages = (unsigned)atoi(argv[1]), rounds = (unsigned)atoi(argv[2]);
    unsigned char *memory = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    madvise(memory, (size_t)PAGES * PAGE, MADV_NOHUGEPAGE);
    for (size_t page = 0; page < pages; page++)
        memset(memory + page * PAGE, (int)(page % 251), PAGE);
    for (unsigned round = 0; round < rounds || clock() < 2 * CLOCKS_PER_SEC; round++)
        for (size_t page = 0; page < pages; page++)
            if (memory[page * PAGE + round % PAGE] != page % 251)
                return 2;
    return 0;
}
"#;

/// Runs it under a limit of a quarter of what it has: what it said, and the statistics.
fn run(folder: &Path, device: &str, options: &[&str], arguments: &[&str]) -> (Output, Value) {
    let stats = folder.join("stats.json");
    let mut command = Command::new(built("hetmem"));
    command.args(["run", "--device", device, "--policy", "limit=16M", "--stats"]).arg(&stats).args(options);
    let run = command.arg("--").arg(folder.join("program")).args(arguments).output().unwrap();
    assert!(run.status.success(), "{run:?}");
    let stats: Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
    eprintln!("{device} {options:?} {arguments:?}: {stats}");
    (run, stats)
}

const PRIVATE: &str = "private:emulated,size=256M";
const COHERENT: &str = "coherent:emulated,size=256M";

#[test]
fn a_program_that_uses_more_than_the_limit_is_told_to_thrash_and_one_that_does_not_is_not() {
    let folder = tempfile::tempdir().unwrap();
    c::program(folder.path(), PROGRAM);
    let (run_of_all, all) = run(folder.path(), PRIVATE, &[], &["16384", "12"]);
    let said = String::from_utf8_lossy(&run_of_all.stderr).into_owned();
    let number = |stats: &Value, name: &str| stats[name].as_f64().unwrap();
    assert!(number(&all, "thrashing_seconds") > 0.0, "{said}");
    // Each of the later rounds brings home what had left in the one before.
    assert!(number(&all, "refaults") > 50_000.0, "{all}");
    assert!(said.contains("  thrash    for "), "{said}");
    let (run_of_some, some) = run(folder.path(), PRIVATE, &[], &["1024", "40000"]);
    let said = String::from_utf8_lossy(&run_of_some.stderr).into_owned();
    assert_eq!(some["thrashing_seconds"], 0.0, "{said}");
    assert!(!said.contains("thrash"), "{said}");
}

#[test]
fn nothing_is_sampled_where_samples_are_no_source() {
    let folder = tempfile::tempdir().unwrap();
    c::program(folder.path(), PROGRAM);
    let number = |stats: &Value, name: &str| stats[name].as_u64().unwrap();
    // In place all is read as fast as can be.
    for (device, rounds) in [(PRIVATE, "5"), (COHERENT, "10000")] {
        let (_, stats) = run(folder.path(), device, &["--heat", "faults"], &["16384", rounds]);
        assert_eq!(number(&stats, "sample_touches"), 0);
        assert!(number(&stats, "pages_migrated_to_device") > 10_000, "the limit holds all the same");
    }
    let (_, stats) = run(folder.path(), COHERENT, &[], &["16384", "10000"]);
    // What is used in place on a coherent device shows no other touches.
    assert!(number(&stats, "sample_touches") > 0);
    assert!(number(&stats, "sample_touches") <= number(&stats, "cpu_faults"));
}

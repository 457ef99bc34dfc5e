//! Programs that map files to be read, with the pages of those on devices (`hetmem run --files`).

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::compare::{Expect, compare};
use crate::launch::{Program, Setting};
use crate::{Length, Outcome, Problem, host, trial};

/// Threads hash a file of so many MiB, with forks between.
fn hashes(setting: Setting, mib: &str, rounds: &str, least_moved: u64) -> Outcome {
    let script = host::source("scripts/mapped.py");
    let program = Program::new(host::program("python3")?).arguments([script]).arguments([mib, rounds]);
    compare(&program, setting, &Expect::moved(least_moved)).map(drop)
}

/// A database that is only read, through a mapping of its file.
fn database() -> Outcome {
    let script = "sqlite3 -batch new.db \"CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT); WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 \
                  FROM c WHERE x < 60000) INSERT INTO t SELECT x, printf('%064d', x * 7919 % 60000) FROM c;\"\n\
                  for i in 1 2 3; do sqlite3 -batch -readonly new.db 'PRAGMA mmap_size = 1073741824' \
                  \"SELECT count(*), max(b), sum(length(b)) FROM t\" \"SELECT count(*) FROM t x JOIN t y ON x.a = y.a + 1 WHERE x.b < y.b\"; done";
    host::program("sqlite3")?;
    let program = Program::new(host::program("sh")?).arguments(["-c", script]);
    compare(&program, Setting::Files, &Expect::moved(1_000)).map(drop)
}

/// Lines of words that look like chance, other ones for each `seed`.
fn text(seed: u64, lines: usize) -> String {
    let mut text = String::new();
    let mut random = seed;
    for _ in 0..lines {
        for _ in 0..4 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let _ = write!(text, "{:012x} ", random >> 16);
        }
        text.push('\n');
    }
    text
}

/// Runs `git` natively in `folder`.
fn git(folder: &Path, arguments: &[&str]) -> Outcome {
    let mut command = Command::new(host::program("git")?);
    for (name, value) in [("NAME", "nobody"), ("EMAIL", "nobody@example.org"), ("DATE", "2021-09-15T12:00:00Z")] {
        command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
    }
    let command = command.args(arguments).current_dir(folder).env("HOME", folder).env("GIT_CONFIG_NOSYSTEM", "1");
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else {
        Err(Problem::Wrong(format!("git {arguments:?} fails natively: {said}")))
    }
}

/// A repository of which everything is in one pack.
fn repository(commits: u64) -> Outcome<TempDir> {
    let folder = host::folder()?;
    git(folder.path(), &["init", "--quiet"])?;
    for commit in 0..commits {
        // Two of eight files are others in each, and one has a line more.
        for file in [commit % 8, (commit * 5 + 3) % 8] {
            fs::write(folder.path().join(format!("{file}.txt")), text(commit * 8 + file, 6_000))?;
        }
        let mut more = fs::read_to_string(folder.path().join("0.txt"))?;
        let _ = writeln!(more, "commit {commit}");
        fs::write(folder.path().join("0.txt"), more)?;
        git(folder.path(), &["add", "."])?;
        git(folder.path(), &["commit", "--quiet", "--message", &format!("change {commit}")])?;
    }
    git(folder.path(), &["repack", "-a", "-d", "--quiet"])?;
    Ok(folder)
}

/// All objects are looked at, and all changes printed, from a pack that is mapped.
fn packs(commits: u64, rounds: u32) -> Outcome {
    let repository = repository(commits)?;
    let script = "export HOME=$PWD GIT_CONFIG_NOSYSTEM=1 GIT_PAGER=cat; git=$1; cd $2; for i in $(seq $3); do $git fsck --full --strict 2>&1; \
                  $git log -p | sha256sum; $git log --stat --format=%s | tail -3; $git grep -c 0f0f HEAD; \
                  $git cat-file --batch-check --batch-all-objects | sha256sum; done";
    let program = Program::new(host::program("sh")?).arguments(["-c", script, "sh"]);
    let program =
        program.arguments([host::program("git")?.as_path(), repository.path()]).arguments([rounds.to_string()]);
    compare(&program, Setting::Files, &Expect::moved(1_000)).map(drop)
}

/// Files are searched that are mapped, by several threads and by one.
fn search(files: u64, rounds: u32) -> Outcome {
    let folder = host::folder()?;
    for file in 0..files {
        fs::write(folder.path().join(format!("{file}.txt")), text(file, 20_000))?;
    }
    let script = "rg=\"$1 --no-config --mmap\"; cd $2; for i in $(seq $3); do $rg --threads 2 --count '[0-9]f00+[a-f]' . | sort | sha256sum; \
                  $rg --sort path --only-matching --no-line-number 'abc[0-9]{3}de' . | sha256sum; $rg --quiet 'no such line' .; echo $?; done";
    let program = Program::new(host::program("sh")?).arguments(["-c", script, "sh"]);
    let program = program.arguments([host::program("rg")?.as_path(), folder.path()]).arguments([rounds.to_string()]);
    compare(&program, Setting::Files, &Expect::moved(1_000)).map(drop)
}

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("files::python", || hashes(Setting::Files, "64", "4", 20_000)),
        Length::Long.trial("files::python", || hashes(Setting::Files, "512", "2", 100_000)),
        // Files that are mapped are clean to a clock, too: they leave when there is no room.
        trial("files-limit::python", || hashes(Setting::FilesLimit, "64", "4", 16_384)),
        trial("files::sqlite", database),
        trial("files::git", || packs(24, 1)),
        Length::Long.trial("files::git", || packs(60, 2)),
        trial("files::ripgrep", || search(12, 2)),
        Length::Long.trial("files::ripgrep", || search(100, 6)),
    ]
}

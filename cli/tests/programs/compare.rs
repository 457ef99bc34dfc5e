//! A program's native run against its managed run.

use std::path::Path;
use std::time::Duration;

use crate::launch::{Ended, Program, Setting, last_part};
use crate::{Outcome, Problem};

/// What is compared besides the exit status.
#[derive(Clone, Debug)]
pub(crate) struct Expect {
    /// Both outputs, byte by byte; programs that print times or process numbers are compared otherwise.
    pub(crate) output: bool,
    /// Files that the program leaves in its folder.
    pub(crate) files: &'static [&'static str],
    /// Pages that must have moved at least.
    pub(crate) least_moved: u64,
    /// Lines in which hetmem may say why it leaves the program, or one that it executes, alone. Each is of one process.
    pub(crate) remarks: usize,
    /// Whether memory is adopted when the program ends. What it does may end that, which the summary says, and one that ends at once may do so before
    /// any is.
    pub(crate) managed_to_the_end: bool,
}

/// Exit status by which a program says that what it does can't be tried on this host; the last line of its output says why.
const NOT_HERE: i32 = 77;

impl Expect {
    /// The same output, and at least so many pages moved.
    pub(crate) const fn moved(least_moved: u64) -> Self {
        Self { output: true, files: &[], least_moved, remarks: 0, managed_to_the_end: true }
    }
}

/// How often a program that ends at once is run until enough has moved: on a busy machine one that takes milliseconds may end before the agent's turn
/// has come.
const RUNS: usize = 5;
/// A run that takes longer than this has given the agent its turns.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Runs `program` natively and in `setting`, and compares. Enough pages must move; where the program ends at once, in one of [`RUNS`] at
/// least, each of which must be right.
pub(crate) fn compare(program: &Program, setting: Setting, expect: &Expect) -> Outcome<(Ended, Ended)> {
    let native = program.start(None)?.wait()?;
    if native.code() == NOT_HERE {
        let said = String::from_utf8_lossy(&native.stdout);
        return Err(Problem::Refused(said.lines().last().unwrap_or("no reason is given").to_owned()));
    }
    for run in 1.. {
        let managed = program.start(Some(setting))?.wait()?;
        report(&managed, &native);
        let remarks = check(&managed, &native, expect)?;
        let least_moved = if remarks == 0 { expect.least_moved } else { 0 };
        if run == RUNS || managed.moved() >= least_moved || managed.took > AT_ONCE {
            check_stats(&managed, least_moved, remarks == 0 && expect.managed_to_the_end)?;
            return Ok((native, managed));
        }
    }
    unreachable!("the last of {RUNS} runs is the last");
}

/// Complains if a managed run was not what is expected; how many remarks there were.
fn check(managed: &Ended, native: &Ended, expect: &Expect) -> Outcome<usize> {
    if managed.code() != native.code() {
        let text = format!(
            "{}\nended with {} instead of {}\n--- stdout\n{}\n--- stderr\n{}",
            managed.what,
            managed.code(),
            native.code(),
            last_part(&managed.stdout),
            last_part(&managed.stderr)
        );
        return Err(Problem::Wrong(text));
    }
    let (stderr, remarks) = without_remarks(&managed.stderr, expect.remarks);
    if expect.output {
        same("standard error", &native.stderr, &stderr, managed)?;
        same("standard output", &native.stdout, &managed.stdout, managed)?;
    }
    for name in expect.files {
        let read = |folder: &Path| std::fs::read(folder.join(name)).map_err(|error| format!("{name}: {error}"));
        same(name, &read(native.folder.path())?, &read(managed.folder.path())?, managed)?;
    }
    check_stats(managed, 0, false)?;
    Ok(remarks)
}

/// Standard error without the first `most` lines of hetmem's, and how many there were.
fn without_remarks(stderr: &[u8], most: usize) -> (Vec<u8>, usize) {
    let mut found = 0;
    let mut rest = Vec::new();
    for line in stderr.split_inclusive(|byte| *byte == b'\n') {
        if found < most && line.starts_with(b"hetmem: ") {
            found += 1;
        } else {
            rest.extend_from_slice(line);
        }
    }
    (rest, found)
}

/// Complains if the statistics of a managed run show a problem.
pub(crate) fn check_stats(managed: &Ended, least_moved: u64, to_the_end: bool) -> Outcome {
    match &managed.stats {
        None => Err(Problem::Wrong(format!("{}: no statistics", managed.what))),
        Some(stats) => Ok(stats.check(managed.code(), least_moved, to_the_end)?),
    }
}

/// Shows what the managed run did, beside the test's name.
pub(crate) fn report(managed: &Ended, native: &Ended) {
    let summary = managed.stats.as_ref().map_or_else(String::new, crate::stats::Stats::summary);
    let name = managed.what.rsplit_once("\"--\" ").map_or("?", |(_, program)| program);
    let name: String = name.chars().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect();
    eprintln!("  {:.1} s, natively {:.1} s: {summary} [{name}]", managed.took.as_secs_f64(), native.took.as_secs_f64());
}

/// Complains about the first line that differs.
pub(crate) fn same(what: &str, native: &[u8], managed: &[u8], run: &Ended) -> Outcome {
    if native == managed {
        return Ok(());
    }
    let (expected, got) = (String::from_utf8_lossy(native), String::from_utf8_lossy(managed));
    let at = expected.lines().zip(got.lines()).take_while(|(a, b)| a == b).count();
    let line =
        |text: &str| text.lines().nth(at).map_or_else(|| "(the end)".to_owned(), |line| last_part(line.as_bytes()));
    Err(Problem::Wrong(format!(
        "{}\n{what} differs from line {} on ({} bytes instead of {}), status {}\nnative:  {}\nmanaged: {}\n--- stderr\n{}",
        run.what,
        at + 1,
        managed.len(),
        native.len(),
        run.code(),
        line(&expected),
        line(&got),
        last_part(&run.stderr)
    )))
}

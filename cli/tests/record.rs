//! `hetmem run --record`: what is recorded of real runs, and what comes of it when it is replayed.
#![expect(clippy::print_stderr, reason = "figures are told")]

#[path = "support/c.rs"]
mod c;
#[path = "support/users.rs"]
mod users;

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output};

use hetmem_core::record::Record;
use hetmem_trace::format::Ending;
use serde_json::Value;
use users::built;

/// Touches 64 MiB page by page, then so many pages again and again, of which few are touched most; in so many processes, or, if that is none, in one that
/// half way ends the supervisor, or itself.
const PROGRAM: &str = r#"
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 16384, PAGE = 4096 };

static uint64_t draw(uint64_t *state, uint64_t below) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (*state >> 33) % below;
}

static int work(unsigned touches, pid_t victim) {
    unsigned char *memory = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 1;
    madvise(memory, (size_t)PAGES * PAGE, MADV_NOHUGEPAGE);
    for (size_t page = 0; page < PAGES; page++)
        memset(memory + page * PAGE, (int)(page % 251), PAGE);
    uint64_t state = 1;
    for (unsigned touch = 0; touch < touches; touch++) {
        uint64_t page = draw(&state, draw(&state, PAGES) + 1);
        if (memory[page * PAGE + 7] != page % 251)
            return 2;
        if (touch % 1000 == 0)
            usleep(1000);
        if (victim && touch == touches / 2)
            kill(victim, SIGKILL);
    }
    return 0;
}

int main(int argc, char **argv) {
    unsigned touches = argc > 1 ? (unsigned)atoi(argv[1]) : 100000;
    const char *what = argc > 2 ? argv[2] : "1";
    pid_t victim = strcmp(what, "supervisor") == 0 ? getppid() : strcmp(what, "itself") == 0 ? getpid() : 0;
    int processes = atoi(what);
    for (int child = 1; child < processes; child++)
        if (fork() == 0)
            _exit(work(touches, 0));
    int result = work(touches, victim), status;
    while (wait(&status) > 0)
        result |= status;
    if (victim)
        puts("done");
    return result;
}
"#;

fn run(trace: &Path, stats: &Path, program: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(built("hetmem"));
    command.args(["run", "--device", "private:emulated,size=256M", "--policy", "clock=32M", "--record"]).arg(trace);
    command.arg("--stats").arg(stats).arg("--").arg(program).args(arguments);
    command.output().unwrap()
}

fn replay(trace: &Path, args: &[&str]) -> Value {
    let run = Command::new(built("hetmem")).arg("replay").arg(trace).args(["--json"]).args(args).output().unwrap();
    assert!(run.status.success() && run.stderr.is_empty(), "{run:?}");
    serde_json::from_slice(&run.stdout).unwrap()
}

#[test]
fn what_is_replayed_misses_no_more_than_the_run_did_and_not_much_less() {
    let folder = tempfile::tempdir().unwrap();
    let program = c::program(folder.path(), PROGRAM);
    let (trace, stats) = (folder.path().join("trace"), folder.path().join("stats.json"));
    let ran = run(&trace, &stats, &program, &["150000"]);
    assert!(ran.status.success(), "{ran:?}");
    let stats: Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
    let found = replay(&trace, &["--policy", "clock"]);
    assert_eq!((&found["cut_off"], &found["dropped"], &found["processes"]), (&false.into(), &0.into(), &1.into()));
    assert_eq!(found["recording"]["policy"], "clock=32M");
    let faults = stats["cpu_faults"].as_f64().unwrap();
    let recorded = found["recorded_faults"].as_f64().unwrap();
    assert!((recorded / faults - 1.0).abs() < 0.001, "{recorded} of {faults} faults are recorded");
    let row = found["results"].as_array().unwrap().iter().find(|row| row["policy"] == "clock").unwrap();
    let misses = row["misses"].as_f64().unwrap();
    eprintln!("{misses} misses are replayed of {faults} that the run had: {:+.2} %", (misses / faults - 1.0) * 100.0);
    // Never more: what is recorded are misses. Fewer, as touches of what was there are not.
    assert!(misses <= recorded && misses > recorded * 0.7, "{misses} of {recorded}");
}

#[test]
fn processes_of_a_run_are_recorded_apart() {
    let folder = tempfile::tempdir().unwrap();
    let program = c::program(folder.path(), PROGRAM);
    let (trace, stats) = (folder.path().join("trace"), folder.path().join("stats.json"));
    let ran = run(&trace, &stats, &program, &["20000", "3"]);
    assert!(ran.status.success(), "{ran:?}");
    let found = replay(&trace, &["--policy", "clock"]);
    assert_eq!((&found["cut_off"], &found["processes"]), (&false.into(), &3.into()));
    assert!(found["pages"].as_f64().unwrap() >= 3.0 * 16_384.0, "{found}");
}

/// What is in a trace, and whether it was cut off.
fn records(trace: &Path) -> (Vec<Record>, bool) {
    let mut all = Vec::new();
    let played = hetmem_trace::play(trace, None, &mut |records| all.extend_from_slice(records)).unwrap();
    (all, played.ending == Ending::CutOff)
}

#[test]
fn a_process_that_executes_another_program_begins_anew() {
    let folder = tempfile::tempdir().unwrap();
    let program = c::program(folder.path(), PROGRAM);
    let (trace, stats) = (folder.path().join("trace"), folder.path().join("stats.json"));
    let script = format!("exec {} 20000", program.display());
    let ran = run(&trace, &stats, Path::new("sh"), &["-c", &script]);
    assert!(ran.status.success(), "{ran:?}");
    let (all, cut_off) = records(&trace);
    let began = all.iter().filter(|record| matches!(record, Record::Began)).count();
    let pids = all.iter().filter(|record| matches!(record, Record::Process { .. })).count();
    assert_eq!((began, pids, cut_off), (2, 1, false));
}

#[test]
fn a_program_that_is_killed_leaves_a_whole_trace() {
    let folder = tempfile::tempdir().unwrap();
    let program = c::program(folder.path(), PROGRAM);
    let (trace, stats) = (folder.path().join("trace"), folder.path().join("stats.json"));
    let ran = run(&trace, &stats, &program, &["40000", "itself"]);
    assert_eq!(ran.status.code(), Some(128 + 9), "{ran:?}");
    let (all, cut_off) = records(&trace);
    assert!(!cut_off && all.iter().any(|record| matches!(record, Record::Fault { .. })));
}

#[test]
fn a_program_goes_on_without_who_records_it_and_what_was_written_is_sound() {
    let folder = tempfile::tempdir().unwrap();
    let program = c::program(folder.path(), PROGRAM);
    let (trace, stats) = (folder.path().join("trace"), folder.path().join("stats.json"));
    // Its standard output is closed when the program has ended, too.
    let ran = run(&trace, &stats, &program, &["150000", "supervisor"]);
    assert_eq!((ran.status.signal(), &*ran.stdout), (Some(9), &b"done\n"[..]), "{ran:?}");
    assert!(records(&trace).1, "it was cut off");
}

#[test]
fn where_the_trace_cannot_grow_that_is_said_once_and_the_program_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let program = c::program(folder.path(), PROGRAM);
    let trace = folder.path().join("trace");
    let script = format!(
        "ulimit -S -f 8; exec {} run -q --device private:emulated,size=256M --policy clock=32M --record {} -- {} 150000",
        built("hetmem").display(),
        trace.display(),
        program.display()
    );
    let ran = Command::new("bash").args(["-c", &script]).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(said.matches("ends here: it can't be written").count(), 1, "{said}");
    // What is there of it is sound.
    assert_eq!(replay(&trace, &["--policy", "clock"])["cut_off"], true);
}

#[test]
fn a_trace_that_cannot_be_made_is_refused_before_the_program_starts() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("no/trace");
    let ran =
        Command::new(built("hetmem")).args(["run", "--record"]).arg(&trace).args(["--", "true"]).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(125), "{ran:?}");
    assert!(said.starts_with("hetmem: the run can't be recorded in ") && said.lines().count() == 1, "{said}");
}

#[test]
fn a_named_pipe_is_refused_and_nobody_waits_for_its_reader() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let ran = Command::new(built("hetmem")).args(["run", "--record"]).arg(&pipe).args(["--", "true"]).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(125), "{ran:?}");
    assert!(said.contains("it is a named pipe") && said.lines().count() == 1, "{said}");
}

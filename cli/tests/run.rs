//! `hetmem run` around a program: exit status, signals, output, statistics. What happens to its pages is tested elsewhere.
#![expect(clippy::print_stderr, reason = "a test that can't run here says so")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{hetmem, output, status, stderr, stdout};

fn sh(options: &[&str], script: &str) -> Command {
    let mut command = hetmem();
    command.arg("run").args(options).args(["--", "sh", "-c", script]);
    command
}

/// Waits for a line of a program's output.
#[track_caller]
fn wait_for(reader: &mut impl std::io::BufRead, line: &str) {
    let mut read = String::new();
    while reader.read_line(&mut read).unwrap() != 0 {
        if read.trim_end() == line {
            return;
        }
        read.clear();
    }
    panic!("the program ended without `{line}`");
}

fn started(command: &mut Command) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let reader = BufReader::new(child.stdout.take().unwrap());
    (child, reader)
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed()).unwrap()
}

#[test]
fn the_exit_status_is_the_programs() {
    for code in [0, 1, 2, 3, 125, 126, 127, 255] {
        assert_eq!(status(&output(&mut sh(&["-q"], &format!("exit {code}")))), code);
    }
}

#[test]
fn a_signal_is_128_and_its_number() {
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("INT", 130), ("ABRT", 134), ("SEGV", 139)] {
        let dir = tempfile::tempdir().unwrap();
        let stats = dir.path().join("stats.json");
        let run = output(&mut sh(&["--stats", stats.to_str().unwrap()], &format!("ulimit -c 0; kill -{signal} $$")));
        assert_eq!(status(&run), code, "{}", stderr(&run));
        let stats: Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
        assert_eq!(stats["exit_code"], code);
    }
}

#[test]
fn arguments_environment_and_streams_are_the_programs() {
    let (mut child, mut reader) = started(
        sh(&["-q"], r#"read x; echo "$x $0 $1 $2 $FROM_TEST"; echo err >&2"#)
            .args(["name", "--quiet", ""])
            .env("FROM_TEST", "e"),
    );
    child.stdin.take().unwrap().write_all(b"in\n").unwrap();
    let mut text = String::new();
    reader.read_line(&mut text).unwrap();
    assert_eq!(text, "in name --quiet  e\n");
    let run = child.wait_with_output().unwrap();
    assert_eq!(status(&run), 0);
    assert!(stderr(&run).contains("err\n"));
}

#[test]
fn the_program_is_called_what_it_was_called_by() {
    let run = output(hetmem().args(["run", "-q", "--", "cat", "/proc/self/cmdline"]));
    assert_eq!(run.stdout, b"cat\0/proc/self/cmdline\0");
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("no-interpreter");
    std::fs::write(&script, "echo \"$0 $1\"\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let run = output(hetmem().args(["run", "-q", "--"]).arg(&script).arg("x"));
    assert_eq!(stdout(&run), format!("{} x\n", script.display()));
}

#[test]
fn preloaded_libraries_of_the_user_stay() {
    let run = output(sh(&["-q"], "echo $LD_PRELOAD").env("LD_PRELOAD", "libm.so.6"));
    let value = stdout(&run);
    assert!(value.contains("libhetmem.so:") && value.trim_end().ends_with(":libm.so.6"), "{value}");
}

#[test]
fn the_statistics_have_every_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stats.json");
    let devices = ["--device", "private:emulated,size=64M,name=gpu0", "--device", "coherent:emulated,size=1M"];
    let run = output(&mut sh(&[&devices[..], &["--stats", path.to_str().unwrap()]].concat(), "exit 4"));
    assert_eq!(status(&run), 4);
    let stats: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(stats["program"], "sh");
    assert_eq!(stats["exit_code"], 4);
    assert!(stats["wall_seconds"].as_f64().unwrap() > 0.0);
    for number in [
        "adopted_bytes",
        "pages_migrated_to_device",
        "pages_migrated_to_system",
        "cpu_faults",
        "sample_touches",
        "refaults",
        "bytes_copied",
        "errors",
    ] {
        assert!(stats[number].is_u64(), "{number}");
    }
    assert_eq!(stats["thrashing_seconds"], 0.0);
    assert!(stats["pages_kept"].is_object());
    for quantile in ["p50", "p99", "max"] {
        assert!(stats["fault_latency_us"][quantile].is_f64(), "{quantile}");
    }
    let devices = stats["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 2);
    assert_eq!(devices[0]["name"], "gpu0");
    assert_eq!(devices[0]["memory_type"], "private");
    assert_eq!(devices[0]["backend"], "emulated");
    assert_eq!(devices[0]["capacity_bytes"], 64 << 20);
    assert!(devices[0]["used_bytes"].is_u64() && devices[0]["peak_used_bytes"].is_u64());
    assert_eq!(devices[1]["name"], "coherent0");
}

#[test]
fn a_managed_run_counts_its_processes_and_says_so_unless_asked_not_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stats.json");
    let run = output(&mut sh(&["--stats", path.to_str().unwrap()], "(exit 1) || exit 4"));
    assert_eq!(status(&run), 4);
    let said = stderr(&run);
    assert!(said.starts_with("hetmem: sh: exit status 4 after "), "{said}");
    for row in ["  coherent0  coherent, ", "  pages      ", "  kept       ", "  faults     "] {
        assert!(said.contains(row), "{said}");
    }
    let stats: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(stats["processes"].as_u64().unwrap() >= 1, "{stats}");
    let quiet = output(&mut sh(&["--quiet"], "exit 4"));
    assert_eq!(status(&quiet), 4);
    assert_eq!(stderr(&quiet), "");
}

#[test]
fn statistics_go_to_standard_output_behind_the_programs_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let file = std::fs::File::create(&path).unwrap();
    let run = output(sh(&["-q", "--stats", "/dev/stdout"], "echo first").stdout(file));
    assert_eq!(status(&run), 0);
    let text = std::fs::read_to_string(&path).unwrap();
    let json = text.strip_prefix("first\n").expect("the program's output is whole");
    assert!(serde_json::from_str::<Value>(json).is_ok(), "{json}");
}

#[test]
fn statistics_that_cannot_be_written_at_the_end_are_not_lost_silently() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("folder");
    let stats = folder.join("stats.json");
    for (script, code) in [("rm -r \"$0\"", 125), ("rm -r \"$0\"; exit 3", 3)] {
        std::fs::create_dir(&folder).unwrap();
        let run = output(sh(&["-q", "--stats", stats.to_str().unwrap()], script).arg(&folder));
        assert_eq!(status(&run), code);
        assert!(stderr(&run).contains("statistics can't be written"), "{}", stderr(&run));
    }
}

#[test]
fn a_signal_sent_to_hetmem_reaches_the_program() {
    for (name, signal) in [
        ("TERM", Signal::TERM),
        ("INT", Signal::INT),
        ("HUP", Signal::HUP),
        ("QUIT", Signal::QUIT),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
    ] {
        let script = format!("trap 'exit 7' {name}; echo ready; while :; do read x; done");
        let (child, mut reader) = started(&mut sh(&["-q"], &script));
        wait_for(&mut reader, "ready");
        kill_process(pid(&child), signal).unwrap();
        assert_eq!(status(&child.wait_with_output().unwrap()), 7, "{name}");
    }
}

#[test]
fn a_program_that_is_killed_leaves_its_statistics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stats.json");
    let (child, mut reader) = started(&mut sh(&["--stats", path.to_str().unwrap()], "echo $$; read x"));
    let mut program = String::new();
    reader.read_line(&mut program).unwrap();
    kill_process(Pid::from_raw(program.trim().parse().unwrap()).unwrap(), Signal::KILL).unwrap();
    let run = child.wait_with_output().unwrap();
    assert_eq!(status(&run), 137);
    let stats: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(stats["exit_code"], 137);
}

#[test]
fn a_program_that_stops_and_continues_is_waited_for() {
    let (mut child, mut reader) = started(&mut sh(&["-q"], "echo $$; read x; echo $x; exit 5"));
    let mut program = String::new();
    reader.read_line(&mut program).unwrap();
    let program = Pid::from_raw(program.trim().parse().unwrap()).unwrap();
    kill_process(program, Signal::STOP).unwrap();
    kill_process(program, Signal::CONT).unwrap();
    child.stdin.take().unwrap().write_all(b"on\n").unwrap();
    wait_for(&mut reader, "on");
    assert_eq!(status(&child.wait_with_output().unwrap()), 5);
}

#[test]
fn ignored_and_blocked_signals_are_the_programs_too() {
    let look = ["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"];
    let under = |wrapper: &[&str]| {
        let mut command = Command::new("env");
        command.args(["--ignore-signal=HUP,INT,CHLD,PIPE,XFSZ", "--block-signal=USR1"]).args(wrapper).args(look);
        output(&mut command)
    };
    let native = under(&[]);
    if !native.status.success() {
        return eprintln!("skipped: env can't ignore and block signals here: {}", stderr(&native));
    }
    let binary = hetmem().get_program().to_str().unwrap().to_owned();
    let managed = under(&[&binary, "run", "-q", "--"]);
    // SIGCHLD is ignored by nobody who waits for a child. Signals 32 and 33 are the C library's own: it catches them in every
    // program with threads, whatever they were before.
    let comparable = |text: String| {
        text.lines()
            .map(|line| {
                let (name, mask) = line.split_once(":\t").unwrap();
                (name.to_owned(), u64::from_str_radix(mask, 16).unwrap() & !(1 << 16 | 3 << 31))
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(comparable(stdout(&managed)), comparable(stdout(&native)));
    assert_eq!(status(&managed), 0);
}

#[test]
fn an_interrupt_from_the_terminal_reaches_the_program_once() {
    let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let terminal = || {
        let path = name.to_str().unwrap();
        std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap()
    };
    let script =
        "trap 'n=$((n+1))' INT; n=0; echo ready; while read x; do [ \"$x\" = end ] && break; done; echo n=$n; exit 6";
    let binary = hetmem().get_program().to_owned();
    let slave = terminal();
    let spawned = Command::new("setsid")
        .args(["--ctty", "--wait"])
        .arg(binary)
        .args(["run", "-q", "--", "bash", "-c", script])
        .stdin(slave.try_clone().unwrap())
        .stdout(slave.try_clone().unwrap())
        .stderr(slave)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return eprintln!("skipped: setsid can't be run: {error}"),
    };
    let mut master = std::fs::File::from(master);
    let mut reader = BufReader::new(master.try_clone().unwrap());
    wait_for(&mut reader, "ready");
    master.write_all(b"\x03").unwrap();
    master.write_all(b"end\n").unwrap();
    wait_for(&mut reader, "n=1");
    assert_eq!(child.wait().unwrap().code(), Some(6));
    // The terminal's other end is gone: nothing holds it open any more.
    let _ = reader.read(&mut [0; 64]);
}

/// A script that runs hetmem as `$hetmem`, as a shell does that was started by something odd.
fn around(script: &str) -> std::process::Output {
    output(Command::new("bash").args(["-c", script]).env("hetmem", hetmem().get_program()))
}

#[test]
fn streams_that_are_closed_are_closed_in_the_program() {
    let look = "for n in 0 1 2; do [ -e /proc/self/fd/$n ] && echo $n >&9; done";
    let told = |wrapper: &str, closed: &str| {
        let run = around(&format!("exec 9>&1; {wrapper} bash -c '{look}; echo hi' {closed}; echo status $?"));
        (stdout(&run), stderr(&run))
    };
    for closed in ["<&-", ">&-", "2>&-", "<&- 2>&-", "<&- >&- 2>&-", ""] {
        assert_eq!(told("$hetmem run --quiet --", closed), told("", closed), "{closed}");
    }
}

#[test]
fn statistics_to_a_stream_that_is_closed_are_refused() {
    for (path, closed) in [("/dev/stdout", ">&-"), ("/dev/fd/1", ">&-"), ("/proc/self/fd/0", "<&-")] {
        let run = around(&format!("$hetmem run --quiet --stats {path} -- true {closed}"));
        assert_eq!(status(&run), 125, "{path}");
        assert!(
            stderr(&run).starts_with(&format!("hetmem: statistics can't be written to {path}: ")),
            "{}",
            stderr(&run)
        );
    }
}

/// The program has the limit, and hetmem what may be had above it.
#[test]
fn a_limit_on_files_is_the_programs() {
    let dir = tempfile::tempdir().unwrap();
    let stats = dir.path().join("stats.json");
    let run =
        around(&format!("ulimit -S -f 1; $hetmem run --quiet --stats {} -- bash -c 'ulimit -f'", stats.display()));
    assert_eq!((status(&run), stdout(&run).trim()), (0, "1"), "{}", stderr(&run));
    assert!(serde_json::from_slice::<Value>(&std::fs::read(&stats).unwrap()).is_ok());
    std::fs::remove_file(&stats).unwrap();
    for limit in [0, 8, 4096] {
        let run = around(&format!("ulimit -f {limit}; $hetmem run --quiet --stats {} -- true", stats.display()));
        assert!([0, 125].contains(&status(&run)), "{limit}: {}", run.status);
        assert_eq!(stderr(&run).lines().count(), usize::from(status(&run) != 0), "{}", stderr(&run));
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == "stats.json"), "{left:?}");
    }
}

/// Where hetmem says that it did not start a program nothing of it runs, however little there is. Whoever has the pipe is waited for.
#[test]
fn a_program_that_was_not_started_does_not_run() {
    let mut refused = 0;
    for kilobytes in (200..4000).step_by(40) {
        let run = around(&format!("ulimit -c 0; ulimit -d {kilobytes}; exec $hetmem run --quiet -- /bin/echo ran"));
        let said = stderr(&run);
        match run.status.code() {
            Some(0) => assert_eq!(stdout(&run), "ran\n"),
            Some(125 | 126) => {
                refused += 1;
                assert!(stdout(&run).is_empty(), "{kilobytes}: {said}");
                assert_eq!(said.lines().count(), 1, "{said}");
            }
            // hetmem itself could not be loaded.
            _ => assert!(stdout(&run).is_empty() && kilobytes < 1000, "{kilobytes}: {:?} {said}", run.status),
        }
    }
    assert!(refused > 0);
}

/// The statistics memory is where the program can write: whatever it writes, its status is passed on, and there are statistics.
#[test]
fn stores_into_the_statistics_memory_change_no_status() {
    const SCRIBBLE: &str = r#"
import re, sys
for line in open("/proc/self/maps"):
    if "hetmem-statistics" in line:
        start, end = (int(x, 16) for x in re.match("([0-9a-f]+)-([0-9a-f]+)", line).groups())
        with open("/proc/self/mem", "r+b", 0) as memory:
            for at in range(start + int(sys.argv[2]), end, int(sys.argv[1])):
                memory.seek(at)
                memory.write(b"\xff" * 8)
        print("written")
# Long enough for a policy to see it.
for turn in range(8):
    pages = [bytes(4096) for page in range(4096)]
sys.exit(7)
"#;
    const LITTLE: [&str; 4] = ["--system-limit", "4M", "--device", "private:emulated,size=64M"];
    if Command::new("python3").arg("--version").output().is_err() {
        return eprintln!("skipped: there is no python3");
    }
    let where_to = [("8", "0"), ("8", "16"), ("128", "64"), ("16", "8")];
    let policies = [("manual", &[][..]), ("limit", &LITTLE), ("clock", &LITTLE)];
    let cases = policies.into_iter().flat_map(|policy| where_to.map(|place| (policy, place)));
    for ((policy, options), (step, first)) in cases {
        let dir = tempfile::tempdir().unwrap();
        let stats = dir.path().join("stats.json");
        let mut command = hetmem();
        command.args(["run", "--policy", policy]).args(options).arg("--stats").arg(&stats);
        let run = output(command.args(["--", "python3", "-c", SCRIBBLE, step, first]));
        assert_eq!((status(&run), stdout(&run).trim()), (7, "written"), "{policy}: {}", stderr(&run));
        let stats: Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
        assert_eq!(stats["exit_code"], 7);
    }
}

/// A device that is as slow as asked for serves any program: by a short wait, and by a long one, during which the agent's thread does other things.
#[test]
fn slow_devices_give_pages_back() {
    let script = r#"awk 'BEGIN { for (i = 1; i <= 20000; i++) a[i] = i; for (i in a) sum += a[i]; print sum }'"#;
    for latency in ["2us", "1ms"] {
        let device = format!("private:emulated,size=64M,latency={latency},bandwidth=8G");
        let run = output(&mut sh(&["--policy", "chaos=1", "--device", &device], script));
        assert_eq!((status(&run), stdout(&run).trim()), (0, "200010000"), "{latency}: {}", stderr(&run));
        assert!(!stderr(&run).contains("faults     0 served"), "{latency}: {}", stderr(&run));
    }
}

/// What the program keeps out of core dumps is in none, wherever its pages were.
#[test]
fn core_dumps_have_nothing_that_the_program_keeps_out_of_them() {
    const ABORT: &str = r#"
import mmap, os
memory = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_DONTDUMP)
secret = bytes(x ^ 0x55 for x in b"".join([b"\x06\x66\x36\x27\x60\x61"] * 4))
for turn in range(20):
    for at in range(0, len(memory), 64):
        memory[at:at + len(secret)] = secret
    assert all(memory[at:at + len(secret)] == secret for at in range(0, len(memory), 4096))
print(len(secret), secret.hex(), flush=True)
os.abort()
"#;
    if std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap().trim() != "core" {
        return eprintln!("skipped: core dumps are not files here");
    }
    let dir = tempfile::tempdir().unwrap();
    let stats = dir.path().join("stats.json");
    let options =
        format!("--stats {} --policy limit --system-limit 1M --device private:emulated,size=16M", stats.display());
    let script = format!(
        "cd {}; ulimit -c unlimited || exit 77; exec $hetmem run {options} -- python3 -c '{ABORT}'",
        dir.path().display()
    );
    let run = around(&script);
    if [77, 127].contains(&status(&run)) {
        return eprintln!("skipped: {}", stderr(&run));
    }
    assert_eq!(status(&run), 134, "{}", stderr(&run));
    let said = stderr(&run);
    assert!(said.lines().any(|line| line.contains("signal 6, core dumped after ")), "{said}");
    let told: Value = serde_json::from_slice(&std::fs::read(&stats).unwrap()).unwrap();
    assert!(told["pages_migrated_to_device"].as_u64().unwrap() > 2048, "{told}");
    std::fs::remove_file(&stats).unwrap();
    let core = std::fs::read_dir(dir.path()).unwrap().next().expect("a core dump").unwrap();
    let dump = std::fs::read(core.path()).unwrap();
    let secret = stdout(&run).split_whitespace().nth(1).unwrap().to_owned();
    let secret: Vec<u8> =
        (0..secret.len()).step_by(2).map(|i| u8::from_str_radix(&secret[i..i + 2], 16).unwrap()).collect();
    // A few are the interpreter's own.
    let copies = dump.windows(secret.len()).filter(|window| *window == secret).count();
    assert!(copies < 16, "{copies} copies");
    assert!(dump.len() < 1 << 30, "{} bytes", dump.len());
}

/// `/proc` of another namespace knows this process by another number: then no other process's descriptor is opened, and what is counted is read.
#[test]
fn in_a_process_namespace_with_a_foreign_proc_statistics_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let stats = dir.path().join("stats.json");
    let unshared = |command: &str| around(&format!("exec unshare --pid --fork {command}"));
    if !unshared("true").status.success() {
        return eprintln!("skipped: no process namespace can be had");
    }
    let run = unshared(&format!("$hetmem run --quiet --stats {} -- sh -c 'exit 3'", stats.display()));
    assert_eq!((status(&run), stderr(&run).as_str()), (3, ""));
    let stats: Value = serde_json::from_slice(&std::fs::read(stats).unwrap()).unwrap();
    assert_eq!(stats["processes"], 1);
}

#[test]
fn statistics_leave_a_file_its_owner() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
    let dir = tempfile::tempdir().unwrap();
    let stats = dir.path().join("stats.json");
    std::fs::write(&stats, "before").unwrap();
    std::fs::set_permissions(&stats, std::fs::Permissions::from_mode(0o640)).unwrap();
    if chown(&stats, Some(12345), Some(12346)).is_err() {
        return eprintln!("skipped: only root can give files away");
    }
    assert_eq!(status(&output(hetmem().args(["run", "--quiet", "--stats"]).arg(&stats).args(["--", "true"]))), 0);
    let now = std::fs::metadata(&stats).unwrap();
    assert_eq!((now.uid(), now.gid(), now.mode() & 0o7777), (12345, 12346, 0o640));
    assert!(serde_json::from_slice::<Value>(&std::fs::read(&stats).unwrap()).is_ok());
}

#[test]
fn doctor_says_as_json_what_it_says_as_a_table() {
    let table = output(hetmem().arg("doctor"));
    let json = output(hetmem().args(["doctor", "--json"]));
    assert_eq!(status(&table), status(&json));
    let findings: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(findings["can_run"], status(&json) == 0);
    let checks = findings["checks"].as_array().unwrap();
    for name in ["kernel", "userfaultfd", "userfaultfd features", "huge pages", "NUMA nodes", "devdax", "memory"] {
        assert!(checks.iter().any(|check| check["name"] == name), "{name}");
        assert!(stdout(&table).contains(name), "{name}");
    }
    for check in checks {
        assert!(["present", "limited", "absent"].contains(&check["state"].as_str().unwrap()), "{check}");
    }
}

//! Bad input and missing things: one clear line, the right exit status, and nothing is started.
#![expect(clippy::print_stderr, reason = "a test that can't run here says so")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{built, hetmem, output, status, stderr, stdout};

/// Runs `hetmem run` with these arguments, for a program that leaves a mark when it runs, and checks that it did not, that
/// the exit status is `expected`, and that standard error is one line with each of `parts` in it.
#[track_caller]
fn refused(options: &[&str], expected: i32, parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("mark");
    let run = output(hetmem().arg("run").args(options).arg("--").arg("touch").arg(&mark));
    assert!(!mark.exists(), "the program was started");
    one_line(&run, expected, parts);
}

#[track_caller]
fn one_line(run: &std::process::Output, expected: i32, parts: &[&str]) {
    let said = stderr(run);
    assert_eq!(status(run), expected, "{said}");
    assert!(said.starts_with("hetmem: ") && said.ends_with('\n') && said.lines().count() == 1, "{said}");
    for part in parts {
        assert!(said.contains(part), "no `{part}` in: {said}");
    }
    assert_eq!(stdout(run), "");
}

#[test]
fn wrong_device_specs_are_usage_errors() {
    for (spec, parts) in [
        ("public:emulated", &["unknown memory type `public`", "private and coherent"][..]),
        ("coherent:cuda", &["unknown backend `cuda`", "emulated"]),
        ("coherent:emulated=0", &["takes no argument"]),
        ("coherent:emulated,colour=red", &["unknown key `colour`", "size, memory, name"]),
        ("coherent:emulated,size=1GB", &["unknown unit `GB`", "K, M, G or T"]),
        ("coherent:emulated,latency=1h", &["unknown unit `h`", "ns, us, ms or s"]),
        ("coherent:emulated,size=0", &["size is zero"]),
        ("coherent:emulated,size=5000", &["5000 is not a multiple of the page", "8K"]),
        ("coherent:emulated,size=8T", &["larger than this machine's memory"]),
        ("coherent:emulated,size=1M,size=2M", &["`size` is given twice"]),
        ("coherent:emulated,name=a b", &["name `a b`"]),
        ("coherent\n:emulated", &["unknown memory type `coherent\\n`"]),
        ("coherent", &["TYPE:BACKEND"]),
    ] {
        refused(&["--device", spec], 2, parts);
    }
    let twice = ["--device", "coherent:emulated,name=a", "--device", "private:emulated,name=a"];
    refused(&twice, 2, &["the name `a` is taken"]);
    let many = ["--device", "coherent:emulated,size=1M"].repeat(17);
    refused(&many, 2, &["more than 16 devices"]);
}

#[test]
fn wrong_policies_and_limits_are_usage_errors() {
    refused(&["--policy", "lru"], 2, &["unknown policy `lru`", "manual, limit=SIZE"]);
    refused(&["--policy", "chaos=x"], 2, &["`x` is not a seed"]);
    refused(&["--policy", "manual=1"], 2, &["policy manual takes no argument"]);
    refused(&["--policy", "limit"], 2, &["--policy limit needs --system-limit"]);
    refused(&["--policy", "limit=1M", "--system-limit", "1M"], 2, &["goes without --system-limit"]);
    refused(&["--system-limit", "1M"], 2, &["goes with --policy limit or clock only"]);
    for (heat, part) in [
        ("x", "unknown source `x`; the sources are faults and samples"),
        ("faults,", "unknown source ``"),
        ("samples", "`faults` can't be left out"),
    ] {
        refused(&["--policy", "limit=1M", "--heat", heat], 2, &[part]);
    }
    refused(&["--policy", "clock=1M", "--heat", "faults,samples"], 2, &["policy clock does not go by samples"]);
    refused(&["--heat", "faults"], 2, &["policy manual does not go by faults"]);
    for (size, part) in [
        ("0", "zero"),
        ("5000", "multiple of the page"),
        ("8T", "larger than this machine's memory"),
        ("1GB", "unknown unit `GB`"),
    ] {
        refused(&["--policy", "limit", "--system-limit", size], 2, &[part]);
        refused(&["--policy", &format!("limit={size}")], 2, &[part]);
        refused(&["--policy", &format!("clock={size}")], 2, &[part]);
    }
}

#[test]
fn wrong_command_lines_are_one_line() {
    refused(&["--polcy", "manual"], 2, &["unexpected argument '--polcy'", "--policy"]);
    for (args, part) in [
        (&["run"][..], "PROGRAM"),
        (&["frobnicate"], "no command `frobnicate`"),
        (&[], "no command is given"),
        (&["doctor", "x"], "unexpected argument 'x'"),
    ] {
        one_line(&output(hetmem().args(args)), 2, &[part, "--help"]);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [&["--help"][..], &["--version"], &["run", "--help"], &["doctor", "--help"], &["bench", "--help"]] {
        let run = output(hetmem().args(args));
        assert_eq!(status(&run), 0);
        assert_eq!(stderr(&run), "");
        assert!(!stdout(&run).is_empty());
    }
}

#[test]
fn programs_that_are_not_there_are_127() {
    for name in ["hetmem-no-such-program", "./no/such/program", "", "/etc/passwd/x"] {
        one_line(&output(hetmem().args(["run", "--", name])), 127, &["not found"]);
    }
    let dir = tempfile::tempdir().unwrap();
    let script = file(dir.path(), "script", b"#!/no/such/interpreter\n", 0o755);
    one_line(&output(hetmem().args(["run", "--"]).arg(script)), 127, &["/no/such/interpreter"]);
}

#[test]
fn files_that_cannot_be_executed_are_126() {
    let dir = tempfile::tempdir().unwrap();
    for path in [
        file(dir.path(), "mode", b"#!/bin/sh\n", 0o644),
        file(dir.path(), "data", b"\0\x01\x02\x03", 0o755),
        file(dir.path(), "truncated", b"\x7fELF\x02\x01\x01", 0o755),
        dir.path().to_owned(),
    ] {
        one_line(&output(hetmem().args(["run", "--"]).arg(path)), 126, &["cannot be executed"]);
    }
}

#[test]
fn setuid_and_setgid_programs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let program = std::fs::read("/bin/true").unwrap();
    for (name, mode, part) in [("setuid", 0o4755, "is setuid"), ("setgid", 0o2755, "is setgid")] {
        let path = file(dir.path(), name, &program, mode);
        one_line(&output(hetmem().args(["run", "--"]).arg(&path)), 125, &[part, "ignores preloaded libraries"]);
        // A script of such an interpreter is no better.
        let script = format!("#!{}\n", path.display());
        let script = file(dir.path(), "script", script.as_bytes(), 0o755);
        one_line(&output(hetmem().args(["run", "--"]).arg(script)), 125, &[part]);
    }
}

#[test]
fn programs_with_file_capabilities_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), "capable", &std::fs::read("/bin/true").unwrap(), 0o755);
    match Command::new("setcap").arg("cap_net_raw+ep").arg(&path).output() {
        Ok(done) if done.status.success() => {}
        other => return eprintln!("skipped: file capabilities can't be set here: {other:?}"),
    }
    one_line(&output(hetmem().args(["run", "--"]).arg(path)), 125, &["has file capabilities"]);
}

#[test]
fn static_programs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = file(dir.path(), "static.c", b"int main(void) { return 0; }\n", 0o644);
    let path = dir.path().join("static");
    for kind in ["-static", "-static-pie"] {
        match Command::new("cc").arg(kind).arg("-o").arg(&path).arg(&source).output() {
            Ok(done) if done.status.success() => {}
            other => {
                eprintln!("skipped: cc {kind} does not work here: {other:?}");
                continue;
            }
        }
        let run = output(hetmem().args(["run", "--"]).arg(&path));
        one_line(&run, 125, &["is statically linked", "preloaded"]);
    }
}

#[test]
fn statistics_that_cannot_be_written_are_found_out_before_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no/such/directory/stats.json");
    for (path, part) in [
        (missing.to_str().unwrap(), "No such file"),
        (dir.path().to_str().unwrap(), "Is a directory"),
        ("/proc/stats.json", "/proc/stats.json"),
        ("/dev/full", "No space left"),
    ] {
        refused(&["--stats", path], 125, &["statistics can't be written", part]);
    }
}

#[test]
fn a_refusal_leaves_the_old_statistics_alone() {
    let dir = tempfile::tempdir().unwrap();
    let stats = file(dir.path(), "stats.json", b"old", 0o644);
    refused(&["--stats", stats.to_str().unwrap(), "--device", "x"], 2, &[]);
    let run = output(hetmem().args(["run", "--stats"]).arg(&stats).args(["--", "hetmem-no-such-program"]));
    assert_eq!(status(&run), 127);
    assert_eq!(std::fs::read(&stats).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn without_permission_for_userfaultfd_both_cures_are_named() {
    const NOBODY: u32 = 65534;
    let denied = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|text| text.trim() == "0");
    let node = std::fs::metadata("/dev/userfaultfd").map_or(0, |node| node.permissions().mode());
    if !rustix::process::geteuid().is_root() || !denied || node & 0o6 != 0 {
        return eprintln!("skipped: not root, or userfaultfd is permitted to everybody");
    }
    // A place that everybody may enter: the target folder may lie in a home.
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = copy_of_hetmem(dir.path());
    let unprivileged = |args: &[&str]| output(Command::new(&copy).args(args).current_dir("/").uid(NOBODY).gid(NOBODY));
    let run = unprivileged(&["run", "--", "/bin/true"]);
    one_line(&run, 125, &["userfaultfd", "vm.unprivileged_userfaultfd", "/dev/userfaultfd"]);
    let doctor = unprivileged(&["doctor"]);
    assert_eq!(status(&doctor), 1);
    assert!(stdout(&doctor).contains("vm.unprivileged_userfaultfd=1"), "{}", stdout(&doctor));
}

/// Copied by another process: this one forks on other threads, and a child that holds the copy open for writing would make
/// its execution fail.
fn copy_of_hetmem(to: &Path) -> PathBuf {
    let copy = to.join("hetmem");
    let copied = Command::new("cp").arg(built("hetmem")).arg(&copy).status().unwrap();
    assert!(copied.success(), "cp: {copied}");
    copy
}

#[test]
fn a_missing_agent_library_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let copy = copy_of_hetmem(dir.path());
    let run = output(Command::new(&copy).args(["run", "--", "true"]));
    one_line(&run, 125, &["libhetmem.so", dir.path().to_str().unwrap()]);
}

/// As after `cargo install`, which installs no libraries.
#[test]
fn the_command_that_puts_the_agent_library_in_place_is_told_and_does_so() {
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let copy = copy_of_hetmem(&bin);
    let run = output(Command::new(&copy).args(["run", "--", "true"]));
    let told = format!("&& sh libhetmem/install.sh {}\n", dir.path().display());
    one_line(&run, 125, &["cargo build --release -p libhetmem", &told]);

    let said = stderr(&run);
    let (_, command) = said.trim_end().rsplit_once("&& ").unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let library = built("libhetmem.so");
    let script = format!("{command} {}", library.display());
    let installed = output(Command::new("sh").args(["-c", &script]).current_dir(sources).env_remove("DESTDIR"));
    assert_eq!(status(&installed), 0, "{}", stderr(&installed));
    let run = output(Command::new(&copy).args(["run", "--", "echo", "managed"]));
    assert_eq!((status(&run), stdout(&run).as_str()), (0, "managed\n"), "{}", stderr(&run));
}

fn file(dir: &Path, name: &str, content: &[u8], mode: u32) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

//! The kernel's test device in user space, as C programs meet it: compiled by themselves, run with `libhetmem_dmirror.so` preloaded.
//!
//! ```text
//!   c/NAME.c ──► cc ──► NAME {private,coherent} {small,huge} ──► its output and exit status
//! ```
//!
//! The programs were written from the description of the device's interface, and check themselves. Each runs for both types of device, with small
//! pages (`PR_SET_THP_DISABLE`) and in huge ones (`MADV_HUGEPAGE`).

#[path = "../support/landing_pads.rs"]
mod landing_pads;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/trial.rs"]
mod trial;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use libtest_mimic::Arguments;
use rustix::io::Errno;
use support::{built, hetmem, output, status, stderr, stdout};
use trial::{Checked, Problem, expect, interposed_can_be_unwound, trial};

/// The programs of `c/`.
const PROGRAMS: [&str; 9] =
    ["access", "migrate", "snapshots", "exclusive", "mappings", "files", "forks", "copies", "races"];

/// The library's name.
const LIBRARY: &str = "libhetmem_dmirror.so";

/// Why the device can't be had on this host, in the words of `hetmem doctor`.
fn obstacle() -> Option<&'static str> {
    static ONCE: OnceLock<Option<String>> = OnceLock::new();
    let asked = || {
        let doctor = output(hetmem().arg("doctor"));
        let told = stdout(&doctor);
        (status(&doctor) != 0).then(|| told.lines().filter(|line| line.contains("missing")).collect())
    };
    ONCE.get_or_init(asked).as_deref()
}

/// The program, compiled with every warning an error.
fn compiled(name: &str) -> Checked<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dmirror/c").join(name).with_extension("c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("dmirror-{name}"));
    // Written beside and renamed, as trials of one program may compile it at once.
    let own = program.with_extension(format!("{:?}", std::thread::current().id()));
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]).arg(source).arg("-o").arg(&own);
    let built = cc.output().map_err(|error| Problem::Missing(format!("cc: {error}")))?;
    expect(built.status.success(), || stderr(&built))?;
    std::fs::rename(&own, &program)?;
    Ok(program)
}

fn run(name: &str, memory_type: &str, pages: &str) -> Checked {
    if let Some(why) = obstacle() {
        return Err(Problem::Missing(why.to_owned()));
    }
    let program = compiled(name)?;
    let mut command = Command::new(program);
    command.args([memory_type, pages]).env_remove("HETMEM_AGENT").env("LD_PRELOAD", built(LIBRARY));
    let run = output(&mut command);
    let ended_well = run.status.success() && stdout(&run).trim_end().ends_with("ok");
    expect(ended_well, || format!("{}\n{}{}", run.status, stdout(&run), stderr(&run)))
}

/// The device is refused to the program that `change` sets up, with this error and a line that has these words.
fn refused(errno: Errno, words: &[&str], change: impl FnOnce(&mut Command)) -> Checked {
    let program = compiled("refused")?;
    // A place that everybody may enter: the target folder may lie in a home.
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    for file in [program, built(LIBRARY)] {
        // By another process: a child of this one that holds the copy open for writing would make its execution fail.
        let copied = Command::new("cp").arg(file).arg(dir.path()).status()?;
        assert!(copied.success(), "cp: {copied}");
    }
    let mut command = Command::new(dir.path().join("dmirror-refused"));
    command.arg(errno.raw_os_error().to_string()).env_remove("HETMEM_AGENT");
    command.env("LD_PRELOAD", dir.path().join(LIBRARY));
    change(&mut command);
    let run = output(&mut command);
    let told = stderr(&run);
    let holds = run.status.success() && told.lines().count() == 1 && words.iter().all(|word| told.contains(word));
    expect(holds, || format!("{}\n{told}", run.status))
}

fn without_permission() -> Checked {
    const NOBODY: u32 = 65534;
    let denied = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|text| text.trim() == "0");
    let node = std::fs::metadata("/dev/userfaultfd").map_or(0, |node| node.permissions().mode());
    if !rustix::process::geteuid().is_root() || !denied || node & 0o6 != 0 {
        return Err(Problem::Missing("not root, or userfaultfd is permitted to everybody".to_owned()));
    }
    refused(Errno::PERM, &["/dev/hmm_dmirror0", "vm.unprivileged_userfaultfd", "/dev/userfaultfd"], |command| {
        command.current_dir("/").uid(NOBODY).gid(NOBODY);
    })
}

fn under_run() -> Checked {
    refused(Errno::BUSY, &["hetmem run"], |command| {
        command.env("HETMEM_AGENT", "{}");
    })
}

/// The program of the tutorial compiles, and prints what the tutorial says.
fn tutorial() -> Checked {
    if let Some(why) = obstacle() {
        return Err(Problem::Missing(why.to_owned()));
    }
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/hmm.md"))?;
    let (_, after) = text.split_once("```c\n").ok_or_else(|| "the tutorial shows no C".to_owned())?;
    let (program, after) = after.split_once("```").ok_or_else(|| "its C has no end".to_owned())?;
    let (_, shown) = after.split_once("./hmm\n").ok_or_else(|| "the tutorial does not run it".to_owned())?;
    let (shown, _) = shown.split_once("```").ok_or_else(|| "what it prints has no end".to_owned())?;
    let dir = tempfile::tempdir()?;
    let (source, binary) = (dir.path().join("hmm.c"), dir.path().join("hmm"));
    std::fs::write(&source, program)?;
    let mut cc = Command::new("cc");
    cc.args(["-Wall", "-Wextra", "-Werror"]).arg(&source).arg("-o").arg(&binary);
    let built_it = cc.output().map_err(|error| Problem::Missing(format!("cc: {error}")))?;
    expect(built_it.status.success(), || stderr(&built_it))?;
    let run = output(Command::new(binary).env_remove("HETMEM_AGENT").env("LD_PRELOAD", built(LIBRARY)));
    expect(status(&run) == 0 && stdout(&run) == shown, || format!("{}{}", stdout(&run), stderr(&run)))
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = vec![
        trial("without_permission_an_open_says_what_would_help", without_permission),
        trial("what_is_interposed_has_no_landing_pads", || interposed_can_be_unwound(&built(LIBRARY))),
        trial("the_tutorials_program_prints_what_the_tutorial_says", tutorial),
        trial("under_hetmem_run_there_is_no_second_manager", under_run),
    ];
    for name in PROGRAMS {
        for memory_type in ["private", "coherent"] {
            for pages in ["small", "huge"] {
                trials.push(trial(format!("{name}::{memory_type}::{pages}"), move || run(name, memory_type, pages)));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

//! Programs that end by a signal with a core dump, natively and under `hetmem run`: the same end, and a dump in which nothing is missing.
//!
//! ```text
//!   c/dumps.c ──► "where the pattern is, where I die" ──► dies ──► exit status, core file: pattern, program counter, siginfo
//! ```
//!
//! Where the kernel writes no files named `core` into the folder of the process, the tests that read dumps are *ignored*.

mod core_file;
#[path = "../support/users.rs"]
mod users;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{env, fs};

use core_file::Core;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

/// No run may take longer: who hangs is found here.
const LIMIT: Duration = Duration::from_secs(300);
/// How often two threads crash beside threads that fork.
const STORMS: usize = 20;

/// A failed expectation, or what is missing for the test.
enum Problem {
    Missing(String),
    Wrong(String),
}

impl<E: std::error::Error> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::Wrong(error.to_string())
    }
}

type Checked<T = ()> = Result<T, Problem>;

fn expect(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Problem::Wrong(what())) }
}

/// How a program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Setting {
    Native,
    /// Little system memory, and a private device for the rest.
    Limit,
    /// Random chunks move to a coherent and to a private device and back, without pause.
    Chaos,
}

impl Setting {
    const MANAGED: [Self; 2] = [Self::Limit, Self::Chaos];

    /// How many pages the program waits for to be away before it dies in this way.
    fn away(self, way: &str) -> usize {
        match self {
            Self::Native => 0,
            // More than are out at a time to see whether they are used. Beside forks, for which all come home, there are never so many.
            Self::Limit if way != "storm" => 5120,
            Self::Limit | Self::Chaos => 128,
        }
    }

    fn command(self, stats: &Path) -> Command {
        let options: &[&str] = match self {
            Self::Native => return Command::new(program()),
            Self::Limit => &["--policy", "limit", "--system-limit", "1M", "--device", "private:emulated,size=128M"],
            Self::Chaos => &[
                "--policy",
                "chaos",
                "--device",
                "private:emulated,size=64M",
                "--device",
                "coherent:emulated,size=64M",
            ],
        };
        let mut command = Command::new(users::built("hetmem"));
        command.arg("run").args(options).arg("--stats").arg(stats).arg("--").arg(program());
        command
    }
}

/// What a dump must have of the pattern.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pattern {
    /// All of it.
    Whole,
    /// The kernel asks nobody before it ends the program.
    Any,
}

/// A way to die.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    pattern: Pattern,
    /// What the description of the signal says that the dump has: `si_signo` and `si_code`. With `SEGV_MAPERR` and `ILL_ILLOPN` the address is
    /// compared, too.
    info: Option<(i32, i32)>,
}

const fn case(name: &'static str, pattern: Pattern, info: Option<(i32, i32)>) -> Case {
    Case { name, pattern, info }
}

const SEGV: Option<(i32, i32)> = Some((libc::SIGSEGV, 1)); // SEGV_MAPERR
const RAISED: i32 = libc::SI_TKILL;
/// `int3` of x86-64 is told by `SI_KERNEL`, `brk` of arm64 by `TRAP_BRKPT`.
const TRAPPED: i32 = if cfg!(target_arch = "x86_64") { 0x80 } else { 1 };
/// `ILL_ILLOPN` of x86-64, `ILL_ILLOPC` of arm64.
const ILLEGAL: i32 = if cfg!(target_arch = "x86_64") { 2 } else { 1 };

const CASES: &[Case] = &[
    case("segv", Pattern::Whole, SEGV),
    case("trap", Pattern::Whole, Some((libc::SIGTRAP, TRAPPED))),
    case("ill", Pattern::Whole, Some((libc::SIGILL, ILLEGAL))),
    case("abort", Pattern::Whole, Some((libc::SIGABRT, RAISED))),
    case("quit", Pattern::Whole, Some((libc::SIGQUIT, libc::SI_USER))),
    case("reset", Pattern::Whole, Some((libc::SIGSEGV, RAISED))),
    case("restore", Pattern::Whole, SEGV),
    case("once", Pattern::Whole, Some((libc::SIGSEGV, RAISED))),
    case("once-returns", Pattern::Whole, SEGV),
    case("overflow", Pattern::Any, None),
    case("overflow-alternate", Pattern::Whole, None),
    case("small-alternate", Pattern::Whole, SEGV),
    case("thread", Pattern::Whole, SEGV),
    case("blocked", Pattern::Any, SEGV),
    case("child", Pattern::Whole, SEGV),
    case("bare-child", Pattern::Whole, None),
    case("vfork-child", Pattern::Whole, SEGV),
    case("exec", Pattern::Whole, SEGV),
    case("two", Pattern::Whole, None),
    case("strict", Pattern::Any, None),
];

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for case in CASES {
        for setting in Setting::MANAGED {
            trials.push(trial(format!("dies::{}::{setting:?}", case.name), move || dies(*case, setting)));
        }
    }
    for setting in Setting::MANAGED {
        trials.push(trial(format!("storm::{setting:?}"), move || storm(setting)));
        trials.push(trial(format!("queries::{setting:?}"), move || queries(setting)));
    }
    trials.push(trial("where_a_filter_refuses_what_it_takes_the_program_still_ends".into(), refused));
    trials.push(trial("without_a_dump_nothing_comes_home".into(), without_a_dump));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: String, body: impl FnOnce() -> Checked + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match body() {
        Ok(()) => Ok(Completion::Completed),
        // What CI can't have is where the kernel writes dumps.
        Err(Problem::Missing(what)) => Ok(Completion::ignored_with(what)),
        Err(Problem::Wrong(what)) => Err(Failed::from(what)),
    })
}

/// The program, compiled once.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let folder = Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/dumps"));
        fs::create_dir_all(folder).expect("the folder of test programs can be made");
        let program = folder.join("dumps");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/dumps/c/dumps.c");
        let mut cc = Command::new("cc");
        cc.args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations"]);
        // The overflow of a stack is what it is about.
        cc.args(["-Wno-unknown-warning-option", "-Wno-infinite-recursion", "-pthread", "-o"]).arg(&program).arg(source);
        let output = cc.output().expect("there is a C compiler");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        program
    })
}

/// Refuses where dumps are not files that are named `core`, in the folder of the process.
fn dumps_are_files() -> Checked {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern")?;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Core);
    if pattern.trim_end() != "core" || limit.maximum.is_some() {
        return Err(Problem::Missing("core dumps are no files here".into()));
    }
    Ok(())
}

/// What has become of a run.
struct Run {
    /// As a shell tells it: 128+N for signal N.
    status: i32,
    stdout: String,
    stderr: String,
    folder: TempDir,
}

impl Run {
    fn stats(&self) -> Checked<serde_json::Value> {
        Ok(serde_json::from_slice(&fs::read(self.folder.path().join("stats"))?)?)
    }

    /// The dump; its name may have the process's number.
    fn core(&self) -> Checked<Core> {
        let names = fs::read_dir(self.folder.path())?.filter_map(Result::ok).map(|entry| entry.file_name());
        let mut cores: Vec<OsString> = names.filter(|name| name.to_string_lossy().starts_with("core")).collect();
        let core = cores.pop().ok_or_else(|| Problem::Wrong(format!("no core dump: {}", self.stderr)))?;
        Core::read(&self.folder.path().join(core)).map_err(Problem::Wrong)
    }
}

/// Runs the program to its end, with dumps of up to `limit` bytes, -1 for any.
fn run(way: &str, setting: Setting, limit: i64) -> Checked<Run> {
    let folder = tempfile::tempdir()?;
    let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let stats = folder.path().join("stats");
    let inner = setting.command(&stats);
    // A shell sets the limit, for what it executes.
    let limit = if limit < 0 { "unlimited".to_owned() } else { limit.to_string() };
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -c {limit}; exec \"$@\"")).arg("sh").arg(inner.get_program());
    command.args(inner.get_args()).arg(way).arg(setting.away(way).to_string());
    command.current_dir(folder.path()).stdin(Stdio::piped()).stdout(out.try_clone()?).stderr(err.try_clone()?);
    let mut child = command.spawn()?;
    if way == "quit" {
        quit(&mut child, &out)?;
    }
    let status = wait(&mut child, way)?;
    let text = |mut file: &fs::File| -> Checked<String> {
        use std::io::{Read, Seek};
        let mut text = String::new();
        file.rewind()?;
        file.read_to_string(&mut text)?;
        Ok(text)
    };
    Ok(Run { status, stdout: text(&out)?, stderr: text(&err)?, folder })
}

/// Waits for the end, no longer than [`LIMIT`].
fn wait(child: &mut Child, way: &str) -> Checked<i32> {
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a number of a process");
    let end = pidfd_open(pid, PidfdFlags::empty())?;
    let mut polled = [rustix::event::PollFd::new(&end, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
    if rustix::event::poll(&mut polled, Some(&limit))? == 0 {
        child.kill()?;
        return Err(Problem::Wrong(format!("{way} hangs")));
    }
    let status = child.wait()?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Sends SIGQUIT to the program, once it has said that it is ready.
fn quit(child: &mut Child, out: &fs::File) -> Checked {
    use std::os::unix::fs::FileExt as _;
    let start = Instant::now();
    let mut text = vec![0; 256];
    loop {
        let n = out.read_at(&mut text, 0)?;
        if text[..n].ends_with(b"\n") {
            let words = String::from_utf8_lossy(&text[..n]).into_owned();
            let pid = words.split_whitespace().last().and_then(|word| word.parse().ok()).and_then(Pid::from_raw);
            let pid = pid.ok_or(Problem::Wrong(words))?;
            // It has said so before it waits.
            if is_reading(pid) {
                return Ok(kill_process(pid, Signal::QUIT)?);
            }
        }
        if start.elapsed() > LIMIT || child.try_wait()?.is_some() {
            return Err(Problem::Wrong("the program was never ready".into()));
        }
        std::thread::yield_now();
    }
}

/// Whether the first thread of `pid` waits in `read(2)`.
fn is_reading(pid: Pid) -> bool {
    let call = fs::read_to_string(format!("/proc/{}/syscall", pid.as_raw_nonzero())).unwrap_or_default();
    call.split_whitespace().next() == Some(&libc::SYS_read.to_string())
}

/// What the program has said of itself before it died.
struct Announced {
    pattern: u64,
    bytes: usize,
    counters: std::ops::RangeInclusive<u64>,
    address: u64,
}

fn announced(run: &Run) -> Checked<Announced> {
    let wrong = || Problem::Wrong(format!("{}{}", run.stdout, run.stderr));
    let line = run.stdout.lines().next().ok_or_else(wrong)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let [pattern, bytes, from, to, address, _] = words[..] else { return Err(wrong()) };
    let hex = |word: &str| match word {
        "(nil)" => Ok(0),
        _ => u64::from_str_radix(word.trim_start_matches("0x"), 16).map_err(Problem::from),
    };
    let (pattern, counters, address) = (hex(pattern)?, hex(from)?..=hex(to)?, hex(address)?);
    Ok(Announced { pattern, bytes: bytes.parse()?, counters, address })
}

/// The same end as natively, with a dump that has what it should.
fn dies(case: Case, setting: Setting) -> Checked {
    dumps_are_files()?;
    let native = run(case.name, Setting::Native, -1)?;
    let managed = run(case.name, setting, -1)?;
    let either = case.name == "two" && [native.status, managed.status].iter().all(|s| [132, 139].contains(s));
    expect(native.status == managed.status || either, || {
        format!("{} natively, {} under hetmem: {}", native.status, managed.status, managed.stderr)
    })?;
    check_dump(case, &native, Pattern::Whole)?;
    check_dump(case, &managed, case.pattern)?;
    let moved = managed.stats()?["pages_migrated_to_device"].as_u64().unwrap_or(0);
    expect(moved > 128, || format!("only {moved} pages moved"))?;
    if case.pattern == Pattern::Whole && managed.status > 128 && case.name != "vfork-child" {
        let said = managed.stderr.lines().any(|line| line.contains(", core dumped after "));
        expect(said, || managed.stderr.clone())?;
    }
    Ok(())
}

fn check_dump(case: Case, run: &Run, pattern: Pattern) -> Checked {
    let (core, announced) = (run.core()?, announced(run)?);
    let missing = core.missing(announced.pattern, announced.bytes);
    expect(pattern == Pattern::Any || missing == 0, || format!("{missing} pages are missing: {}", run.stderr))?;
    let secrets = core.secrets(announced.bytes);
    expect(secrets == 0, || format!("{secrets} pages are in the dump that are kept out of it"))?;
    let counter = core.program_counter();
    expect(announced.counters.contains(&counter), || format!("died at {counter:x}, not at {:x?}", announced.counters))?;
    let Some((signal, code)) = case.info else { return Ok(()) };
    let found = core.info();
    expect((found.signal, found.code) == (signal, code), || format!("{found:?}, not {signal} with code {code}"))?;
    let has_address = matches!(signal, libc::SIGSEGV | libc::SIGILL) && code > 0;
    expect(!has_address || found.address == announced.address, || format!("{found:x?}, not {:x}", announced.address))
}

/// Two threads crash beside threads that fork and change mappings: it always ends, and all is there.
fn storm(setting: Setting) -> Checked {
    dumps_are_files()?;
    for _ in 0..STORMS {
        let run = run("storm", setting, -1)?;
        expect([132, 139].contains(&run.status), || format!("{}: {}", run.status, run.stderr))?;
        check_dump(case("storm", Pattern::Whole, None), &run, Pattern::Whole)?;
    }
    Ok(())
}

/// Whoever asks what is done on a signal is told what he is natively.
fn queries(setting: Setting) -> Checked {
    let (native, managed) = (run("queries", Setting::Native, 0)?, run("queries", setting, 0)?);
    expect(native.status == 0, || native.stderr.clone())?;
    expect(native.stdout == managed.stdout, || {
        let mut lines = native.stdout.lines().zip(managed.stdout.lines());
        format!("first that differ: {:?}; {}", lines.find(|(native, managed)| native != managed), managed.stderr)
    })
}

/// Where no dump is written, pages stay where they are.
fn without_a_dump() -> Checked {
    if fs::read("/proc/sys/kernel/core_pattern")?.starts_with(b"|") {
        return Err(Problem::Missing("a program is given each dump".into()));
    }
    let run = run("no-dump", Setting::Limit, 0)?;
    expect(run.status == 139, || format!("{}: {}", run.status, run.stderr))?;
    let stats = run.stats()?;
    let used = stats["devices"][0]["used_bytes"].as_u64().unwrap_or(0);
    expect(used >= 1 << 19, || format!("{used} bytes are left on the device"))
}

/// A filter that nobody was told of: the status is the same, and the program does not hang.
fn refused() -> Checked {
    let (native, managed) = (run("refused", Setting::Native, -1)?, run("refused", Setting::Limit, -1)?);
    expect(native.status == 139 && managed.status == 139, || {
        format!("{} natively, {} under hetmem: {}", native.status, managed.status, managed.stderr)
    })
}

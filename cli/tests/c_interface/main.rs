//! The C interface as C programs meet it: installed by its script, compiled against its header, linked with the library that users get.
//!
//! ```text
//!   libhetmem/install.sh ──► a folder ──► cc (pkg-config's flags) ──► program ──► its output and exit status
//! ```
//!
//! The programs are the examples of `libhetmem/examples`, and those of `c/`, which check themselves and print what is wrong.

mod declared;
#[path = "../support/landing_pads.rs"]
mod landing_pads;
#[path = "../support/mod.rs"]
mod support;
#[path = "../support/trial.rs"]
mod trial;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::sync::Once;

use hetmem_agent::config::{self, Config};
use hetmem_agent::ledger::Ledger;
use hetmem_core::heat::Sources;
use hetmem_core::policy::PolicySpec;
use hetmem_core::units::ByteLen;
use hetmem_devices::spec::SpecError;
use libtest_mimic::{Arguments, Trial};
use support::{built, hetmem, output, status, stderr, stdout};
use tempfile::TempDir;
use trial::{Checked, Problem, expect, interposed_can_be_unwound, trial};

fn sources() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Where the interface is installed, once for all tests.
pub(crate) fn installed() -> &'static Path {
    static ONCE: Once = Once::new();
    let root = Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/c_interface"));
    ONCE.call_once(|| {
        let mut install = Command::new("sh");
        install.arg(sources().join("libhetmem/install.sh")).arg(root).arg(built("libhetmem.so"));
        let installed = output(install.env_remove("DESTDIR"));
        assert!(installed.status.success(), "libhetmem/install.sh: {}", stderr(&installed));
    });
    root
}

/// The command, if the host has it.
fn tool(name: &str) -> Checked<Command> {
    match Command::new(name).arg("--version").output() {
        Ok(_) => Ok(Command::new(name)),
        Err(error) => Err(Problem::Missing(format!("{name}: {error}"))),
    }
}

fn succeeds(what: &str, run: &Output) -> Checked {
    expect(run.status.success(), || format!("{what}: {}\n{}{}", run.status, stdout(run), stderr(run)))
}

/// The flags that `pkg-config` gives for the installed interface.
fn flags() -> Checked<Vec<String>> {
    let pkgconfig = installed().join("lib/pkgconfig");
    let mut query = tool("pkg-config")?;
    let found = output(query.env("PKG_CONFIG_PATH", pkgconfig).args(["--cflags", "--libs", "hetmem"]));
    succeeds("pkg-config", &found)?;
    Ok(stdout(&found).split_whitespace().map(str::to_owned).collect())
}

/// The flags by hand, so that only one test needs `pkg-config`.
fn own_flags() -> Vec<String> {
    let root = installed().display();
    vec![format!("-I{root}/include"), format!("-L{root}/lib"), "-lhetmem".to_owned()]
}

const STRICT: [&str; 5] = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror"];

/// Compiles a program, with every warning an error.
fn compiled(source: &Path, flags: &[String], dir: &TempDir) -> Checked<PathBuf> {
    let program = dir.path().join("program");
    let mut cc = tool("cc")?;
    cc.args(STRICT).arg("-pthread").arg(source).args(flags);
    cc.arg(format!("-Wl,-rpath,{}", installed().join("lib").display())).arg("-o").arg(&program);
    succeeds("cc", &output(&mut cc))?;
    Ok(program)
}

/// Compiles and runs an example; its standard output.
fn example(name: &str, flags: &[String]) -> Checked<String> {
    run(&sources().join("libhetmem/examples").join(name), flags)
}

/// Compiles and runs a program that checks itself.
fn own(name: &'static str) -> Trial {
    trial(format!("programs::{name}"), move || {
        let source = sources().join("cli/tests/c_interface/c").join(name).with_extension("c");
        let printed = run(&source, &own_flags())?;
        if let Some(what) = printed.strip_prefix("missing: ") {
            return Err(Problem::Missing(what.trim_end().to_owned()));
        }
        expect(printed.trim_end().ends_with("ok"), || format!("{name} printed {printed}"))
    })
}

fn run(source: &Path, flags: &[String]) -> Checked<String> {
    let dir = tempfile::tempdir()?;
    let program = compiled(source, flags, &dir)?;
    let run = output(Command::new(program).env_remove("HETMEM_AGENT").env_remove("LD_PRELOAD"));
    succeeds("the program", &run)?;
    Ok(stdout(&run))
}

fn out_and_home(printed: &str) -> Checked {
    for line in [
        "written:               512 pages in system memory,   0 on the device",
        "migrated to the device:   0 pages in system memory, 512 on the device",
        "one page touched:        1 pages in system memory, 511 on the device",
        "migrated home:         512 pages in system memory,   0 on the device",
    ] {
        expect(printed.lines().any(|l| l == line), || format!("no `{line}` in\n{printed}"))?;
    }
    Ok(())
}

fn adopted(printed: &str) -> Checked {
    let moved = (1..8).map(|row| format!("row {row} to device {}: 48 moved 16 hole", row % 2));
    let others = [
        "row 0 to device 0: 64 advised",
        "near coherent 576 of 16384 KiB used",
        "far  private  768 of 16384 KiB used",
        "far  private  0 of 16384 KiB used",
        "the sum is 2416508928",
        "the first of the last row is 7",
    ];
    for line in moved.chain(others.map(str::to_owned)) {
        expect(printed.lines().any(|l| l == line), || format!("no `{line}` in\n{printed}"))?;
    }
    Ok(())
}

fn mirror(printed: &str) -> Checked {
    let shown = "\
filled:   16 entries in system memory, 0 on the device, the sixth page has one
migrated: 0 entries in system memory, 0 on the device, the sixth page has none
filled:   0 entries in system memory, 16 on the device, the sixth page has one
touched:  the sixth page has none
";
    expect(printed == shown, || format!("printed\n{printed}and not\n{shown}"))
}

/// What the README shows in C compiles, and prints what the README says below it.
fn readme() -> Checked {
    let readme = std::fs::read_to_string(sources().join("README.md"))?;
    let (_, after) = readme.split_once("```c\n").ok_or_else(|| "the README shows no C".to_owned())?;
    let (program, after) = after.split_once("```").ok_or_else(|| "the README's C has no end".to_owned())?;
    let (_, shown) = after.split_once("$ ./example\n").ok_or_else(|| "the README does not run it".to_owned())?;
    let (shown, _) = shown.split_once("```").ok_or_else(|| "what it prints has no end".to_owned())?;
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("example.c");
    std::fs::write(&source, program)?;
    let printed = run(&source, &own_flags())?;
    expect(printed == shown, || format!("printed\n{printed}and not\n{shown}"))
}

/// Under `hetmem run` a program with a runtime of its own is told that it can't have one.
fn refused_under_run() -> Checked {
    let dir = tempfile::tempdir()?;
    let program = compiled(&sources().join("libhetmem/examples/out_and_home.c"), &own_flags(), &dir)?;
    let run = output(hetmem().args(["run", "--quiet", "--device", "private:emulated,size=16M", "--"]).arg(program));
    expect(status(&run) == 1 && stderr(&run).contains("runs under `hetmem run`"), || {
        format!("{}\n{}", run.status, stderr(&run))
    })
}

/// A program that says to the agent how it uses its memory, under a policy that goes by it.
fn advice_under_run() -> Checked {
    let dir = tempfile::tempdir()?;
    let program = compiled(&sources().join("cli/tests/c_interface/c/advise.c"), &own_flags(), &dir)?;
    let devices = ["--device", "private:emulated,size=64M", "--device", "coherent:emulated,size=64M"];
    let policy = ["--policy", "clock=8M", "--per-process", "--stock", "1M"];
    let run = output(hetmem().args(["run", "--quiet"]).args(devices).args(policy).arg("--").arg(program));
    expect(status(&run) == 0 && stdout(&run).ends_with("ok\n"), || {
        format!("{}\n{}{}", run.status, stdout(&run), stderr(&run))
    })
}

/// Whoever starts a program of more privilege than his own, which is linked with the library, has no say in it.
fn nobody_configures_more_privilege() -> Checked {
    use std::os::unix::fs::PermissionsExt as _;
    if !rustix::process::geteuid().is_root() {
        return Err(Problem::Missing("only root can make a set-user-ID program of another user".to_owned()));
    }
    let dir = tempfile::tempdir()?;
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    mode(dir.path(), 0o755)?;
    let library = dir.path().join("libhetmem.so.0");
    std::fs::copy(built("libhetmem.so"), &library)?;
    let flags = [own_flags(), vec![format!("-Wl,-rpath,{}", dir.path().display())]].concat();
    let program = compiled(&sources().join("cli/tests/c_interface/c/secure.c"), &flags, &dir)?;
    let ledger = Ledger::create().map_err(|error| error.to_string())?;
    let config = Config {
        rings: None,
        devices: vec!["private:emulated,size=16M".parse().map_err(|error: SpecError| error.to_string())?],
        policy: PolicySpec::default(),
        heat: Sources::default(),
        stock: ByteLen::new(64 << 20),
        files: false,
        per_process: false,
        ledger: ledger.path().ok_or_else(|| "the ledger has no path".to_owned())?,
        supervisor: std::process::id(),
    };
    let run = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        output(command.env(config::VARIABLE, config.encode()))
    };
    mode(&program, 0o4755)?;
    let secure = run();
    expect(stdout(&secure) == "1 1\n", || format!("{}: {}{}", secure.status, stdout(&secure), stderr(&secure)))?;
    expect(ledger.processes() == 0 && ledger.refusals() == 0, || "the ledger of another was written".to_owned())?;
    // It is one that root's own programs obey.
    let own = output(Command::new(&program).env(config::VARIABLE, config.encode()));
    let threads = stdout(&own).trim().strip_prefix("0 ").and_then(|threads| threads.parse::<u32>().ok());
    // Its own, the handler, the worker, and as many helpers as are of use here.
    expect(threads.is_some_and(|threads| threads >= 3) && ledger.processes() == 1, || {
        format!("{}: {}", own.status, stdout(&own))
    })
}

fn header_in_cpp() -> Checked {
    let mut cpp = tool("c++")?;
    cpp.args(["-x", "c++", "-std=c++11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]);
    succeeds("c++", &output(cpp.arg(installed().join("include/hetmem.h"))))
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = vec![
        trial("examples::out_and_home", || out_and_home(&example("out_and_home.c", &own_flags())?)),
        trial("pkg_config_finds_the_installed_interface", || out_and_home(&example("out_and_home.c", &flags()?)?)),
        trial("a_program_under_run_gets_no_runtime", refused_under_run),
        trial("a_program_under_run_gives_its_agent_advice", advice_under_run),
        trial("nobody_configures_a_program_of_more_privilege", nobody_configures_more_privilege),
        trial("the_header_is_cpp_too", header_in_cpp),
        trial("exported_symbols_are_those_of_the_header", declared::symbols),
        trial("what_is_interposed_has_no_landing_pads", || interposed_can_be_unwound(&built("libhetmem.so"))),
        trial("outcomes_are_numbered_as_the_library_does", declared::outcomes),
        trial("versions_agree", declared::versions),
        trial("examples::adopted", || adopted(&example("adopted.c", &own_flags())?)),
        trial("examples::mirror", || mirror(&example("mirror.c", &own_flags())?)),
        trial("the_readmes_program_prints_what_the_readme_says", readme),
        own("refusals"),
        own("routes"),
        own("threads"),
        own("forks"),
        own("forks_unprivileged"),
        own("blocks"),
        own("mirrors"),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

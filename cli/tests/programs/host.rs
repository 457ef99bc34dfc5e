//! What this host has: programs, a C compiler, the `hetmem` binary with its library, folders to work in.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use hetmem_sys::scratch::Scratch;
use tempfile::TempDir;

use crate::{Outcome, Problem, tools, users};

/// Where the sources of the test programs lie.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs");

/// The binary under test.
pub(crate) fn hetmem() -> PathBuf {
    users::built("hetmem")
}

/// Whether this is the project's CI, where nothing may be missing.
pub(crate) fn in_ci() -> bool {
    tools::is_set("CI")
}

/// The seed of the chaos: the same on every run unless the environment says otherwise.
pub(crate) fn seed() -> u64 {
    env::var("HETMEM_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_210_915)
}

/// The path of a source file of the tests.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(SOURCES).join(name)
}

/// A fresh folder, removed when dropped.
pub(crate) fn folder() -> Outcome<TempDir> {
    Ok(tempfile::Builder::new().prefix("run-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?)
}

/// Whether such folders are on a disk, which keeps pages (`private:file`).
pub(crate) fn disk() -> Outcome {
    let made = Scratch::create(env!("CARGO_TARGET_TMPDIR"));
    made.map(drop).map_err(|why| Problem::Refused(format!("the build folder is on no disk: {why}")))
}

/// The path of an installed program.
pub(crate) fn program(name: &str) -> Outcome<PathBuf> {
    tools::installed(name).ok_or_else(|| Problem::Missing(format!("{name} is not installed")))
}

/// Compiles the C program `c/NAME.c`, once.
pub(crate) fn compiled(name: &str) -> Outcome<PathBuf> {
    let (built, said) = compile(&program("cc")?, &["-O2"], name, name)?;
    if built.is_file() { Ok(built) } else { Err(Problem::Wrong(format!("{name}.c: {said}"))) }
}

/// Compiles `c/NAME.c` by `compiler` with `flags` to a file called `to`. Returns its path, where nothing is if that failed, and what was said.
pub(crate) fn compile(compiler: &Path, flags: &[&str], name: &str, to: &str) -> Outcome<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bin");
    std::fs::create_dir_all(&folder)?;
    let binary = folder.join(to);
    // Under a name of its own first: another test may be running the finished one.
    let thread = std::thread::current().id();
    let unfinished = folder.join(format!("{to}.{}.{thread:?}", std::process::id()));
    let output = Command::new(compiler)
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .arg(&unfinished)
        .args(flags)
        .arg(source(&format!("c/{name}.c")))
        .output()?;
    if output.status.success() {
        std::fs::rename(&unfinished, &binary)?;
    } else if binary.is_file() {
        std::fs::remove_file(&binary)?;
    }
    Ok((binary, String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Whether managed runs are possible here, found out once.
pub(crate) fn ready() -> Outcome {
    static READY: OnceLock<Outcome> = OnceLock::new();
    READY.get_or_init(prepare).clone()
}

fn prepare() -> Outcome {
    let doctor = Command::new(hetmem()).arg("doctor").output()?;
    if doctor.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&doctor.stdout).trim().to_owned();
    Err(Problem::Missing(format!("`hetmem doctor` says that `hetmem run` can't work here:\n{said}")))
}

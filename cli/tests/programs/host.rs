//! What this host has: programs, a C compiler, the `hetmem` binary with its library, folders to work in.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::{Outcome, Problem, tools};

/// The binary under test.
pub(crate) const HETMEM: &str = env!("CARGO_BIN_EXE_hetmem");
/// Where the sources of the test programs lie.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs");

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

/// The path of an installed program.
pub(crate) fn program(name: &str) -> Outcome<PathBuf> {
    tools::installed(name).ok_or_else(|| Problem::Missing(format!("{name} is not installed")))
}

/// Compiles the C program `c/NAME.c`, once.
pub(crate) fn compiled(name: &str) -> Outcome<PathBuf> {
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bin");
    std::fs::create_dir_all(&to)?;
    let binary = to.join(name);
    // Under a name of its own first: another test binary may be running the finished one.
    let unfinished = to.join(format!("{name}.{}", std::process::id()));
    let output = Command::new(program("cc")?)
        .args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .arg(&unfinished)
        .arg(source(&format!("c/{name}.c")))
        .output()?;
    if !output.status.success() {
        return Err(Problem::Wrong(format!("{name}.c: {}", String::from_utf8_lossy(&output.stderr))));
    }
    std::fs::rename(&unfinished, &binary)?;
    Ok(binary)
}

/// Whether managed runs are possible here, found out once.
pub(crate) fn ready() -> Outcome {
    static READY: OnceLock<Result<(), (bool, String)>> = OnceLock::new();
    let found = READY.get_or_init(|| match prepare() {
        Ok(()) => Ok(()),
        Err(Problem::Missing(what)) => Err((true, what)),
        Err(Problem::Wrong(what)) => Err((false, what)),
    });
    match found {
        Ok(()) => Ok(()),
        Err((true, what)) => Err(Problem::Missing(what.clone())),
        Err((false, what)) => Err(Problem::Wrong(what.clone())),
    }
}

fn prepare() -> Outcome {
    build_library()?;
    let doctor = Command::new(HETMEM).arg("doctor").output()?;
    if doctor.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&doctor.stdout).trim().to_owned();
    Err(Problem::Missing(format!("`hetmem doctor` says that `hetmem run` can't work here:\n{said}")))
}

/// Cargo builds the binary for its tests but not the library that the binary preloads: builds it beside, in the same
/// profile, so that a test never runs with a stale one.
fn build_library() -> Outcome {
    let beside = Path::new(HETMEM).parent().ok_or_else(|| "hetmem lies nowhere".to_owned())?;
    let (Some(profile), Some(target)) = (beside.file_name(), beside.parent()) else {
        return Err(Problem::Wrong(format!("{} is no target folder of cargo", beside.display())));
    };
    let cargo = env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into());
    let profile = if profile == "debug" { "dev".into() } else { profile.to_owned() };
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--package", "hetmem-capi", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .arg("--profile")
        .arg(profile)
        .arg("--target-dir")
        .arg(target)
        .output()?;
    let library = beside.join("libhetmem.so");
    if output.status.success() && library.is_file() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Problem::Wrong(format!("{} could not be built: {why}", library.display())))
}

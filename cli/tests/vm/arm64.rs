//! What goes into machines of arm64: built on this host, which is another, by a cross compiler.
//!
//! The Rust standard library for arm64 is what `rustup target add aarch64-unknown-linux-gnu` brings, the C compiler and library are Debian's
//! (`gcc-aarch64-linux-gnu`, `libc6-dev-arm64-cross`), the shell is what `.ci/kernel` fetched beside the kernels.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Outcome, Problem, host};

const TARGET: &str = "aarch64-unknown-linux-gnu";
const COMPILER: &str = "aarch64-linux-gnu-gcc";
/// Where the C library for it is.
const SYSROOT: &str = "/usr/aarch64-linux-gnu/lib";
/// The loader, and the libraries that the binaries need.
pub(crate) const LIBRARIES: [&str; 4] = ["ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libgcc_s.so.1"];
/// Programs of `tests/programs/c` that are taken along.
pub(crate) const COMPILED: &[&str] = &["forks", "mappings", "signals", "tagged"];
/// The example of `runtime/examples` that is taken along.
const EXAMPLE: &str = "shared_structure";
/// The packages whose tests run in the machine, their names there, and the tests: `None` are the unit tests. Each is `tests/NAME-TEST` there.
const TESTS: &[(&str, &str, &[Option<&str>])] =
    &[("hetmem-sys", "sys", &[None, Some("sigbus"), Some("uffd_events"), Some("uffd_move"), Some("uffd_open")])];

/// A shell and its tools, without a library.
pub(crate) fn busybox() -> Outcome<PathBuf> {
    there(host::unpacked().join("arm64/usr/bin/busybox"))
}

/// A library of the cross compiler's.
pub(crate) fn library(name: &str) -> Outcome<PathBuf> {
    there(Path::new(SYSROOT).join(name))
}

fn there(path: PathBuf) -> Outcome<PathBuf> {
    if path.is_file() { Ok(path) } else { Err(Problem::Missing(format!("there is no {}", path.display()))) }
}

/// Compiles the C program `programs/c/NAME.c` to `to`.
pub(crate) fn compile(name: &str, to: &Path) -> Outcome {
    host::compile_by(COMPILER, &Path::new("programs/c").join(name), &[], to)
}

/// Builds the command, the library and the tests; pairs of a binary and its path in the machine.
pub(crate) fn binaries() -> Outcome<Vec<(PathBuf, String)>> {
    host::program(COMPILER)?;
    let found = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output()?;
    if !Path::new(String::from_utf8_lossy(&found.stdout).trim()).is_dir() {
        return Err(Problem::Missing(format!("no standard library: `rustup target add {TARGET}` brings it")));
    }
    let folder = host::target().join("arm64");
    // Quick to build, as it is for this only, and with all checks.
    let settings = [("CARGO_PROFILE_DEV_DEBUG", "false"), ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", COMPILER)];
    let cargo = |arguments: &[&str]| {
        host::run_cargo(|cargo| {
            let cargo = cargo.args(arguments).args(["--quiet", "--locked", "--target", TARGET]);
            cargo.arg("--target-dir").arg(&folder).envs(settings).env_remove("RUSTFLAGS")
        })
    };
    cargo(&["build", "--package", "hetmem-cli", "--package", "libhetmem"])?;
    cargo(&["build", "--package", "hetmem", "--example", EXAMPLE])?;
    let built = folder.join(TARGET).join("debug");
    let mut binaries = vec![
        (built.join("hetmem"), "hetmem/hetmem".to_owned()),
        (built.join("libhetmem.so"), "hetmem/libhetmem.so".to_owned()),
        (built.join("examples").join(EXAMPLE), format!("programs/{EXAMPLE}")),
    ];
    for (package, short, tests) in TESTS {
        let mut arguments = vec!["test", "--no-run", "--message-format=json", "--package", package];
        for test in *tests {
            arguments.extend(test.map_or(vec!["--lib"], |test| vec!["--test", test]));
        }
        let built = cargo(&arguments)?;
        for test in *tests {
            let name = format!("tests/{short}-{}", test.unwrap_or("unit"));
            binaries.push((host::executable(&built, package, *test)?, name));
        }
    }
    Ok(binaries)
}

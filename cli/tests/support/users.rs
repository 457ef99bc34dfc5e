//! The binary and the libraries that users get: built by the command by which users build them, in the release profile, whatever the tests'
//! own profile is.
//!
//! What cargo builds for tests may be something else: the features of what only tests depend on are switched on for everybody then. So users' build
//! is made once more before anything is run. It finds all that the two have in common, and takes the place of what the tests' build has left.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where cargo builds.
const TARGET: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/..");
/// The packages that users install.
const PACKAGES: [&str; 3] = ["hetmem-cli", "libhetmem", "hetmem-dmirror"];

/// Where `hetmem`, `libhetmem.so` or `libhetmem_dmirror.so` is, beside the others, built from the sources as they are now.
pub(crate) fn built(file: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let path = FOLDER.get_or_init(build).join(file);
    assert!(path.is_file(), "cargo built no {}", path.display());
    path
}

fn build() -> PathBuf {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--locked"]);
    for package in PACKAGES {
        cargo.args(["--package", package]);
    }
    cargo.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
    // For this machine, or the folder would be another.
    cargo.args(["--target-dir", TARGET]).env_remove("CARGO_BUILD_TARGET");
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "{cargo:?}: {}", String::from_utf8_lossy(&output.stderr));
    let folder = Path::new(TARGET).join("release");
    folder.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

//! What tests of the binary share.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The hetmem binary, with `libhetmem.so` beside it.
pub(crate) fn hetmem() -> Command {
    static LIBRARY: OnceLock<()> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        build_library("hetmem-capi", "libhetmem.so");
    });
    Command::new(binary())
}

/// Where the binary is.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hetmem"))
}

/// Builds the library `file` of `package` into the folder of the binary, and says where it is. Cargo builds the binary of this package for its
/// tests, and nothing of a package that this one doesn't depend on.
pub(crate) fn build_library(package: &str, file: &str) -> PathBuf {
    let folder = binary().parent().expect("the binary lies in a folder");
    let target = folder.parent().expect("which lies in the target folder");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--package", package, "--profile", profile])
        .arg("--target-dir")
        .arg(target)
        .arg("--manifest-path")
        .arg(manifest)
        .output()
        .expect("cargo runs");
    assert!(built.status.success(), "{file}: {}", String::from_utf8_lossy(&built.stderr));
    let library = folder.join(file);
    assert!(library.is_file(), "{file} is not beside the binary");
    library
}

/// Runs a command to its end.
pub(crate) fn output(command: &mut Command) -> Output {
    command.output().expect("the command starts")
}

/// The exit status; a command that was killed has none.
pub(crate) fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by {}", output.status))
}

/// Standard output as text.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

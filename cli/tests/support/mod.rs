//! What tests of the binary share.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The hetmem binary, with `libhetmem.so` beside it.
pub(crate) fn hetmem() -> Command {
    static LIBRARY: OnceLock<()> = OnceLock::new();
    LIBRARY.get_or_init(build_library);
    Command::new(binary())
}

/// Where the binary is.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_hetmem"))
}

/// Builds `libhetmem.so` into the folder of the binary. Cargo builds the binary of this package for its tests, and nothing of
/// a package that this one doesn't depend on.
fn build_library() {
    let folder = binary().parent().expect("the binary lies in a folder");
    let target = folder.parent().expect("which lies in the target folder");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--package", "hetmem-capi", "--profile", profile])
        .arg("--target-dir")
        .arg(target)
        .arg("--manifest-path")
        .arg(manifest)
        .output()
        .expect("cargo runs");
    assert!(built.status.success(), "libhetmem.so: {}", String::from_utf8_lossy(&built.stderr));
    assert!(folder.join("libhetmem.so").is_file(), "libhetmem.so is not beside the binary");
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

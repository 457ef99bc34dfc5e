//! Programs in C that a test has the source of.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The program, compiled, in `folder`.
pub(crate) fn program(folder: &Path, source: &str) -> PathBuf {
    let (file, path) = (folder.join("program.c"), folder.join("program"));
    std::fs::write(&file, source).unwrap();
    let compiled = Command::new("cc").args(["-O1", "-o"]).arg(&path).arg(&file).output().unwrap();
    assert!(compiled.status.success(), "{compiled:?}");
    path
}

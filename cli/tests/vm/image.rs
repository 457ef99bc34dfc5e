//! The initramfs: a folder with everything that runs in the machine, packed by cpio.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::machine::Boot;
use crate::{Outcome, Problem, arm64, cases, host};

/// The modules that boots load.
const MODULES: [(&str, &str); 3] = [("dax_hmem", "hmem/dax_hmem"), ("device_dax", "device_dax"), ("kmem", "kmem")];

/// The files that all boots share, in a folder.
pub(crate) struct Files {
    folder: TempDir,
}

impl Files {
    pub(crate) fn gather(kernel: &host::Kernel) -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("vm-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let files = Self { folder };
        let busybox = host::program("busybox")?;
        files.copy(&busybox, "bin/busybox")?;
        for (name, module) in MODULES {
            let at = files.place(&format!("modules/{name}.ko"))?;
            std::fs::write(at, host::module(kernel, module)?)?;
        }
        let mut dynamic = vec![busybox];
        for (binary, name) in host::binaries()? {
            files.copy(&binary, &name)?;
            dynamic.push(binary);
        }
        for name in cases::COMPILED {
            let at = files.place(&format!("programs/{name}"))?;
            host::compile(name, &at)?;
            dynamic.push(at);
        }
        for name in cases::LINKED {
            host::compile_linked(name, false, &files.place(&format!("programs/{name}"))?)?;
            host::compile_linked(name, true, &files.place(&format!("programs/{name}.so"))?)?;
        }
        for name in cases::INSTALLED {
            let binary = host::program(name)?;
            files.copy(&binary, &format!("programs/{name}"))?;
            dynamic.push(binary);
        }
        let (script, files_of_python) = host::script(cases::SCRIPT)?;
        files.copy(&script, &format!("programs/{}", cases::SCRIPT))?;
        if let Some(python) = files_of_python.first() {
            std::os::unix::fs::symlink(python, files.place("programs/python3")?)?;
        }
        for file in files_of_python {
            files.copy(&file, &file.to_string_lossy())?;
            if file.extension().is_none_or(|extension| extension != "py") {
                dynamic.push(file);
            }
        }
        for library in libraries(&dynamic)? {
            files.copy(&library, &library.to_string_lossy())?;
        }
        files.copy(&host::source("init.sh"), "init")?;
        files.copy(&host::source("functions.sh"), "functions.sh")?;
        Ok(files)
    }

    /// What arm64 machines have: no module, and no program of this host's.
    pub(crate) fn gather_for_arm64() -> Outcome<Self> {
        let folder = tempfile::Builder::new().prefix("vm-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let files = Self { folder };
        files.copy(&arm64::busybox()?, "bin/busybox")?;
        for library in arm64::LIBRARIES {
            files.copy(&arm64::library(library)?, &format!("lib/{library}"))?;
        }
        for (binary, name) in arm64::binaries()? {
            files.copy(&binary, &name)?;
        }
        for name in arm64::COMPILED {
            arm64::compile(name, &files.place(&format!("programs/{name}"))?)?;
        }
        files.copy(&host::source("init.sh"), "init")?;
        files.copy(&host::source("functions.sh"), "functions.sh")?;
        Ok(files)
    }

    /// Removes the folder. What is left of it is left to `cargo clean`.
    pub(crate) fn remove(&self) {
        let _ = std::fs::remove_dir_all(self.folder.path());
    }

    /// The path of `name` in the folder, which there is then.
    fn place(&self, name: &str) -> Outcome<PathBuf> {
        let at = self.folder.path().join(name.trim_start_matches('/'));
        std::fs::create_dir_all(at.parent().unwrap_or(self.folder.path()))?;
        Ok(at)
    }

    fn copy(&self, from: &Path, name: &str) -> Outcome {
        let at = self.place(name)?;
        std::fs::copy(from, &at)?;
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Packs the files with the cases of `boot` to `to`.
    pub(crate) fn pack(&self, boot: &Boot, to: &Path) -> Outcome {
        let bench = if std::env::var_os("HETMEM_VM_BENCH").is_some() { "" } else { "--quick" };
        let mut script = format!("export SEED={} BENCH={bench}\n{}\n", cases::SEED, boot.setup);
        for case in boot.selected() {
            let command = case.command.replace('\'', "'\\''");
            let _infallible = writeln!(script, "case_ {} {} '{command}'", case.name, case.seconds);
        }
        std::fs::write(self.place("boot.sh")?, script)?;
        let mut names = Vec::new();
        list(self.folder.path(), Path::new(""), &mut names)?;
        let mut cpio = Command::new(host::program("cpio")?)
            .args(["--quiet", "-o", "-H", "newc", "-R", "0:0"])
            .current_dir(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(File::create(to)?)
            .spawn()?;
        if let Some(mut stdin) = cpio.stdin.take() {
            stdin.write_all(names.join("\n").as_bytes())?;
        }
        if cpio.wait()?.success() { Ok(()) } else { Err(Problem::Wrong("cpio can't pack the initramfs".to_owned())) }
    }
}

/// The names of everything below `folder`, folders before what is in them.
fn list(folder: &Path, below: &Path, names: &mut Vec<String>) -> Outcome {
    for entry in std::fs::read_dir(folder.join(below))? {
        let name = below.join(entry?.file_name());
        names.push(name.to_string_lossy().into_owned());
        if folder.join(&name).is_dir() {
            list(folder, &name, names)?;
        }
    }
    Ok(())
}

/// The loader and the libraries that the binaries need, as the host's own loader finds them.
fn libraries(binaries: &[PathBuf]) -> Outcome<BTreeSet<PathBuf>> {
    let output = Command::new(host::program("ldd")?).args(binaries).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // `name => /path (address)`, and `/path (address)` for the loader.
    let path = |line: &str| {
        let line = line.split_once("=>").map_or(line, |(_, path)| path).trim();
        let path = line.split_whitespace().next().filter(|path| path.starts_with('/') && !path.ends_with(':'))?;
        Some(PathBuf::from(path))
    };
    Ok(text.lines().filter_map(path).collect())
}

//! Finds the program as `execvp(3)` would, and finds out beforehand whether the agent can be preloaded into it.
//!
//! The loader obeys `LD_PRELOAD` only in dynamically linked programs of its own architecture that gain no privilege when they
//! start. For a script, all that goes for its interpreter.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use elf::abi;
use elf::endian::AnyEndian;
use elf::file::{Class, FileHeader};
use elf::parse::ParseAt as _;
use elf::segment::{ProgramHeader, SegmentTable};
use rustix::fs::{Access, access};

use crate::failure::Failure;

/// How many interpreters deep the kernel follows scripts (`BINPRM_MAX_RECURSION` and the first).
const MAX_INTERPRETERS: usize = 5;
/// What the kernel reads of a script to find its interpreter (`BINPRM_BUF_SIZE`).
const SCRIPT_HEAD: usize = 256;
/// Where programs are looked for if `PATH` is not set, as in glibc.
const DEFAULT_PATH: &str = "/bin:/usr/bin";
/// What runs a text file that names no interpreter, as in `execvp(3)`.
const SHELL: &str = "/bin/sh";

const NATIVE_MACHINE: u16 = if cfg!(target_arch = "aarch64") { abi::EM_AARCH64 } else { abi::EM_X86_64 };
/// The 32-bit machine whose programs this one executes as well.
const NATIVE_MACHINE_32: u16 = if cfg!(target_arch = "aarch64") { abi::EM_ARM } else { abi::EM_386 };

/// A program that the agent can be preloaded into.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// The file to execute.
    pub(crate) file: PathBuf,
    /// Its arguments that come before those of the command line: the script, for the shell.
    pub(crate) leading: Vec<OsString>,
    /// What the program is told that its name is.
    pub(crate) argv0: OsString,
}

/// Finds the program called `name` and checks that it can be managed.
pub(crate) fn resolve(name: &OsStr) -> Result<Program, Failure> {
    let file = find(name, std::env::var_os("PATH").as_deref())?;
    let mut current = file.clone();
    for _ in 0..MAX_INTERPRETERS {
        match inspect(&current)? {
            Kind::Native => return Ok(Program { file, leading: Vec::new(), argv0: name.to_owned() }),
            Kind::Script { interpreter } => {
                check_executable(&interpreter).map_err(|error| {
                    if error.kind() == io::ErrorKind::NotFound {
                        Failure::NoInterpreter { program: current, interpreter: interpreter.clone() }
                    } else {
                        not_executable(&interpreter, error.to_string())
                    }
                })?;
                current = interpreter;
            }
            Kind::Text if current == file => {
                let Program { file: shell, .. } = resolve(OsStr::new(SHELL))?;
                return Ok(Program { file: shell, leading: vec![file.into()], argv0: SHELL.into() });
            }
            Kind::Text => break,
        }
    }
    Err(not_executable(&file, "its interpreter is a script without an end".to_owned()))
}

fn not_executable(program: &Path, why: String) -> Failure {
    Failure::NotExecutable { program: program.to_owned(), why }
}

fn unmanageable(program: &Path, why: &str) -> Failure {
    Failure::Unmanageable { program: program.to_owned(), why: why.to_owned() }
}

/// The file that `execvp(3)` would execute for `name`.
fn find(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, Failure> {
    let not_found = |why: &str| Failure::NotFound { program: name.into(), why: why.to_owned() };
    if name.is_empty() {
        return Err(Failure::NotFound { program: "''".into(), why: ": the name is empty".to_owned() });
    }
    if name.as_bytes().contains(&b'/') {
        let file = PathBuf::from(name);
        return match check_executable(&file) {
            Ok(()) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_found("")),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                Err(not_found(": a part of its path is no directory"))
            }
            Err(error) => Err(refusal(&file, &error)),
        };
    }
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    let mut refused = None;
    for directory in path.as_bytes().split(|b| *b == b':') {
        let directory = if directory.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(directory) };
        let file = Path::new(directory).join(name);
        match check_executable(&file) {
            Ok(()) => return Ok(file),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                refused.get_or_insert_with(|| refusal(&file, &error));
            }
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or_else(|| not_found(&format!(" in PATH{}", meant(name)))))
}

/// Why a file that is there can't be executed, with what would help.
fn refusal(file: &Path, error: &io::Error) -> Failure {
    let is_script = std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.mode() & 0o111 == 0);
    let help = if is_script { format!("; chmod +x {} makes it a program", file.display()) } else { String::new() };
    not_executable(file, format!("{error}{help}"))
}

/// What may have been meant by a name that is no program's.
fn meant(name: &OsStr) -> String {
    let text = name.to_string_lossy();
    if let Some((variable, _)) = text.split_once('=') {
        return format!("; variables are set before hetmem, as in {variable}=… hetmem run …");
    }
    if text.contains(' ') {
        return format!("; a program and its arguments are words of their own: hetmem run -- {text}");
    }
    if Path::new(name).is_file() {
        return format!("; the file here is ./{text}");
    }
    String::new()
}

/// Whether the file is there and may be executed. Directories may not, with the errno of `execve(2)`.
fn check_executable(file: &Path) -> io::Result<()> {
    let metadata = std::fs::metadata(file)?;
    if metadata.is_dir() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is a directory"));
    }
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not a regular file"));
    }
    Ok(access(file, Access::EXEC_OK)?)
}

/// What kind of executable a file is.
#[derive(Debug)]
enum Kind {
    /// A dynamically linked program of this architecture.
    Native,
    /// A file that begins with `#!`.
    Script { interpreter: PathBuf },
    /// Something that `execvp(3)` hands to the shell.
    Text,
}

fn inspect(path: &Path) -> Result<Kind, Failure> {
    let unreadable = |error: io::Error| {
        unmanageable(path, &format!("it can't be read, so hetmem can't tell whether it can be managed: {error}"))
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut head = Vec::new();
    file.by_ref().take(SCRIPT_HEAD as u64).read_to_end(&mut head).map_err(unreadable)?;
    if head.starts_with(&abi::ELFMAGIC) {
        check_privilege(path, &file.metadata().map_err(unreadable)?)?;
        check_elf(path, &file, &head)?;
        return Ok(Kind::Native);
    }
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|b| *b == b'\n').next().unwrap_or_default();
        let mut words = line.split(|b| matches!(b, b' ' | b'\t' | b'\0')).filter(|word| !word.is_empty());
        return match words.next() {
            Some(interpreter) => Ok(Kind::Script { interpreter: PathBuf::from(OsStr::from_bytes(interpreter)) }),
            None => Err(not_executable(path, "its first line names no interpreter".to_owned())),
        };
    }
    // The shell's own test for a binary: a zero byte in the first line.
    let line = head.split(|b| *b == b'\n').next().unwrap_or_default();
    if line.contains(&0) {
        return Err(not_executable(path, "it is neither an ELF file nor a script".to_owned()));
    }
    Ok(Kind::Text)
}

/// Refuses programs that gain privilege when they start: in them the loader ignores preloading.
fn check_privilege(path: &Path, metadata: &Metadata) -> Result<(), Failure> {
    const SETUID: u32 = 0o4000;
    const SETGID: u32 = 0o2010;
    let mode = metadata.mode();
    let ignored =
        "so the loader ignores preloaded libraries in it; run a copy without that as a user who needs no more";
    if mode & SETUID != 0 {
        return Err(unmanageable(path, &format!("is setuid, {ignored}")));
    }
    if mode & SETGID == SETGID {
        return Err(unmanageable(path, &format!("is setgid, {ignored}")));
    }
    /// More than `struct vfs_ns_cap_data` takes.
    const CAPABILITIES: usize = 64;
    if rustix::fs::getxattr(path, c"security.capability", &mut [0; CAPABILITIES][..]).is_ok() {
        return Err(unmanageable(path, &format!("has file capabilities, {ignored}")));
    }
    Ok(())
}

/// Refuses programs that can't execute here, and those that no library can be preloaded into.
fn check_elf(path: &Path, file: &File, head: &[u8]) -> Result<(), Failure> {
    let broken = || not_executable(path, "its ELF header is broken".to_owned());
    // The parser counts on a whole identification.
    let (ident, tail) = head.split_at_checked(abi::EI_NIDENT).ok_or_else(broken)?;
    let ident = elf::file::parse_ident::<AnyEndian>(ident).map_err(|_| broken())?;
    let header = FileHeader::parse_tail(ident, tail).map_err(|_| broken())?;
    if header.class == Class::ELF32 && [NATIVE_MACHINE, NATIVE_MACHINE_32].contains(&header.e_machine) {
        return Err(unmanageable(path, "is a 32-bit program; hetmem manages 64-bit programs only"));
    }
    if header.e_machine != NATIVE_MACHINE {
        let machine = elf::to_str::e_machine_to_human_str(header.e_machine).unwrap_or("another machine");
        return Err(not_executable(path, format!("it is a program for {machine}")));
    }
    if header.e_phnum != 0 && usize::from(header.e_phentsize) != ProgramHeader::size_for(header.class) {
        return Err(broken());
    }
    if header.e_type != abi::ET_EXEC && header.e_type != abi::ET_DYN {
        return Err(not_executable(path, "it is an object file or a core dump, not a program".to_owned()));
    }
    let Some(interpreter) = interpreter(file, &header).map_err(|e| not_executable(path, e.to_string()))? else {
        return Err(unmanageable(
            path,
            "is statically linked, so no library can be preloaded into it; use a dynamically linked build of it",
        ));
    };
    if interpreter.file_name().is_some_and(|name| name.as_bytes().starts_with(b"ld-musl")) {
        return Err(unmanageable(
            path,
            "is linked with musl; libhetmem.so can be preloaded into programs of glibc only",
        ));
    }
    if !interpreter.exists() {
        return Err(Failure::NoInterpreter { program: path.to_owned(), interpreter });
    }
    Ok(())
}

/// The dynamic loader that the program names (`PT_INTERP`), if it names one.
fn interpreter(file: &File, header: &FileHeader<AnyEndian>) -> io::Result<Option<PathBuf>> {
    /// The longest path that the kernel takes.
    const PATH_MAX: u64 = 4096;
    let mut table = vec![0; usize::from(header.e_phnum) * usize::from(header.e_phentsize)];
    file.read_exact_at(&mut table, header.e_phoff)?;
    let mut segments = SegmentTable::new(header.endianness, header.class, &table).iter();
    let Some(segment) = segments.find(|segment| segment.p_type == abi::PT_INTERP) else {
        return Ok(None);
    };
    let mut name = Vec::new();
    let mut offset = segment.p_offset;
    let end = offset.saturating_add(segment.p_filesz.min(PATH_MAX));
    let mut byte = [0];
    while offset < end && file.read_at(&mut byte, offset)? == 1 && byte[0] != 0 {
        name.push(byte[0]);
        offset += 1;
    }
    Ok(Some(PathBuf::from(OsStr::from_bytes(&name))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::failure::{NOT_EXECUTABLE, NOT_FOUND, REFUSED};

    fn file(dir: &Path, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn status(path: &Path) -> u8 {
        resolve(path.as_os_str()).unwrap_err().exit_status()
    }

    #[test]
    fn a_program_is_found_in_the_path_as_the_shell_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("1"), dir.path().join("2"));
        for d in [&first, &second] {
            std::fs::create_dir(d).unwrap();
        }
        std::fs::create_dir(first.join("prog")).unwrap();
        let wanted = file(&second, "prog", b"", 0o755);
        let path = OsString::from(format!("{}:{}", first.display(), second.display()));
        assert_eq!(find(OsStr::new("prog"), Some(&path)).unwrap(), wanted);
        std::fs::remove_file(&wanted).unwrap();
        // Only a directory of that name is left: found, but not executable.
        assert_eq!(find(OsStr::new("prog"), Some(&path)).unwrap_err().exit_status(), NOT_EXECUTABLE);
        assert_eq!(find(OsStr::new("other"), Some(&path)).unwrap_err().exit_status(), NOT_FOUND);
        assert_eq!(find(OsStr::new(""), Some(&path)).unwrap_err().exit_status(), NOT_FOUND);
    }

    #[test]
    fn scripts_are_followed_to_their_interpreters() {
        let dir = tempfile::tempdir().unwrap();
        let script = file(dir.path(), "script", b"#! /bin/sh -e\nexit 3\n", 0o755);
        let nested = file(dir.path(), "nested", format!("#!{}\n", script.display()).as_bytes(), 0o755);
        for path in [&script, &nested] {
            let program = resolve(path.as_os_str()).unwrap();
            assert_eq!(program, Program { file: path.clone(), leading: vec![], argv0: path.into() });
        }
        let plain = file(dir.path(), "plain", b"exit 3\n", 0o755);
        assert_eq!(resolve(plain.as_os_str()).unwrap().leading, [plain.as_os_str()]);
        let endless = dir.path().join("endless");
        file(dir.path(), "endless", format!("#!{}\n", endless.display()).as_bytes(), 0o755);
        assert_eq!(status(&endless), NOT_EXECUTABLE);
        assert_eq!(status(&file(dir.path(), "nowhere", b"#!/nonexistent/sh\n", 0o755)), NOT_FOUND);
        assert_eq!(status(&file(dir.path(), "unnamed", b"#!  \n", 0o755)), NOT_EXECUTABLE);
    }

    #[test]
    fn what_is_no_program_is_not_executable() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(status(dir.path()), NOT_EXECUTABLE);
        assert_eq!(status(&dir.path().join("nothing")), NOT_FOUND);
        assert_eq!(status(&file(dir.path(), "data", b"\0\x01\x02", 0o755)), NOT_EXECUTABLE);
        assert_eq!(status(&file(dir.path(), "mode", b"#!/bin/sh\n", 0o644)), NOT_EXECUTABLE);
        for length in 4..64 {
            let content = &header(2, NATIVE_MACHINE)[..length];
            assert_eq!(status(&file(dir.path(), "short", content, 0o755)), NOT_EXECUTABLE, "{length}");
        }
    }

    /// An ELF header without segments.
    fn header(class: u8, machine: u16) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1, 1]);
        bytes[16..18].copy_from_slice(&abi::ET_EXEC.to_le_bytes());
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[20] = 1;
        bytes
    }

    #[test]
    fn elf_files_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        for (name, class, machine, expected) in [
            ("static", 2, NATIVE_MACHINE, REFUSED),
            ("narrow", 1, abi::EM_386, REFUSED),
            ("foreign", 2, abi::EM_S390, NOT_EXECUTABLE),
        ] {
            assert_eq!(status(&file(dir.path(), name, &header(class, machine), 0o755)), expected, "{name}");
        }
        let here = std::env::current_exe().unwrap();
        assert!(resolve(here.as_os_str()).is_ok());
    }

    #[test]
    fn programs_that_gain_privilege_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let content = std::fs::read("/bin/true").unwrap();
        for (name, mode, expected) in [("setuid", 0o4755, "is setuid"), ("setgid", 0o2755, "is setgid")] {
            let path = file(dir.path(), name, &content, mode);
            let failure = resolve(path.as_os_str()).unwrap_err();
            assert_eq!(failure.exit_status(), REFUSED);
            assert!(failure.to_string().contains(expected), "{failure}");
        }
    }
}

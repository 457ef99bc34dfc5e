//! The file that statistics are written to, or what else is known later than where it goes.
//!
//! That it can be written is found out before the program starts; what is in it stays until the program has ended. A
//! regular file is replaced as a whole, by one of the same owner and mode: its successor is made in the same directory, with room on the disk set
//! aside, and takes its name at the end; where there can be none, it is written in place. Anything else (a pipe, `/dev/stdout`) is opened and written
//! to. A successor has no name before (`O_TMPFILE` of open(2)), so that nothing is left of it however hetmem ends.
//!
//! *Limits:* where the file system has no such files, and hetmem is killed, the unfinished successor stays, as `.NAME.PID.tmp`.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FallocateFlags, access, fallocate, linkat};
use rustix::io::Errno;

use super::{found, room};

/// Disk space that is set aside: more than the statistics of the largest run take.
const ROOM: u64 = 64 << 10;

/// Where statistics go. Dropped without [`Output::write`], it leaves everything as it was.
#[derive(Debug)]
pub(crate) enum Output {
    /// In the directory of the file that it becomes.
    Successor { file: File, name: Temporary, target: PathBuf },
    /// In place: into an existing file of a directory where none can be made.
    InPlace(File),
    /// Into something that is no regular file.
    Stream(File),
}

/// The name that a successor has until it is renamed, or has last, for an instant. What is there is removed.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    is_given: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename nothing is there under this name.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Output {
    /// Finds out whether statistics can be written to `path`, as far as that can be known now.
    pub(crate) fn prepare(path: &Path) -> io::Result<Self> {
        if let Some(file) = own_stream(path)? {
            return Ok(Self::Stream(probed(file)?));
        }
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::beside(&link_end(path)?, None),
            Err(error) => return Err(error),
        };
        if metadata.is_dir() {
            return Err(Errno::ISDIR.into());
        }
        access(path, Access::WRITE_OK)?;
        if !metadata.is_file() {
            // Waits for a reader, if this is a named pipe, as a redirection of the shell does.
            let file = OpenOptions::new().write(true).open(path)?;
            return Ok(Self::Stream(if metadata.file_type().is_char_device() { probed(file)? } else { file }));
        }
        // A symbolic link stays one: its target is replaced.
        let target = std::fs::canonicalize(path)?;
        match Self::beside(&target, Some(&metadata)) {
            // No file can be made there, or none of the owner's.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Ok(Self::InPlace(OpenOptions::new().write(true).open(path)?))
            }
            other => other,
        }
    }

    /// A successor of `target`, with owner, group and mode as in `like`.
    fn beside(target: &Path, like: Option<&Metadata>) -> io::Result<Self> {
        let name = target.file_name().ok_or(Errno::ISDIR)?;
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = target.with_file_name(temporary);
        has_room()?;
        let (file, is_given) = match unnamed(&temporary) {
            Some(file) => (file, false),
            None => (OpenOptions::new().write(true).create_new(true).open(&temporary)?, true),
        };
        let name = Temporary { path: temporary, is_given };
        if let Some(like) = like {
            let made = file.metadata()?;
            if (made.uid(), made.gid()) != (like.uid(), like.gid()) {
                // Whatever the reason is: then it is not replaced.
                fchown(&file, Some(like.uid()), Some(like.gid())).map_err(|_| Errno::ACCESS)?;
            }
            file.set_permissions(like.permissions())?;
        }
        match fallocate(&file, FallocateFlags::KEEP_SIZE, 0, ROOM) {
            // Where space can't be set aside, the end of the run will tell.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self::Successor { file, name, target: target.to_owned() })
    }

    /// Writes the statistics and makes them what the file holds.
    pub(crate) fn write(self, text: &[u8]) -> io::Result<()> {
        match self {
            Self::Successor { mut file, name, target } => {
                file.write_all(text)?;
                // Gives back what was set aside beyond the end.
                file.set_len(text.len() as u64)?;
                file.sync_data()?;
                if !name.is_given {
                    // Of one that was killed and had the same number.
                    let _ = std::fs::remove_file(&name.path);
                    linkat(CWD, name_in_proc(&file), CWD, &name.path, AtFlags::SYMLINK_FOLLOW)?;
                }
                std::fs::rename(&name.path, target)
            }
            Self::InPlace(mut file) => {
                file.set_len(0)?;
                file.write_all(text)
            }
            Self::Stream(mut file) => file.write_all(text),
        }
    }
}

/// A file without a name that can have the name `later`, if there can be one.
fn unnamed(later: &Path) -> Option<File> {
    let directory = match later.parent() {
        Some(directory) if directory != Path::new("") => directory,
        _ => Path::new("."),
    };
    let file = OpenOptions::new().write(true).mode(0o666).custom_flags(libc::O_TMPFILE).open(directory).ok()?;
    // By which it is named.
    name_in_proc(&file).exists().then_some(file)
}

fn name_in_proc(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// What `path` leads to, which is not there: through symbolic links, if it is one.
fn link_end(path: &Path) -> io::Result<PathBuf> {
    /// The most links that the kernel follows (`MAXSYMLINKS`).
    const MOST_LINKS: usize = 40;
    let mut end = path.to_owned();
    for _ in 0..MOST_LINKS {
        if !std::fs::symlink_metadata(&end).is_ok_and(|found| found.is_symlink()) {
            return Ok(end);
        }
        end = end.with_file_name("").join(std::fs::read_link(&end)?);
    }
    Err(Errno::LOOP.into())
}

/// Whether a file may become as large as statistics are.
fn has_room() -> io::Result<()> {
    if room::largest_file().is_some_and(|limit| limit < ROOM) { Err(Errno::FBIG.into()) } else { Ok(()) }
}

/// Standard output or error under one of their names in the file system. They are written at their own offset: opening the
/// name would begin at the start of the file behind it.
fn own_stream(path: &Path) -> io::Result<Option<File>> {
    let names = |stream: &str, number: u8| {
        path == Path::new(&format!("/dev/{stream}"))
            || path == Path::new(&format!("/dev/fd/{number}"))
            || path == Path::new(&format!("/proc/self/fd/{number}"))
    };
    let stream = [("stdin", 0), ("stdout", 1), ("stderr", 2)].into_iter().find(|(name, number)| names(name, *number));
    if stream.is_some_and(|(_, number)| found::is_closed(number)) {
        return Err(Errno::BADF.into());
    }
    let fd = if names("stdout", 1) {
        io::stdout().as_fd().try_clone_to_owned()?
    } else if names("stderr", 2) {
        io::stderr().as_fd().try_clone_to_owned()?
    } else if ["/dev/fd", "/proc/self/fd"].iter().any(|dir| path.parent() == Some(Path::new(dir))) {
        // A redirection's file: whatever is in it stays.
        return Ok(Some(OpenOptions::new().append(true).custom_flags(libc::O_CLOEXEC).open(path)?));
    } else {
        return Ok(None);
    };
    Ok(Some(File::from(fd)))
}

/// Writes nothing to `file`, which a device that is always full refuses all the same, and one that is well doesn't notice.
fn probed(file: File) -> io::Result<File> {
    rustix::io::write(&file, &[])?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn entries(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn a_file_is_replaced_at_the_end_and_only_then() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        std::fs::write(&path, "old and longer than the new").unwrap();
        let output = Output::prepare(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old and longer than the new");
        output.write(b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(entries(dir.path()), 1);
    }

    #[test]
    fn a_refusal_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        drop(Output::prepare(&path).unwrap());
        assert_eq!(entries(dir.path()), 0);
    }

    #[test]
    fn who_is_killed_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        // Killed before it is dropped.
        let killed = std::mem::ManuallyDrop::new(Output::prepare(&path).unwrap());
        let Output::Successor { name, .. } = &*killed else { panic!("{killed:?}") };
        assert_eq!(entries(dir.path()), usize::from(name.is_given));
        if unnamed(&path).is_some() {
            assert!(!name.is_given);
        }
    }

    #[test]
    fn a_successor_with_a_name_takes_the_other_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, temporary) = (dir.path().join("stats"), dir.path().join("unfinished"));
        let file = File::create(&temporary).unwrap();
        let name = Temporary { path: temporary, is_given: true };
        Output::Successor { file, name, target: path.clone() }.write(b"new").unwrap();
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), entries(dir.path())), ("new", 1));
    }

    #[test]
    fn a_symbolic_link_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let (link, target) = (dir.path().join("link"), dir.path().join("target"));
        std::fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        Output::prepare(&link).unwrap().write(b"new").unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "new");
        // Also one to what is not there yet.
        let dangling = dir.path().join("dangling");
        std::os::unix::fs::symlink("later", &dangling).unwrap();
        Output::prepare(&dangling).unwrap().write(b"new").unwrap();
        assert!(dangling.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(dir.path().join("later")).unwrap(), "new");
        let endless = dir.path().join("endless");
        std::os::unix::fs::symlink("endless", &endless).unwrap();
        assert!(Output::prepare(&endless).is_err());
    }

    #[test]
    fn a_pipe_is_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let reader = std::thread::spawn({
            let path = path.clone();
            move || {
                let mut text = String::new();
                File::open(path).unwrap().read_to_string(&mut text).unwrap();
                text
            }
        });
        Output::prepare(&path).unwrap().write(b"new").unwrap();
        assert_eq!(reader.join().unwrap(), "new");
    }

    #[test]
    fn what_cannot_be_written_is_found_out_before() {
        let dir = tempfile::tempdir().unwrap();
        let kind = |path: &Path| Output::prepare(path).unwrap_err().kind();
        assert_eq!(kind(Path::new("/dev/full")), io::ErrorKind::StorageFull);
        assert_eq!(kind(dir.path()), io::ErrorKind::IsADirectory);
        assert_eq!(kind(&dir.path().join("no/such/directory")), io::ErrorKind::NotFound);
        assert_eq!(kind(Path::new("/proc/hetmem-statistics")), io::ErrorKind::NotFound);
    }
}

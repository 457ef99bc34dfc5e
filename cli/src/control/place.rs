//! Where control sockets are: `PID.sock`, by the process id of `hetmem run`, in a folder that only its user may enter.
//!
//! | folder | if |
//! | --- | --- |
//! | `$XDG_RUNTIME_DIR/hetmem` | that is set, to an absolute path of a folder of the user's |
//! | `/run/user/UID/hetmem` | `/run/user/UID` is a folder of the user's |
//! | `/tmp/hetmem-UID` | else; it must be a folder of the user's that nobody else may enter |
//!
//! Who looks for runs looks in all three; root in those of all users.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

/// What a folder is called within one for what runs.
const FOLDER: &str = "hetmem";
/// Who waits to be accepted: more are told to come again.
const BACKLOG: i32 = 16;

/// A control socket's name in the file system, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        // Somebody may have been quicker.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A run's socket.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Found {
    /// The process that owns it.
    pub(crate) pid: u32,
    pub(crate) path: PathBuf,
    /// The user whose folder it is in.
    pub(crate) owner: u32,
}

/// Listens for process `pid`, in the first folder that can be had.
pub(crate) fn listen(pid: u32) -> io::Result<(OwnedFd, Name)> {
    let mut result = Err(Errno::NOENT.into());
    for folder in own_folders() {
        result = make(&folder).and_then(|()| bind(&folder.join(format!("{pid}.sock"))));
        if result.is_ok() {
            break;
        }
    }
    result
}

fn bind(path: &Path) -> io::Result<(OwnedFd, Name)> {
    let socket = socket()?;
    // The name gets the socket's mode.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)?;
    let address = SocketAddrUnix::new(path)?;
    if let Err(error) = rustix::net::bind(&socket, &address) {
        // Of a process that had the same number, and was killed.
        if error != Errno::ADDRINUSE || !is_left_behind(path) {
            return Err(error.into());
        }
        std::fs::remove_file(path)?;
        rustix::net::bind(&socket, &address)?;
    }
    let name = Name(path.to_owned());
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((socket, name))
}

/// A socket that is closed on exec, and waits for nobody.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// Whether nobody listens at `path` any more.
pub(crate) fn is_left_behind(path: &Path) -> bool {
    let connected = socket().and_then(|socket| Ok(rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?));
    connected.is_err_and(|error| error.raw_os_error() == Some(Errno::CONNREFUSED.raw_os_error()))
}

/// The folders that this user's sockets may be in, the best first.
fn own_folders() -> Vec<PathBuf> {
    let user = user();
    let for_what_runs =
        [std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from), Some(format!("/run/user/{user}").into())];
    let for_what_runs =
        for_what_runs.into_iter().flatten().filter(|folder| folder.is_absolute() && is_of(folder, user));
    let mut folders: Vec<PathBuf> = for_what_runs.map(|folder| folder.join(FOLDER)).collect();
    folders.push(format!("/tmp/{FOLDER}-{user}").into());
    folders.dedup();
    folders
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Whether `folder` is a folder, and `user`'s.
fn is_of(folder: &Path, user: u32) -> bool {
    std::fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir() && found.uid() == user)
}

/// Makes `folder`, unless it is there, and makes sure that nobody else may enter it.
fn make(folder: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = std::fs::symlink_metadata(folder)?;
    let is_private = found.is_dir() && found.uid() == user() && found.mode() & 0o077 == 0;
    if is_private { Ok(()) } else { Err(Errno::ACCESS.into()) }
}

/// The sockets of runs that this user may ask, in order; some may be left behind.
pub(crate) fn sockets() -> Vec<Found> {
    let mut folders = own_folders();
    if user() == 0 {
        let entries =
            |folder: &str| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        folders.extend(entries("/run/user").map(|folder| folder.join(FOLDER)));
        let is_folder =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"hetmem-"));
        folders.extend(entries("/tmp").filter(is_folder));
    }
    let mut found: Vec<Found> = folders.iter().flat_map(|folder| in_folder(folder)).collect();
    found.sort();
    found.dedup();
    found
}

/// Those in a folder that only its owner may enter: in any other anybody might have put them.
fn in_folder(folder: &Path) -> Vec<Found> {
    let Ok(owner) = std::fs::symlink_metadata(folder) else { return Vec::new() };
    if !owner.is_dir() || owner.mode() & 0o077 != 0 {
        return Vec::new();
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let socket = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.strip_suffix(".sock")?.parse().ok()?;
        entry.file_type().ok().filter(std::fs::FileType::is_socket)?;
        Some(Found { pid, path: entry.path(), owner: owner.uid() })
    };
    entries.filter_map(socket).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_name_that_was_left_behind_is_taken_over_and_one_in_use_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.sock");
        let (socket, name) = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(bind(&path).is_err() && !is_left_behind(&path));
        drop(socket);
        assert!(is_left_behind(&path));
        let (_again, other) = bind(&path).unwrap();
        assert!(!is_left_behind(&path));
        drop(other);
        assert!(!path.exists());
        drop(name);
    }

    #[test]
    fn a_folder_that_others_may_enter_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("hetmem");
        make(&folder).unwrap();
        make(&folder).unwrap();
        let (_socket, _name) = bind(&folder.join("7.sock")).unwrap();
        std::fs::write(folder.join("8.sock"), "no socket").unwrap();
        assert_eq!(in_folder(&folder).iter().map(|found| found.pid).collect::<Vec<_>>(), [7]);
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(make(&folder).is_err() && in_folder(&folder).is_empty());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(make(&link).is_err() && in_folder(&link).is_empty());
    }
}

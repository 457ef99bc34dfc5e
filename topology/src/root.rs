//! Files below a root directory: this machine's `/`, or a recorded tree of another machine.
//!
//! *Limits:* links are followed as the system follows them, so an absolute link in a recorded tree leads out of it. Those of
//! sysfs are relative.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The longest text that is read; sysfs shows a page at most, `/proc/iomem` of large machines some hundred KiB.
const TEXT_LIMIT: u64 = 4 << 20;
/// The largest ACPI table that is read.
const TABLE_LIMIT: u64 = 16 << 20;

/// Why a directory can't be a root.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RootError {
    /// There is no such thing.
    #[error("{}: no such directory; a root holds the `sys` and `proc` of a machine", .0.display())]
    NotFound(PathBuf),
    /// It is something else.
    #[error("{}: not a directory; a root holds the `sys` and `proc` of a machine", .0.display())]
    NotADirectory(PathBuf),
    /// It can't be looked at.
    #[error("{}: {}", .0.display(), .1)]
    Unreadable(PathBuf, io::Error),
}

/// Why a file or directory can't be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Unreadable {
    /// It is not there.
    Absent,
    /// Permission is denied.
    Denied,
    /// Something else, in words.
    Failed(String),
}

impl Unreadable {
    pub(crate) fn words(&self) -> &str {
        match self {
            Self::Absent => "not there",
            Self::Denied => "permission denied",
            Self::Failed(why) => why,
        }
    }
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "two kinds have a meaning here, all others are told")]
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Self::Absent,
            ErrorKind::PermissionDenied => Self::Denied,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// Where a machine's files are.
#[derive(Clone, Debug)]
pub struct Root {
    directory: PathBuf,
}

impl Root {
    /// This machine.
    #[must_use]
    pub fn this_machine() -> Self {
        Self { directory: PathBuf::from("/") }
    }

    /// The machine recorded below `directory`.
    ///
    /// # Errors
    ///
    /// If that is no directory that can be entered.
    pub fn open(directory: &Path) -> Result<Self, RootError> {
        let found = fs::metadata(directory).map_err(|error| {
            if error.kind() == ErrorKind::NotFound {
                RootError::NotFound(directory.to_owned())
            } else {
                RootError::Unreadable(directory.to_owned(), error)
            }
        })?;
        if !found.is_dir() {
            return Err(RootError::NotADirectory(directory.to_owned()));
        }
        fs::read_dir(directory).map_err(|error| RootError::Unreadable(directory.to_owned(), error))?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.join(path.trim_start_matches('/'))
    }

    /// A text, without the white space around it. Bytes that are no UTF-8 are replaced.
    pub(crate) fn text(&self, path: &str) -> Result<String, Unreadable> {
        let bytes = self.read(path, TEXT_LIMIT)?;
        Ok(String::from_utf8_lossy(&bytes).trim_matches(['\n', ' ', '\t', '\0']).to_owned())
    }

    /// A file of many lines, as it is.
    pub(crate) fn lines(&self, path: &str) -> Result<String, Unreadable> {
        Ok(String::from_utf8_lossy(&self.read(path, TEXT_LIMIT)?).into_owned())
    }

    /// A number, decimal or with `0x`.
    pub(crate) fn number(&self, path: &str) -> Result<u64, Unreadable> {
        let text = self.text(path)?;
        number(&text).ok_or_else(|| Unreadable::Failed(format!("{path}: `{}` is not a number", excerpt(&text))))
    }

    /// A table or other binary.
    pub(crate) fn bytes(&self, path: &str) -> Result<Vec<u8>, Unreadable> {
        self.read(path, TABLE_LIMIT)
    }

    fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, Unreadable> {
        let place = self.at(path);
        // A recorded tree may hold anything; opening a pipe would wait for its writer.
        if !fs::metadata(&place)?.is_file() {
            return Err(Unreadable::Failed(format!("{path}: not a regular file")));
        }
        let mut bytes = Vec::new();
        File::open(&place)?.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(Unreadable::Failed(format!("{path}: longer than {} MiB", limit >> 20)));
        }
        Ok(bytes)
    }

    /// The names in a directory, in order; those that are no UTF-8 are none of the kernel's.
    pub(crate) fn names(&self, path: &str) -> Result<Vec<String>, Unreadable> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.at(path))? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable_by_key(|name| natural(name));
        Ok(names)
    }

    /// Where a link leads, if it is one: in sysfs, through all devices above.
    pub(crate) fn link(&self, path: &str) -> Option<PathBuf> {
        fs::read_link(self.at(path)).ok()
    }

    /// The last part of where a link leads: sysfs names a device's driver that way.
    pub(crate) fn link_name(&self, path: &str) -> Option<String> {
        self.link(path)?.file_name()?.to_str().map(str::to_owned)
    }
}

/// A number as sysfs prints them.
pub(crate) fn number(text: &str) -> Option<u64> {
    match text.trim().strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.trim().parse().ok(),
    }
}

/// The number behind `prefix`, as in `node3`.
pub(crate) fn numbered(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// The beginning of a text, for messages.
pub(crate) fn excerpt(text: &str) -> String {
    let mut part: String = text.chars().take(40).collect();
    if part.len() < text.len() {
        part.push('…');
    }
    part
}

/// Sorts `memory10` behind `memory9`.
fn natural(name: &str) -> (String, u64) {
    let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (word, number) = name.split_at(name.len() - digits);
    (word.to_owned(), number.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("0x10\n"), Some(16));
        assert_eq!(number("10"), Some(10));
        assert_eq!(number("-1"), None);
        assert_eq!(number("99999999999999999999"), None);
    }

    #[test]
    fn names_sort_by_their_numbers() {
        let mut names = ["memory10", "memory9", "auto", "memory100"].map(str::to_owned);
        names.sort_unstable_by_key(|name| natural(name));
        assert_eq!(names, ["auto", "memory9", "memory10", "memory100"]);
    }

    #[test]
    fn a_root_must_be_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(Root::open(&dir.path().join("none")).unwrap_err().to_string().contains("no such directory"));
        assert!(Root::open(&dir.path().join("file")).unwrap_err().to_string().contains("not a directory"));
    }
}

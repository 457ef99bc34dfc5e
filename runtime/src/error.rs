//! The one error of the public API: opaque, with a kind to decide by and a message for people.

use std::fmt;

use hetmem_sys::errno::Errno;
use hetmem_sys::uffd::OpenError;

/// Who has to do something about an [`Error`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller: an argument is out of range or contradicts another.
    InvalidInput,
    /// The operator: the host lacks a feature or a permission; the message names what would fix it.
    HostRefuses,
    /// The operator: the host is out of memory, descriptors or the like.
    Exhausted,
}

/// Why an operation was refused. Nothing has changed then, unless the operation says what has: [`Runtime::release`](crate::Runtime::release),
/// [`Runtime::bring_home`](crate::Runtime::bring_home) and [`Runtime::remove_device`](crate::Runtime::remove_device) may have done a part.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::InvalidInput, message: message.into(), source: None }
    }

    pub(crate) fn os(what: impl Into<String>, errno: Errno) -> Self {
        let kind = match errno {
            Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN => ErrorKind::Exhausted,
            _ => ErrorKind::HostRefuses,
        };
        Self { kind, message: what.into(), source: Some(Box::new(errno)) }
    }

    pub(crate) fn no_userfaultfd(error: OpenError) -> Self {
        Self {
            kind: ErrorKind::HostRefuses,
            message: error.to_string(),
            source: std::error::Error::source(&error).map(|_| Box::new(error) as _),
        }
    }

    /// Who has to do something about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

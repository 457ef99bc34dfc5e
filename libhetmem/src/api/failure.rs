//! The error object of the C interface.
#![expect(unsafe_code, reason = "exports C functions")]

use std::error::Error as _;
use std::ffi::{CString, c_char};

use runtime::mirror::RangeFaultError;
use runtime::{Error, ErrorKind};

use super::pointers::take;

/// `enum hetmem_code`.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Code {
    None = 0,
    InvalidInput = 1,
    HostRefuses = 2,
    Exhausted = 3,
    NoMapping = 16,
    NoAccess = 17,
    ReadOnly = 18,
    FaultFailed = 19,
    Changed = 20,
}

/// `hetmem_error`: why a call was refused.
pub(crate) struct Failure {
    code: Code,
    message: CString,
}

/// What a function gives back to C: null, or a failure that is the caller's to free.
pub(crate) type Answer = *mut Failure;

impl Failure {
    fn new(code: Code, message: &str) -> Self {
        // Texts from C can't hold a NUL and neither do our own; should one come from elsewhere, the message ends there.
        let whole = message.split('\0').next().unwrap_or_default();
        Self { code, message: CString::new(whole).unwrap_or_default() }
    }

    /// An argument is wrong.
    pub(crate) fn invalid(message: impl AsRef<str>) -> Self {
        Self::new(Code::InvalidInput, message.as_ref())
    }

    /// The host, or how the program was started, doesn't allow it.
    pub(crate) fn refused(message: impl AsRef<str>) -> Self {
        Self::new(Code::HostRefuses, message.as_ref())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::InvalidInput => Code::InvalidInput,
            ErrorKind::Exhausted => Code::Exhausted,
            // Kinds that this version doesn't know are nothing that the caller can change.
            ErrorKind::HostRefuses | _ => Code::HostRefuses,
        };
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        Self::new(code, &message)
    }
}

impl From<RangeFaultError> for Failure {
    fn from(error: RangeFaultError) -> Self {
        let code = match error {
            RangeFaultError::NoMapping(_) => Code::NoMapping,
            RangeFaultError::NoAccess(_) => Code::NoAccess,
            RangeFaultError::ReadOnly(_) => Code::ReadOnly,
            RangeFaultError::Failed(_) => Code::FaultFailed,
            RangeFaultError::Changed => Code::Changed,
        };
        Self::new(code, &error.to_string())
    }
}

/// The result of a function's body, for C.
pub(crate) fn answer(result: Result<(), Failure>) -> Answer {
    match result {
        Ok(()) => std::ptr::null_mut(),
        Err(failure) => Box::into_raw(Box::new(failure)),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_error_code(error: *const Failure) -> u32 {
    // SAFETY: null or an error of this library's, by the header.
    unsafe { error.as_ref() }.map_or(Code::None, |failure| failure.code) as u32
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_error_message(error: *const Failure) -> *const c_char {
    // SAFETY: as above.
    unsafe { error.as_ref() }.map_or(c"no error", |failure| &failure.message).as_ptr()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_error_free(error: *mut Failure) {
    // SAFETY: null or an error of this library's that is not used again, by the header.
    drop(unsafe { take(error) });
}

//! Which version this is.
#![expect(unsafe_code, reason = "exports C functions")]

use std::ffi::{CStr, c_char};

/// A part of the version, which the package gives as text.
const fn number(text: &str) -> u32 {
    let (digits, mut i, mut value) = (text.as_bytes(), 0, 0);
    while i < digits.len() {
        value = value * 10 + (digits[i] - b'0') as u32;
        i += 1;
    }
    value
}

const VERSION: u32 = number(env!("CARGO_PKG_VERSION_MAJOR")) << 16
    | number(env!("CARGO_PKG_VERSION_MINOR")) << 8
    | number(env!("CARGO_PKG_VERSION_PATCH"));

const TEXT: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(text) => text,
    Err(_) => c"",
};

#[unsafe(no_mangle)]
extern "C" fn hetmem_version() -> u32 {
    VERSION
}

#[unsafe(no_mangle)]
extern "C" fn hetmem_version_string() -> *const c_char {
    TEXT.as_ptr()
}

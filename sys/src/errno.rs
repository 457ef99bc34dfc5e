//! The kernel's error numbers.
//!
//! They are values here, never the C library's thread-local variable: system calls are made without it.

pub use rustix::io::Errno;

//! The functions that stand in front of the C library's. Each passes on what is none of the device's business, holds nothing that must be
//! dropped, and does what is the device's by [`hetmem_interpose::cancel::uncancelled`].
//!
//! | function | what it adds | in |
//! | --- | --- | --- |
//! | `open`, `open64`, `openat`, `openat64` | a device's path opens a device | `files` |
//! | `__open_2`, `__open64_2`, `__openat_2`, `__openat64_2` | the same, with `_FORTIFY_SOURCE` | `files` |
//! | `close`, `close_range`, `closefrom`, `dup2`, `dup3` | a device is released whose last descriptor they close | `files` |
//! | `ioctl` | the device answers | `files` |
//! | `mmap`, `mmap64` | a device's memory is mapped; devices are told of what is mapped over | `memory` |
//! | `munmap`, `mprotect`, `pkey_mprotect`, `madvise` | devices are told before | `memory` |
//! | `mremap` | the same; a mapping that was divided by its registration is whole again | `memory` |
//! | `_Fork` | what is done around every fork | `process` |
//! | `pthread_create` | the new thread's stack is kept from migration | `process` |
//!
//! `.ci/sources.py` checks the table. The library's start is in `process`.

pub(crate) mod files;
pub(crate) mod memory;
mod process;

use hetmem_interpose::errno::{errno, set_errno};

use crate::file::Devices;

/// Runs `with`, which makes `call` once, so that `errno` is afterwards as if only `call` had been made.
fn transparently<R>(
    call: impl FnOnce(Option<&Devices>) -> R,
    with: impl FnOnce(&mut dyn FnMut(Option<&Devices>) -> R) -> R,
) -> R {
    let (before, mut after) = (errno(), errno());
    let mut call = Some(call);
    let result = with(&mut |devices| {
        let call = call.take().expect("it is made once");
        set_errno(before);
        let result = call(devices);
        after = errno();
        result
    });
    set_errno(after);
    result
}

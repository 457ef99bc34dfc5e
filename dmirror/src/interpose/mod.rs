//! The functions that stand in front of the C library's. Each passes on what is none of the device's business, holds nothing that must be
//! dropped, and does what is the device's by [`hetmem_interpose::cancel::uncancelled`].
//!
//! ```text
//! files    open, close, dup2, ioctl
//! memory   mmap, munmap, mprotect, mremap, madvise
//! process  _Fork, pthread_create; the library's start
//! ```

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

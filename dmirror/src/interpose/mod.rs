//! The functions that stand in front of the C library's. Each passes on what is none of the device's business.
//!
//! ```text
//! files    open, close, dup2, ioctl
//! memory   mmap, munmap, mprotect, mremap, madvise
//! process  _Fork, pthread_create; the library's start
//! ```

pub(crate) mod files;
pub(crate) mod memory;
mod process;

use hetmem_preload::errno::{errno, set_errno};

/// Runs `with`, which makes `call`, so that `errno` is afterwards as if only `call` had been made.
fn transparently<R>(call: impl FnOnce() -> R, with: impl FnOnce(&mut dyn FnMut() -> R) -> R) -> R {
    let (before, mut after) = (errno(), errno());
    let mut call = Some(call);
    let result = with(&mut || {
        let call = call.take().expect("it is made once");
        set_errno(before);
        let result = call();
        after = errno();
        result
    });
    set_errno(after);
    result
}

//! Exchanges of a block's mapping ([`Backing`](hetmem_core::port::Backing)), each by one `mremap` over it.
#![expect(unsafe_code, reason = "maps over the program's memory")]

use std::sync::atomic::Ordering;

use hetmem_core::outcome::KeptReason;
use hetmem_core::port::{FaultPath, Host as _};
use hetmem_core::units::{PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Spare, is_mapped, map_again_over};
use hetmem_sys::uffd::Mode;

use super::{MAPPING_NAME, UserMemory};

/// Maps the device's memory at `frames` a second time, over `block`.
pub(super) fn lay(block: PageRange, frames: VirtAddr) -> Result<(), Errno> {
    let window = PageRange::new(frames, block.pages()).ok_or(Errno::INVAL)?;
    // SAFETY: the block is hetmem's to map, all its pages are missing, and their bytes are in the frames.
    unsafe { map_again_over(window, block.start()) }
}

impl UserMemory {
    /// Maps anonymous memory over `block`, which is registered for missing pages already.
    pub(super) fn lift(&self, path: FaultPath, block: PageRange) -> Result<(), Errno> {
        let spare = Spare::reserve(block.pages(), MAPPING_NAME)?;
        let uffd = self.contexts.program(path);
        uffd.register(spare.range(), Mode::MISSING)?;
        let moved = if self.present(spare.range()).is_zero() {
            // SAFETY: the block is hetmem's to map, and its bytes are in frames that nobody else refers to.
            unsafe { spare.move_over(block.start()) }
        } else {
            // A page of it would be taken for one of the block.
            Err((spare, Errno::AGAIN))
        };
        moved.map_err(|(spare, errno)| {
            // So its end raises no event, which would come over what is mapped there next.
            let _ = uffd.unregister(spare.range());
            errno
        })
    }

    /// Why a block was not exchanged, which is as it was.
    pub(super) fn exchange_failed(&self, block: PageRange, errno: Errno) -> KeptReason {
        if !is_mapped(block) {
            // Relaxed: a hint for the last word.
            self.refusal.store(errno.raw_os_error(), Ordering::Relaxed);
            self.stop_the_program(block.start(), "the kernel has unmapped its block and mapped nothing in its place");
        }
        match errno {
            Errno::NOMEM => KeptReason::NoMemory,
            Errno::AGAIN => KeptReason::Raced,
            _ => KeptReason::Unsupported,
        }
    }
}

//! Questions about mappings.
#![expect(unsafe_code, reason = "asks about memory that is named by number")]

use hetmem_core::units::PageRange;
use rustix::mm::MsyncFlags;

use super::advice::pointer;

/// Whether every page of `range` lies in some mapping of this process, whatever it allows.
#[must_use]
pub fn is_mapped(range: PageRange) -> bool {
    // SAFETY: MS_ASYNC neither reads nor writes the memory; it fails with ENOMEM where nothing is mapped.
    unsafe { rustix::mm::msync(pointer(range.start()), range.pages().as_usize() * 4096, MsyncFlags::ASYNC) }.is_ok()
}

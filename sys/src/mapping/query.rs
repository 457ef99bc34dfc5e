//! Questions about mappings.
#![expect(unsafe_code, reason = "asks about memory that is named by number")]

use hetmem_core::units::PageRange;
use rustix::mm::MsyncFlags;

use super::advice::pointer;
use crate::errno::Errno;

/// Whether every page of `range` lies in some mapping of this process, whatever it allows.
#[must_use]
pub fn is_mapped(range: PageRange) -> bool {
    // SAFETY: MS_ASYNC neither reads nor writes the memory; it fails with ENOMEM where nothing is mapped.
    let asked =
        unsafe { rustix::mm::msync(pointer(range.start()), range.pages().as_usize() * 4096, MsyncFlags::ASYNC) };
    // Any other error says nothing of the mapping, and who asks drops what is not mapped.
    asked != Err(Errno::NOMEM)
}

/// `mincore(2)`: a byte for each page of `range`, whose lowest bit says whether the page is in memory. `ENOMEM` where something of it is not mapped.
pub fn resident(range: PageRange) -> Result<Vec<u8>, Errno> {
    let pages = range.pages().as_usize();
    let mut seen = vec![0; pages];
    let start = crate::copy::address(range.start());
    let args = [start, pages * 4096, seen.as_mut_ptr().expose_provenance(), 0, 0];
    // SAFETY: the kernel writes a byte for each page, which is as many as there are.
    unsafe { crate::raw::syscall5(libc::SYS_mincore, args) }?;
    Ok(seen)
}

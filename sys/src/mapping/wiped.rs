//! A word that a forked child finds to be zero, however it was forked.
#![expect(unsafe_code, reason = "lends a word of a mapping")]

use std::sync::atomic::AtomicU64;

use hetmem_core::units::PageCount;
use rustix::mm::Advice;

use super::advice::advise;
use super::arena::{Arena, ArenaOptions, HugePages};
use crate::copy::address;
use crate::errno::Errno;

/// Words that are zero at first, and again in each forked child (`MADV_WIPEONFORK`), as no handler of the C library's could have it: a child may be
/// made past it. They are never unmapped.
pub fn wiped_on_fork() -> Result<&'static [AtomicU64; 4], Errno> {
    let options =
        ArenaOptions { huge_pages: HugePages::Never, name: Some(c"hetmem:process"), ..ArenaOptions::default() };
    let arena = std::mem::ManuallyDrop::new(Arena::reserve(PageCount::ONE, &options)?);
    // SAFETY: fresh memory of this function's own.
    unsafe { advise(arena.range(), Advice::LinuxWipeOnFork) }?;
    let words = std::ptr::with_exposed_provenance::<[AtomicU64; 4]>(address(arena.range().start()));
    // SAFETY: readable and writable memory of a page, aligned, which is never unmapped; any bytes are valid.
    Ok(unsafe { &*words })
}

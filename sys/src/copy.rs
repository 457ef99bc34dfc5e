//! Page copies.
#![expect(unsafe_code, reason = "memory named by number is read and written")]

use hetmem_core::units::{PageCount, VirtAddr};

/// Copies `pages` pages from `src` to `dst`.
///
/// # Safety
///
/// * Both ranges are mapped, `src` readable and `dst` writable, and they don't overlap.
/// * Nobody writes to `src` and nobody reads or writes `dst` until the copy is done. This is what taking a page out, or
///   write-protecting it, is for: a page in an arena that only hetmem addresses has no other reader or writer.
/// * No touch of either range may wait for the calling thread.
pub unsafe fn copy_pages(dst: VirtAddr, src: VirtAddr, pages: PageCount) {
    debug_assert!(dst.is_page_aligned() && src.is_page_aligned());
    let from: *const u8 = std::ptr::with_exposed_provenance(address(src));
    let to: *mut u8 = std::ptr::with_exposed_provenance_mut(address(dst));
    // SAFETY: the caller vouches for both ranges; bytes have no alignment.
    unsafe { std::ptr::copy_nonoverlapping(from, to, pages.as_usize() * 4096) }
}

/// The address as a `usize`.
#[expect(clippy::cast_possible_truncation, reason = "hetmem runs on 64-bit machines only")]
pub(crate) const fn address(addr: VirtAddr) -> usize {
    addr.get() as usize
}

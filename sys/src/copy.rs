//! Copying pages between ranges that are named by number.
//!
//! Two ways, of the same result: [`copy_pages`] for pages that the CPU is about to use, and [`stream_pages`] for pages that it is not:
//! stores that go past the caches, which spares reading the destination first and leaves what is in the caches there.
//!
//! What was copied may be code: of a program that writes code, then has it executed. On arm64 the caches of instructions may hold what was in the
//! same memory before. The kernel has them forget that when a page is mapped to be executed for the first time since the page was allocated
//! (`__sync_icache_dcache` of arch/arm64/mm/flush.c), and then no more: what is written later is for the writer to see to. Pages that hetmem copies to
//! and moves into the program are used again and again. So each copy sees to it here (`order_instructions`).
//!
//! *Limits:* processors whose cache of instructions is indexed by virtual addresses (Cortex-A53 and other small ones) may keep what they have for
//! another address of the page. A program that writes code, and for which pages are moved beside that, is not for them.
#![expect(unsafe_code, reason = "reads and writes memory that is named by number")]

use hetmem_core::units::{PAGE_SIZE, PageCount, VirtAddr};

/// Copies `pages` pages from `src` to `dst`. The bytes are copied as they are, by loads and stores of any size: a page
/// that somebody changes meanwhile arrives torn.
///
/// # Safety
///
/// * Both are page boundaries; the pages from `src` on may be loaded from, those from `dst` on stored to.
/// * The two ranges don't overlap.
/// * Nobody stores to the source or accesses the destination meanwhile.
pub unsafe fn copy_pages(dst: VirtAddr, src: VirtAddr, pages: PageCount) {
    let (to, from, bytes) = arguments(dst, src, pages);
    // SAFETY: as the caller promised.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
    order_instructions(to, bytes);
}

/// Like [`copy_pages`], for pages that the CPU is not about to use.
///
/// # Safety
///
/// As [`copy_pages`].
pub unsafe fn stream_pages(dst: VirtAddr, src: VirtAddr, pages: PageCount) {
    #[cfg(target_arch = "x86_64")]
    {
        let (to, from, bytes) = arguments(dst, src, pages);
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions; the rest is as the caller promised.
            return unsafe { stream_avx512(to, from, bytes) };
        }
        if std::arch::is_x86_feature_detected!("avx") {
            // SAFETY: the processor has the instructions; the rest is as the caller promised.
            return unsafe { stream_avx(to, from, bytes) };
        }
    }
    // SAFETY: as the caller promised.
    unsafe { copy_pages(dst, src, pages) };
}

/// Fills `pages` pages from `at` on with zeros, past the caches: whoever uses them next may be on another processor.
///
/// # Safety
///
/// `at` is a page boundary; the pages may be stored to, and nobody accesses them meanwhile.
pub unsafe fn clear_pages(at: VirtAddr, pages: PageCount) {
    let (to, _, bytes) = arguments(at, at, pages);
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the processor has the instructions; the rest is as the caller promised.
        return unsafe { clear_avx(to, bytes) };
    }
    // SAFETY: as the caller promised.
    unsafe { std::ptr::write_bytes(to, 0, bytes) };
}

/// The bytes of a page.
pub type PageBytes = [u8; 4096];

/// Copies the page at `from` into `to`.
///
/// # Safety
///
/// `from` is a page boundary; the page may be loaded from, and nobody stores to it meanwhile.
pub unsafe fn load_page(to: &mut PageBytes, from: VirtAddr) {
    let (_, from, bytes) = arguments(from, from, PageCount::ONE);
    // SAFETY: as the caller promised; `to` is as large as a page, and somebody else's memory.
    unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), bytes) };
}

/// Has `f` look at the page at `at`.
///
/// # Safety
///
/// `at` is a page boundary; the page may be loaded from, and nobody stores to it meanwhile.
pub unsafe fn with_page<R>(at: VirtAddr, f: impl FnOnce(&PageBytes) -> R) -> R {
    let (_, from, _) = arguments(at, at, PageCount::ONE);
    // SAFETY: as the caller promised; a page is as large as its bytes, which have no alignment.
    f(unsafe { &*from.cast::<PageBytes>() })
}

/// Copies `from` to the page at `to`.
///
/// # Safety
///
/// `to` is a page boundary; the page may be stored to, and nobody accesses it meanwhile.
pub unsafe fn store_page(to: VirtAddr, from: &PageBytes) {
    let (to, _, bytes) = arguments(to, to, PageCount::ONE);
    // SAFETY: as the caller promised; `from` is as large as a page, and somebody else's memory.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, bytes) };
    order_instructions(to, bytes);
}

fn arguments(dst: VirtAddr, src: VirtAddr, pages: PageCount) -> (*mut u8, *const u8, usize) {
    debug_assert!(dst.is_page_aligned() && src.is_page_aligned());
    let to = std::ptr::with_exposed_provenance_mut::<u8>(address(dst));
    let from = std::ptr::with_exposed_provenance::<u8>(address(src));
    (to, from, pages.as_usize() * usize::try_from(PAGE_SIZE).expect("the page fits"))
}

/// The address as the machine's word.
pub(crate) fn address(at: VirtAddr) -> usize {
    usize::try_from(at.get()).expect("hetmem runs on 64-bit machines only")
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
#[expect(clippy::multiple_unsafe_ops_per_block, reason = "loads and stores of one loop, inside the same two ranges")]
unsafe fn stream_avx512(to: *mut u8, from: *const u8, bytes: usize) {
    use std::arch::x86_64::{__m512i, _mm512_load_si512, _mm512_stream_si512};
    for at in (0..bytes).step_by(256) {
        // SAFETY: whole pages, so that each step of 256 bytes is inside both ranges and aligned to 64.
        unsafe {
            let source = from.add(at).cast::<__m512i>();
            let target = to.add(at).cast::<__m512i>();
            let (a, b) = (_mm512_load_si512(source), _mm512_load_si512(source.add(1)));
            let (c, d) = (_mm512_load_si512(source.add(2)), _mm512_load_si512(source.add(3)));
            _mm512_stream_si512(target, a);
            _mm512_stream_si512(target.add(1), b);
            _mm512_stream_si512(target.add(2), c);
            _mm512_stream_si512(target.add(3), d);
        }
    }
    order_streamed_stores();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
#[expect(clippy::multiple_unsafe_ops_per_block, reason = "loads and stores of one loop, inside the same two ranges")]
unsafe fn stream_avx(to: *mut u8, from: *const u8, bytes: usize) {
    use std::arch::x86_64::{__m256i, _mm256_load_si256, _mm256_stream_si256};
    for at in (0..bytes).step_by(128) {
        // SAFETY: whole pages, so that each step of 128 bytes is inside both ranges and aligned to 32.
        unsafe {
            let source = from.add(at).cast::<__m256i>();
            let target = to.add(at).cast::<__m256i>();
            let (a, b) = (_mm256_load_si256(source), _mm256_load_si256(source.add(1)));
            let (c, d) = (_mm256_load_si256(source.add(2)), _mm256_load_si256(source.add(3)));
            _mm256_stream_si256(target, a);
            _mm256_stream_si256(target.add(1), b);
            _mm256_stream_si256(target.add(2), c);
            _mm256_stream_si256(target.add(3), d);
        }
    }
    order_streamed_stores();
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
#[expect(clippy::multiple_unsafe_ops_per_block, reason = "stores of one loop, inside the same range")]
unsafe fn clear_avx(to: *mut u8, bytes: usize) {
    use std::arch::x86_64::{__m256i, _mm256_setzero_si256, _mm256_stream_si256};
    let zero = _mm256_setzero_si256();
    for at in (0..bytes).step_by(64) {
        // SAFETY: whole pages, so that each step of 64 bytes is inside the range and aligned to 64.
        unsafe {
            let target = to.add(at).cast::<__m256i>();
            _mm256_stream_si256(target, zero);
            _mm256_stream_si256(target.add(1), zero);
        }
    }
    order_streamed_stores();
}

/// Orders streamed stores with those that follow, which only a fence does.
#[cfg(target_arch = "x86_64")]
#[allow(unused_unsafe, reason = "only the older ones of the versions of Rust that will do call it unsafe")]
fn order_streamed_stores() {
    // SAFETY: every processor of this architecture has the instruction.
    unsafe { std::arch::x86_64::_mm_sfence() };
}

/// Has every processor that comes to execute the `bytes` bytes at `at`, which were just stored, find them: there is one memory for both.
#[cfg(not(target_arch = "aarch64"))]
const fn order_instructions(_at: *const u8, _bytes: usize) {}

/// Has every processor that comes to execute the `bytes` bytes at `at`, which were just stored, find them. Where caches of data and instructions
/// agree by themselves, as on servers, that takes nothing (`CTR_EL0` says so: IDC, DIC).
#[cfg(target_arch = "aarch64")]
fn order_instructions(at: *const u8, bytes: usize) {
    use std::arch::asm;
    const DATA_AGREES: u64 = 1 << 28;
    const INSTRUCTIONS_AGREE: u64 = 1 << 29;
    let caches: u64;
    // SAFETY: reads a register that describes the caches.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) caches, options(nomem, nostack, preserves_flags, pure)) };
    let line = |log: u64| 4_usize << (log & 0xF);
    if caches & DATA_AGREES == 0 {
        for at in (0..bytes).step_by(line(caches >> 16)).map(|skip| at.wrapping_add(skip)) {
            // SAFETY: writes a line of the cache back, which changes no memory; it was stored to.
            unsafe { asm!("dc cvau, {}", in(reg) at, options(nostack, preserves_flags)) };
        }
    }
    // SAFETY: waits for what was stored, or written back.
    unsafe { asm!("dsb ish", options(nostack, preserves_flags)) };
    if caches & INSTRUCTIONS_AGREE == 0 {
        for at in (0..bytes).step_by(line(caches)).map(|skip| at.wrapping_add(skip)) {
            // SAFETY: drops a line of copies of what is in memory.
            unsafe { asm!("ic ivau, {}", in(reg) at, options(nostack, preserves_flags)) };
        }
        // SAFETY: waits for that.
        unsafe { asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::{Arena, ArenaOptions};

    type Copy = unsafe fn(VirtAddr, VirtAddr, PageCount);

    #[test]
    fn both_ways_copy_whole_pages_and_nothing_beside_them() {
        for copy in [copy_pages as Copy, stream_pages as Copy] {
            let pages = PageCount::new(5);
            let arenas = [(); 2].map(|()| Arena::reserve(pages, &ArenaOptions::default()).unwrap());
            let [from, to] = [0, 1].map(|i: usize| arenas[i].range().start());
            let at = |base: VirtAddr, i: usize| {
                std::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(base.get()).unwrap() + i)
            };
            for i in 0..5 * 4096 {
                // SAFETY: inside the arena.
                unsafe { at(from, i).write(u8::try_from(i % 251).unwrap() + 1) };
            }
            let skip = |base: VirtAddr| base.add_pages(PageCount::ONE);
            // SAFETY: three pages in the middle of arenas of five.
            unsafe { copy(skip(to), skip(from), PageCount::new(3)) };
            for i in 0..5 * 4096 {
                // SAFETY: inside the arena.
                let found = unsafe { at(to, i).read() };
                let expected = if (4096..4 * 4096).contains(&i) { u8::try_from(i % 251).unwrap() + 1 } else { 0 };
                assert_eq!(found, expected, "byte {i}");
            }
        }
    }

    #[test]
    fn whole_pages_are_cleared_and_nothing_beside_them() {
        let arena = Arena::reserve(PageCount::new(5), &ArenaOptions::default()).unwrap();
        let start = arena.range().start();
        let at = |i: usize| std::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(start.get()).unwrap() + i);
        // SAFETY: inside the arena.
        (0..5 * 4096).for_each(|i| unsafe { at(i).write(7) });
        // SAFETY: three pages in the middle of an arena of five.
        unsafe { clear_pages(start.add_pages(PageCount::ONE), PageCount::new(3)) };
        for i in 0..5 * 4096 {
            // SAFETY: inside the arena.
            let found = unsafe { at(i).read() };
            assert_eq!(found, if (4096..4 * 4096).contains(&i) { 0 } else { 7 }, "byte {i}");
        }
    }
}

//! How much memory the C library's allocator has given out.
#![expect(unsafe_code, reason = "a call of the C library")]

/// The bytes that are allocated from the C library, over all its arenas and mappings, with its own overhead. What the
/// caches of threads hold back counts as allocated: up to some kilobytes.
#[must_use]
pub fn heap_bytes() -> usize {
    // SAFETY: takes no argument, and locks each arena while it looks.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_shows_with_its_size() {
        let before = heap_bytes();
        let kept = std::hint::black_box(vec![1u8; 64 << 20]);
        let grown = heap_bytes().saturating_sub(before);
        assert!(grown >= 60 << 20, "{grown}");
        drop(kept);
    }
}

//! Where glibc keeps a thread's table of thread-local storage.
//!
//! The thread control block itself lies on the thread's stack, but the table that it points to, the dynamic thread
//! vector (DTV), is allocated on the heap: a page that the agent must leave alone in order to use any thread-local
//! variable of a library that was loaded late.
//!
//! ```text
//!   x86-64: fs:0 { tcb, dtv, … }     arm64: tpidr_el0 { dtv, … }
//!                        └───────────────────────┴──► [-1] length  [0] generation  [1] … [length] modules
//! ```
//!
//! *Limits:* the layout is glibc's, unchanged since its threads are NPTL (2003), and not promised by anyone.
#![expect(unsafe_code, reason = "reads the thread control block")]

use hetmem_core::units::{PageRange, VirtAddr};

/// One entry of the vector: `union { size_t counter; struct { void *val; void *to_free; } pointer; }`.
const ENTRY: usize = 16;
/// More modules with thread-local storage than any program has; a larger count means that the layout is another.
const PLAUSIBLE_ENTRIES: usize = 1 << 20;

/// The pages that hold the calling thread's dynamic thread vector; `None` if it has none, or none that looks like one.
#[must_use]
pub fn dtv_extent() -> Option<PageRange> {
    let dtv = dtv_pointer();
    if dtv == 0 || !dtv.is_multiple_of(align_of::<usize>()) {
        return None;
    }
    let first = dtv.checked_sub(ENTRY)?;
    // SAFETY: glibc keeps the length in the entry before the one that the control block points to, and never frees a
    // vector that is in use by the calling thread.
    let length = unsafe { std::ptr::with_exposed_provenance::<usize>(first).read() };
    if length == 0 || length > PLAUSIBLE_ENTRIES {
        return None;
    }
    let end = dtv.checked_add((length + 1) * ENTRY)?;
    PageRange::between(VirtAddr::new(first as u64).page_down(), VirtAddr::new(end as u64).page_up()?)
}

/// The control block's pointer to the vector.
#[cfg(target_arch = "x86_64")]
fn dtv_pointer() -> usize {
    let dtv: usize;
    // SAFETY: reads the second word of the thread control block, which every thread of glibc has.
    unsafe { std::arch::asm!("mov {}, fs:8", out(reg) dtv, options(nostack, readonly, preserves_flags, pure)) };
    dtv
}

/// The control block's pointer to the vector.
#[cfg(target_arch = "aarch64")]
fn dtv_pointer() -> usize {
    let tcb: usize;
    // SAFETY: reads the register that points to the thread control block.
    unsafe { std::arch::asm!("mrs {}, tpidr_el0", out(reg) tcb, options(nostack, nomem, preserves_flags, pure)) };
    // SAFETY: the first word of the thread control block, which every thread of glibc has.
    unsafe { std::ptr::with_exposed_provenance::<usize>(tcb).read() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_has_a_vector_of_its_own() {
        let here = dtv_extent().expect("this thread has a vector");
        let there = std::thread::spawn(|| (dtv_extent(), dtv_pointer())).join().unwrap();
        assert!(there.0.is_some());
        assert_ne!(there.1, dtv_pointer());
        assert!(here.contains(VirtAddr::new(dtv_pointer() as u64)));
    }
}

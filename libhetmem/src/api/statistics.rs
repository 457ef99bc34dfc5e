//! `hetmem_statistics_get` and `hetmem_device_statistics_get`.
//!
//! The caller says how large its struct is: fields are only ever added at the end, so an older program gets those that it knows, and a newer one
//! zeros for those that this library doesn't have.
#![expect(unsafe_code, reason = "exports C functions")]

use runtime::{KeptReason, Statistics};

use super::failure::{Answer, Failure, answer};
use super::instance::Handle;
use super::pointers::{Out, borrow};

/// Places for reasons, indexed by `hetmem_outcome`.
const KEPT: usize = 32;
const _: () = assert!(KeptReason::ALL.len() < KEPT);

/// What a caller's struct consists of: words, so that no field is half written.
const WORD: usize = size_of::<u64>();

/// The words of `hetmem_statistics`, in the header's order.
fn words(counted: &Statistics) -> Vec<u64> {
    let mut words = vec![
        counted.adopted_bytes,
        counted.pages_migrated_to_device,
        counted.pages_migrated_to_system,
        counted.cpu_faults,
        counted.bytes_copied,
        counted.errors,
        counted.fault_latency_p50_ns,
        counted.fault_latency_p99_ns,
        counted.fault_latency_max_ns,
    ];
    let mut kept = [0; KEPT];
    for (reason, pages) in &counted.pages_kept {
        kept[reason.index() + 1] = *pages;
    }
    words.extend(kept);
    words
}

/// # Safety
///
/// `out` is valid for writes of `size` bytes, or null, or misaligned.
unsafe fn room(out: *mut u64, size: usize) -> Result<Out<u64>, Failure> {
    if size == 0 || !size.is_multiple_of(WORD) {
        return Err(Failure::invalid(format!("size is {size}; give the sizeof of the struct that out points to")));
    }
    // SAFETY: as the caller promised.
    unsafe { Out::many(out, size / WORD, "out") }
}

fn fill(mut out: Out<u64>, words: &[u64]) {
    let mut words = words.iter();
    while out.left() > 0 {
        out.put(words.next().copied().unwrap_or(0));
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_statistics_get(runtime: *const Handle, out: *mut u64, size: usize) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    // SAFETY: the header's contract; the struct consists of words.
    let out = unsafe { room(out, size) };
    answer(instance.and_then(|instance| {
        fill(out?, &words(&instance.runtime()?.statistics()));
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_device_statistics_get(
    runtime: *const Handle,
    index: u32,
    out: *mut u64,
    size: usize,
) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    // SAFETY: the header's contract; the struct consists of words.
    let out = unsafe { room(out, size) };
    answer(instance.and_then(|instance| {
        let (device, _) = instance.device(usize::try_from(index).unwrap_or(usize::MAX))?;
        let counted = instance.runtime()?.statistics().devices[device.index()];
        fill(out?, &[counted.used_bytes, counted.peak_used_bytes, counted.stray_pages]);
        Ok(())
    }))
}

//! `hetmem_statistics_get` and `hetmem_device_statistics_get`.
//!
//! The caller says how large its struct is: fields are only ever added at the end, so an older program gets those that it knows, and a newer one zeros
//! for those that this library doesn't have.
#![expect(unsafe_code, reason = "exports C functions")]

use std::sync::atomic::Ordering::Relaxed;

use hetmem_core::stats::Counters;
use runtime::KeptReason;

use super::failure::{Answer, Failure, answer};
use super::instance::Handle;
use super::pointers::{Out, borrow};

/// Places for reasons, indexed by `hetmem_outcome`.
const KEPT: usize = 32;
const _: () = assert!(KeptReason::ALL.len() < KEPT);

/// What a caller's struct consists of: words, so that no field is half written.
const WORD: usize = size_of::<u64>();

/// The words of `hetmem_statistics`, in the header's order.
fn words(counters: &Counters) -> Vec<u64> {
    let latency = &counters.fault_latency;
    let mut words = vec![
        counters.adopted_bytes.load(Relaxed),
        counters.pages_migrated_to_device.load(Relaxed),
        counters.pages_migrated_to_system.load(Relaxed),
        counters.cpu_faults.load(Relaxed),
        counters.bytes_copied.load(Relaxed),
        counters.errors.load(Relaxed),
        latency.quantile(500),
        latency.quantile(990),
        latency.max(),
    ];
    let mut kept = [0; KEPT];
    for reason in KeptReason::ALL {
        kept[reason.index() + 1] = counters.kept(*reason);
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
        fill(out?, &words(instance.runtime()?.counters()));
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
        // There are as many counters as there can be devices.
        let counters = &instance.runtime()?.counters().devices[device.index()];
        let words = [&counters.used_bytes, &counters.peak_used_bytes, &counters.stray_pages].map(|c| c.load(Relaxed));
        fill(out?, &words);
        Ok(())
    }))
}

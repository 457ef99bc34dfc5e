//! `hetmem_evict`, `hetmem_device_remove` and `hetmem_device_restore`.
#![expect(unsafe_code, reason = "exports C functions")]

use hetmem_core::frames::FrameRun;
use hetmem_core::units::{DeviceId, FrameIndex, PageCount};

use super::failure::{Answer, Failure, answer};
use super::instance::{Handle, Instance};
use super::pointers::{Out, borrow};

fn evict(instance: &Instance, device: u32, first: u64, count: u64) -> Result<u64, Failure> {
    let (id, spec) = instance.device(usize::try_from(device).unwrap_or(usize::MAX))?;
    let capacity = spec.size.whole_pages().unwrap_or_default().get();
    let is_inside = first.checked_add(count).is_some_and(|end| end <= capacity);
    let Some(frame) = u32::try_from(first).ok().filter(|_| is_inside && count > 0) else {
        return Err(Failure::invalid(format!(
            "{count} frames from {first} on are not frames of a device that has {capacity}"
        )));
    };
    let frames = FrameRun { first: FrameIndex::new(frame), pages: PageCount::new(count) };
    Ok(instance.runtime()?.evict(id, frames).get())
}

fn device(instance: &Instance, device: u32) -> Result<DeviceId, Failure> {
    instance.device(usize::try_from(device).unwrap_or(usize::MAX)).map(|(id, _)| id)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_evict(
    runtime: *const Handle,
    device: u32,
    first: u64,
    count: u64,
    moved: *mut u64,
) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    // SAFETY: the header's contract.
    let moved = unsafe { Out::optional(moved, "moved") };
    answer(instance.and_then(|instance| {
        let mut moved = moved?;
        moved.put(evict(instance, device, first, count)?);
        Ok(())
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_device_remove(runtime: *const Handle, index: u32) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    answer(instance.and_then(|instance| Ok(instance.runtime()?.remove_device(device(instance, index)?)?)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn hetmem_device_restore(runtime: *const Handle, index: u32) -> Answer {
    // SAFETY: the header's contract.
    let instance = unsafe { borrow(runtime, "runtime") };
    answer(instance.and_then(|instance| {
        instance.runtime()?.restore_device(device(instance, index)?);
        Ok(())
    }))
}

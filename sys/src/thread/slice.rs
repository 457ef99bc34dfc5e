//! How soon a thread runs that has something to do.
#![expect(unsafe_code, reason = "system calls that rustix has no wrapper for")]

use std::time::Duration;

use crate::errno::Errno;
use crate::raw::syscall5;

/// The shortest that the kernel gives (`__setparam_fair` in kernel/sched/syscalls.c).
const SHORTEST: Duration = Duration::from_micros(100);

/// `struct sched_attr` as it was at first (sched_setattr(2)).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Of an ordinary thread the length of its slices in nanoseconds, since Linux 6.12; before, nothing.
    runtime: u64,
    deadline: u64,
    period: u64,
}

const SIZE: usize = size_of::<Attributes>();

fn attributes() -> Result<Attributes, Errno> {
    let mut attributes = Attributes::default();
    let args = [0, std::ptr::from_mut(&mut attributes).expose_provenance(), SIZE, 0, 0];
    // SAFETY: writes as many bytes of the struct as it has.
    unsafe { syscall5(libc::SYS_sched_getattr, args) }?;
    Ok(attributes)
}

/// The calling thread runs for a short time at once, and so the sooner when it wakes: it comes before threads that run for long. It gets no more of
/// the processor than before. Nothing happens where the thread is of another policy than the ordinary ones, or the kernel is older than 6.12.
///
/// # Errors
///
/// What sched_setattr(2) says.
pub fn ask_for_short_slices() -> Result<(), Errno> {
    let mut attributes = attributes()?;
    if ![libc::SCHED_OTHER, libc::SCHED_BATCH].contains(&attributes.policy.cast_signed()) {
        return Ok(());
    }
    attributes.size = u32::try_from(SIZE).unwrap_or(0);
    attributes.runtime = u64::try_from(SHORTEST.as_nanos()).unwrap_or(0);
    // SAFETY: reads the struct, whose size it has.
    unsafe { syscall5(libc::SYS_sched_setattr, [0, std::ptr::from_ref(&attributes).expose_provenance(), 0, 0, 0]) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_short_slices_and_is_what_it_was_otherwise() {
        let about = |a: Attributes| (a.policy, a.flags, a.nice, a.priority);
        let before = attributes().unwrap();
        let after = std::thread::spawn(|| {
            ask_for_short_slices().unwrap();
            attributes().unwrap()
        });
        let after = after.join().unwrap();
        assert_eq!(about(before), about(after));
        // Kernels before 6.12 know of none.
        let expected = if before.runtime == 0 { 0 } else { 100_000 };
        assert_eq!(after.runtime, expected);
        assert_eq!(attributes().unwrap().runtime, before.runtime, "that of the others stays");
    }
}

//! How many threads serve, and where.
//!
//! A thread that sleeps on another processor than the toucher's answers after 100 us on a virtual machine, and one on the toucher's own after 10: what
//! costs is to wake the other processor. So there is one on each processor, which stays there, and the toucher's own is the first to come; the kernel
//! lets the others sleep on when it finds nothing left. Each asks for short slices of time, so that it comes before the program's busy threads: who
//! waits for it has given the processor away.
//!
//! *Limits:* a touch wakes all that wait for one. So there are several only where there are few processors ([`MOST`]); on larger machines there is one,
//! which goes where the scheduler has it.

use std::os::fd::OwnedFd;

use hetmem_sys::errno::Errno;
use hetmem_sys::thread::{Processors, ask_for_short_slices};
use rustix::event::{EventfdFlags, eventfd};

/// As many threads serve at most.
pub(crate) const MOST: usize = 4;

/// How many threads are of use on these processors.
pub(crate) fn useful(processors: &Processors) -> usize {
    if processors.len() <= MOST { processors.len().max(1) } else { 1 }
}

/// The threads that serve.
pub(crate) struct Crew {
    /// Readable when the first of them has ended.
    pub(super) ended: OwnedFd,
    places: Processors,
}

impl Crew {
    /// One for each processor that the calling thread may run on, if these are few.
    pub(crate) fn new() -> Result<Self, Errno> {
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { ended, places: Processors::of_this_thread() })
    }

    /// How many are of use.
    pub(crate) fn len(&self) -> usize {
        useful(&self.places)
    }

    /// The calling thread, number `number` of them, runs where and when it is of use.
    pub(super) fn take_place(&self, number: usize) {
        // Where it is not let it serves all the same, when its turn comes.
        let _ = ask_for_short_slices();
        if self.len() > 1 {
            // Where it is not let it serves all the same, from where it is.
            let _ = self.places.stay_on(number);
        }
    }

    /// The first has ended.
    pub(super) fn end(&self) {
        // An eventfd takes eight bytes at a time and is never full of ones.
        let _ = rustix::io::write(&self.ended, &1u64.to_ne_bytes());
    }
}

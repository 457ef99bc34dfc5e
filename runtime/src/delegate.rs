//! Faults in signal handlers that mirrors must be told of first.
//!
//! A callback of a mirror takes locks and may allocate; the thread that a signal has interrupted may be in the middle of either. So the signal
//! handler leaves the touched address here and waits, and the handler thread does the rest. This happens only to pages in frames of a
//! private device around which something is mirrored.

use std::os::fd::OwnedFd;

use hetmem_core::port::FaultPath;
use hetmem_core::sync::atomic::{AtomicU64, Ordering};
use hetmem_core::units::VirtAddr;
use hetmem_sys::errno::Errno;
use rustix::event::{EventfdFlags, eventfd};

use crate::inner::Inner;

/// Faults that wait here at the same time; a handler that finds no place tries again.
const PLACES: usize = 64;

/// Touches that signal handlers have left to the handler thread.
pub(crate) struct Delegated {
    /// Touched addresses; 0 where there is none.
    places: [AtomicU64; PLACES],
    /// Readable when there may be one.
    pub(crate) posted: OwnedFd,
}

impl Delegated {
    pub(crate) fn new() -> Result<Self, Errno> {
        let posted = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { places: [const { AtomicU64::new(0) }; PLACES], posted })
    }

    /// Leaves `addr` to the handler thread; the caller waits for the next advance of the events, and looks again.
    pub(crate) fn post(&self, addr: VirtAddr) {
        let _ = self
            .places
            .iter()
            .find(|place| place.compare_exchange(0, addr.get(), Ordering::SeqCst, Ordering::SeqCst).is_ok());
        self.wake();
    }

    /// Has the handler thread look around.
    pub(crate) fn wake(&self) {
        // A counter that is full is readable, which is all that it is for.
        let _ = rustix::io::write(&self.posted, &1u64.to_ne_bytes());
    }

    /// Serves what was left; on the handler thread.
    pub(crate) fn serve(inner: &Inner) {
        let this = &inner.delegated;
        if rustix::io::read(&this.posted, &mut [0; 8]).is_err() {
            return;
        }
        for place in &this.places {
            let addr = VirtAddr::new(place.swap(0, Ordering::SeqCst));
            if addr == VirtAddr::default() {
                continue;
            }
            // What could not be done now is found out by the toucher, who looks again and comes back.
            let _ = inner.engine.fault(addr, FaultPath::Sigbus);
        }
        inner.engine.host().events.advance();
    }
}

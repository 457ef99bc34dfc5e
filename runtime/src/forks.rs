//! Forks by the C library, in a program whose allocator is hetmem's too.
//!
//! `fork(3)` holds the locks of `malloc`, and its system call waits until the handler thread has read the fork's event. So the handler thread may
//! neither allocate then nor wait for anybody who does. A handler of `pthread_atfork`, which runs before those locks are taken, has it *park*:
//!
//! ```text
//! forking thread                          handler thread
//! ----------------------------------     ------------------------------------------------------------------
//! ask, wait                               ends what it is at; takes the gate alone: nobody is under it any more
//! malloc is locked; fork; unlocked        reads events, and acts on none: it has room for them
//! say that it is over                     acts on them, lets go of the gate
//! ```
//!
//! Before that, blocks that a device's memory was laid over come home, as a child would not have them ([`hetmem_core::overlay`]), and until the fork is over none
//! is laid. Such a runtime has its forks noticed whatever allocator it uses, but parks for none if it has one of its own.
//!
//! *Limits:* [`ROOM`] reads of events fit into one fork; other threads go on until their next touch of a missing page or change of a mapping.
#![expect(unsafe_code, reason = "registers functions with the C library")]

use std::cell::RefCell;
use std::sync::{Arc, Once, Weak};

use hetmem_core::sync::{Condvar, Mutex, lock};
use hetmem_sys::errno::Errno;

use crate::error::Error;
use crate::inner::Inner;

/// Reads for which a parked handler thread has room.
pub(crate) const ROOM: usize = 64;

/// The runtimes whose handler threads park.
static RUNTIMES: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

thread_local! {
    /// What this thread has parked for a fork under way.
    static PARKED: RefCell<Vec<Arc<Inner>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Default)]
struct State {
    /// Whether the handler thread parks at all.
    parks: bool,
    /// Forks under way for which it does.
    forks: u32,
    parked: bool,
    /// The handler thread is no more: nobody reads of forks, and none waits.
    ended: bool,
}

/// The forks that a handler thread waits for.
#[derive(Default)]
pub(crate) struct Forks {
    state: Mutex<State>,
    changed: Condvar,
}

impl Forks {
    /// Whether the handler thread is to park.
    pub(crate) fn are_under_way(&self) -> bool {
        lock(&self.state).forks > 0
    }

    /// The handler thread reads from now on, and does nothing else.
    pub(crate) fn park(&self) {
        lock(&self.state).parked = true;
        self.changed.notify_all();
    }

    /// Whether the forks are over; then the handler thread is no longer parked.
    pub(crate) fn unpark(&self) -> bool {
        let mut state = lock(&self.state);
        state.parked &= state.forks > 0;
        !state.parked
    }

    /// The handler thread ends.
    pub(crate) fn end(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_all();
    }
}

fn begin(inner: &Inner) {
    let mut state = lock(&inner.forks.state);
    if !state.parks {
        return;
    }
    state.forks += 1;
    inner.delegated.wake();
    while !state.parked && !state.ended {
        state = inner.forks.changed.wait(state).expect("no thread panicked while it held this lock");
    }
}

fn end(inner: &Inner) {
    {
        let mut state = lock(&inner.forks.state);
        if !state.parks {
            return;
        }
        state.forks -= 1;
    }
    inner.delegated.wake();
}

/// Has forks wait for the handler thread of `inner` if it `parks`, and for blocks to come home. The thread may be about to start.
pub(crate) fn expect(inner: &Arc<Inner>, parks: bool) -> Result<(), Error> {
    lock(&inner.forks.state).parks = parks;
    static REGISTERED: Once = Once::new();
    let mut result = 0;
    REGISTERED.call_once(|| {
        // SAFETY: registers functions that live as long as the process.
        result = unsafe { libc::pthread_atfork(Some(prepare), Some(in_parent), Some(in_child)) };
    });
    if result != 0 {
        return Err(Error::os("forks would not be noticed", Errno::from_raw_os_error(result)));
    }
    let mut runtimes = lock(&RUNTIMES);
    runtimes.retain(|runtime| runtime.strong_count() > 0);
    runtimes.push(Arc::downgrade(inner));
    Ok(())
}

extern "C" fn prepare() {
    let runtimes: Vec<Arc<Inner>> = lock(&RUNTIMES).iter().filter_map(Weak::upgrade).collect();
    // All before any handler thread parks, as this takes more than reading.
    for inner in runtimes.iter().filter(|inner| inner.engine.has_overlays()) {
        inner.engine.hold_overlays();
        inner.lift_all();
    }
    runtimes.iter().for_each(|inner| begin(inner));
    PARKED.set(runtimes);
}

extern "C" fn in_parent() {
    let runtimes = PARKED.take();
    runtimes.iter().for_each(|inner| end(inner));
    runtimes.iter().filter(|inner| inner.engine.has_overlays()).for_each(|inner| inner.engine.release_overlays());
}

#[expect(clippy::mem_forget, reason = "what ends in the parent does not end in the child")]
extern "C" fn in_child() {
    std::mem::forget(PARKED.take());
}

/// Lets the handler thread of `inner` go on while `f` runs, if this thread has parked it: another handler of `pthread_atfork` has work for it.
pub(crate) fn unparked<R>(inner: &Inner, f: impl FnOnce() -> R) -> R {
    let parked = PARKED.with_borrow(|parked| parked.iter().any(|other| std::ptr::eq(&raw const **other, inner)));
    if !parked {
        return f();
    }
    end(inner);
    let result = f();
    begin(inner);
    result
}

//! Forks by the C library: what a runtime does before them and after, by a handler of `pthread_atfork`, which runs before the locks of `malloc` are
//! taken.
//!
//! | where | before | until it is over |
//! | --- | --- | --- |
//! | userfaultfd announces no forks (no `CAP_SYS_PTRACE`) | all pages come home that a child would not have | no page leaves |
//! | it does, and hetmem allocates from the heap that forks lock | the handler thread parks | it reads events, and acts on none |
//! | a coherent DAX device | blocks come home | none is laid |
//!
//! *No page leaves:* who would take one out is refused and does not wait ([`hetmem_core::engine::Engine::hold_pages`]): it may hold a lock that
//! another handler of `pthread_atfork` takes next. A page that can't come home stops the program, as the child would read zeros.
//!
//! *Parking.* `fork(3)` holds the locks of `malloc`, and its system call waits until the handler thread has read the fork's event. So the handler
//! thread may neither allocate then nor wait for anybody who does. So it *parks*:
//!
//! ```text
//! forking thread                          handler thread
//! ----------------------------------     ------------------------------------------------------------------
//! ask, wait                               ends what it is at; takes the gate alone: nobody is under it any more
//! malloc is locked; fork; unlocked        reads events, and acts on none: it has room for them
//! say that it is over                     acts on them, lets go of the gate
//! ```
//!
//! Pages and blocks come home before any handler thread parks, as that takes more than reading. Forks of several threads come one after the other,
//! and a child, in which no runtime of its parent's works, has none of this to do at its own forks.
//!
//! *Limits:* while a fork is under way no runtime starts or ends: a handler of `pthread_atfork` that did so would wait for itself. Whoever forks
//! holds no lock that a callback of a mirror waits for. [`ROOM`] reads of events fit into one fork; other threads go on until their next touch of a
//! missing page or change of a mapping.
#![expect(unsafe_code, reason = "registers functions with the C library")]

use std::cell::RefCell;
use std::sync::{Arc, Once, Weak};
use std::time::Instant;

use hetmem_core::port::Host as _;
use hetmem_core::sync::{Condvar, Mutex, MutexGuard, lock};
use hetmem_core::units::VirtAddr;
use hetmem_sys::errno::Errno;

use crate::error::Error;
use crate::inner::Inner;
use crate::service::MEMORY_PATIENCE;

/// Reads for which a parked handler thread has room.
pub(crate) const ROOM: usize = 64;

/// What a runtime needs of forks.
#[derive(Clone, Copy, Default)]
pub(crate) struct Needs {
    /// That its handler thread parks.
    pub(crate) parks: bool,
    /// That pages come home, and stay.
    pub(crate) homes: bool,
}

/// The runtimes that are to know of forks. Locked while one is under way: then none begins, and nobody holds it in the child.
static RUNTIMES: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

/// A fork under way.
struct Fork {
    runtimes: Vec<Arc<Inner>>,
    _others_wait: MutexGuard<'static, Vec<Weak<Inner>>>,
}

thread_local! {
    /// This thread's fork.
    static UNDER_WAY: RefCell<Option<Fork>> = const { RefCell::new(None) };
}

#[derive(Default)]
struct State {
    needs: Needs,
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
    if !state.needs.parks {
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
        if !state.needs.parks {
            return;
        }
        state.forks -= 1;
    }
    inner.delegated.wake();
}

/// Has forks do what `inner` `needs`, and blocks come home before. Its handler thread may be about to start.
pub(crate) fn expect(inner: &Arc<Inner>, needs: Needs) -> Result<(), Error> {
    lock(&inner.forks.state).needs = needs;
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
    if !runtimes.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(inner))) {
        runtimes.push(Arc::downgrade(inner));
    }
    Ok(())
}

/// Has forks bring what there is of files home before, whatever else `inner` needs of them.
pub(crate) fn expect_files(inner: &Arc<Inner>) -> Result<(), Error> {
    let needs = lock(&inner.forks.state).needs;
    expect(inner, needs)
}

fn homes(inner: &Inner) -> bool {
    lock(&inner.forks.state).needs.homes
}

/// Brings home what the child would not have.
fn bring_home(inner: &Inner) {
    inner.engine.hold_pages();
    let start = Instant::now();
    while !inner.bring_home() {
        if start.elapsed() > MEMORY_PATIENCE {
            inner
                .engine
                .host()
                .stop_the_program(VirtAddr::default(), "pages could not come home that a forked child needs");
        }
    }
}

extern "C" fn prepare() {
    let registered = lock(&RUNTIMES);
    let living = registered.iter().filter_map(Weak::upgrade);
    let runtimes: Vec<Arc<Inner>> = living.filter(|inner| inner.is_of_this_process()).collect();
    for inner in &runtimes {
        inner.engine.hold_exchanges();
        inner.lift_all();
        inner.bring_files_home();
    }
    runtimes.iter().filter(|inner| homes(inner)).for_each(|inner| bring_home(inner));
    runtimes.iter().for_each(|inner| begin(inner));
    UNDER_WAY.set(Some(Fork { runtimes, _others_wait: registered }));
}

extern "C" fn in_parent() {
    let Some(fork) = UNDER_WAY.take() else { return };
    for inner in &fork.runtimes {
        end(inner);
        if homes(inner) {
            inner.engine.release_pages();
        }
        inner.engine.release_exchanges();
    }
}

#[expect(clippy::mem_forget, reason = "what ends in the parent does not end in the child")]
extern "C" fn in_child() {
    // The lock is let go of, as the child may have runtimes of its own.
    if let Some(fork) = UNDER_WAY.take() {
        std::mem::forget(fork.runtimes);
    }
}

/// Lets the handler thread of `inner` go on while `f` runs, if this thread has parked it: another handler of `pthread_atfork` has work for it.
pub(crate) fn unparked<R>(inner: &Inner, f: impl FnOnce() -> R) -> R {
    let parked = UNDER_WAY.with_borrow(|fork| {
        fork.iter().flat_map(|fork| &fork.runtimes).any(|other| std::ptr::eq(&raw const **other, inner))
    });
    if !parked {
        return f();
    }
    end(inner);
    let result = f();
    begin(inner);
    result
}

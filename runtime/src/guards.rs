//! Guard markers (`MADV_GUARD_INSTALL`): put in place and removed with the gate held alone.
//!
//! A marker takes the place of a page, and no userfaultfd is told. As long as it is there the page map shows it, and whoever puts a page
//! back finds it. Once it is removed nothing tells what was discarded from what is away. So whoever can removes a marker only after
//! the books were brought up to date, with nothing put in or taken out from that look to the removal:
//!
//! ```text
//! program's thread                     handler thread
//! ---------------------------------    ------------------------------------------------------
//! leaves the request
//! drops the bell's page ─────────────► reads the event, with the gate held alone
//! waits on the request's word          install: madvise(2), then drops what has a marker now
//!                                      remove: drops what has a marker, then madvise(2)
//!            ◄──────────────────────── says what madvise returned
//! ```
//!
//! The bell is a registered page of hetmem's own: dropping it raises an event, which needs no descriptor (the agent's are not the
//! program's) and no lock. For a thread of the program may be on a stack that is away, and must hold no lock that serving its touch needs.
//!
//! *Limits:* markers that are removed by a bare system call are not heard of: pages that were away come back then.
#![expect(unsafe_code, reason = "guard markers discard memory that is named by number")]

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use hetmem_core::space::Events;
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Arena, ArenaOptions, Guard, HugePages, OnFork, discard, guard};
use hetmem_sys::thread::{current_tid, futex_wait, futex_wake};

use crate::inner::Inner;

/// Requests at a time; more wait for a place.
const PLACES: usize = 16;

/// In place of an advice: look for markers, and do nothing to them.
const LOOK: i32 = 0;

const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const POSTED: u32 = 2;
const DONE: u32 = 3;

/// One request. Its words are written by who has claimed it, and read by who has seen it posted.
#[derive(Default)]
struct Request {
    state: AtomicU32,
    advice: AtomicI32,
    start: AtomicU64,
    len: AtomicU64,
    /// An error's number, or 0.
    result: AtomicI32,
}

impl Request {
    fn become_state(&self, state: u32) {
        self.state.store(state, Ordering::SeqCst);
        // The only error is a bad address.
        let _ = futex_wake(&self.state, u32::MAX >> 1);
    }

    fn wait_while(&self, state: u32) {
        while self.state.load(Ordering::SeqCst) == state {
            // Woken, interrupted, or too late to wait: the word says which.
            let _ = futex_wait(&self.state, state, None);
        }
    }
}

/// The requests for guard markers, and the bell by which the handler thread hears of them.
pub(crate) struct Guards {
    bell: Arena,
    requests: [Request; PLACES],
}

impl Guards {
    pub(crate) fn new() -> Result<Self, Errno> {
        let options = ArenaOptions {
            huge_pages: HugePages::Never,
            on_fork: OnFork::Omit,
            name: Some(c"hetmem:bell"),
            ..ArenaOptions::default()
        };
        Ok(Self {
            bell: Arena::reserve(PageCount::ONE, &options)?,
            requests: std::array::from_fn(|_| Request::default()),
        })
    }

    /// The page whose removal asks for a look at the requests.
    pub(crate) fn bell(&self) -> PageRange {
        self.bell.range()
    }

    /// A request for the caller alone. A signal handler takes another than the call that it has interrupted.
    fn claim(&self) -> &Request {
        let first = current_tid() as usize;
        loop {
            let free = (0..PLACES).map(|i| &self.requests[(first + i) % PLACES]).find(|request| {
                request.state.compare_exchange(FREE, CLAIMED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
            });
            match free {
                Some(request) => return request,
                None => self.requests[first % PLACES].wait_while(POSTED),
            }
            hetmem_sys::thread::yield_now();
        }
    }
}

impl Inner {
    /// `madvise(2)` with guard markers on `len` bytes from `start` on, whatever they are. What is away where a marker is comes back no more.
    ///
    /// # Safety
    ///
    /// What is discarded nobody counts on.
    pub(crate) unsafe fn guard(&self, start: u64, len: u64, what: Guard) -> Result<(), Errno> {
        // SAFETY: the caller's.
        match unsafe { self.ask(start, len, what.advice()) } {
            Some(result) => result,
            // The program forbids itself the call that would be made for it, too.
            // SAFETY: the caller's.
            None => unsafe { guard(start, len, what) },
        }
    }

    /// Leaves a request to the handler thread and waits; `None` if it can't be told.
    ///
    /// # Safety
    ///
    /// As for [`Inner::guard`].
    unsafe fn ask(&self, start: u64, len: u64, advice: i32) -> Option<Result<(), Errno>> {
        let request = self.guards.claim();
        request.advice.store(advice, Ordering::Relaxed);
        request.start.store(start, Ordering::Relaxed);
        request.len.store(len, Ordering::Relaxed);
        request.state.store(POSTED, Ordering::SeqCst);
        // SAFETY: the bell has nothing in it.
        let rung = unsafe { discard(self.guards.bell()) };
        if rung.is_err() && request.state.compare_exchange(POSTED, CLAIMED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        {
            request.become_state(FREE);
            return None;
        }
        request.wait_while(POSTED);
        let result = request.result.load(Ordering::Relaxed);
        request.become_state(FREE);
        Some(if result == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(result)) })
    }

    /// Drops from the books what was discarded by guard markers that are anywhere now.
    pub(crate) fn look_for_guards(&self) {
        // SAFETY: no number of an advice on markers is asked for.
        let _ = unsafe { self.ask(0, 0, LOOK) };
    }

    /// Does what is asked for, on the handler thread.
    pub(crate) fn serve_guards(&self, events: &Events<'_>) {
        for request in &self.guards.requests {
            // SeqCst pairs with the store in `guard`: the words before it are seen.
            if request.state.load(Ordering::SeqCst) != POSTED {
                continue;
            }
            let Some(what) = Guard::from_advice(request.advice.load(Ordering::Relaxed)) else {
                self.engine.guarded(events, PageRange::ALL);
                request.result.store(0, Ordering::Relaxed);
                request.become_state(DONE);
                continue;
            };
            let (start, len) = (request.start.load(Ordering::Relaxed), request.len.load(Ordering::Relaxed));
            if what == Guard::Remove {
                self.drop_guarded(events, start, len);
            }
            // SAFETY: whoever asked gives the contents up.
            let result = unsafe { guard(start, len, what) };
            if what == Guard::Install {
                // Also after an error: a part may be done.
                self.drop_guarded(events, start, len);
            }
            request.result.store(result.err().map_or(0, Errno::raw_os_error), Ordering::Relaxed);
            request.become_state(DONE);
        }
    }

    fn drop_guarded(&self, events: &Events<'_>, start: u64, len: u64) {
        let end = start.checked_add(len).and_then(|end| VirtAddr::new(end).page_up());
        if let Some(range) = end.and_then(|end| PageRange::between(VirtAddr::new(start).page_down(), end)) {
            self.engine.guarded(events, range);
        }
    }
}

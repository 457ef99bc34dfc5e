//! A runtime: how it starts, and how it ends.
//!
//! It runs as long as somebody needs it: the [`Runtime`] itself, a [`Mapping`](crate::Mapping), an [`Accelerator`](crate::accelerator::Accelerator).
//! All of these share one [`Running`], whose drop is the end. A subscription does not: it is told of the end.

use std::fmt;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use hetmem_core::notifier::Event;
use hetmem_core::physmap::{MemoryType, Owner};
use hetmem_core::units::{DeviceId, PageRange};
use hetmem_sys::process::{leave_signals_to_others, with_signals_blocked};

use crate::builder::Builder;
use crate::error::Error;
use crate::files::Keeper;
use crate::inner::Inner;
use crate::memory::release;
use crate::{files, forks, service, sigbus};

/// Manages memory of this process: moves its pages to devices and back while threads use it. Threads may share it; its methods may be called by all
/// of them at once.
///
/// The runtime ends when the last of this, of its [mappings](crate::Mapping) and of its [accelerators](crate::accelerator::Accelerator) is dropped,
/// in whichever order. The end brings every page home, ends the management of adopted memory, tells [subscriptions](crate::mirror::Subscription),
/// which may outlive it, and stops the handler thread. Whoever drops the last one waits for that. If an adopted page can't come home (a device that
/// goes on failing), touches are served as ever until the process ends.
///
/// In a forked child the runtime does not exist: methods move nothing and say so, and dropping does nothing, except that a mapping's memory, which is
/// the child's own copy, is unmapped.
#[must_use]
pub struct Runtime {
    pub(crate) inner: Arc<Running>,
}

/// A runtime that is running, as the [`Runtime`], its mappings and its accelerators share it. Its drop ends it.
pub(crate) struct Running {
    inner: Arc<Inner>,
    stop: OwnedFd,
    service: Option<JoinHandle<()>>,
    /// The handler threads beside that one.
    helpers: Vec<JoinHandle<()>>,
    /// The thread that finds out what touches wait.
    probing: Option<JoinHandle<()>>,
    /// Whether it serves by SIGBUS, too.
    pub(crate) sigbus: bool,
    /// The thread that gives up leases on files that others want to write.
    keeper: Keeper,
}

impl Deref for Running {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl Runtime {
    /// Begins to set up a runtime.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Whose the pages of `device` are, if there is such a device.
    #[must_use]
    pub fn owner(&self, device: DeviceId) -> Option<Owner> {
        self.inner.engine.device(device).map(|device| device.pagemap().owner)
    }

    /// The type of each device, in the order of the ids.
    #[must_use]
    pub fn devices(&self) -> Vec<MemoryType> {
        self.inner.engine.devices().iter().map(|d| d.pagemap().memory_type).collect()
    }

    /// Checks the books against themselves; nothing may be in flight. For tests.
    ///
    /// # Panics
    ///
    /// If they don't add up.
    #[doc(hidden)]
    pub fn check(&self) {
        self.inner.engine.check();
    }

    pub(crate) fn start(inner: Arc<Inner>, sigbus: bool) -> Result<Self, Error> {
        Ok(Self { inner: Arc::new(Running::start(inner, sigbus)?) })
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("devices", &self.devices()).finish_non_exhaustive()
    }
}

impl Running {
    fn start(inner: Arc<Inner>, sigbus: bool) -> Result<Self, Error> {
        match Self::serve(&inner, sigbus) {
            Ok((stop, service)) => {
                let helpers = (1..inner.crew.len()).map_while(|number| help(&inner, number)).collect();
                let probing = probe(&inner);
                Ok(Self { inner, stop, service: Some(service), helpers, probing, sigbus, keeper: Keeper::default() })
            }
            Err(error) => {
                inner.forks.end();
                sigbus::leave(&inner);
                Err(error)
            }
        }
    }

    /// Starts the handler thread, which the descriptor stops.
    fn serve(inner: &Arc<Inner>, sigbus: bool) -> Result<(OwnedFd, JoinHandle<()>), Error> {
        let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
            .map_err(|errno| Error::os("no descriptor to stop the handler thread by", errno))?;
        let stopped = stop
            .try_clone()
            .map_err(|error| Error::os("no descriptor to stop the handler thread by", errno_of(&error)))?;
        if sigbus {
            sigbus::enter(inner)?;
        }
        let shared = Arc::clone(inner);
        let before = inner.engine.host().events.count();
        let run = move || {
            // Nothing that it leaves behind is used again.
            let served = catch_unwind(AssertUnwindSafe(|| service::run(&shared, &stopped)));
            if let Err(panic) = served {
                shared.engine.host().end_after_panic("the thread that serves touches", &*panic);
            }
        };
        let service = spawn(run).map_err(|error| Error::os("the handler thread can't be started", errno_of(&error)))?;
        // A beginning thread allocates, until `service::run` says otherwise, and a fork keeps it from that: the fork would wait for this thread to
        // read its event, and this thread for the C library's heap.
        while inner.engine.host().events.count() == before {
            inner.engine.host().events.wait_after(before);
        }
        Ok((stop, service))
    }

    /// Has all that files need which are managed.
    pub(crate) fn expect_files(&self) -> Result<(), Error> {
        forks::expect_files(&self.inner)?;
        files::keep(&self.inner, &self.keeper)
            .map_err(|error| Error::os("the thread that gives up leases can't be started", errno_of(&error)))
    }

    /// Keeps all that the runtime has for as long as the process lives.
    #[expect(clippy::mem_forget, reason = "what is left behind is in use still, or in use by the parent")]
    fn keep(&self) {
        std::mem::forget(Arc::clone(&self.inner));
    }
}

/// Starts a thread of hetmem's. It takes no signals of the program's: a handler that ran there could touch what only that thread brings.
pub(crate) fn spawn(run: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    let body = move || {
        leave_signals_to_others();
        run();
    };
    // It begins with the mask of who starts it.
    with_signals_blocked(|| std::thread::Builder::new().name("hetmem".to_owned()).spawn(body))
}

/// Starts another handler thread, which ends after the first. Without it others serve what it would have.
fn help(inner: &Arc<Inner>, number: usize) -> Option<JoinHandle<()>> {
    let shared = Arc::clone(inner);
    let helper = spawn(move || {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| service::help(&shared, number))) {
            shared.engine.host().end_after_panic("the thread that serves touches", &*panic);
        }
    });
    helper.ok()
}

/// Starts the thread that finds out what touches wait. Without it statistics have what the handler threads take, and no more.
fn probe(inner: &Arc<Inner>) -> Option<JoinHandle<()>> {
    let shared = Arc::clone(inner);
    inner.probe.hang_bell().ok()?;
    spawn(move || shared.probe.run()).ok()
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.inner.is_of_this_process() {
            // What ends here goes on in the parent. Nor is hetmem's memory unmapped, which the child doesn't have: in its place may be something
            // else.
            return self.keep();
        }
        drop(self.inner.engine.announce(PageRange::ALL, Event::Release));
        let regions: Vec<PageRange> = self.inner.engine.regions().into_iter().map(|(range, _)| range).collect();
        let stuck = regions.into_iter().filter(|range| release(&self.inner, *range).is_err()).count();
        if stuck > 0 {
            // Touches of what can't come home are served as ever, by the handler thread: without it and its registrations they would find zeros.
            return self.keep();
        }
        files::end(&self.inner, &self.keeper);
        if self.sigbus {
            sigbus::leave(&self.inner);
        }
        // While its touch is still served.
        self.inner.probe.end();
        if let Some(probing) = self.probing.take() {
            let _ = probing.join();
        }
        // An eventfd takes eight bytes at a time and is never full of ones.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(service) = self.service.take() {
            // None ends by a panic: then the process would have.
            let _ = service.join();
            self.helpers.drain(..).for_each(|helper| _ = helper.join());
        }
    }
}

fn errno_of(error: &std::io::Error) -> hetmem_sys::errno::Errno {
    hetmem_sys::errno::Errno::from_io_error(error).unwrap_or(hetmem_sys::errno::Errno::IO)
}

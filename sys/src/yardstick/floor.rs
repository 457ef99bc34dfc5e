//! The least that a fault on private memory can cost: one `UFFDIO_COPY`, by a thread on the toucher's own processor or by the toucher itself.
//!
//! ```text
//! rearm    MADV_DONTNEED of everything          touch    device[n] ──one COPY of a page──► program[n]
//! ```
//!
//! Handlers are as many as there are processors, one on each: of the ways that were tried to have several, the fastest. They keep no books.
#![expect(unsafe_code, reason = "pages named by number are dropped and copied, some of them in a signal handler")]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::thread::JoinHandle;

use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use rustix::event::{EventfdFlags, PollFd, PollFlags, poll};

use super::buffer::Buffer;
use crate::errno::Errno;
use crate::mapping::{HugePages, discard};
use crate::thread::Processors;
use crate::uffd::{Access, CopyFlags, Event, EventBuffer, Features, Mode, OpenError, Userfaultfd};

/// Who serves the faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FloorPath {
    /// Threads that poll and read.
    Thread,
    /// The faulting thread, in a handler for SIGBUS.
    Sigbus,
}

/// What the handlers use.
#[derive(Debug)]
struct Served {
    uffd: Userfaultfd,
    program: PageRange,
    device: PageRange,
}

impl Served {
    /// Puts the device's page at `addr`; whether that worked.
    fn serve(&self, addr: VirtAddr) -> bool {
        let page = addr.page_down();
        if !self.program.contains(page) {
            return false;
        }
        let from = self.device.start().add_pages(page.pages_since(self.program.start()));
        // SAFETY: the source is the floor's own, and nobody stores to it; the destination is a hole of the program's buffer, which is lent as atomic
        // words only.
        let copied = unsafe { self.uffd.copy(page, from, PageCount::ONE, CopyFlags::NONE) };
        // Another handler may have come first.
        copied.is_complete() || copied.stop == Some(Errno::EXIST)
    }
}

/// Memory whose every touch, after [`FaultFloor::rearm`], is a fault that costs as little as one can.
pub struct FaultFloor {
    served: Arc<Served>,
    program: Buffer,
    _device: Buffer,
    stop: Option<OwnedFd>,
    handlers: Vec<JoinHandle<()>>,
}

impl FaultFloor {
    /// A floor over `pages` pages, all present. On [`FloorPath::Sigbus`] it is touched during a [`SigbusTurn`] only.
    pub fn new(pages: PageCount, path: FloorPath) -> Result<Self, OpenError> {
        let features = match path {
            FloorPath::Thread => Features::NONE,
            FloorPath::Sigbus => Features::SIGBUS,
        };
        let uffd = Userfaultfd::open(features, Access::Full)?;
        let os = OpenError::Os;
        let program = Buffer::new(pages, HugePages::Never).map_err(os)?;
        let device = Buffer::new(pages, HugePages::Prefer).map_err(os)?;
        (0..).zip(device.words()).for_each(|(i, word)| word.store(i, Ordering::Relaxed));
        uffd.register(program.range(), Mode::MISSING).map_err(os)?;
        let served = Arc::new(Served { uffd, program: program.range(), device: device.range() });
        let mut this = Self { served, program, _device: device, stop: None, handlers: Vec::new() };
        if path == FloorPath::Thread {
            this.start().map_err(os)?;
        }
        Ok(this)
    }

    fn start(&mut self) -> Result<(), Errno> {
        let os = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let stop = self.stop.insert(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?);
        let processors = Processors::of_this_thread();
        for number in 0..processors.len() {
            let (served, stop) = (Arc::clone(&self.served), stop.try_clone().map_err(os)?);
            let handler = move || {
                // One that may not stay there serves from elsewhere.
                let _ = processors.stay_on(number);
                run(&served, &stop);
            };
            self.handlers.push(std::thread::Builder::new().name("floor".to_owned()).spawn(handler).map_err(os)?);
        }
        Ok(())
    }

    /// Has every page leave the program.
    pub fn rearm(&mut self) -> Result<(), Errno> {
        // SAFETY: nobody has words of the program's pages now, and their contents are the device's from here on.
        unsafe { discard(self.program.range()) }
    }

    /// Its contents: after the first [`FaultFloor::rearm`] each word is its own number. A touch of a page that is away costs the floor of a fault, or
    /// the process if nobody serves it.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        self.program.words()
    }
}

impl Drop for FaultFloor {
    fn drop(&mut self) {
        if let Some(stop) = &self.stop {
            // An eventfd takes eight bytes at a time and is never full of ones.
            let _ = rustix::io::write(stop, &1u64.to_ne_bytes());
        }
        // A panic of a handler has been reported by itself.
        self.handlers.drain(..).for_each(|handler| _ = handler.join());
    }
}

/// The bare handler: poll, read, copy.
fn run(served: &Served, stop: &OwnedFd) {
    let mut buffer = EventBuffer::new();
    let mut fds = [served.uffd.as_fd(), stop.as_fd()].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    loop {
        if poll(&mut fds, None).is_err() {
            continue;
        }
        if fds[1].revents().contains(PollFlags::IN) {
            return;
        }
        if served.uffd.read_events(&mut buffer).is_err() {
            continue;
        }
        for event in buffer.take() {
            if let Event::PageFault { addr, .. } = event
                && !served.serve(addr)
            {
                // The toucher would wait for ever.
                std::process::abort();
            }
        }
    }
}

/// The floor whose faults the bare handler serves.
static TURN: AtomicPtr<Served> = AtomicPtr::new(std::ptr::null_mut());

/// A time in which the process's handler for SIGBUS is the bare one. Any other is put back on drop.
pub struct SigbusTurn<'a> {
    previous: libc::sigaction,
    floor: &'a FaultFloor,
}

impl<'a> SigbusTurn<'a> {
    /// Begins `floor`'s turn. `EBUSY` during another's.
    pub fn begin(floor: &'a FaultFloor) -> Result<Self, Errno> {
        let own = Arc::as_ptr(&floor.served).cast_mut();
        // Release pairs with the Acquire in the handler.
        TURN.compare_exchange(std::ptr::null_mut(), own, Ordering::Release, Ordering::Relaxed)
            .map_err(|_| Errno::BUSY)?;
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: the field lies in `action`.
        let mask = unsafe { &raw mut (*action.as_mut_ptr()).sa_mask };
        // SAFETY: writes the set.
        unsafe { libc::sigemptyset(mask) };
        // SAFETY: a structure of integers and an optional function, for all of which zeros are valid.
        let mut action = unsafe { action.assume_init() };
        let entry: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
        action.sa_sigaction = entry as usize;
        action.sa_flags = libc::SA_SIGINFO;
        let mut previous = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: the handler is made for any SIGBUS; the previous disposition is written to `previous`.
        let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, previous.as_mut_ptr()) };
        if result != 0 {
            TURN.store(std::ptr::null_mut(), Ordering::Relaxed);
            return Err(Errno::INVAL);
        }
        // SAFETY: written by the successful call above.
        Ok(Self { previous: unsafe { previous.assume_init() }, floor })
    }

    /// The floor's contents.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        self.floor.words()
    }
}

impl Drop for SigbusTurn<'_> {
    fn drop(&mut self) {
        // SAFETY: puts back what `begin` found.
        unsafe { libc::sigaction(libc::SIGBUS, &raw const self.previous, std::ptr::null_mut()) };
        TURN.store(std::ptr::null_mut(), Ordering::Release);
    }
}

/// The bare handler: one copy.
extern "C" fn on_sigbus(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes the description of the signal, which lives until the handler returns.
    let info = unsafe { &*info };
    // SAFETY: a SIGBUS of a memory access has the field; of any other it is a number that lies in no buffer.
    let addr = unsafe { info.si_addr() };
    // SAFETY: a pointer to a floor that lives as long as its turn.
    let served = unsafe { TURN.load(Ordering::Acquire).as_ref() };
    if !served.is_some_and(|served| served.serve(VirtAddr::new(addr.addr() as u64))) {
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_comes_back_on_either_path() {
        for path in [FloorPath::Thread, FloorPath::Sigbus] {
            let mut floor = FaultFloor::new(PageCount::new(64), path).unwrap();
            let touch_all = |words: &[AtomicU64]| {
                assert!((0..).zip(words).all(|(i, word)| word.load(Ordering::Relaxed) == i));
            };
            for _ in 0..3 {
                floor.rearm().unwrap();
                match path {
                    FloorPath::Thread => touch_all(floor.words()),
                    FloorPath::Sigbus => touch_all(SigbusTurn::begin(&floor).unwrap().words()),
                }
            }
        }
    }
}

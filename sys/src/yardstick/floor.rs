//! The least that a fault can cost: a handler that answers each with one `UFFDIO_MOVE`, and does nothing else.
//!
//! ```text
//! rearm    program ──one MOVE of everything──► pool          touch   pool[next] ──one MOVE of a page──► program
//! ```
//!
//! The n-th fault gets the pool's n-th page, wherever it is: contents are not kept, as the floor keeps no books.
#![expect(unsafe_code, reason = "pages named by number are moved, some of them in a signal handler")]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::thread::JoinHandle;

use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use rustix::event::{EventfdFlags, PollFd, PollFlags, poll};

use super::buffer::Buffer;
use crate::errno::Errno;
use crate::mapping::{Arena, ArenaOptions, HugePages};
use crate::uffd::{Access, Event, EventBuffer, Features, Mode, MoveFlags, OpenError, Userfaultfd};

/// Who serves the faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FloorPath {
    /// A thread that polls and reads.
    Thread,
    /// The faulting thread, in a handler for SIGBUS.
    Sigbus,
}

/// What the handler uses.
#[derive(Debug)]
struct Served {
    uffd: Userfaultfd,
    program: PageRange,
    pool: PageRange,
    next: AtomicU64,
}

impl Served {
    /// Puts the pool's next page at `addr`; whether that worked.
    fn serve(&self, addr: VirtAddr) -> bool {
        // Relaxed: the number is all that is shared.
        let place = self.next.fetch_add(1, Ordering::Relaxed);
        if !self.program.contains(addr) || place >= self.pool.pages().get() {
            return false;
        }
        let from = self.pool.start().add_pages(PageCount::new(place));
        // SAFETY: the page is the pool's, whose place nobody else was given; the destination is a hole of the program's
        // buffer, which is lent as atomic words only.
        unsafe { self.uffd.move_pages(addr.page_down(), from, PageCount::ONE, MoveFlags::NONE) }.is_complete()
    }
}

/// Memory whose every touch, after [`FaultFloor::rearm`], is a fault that costs as little as one can.
pub struct FaultFloor {
    served: Arc<Served>,
    window: Userfaultfd,
    program: Buffer,
    _pool: Arena,
    service: Option<(OwnedFd, JoinHandle<()>)>,
}

impl FaultFloor {
    /// A floor over `pages` pages, all present. On [`FloorPath::Sigbus`] it is touched during a [`SigbusTurn`] only.
    pub fn new(pages: PageCount, path: FloorPath) -> Result<Self, OpenError> {
        let features = match path {
            FloorPath::Thread => Features::MOVE,
            FloorPath::Sigbus => Features::MOVE | Features::SIGBUS,
        };
        let uffd = Userfaultfd::open(features, Access::Full)?;
        let window = Userfaultfd::open(Features::MOVE | Features::PAGEFAULT_FLAG_WP, Access::Full)?;
        let os = OpenError::Os;
        let program = Buffer::new(pages, HugePages::Never).map_err(os)?;
        let options = ArenaOptions { huge_pages: HugePages::Never, ..ArenaOptions::default() };
        let pool = Arena::reserve(pages, &options).map_err(os)?;
        window.register(pool.range(), Mode::WP).map_err(os)?;
        uffd.register(program.range(), Mode::MISSING).map_err(os)?;
        let served = Arc::new(Served { uffd, program: program.range(), pool: pool.range(), next: AtomicU64::new(0) });
        let service = match path {
            FloorPath::Sigbus => None,
            FloorPath::Thread => Some(start_service(&served).map_err(os)?),
        };
        Ok(Self { served, window, program, _pool: pool, service })
    }

    /// Moves every page out to the pool. All of them must be there: each was touched since the last time.
    pub fn rearm(&mut self) -> Result<(), Errno> {
        let (program, pool) = (self.program.range(), self.served.pool);
        // SAFETY: touches of the program's pages are trapped until a page is back, and nobody has words of them now; the
        // pool is this floor's own.
        let progress =
            unsafe { self.window.move_pages(pool.start(), program.start(), program.pages(), MoveFlags::DONT_WAKE) };
        if let Some(errno) = progress.stop {
            return Err(errno);
        }
        self.served.next.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Its contents. A touch of a page that is out costs the floor of a fault, or the process if nobody serves it.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        self.program.words()
    }
}

impl Drop for FaultFloor {
    fn drop(&mut self) {
        if let Some((stop, service)) = self.service.take() {
            // An eventfd takes eight bytes at a time and is never full of ones.
            let _ = rustix::io::write(&stop, &1u64.to_ne_bytes());
            // A panic of the thread has been reported by itself.
            let _ = service.join();
        }
    }
}

fn start_service(served: &Arc<Served>) -> Result<(OwnedFd, JoinHandle<()>), Errno> {
    let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    let os = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let (stopped, served) = (stop.try_clone().map_err(os)?, Arc::clone(served));
    let service =
        std::thread::Builder::new().name("floor".to_owned()).spawn(move || run(&served, &stopped)).map_err(os)?;
    Ok((stop, service))
}

/// The bare handler: poll, read, move.
fn run(served: &Served, stop: &OwnedFd) {
    let mut buffer = EventBuffer::new();
    loop {
        let mut fds = [PollFd::new(&served.uffd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
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

/// The bare handler: one move.
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

    const PAGES: usize = 64;

    fn touch_all(words: &[AtomicU64]) -> u64 {
        words.chunks(512).map(|page| page[0].load(Ordering::Relaxed)).sum()
    }

    #[test]
    fn every_page_comes_back_on_either_path() {
        for path in [FloorPath::Thread, FloorPath::Sigbus] {
            let mut floor = FaultFloor::new(PageCount::new(PAGES as u64), path).unwrap();
            floor.words().chunks(512).for_each(|page| page[0].store(3, Ordering::Relaxed));
            for _ in 0..3 {
                floor.rearm().unwrap();
                let sum = match path {
                    FloorPath::Thread => touch_all(floor.words()),
                    FloorPath::Sigbus => touch_all(SigbusTurn::begin(&floor).unwrap().words()),
                };
                assert_eq!(sum, 3 * PAGES as u64);
            }
        }
    }
}

//! Reads and writes of whole pages that end later (io_submit(2), in the kernel `fs/aio.c`).
//!
//! ```text
//! Queue::submit ── the kernel has begun ──► the disk works ──► Queue::ended (does not wait), or Queue::wait
//! ```
//!
//! With direct I/O the kernel waits for no disk in [`Queue::submit`]. Of io_uring(7), which can do more, the same reads took as long; many systems forbid
//! it, as it passes by filters of system calls.
//!
//! The kernel's part of a queue is made when it is first used: a process that has one ends some 20 ms later than it would, as the kernel waits then until
//! nobody can look at it any more.
//!
//! *Limits:* a queue belongs to the process, not to a thread: a forked child has none. It counts to `fs.aio-max-nr`, which all processes share; where that is
//! used up, or the process may have none, nothing is begun.
#![expect(unsafe_code, reason = "system calls without a wrapper, on memory that is named by number")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use hetmem_core::sync::atomic::{AtomicUsize, Ordering};
use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{PAGE_SIZE, PageCount, PageRange, VirtAddr};
use rustix::event::{EventfdFlags, eventfd};

use crate::errno::Errno;
use crate::mapping::keep_to_this_process;
use crate::raw;
use crate::scratch::Piece;

/// `struct iocb`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct ControlBlock {
    data: u64,
    key: u32,
    flags_of_write: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    count: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    signalled: u32,
}

/// `struct io_event`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Event {
    data: u64,
    block: u64,
    result: i64,
    second: i64,
}

/// The beginning of what the kernel maps for a queue (`struct aio_ring`).
#[repr(C)]
struct Ring {
    id: u32,
    events: u32,
}

const _: () = assert!(size_of::<ControlBlock>() == 64 && size_of::<Event>() == 32);
const _: () =
    assert!(std::mem::offset_of!(ControlBlock, buffer) == 24 && std::mem::offset_of!(ControlBlock, flags) == 56);

const READ: u16 = 7; // IOCB_CMD_PREADV
const WRITE: u16 = 8; // IOCB_CMD_PWRITEV
const SIGNALS: u32 = 1; // IOCB_FLAG_RESFD
/// The header of the ring, before the events.
const RING_HEADER: u64 = 32;

/// As many are submitted, or looked at, with one system call.
const AT_ONCE: usize = 32;

/// What is to be done with pages and a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// They are filled from it.
    Read,
    /// They are written to it.
    Write,
}

/// A read or a write.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Which.
    pub operation: Operation,
    /// The pages.
    pub pieces: &'a [Piece],
    /// From which byte of the file on.
    pub offset: u64,
    /// What it is known by when it has ended.
    pub tag: u64,
}

impl Request<'_> {
    /// Nothing, to begin with.
    pub const NONE: Self = Self { operation: Operation::Read, pieces: &[], offset: 0, tag: 0 };
}

/// Reads and writes under way.
#[derive(Debug)]
pub struct Queue {
    /// How many at a time, at the least.
    room: u32,
    // Invariant: what the kernel knows this queue by, if it is neither of the two below; then until this is dropped.
    context: AtomicUsize,
    making: Mutex<()>,
    /// Holds how many have ended that nobody was told of.
    ended: Option<OwnedFd>,
}

/// The kernel has not made its part yet.
const NOT_MADE: usize = 0;
/// It has refused to.
const REFUSED: usize = usize::MAX;

impl Queue {
    /// One for so many at a time, at the least, that are waited for.
    #[must_use]
    pub const fn new(room: u32) -> Self {
        // INVARIANT: there is none yet.
        Self { room, context: AtomicUsize::new(NOT_MADE), making: Mutex::new(()), ended: None }
    }

    /// One that has a descriptor, which is readable while some have ended that [`Queue::ended`] did not tell of.
    ///
    /// # Errors
    ///
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn with_descriptor(room: u32) -> Result<Self, Errno> {
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let mut queue = Self::new(room);
        queue.ended = Some(ended);
        Ok(queue)
    }

    /// What the kernel knows it by, if it does.
    fn context(&self) -> Option<usize> {
        // Acquire pairs with the Release below: the ring is there.
        let known = self.context.load(Ordering::Acquire);
        let known = if known == NOT_MADE { self.make() } else { known };
        (known != REFUSED).then_some(known)
    }

    fn make(&self) -> usize {
        let _making = lock(&self.making);
        let known = self.context.load(Ordering::Acquire);
        if known != NOT_MADE {
            return known;
        }
        let mut context = 0_usize;
        let args = [self.room as usize, std::ptr::from_mut(&mut context).expose_provenance(), 0, 0, 0];
        // SAFETY: the kernel writes one word, and maps memory of its own.
        if unsafe { raw::syscall5(libc::SYS_io_setup, args) }.is_err() {
            context = REFUSED;
        } else {
            // SAFETY: the kernel's ring begins there, and can be read.
            let events = unsafe { std::ptr::with_exposed_provenance::<Ring>(context).read_volatile().events };
            let bytes = RING_HEADER + u64::from(events) * size_of::<Event>() as u64;
            let ring = PageRange::new(VirtAddr::new(context as u64), PageCount::new(bytes.div_ceil(PAGE_SIZE)));
            // Of no use to a child, which would have it for good; no more than that if it does.
            // SAFETY: memory of this queue's alone.
            let _ = ring.map(|ring| unsafe { keep_to_this_process(ring) });
        }
        // INVARIANT: as it was just told.
        self.context.store(context, Ordering::Release);
        context
    }

    /// That descriptor.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.ended.as_ref().map(AsFd::as_fd)
    }

    /// Begins `requests`, all of the same file, and says how many: fewer where there is no more room, or it was refused. Those that were begun end, with an
    /// error or without.
    ///
    /// # Safety
    ///
    /// Until a request has ended, its pages may be stored to, if it reads, or loaded from, and nobody accesses, or stores to, them.
    pub unsafe fn submit(&self, file: BorrowedFd<'_>, requests: &[Request<'_>]) -> usize {
        let Some(context) = self.context() else { return 0 };
        let mut begun = 0;
        for part in requests.chunks(AT_ONCE) {
            let mut blocks = [ControlBlock::default(); AT_ONCE];
            let mut pointers = [0_usize; AT_ONCE];
            for ((block, pointer), request) in blocks.iter_mut().zip(&mut pointers).zip(part) {
                *block = self.block(file, request);
                *pointer = std::ptr::from_mut(block).expose_provenance();
            }
            let args = [context, part.len(), pointers.as_ptr().expose_provenance(), 0, 0];
            // SAFETY: the kernel reads the blocks and their pieces, which live through the call, and writes a word of each block; of the pages the caller has
            // answered.
            let result = rustix::io::retry_on_intr(|| unsafe { raw::syscall5(libc::SYS_io_submit, args) });
            let accepted = result.unwrap_or(0);
            begun += accepted;
            if accepted < part.len() {
                break;
            }
        }
        begun
    }

    fn block(&self, file: BorrowedFd<'_>, request: &Request<'_>) -> ControlBlock {
        let signalled = self.ended.as_ref().map(|fd| fd.as_raw_fd().cast_unsigned());
        ControlBlock {
            data: request.tag,
            opcode: match request.operation {
                Operation::Read => READ,
                Operation::Write => WRITE,
            },
            file: file.as_raw_fd().cast_unsigned(),
            buffer: request.pieces.as_ptr().expose_provenance() as u64,
            count: request.pieces.len() as u64,
            offset: request.offset.cast_signed(),
            flags: if signalled.is_some() { SIGNALS } else { 0 },
            signalled: signalled.unwrap_or(0),
            ..ControlBlock::default()
        }
    }

    /// Calls `visit` with the tag of each request that has ended since the last call, and with how many bytes were read or written. It does not wait. Of a
    /// queue with a descriptor.
    pub fn ended(&self, visit: &mut dyn FnMut(u64, Result<usize, Errno>)) {
        let Some(descriptor) = &self.ended else { return };
        let mut count = [0; 8];
        // The kernel counts here after it has put an event into the ring. So as many are there as it says, and none is looked for that it has still to count:
        // the descriptor would become readable with nothing to say.
        if rustix::io::read(descriptor, &mut count) != Ok(count.len()) {
            return;
        }
        let mut left = usize::try_from(u64::from_ne_bytes(count)).unwrap_or(usize::MAX);
        while left > 0 {
            left = left.saturating_sub(self.take(left.min(AT_ONCE), visit));
        }
    }

    /// Waits until at least one has ended that was submitted, and calls `visit` with each that has. Of a queue without a descriptor.
    pub fn wait(&self, visit: &mut dyn FnMut(u64, Result<usize, Errno>)) {
        self.take(1, visit);
    }

    /// Waits for `least` to have ended, and says of how many `visit` was told.
    fn take(&self, least: usize, visit: &mut dyn FnMut(u64, Result<usize, Errno>)) -> usize {
        let context = self.context().expect("what ends was begun");
        let mut events = [Event::default(); AT_ONCE];
        let most = if self.ended.is_some() { least } else { AT_ONCE };
        let args = [context, least, most, events.as_mut_ptr().expose_provenance(), 0];
        // SAFETY: the kernel writes events, for which there is room.
        let taken = rustix::io::retry_on_intr(|| unsafe { raw::syscall5(libc::SYS_io_getevents, args) });
        let taken = taken.expect("a queue that is there, and memory for its events");
        for event in &events[..taken] {
            let result = match usize::try_from(event.result) {
                Ok(bytes) => Ok(bytes),
                Err(_) => Err(Errno::from_raw_os_error(i32::try_from(-event.result).unwrap_or(libc::EIO))),
            };
            visit(event.data, result);
        }
        taken
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let context = *self.context.get_mut();
        if context != NOT_MADE && context != REFUSED {
            // It waits for what is under way. In a forked child there is no such queue.
            // SAFETY: the kernel unmaps its own memory.
            let _ = unsafe { raw::syscall5(libc::SYS_io_destroy, [context, 0, 0, 0, 0]) };
        }
    }
}

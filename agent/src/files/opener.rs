//! Opening a file of the program's once more, with the rights of the thread that has mapped it, and taking a lease on it.
//!
//! The agent's threads may not; and who closes any descriptor of a file ends the POSIX locks on it that were taken by way of the same table of descriptors,
//! which forked children inherit besides. So the program's thread starts one, of which the C library knows nothing, that lets go of the program's table at
//! once, opens the file in one of its own, takes the lease, and ends when the keeper has the description from there.
//!
//! ```text
//! program's thread      opener                                  keeper
//! ----------------      ----------------------------------      --------------------------
//! starts ─────────────► a table of its own; opens; leases
//!          ◄─────────── number of the descriptor
//! asks ───────────────────────────────────────────────────────► takes the description
//!          ◄─────────────────────────────────────────────────── is told of the lease
//! lets it end ────────► ends
//! ```
//!
//! There is one at a time. If the file can't be opened within three seconds, none is ever asked for again.
#![expect(unsafe_code, reason = "a thread on a stack of its own, and what it shares with who has started it")]

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hetmem_sys::errno::Errno;
use hetmem_sys::lease::{Keeper, LeaseFile, OpenFile};
use hetmem_sys::thread::{Stack, backoff_sleep, futex_wait, futex_wake, unshare_files};

use super::super::start::opener_stack;

/// How long an opener may take. Who opens without waiting for anybody takes less, but for a machine that is overloaded.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long to wait, in nanoseconds, for another thread's to end.
const LOOK_AGAIN_AFTER: u32 = 50_000;

/// Whether there is one.
static BUSY: AtomicU32 = AtomicU32::new(0);

/// In a forked child there is none.
pub(super) fn forget_in_child() {
    BUSY.store(0, Ordering::SeqCst);
}

const AT_WORK: u32 = 0;
const DONE: u32 = 1;
const MAY_END: u32 = 2;

/// What an opener is to do, and what has come of it.
struct Order {
    file: OpenFile,
    keeper: Keeper,
    /// One of the three above.
    state: AtomicU32,
    /// 0, or an error.
    failed: AtomicI32,
    /// The descriptor's number, and how many bytes the file has.
    number: AtomicU32,
    size: AtomicU64,
}

/// A file with a lease, as long as this lives.
pub(super) struct Opened {
    stack: &'static Stack,
    tid: u32,
    /// Freed when the opener has ended.
    order: *mut Order,
}

impl Opened {
    /// Opens `file`, and takes a read lease of which `keeper` is told.
    ///
    /// # Errors
    ///
    /// As [`LeaseFile::open`] and [`LeaseFile::take_lease`]; `ENOMEM` if no thread is to be had, `ETIMEDOUT` if it takes long: then no other is begun.
    pub(super) fn with_lease(file: OpenFile, keeper: Keeper) -> Result<Self, Errno> {
        let stack = opener_stack()?;
        let begun = Instant::now();
        while BUSY.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            if begun.elapsed() > 2 * PATIENCE {
                return Err(Errno::TIMEDOUT);
            }
            backoff_sleep(LOOK_AGAIN_AFTER);
        }
        let order = Box::into_raw(Box::new(Order {
            file,
            keeper,
            state: AtomicU32::new(AT_WORK),
            failed: AtomicI32::new(0),
            number: AtomicU32::new(0),
            size: AtomicU64::new(0),
        }));
        // SAFETY: the order lives until the thread has ended, which does what a thread without the C library may do.
        let tid = match unsafe { stack.start(open, order.cast::<c_void>()) } {
            Ok(tid) => tid,
            Err(_) => {
                // SAFETY: nobody else has it.
                drop(unsafe { Box::from_raw(order) });
                BUSY.store(0, Ordering::SeqCst);
                return Err(Errno::NOMEM);
            }
        };
        let opened = ManuallyDrop::new(Self { stack, tid, order });
        let begun = Instant::now();
        while opened.order().state.load(Ordering::SeqCst) == AT_WORK {
            let Some(rest) = PATIENCE.checked_sub(begun.elapsed()) else {
                // What it has it lets go of when it is done.
                opened.let_end();
                return Err(Errno::TIMEDOUT);
            };
            // Woken or not, it is looked at again.
            let _ = futex_wait(&opened.order().state, AT_WORK, Some(rest));
        }
        let opened = ManuallyDrop::into_inner(opened);
        match opened.order().failed.load(Ordering::SeqCst) {
            0 => Ok(opened),
            errno => Err(Errno::from_raw_os_error(errno)),
        }
    }

    /// The opener, and the number of the descriptor in its table.
    pub(super) fn place(&self) -> (u32, u32) {
        (self.tid, self.order().number.load(Ordering::SeqCst))
    }

    /// How many bytes the file has.
    pub(super) fn size(&self) -> u64 {
        self.order().size.load(Ordering::SeqCst)
    }

    fn order(&self) -> &Order {
        // SAFETY: not freed before this is dropped, and changed by its atomics only.
        unsafe { &*self.order }
    }

    fn let_end(&self) {
        self.order().state.store(MAY_END, Ordering::SeqCst);
        // The only error is a bad address.
        let _ = futex_wake(&self.order().state, 1);
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.let_end();
        // So the program's thread has as many beside it as it had before.
        self.stack.wait_ended();
        // SAFETY: made by `Box::into_raw`; the thread has ended.
        drop(unsafe { Box::from_raw(self.order) });
        BUSY.store(0, Ordering::SeqCst);
    }
}

/// The opener.
extern "C" fn open(order: *mut c_void) {
    // SAFETY: an order, which is not freed before this thread has ended.
    let order = unsafe { &*order.cast_const().cast::<Order>() };
    // SAFETY: this thread uses none that was opened before.
    let opened = unsafe { unshare_files(None) }.and_then(|()| {
        let file = LeaseFile::open(&order.file)?;
        file.take_lease(order.keeper)?;
        Ok((file.size()?, file))
    });
    match &opened {
        Ok((size, file)) => {
            order.number.store(file.number(), Ordering::SeqCst);
            order.size.store(*size, Ordering::SeqCst);
        }
        Err(errno) => order.failed.store(errno.raw_os_error(), Ordering::SeqCst),
    }
    // If nobody waits any more, it may end already.
    if order.state.compare_exchange(AT_WORK, DONE, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
        // The only error is a bad address.
        let _ = futex_wake(&order.state, 1);
        while order.state.load(Ordering::SeqCst) == DONE {
            let _ = futex_wait(&order.state, DONE, None);
        }
    }
    drop(opened);
}

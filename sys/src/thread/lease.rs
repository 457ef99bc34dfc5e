//! Words that the kernel gives back when the thread that has them ends, however that ends: by itself, by `exec`, by SIGKILL.
//!
//! It does so for robust mutexes (`set_robust_list(2)`): where a word that the ending thread's list names has the thread's number in it, it sets a bit.
//! The word may be in memory that several processes share. So who of them lives is seen without asking the kernel, also across process namespaces.
//!
//! The list names one word, as that of a mutex about to be taken (`list_op_pending`). So it is named before it is taken, and there is no instant at
//! which a thread that is killed would leave it taken.
//!
//! *Limits:* a thread has one list, and so one lease.
#![expect(unsafe_code, reason = "a system call that rustix doesn't wrap")]

use std::ptr;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use super::wait::current_tid;
use crate::errno::Errno;
use crate::mapping::SharedLayout;
use crate::raw;

/// `FUTEX_OWNER_DIED`: the thread that had it has ended.
const ENDED: u32 = 0x4000_0000;

/// What one thread has at a time, and nobody any more when that has ended. All zeros is one that nobody has.
#[repr(C, align(8))]
#[derive(Debug, Default)]
pub struct Lease {
    /// The number of the thread that has it; 0 if nobody ever had it.
    word: AtomicU32,
    _even: AtomicU32,
}

/// `struct robust_list_head`.
#[repr(C)]
#[derive(Debug)]
struct List {
    /// The first entry: the list itself, as it is empty.
    first: *const Self,
    /// From an entry to its word.
    offset: isize,
    /// The entry that is about to be added.
    pending: *const AtomicU32,
}

// SAFETY: `repr(C)`, made of atomic integers; zeros are one that nobody has.
unsafe impl SharedLayout for Lease {}

impl Lease {
    /// Has the calling thread take it, until it ends; `false` if another has it.
    ///
    /// # Errors
    ///
    /// That of `set_robust_list(2)`; then nobody has it.
    ///
    /// # Safety
    ///
    /// The calling thread has no robust list of somebody else's, such as the C library's, and has no other lease.
    pub unsafe fn take(&'static self) -> Result<bool, Errno> {
        let word = self.word.load(SeqCst);
        if word != 0 && word & ENDED == 0 {
            return Ok(false);
        }
        let mut list = Box::new(List { first: ptr::null(), offset: 0, pending: &raw const self.word });
        list.first = &raw const *list;
        name(&raw const *list)?;
        let is_taken = self.word.compare_exchange(word, current_tid(), SeqCst, SeqCst).is_ok();
        if is_taken {
            // The kernel reads it when the thread is no more.
            Box::leak(list);
        } else {
            name(ptr::null())?;
        }
        Ok(is_taken)
    }

    /// Whether a thread has it that has not ended.
    #[must_use]
    pub fn is_held(&self) -> bool {
        let word = self.word.load(SeqCst);
        word != 0 && word & ENDED == 0
    }
}

/// Tells the kernel of the calling thread's list.
fn name(list: *const List) -> Result<(), Errno> {
    let arguments = [list.expose_provenance(), size_of::<List>(), 0, 0, 0];
    // SAFETY: the kernel notes where it is. What it will do with a word that the list names is for who takes a lease to answer for.
    unsafe { raw::syscall5(libc::SYS_set_robust_list, arguments) }.map(drop)
}

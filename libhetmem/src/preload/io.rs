//! System calls after which a pipe or a socket refers to pages of the program: beyond what userfaultfd is told, so these pages stay.

use std::ffi::{c_int, c_void};
use std::ptr;

use hetmem_core::units::PageRange;
use hetmem_interpose::cancel::uncancelled;
use hetmem_interpose::errno::keeping_errno;
use hetmem_interpose::next;
use hetmem_interpose::next::pages_of;
use hetmem_sys::process::with_signals_blocked;

use super::memory::{Readable, read};

/// The most vectors that the kernel takes (`UIO_MAXIOV`).
const MOST_VECTORS: usize = 1024;

/// The most bytes that one call takes (`MAX_RW_COUNT`).
const MOST_BYTES: usize = 0x7FFF_F000;

// SAFETY: two words.
unsafe impl Readable for libc::iovec {}
// SAFETY: words, and numbers between them.
unsafe impl Readable for libc::msghdr {}
// SAFETY: a header, and a number behind it.
unsafe impl Readable for libc::mmsghdr {}

/// `vmsplice(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn vmsplice(fd: c_int, iov: *const libc::iovec, count: usize, flags: libc::c_uint) -> isize {
    let next = next!(vmsplice(_, _, _, _));
    let referred = Referred::by_vectors(iov, count);
    // SAFETY: as the caller promised.
    referred.settle(unsafe { next(fd, iov, count, flags) })
}

/// `send(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn send(fd: c_int, data: *const c_void, size: usize, flags: c_int) -> isize {
    let next = next!(send(_, _, _, _));
    let referred = Referred::by_send(data, size, flags);
    // SAFETY: as the caller promised.
    referred.settle(unsafe { next(fd, data, size, flags) })
}

/// `sendto(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn sendto(
    fd: c_int,
    data: *const c_void,
    size: usize,
    flags: c_int,
    to: *const libc::sockaddr,
    to_size: libc::socklen_t,
) -> isize {
    let next = next!(sendto(_, _, _, _, _, _));
    let referred = Referred::by_send(data, size, flags);
    // SAFETY: as the caller promised.
    referred.settle(unsafe { next(fd, data, size, flags, to, to_size) })
}

/// `sendmsg(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn sendmsg(fd: c_int, message: *const libc::msghdr, flags: c_int) -> isize {
    let next = next!(sendmsg(_, _, _));
    let referred = Referred::by_message(message, flags);
    // SAFETY: as the caller promised.
    referred.settle(unsafe { next(fd, message, flags) })
}

/// `sendmmsg(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn sendmmsg(
    fd: c_int,
    messages: *mut libc::mmsghdr,
    count: libc::c_uint,
    flags: c_int,
) -> c_int {
    let next = next!(sendmmsg(_, _, _, _));
    let referred = Referred::by_messages(messages, count as usize, flags);
    // SAFETY: as the caller promised.
    referred.settle(unsafe { next(fd, messages, count, flags) })
}

/// Buffers that the kernel may come to refer to by a call under way; kept in place until it has failed, or else for good: nobody says when the kernel
/// has let go of them. Null if there are none. Nothing to be dropped: a thread that is cancelled in the call leaves it, and what it names stays in
/// place.
#[derive(Clone, Copy)]
pub(super) struct Referred(*mut Vec<PageRange>);

impl Referred {
    /// Of a call that sends `size` bytes from `data` on.
    pub(super) fn by_send(data: *const c_void, size: usize, flags: c_int) -> Self {
        Self::if_kept(flags, |ranges| keep(ranges, data.cast_mut(), size))
    }

    /// Of one that sends a message.
    pub(super) fn by_message(message: *const libc::msghdr, flags: c_int) -> Self {
        Self::if_kept(flags, |ranges| {
            if let Some(message) = read(message) {
                keep_vectors(ranges, message.msg_iov, message.msg_iovlen);
            }
        })
    }

    /// Of one that sends several.
    pub(super) fn by_messages(messages: *const libc::mmsghdr, count: usize, flags: c_int) -> Self {
        Self::if_kept(flags, |ranges| {
            for i in 0..count.min(MOST_VECTORS) {
                let Some(message) = read(messages.wrapping_add(i)) else { break };
                keep_vectors(ranges, message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen);
            }
        })
    }

    /// Of one that is given `count` vectors.
    pub(super) fn by_vectors(iov: *const libc::iovec, count: usize) -> Self {
        Self::if_kept(libc::MSG_ZEROCOPY, |ranges| keep_vectors(ranges, iov, count))
    }

    /// What `find` keeps in place, if the kernel is to refer to what is sent with `flags`.
    fn if_kept(flags: c_int, find: impl FnOnce(&mut Vec<PageRange>)) -> Self {
        if flags & libc::MSG_ZEROCOPY == 0 || !agent::is_running() {
            return Self(ptr::null_mut());
        }
        let keep = || {
            let mut ranges = Vec::new();
            find(&mut ranges);
            Self(Box::into_raw(Box::new(ranges)))
        };
        uncancelled(|| with_signals_blocked(keep))
    }

    /// The call has ended with `result`.
    pub(super) fn settle<N: Default + PartialOrd + Copy>(self, result: N) -> N {
        if !self.0.is_null() {
            let settle = || {
                // SAFETY: made above, for one call.
                let ranges = unsafe { Box::from_raw(self.0) };
                if result < N::default() {
                    keeping_errno(|| ranges.into_iter().for_each(agent::let_go));
                }
            };
            uncancelled(|| with_signals_blocked(settle));
        }
        result
    }
}

fn keep_vectors(ranges: &mut Vec<PageRange>, iov: *const libc::iovec, count: usize) {
    for i in 0..count.min(MOST_VECTORS) {
        // What can't be read is the kernel's to refuse.
        let Some(vector) = read(iov.wrapping_add(i)) else { return };
        keep(ranges, vector.iov_base, vector.iov_len);
    }
}

fn keep(ranges: &mut Vec<PageRange>, start: *mut c_void, size: usize) {
    if let Some(range) = pages_of(start, size.min(MOST_BYTES)) {
        agent::keep_in_place(range);
        ranges.push(range);
    }
}

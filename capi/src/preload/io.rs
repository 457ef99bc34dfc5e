//! System calls after which a pipe or a socket refers to pages of the program: beyond what userfaultfd is told, so these pages stay.

use std::ffi::{c_int, c_void};

use hetmem_core::units::PageRange;
use hetmem_preload::next::{Next, pages_of};
use runtime::agent;

use super::keeping_errno;
use super::memory::{Readable, read};

static NEXT_VMSPLICE: Next = Next::new(c"vmsplice");
static NEXT_SEND: Next = Next::new(c"send");
static NEXT_SENDTO: Next = Next::new(c"sendto");
static NEXT_SENDMSG: Next = Next::new(c"sendmsg");
static NEXT_SENDMMSG: Next = Next::new(c"sendmmsg");

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
    type VmspliceFn = unsafe extern "C-unwind" fn(c_int, *const libc::iovec, usize, libc::c_uint) -> isize;
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, VmspliceFn>(NEXT_VMSPLICE.get()) };
    let referred = Referred::by_vectors(iov, count);
    // SAFETY: as the caller promised.
    referred.settle(unsafe { next(fd, iov, count, flags) })
}

/// `send(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn send(fd: c_int, data: *const c_void, size: usize, flags: c_int) -> isize {
    type SendFn = unsafe extern "C-unwind" fn(c_int, *const c_void, usize, c_int) -> isize;
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, SendFn>(NEXT_SEND.get()) };
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
    type SendtoFn = unsafe extern "C-unwind" fn(
        c_int,
        *const c_void,
        usize,
        c_int,
        *const libc::sockaddr,
        libc::socklen_t,
    ) -> isize;
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, SendtoFn>(NEXT_SENDTO.get()) };
    let referred = Referred::by_send(data, size, flags);
    // SAFETY: as the caller promised.
    referred.settle(unsafe { next(fd, data, size, flags, to, to_size) })
}

/// `sendmsg(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn sendmsg(fd: c_int, message: *const libc::msghdr, flags: c_int) -> isize {
    type SendmsgFn = unsafe extern "C-unwind" fn(c_int, *const libc::msghdr, c_int) -> isize;
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, SendmsgFn>(NEXT_SENDMSG.get()) };
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
    type SendmmsgFn = unsafe extern "C-unwind" fn(c_int, *mut libc::mmsghdr, libc::c_uint, c_int) -> c_int;
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, SendmmsgFn>(NEXT_SENDMMSG.get()) };
    let referred = Referred::by_messages(messages, count as usize, flags);
    // SAFETY: as the caller promised.
    referred.settle(unsafe { next(fd, messages, count, flags) })
}

/// Buffers that the kernel may come to refer to by a call under way; kept in place until it has failed, or else for good: nobody says when the kernel has
/// let go of them.
#[derive(Default)]
pub(super) struct Referred(Vec<PageRange>);

impl Referred {
    /// Of a call that sends `size` bytes from `data` on.
    pub(super) fn by_send(data: *const c_void, size: usize, flags: c_int) -> Self {
        let mut referred = Self::default();
        if flags & libc::MSG_ZEROCOPY != 0 && agent::is_running() {
            referred.add(data.cast_mut(), size);
        }
        referred
    }

    /// Of one that sends a message.
    pub(super) fn by_message(message: *const libc::msghdr, flags: c_int) -> Self {
        let mut referred = Self::default();
        if flags & libc::MSG_ZEROCOPY != 0
            && agent::is_running()
            && let Some(message) = read(message)
        {
            referred.add_vectors(message.msg_iov, message.msg_iovlen);
        }
        referred
    }

    /// Of one that sends several.
    pub(super) fn by_messages(messages: *const libc::mmsghdr, count: usize, flags: c_int) -> Self {
        let mut referred = Self::default();
        if flags & libc::MSG_ZEROCOPY != 0 && agent::is_running() {
            for i in 0..count.min(MOST_VECTORS) {
                let Some(message) = read(messages.wrapping_add(i)) else { break };
                referred.add_vectors(message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen);
            }
        }
        referred
    }

    /// Of one that is given `count` vectors.
    pub(super) fn by_vectors(iov: *const libc::iovec, count: usize) -> Self {
        let mut referred = Self::default();
        if agent::is_running() {
            referred.add_vectors(iov, count);
        }
        referred
    }

    fn add_vectors(&mut self, iov: *const libc::iovec, count: usize) {
        for i in 0..count.min(MOST_VECTORS) {
            // What can't be read is the kernel's to refuse.
            let Some(vector) = read(iov.wrapping_add(i)) else { return };
            self.add(vector.iov_base, vector.iov_len);
        }
    }

    fn add(&mut self, start: *mut c_void, size: usize) {
        if let Some(range) = pages_of(start, size.min(MOST_BYTES)) {
            agent::keep_in_place(range);
            self.0.push(range);
        }
    }

    /// The call has ended with `result`.
    pub(super) fn settle<N: Default + PartialOrd>(self, result: N) -> N {
        if result < N::default() {
            keeping_errno(|| self.0.into_iter().for_each(agent::let_go));
        }
        result
    }
}

//! System calls after which a pipe or a socket refers to pages of the program: beyond what userfaultfd is told, so these pages stay.

use std::ffi::{c_int, c_void};

use hetmem_preload::next::{Next, pages_of};
use runtime::agent;

use super::memory::{Readable, read};

static NEXT_VMSPLICE: Next = Next::new(c"vmsplice");
static NEXT_SEND: Next = Next::new(c"send");
static NEXT_SENDTO: Next = Next::new(c"sendto");
static NEXT_SENDMSG: Next = Next::new(c"sendmsg");
static NEXT_SENDMMSG: Next = Next::new(c"sendmmsg");

/// The most vectors that the kernel takes (`UIO_MAXIOV`).
const MOST_VECTORS: usize = 1024;

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
    keep_vectors(iov, count);
    // SAFETY: as the caller promised.
    unsafe { next(fd, iov, count, flags) }
}

/// `send(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn send(fd: c_int, data: *const c_void, size: usize, flags: c_int) -> isize {
    type SendFn = unsafe extern "C-unwind" fn(c_int, *const c_void, usize, c_int) -> isize;
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, SendFn>(NEXT_SEND.get()) };
    keep_if_referred(data, size, flags);
    // SAFETY: as the caller promised.
    unsafe { next(fd, data, size, flags) }
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
    keep_if_referred(data, size, flags);
    // SAFETY: as the caller promised.
    unsafe { next(fd, data, size, flags, to, to_size) }
}

/// `sendmsg(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn sendmsg(fd: c_int, message: *const libc::msghdr, flags: c_int) -> isize {
    type SendmsgFn = unsafe extern "C-unwind" fn(c_int, *const libc::msghdr, c_int) -> isize;
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, SendmsgFn>(NEXT_SENDMSG.get()) };
    keep_message(message, flags);
    // SAFETY: as the caller promised.
    unsafe { next(fd, message, flags) }
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
    keep_messages(messages, count as usize, flags);
    // SAFETY: as the caller promised.
    unsafe { next(fd, messages, count, flags) }
}

/// Keeps a buffer in place that a socket will refer to, for good: nobody says when the kernel has let go of it.
pub(super) fn keep_if_referred(data: *const c_void, size: usize, flags: c_int) {
    if flags & libc::MSG_ZEROCOPY != 0
        && let Some(range) = pages_of(data.cast_mut(), size)
    {
        agent::keep_in_place(range);
    }
}

/// The same for a message's buffers.
pub(super) fn keep_message(message: *const libc::msghdr, flags: c_int) {
    if flags & libc::MSG_ZEROCOPY != 0
        && agent::is_running()
        && let Some(message) = read(message)
    {
        keep_vectors(message.msg_iov, message.msg_iovlen);
    }
}

/// The same for several messages.
pub(super) fn keep_messages(messages: *const libc::mmsghdr, count: usize, flags: c_int) {
    if flags & libc::MSG_ZEROCOPY == 0 || !agent::is_running() {
        return;
    }
    for i in 0..count.min(MOST_VECTORS) {
        let Some(message) = read(messages.wrapping_add(i)) else { return };
        keep_vectors(message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen);
    }
}

/// The same for the buffers that `count` vectors name.
pub(super) fn keep_vectors(iov: *const libc::iovec, count: usize) {
    if !agent::is_running() {
        return;
    }
    for i in 0..count.min(MOST_VECTORS) {
        // What can't be read is the kernel's to refuse.
        let Some(vector) = read(iov.wrapping_add(i)) else { return };
        if let Some(range) = pages_of(vector.iov_base, vector.iov_len) {
            agent::keep_in_place(range);
        }
    }
}

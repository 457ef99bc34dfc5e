//! The C library's functions that this library has for itself.
//!
//! The agent's code calls them while memory of the program is away. The program may have others of these names, that touch its memory: the runtime of
//! a sanitizer, for one. So what the compiler and Rust's library call is found in here, and shown to nobody (`.hidden`). `clock_gettime` is a system
//! call, as the program may have moved the code that the kernel provides for it (vDSO).
//!
//! What else this library takes from others is listed, with a reason, in `.ci/imports`, and compared by `.ci/run`.

use std::ffi::{c_char, c_int, c_void};

std::arch::global_asm!(
    ".hidden memcpy",
    ".hidden memmove",
    ".hidden memset",
    ".hidden memcmp",
    ".hidden bcmp",
    ".hidden strlen",
    ".hidden clock_gettime",
    ".hidden close",
    ".hidden getpid",
    ".hidden gettid",
    ".hidden __xpg_strerror_r",
);

/// Copies forwards.
///
/// # Safety
///
/// As for `memcpy(3)`; the destination may begin inside the source's bytes only before them.
#[cfg(target_arch = "x86_64")]
unsafe fn copy_up(to: *mut c_void, from: *const c_void, len: usize) {
    // SAFETY: as the caller promised. One instruction, which the processor carries out by whole lines.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies forwards.
///
/// # Safety
///
/// As for `memcpy(3)`; the destination may begin inside the source's bytes only before them.
#[cfg(target_arch = "aarch64")]
unsafe fn copy_up(to: *mut c_void, from: *const c_void, len: usize) {
    let (to, from) = (to.cast::<u8>(), from.cast::<u8>());
    let whole = len / 64 * 64;
    for at in (0..whole).step_by(64) {
        // SAFETY: 64 bytes inside both, all of which are read before one is written.
        unsafe {
            std::arch::asm!(
                "ldp {a:q}, {b:q}, [{from}]",
                "ldp {c:q}, {d:q}, [{from}, #32]",
                "stp {a:q}, {b:q}, [{to}]",
                "stp {c:q}, {d:q}, [{to}, #32]",
                from = in(reg) from.wrapping_add(at), to = in(reg) to.wrapping_add(at),
                a = out(vreg) _, b = out(vreg) _, c = out(vreg) _, d = out(vreg) _,
                options(nostack, preserves_flags),
            );
        }
    }
    // Volatile, so that the compiler does not make a call of `memcpy` of it.
    for at in whole..len {
        // SAFETY: inside both.
        let byte = unsafe { from.wrapping_add(at).read_volatile() };
        // SAFETY: inside both.
        unsafe { to.wrapping_add(at).write_volatile(byte) };
    }
}

/// `memcpy(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void {
    // SAFETY: as the caller promised.
    unsafe { copy_up(to, from, len) };
    to
}

/// `memmove(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void {
    if to.addr().wrapping_sub(from.addr()) >= len {
        // SAFETY: as the caller promised; nothing of the source is written before it is read.
        unsafe { copy_up(to, from, len) };
        return to;
    }
    let (target, source) = (to.cast::<u8>(), from.cast::<u8>());
    let mut at = len;
    // Words while there are any. Neither loop may be one that the compiler makes a call of `memmove` of.
    while at >= 8 {
        at -= 8;
        // SAFETY: inside both; read whole before it is written.
        let word = unsafe { source.wrapping_add(at).cast::<u64>().read_unaligned() };
        std::hint::black_box(word);
        // SAFETY: inside both.
        unsafe { target.wrapping_add(at).cast::<u64>().write_unaligned(word) };
    }
    while at > 0 {
        at -= 1;
        // SAFETY: inside both.
        let byte = unsafe { source.wrapping_add(at).read_volatile() };
        // SAFETY: inside both.
        unsafe { target.wrapping_add(at).write_volatile(byte) };
    }
    to
}

/// `memset(3)`.
#[unsafe(no_mangle)]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the C function takes a byte in an int")]
unsafe extern "C" fn memset(to: *mut c_void, byte: c_int, len: usize) -> *mut c_void {
    let value = byte as u8;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as the caller promised.
    unsafe {
        std::arch::asm!(
            "rep stosb",
            inout("rcx") len => _, inout("rdi") to => _, in("al") value,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(target_arch = "aarch64")]
    {
        let (to, whole) = (to.cast::<u8>(), len / 32 * 32);
        for at in (0..whole).step_by(32) {
            // SAFETY: 32 bytes inside what the caller named.
            unsafe {
                std::arch::asm!(
                    "dup {all:v}.16b, {byte:w}",
                    "stp {all:q}, {all:q}, [{to}]",
                    byte = in(reg) u32::from(value), to = in(reg) to.wrapping_add(at), all = out(vreg) _,
                    options(nostack, preserves_flags),
                );
            }
        }
        for at in whole..len {
            // SAFETY: as the caller promised.
            unsafe { to.wrapping_add(at).write_volatile(value) };
        }
    }
    to
}

/// `memcmp(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const c_void, right: *const c_void, len: usize) -> c_int {
    for i in 0..len {
        // SAFETY: as the caller promised.
        let a = unsafe { left.cast::<u8>().wrapping_add(i).read_volatile() };
        // SAFETY: as the caller promised.
        let b = unsafe { right.cast::<u8>().wrapping_add(i).read_volatile() };
        if a != b {
            return c_int::from(a) - c_int::from(b);
        }
    }
    0
}

/// `bcmp(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const c_void, right: *const c_void, len: usize) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { memcmp(left, right, len) }
}

/// `strlen(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const c_char) -> usize {
    let mut len = 0;
    // SAFETY: as the caller promised, up to the end of the text.
    while unsafe { text.wrapping_add(len).read_volatile() } != 0 {
        len += 1;
    }
    len
}

/// Makes a system call that allocates nothing, blocks for nobody, and is no place to be cancelled at.
///
/// # Safety
///
/// As for that call.
unsafe fn call(number: libc::c_long, args: [usize; 2]) -> c_int {
    let [first, second] = args;
    // SAFETY: as the caller promised.
    match unsafe { hetmem_sys::raw::syscall6(number, [first, second, 0, 0, 0, 0]) } {
        Ok(result) => c_int::try_from(result).unwrap_or(c_int::MAX),
        Err(errno) => {
            hetmem_interpose::errno::set_errno(errno.raw_os_error());
            -1
        }
    }
}

/// `clock_gettime(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { call(libc::SYS_clock_gettime, [usize::try_from(clock).unwrap_or(usize::MAX), time.expose_provenance()]) }
}

/// `close(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    // SAFETY: as the caller promised.
    unsafe { call(libc::SYS_close, [usize::try_from(fd).unwrap_or(usize::MAX), 0]) }
}

/// `getpid(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn getpid() -> libc::pid_t {
    // SAFETY: asks for a number.
    unsafe { call(libc::SYS_getpid, [0; 2]) }
}

unsafe extern "C" {
    /// The C library's words for an error, which it does not translate, and so takes no lock for. Null for a number that means nothing.
    safe fn strerrordesc_np(number: c_int) -> *const c_char;
}

/// `strerror_r(3)`, of POSIX. The C library's looks for a translation under a lock that knows its owner by a number which the agent's threads don't
/// have: it would never be free again.
#[unsafe(no_mangle)]
unsafe extern "C" fn __xpg_strerror_r(number: c_int, text: *mut c_char, size: usize) -> c_int {
    let words = strerrordesc_np(number);
    let known = !words.is_null();
    let words = if known { words } else { c"unknown error".as_ptr() };
    // SAFETY: a text of the C library's, or the one above.
    let len = unsafe { strlen(words) }.min(size.saturating_sub(1));
    if size > 0 {
        // SAFETY: inside the text, and inside what the caller has given.
        unsafe { copy_up(text.cast(), words.cast(), len) };
        // SAFETY: as above; the end.
        unsafe { text.wrapping_add(len).write(0) };
    }
    if known { 0 } else { libc::EINVAL }
}

/// `gettid(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn gettid() -> libc::pid_t {
    // SAFETY: asks for a number.
    unsafe { call(libc::SYS_gettid, [0; 2]) }
}

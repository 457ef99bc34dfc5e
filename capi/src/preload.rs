//! What happens before `main()`, and the functions that stand in front of the C library's.
//!
//! | function | what it adds |
//! | --- | --- |
//! | `fork`, `_Fork`, `daemon` | pages come home before, and the child gets an agent of its own |
//! | `pthread_create` | the new thread's stack is kept from migration |
//! | `ioctl` (`UFFDIO_REGISTER`) | a range that the program watches itself is let go of |
//! | `madvise`, `process_madvise` (guard markers) | what they discard comes back no more |
//! | `mremap` | a mapping that was divided by its registration is whole again |
//! | `vmsplice`, `send`, `sendto`, `sendmsg` (`MSG_ZEROCOPY`) | pages that a pipe or socket refers to stay in place |
//!
//! Forks that the C library makes itself pass through the handlers of `pthread_atfork`; those that a program makes by a bare system call
//! are noticed by userfaultfd's fork event, where the privilege for it is there.
#![expect(unsafe_code, reason = "takes the place of C functions")]

use std::ffi::{c_int, c_ulong, c_void};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use hetmem_core::units::{PageRange, VirtAddr};
use hetmem_preload::divided::{self, MremapFn};
use hetmem_preload::errno::{errno, set_errno};
use hetmem_preload::next::{Next, pages_of};
use hetmem_preload::thread::{self, StartRoutine};
use hetmem_sys::mapping::Guard;
use runtime::agent::config::{Config, VARIABLE};
use runtime::agent::ledger::Ledger;
use runtime::agent::{self};

/// Run by the loader, before the program's own code and that of the libraries that it was linked with.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = begin;

/// The configuration, for children; leaked. Null where nothing is managed.
static CONFIG: AtomicPtr<Config> = AtomicPtr::new(std::ptr::null_mut());
/// Whether this process was forked from a managed one and has no agent yet.
static ORPHAN: AtomicBool = AtomicBool::new(false);

extern "C" fn begin() {
    let Ok(text) = std::env::var(VARIABLE) else { return };
    std::panic::set_hook(Box::new(|info| {
        agent::last_word(&format!("a defect of hetmem's own: {info}"));
        hetmem_sys::process::die();
    }));
    let config = match Config::decode(&text) {
        Ok(config) => config,
        // Another hetmem's, or nobody's: nobody can be told, and the program is not to suffer.
        Err(_) => return,
    };
    CONFIG.store(Box::into_raw(Box::new(config.clone())), Ordering::Release);
    // SAFETY: registers functions that live as long as the process. Without memory for it, forks are not noticed, which is told.
    let registered = unsafe { libc::pthread_atfork(Some(before_fork), Some(in_parent), Some(in_child)) };
    let started =
        if registered == 0 { agent::start(config.clone()) } else { Err("the C library has no memory".to_owned()) };
    if let Err(message) = started {
        refuse(&config, &message);
    }
}

/// Tells the supervisor. The program itself does not run then; one that it started runs unmanaged.
fn refuse(config: &Config, message: &str) {
    if let Ok(ledger) = Ledger::open(&config.ledger) {
        ledger.refuse(std::process::id(), message);
    }
    if std::os::unix::process::parent_id() == config.supervisor {
        // SAFETY: ends the process; nothing of the program's has run yet.
        unsafe { libc::_exit(125) };
    }
}

extern "C" fn before_fork() {
    agent::before_fork();
}

extern "C" fn in_parent() {
    agent::after_fork_in_parent();
}

extern "C" fn in_child() {
    // First of all: the old heap may be locked by a thread that is not here.
    // SAFETY: this is a handler of `pthread_atfork`, or `_Fork` below, in the child.
    unsafe { crate::ALLOCATOR.restart_in_child() };
    if agent::after_fork_in_child() {
        ORPHAN.store(true, Ordering::Relaxed);
    }
}

/// In a forked child, once the C library's own part is done: it gets an agent of its own. A child that can't have one goes on
/// unmanaged.
fn adopt_orphan() {
    if !ORPHAN.swap(false, Ordering::Relaxed) {
        return;
    }
    // SAFETY: null or a leaked configuration.
    if let Some(config) = unsafe { CONFIG.load(Ordering::Acquire).as_ref() }
        && let Err(message) = agent::start(config.clone())
        && let Ok(ledger) = Ledger::open(&config.ledger)
    {
        ledger.refuse(std::process::id(), &message);
    }
}

static NEXT_FORK: Next = Next::new(c"fork");
static NEXT_BARE_FORK: Next = Next::new(c"_Fork");
static NEXT_DAEMON: Next = Next::new(c"daemon");
static NEXT_IOCTL: Next = Next::new(c"ioctl");
static NEXT_MREMAP: Next = Next::new(c"mremap");
static NEXT_VMSPLICE: Next = Next::new(c"vmsplice");
static NEXT_SEND: Next = Next::new(c"send");
static NEXT_SENDTO: Next = Next::new(c"sendto");
static NEXT_SENDMSG: Next = Next::new(c"sendmsg");

type ForkFn = unsafe extern "C" fn() -> libc::pid_t;

/// `fork(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn fork() -> libc::pid_t {
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, ForkFn>(NEXT_FORK.get()) };
    // SAFETY: as the caller promised.
    let pid = unsafe { next() };
    if pid == 0 {
        adopt_orphan();
    }
    pid
}

/// `_Fork(3)`: no handlers run, so what they do is done here; the child stays unmanaged, as it may do next to nothing.
#[unsafe(no_mangle)]
unsafe extern "C" fn _Fork() -> libc::pid_t {
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, ForkFn>(NEXT_BARE_FORK.get()) };
    before_fork();
    // SAFETY: as the caller promised.
    let pid = unsafe { next() };
    if pid == 0 {
        in_child();
        ORPHAN.store(false, Ordering::Relaxed);
    } else {
        in_parent();
    }
    pid
}

/// `daemon(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn daemon(nochdir: c_int, noclose: c_int) -> c_int {
    type DaemonFn = unsafe extern "C" fn(c_int, c_int) -> c_int;
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, DaemonFn>(NEXT_DAEMON.get()) };
    // SAFETY: as the caller promised.
    let result = unsafe { next(nochdir, noclose) };
    adopt_orphan();
    result
}

/// `pthread_create(3)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn pthread_create(
    thread: *mut libc::pthread_t,
    attr: *const libc::pthread_attr_t,
    start: StartRoutine,
    arg: *mut c_void,
) -> c_int {
    let known: Option<fn(PageRange)> = agent::is_running().then_some(agent::protect_thread);
    // SAFETY: as the caller promised.
    unsafe { thread::create(thread, attr, start, arg, known) }
}

/// `ioctl(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    type IoctlFn = unsafe extern "C" fn(c_int, c_ulong, *mut c_void) -> c_int;
    // SAFETY: the symbol is a function of this type, as far as its callers use it.
    let next = unsafe { std::mem::transmute::<*mut c_void, IoctlFn>(NEXT_IOCTL.get()) };
    if request == hetmem_sys::uffd::REGISTER_REQUEST && !arg.is_null() && agent::is_running() {
        // SAFETY: the argument of this request begins with the range, two words; a caller that passes less gets EFAULT natively.
        let [start, len] = unsafe { arg.cast::<[u64; 2]>().read_unaligned() };
        let end = start.checked_add(len).map(VirtAddr::new);
        if let Some(range) = end.and_then(|end| PageRange::between(VirtAddr::new(start), end)) {
            agent::release_range(range);
        }
    }
    // SAFETY: as the caller promised.
    unsafe { next(fd, request, arg) }
}

/// `mremap(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn mremap(
    old: *mut c_void,
    old_size: usize,
    new_size: usize,
    flags: c_int,
    new: *mut c_void,
) -> *mut c_void {
    // SAFETY: the symbol is a function of this type; where the caller passed four arguments, the fifth is not looked at.
    let next = unsafe { std::mem::transmute::<*mut c_void, MremapFn>(NEXT_MREMAP.get()) };
    // SAFETY: as the caller promised.
    let call = || unsafe { next(old, old_size, new_size, flags, new) };
    let Some(range) = pages_of(old, old_size).filter(|_| agent::is_running()) else { return call() };
    // To a fixed place Linux 6.17 and newer move several mappings one by one, and stop half-way at one that is registered.
    if flags & libc::MREMAP_FIXED == 0 {
        let moved = call();
        if moved != libc::MAP_FAILED || errno() != libc::EFAULT {
            return moved;
        }
    }
    // A range that spans two mappings is refused: those of the program, or one that a registration has divided.
    agent::undivided(range, || {
        let moved = call();
        if moved != libc::MAP_FAILED || errno() != libc::EFAULT {
            return moved;
        }
        // SAFETY: as the caller promised.
        unsafe { divided::mremap(next, range, new_size, flags, new, agent::last_word) }.unwrap_or_else(|| {
            set_errno(libc::EFAULT);
            moved
        })
    })
}

/// `vmsplice(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn vmsplice(fd: c_int, iov: *const libc::iovec, count: usize, flags: libc::c_uint) -> isize {
    type VmspliceFn = unsafe extern "C" fn(c_int, *const libc::iovec, usize, libc::c_uint) -> isize;
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, VmspliceFn>(NEXT_VMSPLICE.get()) };
    // SAFETY: as the caller promised.
    unsafe { keep_vectors(iov, count) };
    // SAFETY: as the caller promised.
    unsafe { next(fd, iov, count, flags) }
}

/// `send(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn send(fd: c_int, data: *const c_void, size: usize, flags: c_int) -> isize {
    type SendFn = unsafe extern "C" fn(c_int, *const c_void, usize, c_int) -> isize;
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, SendFn>(NEXT_SEND.get()) };
    keep_if_referred(data, size, flags);
    // SAFETY: as the caller promised.
    unsafe { next(fd, data, size, flags) }
}

/// `sendto(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn sendto(
    fd: c_int,
    data: *const c_void,
    size: usize,
    flags: c_int,
    to: *const libc::sockaddr,
    to_size: libc::socklen_t,
) -> isize {
    type SendtoFn =
        unsafe extern "C" fn(c_int, *const c_void, usize, c_int, *const libc::sockaddr, libc::socklen_t) -> isize;
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, SendtoFn>(NEXT_SENDTO.get()) };
    keep_if_referred(data, size, flags);
    // SAFETY: as the caller promised.
    unsafe { next(fd, data, size, flags, to, to_size) }
}

/// `sendmsg(2)`.
#[unsafe(no_mangle)]
unsafe extern "C" fn sendmsg(fd: c_int, message: *const libc::msghdr, flags: c_int) -> isize {
    type SendmsgFn = unsafe extern "C" fn(c_int, *const libc::msghdr, c_int) -> isize;
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, SendmsgFn>(NEXT_SENDMSG.get()) };
    if flags & libc::MSG_ZEROCOPY != 0 && !message.is_null() {
        // SAFETY: the caller's message, which the call below reads as well.
        let message = unsafe { &*message };
        let (iov, count) = (message.msg_iov, message.msg_iovlen);
        // SAFETY: as the caller promised.
        unsafe { keep_vectors(iov, count) };
    }
    // SAFETY: as the caller promised.
    unsafe { next(fd, message, flags) }
}

static NEXT_MADVISE: Next = Next::new(c"madvise");

/// `madvise(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn madvise(start: *mut c_void, size: usize, advice: c_int) -> c_int {
    type MadviseFn = unsafe extern "C-unwind" fn(*mut c_void, usize, c_int) -> c_int;
    if let Some(what) = Guard::from_advice(advice)
        // SAFETY: as the caller promised.
        && let Some(result) = unsafe { agent::guard(start.addr() as u64, size as u64, what) }
    {
        return result.map_or_else(
            |errno| {
                set_errno(errno.raw_os_error());
                -1
            },
            |()| 0,
        );
    }
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, MadviseFn>(NEXT_MADVISE.get()) };
    // SAFETY: as the caller promised.
    unsafe { next(start, size, advice) }
}

/// `process_madvise(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn process_madvise(
    pidfd: c_int,
    iov: *const libc::iovec,
    count: usize,
    advice: c_int,
    flags: libc::c_uint,
) -> isize {
    // The vectors may lie where nothing can be read, which is the kernel's to say: so not only what they name is looked at.
    if Guard::from_advice(advice) == Some(Guard::Remove) {
        agent::look_for_guards();
    }
    // Not the C library's, which has it since glibc 2.36 only, and adds nothing.
    // SAFETY: as the caller promised.
    let advised = unsafe { libc::syscall(libc::SYS_process_madvise, pidfd, iov, count, advice, flags) };
    isize::try_from(advised).unwrap_or(-1)
}

fn keep_if_referred(data: *const c_void, size: usize, flags: c_int) {
    if flags & libc::MSG_ZEROCOPY != 0
        && let Some(range) = pages_of(data.cast_mut(), size)
    {
        agent::keep_in_place(range);
    }
}

/// Keeps the buffers of `iov` in place, for good: nobody says when the kernel has let go of them.
///
/// # Safety
///
/// `iov` is null or points to `count` vectors.
unsafe fn keep_vectors(iov: *const libc::iovec, count: usize) {
    if iov.is_null() || !agent::is_running() {
        return;
    }
    for i in 0..count.min(1024) {
        // SAFETY: inside the caller's array; at most as many as the system call takes (`UIO_MAXIOV`).
        let vector = unsafe { iov.wrapping_add(i).read_unaligned() };
        if let Some(range) = pages_of(vector.iov_base, vector.iov_len) {
            agent::keep_in_place(range);
        }
    }
}

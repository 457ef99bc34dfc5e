//! What happens before `main()`, and the functions that stand in front of the C library's.
//!
//! | function | what it adds | in |
//! | --- | --- | --- |
//! | `fork`, `daemon` | pages come home before, and the child gets an agent of its own | here |
//! | `_Fork` | pages come home before; the child is not managed | here |
//! | `clone` | pages come home before a child is made; a word that the kernel clears at a thread's end stays in place | `threads` |
//! | `pthread_create` | the new thread's stack is kept from migration | `threads` |
//! | `pthread_mutex_init` | robust and priority-inheriting mutexes, whose words the kernel looks at, stay in place | `threads` |
//! | `unshare`, `setns` | the agent leaves before, as the kernel wants one thread, and comes back | `alone` |
//! | `ioctl` (userfaultfd) | a range that the program watches itself is let go of; what it moves is home | `memory` |
//! | `mremap` | a mapping that was divided by its registration is whole again | `memory` |
//! | `madvise`, `process_madvise` (guard markers) | what they discard comes back no more | `memory` |
//! | `mincore` | pages that are away are said to be there | `memory` |
//! | `__hetmem_places` (nobody's function) | where pages are, for `hetmem bench policy` | `memory` |
//! | `mlockall` | hetmem's own memory is neither locked nor counted; what is a file's is home before | `memory` |
//! | `munmap` (of hetmem's memory) | the agent leaves before | `memory` |
//! | `mmap`, `mmap64` (of files) | what is mapped to be read is managed, with `--files` | `files` |
//! | `mprotect`, `pkey_mprotect`, `mlock`, `mlock2`, `mseal`, `remap_file_pages` | what is a file's is home before, and managed no longer | `files` |
//! | `fcntl`, `fcntl64` (leases for writing) | nothing of files is managed | `files` |
//! | `vmsplice`, `send`, `sendto`, `sendmsg`, `sendmmsg` (`MSG_ZEROCOPY`) | pages that a pipe or socket refers to stay in place | `io` |
//! | `sigaction`, `__sigaction`, `signal`, `bsd_signal`, `ssignal`, `sysv_signal`, `__sysv_signal`, `sigset` (core dumps) | a default that dumps is covered by a handler, of which nobody is told | `fatal` |
//! | `prctl` (strict `seccomp`) | how the thread will end is noted | `alone` |
//! | `syscall` | the same, where the program asks the kernel through it; `seccomp` for all threads: the agent leaves for good | `direct` |
//!
//! `.ci/sources.py` checks the table. All of them may be unwound through, at any instruction: the C library does so where a thread ends by
//! `pthread_exit(3)` or is cancelled. So each is `C-unwind`, holds nothing that must be dropped, and does what is hetmem's own by [`uncancelled`].
//! Memory that the caller names is read as the kernel would: what can't be read is the kernel's to refuse.
//!
//! Forks that the C library makes itself pass through the handlers of `pthread_atfork`; those that a program makes by an instruction of its own
//! are noticed by userfaultfd's fork event, where the privilege for it is there.
#![expect(unsafe_code, reason = "takes the place of C functions")]

mod alone;
mod direct;
mod fatal;
mod files;
mod inside;
mod io;
mod memory;
mod refusal;
mod threads;

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use agent::config::{Config, VARIABLE};
use hetmem_interpose::cancel::uncancelled;
use hetmem_interpose::errno::keeping_errno;
use hetmem_interpose::fork::Handlers;
use hetmem_interpose::next;
use hetmem_sys::process::with_signals_blocked;

use refusal::{obstacle, refuse};

/// Run by the loader, before the program's own code.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = begin;

/// The configuration, for children; leaked. Null where nothing is managed.
static CONFIG: AtomicPtr<Config> = AtomicPtr::new(std::ptr::null_mut());
/// Whether this process was forked from a managed one and has no agent yet.
static ORPHAN: AtomicBool = AtomicBool::new(false);

fn config() -> Option<&'static Config> {
    // SAFETY: null or a leaked configuration. Acquire pairs with the Release in `begin`.
    unsafe { CONFIG.load(Ordering::Acquire).as_ref() }
}

extern "C" fn begin() {
    fatal::find_next();
    files::find_next();
    // SAFETY: asks for a number.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        // The environment is somebody's of less privilege.
        return;
    }
    let Ok(text) = std::env::var(VARIABLE) else { return };
    // Another hetmem's, or nobody's: nobody can be told, and the program is not to suffer.
    let Ok(config) = Config::decode(&text) else { return };
    std::panic::set_hook(Box::new(|info| {
        agent::last_word(&format!("was stopped by a defect of hetmem's own: {info}"));
        hetmem_sys::process::die();
    }));
    let config: &'static Config = Box::leak(Box::new(config));
    CONFIG.store(std::ptr::from_ref(config).cast_mut(), Ordering::Release);
    if let Some(obstacle) = obstacle() {
        return agent::note(config, &obstacle);
    }
    let is_first = agent::is_first(config);
    // Where forks are not noticed, that is told.
    let started = if FORKS.register() { agent::start(config) } else { Err("the C library has no memory".to_owned()) };
    match started {
        Ok(()) => fatal::arm(config),
        Err(message) => refuse(config, &message, is_first),
    }
}

static FORKS: Handlers = Handlers { before: before_fork, in_parent, in_child };

extern "C" fn before_fork() {
    agent::before_fork();
}

extern "C" fn in_parent() {
    agent::after_fork_in_parent();
}

extern "C" fn in_child() {
    // First of all: the old heap may be locked by a thread that is not here.
    // SAFETY: this is a handler of `pthread_atfork`, or what stands in for one, in the child.
    unsafe { crate::ALLOCATOR.restart_in_child() };
    if agent::after_fork_in_child() {
        ORPHAN.store(true, Ordering::Relaxed);
    }
}

/// In a forked child, once the C library's own part is done: it gets an agent of its own. A child that can't have one goes on
/// unmanaged.
fn adopt_orphan() {
    if ORPHAN.swap(false, Ordering::Relaxed)
        && let Some(config) = config()
    {
        // A handler that asks for the agent would wait for this thread.
        match with_signals_blocked(|| agent::start_again(config)) {
            Ok(()) => fatal::arm_child(),
            Err(message) => could_not_start(config, &message),
        }
    }
}

/// Tells the supervisor that there is no agent here any more.
fn could_not_start(config: &Config, message: &str) {
    agent::note(config, &format!("could not be managed: {message}"));
}

/// Runs `make`, which makes a child past the C library, with everything home. In the child, if that returns there, there is no agent.
fn with_all_home(make: impl FnOnce() -> isize) -> isize {
    let made = FORKS.around(make);
    if made == 0 {
        ORPHAN.store(false, Ordering::Relaxed);
    }
    made
}

/// `fork(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn fork() -> libc::pid_t {
    let next = next!(fork());
    uncancelled(|| {
        // SAFETY: as the caller promised.
        let pid = unsafe { next() };
        if pid == 0 {
            adopt_orphan();
        }
        pid
    })
}

/// `_Fork(3)`: no handlers run, so what they do is done here; the child stays unmanaged, as it may do next to nothing.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn _Fork() -> libc::pid_t {
    let next = next!(_Fork());
    // SAFETY: as the caller promised.
    let made = with_all_home(|| unsafe { next() } as isize);
    libc::pid_t::try_from(made).unwrap_or(-1)
}

/// `daemon(3)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn daemon(nochdir: c_int, noclose: c_int) -> c_int {
    let next = next!(daemon(_, _));
    uncancelled(|| {
        // SAFETY: as the caller promised.
        let result = unsafe { next(nochdir, noclose) };
        keeping_errno(adopt_orphan);
        result
    })
}

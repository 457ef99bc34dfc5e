//! What a thread of the agent's gives up, for good, once it has opened what it works with.
//!
//! It shares the program's memory: whoever takes the program over may have the agent's threads do what he likes. So none of them may do what the
//! program could give up, be it later: other ids, capabilities, files, the start of programs. All of it is per thread, and the program's own threads
//! keep what they have.
//!
//! *Limits:* a thread without a privilege that lets it change its ids keeps them, and with them the files of that user that may be read.
#![expect(unsafe_code, reason = "system calls that rustix does not make for one thread alone")]

use crate::errno::Errno;
use crate::raw;

/// The first of the ids of which one is taken, and how many there are: the end of the range, which is given to nobody (the last two mean "none" and
/// "not mapped").
const FIRST_ID: u32 = 0xFFF0_0000;
const IDS: u32 = 0x000F_FFF0;
/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

fn call(number: libc::c_long, args: [usize; 5]) -> Result<usize, Errno> {
    // SAFETY: each call below changes the calling thread's credentials, or the process's dumpable flag, and no memory but what it is given.
    unsafe { raw::syscall5(number, args) }
}

fn prctl(option: libc::c_int, args: [usize; 2]) -> Result<usize, Errno> {
    call(libc::SYS_prctl, [usize::try_from(option).unwrap_or(0), args[0], args[1], 0, 0])
}

/// A user and group id that no process has, at random. Not "nobody": whoever has the ids of a thread may read and write its process's memory, and
/// send it signals.
#[must_use]
pub fn unused_id() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness any of the ids is as unused.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    FIRST_ID + u32::from_ne_bytes(bytes) % IDS
}

/// Whether the process may be dumped, and its files of `/proc` be opened by its user.
#[must_use]
pub fn is_dumpable() -> bool {
    prctl(libc::PR_GET_DUMPABLE, [0; 2]) == Ok(1)
}

/// Gives up ids, groups and capabilities of the calling thread, as far as it has any that it can give up: its ids become `id`, if it may change them.
/// The process stays `dumpable`, if it was before any of its threads did this.
pub fn give_up_privileges(id: u32, dumpable: bool) {
    let id = id as usize;
    // Errors below mean that there is nothing to give up, or no right to: then the thread can't take it back either.
    let _ = call(libc::SYS_setgroups, [0; 5]);
    if call(libc::SYS_setresgid, [id, id, id, 0, 0]).is_err() {
        let group = rustix::process::getegid().as_raw() as usize;
        let _ = call(libc::SYS_setresgid, [group, group, group, 0, 0]);
    }
    if call(libc::SYS_setresuid, [id, id, id, 0, 0]).is_err() {
        let user = rustix::process::geteuid().as_raw() as usize;
        let _ = call(libc::SYS_setresuid, [user, user, user, 0, 0]);
    }
    let _ = prctl(libc::PR_CAP_AMBIENT, [libc::PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned() as usize, 0]);
    let header = [CAPABILITY_VERSION, 0];
    let none = [0_u32; 6];
    let _ = call(libc::SYS_capset, [header.as_ptr().expose_provenance(), none.as_ptr().expose_provenance(), 0, 0, 0]);
    // A change of ids makes the whole process undumpable (`commit_creds` of kernel/cred.c), the program's threads too.
    if dumpable && !is_dumpable() {
        let _ = prctl(libc::PR_SET_DUMPABLE, [1, 0]);
    }
}

/// `struct sock_filter`.
type Instruction = libc::sock_filter;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENT: [u32; 3] = [16, 24, 32];

#[cfg(target_arch = "x86_64")]
const THIS_ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const THIS_ARCHITECTURE: u32 = 0xC000_00B7;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const ALLOW: u32 = 0x7FFF_0000;
/// The process ends: an error that a caller does not expect might be taken for a fact about memory.
const END: u32 = 0x8000_0000;

/// What the agent's threads do, with any arguments.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_ioctl,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_lseek,
    libc::SYS_getdents64,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    // What a device that completes late is waited for by.
    libc::SYS_timerfd_settime,
    // Of a device whose frames lie in a file: these write, to what the agent has open for writing, which is that file, and descriptors to wake others by.
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_fallocate,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    libc::SYS_io_destroy,
    libc::SYS_futex,
    libc::SYS_madvise,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_munlock,
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
    libc::SYS_move_pages,
    libc::SYS_fcntl,
    libc::SYS_clock_gettime,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getrlimit,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What one of them does besides: it has leases on files from the program's threads that have taken them, and is told when they are to be given up.
pub const OF_LEASES: &[libc::c_long] = &[libc::SYS_pidfd_open, libc::SYS_pidfd_getfd, libc::SYS_rt_sigtimedwait];

/// What they do with some arguments only: the call, the argument, and the bits of it that must be clear.
const RESTRICTED: &[(libc::c_long, usize, u32)] = &[
    // Reading: O_ACCMODE, O_CREAT, O_TRUNC.
    (libc::SYS_openat, 2, (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC).cast_unsigned()),
    // No code.
    (libc::SYS_mmap, 2, libc::PROT_EXEC.cast_unsigned()),
    (libc::SYS_mprotect, 2, libc::PROT_EXEC.cast_unsigned()),
];

/// What they do with one value of an argument only.
const EXACT: &[(libc::c_long, usize, u32)] = &[
    // Staying on a processor, themselves.
    (libc::SYS_sched_setaffinity, 0, 0),
    // Running for a short time at once, themselves.
    (libc::SYS_sched_getattr, 0, 0),
    (libc::SYS_sched_setattr, 0, 0),
    // Naming memory.
    (libc::SYS_prctl, 0, 0x5356_4d41),
    // Ending the process, and asking whether a thread lives.
    (libc::SYS_tgkill, 2, libc::SIGABRT.cast_unsigned()),
    (libc::SYS_tgkill, 2, libc::SIGKILL.cast_unsigned()),
    (libc::SYS_tgkill, 2, KEEPERS_SIGNAL),
    (libc::SYS_tgkill, 2, 0),
];

/// By which the thread is woken that keeps leases ([`crate::lease::Keeper`]).
const KEEPERS_SIGNAL: u32 = 32;

/// Filters the calling thread's system calls, for good, so that it can do no more than an agent does: work on memory, and read. Any other ends the
/// process by SIGSYS; `also` is what this one may do besides. `ENOSYS` or `EINVAL` where the kernel has no filters.
pub fn confine(also: &[libc::c_long]) -> Result<(), Errno> {
    const LENGTH: usize = 5 + 2 * (ALLOWED.len() + OF_LEASES.len()) + 5 * (RESTRICTED.len() + EXACT.len() + 1);
    let mut filter = [instruction(RETURN, END, 0, 0); LENGTH];
    let mut at = 0;
    let mut add = |code, value, yes, no| {
        filter[at] = instruction(code, value, yes, no);
        at += 1;
    };
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(u32::MAX);
    add(LOAD, ARCHITECTURE, 0, 0);
    add(EQUAL, THIS_ARCHITECTURE, 1, 0);
    add(RETURN, END, 0, 0);
    add(LOAD, NUMBER, 0, 0);
    for call in ALLOWED.iter().chain(also.iter().take(OF_LEASES.len())) {
        add(EQUAL, number(*call), 0, 1);
        add(RETURN, ALLOW, 0, 0);
    }
    // The low half of each argument is all that these look at, and all that the kernel does.
    // Reading memory of this process where a touch might end in a signal.
    let own = [(libc::SYS_process_vm_readv, 0, super::current_tid())];
    for (kind, calls) in [(ANY_BIT, RESTRICTED), (EQUAL, EXACT), (EQUAL, &own)] {
        for (call, argument, value) in calls {
            add(EQUAL, number(*call), 0, 4);
            add(LOAD, ARGUMENT[*argument], 0, 0);
            let (yes, no) = if kind == EQUAL { (0, 1) } else { (1, 0) };
            add(kind, *value, yes, no);
            add(RETURN, ALLOW, 0, 0);
            add(LOAD, NUMBER, 0, 0);
        }
    }
    add(RETURN, END, 0, 0);
    let program = libc::sock_fprog { len: u16::try_from(at).unwrap_or(u16::MAX), filter: filter.as_mut_ptr() };
    // A filter needs this, or a privilege that the thread has given up.
    prctl(libc::PR_SET_NO_NEW_PRIVS, [1, 0])?;
    let set = usize::try_from(libc::SECCOMP_SET_MODE_FILTER).unwrap_or(1);
    call(libc::SYS_seccomp, [set, 0, std::ptr::from_ref(&program).expose_provenance(), 0, 0]).map(|_| ())
}

const fn instruction(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

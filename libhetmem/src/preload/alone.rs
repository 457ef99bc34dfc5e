//! Calls for which the process must have one thread, or all threads alike: the agent leaves before.

use std::ffi::c_int;

use hetmem_interpose::cancel::uncancelled;
use hetmem_interpose::errno::keeping_errno;
use hetmem_interpose::next;
use hetmem_sys::process::with_signals_blocked;

use super::{config, could_not_start, fatal, files};

/// What `unshare(2)` does to a process of one thread only, CLONE_NEWTIME among it from Linux 6 on for its children; the others don't mind.
const OF_ONE_THREAD: c_int =
    libc::CLONE_NEWUSER | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM | 0x80 /* CLONE_NEWTIME */;

/// Runs `call` without the agent, which comes back after: with what it may have then. Meanwhile the program's other threads wait where they ask for
/// the agent, and a handler of a signal would wait for itself.
pub(super) fn without_agent<R: Copy>(call: impl FnOnce() -> R) -> R {
    uncancelled(|| {
        with_signals_blocked(|| {
            let away = agent::leave();
            let result = call();
            if let (Some(away), Some(config)) = (away, config()) {
                keeping_errno(|| {
                    if let Err(message) = away.come_back(config) {
                        could_not_start(config, &message);
                    }
                });
            }
            result
        })
    })
}

/// The agent leaves, and does not come back. `true` if there was one. Nothing is left to be done after the call that this is for: a filter may forbid
/// it.
pub(super) fn leave_for_good() -> bool {
    uncancelled(|| {
        fatal::disarm();
        with_signals_blocked(|| agent::leave().is_some())
    })
}

/// Before a filter of system calls is put on all threads: the agent's could do nothing any more.
pub(super) fn leave_to_filters() {
    if leave_for_good() {
        agent::last_word("is managed no longer: it filters the system calls of all its threads (seccomp)");
    }
}

/// Before `clone(2)` with `flags` makes a process that shares this one's memory and may live longer: the agent's threads would end with this one, and
/// what is away would be gone. One that this process waits for (`vfork`) does not live longer, but by a signal that kills this one.
pub(super) fn leave_to_sharer(flags: c_int) {
    if flags & (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_VFORK) == libc::CLONE_VM && leave_for_good() {
        agent::last_word("is managed no longer: it makes a process that shares its memory (CLONE_VM)");
    }
}

/// Whether `unshare(2)` with `flags` needs the process to have one thread.
pub(super) const fn is_for_one_thread(flags: c_int) -> bool {
    flags & OF_ONE_THREAD != 0
}

/// `unshare(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn unshare(flags: c_int) -> c_int {
    let next = next!(unshare(_));
    // SAFETY: as the caller promised.
    let call = || unsafe { next(flags) };
    if is_for_one_thread(flags) { without_agent(call) } else { call() }
}

/// `setns(2)`: the kinds that want one thread are not all told by the arguments.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn setns(fd: c_int, kind: c_int) -> c_int {
    let next = next!(setns(_, _));
    // SAFETY: as the caller promised.
    without_agent(|| unsafe { next(fd, kind) })
}

/// `prctl(2)`: whoever puts himself under the strict filter is killed by the kernel, which the process's status tells if nobody else is left.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn prctl(option: c_int, second: usize, third: usize, fourth: usize, fifth: usize) -> c_int {
    let next = next!(prctl(_, _, _, _, _));
    // SAFETY: as the caller promised.
    let call = || unsafe { next(option, second, third, fourth, fifth) };
    if option == libc::PR_SET_DUMPABLE {
        return undisturbed(call);
    }
    if option == libc::PR_SET_SECCOMP {
        uncancelled(|| {
            fatal::disarm();
            files::leave_to_filters();
        });
    }
    if option == libc::PR_SET_VMA {
        files::before_change(std::ptr::with_exposed_provenance_mut(third), fourth);
    }
    note_strict(option, second);
    call()
}

/// Makes a `call` about what an agent that comes back leaves as it finds it: none comes meanwhile.
pub(super) fn undisturbed<R: Copy>(call: impl FnOnce() -> R) -> R {
    uncancelled(|| agent::undisturbed(call))
}

/// Notes that the calling thread asks for the strict filter, if it does.
pub(super) fn note_strict(option: c_int, mode: usize) {
    if option == libc::PR_SET_SECCOMP && mode == libc::SECCOMP_MODE_STRICT as usize && agent::is_running() {
        uncancelled(agent::thread_is_strict);
    }
}

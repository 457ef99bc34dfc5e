//! Waiting, and the names of threads.
#![expect(unsafe_code, reason = "a system call that rustix doesn't wrap")]

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rustix::thread::{Timespec, futex};

use crate::errno::Errno;
use crate::raw;

/// The calling thread's number in the kernel.
#[must_use]
pub fn current_tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}

/// Whether this process has a thread numbered `tid` that the kernel hasn't ended yet. Until it has, the thread's stack
/// is in use: the kernel itself writes there last (the word that `pthread_join` waits for).
#[must_use]
pub fn thread_exists(tid: u32) -> bool {
    let process = rustix::process::getpid().as_raw_nonzero().get().cast_unsigned();
    // SAFETY: signal 0 is delivered to nobody.
    unsafe { raw::syscall5(libc::SYS_tgkill, [process as usize, tid as usize, 0, 0, 0]) }.is_ok()
}

/// What the calling thread has had of a processor. By a system call: a program may move its vDSO.
#[must_use]
pub fn processor_time() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// What all threads of the process have had of processors.
#[must_use]
pub fn process_time() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// The time since the machine was booted, by which `/proc/PID/stat` says when a process has started.
#[must_use]
pub fn time_since_boot() -> Duration {
    clock(libc::CLOCK_BOOTTIME)
}

fn clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let clock = usize::try_from(clock).unwrap_or_default();
    let at = std::ptr::from_mut(&mut time).expose_provenance();
    // Every thread and process has these clocks, so that there is no error.
    // SAFETY: the kernel writes one time there.
    let _ = unsafe { raw::syscall5(libc::SYS_clock_gettime, [clock, at, 0, 0, 0]) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Lets another thread run.
pub fn yield_now() {
    rustix::thread::sched_yield();
}

/// Sleeps for about `nanoseconds`, below a second: for retries of what ends by itself and wakes nobody, such as a
/// mapping change in another thread. A signal may end the sleep early.
pub fn backoff_sleep(nanoseconds: u32) {
    let request = Timespec { tv_sec: 0, tv_nsec: i64::from(nanoseconds.min(999_999_999)) };
    let _slept_or_interrupted = rustix::thread::nanosleep(&request);
}

/// Waits while `word` is `expected`, until a wake or the end of `timeout`. `EAGAIN` if the word was another,
/// `ETIMEDOUT`, `EINTR`. A wake may come with no reason: look at the word again.
pub fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) -> Result<(), Errno> {
    let timeout = timeout.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    });
    futex::wait(word, futex::Flags::PRIVATE, expected, timeout.as_ref())
}

/// Wakes up to `count` of those that wait on `word`; returns how many were woken.
pub fn futex_wake(word: &AtomicU32, count: u32) -> Result<usize, Errno> {
    futex::wake(word, futex::Flags::PRIVATE, count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::{Acquire, Release};

    #[test]
    fn a_thread_exists_until_it_has_ended() {
        let tid = std::thread::spawn(current_tid).join().unwrap();
        assert!(thread_exists(current_tid()));
        // `join` returns when the kernel has cleared the thread's word, which is just before it is gone.
        while thread_exists(tid) {
            yield_now();
        }
        assert!(!thread_exists(u32::MAX / 2));
    }

    #[test]
    fn a_waiter_sleeps_until_the_word_changes_and_is_woken() {
        let word = AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Release pairs with the waiter's Acquire.
                word.store(1, Release);
                futex_wake(&word, 1).unwrap();
            });
            while word.load(Acquire) == 0 {
                match futex_wait(&word, 0, None) {
                    Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(errno) => panic!("{errno}"),
                }
            }
        });
    }

    #[test]
    fn a_wait_ends_with_its_timeout_and_not_at_all_on_another_value() {
        let word = AtomicU32::new(5);
        assert_eq!(futex_wait(&word, 5, Some(Duration::from_nanos(1))), Err(Errno::TIMEDOUT));
        assert_eq!(futex_wait(&word, 6, None), Err(Errno::AGAIN));
        backoff_sleep(1);
    }
}

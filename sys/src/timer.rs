//! A timer that is a descriptor, readable once its time has come (`timerfd_create(2)`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::errno::Errno;

/// A timer that is waited for by its descriptor.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A timer that isn't set.
    ///
    /// # Errors
    ///
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> Result<Self, Errno> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags).map(Self)
    }

    /// Makes the descriptor readable after `delay` from now, at once if that is zero, and not before; never, if it is `None`.
    ///
    /// # Errors
    ///
    /// None that a descriptor of this kind has.
    pub fn set(&self, delay: Option<Duration>) -> Result<(), Errno> {
        // A value of zero would mean never.
        let delay = delay.map_or(Duration::ZERO, |delay| delay.max(Duration::from_nanos(1)));
        let it_value = Timespec {
            tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(delay.subsec_nanos()),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).map(drop)
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until `descriptor` is readable, whatever interrupts that.
pub fn await_readable(descriptor: BorrowedFd<'_>) {
    while rustix::event::poll(&mut [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)], None) == Err(Errno::INTR) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::poll;
    use std::time::Instant;

    fn is_ready(timer: &Timer, within: Option<&Timespec>) -> bool {
        poll(&mut [PollFd::new(timer, PollFlags::IN)], within) == Ok(1)
    }

    #[test]
    fn it_is_readable_when_its_time_has_come_and_until_it_is_set_again() {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let timer = Timer::new().unwrap();
        assert!(!is_ready(&timer, Some(&now)), "it isn't set");
        let start = Instant::now();
        let delay = Duration::from_millis(3);
        timer.set(Some(delay)).unwrap();
        assert!(is_ready(&timer, None));
        assert!(start.elapsed() >= delay);
        assert!(is_ready(&timer, Some(&now)), "it still is");
        timer.set(None).unwrap();
        assert!(!is_ready(&timer, Some(&now)));
        timer.set(Some(Duration::ZERO)).unwrap();
        assert!(is_ready(&timer, None));
    }
}

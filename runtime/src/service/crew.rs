//! How many threads serve, and where.
//!
//! A thread that sleeps on another processor than the toucher's answers after 100 us on a virtual machine, and one on the toucher's own after 10: what
//! costs is to wake the other processor. So there is one on each processor, which stays there, and the toucher's own is the first to come; the kernel
//! lets the others sleep on when it finds nothing left. Each asks for short slices of time, so that it comes before the program's busy threads: who
//! waits for it has given the processor away.
//!
//! Where many touch at once it is the other way round ([`Load`]): who serves finds the next touches there already, takes many at a time, and need not
//! be woken. Then each of several finds fewer, and has to wait for the others' locks. So the first serves alone, and the others
//! sleep: with eight touchers a sixth more a second, and those that wait longest wait half as long.
//!
//! *Limits:* a touch wakes all that wait for one. So there are several only where there are few processors ([`MOST`]); on larger machines there is one,
//! which goes where the scheduler has it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hetmem_sys::errno::Errno;
use hetmem_sys::thread::{Processors, ask_for_short_slices};
use rustix::event::{EventfdFlags, eventfd};

/// As many threads serve at most.
pub(crate) const MOST: usize = 4;

/// How many threads are of use on these processors.
pub(crate) fn useful(processors: &Processors) -> usize {
    if processors.len() <= MOST { processors.len().max(1) } else { 1 }
}

/// The threads that serve.
pub(crate) struct Crew {
    /// Readable when the first of them has ended.
    pub(super) ended: OwnedFd,
    /// Readable while the others are to serve, too.
    pub(super) together: OwnedFd,
    alone: AtomicBool,
    places: Processors,
}

/// How many touches come at a time, as the first of the threads sees it while it serves.
#[derive(Default, Debug)]
pub(super) struct Load {
    /// Touches of a read in sixteenths: a mean of which the last read is a quarter.
    mean: usize,
    alone: bool,
}

impl Load {
    /// From so many touches of a read on, in sixteenths, one thread is best alone.
    const ALONE_FROM: usize = 48;
    /// Below so many, several are best again. Less than two: who touches alone finds its own processor's thread asleep.
    const TOGETHER_BELOW: usize = 24;
    /// A touch that takes longer waits for a device, and several threads can do that at a time.
    const LONG: Duration = Duration::from_micros(30);

    /// `touches` were read together, and that `took` to serve them: whether one thread is to serve alone.
    pub(super) fn after(&mut self, touches: usize, took: Duration) -> bool {
        let waited = took > Self::LONG.saturating_mul(u32::try_from(touches).unwrap_or(u32::MAX));
        let now = if waited { 0 } else { touches * 16 };
        self.mean = (self.mean * 3 + now) / 4;
        self.alone = self.mean >= if self.alone { Self::TOGETHER_BELOW } else { Self::ALONE_FROM };
        self.alone
    }
}

impl Crew {
    /// One for each processor that the calling thread may run on, if these are few.
    pub(crate) fn new() -> Result<Self, Errno> {
        let event = |readable: bool| eventfd(u32::from(readable), EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let (ended, together) = (event(false)?, event(true)?);
        Ok(Self { ended, together, alone: AtomicBool::new(false), places: Processors::of_this_thread() })
    }

    /// How many are of use.
    pub(crate) fn len(&self) -> usize {
        useful(&self.places)
    }

    /// The calling thread, number `number` of them, runs where and when it is of use.
    pub(super) fn take_place(&self, number: usize) {
        // Where it is not let it serves all the same, when its turn comes.
        let _ = ask_for_short_slices();
        if self.len() > 1 {
            // Where it is not let it serves all the same, from where it is.
            let _ = self.places.stay_on(number);
        }
    }

    /// Whether all but the first leave touches alone.
    pub(super) fn is_alone(&self) -> bool {
        // Relaxed: who sees it late serves meanwhile, or is woken by `together`.
        self.alone.load(Relaxed)
    }

    /// The first is to serve `alone`, or the others, too. Only the first says so.
    pub(super) fn set_alone(&self, alone: bool) {
        if self.len() < 2 || alone == self.is_alone() {
            return;
        }
        self.alone.store(alone, Relaxed);
        // Where it is not let it serves all the same. Alone it need not be where the touchers are, and had better not be where somebody is busy.
        let _ = if alone { self.places.stay_anywhere() } else { self.places.stay_on(0) };
        // An eventfd that others don't read is readable until it is read here.
        let _ = if alone {
            rustix::io::read(&self.together, &mut [0; 8])
        } else {
            rustix::io::write(&self.together, &1u64.to_ne_bytes())
        };
    }

    /// The first has ended.
    pub(super) fn end(&self) {
        // An eventfd takes eight bytes at a time and is never full of ones.
        let _ = rustix::io::write(&self.ended, &1u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(4);

    #[test]
    fn one_serves_alone_while_many_touch_at_a_time_and_not_while_devices_are_slow() {
        let mut load = Load::default();
        assert!((0..100).all(|i| !load.after(1 + i % 2, SHORT)), "a toucher or two");
        let until = |load: &mut Load, touches: usize, took: Duration, alone: bool| {
            (1..100).find(|_| load.after(touches, took * u32::try_from(touches).unwrap()) == alone)
        };
        assert!(until(&mut load, 8, SHORT, true).is_some_and(|reads| reads <= 4));
        assert!((0..100).all(|i| load.after(2 + i % 2, SHORT)), "fewer, and still several");
        assert!(until(&mut load, 1, SHORT, false).is_some_and(|reads| reads <= 8));
        assert!(
            (0..100).all(|i| !load.after(2 + i % 2, SHORT)),
            "as many as before, and not so many as to begin with it"
        );
        assert!(until(&mut load, 32, SHORT, true).is_some());
        assert!(until(&mut load, 32, Duration::from_micros(50), false).is_some(), "they wait for a device");
    }

    #[test]
    fn the_others_are_called_back() {
        let crew = Crew::new().unwrap();
        let is_called = || {
            let mut fds = [rustix::event::PollFd::new(&crew.together, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() == 1
        };
        assert!(is_called() && !crew.is_alone());
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                crew.set_alone(true);
                let alone = (crew.is_alone(), is_called());
                crew.set_alone(true);
                crew.set_alone(false);
                (alone, crew.is_alone(), is_called())
            });
            let several = crew.len() > 1;
            assert_eq!(
                first.join().unwrap(),
                ((several, !several), false, true),
                "where there is one only, it is always so"
            );
        });
    }
}

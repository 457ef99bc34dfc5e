//! When the worker looks at the program: often while something happens, ever more seldom while nothing does, and never so often that it would cost
//! the program more than a named share of a processor.
//!
//! | what | how long until the next |
//! | --- | --- |
//! | a nap | [`SHORTEST`] after the program did something, then twice as long each time, to [`LONGEST`] |
//! | a look at the mappings | the processor's time of the last one, times [`BUSY`] if the program has done something since, times [`IDLE`] if not |
//! | a count of pages | the processor's time of the last one, times [`BUSY`] |
//!
//! So a program that sleeps is left alone however much memory it has. What it does is seen cheaply: by how much memory it has (`/proc/PID/statm`),
//! how many of its faults were served, and whether it asked for anything.

use std::time::{Duration, Instant};

use hetmem_sys::thread::processor_time;

/// The first nap after something has happened.
pub(super) const SHORTEST: Duration = Duration::from_millis(10);
/// The longest: how late it may be noticed that the program goes on, or that its last thread has ended.
const LONGEST: Duration = Duration::from_millis(250);
/// At most 0.4 % of a processor, for each kind of look, while the program runs.
const BUSY: u32 = 250;
/// At most 0.02 % while it sleeps.
const IDLE: u32 = 5000;

/// Something that takes time, and is not to be done too often.
#[derive(Debug)]
pub(super) struct Paced {
    /// Of a processor. The time that passes on a busy machine is longer by whatever else runs there: who goes by that may look at a program again when
    /// it has ended.
    took: Duration,
    done: Option<Instant>,
    /// Whether there is something new to see. It stays so until it is seen: who did it may do nothing more.
    new: bool,
}

impl Paced {
    pub(super) const fn new() -> Self {
        Self { took: Duration::ZERO, done: None, new: true }
    }

    /// The program has done something.
    pub(super) const fn something_happened(&mut self) {
        self.new = true;
    }

    /// Whether it is time for the next.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let times = if self.new { BUSY } else { IDLE };
        self.done.is_none_or(|done| now.saturating_duration_since(done) >= self.took.saturating_mul(times))
    }

    /// Does it.
    pub(super) fn run<R>(&mut self, work: impl FnOnce() -> R) -> R {
        // What happens while it is done, it may have missed.
        self.new = false;
        let began = processor_time();
        let result = work();
        self.took = processor_time().saturating_sub(began);
        self.done = Some(Instant::now());
        result
    }
}

/// How long the worker sleeps.
#[derive(Debug)]
pub(super) struct Nap(Duration);

impl Nap {
    pub(super) const fn new() -> Self {
        Self(SHORTEST)
    }

    /// The next nap, after a time in which the program did something or not.
    pub(super) fn next(&mut self, busy: bool) -> Duration {
        let now = if busy { SHORTEST } else { self.0 };
        self.0 = (now * 2).min(LONGEST);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naps_grow_while_nothing_happens_and_are_short_again_when_something_does() {
        let mut nap = Nap::new();
        let idle: Vec<Duration> = (0..8).map(|_| nap.next(false)).collect();
        assert_eq!(idle[0], SHORTEST);
        assert!(idle.windows(2).all(|two| two[1] == (two[0] * 2).min(LONGEST)));
        assert_eq!(nap.next(true), SHORTEST);
        assert_eq!(nap.next(false), SHORTEST * 2);
    }

    #[test]
    fn what_takes_long_is_done_seldom() {
        let mut look = Paced::new();
        assert!(look.is_due(Instant::now()));
        look.run(|| use_processor(Duration::from_millis(1)));
        let ended = look.done.unwrap();
        assert!(!look.is_due(ended + look.took * BUSY));
        assert!(look.is_due(ended + look.took * IDLE));
        look.something_happened();
        assert!(!look.is_due(ended + Duration::from_millis(249)));
        assert!(
            look.is_due(ended + look.took * BUSY),
            "what happened once is seen soon, though nothing happens after it"
        );
        look.run(|| ());
        assert!(!look.new);
    }

    #[test]
    fn what_others_do_meanwhile_delays_nothing() {
        let mut look = Paced::new();
        look.run(|| std::thread::spawn(|| use_processor(Duration::from_millis(20))).join().unwrap());
        assert!(look.took < Duration::from_millis(10), "{:?}", look.took);
    }

    fn use_processor(time: Duration) {
        let began = processor_time();
        while processor_time() - began < time {}
    }
}

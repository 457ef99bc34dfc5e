//! What a touch waits beside what the handler threads do for it: until one of them notices, and after, until the toucher goes on.
//!
//! The kernel doesn't say when a touch began, and nobody but the toucher knows when it went on. So a thread of hetmem's touches memory of its own now and
//! then, while the program's touches are served, and takes the time:
//!
//! ```text
//! thread that probes                      handler thread
//! ------------------                      --------------
//! touches the page that is not there ───► reads the touch
//! waits                                   moves the page there from the other place, and says how long that took, from the read on
//! takes the time          ◄───────────────
//! ```
//!
//! There are two places for one page, which are touched by turns: so nothing has to be taken out again. What the handler said is taken off, and what is
//! left is added to the time that it has for each of the program's touches ([`Probe::beside`]). As the page and the places are not the engine's, no
//! count has a trace of them.
//!
//! *Limits:* the touch is that of a thread that has just slept, on whatever processor the scheduler gave it.
#![expect(unsafe_code, reason = "touches and moves a page that is named by number")]

use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::access;
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Arena, ArenaOptions, HugePages, OnFork};
use hetmem_sys::uffd::{MoveFlags, Userfaultfd, Wake};
use rustix::event::{EventfdFlags, eventfd};

/// How long until the next touch at least: it costs two processors some microseconds.
pub(crate) const EVERY: Duration = Duration::from_millis(10);

/// The two places, and what was found.
pub(crate) struct Probe {
    places: Arena,
    /// Whether the second place is touched next.
    second: AtomicBool,
    /// How long the handler took for the last touch of a place, in nanoseconds; 0 if there was none since that was cleared.
    served: AtomicU64,
    /// What the last touch waited beside that, in nanoseconds.
    beside: AtomicU64,
    /// When there was last reason to probe, in nanoseconds from the runtime's start, and which reason was seen last.
    rung: AtomicU64,
    heard: AtomicU64,
    /// Readable when there is, if a thread waits for that.
    bell: OnceLock<OwnedFd>,
    /// Whether that thread is to end.
    ended: AtomicBool,
}

impl Probe {
    pub(crate) fn new() -> Result<Self, Errno> {
        let options = ArenaOptions {
            huge_pages: HugePages::Never,
            on_fork: OnFork::Omit,
            name: Some(c"hetmem:probe"),
            ..ArenaOptions::default()
        };
        let places = Arena::reserve(PageCount::new(2), &options)?;
        // So that serving a touch takes no memory.
        places.populate(places.range().slice(PageCount::ZERO, PageCount::ONE))?;
        Ok(Self {
            places,
            // Not where the page is.
            second: AtomicBool::new(true),
            served: AtomicU64::new(0),
            beside: AtomicU64::new(0),
            rung: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            bell: OnceLock::new(),
            ended: AtomicBool::new(false),
        })
    }

    /// Where the touches are, which are to be reported.
    pub(crate) fn places(&self) -> PageRange {
        self.places.range()
    }

    /// What a touch waits beside the time that it takes to serve, as was found last.
    pub(crate) fn beside(&self) -> Duration {
        Duration::from_nanos(self.beside.load(Ordering::Relaxed))
    }

    /// Probes, if touches were served since the last time. Called by one thread at a time, which no handler thread waits for.
    pub(crate) fn answer(&self) {
        let rung = self.rung.load(Ordering::Relaxed);
        if self.heard.swap(rung, Ordering::Relaxed) != rung {
            self.touch();
        }
    }

    fn touch(&self) {
        // Relaxed: the kernel orders what the handler does between the touch and its end.
        let second = self.second.fetch_not(Ordering::Relaxed);
        self.served.store(0, Ordering::Relaxed);
        let place = self.places().start().add_pages(PageCount::new(u64::from(second)));
        let began = Instant::now();
        // SAFETY: the place is a page of the arena, which is mapped as long as this is and used by nobody as other than atomic words.
        unsafe { access::word(place) }.load(Ordering::Relaxed);
        let waited = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let served = self.served.load(Ordering::Relaxed);
        // Where the page was there, as after mlockall(2), nothing is known.
        if served > 0 {
            self.beside.store(waited.saturating_sub(served), Ordering::Relaxed);
        }
    }

    /// Serves the touch at `addr`, which is one of the places, in a handler thread, `since` whose read of it so much has passed; whether it is done.
    pub(crate) fn serve(&self, uffd: &Userfaultfd, addr: VirtAddr, since: impl Fn() -> Duration) -> bool {
        let to = PageRange::page_of(addr);
        let [first, second] = [0, 1].map(|at| self.places().start().add_pages(PageCount::new(at)));
        let from = if to.start() == first { second } else { first };
        // SAFETY: the pages are the arena's; only the toucher, who waits, and this look at them, and both hold nothing but zeros.
        let mut filled = unsafe { uffd.move_pages(to.start(), from, PageCount::ONE, MoveFlags::DONT_WAKE) };
        if ![None, Some(Errno::AGAIN), Some(Errno::EXIST)].contains(&filled.stop) {
            // Somebody has dropped the page, or the kernel refuses to move it.
            // SAFETY: as above.
            filled = unsafe { uffd.zeropage(to, Wake::Later) };
        }
        if [Some(Errno::AGAIN), Some(Errno::NOMEM)].contains(&filled.stop) {
            return false;
        }
        self.served.store(u64::try_from(since().as_nanos()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
        // The only error is a malformed range.
        let _ = uffd.wake(to);
        true
    }

    /// A touch was served `now`, in nanoseconds from the runtime's start: there is reason to probe, unless there was lately.
    pub(crate) fn ring(&self, now: u64) {
        let last = self.rung.load(Ordering::Relaxed);
        let is_due = last == 0 || now >= last.saturating_add(u64::try_from(EVERY.as_nanos()).unwrap_or(u64::MAX));
        // Relaxed: only the number counts, and of several threads one rings.
        if is_due && self.rung.compare_exchange(last, now.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.write_bell();
        }
    }

    /// From now on somebody waits for the bell ([`Probe::run`]).
    pub(crate) fn hang_bell(&self) -> Result<(), Errno> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC)?;
        // There is one at most.
        let _ = self.bell.set(bell);
        Ok(())
    }

    /// Has [`Probe::run`] return.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.write_bell();
    }

    fn write_bell(&self) {
        if let Some(bell) = self.bell.get() {
            // An eventfd takes eight bytes at a time and is never full of ones.
            let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
        }
    }

    /// Probes whenever the bell is rung, until [`Probe::end`].
    pub(crate) fn run(&self) {
        let Some(bell) = self.bell.get() else { return };
        while !self.ended.load(Ordering::Acquire) {
            match rustix::io::read(bell, &mut [0; 8]) {
                Ok(_) => self.answer(),
                Err(Errno::INTR) => {}
                // Nothing is known then of what touches wait; they are served all the same.
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use hetmem_core::units::{ByteLen, DeviceId};
    use hetmem_devices::spec::DeviceSpec;

    use super::*;
    use crate::{FaultPath, Request, Runtime, Target};

    #[test]
    fn what_touches_wait_is_found_while_they_are_served_and_leaves_no_trace_in_what_is_counted() {
        let device: DeviceSpec = "private:emulated,size=16M".parse().unwrap();
        let runtime = Runtime::builder().device(device).single_faults().start().unwrap();
        let mapping = runtime.map(ByteLen::new(1 << 20), FaultPath::Thread).unwrap();
        let pages = mapping.range().pages().get();
        let words = usize::try_from(mapping.range().pages().bytes().get() / pages / 8).unwrap();
        mapping.words().iter().for_each(|word| word.store(1, Relaxed));
        let probe = &runtime.inner.probe;
        assert_eq!(probe.beside(), Duration::ZERO, "nothing was touched");
        let began = Instant::now();
        let mut rounds = 0;
        let mut found = Vec::new();
        while found.len() < 3 {
            assert!(began.elapsed() < Duration::from_secs(60), "it is found soon: {found:?}");
            let moved = runtime.migrate(mapping.range(), Request::all_to(Target::Device(DeviceId::new(0)))).moved();
            assert_eq!(moved.get(), pages);
            assert!(mapping.words().iter().step_by(words).all(|word| word.load(Relaxed) == 1));
            rounds += 1;
            let beside = probe.beside();
            if !beside.is_zero() && found.last() != Some(&beside) {
                found.push(beside);
            }
        }
        let counted = runtime.statistics();
        assert_eq!(counted.cpu_faults, rounds * pages);
        assert_eq!(counted.pages_migrated_to_system, rounds * pages);
        assert!(counted.fault_latency_max_ns > u64::try_from(found[0].as_nanos()).unwrap());
    }

    #[test]
    fn who_has_no_reason_does_not_touch_and_who_touches_what_is_there_learns_nothing() {
        let runtime = Runtime::builder().start().unwrap();
        let probe = &runtime.inner.probe;
        probe.answer();
        assert!(probe.second.load(Relaxed), "it was not rung");
        // Served, by turns, as the thread that waits for the bell does not know of these.
        (0..10).for_each(|_| probe.touch());
        assert!(!probe.beside().is_zero() && probe.second.load(Relaxed));
        probe.beside.store(0, Relaxed);
        // Where the page is.
        probe.second.store(false, Relaxed);
        probe.touch();
        assert_eq!(probe.beside(), Duration::ZERO);
    }
}

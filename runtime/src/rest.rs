//! Frames that pages have left are cleared: what the program wipes or unmaps is not left behind where its pages were.
//!
//! Not at once: most are used again soon, and clearing each first made bulk migration a quarter slower. So a frame rests, and the handler thread
//! clears it, in small pieces and between touches, when it has rested for [`REST`] to twice that.
//!
//! System memory that is kept beyond the stock while pages come and go is given back at the same times, once none has from one to the next. How much
//! that may be is asked anew each time ([`Warmth`]): others may need the machine's memory more.
//!
//! ```text
//! a page leaves its frame ── Inner::tell_of_resting ──> the handler thread waits no longer than REST ──> age, clear what was old ──┐
//!                                                          ^── frames rest                                                         │
//!                                                          └──────────────────────────────────────────────────────────────────────┘
//! ```

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, fence};
use std::time::{Duration, Instant};

use hetmem_core::units::{ByteLen, PageCount};
use hetmem_sys::process;
use hetmem_sys::room::Room;
use rustix::event::Timespec;

use crate::inner::Inner;

/// How long frames rest at least before they are cleared.
const REST: Duration = Duration::from_millis(250);

/// System memory that pages have left may stay populated for a while, beyond the stock: at most this, ...
const WARMEST: ByteLen = ByteLen::new(4 << 30);
/// ... at most one part of so many of the address space that the process may have, ...
const SHARE_OF_ADDRESSES: u64 = 16;
/// ... and at most one part of so many of what the machine, and the control group, have left.
const SHARE: u64 = 4;

/// Whether system memory may stay populated beyond the stock.
pub(crate) enum Warmth {
    /// While pages come and go, as far as there is room, and never more than this.
    InUse(Room, PageCount),
    /// Never.
    Strict,
}

impl Warmth {
    /// It may while pages come and go.
    pub(crate) fn in_use() -> Self {
        let addresses = ByteLen::new(process::address_space_limit() / SHARE_OF_ADDRESSES);
        Self::InUse(Room::open(), WARMEST.min(addresses).pages_down())
    }

    /// How much there may ever be.
    pub(crate) const fn most(&self) -> PageCount {
        match self {
            Self::InUse(_, most) => *most,
            Self::Strict => PageCount::ZERO,
        }
    }

    /// How much there may be now. Nothing where nobody says what is left.
    pub(crate) fn now(&self) -> PageCount {
        match self {
            Self::InUse(room, most) => {
                room.left().map_or(PageCount::ZERO, |left| ByteLen::new(left.get() / SHARE).pages_down().min(*most))
            }
            Self::Strict => PageCount::ZERO,
        }
    }
}

/// Whether the handler thread knows that frames rest.
#[derive(Default)]
pub(crate) struct Known(AtomicBool);

impl Inner {
    /// Pages may have left frames: the handler thread hears of it, if it sleeps.
    pub(crate) fn tell_of_resting(&self) {
        // The fences, here and in `Clearing::within`: either this thread sees that the handler thread knows nothing any more, or that one sees the
        // frames.
        fence(SeqCst);
        if !self.resting.0.load(Relaxed) && self.engine.has_resting() && !self.resting.0.swap(true, Relaxed) {
            self.delegated.wake();
        }
    }
}

/// What the handler thread has to do about frames that rest.
#[derive(Default)]
pub(crate) struct Clearing {
    /// When it looks again.
    due: Option<Instant>,
    /// Whether there are old ones.
    begun: bool,
}

impl Clearing {
    /// How long the handler thread may wait for something else; `None` is for ever.
    pub(crate) fn within(&mut self, inner: &Inner) -> Option<Timespec> {
        if self.begun {
            return Some(Timespec::default());
        }
        let due = match self.due {
            Some(due) => due,
            None => {
                inner.resting.0.store(false, Relaxed);
                fence(SeqCst);
                if !inner.engine.has_resting() {
                    return None;
                }
                inner.resting.0.store(true, Relaxed);
                *self.due.insert(Instant::now() + REST)
            }
        };
        let left = due.saturating_duration_since(Instant::now());
        Some(left.try_into().unwrap_or_default())
    }

    /// Clears a little, if it is time to.
    pub(crate) fn go_on(&mut self, inner: &Inner) {
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.due = None;
            self.begun = true;
            inner.engine.look_for_use();
            inner.engine.keep_warm(inner.warmth.now());
        }
        if self.begun && !inner.engine.clear_old() {
            inner.engine.age();
            self.begun = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use hetmem_core::port::FaultPath;
    use hetmem_core::units::DeviceId;
    use hetmem_devices::spec::DeviceSpec;

    use super::*;
    use crate::{Builder, Mapping, Request, Runtime, Target};

    const STOCK: ByteLen = ByteLen::new(1 << 20);
    const DATA: ByteLen = ByteLen::new(16 << 20);

    fn builder() -> Builder {
        let device: DeviceSpec = "private:emulated,size=16M".parse().unwrap();
        Runtime::builder().device(device).stock(STOCK)
    }

    /// How many populated pages are kept when all of `mapping` has gone to the device.
    fn kept_after_migration(runtime: &Runtime, mapping: &Mapping) -> PageCount {
        let to = |target| runtime.migrate(mapping.range(), Request::all_to(target)).moved();
        to(Target::System);
        runtime.populate(mapping.range());
        let moved = to(Target::Device(DeviceId::new(0)));
        let kept = runtime.inner.engine.pool().stocked();
        assert_eq!(moved, mapping.range().pages());
        kept
    }

    #[test]
    fn what_is_warm_is_given_back_when_nobody_migrates() {
        let runtime = builder().start().unwrap();
        if runtime.inner.warmth.now() < DATA.pages_down() {
            return;
        }
        let mapping = runtime.map(DATA, FaultPath::Thread).unwrap();
        let begun = Instant::now();
        // Whoever is kept from running for long finds it given back.
        while kept_after_migration(&runtime, &mapping) <= STOCK.pages_down() {
            assert!(begun.elapsed() < Duration::from_secs(20), "nothing stays warm");
        }
        let begun = Instant::now();
        while runtime.inner.engine.pool().stocked() > STOCK.pages_down() {
            assert!(begun.elapsed() < Duration::from_secs(20), "nobody gives back what is not used");
            hetmem_sys::thread::yield_now();
        }
        runtime.check();
    }

    #[test]
    fn no_more_is_warm_than_there_may_ever_be() {
        let most = PageCount::new(3);
        let warmth = Warmth::InUse(Room::open(), most);
        assert!(warmth.most() == most && warmth.now() <= most);
        assert!(Warmth::in_use().now() <= WARMEST.pages_down());
    }

    #[test]
    fn nothing_stays_beyond_a_strict_stock() {
        let runtime = builder().strict_stock().start().unwrap();
        let mapping = runtime.map(DATA, FaultPath::Thread).unwrap();
        for _ in 0..5 {
            assert!(kept_after_migration(&runtime, &mapping) <= STOCK.pages_down());
        }
        runtime.check();
    }
}

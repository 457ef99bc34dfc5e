//! A number of references, and nothing else: what is known of a place of the pool. Which page it holds, nobody asks.

use crate::sync::atomic::{AtomicU16, Ordering};

/// What letting go of a reference left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Released {
    /// Others still refer to the frame.
    StillReferenced,
    /// That was the last reference.
    Last,
}

/// As [`FrameDescriptor`](super::FrameDescriptor), without a page. The orderings are those, too, for the same reasons.
#[derive(Debug)]
pub struct References(AtomicU16);

impl Default for References {
    fn default() -> Self {
        Self(AtomicU16::new(0))
    }
}

impl References {
    /// Takes the free place into use, with one reference.
    ///
    /// # Panics
    ///
    /// If it is in use.
    #[inline]
    pub fn allocate(&self) {
        // Acquire pairs with the Release in `release`.
        assert_eq!(self.0.swap(1, Ordering::Acquire), 0, "a place in use is not in a free set");
    }

    /// Takes another reference; `false` if the place is free.
    #[inline]
    #[must_use]
    pub fn acquire(&self) -> bool {
        let more = |count: u16| (count != 0).then(|| count.checked_add(1).expect("references of a place fit 16 bits"));
        self.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, more).is_ok()
    }

    /// Lets go of a reference.
    ///
    /// # Panics
    ///
    /// If there is none.
    #[inline]
    pub fn release(&self) -> Released {
        // Release pairs with the Acquire in `allocate`; Acquire makes the last `release` see the work of all the others.
        let was = self.0.fetch_sub(1, Ordering::AcqRel);
        assert_ne!(was, 0, "a reference is let go of once");
        if was == 1 { Released::Last } else { Released::StillReferenced }
    }

    /// The number of references; what holders who have left did with the place is done.
    #[inline]
    #[must_use]
    pub fn count(&self) -> u16 {
        // Acquire pairs with the Release in `release`.
        self.0.load(Ordering::Acquire)
    }
}

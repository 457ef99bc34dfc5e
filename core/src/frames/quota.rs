//! Frames of a device that several processes count together: each has a table of its own, and all of them have no more in use than the device has.

use std::fmt;

use crate::units::PageCount;

/// What a process may have of a device's frames. Called with locks held, and takes none that is held while it waits for anything.
pub trait Quota: fmt::Debug + Send + Sync {
    /// Takes up to `want` frames; how many it got.
    fn take(&self, want: PageCount) -> PageCount;

    /// Gives back frames that were taken.
    fn give(&self, pages: PageCount);

    /// How many could be taken now.
    fn left(&self) -> PageCount;
}

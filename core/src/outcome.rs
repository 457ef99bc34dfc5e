//! What became of each page of a migration: moved, or kept where it was, with the reason.
//!
//! The kernel's `migrate_vma` clears a bit for a page that doesn't move and leaves the caller to guess; per-page
//! reasons are the first wish of its users.

use crate::units::PageCount;

macro_rules! kept_reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why a page was left where it was. Every reason leaves the page whole and in one place.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[non_exhaustive]
        pub enum KeptReason { $($(#[$doc])* $name,)* }

        impl KeptReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The reason's name in statistics files and messages.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// The reason's place in [`KeptReason::ALL`].
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

kept_reasons! {
    /// Nothing was ever written there: there is no page to move.
    Hole = "hole",
    /// The page is already where it was asked to go.
    AlreadyThere = "already_there",
    /// The selection flags leave out pages of this kind.
    NotSelected = "not_selected",
    /// The page lies on a device of another owner.
    ForeignOwner = "foreign_owner",
    /// The address belongs to no region that hetmem manages.
    Unmanaged = "unmanaged",
    /// Advice pins the page where it is.
    Advised = "advised",
    /// The page is pinned for DMA (`folio_maybe_dma_pinned`), so its physical place may not change.
    Pinned = "pinned",
    /// The page is mapped by another process too and could not be made this process's own.
    Shared = "shared",
    /// The memory is locked (`mlock(2)`).
    Locked = "locked",
    /// The memory holds a thread's stack or control block, which the kernel writes when the thread ends.
    ThreadState = "thread_state",
    /// Another migration, a fault, a fork or a change of the mapping was under way.
    Raced = "raced",
    /// The device has no free frame.
    NoFrame = "no_frame",
    /// Where the page was to rest while it moves, another had come to be; there is room elsewhere the next time.
    Occupied = "occupied",
    /// The host has no memory to spare.
    NoMemory = "no_memory",
    /// Another userfaultfd of the program watches this memory.
    ForeignUserfaultfd = "foreign_userfaultfd",
    /// The kernel refuses to trap faults in, or to move, this kind of mapping.
    Unsupported = "unsupported",
    /// The device reported an error while it copied.
    DeviceError = "device_error",
    /// Pages go there by whole blocks of 2 MiB only, and not all of this one were asked for, or could move.
    PartOfBlock = "part_of_block",
    /// A guard marker is there (`MADV_GUARD_INSTALL`): what the page held is discarded, and a touch ends in a signal. Before Linux 6.15,
    /// which tells markers apart, it may be what [`KeptReason::Poisoned`] is.
    Guarded = "guarded",
    /// The page table has an entry there that is neither a page nor nothing: the memory is poisoned, or a driver of the kernel holds the page.
    Poisoned = "poisoned",
    /// The memory can be written and executed, and the kernel moves pages only to memory that allows the same; hetmem's allows no execution.
    Executable = "executable",
    /// The file is open for writing, or somebody waits to open it so: what a device had of it could grow stale.
    FileOpenForWriting = "file_open_for_writing",
    /// Nobody can be kept from writing to the file meanwhile: the process neither owns it nor has `CAP_LEASE`, or its file system has no leases.
    NoLease = "no_lease",
    /// Bytes of the file can't be read: it ends before them, or there was an error.
    FileUnreadable = "file_unreadable",
}

/// What became of one page.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageOutcome {
    /// The page is now where it was asked to go.
    Moved,
    /// The page is where it was, for this reason.
    Kept(KeptReason),
}

impl PageOutcome {
    /// Why the page was kept, if it was.
    #[must_use]
    pub const fn kept(self) -> Option<KeptReason> {
        match self {
            Self::Moved => None,
            Self::Kept(reason) => Some(reason),
        }
    }
}

/// The outcome of each page of a migrated range, in order.
///
/// Zero moved pages is a result, not an error.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Outcomes {
    pages: Vec<PageOutcome>,
}

impl std::fmt::Debug for Outcomes {
    /// How many pages had which outcome, as a list of all would be unreadable.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut counts = std::collections::BTreeMap::new();
        for outcome in &self.pages {
            *counts.entry(format!("{outcome:?}")).or_insert(0_u64) += 1;
        }
        write!(f, "Outcomes {counts:?}")
    }
}

impl Outcomes {
    /// Outcomes of `pages` pages, all kept for `reason` until [`Outcomes::set`] says otherwise.
    #[must_use]
    pub fn all_kept(pages: PageCount, reason: KeptReason) -> Self {
        Self { pages: vec![PageOutcome::Kept(reason); pages.as_usize()] }
    }

    /// Says what became of page `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below the number of pages.
    pub fn set(&mut self, index: usize, outcome: PageOutcome) {
        self.pages[index] = outcome;
    }

    /// Says it of several pages.
    pub(crate) fn set_all(&mut self, pages: std::ops::Range<usize>, outcome: PageOutcome) {
        self.pages[pages].fill(outcome);
    }

    /// Takes over `pages` outcomes of `from`, those from its page `skip` on, as the outcomes from page `at` on.
    ///
    /// # Panics
    ///
    /// If either does not hold that many.
    pub fn copy_from(&mut self, at: usize, from: &Self, skip: usize, pages: usize) {
        self.pages[at..at + pages].copy_from_slice(&from.pages[skip..skip + pages]);
    }

    /// Adds the outcomes of the range that follows.
    pub fn append(&mut self, mut next: Self) {
        self.pages.append(&mut next.pages);
    }

    /// The outcome of each page, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[PageOutcome] {
        &self.pages
    }

    /// How many pages moved.
    #[must_use]
    pub fn moved(&self) -> PageCount {
        PageCount::new(self.pages.iter().filter(|p| **p == PageOutcome::Moved).count() as u64)
    }

    /// How many pages were kept for `reason`.
    #[must_use]
    pub fn kept(&self, reason: KeptReason) -> PageCount {
        PageCount::new(self.pages.iter().filter(|p| **p == PageOutcome::Kept(reason)).count() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_distinct_and_indexes_match_all() {
        for (i, reason) in KeptReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), i);
            assert!(KeptReason::ALL.iter().filter(|r| r.label() == reason.label()).count() == 1);
        }
    }
}

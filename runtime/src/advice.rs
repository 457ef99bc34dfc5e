//! What the program says of the use of its memory, and what it gives up of it.

use hetmem_core::advice::{Advice, DiscardError};
use hetmem_core::migrate::{Request, Target};
use hetmem_core::units::PageRange;
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::discard_locked_too;
use hetmem_sys::thread::current_tid;

use crate::error::Error;
use crate::forks;
use crate::host::removals::RETURNED;
use crate::inner::Inner;
use crate::runtime::Runtime;

/// Parts of blocks that are brought at a time, so that what it takes to know what became of each page is bounded.
const AT_ONCE: usize = 512;

impl Runtime {
    /// Says what is known of the use of `range`. What is said goes with the pages where these are moved (`mremap`), and ends with their mapping or its
    /// management; a part of a range may be told apart at any time.
    ///
    /// A runtime has no policy that moves pages by itself. So a preferred location says where [`Advice::Soon`] brings pages, which this does before it
    /// returns; and [`Advice::NotSoon`] changes nothing. What policies make of advice matters to programs under `hetmem run`.
    ///
    /// # Errors
    ///
    /// If a device is named that doesn't exist, or a part of the range is not managed: as with `madvise` and its `ENOMEM`, the others have the advice
    /// then.
    pub fn advise(&self, range: PageRange, advice: Advice) -> Result<(), Error> {
        let taken = self.inner.engine.advise(range, advice);
        if advice == Advice::Soon {
            self.inner.bring_to_best_places(range);
        }
        taken.map_err(|error| Error::invalid(error.to_string()))
    }

    /// Gives the contents of `range` up: it reads as zeros when this returns, and takes no memory, wherever its pages were, pinned ones too. Mirrors are
    /// told ([`Event::Clear`](crate::mirror::Event::Clear)). What other threads write there before the return may be lost, and nothing after.
    ///
    /// It is what `madvise` does for `MADV_DONTNEED`, and more where that is different: in locked memory, and in blocks of a coherent DAX device.
    ///
    /// # Errors
    ///
    /// If a part of the range is not managed, or is pinned in a block of a coherent DAX device: nothing has changed then. If the kernel refuses, as where
    /// nothing is mapped, parts may be discarded.
    ///
    /// # Safety
    ///
    /// Nobody counts on what is there.
    #[expect(unsafe_code, reason = "discards memory that is named by number")]
    pub unsafe fn discard(&self, range: PageRange) -> Result<(), Error> {
        if !self.inner.is_of_this_process() {
            return Err(Error::invalid("a forked child has no runtime".to_owned()));
        }
        // SAFETY: the caller's.
        let discarded = forks::unparked(&self.inner, || unsafe { self.inner.discard(range) });
        discarded.map_err(|error| match error {
            DiscardError::Unmanaged(part) => Error::invalid(format!("{part} is not managed; nothing was discarded")),
            DiscardError::Laid(reason) => Error::invalid(format!(
                "device memory stays mapped in {range} ({}); nothing was discarded",
                reason.label()
            )),
            DiscardError::Host(errno) => Error::os(format!("{range} can't be discarded"), errno),
        })
    }
}

impl Inner {
    /// Brings what is managed of `range` to where it is best kept now, as far as it goes there.
    pub(crate) fn bring_to_best_places(&self, range: PageRange) {
        for (part, target) in self.engine.best_places(range) {
            // What is not on a device needs not be brought from there.
            let whole = || part.by_block().map(|(_, piece)| piece).collect();
            let pieces: Vec<PageRange> =
                if target == Target::System { self.engine.migrated_parts(part) } else { whole() };
            for some in pieces.chunks(AT_ONCE) {
                self.migrate(some, Request::all_to(target));
            }
        }
    }

    /// As [`Runtime::discard`] says.
    ///
    /// # Safety
    ///
    /// Nobody counts on what is there.
    #[expect(unsafe_code, reason = "discards memory that is named by number")]
    unsafe fn discard(&self, range: PageRange) -> Result<(), DiscardError<Errno>> {
        let bring_home = |laid: &[PageRange]| self.migrate(laid, Request::all_to(Target::System));
        let drop_pages = || {
            // SAFETY: the caller's.
            let dropped = unsafe { discard_locked_too(range) };
            // Whoever migrates next need not find out whether it is over.
            RETURNED.returned(current_tid());
            dropped
        };
        self.engine.discard_range(range, bring_home, drop_pages)
    }
}

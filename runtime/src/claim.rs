//! Claims on trapped memory: as long as one lives, touches of missing pages wait in all that it covers.

use hetmem_core::outcome::KeptReason;
use hetmem_core::port::FaultPath;
use hetmem_core::units::{PageCount, PageRange};

use crate::inner::Inner;

/// Extents that are trapped until this is dropped; then their registrations fall as far as what is in them allows.
#[must_use]
pub(crate) struct TrapClaim<'a> {
    inner: &'a Inner,
    extents: Vec<PageRange>,
    refused: Vec<(PageRange, KeptReason)>,
}

impl Inner {
    /// Traps the extents around `range`. Laid blocks need it once they are lifted, and are trapped then.
    pub(crate) fn trapped(&self, range: PageRange) -> TrapClaim<'_> {
        self.trapped_all(&[range])
    }

    /// Traps the extents around each of `ranges`.
    pub(crate) fn trapped_all(&self, ranges: &[PageRange]) -> TrapClaim<'_> {
        let mut claim = TrapClaim { inner: self, extents: Vec::new(), refused: Vec::new() };
        for (extent, path) in self.engine.extents(ranges) {
            claim.extents.push(extent);
            let refused = self.trap(extent, path);
            claim.refused.extend(refused);
        }
        claim
    }

    fn trap(&self, extent: PageRange, path: FaultPath) -> Vec<(PageRange, KeptReason)> {
        let host = self.engine.host();
        let laid_apart = || self.without_laid(extent);
        self.engine.while_no_event_is_read(|| host.traps.trap(&host.contexts, extent, path, laid_apart))
    }

    /// Ends a claim on `extent`, if there is one, and lets its registration fall as far as what is in it allows.
    fn release_extent(&self, extent: PageRange) {
        let host = self.engine.host();
        self.engine.while_no_event_is_read(|| {
            let mirrored = self.engine.is_mirrored(extent);
            // Most often something is, and how much is of no interest then.
            let away = || match self.engine.is_any_away(extent) {
                true => (PageCount::ONE, PageCount::ZERO),
                false => self.engine.away_in(extent),
            };
            host.traps.release(&host.contexts, extent, mirrored, away);
        });
    }

    /// Lets ranges fall back that faults have emptied.
    pub(crate) fn release_idle(&self) {
        self.engine.bring_copies_home();
        for extent in self.engine.host().traps.idle() {
            if !self.engine.is_any_away(extent) {
                self.release_extent(extent);
            }
        }
    }
}

impl TrapClaim<'_> {
    /// What can't be trapped, and why.
    pub(crate) fn refused(&self) -> &[(PageRange, KeptReason)] {
        &self.refused
    }
}

impl Drop for TrapClaim<'_> {
    fn drop(&mut self) {
        self.extents.iter().for_each(|extent| self.inner.release_extent(*extent));
    }
}

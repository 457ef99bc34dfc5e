//! Blocks of a coherent DAX device over those of this process ([`hetmem_core::exchange`]): what goes before they are laid, and who must do without
//! them.

use hetmem_core::migrate::{Request, Target};
use hetmem_core::outcome::{KeptReason, Outcomes, PageOutcome};
use hetmem_core::port::Access;
use hetmem_core::space::Region;
use hetmem_core::units::PageRange;

use crate::inner::Inner;

impl Inner {
    /// The parts of `extent` outside laid blocks, which can't be registered.
    pub(crate) fn without_laid(&self, extent: PageRange) -> Vec<PageRange> {
        let (mut parts, mut at) = (Vec::new(), extent.start());
        for block in self.engine.laid_in(extent) {
            parts.extend(PageRange::between(at, block.start()));
            at = block.end();
        }
        parts.extend(PageRange::between(at, extent.end()));
        parts.retain(|part| !part.is_empty());
        parts
    }

    /// Has all pages of the whole blocks of `ranges` be there that are hetmem's own, to be laid.
    pub(crate) fn fill_holes(&self, ranges: &[PageRange]) {
        for (no, block) in ranges.iter().flat_map(|range| range.by_block()) {
            if block != no.range() || !self.engine.laid_in(block).is_empty() {
                continue;
            }
            let may_go = |region: Option<Region>| region.is_some_and(|region| region.owned && !region.pinned);
            if self.engine.regions_in(block).into_iter().all(|(_, region)| may_go(region)) {
                // What can't be had stays a hole, and is an outcome.
                let _ = self.engine.fault_in(block, Access::Write);
            }
        }
    }

    /// After a fork pages are shared until they are written: makes those of whole blocks this process's own, then tries again.
    pub(crate) fn migrate_shared_blocks(&self, range: PageRange, request: Request, outcomes: &mut Outcomes) {
        for (_, block) in range.by_block() {
            let (at, pages) = (block.start().pages_since(range.start()).as_usize(), block.pages().as_usize());
            if outcomes.as_slice()[at..at + pages].contains(&PageOutcome::Kept(KeptReason::Shared)) {
                self.fill_holes(&[block]);
                outcomes.copy_from(at, &self.engine.migrate(block, request), 0, pages);
            }
        }
    }

    /// Brings the blocks home that are laid, as far as they can come: a forked child would not have them.
    pub(crate) fn lift_all(&self) {
        let laid = self.engine.laid_in(PageRange::ALL);
        if !laid.is_empty() {
            self.migrate(&laid, Request::all_to(Target::System));
        }
    }
}

#[cfg(test)]
mod tests;

//! What mirrors ask of this process's memory ([`MirrorHost`]): the mapping list, the page map, and touches by `madvise(2)`.

use std::ops::ControlFlow;

use hetmem_core::port::{Access, CannotFault, MappedRange, MirrorHost, Present};
use hetmem_core::units::{PAGE_SHIFT, PageRange, VirtAddr};
use hetmem_sys::mapping::{populate_read, populate_write};
use hetmem_sys::maps::{Mapping, Perms, for_each_mapping};
use hetmem_sys::pagemap::{Categories, Region as Scanned, ScanQuery};

use crate::host::UserMemory;

/// Runs that one scan reports.
const RUNS: usize = 512;
/// log2 of the pages in what the page map calls a huge page.
const HUGE_ORDER: u8 = 9;

impl MirrorHost for UserMemory {
    fn mapping_from(&self, addr: VirtAddr) -> Option<MappedRange> {
        let describe = |range, perms: Perms, page_size: u64, anonymous| MappedRange {
            range,
            readable: perms.contains(Perms::READ),
            writable: perms.contains(Perms::WRITE),
            shared: perms.contains(Perms::SHARED),
            anonymous,
            order: u8::try_from(page_size.checked_ilog2().unwrap_or(0).saturating_sub(PAGE_SHIFT)).unwrap_or(0),
        };
        if let Some(query) = &self.mappings {
            let found = query.find(addr).ok()??;
            return Some(describe(found.range, found.perms, found.page_size, found.anonymous));
        }
        let mut found = None;
        let look = |mapping: &Mapping<'_>| {
            if mapping.range.end() <= addr {
                return ControlFlow::Continue(());
            }
            found = Some(describe(mapping.range, mapping.perms, 0, mapping.is_anonymous()));
            ControlFlow::Break(())
        };
        for_each_mapping(&mut [0; hetmem_sys::maps::BUFFER_SIZE], look).ok()?;
        found
    }

    fn presence(&self, mapping: &MappedRange, range: PageRange, visit: &mut dyn FnMut(Present)) {
        // A private mapping shows a file's page until it is written. To tell such pages the kernel looks at the descriptor of each, which takes
        // longer than all else: it is asked only where there may be some.
        let may_show = mapping.writable && !mapping.shared && !mapping.anonymous;
        let file = if may_show { Categories::FILE } else { Categories::NONE };
        let query = ScanQuery {
            any_of: Categories::PRESENT,
            report: Categories::PRESENT | Categories::PFNZERO | Categories::HUGE | file,
            ..ScanQuery::default()
        };
        let mut found = [Scanned::default(); RUNS];
        let mut rest = range;
        while !rest.is_empty() {
            // Without the page map nothing is known to be there.
            let Ok((n, end)) = self.scanner.scan(rest, query, &mut found) else { return };
            for run in &found[..n] {
                let is = |category| run.categories().contains(category);
                let zero = is(Categories::PFNZERO);
                let huge = if is(Categories::HUGE) { HUGE_ORDER } else { 0 };
                visit(Present {
                    range: run.range(),
                    writable: mapping.writable && !zero && !is(Categories::FILE),
                    zero,
                    order: mapping.order.max(huge),
                });
            }
            match PageRange::between(end, range.end()) {
                Some(next) if next.pages() < rest.pages() => rest = next,
                _ => return,
            }
        }
    }

    fn fault_in(&self, range: PageRange, access: Access) -> Result<(), CannotFault> {
        let populated = match access {
            Access::Read => populate_read(range),
            Access::Write => populate_write(range),
        };
        populated.map_err(|_| CannotFault)
    }
}

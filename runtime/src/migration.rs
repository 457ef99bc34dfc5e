//! Migration, and where pages are.

use hetmem_core::engine::Residency;
use hetmem_core::migrate::Request;
use hetmem_core::outcome::Outcomes;
use hetmem_core::physmap::Page;
use hetmem_core::units::{DeviceId, FrameIndex, PageRange, Pfn, VirtAddr};
use hetmem_sys::uffd::WriteProtect;

use crate::error::Error;
use crate::forks;
use crate::runtime::Runtime;

impl Runtime {
    /// Migrates the pages of `range` that `request` selects, and says what became of each, in order. Zero moved pages is not an
    /// error.
    pub fn migrate(&self, range: PageRange, request: Request) -> Outcomes {
        self.migrate_all(&[range], request).pop().unwrap_or_default()
    }

    /// Migrates several ranges at once: cheaper than one by one. The outcomes are those of each range, in order.
    pub fn migrate_all(&self, ranges: &[PageRange], request: Request) -> Vec<Outcomes> {
        self.inner.migrate(ranges, request)
    }

    /// Gives each hole of `range`, and each page of zeros that all share, a page of its own, as a write of what is there does; pages that are on a
    /// private device come home. Parts that can't be written stay as they are. Migrations keep holes, as there is nothing to move.
    pub fn populate(&self, range: PageRange) {
        self.inner.populate(range);
    }

    /// Where each page of `range` is, in order. Nothing is moved.
    #[must_use]
    pub fn residency(&self, range: PageRange) -> Vec<Residency> {
        self.inner.engine.residency(range)
    }

    /// The number of the device's frame in which the page at `addr` is, by the books (the kernel's `page_to_pfn` of a device page); `None` while it
    /// is in system memory, whose frame numbers the kernel tells nobody without privilege. The page may have moved when this returns.
    #[must_use]
    pub fn pfn_of(&self, addr: VirtAddr) -> Option<Pfn> {
        self.inner.engine.pfn_of(addr.page_down())
    }

    /// The device and the frame that `pfn` numbers, used or not, if one of the runtime's devices has it (`pfn_valid` and `pfn_to_page`).
    #[must_use]
    pub fn frame_of(&self, pfn: Pfn) -> Option<(DeviceId, FrameIndex)> {
        match self.inner.engine.physmap(None).pfn_to_page(pfn)? {
            Page::Device(pagemap, frame) => Some((pagemap.device, frame)),
            Page::System(_) => None,
        }
    }

    /// Brings every page home that a forked child would not have: those on private and on coherent DAX devices, and those held exclusively. Forks by
    /// the C library do it by themselves; whoever forks past it does this before, and lets nobody migrate until the fork is done.
    ///
    /// # Errors
    ///
    /// If a page could not come home; others may have.
    pub fn bring_home(&self) -> Result<(), Error> {
        if forks::unparked(&self.inner, || self.inner.bring_home()) {
            return Ok(());
        }
        Err(Error::invalid("pages could not come home; they are in use all the time"))
    }

    /// From here on the first write to each page on a coherent device that a forked child shares at this moment is noticed: the kernel makes a copy
    /// of it then, which is in system memory, and [`Runtime::residency`] says so. Of nodes the kernel tells where a page is; of other coherent
    /// devices nothing does but this. The noticing ends where pages of the same mapping migrate: whoever wants it to go on asks anew.
    pub fn notice_copies(&self) {
        let host = self.inner.engine.host();
        self.inner.engine.each_mapped(|page| {
            if host.is_shared(page) {
                // A failure leaves a page unnoticed.
                let _ = host.contexts.thread.write_protect(page, WriteProtect::Protect);
            }
        });
    }
}

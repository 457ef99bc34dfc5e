//! Whether pages can be taken out: the kernel is asked, not the books.
#![expect(unsafe_code, reason = "asks by a MOVE that moves nothing")]

use hetmem_core::outcome::KeptReason;
use hetmem_core::port::FaultPath;
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::is_locked;
use hetmem_sys::maps::Perms;
use hetmem_sys::uffd::MoveFlags;

use super::UserMemory;

impl UserMemory {
    /// How many pages from the start of `range` on lie in one mapping that is registered and accepts pages: a MOVE into it
    /// is tried, of pages that don't exist. The kernel looks at the mapping first (`mm/userfaultfd.c`, `validate_move_areas`).
    ///
    /// The registration was asked for earlier, for what was mapped then; the program may have mapped something else since, or
    /// nothing.
    pub(super) fn registered_prefix(&self, path: FaultPath, range: PageRange) -> Result<PageCount, KeptReason> {
        let probe = |pages: PageCount, holes: MoveFlags| {
            let nowhere = self.nowhere.range().start();
            // SAFETY: there is no page at the source, so nothing moves.
            let probe = unsafe {
                self.contexts.program(path).move_pages(range.start(), nowhere, pages, MoveFlags::DONT_WAKE | holes)
            };
            probe.stop
        };
        // A MOVE that skips holes does nothing here, and fails where nothing is mapped. What it finds can't go without an event, so the answer holds for
        // the next question.
        let mapped = match probe(PageCount::ONE, MoveFlags::ALLOW_SRC_HOLES) {
            None | Some(Errno::EXIST) => true,
            Some(Errno::NOMEM) => return Err(KeptReason::NoMemory),
            Some(Errno::NOENT | Errno::AGAIN) => return Err(KeptReason::Raced),
            // The mapping is no good, for a reason that is looked for below.
            Some(_) => false,
        };
        let mut pages = range.pages().min(PageCount::BLOCK);
        loop {
            match probe(pages, MoveFlags::NONE) {
                // There is a page, and so a mapping.
                Some(Errno::EXIST) => return Ok(pages),
                // The source is a hole: the mapping was looked at and found good.
                Some(Errno::NOENT) if mapped => return Ok(pages),
                // Or nothing is mapped here any more.
                Some(Errno::NOENT) => return Err(KeptReason::Raced),
                Some(Errno::AGAIN) => return Err(KeptReason::Raced),
                // Not one mapping, or not one that can be moved from.
                Some(_) if pages > PageCount::ONE => pages = PageCount::new(pages.get() / 2),
                // Pages are not moved between what is locked and what is not.
                Some(Errno::INVAL) if is_locked(range.start()) => return Err(KeptReason::Locked),
                Some(_) if self.is_executable(range.start()) => return Err(KeptReason::Executable),
                Some(_) | None => return Err(KeptReason::Unsupported),
            }
        }
    }

    /// Whether code may run at `page` that can be written there, too.
    fn is_executable(&self, page: VirtAddr) -> bool {
        let both = Perms::WRITE | Perms::EXEC;
        match self.mappings.as_ref().map(|mappings| mappings.find(page)) {
            Some(Ok(Some(found))) => found.range.contains(page) && found.perms.contains(both),
            Some(Ok(None)) => false,
            Some(Err(_)) | None => {
                let mut executable = false;
                // Where nothing can be read the kernel's refusal is passed on as it is.
                let _ = crate::mappings::visit_in(&self.contexts.maps, |mapping| {
                    executable |= mapping.range.contains(page) && mapping.perms.contains(both);
                });
                executable
            }
        }
    }
}

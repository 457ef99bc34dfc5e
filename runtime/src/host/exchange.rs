//! Exchanges of a block's mapping ([`Backing`](hetmem_core::port::Backing)), each by one `mremap` over it.
#![expect(unsafe_code, reason = "maps over the program's memory")]

use std::sync::atomic::Ordering;

use hetmem_core::home::FileHome;
use hetmem_core::outcome::KeptReason;
use hetmem_core::port::{Backing, FaultPath, Host as _, Instead};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Spare, is_mapped, map_again_over};
use hetmem_sys::pagemap::{Categories, Region as Scanned, ScanQuery};
use hetmem_sys::procmap::Found;
use hetmem_sys::uffd::{Mode, MoveFlags, OwnSide};

use super::{BUSY_TRIES, MAPPING_NAME, UserMemory};
use crate::files::Mapped;

/// What `/proc/<pid>/maps` calls memory that stands in for a file's mapping.
const STAND_IN_NAME: &std::ffi::CStr = c"hetmem:file";

/// Maps the device's memory at `frames` a second time, over `block`.
pub(super) fn lay(block: PageRange, frames: VirtAddr) -> Result<(), Errno> {
    let window = PageRange::new(frames, block.pages()).ok_or(Errno::INVAL)?;
    // SAFETY: the block is hetmem's to map, all its pages are missing, and their bytes are in the frames.
    unsafe { map_again_over(window, block.start()) }
}

impl UserMemory {
    /// Maps anonymous memory over `block`, which is registered for missing pages already.
    pub(super) fn lift(&self, path: FaultPath, block: PageRange) -> Result<(), Errno> {
        let spare = Spare::reserve(block.pages(), MAPPING_NAME)?;
        let uffd = self.contexts.program(path);
        uffd.register(spare.range(), Mode::MISSING)?;
        let moved = if self.present(spare.range()).is_zero() {
            // SAFETY: the block is hetmem's to map, and its bytes are in frames that nobody else refers to.
            unsafe { spare.move_over(block.start()) }
        } else {
            // A page of it would be taken for one of the block.
            Err((spare, Errno::AGAIN))
        };
        moved.map_err(|(spare, errno)| {
            // So its end raises no event, which would come over what is mapped there next.
            let _ = uffd.unregister(spare.range());
            errno
        })
    }

    /// Has anonymous memory stand in for a file's mapping, in `part`, with pages that are moved from frames; `ESTALE` if that is not as the books say any
    /// more.
    pub(super) fn stand_in(
        &self,
        path: FaultPath,
        part: PageRange,
        instead: Instead,
        pages: &[(PageRange, VirtAddr)],
    ) -> Result<(), Errno> {
        let spare = Spare::reserve_for(part, STAND_IN_NAME)?;
        let uffd = self.contexts.program(path);
        uffd.register(spare.range(), Mode::MISSING)?;
        let moved = if self.present(spare.range()).is_zero() {
            let placed = pages.iter().try_for_each(|(at, frames)| {
                let to = spare.range().slice(at.start().pages_since(part.start()), at.pages());
                self.fill_spare(path, to, *frames)
            });
            // Again, as near to it as can be.
            let is_as_booked = || self.is_as_booked(part, Backing::StandIn(instead, pages)).map_err(|_| Errno::STALE);
            match placed.and_then(|()| spare.forbid_writes()).and_then(|()| is_as_booked()) {
                // SAFETY: what is mapped there is a file, which has all its bytes, or what stood in for it.
                Ok(()) => unsafe { spare.move_over(part.start()) },
                Err(errno) => Err((spare, errno)),
            }
        } else {
            // A page of it would be taken for one of the file's.
            Err((spare, Errno::AGAIN))
        };
        moved.map_err(|(spare, errno)| {
            // So its end raises no event, which would come over what is mapped there next.
            let _ = uffd.unregister(spare.range());
            errno
        })
    }

    /// Moves the pages of the frames from `frames` on to `to`, where nothing is.
    fn fill_spare(&self, path: FaultPath, to: PageRange, frames: VirtAddr) -> Result<(), Errno> {
        let mut done = PageCount::ZERO;
        let mut tries = 0;
        while done < to.pages() {
            let rest = to.slice(done, to.pages());
            // SAFETY: the source are frames of hetmem's that the engine has references to; nobody knows of the destination yet.
            let moved = unsafe {
                let (own, flags) = (OwnSide::Source, MoveFlags::DONT_WAKE);
                let from = frames.add_pages(done);
                self.contexts.program(path).move_pages_settled(
                    &self.scanner,
                    own,
                    rest.start(),
                    from,
                    rest.pages(),
                    flags,
                )
            };
            done += moved.done;
            match moved.stop {
                None => {}
                // The program is changing mappings.
                Some(Errno::AGAIN) => self.await_events(),
                Some(Errno::BUSY) if tries < BUSY_TRIES => tries += 1,
                Some(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Before a block is exchanged: whether what is mapped there is what the books say. Of a file that the program has mapped itself nobody is told when it
    /// changes that past the C library.
    ///
    /// # Errors
    ///
    /// Why the block is to stay as it is.
    pub(crate) fn is_as_booked(&self, block: PageRange, backing: Backing<'_>) -> Result<(), KeptReason> {
        let (home, is_home) = match backing {
            Backing::StandIn(Instead::OfFile(home), _) => (home, true),
            Backing::StandIn(Instead::OfStandIn(home), _) | Backing::File(home) => (home, false),
            Backing::Anonymous | Backing::Device(_) => return Ok(()),
        };
        // Of what hetmem itself has mapped nobody needs to look.
        let Some(mapped) = self.files.get(home.file).and_then(|file| file.mapped) else { return Ok(()) };
        match is_home {
            true if self.is_as_mapped(block, home, mapped) == Ok(true) => Ok(()),
            true => Err(KeptReason::Unsupported),
            // An event tells of what is there now.
            false if self.is_stand_in(block) == Ok(true) => Ok(()),
            false => Err(KeptReason::Raced),
        }
    }

    /// Whether what is mapped in `part` is that part of a file, as the program has mapped it when that came to be managed.
    fn is_as_mapped(&self, part: PageRange, home: FileHome, mapped: Mapped) -> Result<bool, Errno> {
        let Some(found) = self.mapping_at(part.start())? else { return Ok(false) };
        let is_it = mapped.is(&found, part, home.offset_at(part.start()));
        // A page of a private mapping that was written, by a debugger perhaps, or while the program had it writable unseen, is nowhere else.
        let own = ScanQuery {
            any_of: Categories::PRESENT | Categories::SWAPPED,
            all_of: Categories::FILE,
            inverted: Categories::FILE,
            report: Categories::FILE,
        };
        Ok(is_it && self.scanner.scan(part, own, &mut [Scanned::default(); 1])?.0 == 0)
    }

    /// Whether all that is mapped in `part` is anonymous memory, as what stands in for a file's mapping is.
    fn is_stand_in(&self, part: PageRange) -> Result<bool, Errno> {
        let mut at = part.start();
        while at < part.end() {
            match self.mapping_at(at)? {
                Some(found) if found.anonymous && found.range.contains(at) => at = found.range.end(),
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The mapping at `page`, or the one behind it, by the kernel's list. `ENOSYS` before Linux 6.11.
    pub(crate) fn mapping_at(&self, page: VirtAddr) -> Result<Option<Found>, Errno> {
        self.mappings.as_ref().ok_or(Errno::NOSYS)?.find(page)
    }

    /// Maps the file again, over what stands in for it in `part`.
    pub(super) fn map_file_again(&self, part: PageRange, home: FileHome) -> Result<(), Errno> {
        let file = self.files.get(home.file).ok_or(Errno::BADF)?;
        // SAFETY: what is there is what stands in for this file's mapping, whose bytes the file has.
        unsafe { file.shadow.map_over(part, home.offset_at(part.start())) }
    }

    /// Why a block was not exchanged, which is as it was.
    pub(super) fn exchange_failed(&self, block: PageRange, errno: Errno) -> KeptReason {
        // Where the program has changed it past the C library, it may have unmapped it, too.
        if errno != Errno::STALE && !is_mapped(block) {
            // Relaxed: a hint for the last word.
            self.refusal.store(errno.raw_os_error(), Ordering::Relaxed);
            self.stop_the_program(block.start(), "the kernel has unmapped its block and mapped nothing in its place");
        }
        match errno {
            Errno::NOMEM => KeptReason::NoMemory,
            Errno::AGAIN => KeptReason::Raced,
            _ => KeptReason::Unsupported,
        }
    }
}

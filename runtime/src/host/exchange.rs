//! Exchanges of a block's mapping ([`Backing`](hetmem_core::port::Backing)), each by one `mremap` over it.
#![expect(unsafe_code, reason = "maps over the program's memory")]

use std::sync::atomic::Ordering;

use hetmem_core::home::FileHome;
use hetmem_core::outcome::KeptReason;
use hetmem_core::port::{FaultPath, Host as _};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Spare, is_mapped, map_again_over};
use hetmem_sys::uffd::{Mode, MoveFlags, OwnSide};

use super::{BUSY_TRIES, MAPPING_NAME, UserMemory};

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

    /// Has anonymous memory stand in for a file's mapping, in `part`, with pages that are moved from frames.
    pub(super) fn stand_in(
        &self,
        path: FaultPath,
        part: PageRange,
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
            match placed.and_then(|()| spare.forbid_writes()) {
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

    /// Maps the file again, over what stands in for it in `part`.
    pub(super) fn map_file_again(&self, part: PageRange, home: FileHome) -> Result<(), Errno> {
        let file = self.files.get(home.file).ok_or(Errno::BADF)?;
        // SAFETY: what is there is what stands in for this file's mapping, whose bytes the file has.
        unsafe { file.shadow.map_over(part, home.offset_at(part.start())) }
    }

    /// Why a block was not exchanged, which is as it was.
    pub(super) fn exchange_failed(&self, block: PageRange, errno: Errno) -> KeptReason {
        if !is_mapped(block) {
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

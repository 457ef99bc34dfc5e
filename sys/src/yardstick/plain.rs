//! Moving pages the plain way: copied out and dropped, copied in by the kernel.
#![expect(unsafe_code, reason = "pages named by number are dropped and filled")]

use std::sync::atomic::AtomicU64;

use hetmem_core::units::PageCount;

use super::buffer::{Buffer, CopyRun};
use crate::copy::copy_pages;
use crate::errno::Errno;
use crate::mapping::{HugePages, discard};
use crate::uffd::{Access, CopyFlags, Features, Mode, OpenError, Userfaultfd};

/// A program's memory and a device's, and how a mover without `UFFDIO_MOVE` gets pages from one to the other: out, by a
/// copy and `MADV_DONTNEED`; in, by `UFFDIO_COPY`.
///
/// It has a context of its own with no event features, so that dropping pages waits for nobody: the best case.
#[derive(Debug)]
pub struct PlainMover {
    uffd: Userfaultfd,
    program: Buffer,
    device: Buffer,
    all_in: bool,
}

impl PlainMover {
    /// A mover with `program` pages in the program and `device` on the device.
    pub fn new(program: PageCount, device: PageCount) -> Result<Self, OpenError> {
        let uffd = Userfaultfd::open(Features::NONE, Access::Full)?;
        let program = Buffer::new(program, HugePages::Prefer).map_err(OpenError::Os)?;
        let device = Buffer::new(device, HugePages::Prefer).map_err(OpenError::Os)?;
        uffd.register(program.range(), Mode::MISSING).map_err(OpenError::Os)?;
        Ok(Self { uffd, program, device, all_in: true })
    }

    /// The program's memory; `None` while pages are out, as nobody serves faults on it.
    #[must_use]
    pub fn words(&self) -> Option<&[AtomicU64]> {
        self.all_in.then(|| self.program.words())
    }

    /// Moves `runs` of the program to their places on the device.
    pub fn out(&mut self, runs: &[CopyRun]) -> Result<(), Errno> {
        self.all_in = false;
        for run in runs {
            let source = self.program.part(run.from, run.pages);
            let target = self.device.part(run.to, run.pages);
            // SAFETY: parts of two buffers that are borrowed for writing.
            unsafe { copy_pages(target.start(), source.start(), run.pages) };
            // SAFETY: the contents were copied, and nobody has words of the program's memory until they are back.
            unsafe { discard(source)? };
        }
        Ok(())
    }

    /// Moves them back.
    pub fn back(&mut self, runs: &[CopyRun]) -> Result<(), Errno> {
        for run in runs {
            let target = self.program.part(run.from, run.pages);
            let source = self.device.part(run.to, run.pages);
            // SAFETY: parts of two buffers that are borrowed for writing.
            let progress = unsafe { self.uffd.copy(target.start(), source.start(), run.pages, CopyFlags::NONE) };
            if let Some(errno) = progress.stop {
                return Err(errno);
            }
        }
        self.all_in = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn contents_survive_the_plain_way() {
        let pages = PageCount::new(8);
        let mut mover = PlainMover::new(pages, pages).unwrap();
        for (i, word) in (0..).zip(mover.words().unwrap()) {
            word.store(i, Relaxed);
        }
        let runs: Vec<_> = (0..4)
            .map(|i| CopyRun { from: PageCount::new(2 * i), to: PageCount::new(i), pages: PageCount::ONE })
            .collect();
        mover.out(&runs).unwrap();
        assert!(mover.words().is_none());
        mover.back(&runs).unwrap();
        assert!((0..).zip(mover.words().unwrap()).all(|(i, word)| word.load(Relaxed) == i));
    }
}

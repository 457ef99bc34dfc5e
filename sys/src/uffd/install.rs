//! Taking pages out of a range and putting them in.
//!
//! Each operation on a run of pages ends in a [`Progress`]: how many pages are done, and what stopped it there. The
//! kernel reports a run that stopped on the way as `EAGAIN` with the bytes done, and tells the reason only to whoever
//! tries again at that place; the loop here does so, and the reason that comes out is always the definite one.
#![expect(unsafe_code, reason = "these calls change memory that is named by number")]

use std::os::fd::AsFd;

use hetmem_core::units::{PAGE_SHIFT, PageCount, PageRange, VirtAddr};

use super::abi;
use super::fd::Userfaultfd;
use crate::errno::Errno;
use crate::flags::flags;
use crate::pagemap::PagemapScanner;

flags! {
    /// How pages are moved (`UFFDIO_MOVE_MODE_*`).
    MoveFlags {
        /// Leave those asleep who wait at the destination; see [`Userfaultfd::wake`].
        DONT_WAKE = abi::UFFDIO_MOVE_MODE_DONTWAKE,
        /// Skip holes of the source and count them as moved; without it they stop the run with `ENOENT`.
        ALLOW_SRC_HOLES = abi::UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES,
    }
}

flags! {
    /// How pages are copied in (`UFFDIO_COPY_MODE_*`).
    CopyFlags {
        /// Leave those asleep who wait at the destination; see [`Userfaultfd::wake`].
        DONT_WAKE = abi::UFFDIO_COPY_MODE_DONTWAKE,
        /// Map the new pages write-protected; the destination must be registered with [`Mode::WP`](super::Mode::WP).
        WRITE_PROTECT = abi::UFFDIO_COPY_MODE_WP,
    }
}

/// Whether those who wait at the destination of an install are woken by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// They are.
    Now,
    /// They sleep until [`Userfaultfd::wake`].
    Later,
}

/// What happens to the write protection of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteProtect {
    /// Writes will be reported and wait.
    Protect,
    /// Writes go through again, and those that wait go on.
    Resolve,
    /// Writes go through again; those that wait sleep until [`Userfaultfd::wake`].
    ResolveNoWake,
}

/// How far a run of pages came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Progress {
    /// The pages done, counted from the start of the run.
    pub done: PageCount,
    /// What stopped the run at page `done`; `None` if all are done. `EAGAIN` says that an event of the context must be
    /// read first.
    pub stop: Option<Errno>,
}

impl Progress {
    /// Whether every page is done.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        self.stop.is_none()
    }
}

/// Of which side of a move nobody else changes what is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OwnSide {
    /// The source, which has a page everywhere.
    Source,
    /// The destination, which has none.
    Destination,
}

impl Userfaultfd {
    /// Moves `pages` pages from `src` to `dst` with no copy: the page at `src` becomes a hole, `dst` must be a hole
    /// in a range that is registered with this context. Huge pages move whole where both sides are aligned for it.
    ///
    /// Stops with `ENOENT` at a hole of the source, `EEXIST` at a page of the destination, `EBUSY` at a page that is
    /// shared with a forked process or pinned, `EINVAL` where a mapping is not private, anonymous and writable, or the
    /// two differ in protection or `mlock` state.
    ///
    /// `ENOENT` is also the answer where nothing at all is mapped at `dst`; with [`MoveFlags::ALLOW_SRC_HOLES`] it is that only.
    ///
    /// *Erratum:* since Linux 6.18 a page that took the kernel a second attempt is moved and then reported as `EEXIST` at that
    /// page (`mm/userfaultfd.c`, `move_pages`: the `EAGAIN` of the first attempt outlives the second), or as `EAGAIN` if a change of a
    /// mapping begins meanwhile. Two threads that move pages of one huge page are enough, or one that writes to the page.
    /// [`Self::move_pages_settled`] tells such a page from one that was not moved.
    ///
    /// *Erratum:* before Linux 6.18 the call does not come back while a page is of a larger one that somebody has references to (a buffer registered
    /// with io_uring, say), and it would have to be divided: since not all of it is asked for, or the destination has room for small ones only
    /// (`mm/userfaultfd.c`, `move_pages_pte`: `split_folio` fails with `EAGAIN`, which `move_pages` takes for a call to try again). See
    /// [`ends_where_nothing_can_be_split`].
    ///
    /// # Safety
    ///
    /// Either nobody reads or writes `src` through a reference until a page with the right contents is back there, or
    /// touches of `src` are trapped until then. `dst` must be memory that the caller may store to.
    pub unsafe fn move_pages(&self, dst: VirtAddr, src: VirtAddr, pages: PageCount, flags: MoveFlags) -> Progress {
        run(pages, |done, rest| {
            let mut arg = abi::UffdioMove {
                dst: dst.add_pages(done).get(),
                src: src.add_pages(done).get(),
                len: rest.bytes().get(),
                mode: flags.bits(),
                moved: 0,
            };
            // SAFETY: number and type belong together; the caller answers for both ranges.
            let result = unsafe { abi::call::<{ abi::UFFDIO_MOVE }, _>(self.as_fd(), &mut arg) };
            (result, arg.moved)
        })
    }

    /// [`Self::move_pages`], with the erratum made good: whether a page has moved that the kernel reports as refused is told by the
    /// side that is the caller's `own`, where nothing but this call puts or takes pages. The other may have lost the page again, or have been given
    /// another.
    ///
    /// # Safety
    ///
    /// As for [`Self::move_pages`].
    pub unsafe fn move_pages_settled(
        &self,
        pagemap: &PagemapScanner,
        own: OwnSide,
        dst: VirtAddr,
        src: VirtAddr,
        pages: PageCount,
        flags: MoveFlags,
    ) -> Progress {
        let mut done = PageCount::ZERO;
        loop {
            let (to, from) = (dst.add_pages(done), src.add_pages(done));
            // SAFETY: the caller answers for both ranges.
            let progress = unsafe { self.move_pages(to, from, pages - done, flags) };
            done += progress.done;
            let [to, from] = [to, from].map(|start| PageRange::page_of(start.add_pages(progress.done)));
            let has_moved = match (own, progress.stop) {
                // By `ENOENT` where the page is gone again from where the first attempt put it.
                (OwnSide::Source, Some(Errno::EXIST | Errno::AGAIN | Errno::NOENT)) => {
                    pagemap.is_there(from) == Ok(false)
                }
                // Nor is a page taken for the one that was to come while that is still where it was. (A marker can't be told from a page in
                // swap before Linux 6.15, and so before the erratum.)
                (OwnSide::Destination, Some(Errno::EXIST | Errno::AGAIN)) => {
                    let is_left = match pagemap.tells_guards() {
                        true => pagemap.is_page(from.start()),
                        false => pagemap.is_there(from),
                    };
                    is_left == Ok(false) && pagemap.is_there(to) == Ok(true)
                }
                _ => false,
            };
            if !has_moved {
                return Progress { done, stop: progress.stop };
            }
            if !flags.contains(MoveFlags::DONT_WAKE) {
                // The only error is a malformed range.
                let _ = self.wake(to);
            }
            done += PageCount::ONE;
            if done == pages {
                return Progress { done, stop: None };
            }
        }
    }

    /// Fills `pages` holes from `dst` on with copies of the pages at `src`. The destination may have any protection; it
    /// must be registered with this context, which may be a forked child's. Stops with `EEXIST` at a page of the
    /// destination, `EFAULT` where the source can't be read, `ESRCH` if the process has ended, `ENOENT` or `EINVAL`
    /// where the destination is not registered.
    ///
    /// # Safety
    ///
    /// `dst` must be memory that the caller may store to, of the process that the context belongs to. `src` must be
    /// memory that the caller may load from and that nobody stores to meanwhile.
    pub unsafe fn copy(&self, dst: VirtAddr, src: VirtAddr, pages: PageCount, flags: CopyFlags) -> Progress {
        run(pages, |done, rest| {
            let mut arg = abi::UffdioCopy {
                dst: dst.add_pages(done).get(),
                src: src.add_pages(done).get(),
                len: rest.bytes().get(),
                mode: flags.bits(),
                copy: 0,
            };
            // SAFETY: number and type belong together; the caller answers for both ranges.
            let result = unsafe { abi::call::<{ abi::UFFDIO_COPY }, _>(self.as_fd(), &mut arg) };
            (result, arg.copy)
        })
    }

    /// Fills the holes of `range` with the zero page. Stops with `EEXIST` at a page that is there.
    ///
    /// # Safety
    ///
    /// `range` must be memory whose contents, where it has holes, are zeros.
    pub unsafe fn zeropage(&self, range: PageRange, wake: Wake) -> Progress {
        let mode = match wake {
            Wake::Now => 0,
            Wake::Later => abi::UFFDIO_ZEROPAGE_MODE_DONTWAKE,
        };
        run(range.pages(), |done, rest| {
            let mut arg = abi::UffdioZeropage { range: range.slice(done, rest).into(), mode, zeropage: 0 };
            // SAFETY: number and type belong together; the caller answers for the range.
            let result = unsafe { abi::call::<{ abi::UFFDIO_ZEROPAGE }, _>(self.as_fd(), &mut arg) };
            (result, arg.zeropage)
        })
    }

    /// Makes every later touch of the holes of `range` end in SIGBUS, as on memory that the hardware lost, and wakes
    /// those that wait there. Stops with `EEXIST` at a page that is there.
    ///
    /// # Safety
    ///
    /// The contents of `range` are lost for good, and whoever touches it is to be stopped.
    pub unsafe fn poison(&self, range: PageRange) -> Progress {
        run(range.pages(), |done, rest| {
            let mut arg = abi::UffdioPoison { range: range.slice(done, rest).into(), mode: 0, updated: 0 };
            // SAFETY: number and type belong together; the caller answers for the range.
            let result = unsafe { abi::call::<{ abi::UFFDIO_POISON }, _>(self.as_fd(), &mut arg) };
            (result, arg.updated)
        })
    }

    /// Lets everybody who waits in `range` try again.
    pub fn wake(&self, range: PageRange) -> Result<(), Errno> {
        let mut arg = abi::UffdioRange::from(range);
        // SAFETY: number and type belong together; whoever wakes touches its page again and may wait again.
        unsafe { abi::call::<{ abi::UFFDIO_WAKE }, _>(self.as_fd(), &mut arg) }
    }

    /// Write-protects `range`, or ends that. The range must be registered with [`Mode::WP`](super::Mode::WP), else
    /// `ENOENT`. `EAGAIN` says that an event of the context must be read first.
    pub fn write_protect(&self, range: PageRange, what: WriteProtect) -> Result<(), Errno> {
        let mode = match what {
            WriteProtect::Protect => abi::UFFDIO_WRITEPROTECT_MODE_WP,
            WriteProtect::Resolve => 0,
            WriteProtect::ResolveNoWake => abi::UFFDIO_WRITEPROTECT_MODE_DONTWAKE,
        };
        rustix::io::retry_on_intr(|| {
            let mut arg = abi::UffdioWriteprotect { range: range.into(), mode };
            // SAFETY: number and type belong together; writes wait or go on, contents don't change.
            unsafe { abi::call::<{ abi::UFFDIO_WRITEPROTECT }, _>(self.as_fd(), &mut arg) }
        })
    }
}

/// Whether this kernel's MOVE of a part of a huge page that can't be divided ends (with `EBUSY`); see [`Userfaultfd::move_pages`].
#[must_use]
pub fn ends_where_nothing_can_be_split() -> bool {
    crate::probe::kernel_release().is_at_least(6, 18)
}

/// Makes `attempt` on what is left of `pages` pages until all are done or the kernel says why not. An attempt gets
/// the pages done and those left, and returns the ioctl's result and its count of bytes done.
fn run(pages: PageCount, mut attempt: impl FnMut(PageCount, PageCount) -> (Result<(), Errno>, i64)) -> Progress {
    let mut done = PageCount::ZERO;
    while done < pages {
        let (result, bytes) = attempt(done, pages - done);
        let advanced = PageCount::new(u64::try_from(bytes).unwrap_or(0) >> PAGE_SHIFT);
        match result {
            Ok(()) => done = pages,
            Err(_) if !advanced.is_zero() => done += advanced,
            // Only a fatal signal interrupts these calls; the thread ends on its way out of the kernel.
            Err(Errno::INTR) => {}
            Err(errno) => return Progress { done, stop: Some(errno) },
        }
    }
    Progress { done, stop: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs ten pages against scripted answers; returns the progress and the (done, rest) of each attempt.
    fn scripted(answers: &[(Result<(), Errno>, i64)]) -> (Progress, Vec<(u64, u64)>) {
        let mut asked = Vec::new();
        let mut answers = answers.iter();
        let progress = run(PageCount::new(10), |done, rest| {
            asked.push((done.get(), rest.get()));
            *answers.next().expect("no more attempts than answers")
        });
        (progress, asked)
    }

    #[test]
    fn a_whole_run_is_one_attempt() {
        let (progress, asked) = scripted(&[(Ok(()), 40960)]);
        assert_eq!(progress, Progress { done: PageCount::new(10), stop: None });
        assert_eq!(asked, [(0, 10)]);
    }

    #[test]
    fn a_partial_run_is_asked_again_for_the_definite_reason() {
        let (progress, asked) = scripted(&[(Err(Errno::AGAIN), 3 * 4096), (Err(Errno::BUSY), -16)]);
        assert_eq!(progress, Progress { done: PageCount::new(3), stop: Some(Errno::BUSY) });
        assert_eq!(asked, [(0, 10), (3, 7)]);
    }

    #[test]
    fn again_without_progress_is_definite_and_interruption_is_not() {
        let (progress, asked) = scripted(&[(Err(Errno::INTR), -4), (Err(Errno::AGAIN), -11)]);
        assert_eq!(progress, Progress { done: PageCount::ZERO, stop: Some(Errno::AGAIN) });
        assert_eq!(asked.len(), 2);
    }

    #[test]
    fn an_empty_run_asks_nothing() {
        assert!(run(PageCount::ZERO, |_, _| unreachable!("nothing to do")).is_complete());
    }
}

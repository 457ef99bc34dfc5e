//! A device: its frames, how the program reaches them, and how bytes get into and out of them.
//!
//! Bytes move by [`Transfer`]s, any number at a time, so that a device with a queue works on all of them at once:
//!
//! ```text
//! Device::transfer(batch)   on return every one is done: a migration's, which waits with no lock held
//! Device::submit(batch)     some may be under way on return: a fault's, whose thread serves others meanwhile
//!         └── completions() says which have ended, once completion_descriptor() is readable
//! ```
//!
//! A device that copies by itself while it is asked implements [`Device::transfer`], and leaves the other two as they are.

use std::os::fd::BorrowedFd;

use crate::frames::{FrameRun, Quota};
use crate::physmap::Pagemap;
use crate::units::{PageCount, PageRange, VirtAddr};

/// How the program and migrations reach the frames of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// They are anonymous pages of this process, all frames in order from this address on while the program doesn't map them. They are moved into the
    /// program and used in place.
    Movable(VirtAddr),
    /// They are memory of this process that is mapped shared, all frames in order from this address on, whose pages can't be moved: blocks of it are
    /// laid over the program's and used in place.
    Laid(VirtAddr),
    /// Only transfers reach them. The program doesn't: a touch brings the page home.
    Copied,
}

impl Reach {
    /// Where the frames lie, if they can be moved.
    #[inline]
    #[must_use]
    pub const fn movable(self) -> Option<VirtAddr> {
        match self {
            Self::Movable(start) => Some(start),
            Self::Laid(_) | Self::Copied => None,
        }
    }

    /// Where the frames lie, if they are laid over the program's pages.
    #[inline]
    #[must_use]
    pub const fn laid(self) -> Option<VirtAddr> {
        match self {
            Self::Laid(start) => Some(start),
            Self::Movable(_) | Self::Copied => None,
        }
    }

    /// Where the frames lie, if the program uses them in place.
    #[inline]
    #[must_use]
    pub const fn in_place(self) -> Option<VirtAddr> {
        match self {
            Self::Movable(start) | Self::Laid(start) => Some(start),
            Self::Copied => None,
        }
    }
}

/// Which way a transfer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From memory of this process into frames of the device.
    In,
    /// From frames of the device into memory of this process.
    Out,
}

/// What whoever submits a transfer knows it by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Ticket(u64);

impl Ticket {
    /// The ticket `raw`.
    #[inline]
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number that it was made of.
    #[inline]
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A copy between frames of a device and memory of this process, page by page in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Which way.
    pub direction: Direction,
    /// The frames. Whoever asks has references to them, or sees to it that nobody frees them.
    pub frames: FrameRun,
    /// Where the pages are that take or give the bytes: not the program's, and nobody else's until the transfer is done.
    pub memory: VirtAddr,
    /// What [`Device::completions`] calls it.
    pub ticket: Ticket,
    /// How far it is; written by the device.
    pub progress: Progress,
}

impl Transfer {
    /// Has the frames of `to` filled from the pages from `from` on.
    #[inline]
    #[must_use]
    pub const fn into_frames(to: FrameRun, from: VirtAddr) -> Self {
        Self::new(Direction::In, to, from)
    }

    /// Has the pages from `to` on filled from the frames of `from`.
    #[inline]
    #[must_use]
    pub const fn out_of_frames(from: FrameRun, to: VirtAddr) -> Self {
        Self::new(Direction::Out, from, to)
    }

    #[inline]
    const fn new(direction: Direction, frames: FrameRun, memory: VirtAddr) -> Self {
        Self { direction, frames, memory, ticket: Ticket::new(0), progress: Progress::Waiting }
    }

    /// This transfer, known by `ticket`.
    #[inline]
    #[must_use]
    pub const fn with_ticket(self, ticket: Ticket) -> Self {
        Self { ticket, ..self }
    }

    /// What came of it.
    ///
    /// # Errors
    ///
    /// Why the bytes are not where they should be.
    ///
    /// # Panics
    ///
    /// If the device has not done it, though it said it had.
    #[inline]
    pub fn result(&self) -> Result<(), TransferError> {
        match self.progress {
            Progress::Done(result) => result,
            Progress::Waiting | Progress::UnderWay => panic!("a device does every transfer that it is given"),
        }
    }
}

/// How far a transfer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The device has not looked at it.
    Waiting,
    /// [`Device::completions`] will say what came of it.
    UnderWay,
    /// It has ended.
    Done(Result<(), TransferError>),
}

/// Why a transfer has failed. What it should have filled has undefined contents; what it should have read is unharmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TransferError {
    /// The device has frames left, but no room for what is in the pages. Only of [`Direction::In`].
    #[error("the device has no room for the page's contents")]
    Full,
    /// The transfer may succeed when it is tried again.
    #[error("the device reported an error while it copied")]
    Transient,
    /// The frames' contents are lost: it is of no use to try again.
    #[error("the device has lost the page's contents")]
    Lost,
}

/// A device has frames, but at present no memory behind them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no memory behind the device's frames")]
pub struct NoBacking;

/// How pages are packed that a device keeps in less memory than they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Packing {
    /// The pages that it has.
    pub pages: u64,
    /// Those of them that are one word over and over, and take no memory.
    pub same_filled_pages: u64,
    /// Those that are kept as they are, as they can hardly be packed.
    pub raw_pages: u64,
    /// What all pages are together, packed.
    pub packed_bytes: u64,
    /// The memory that was taken for them, which may have room for more.
    pub memory_bytes: u64,
    /// The most that was taken at a time.
    pub peak_memory_bytes: u64,
    /// How much may be taken.
    pub memory_limit_bytes: u64,
    /// How many packed pages were moved, to give memory back or to have it for others.
    pub compacted_pages: u64,
}

/// Where a page is that is not in its device's memory any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Astray {
    /// In other memory, or nobody can say.
    Elsewhere,
    /// Nowhere: dropped, written to swap, or the page of zeros that all share.
    Nowhere,
}

/// A device. Its methods are called from several threads at a time, never for the same frames.
///
/// None of them may allocate from, or touch, memory of the program: it may be away, and whoever would bring it home may be the caller.
pub trait Device: Send + Sync {
    /// Its frames' descriptors.
    fn pagemap(&self) -> &Pagemap;

    /// How its frames are reached; always the same. [`Reach::Copied`] if and only if the device is private.
    fn reach(&self) -> Reach;

    /// Where frame 0 lies for code that runs on the device, if such code runs in this process, all frames in order after it. Only who refers to
    /// a frame may use it there, and a coherent one only while the program doesn't map it.
    fn device_side(&self) -> Option<VirtAddr> {
        None
    }

    /// Where frame 0 can be read by this process and its kernel, all frames in order after it, if nothing is gained by a transfer: pages of a private
    /// device that are touched are copied into the program from there, in one step, and so are pages that go home for which there is none to be used
    /// again.
    fn readable(&self) -> Option<VirtAddr> {
        None
    }

    /// Whether its frames are anonymous memory of this process, populated when one is first used, and kept so: they are among what the process has.
    fn is_kept_populated(&self) -> bool {
        false
    }

    /// Makes frames of `run`, which were just allocated, ready to be filled by whatever copies into them. The result is how many were
    /// elsewhere than on the device: somebody had moved their pages behind its back.
    ///
    /// # Errors
    ///
    /// [`NoBacking`] if there is no memory behind some of them now; then nothing of a page is in any of them, and the run is given back.
    fn prepare(&self, run: FrameRun) -> Result<PageCount, NoBacking> {
        let _ = run;
        Ok(PageCount::ZERO)
    }

    /// How many more pages it is likely to have room for, if that may be fewer than it has free frames: where it keeps them in less memory than they are.
    /// Policies plan no more, and pages that there is no room for are refused all the same ([`TransferError::Full`]).
    fn room(&self) -> PageCount {
        self.pagemap().frames.capacity()
    }

    /// How its pages are packed, if it packs them.
    fn packing(&self) -> Option<Packing> {
        None
    }

    /// From now on memory for packed pages is taken as far as `quota` has some; said before any page is there.
    #[doc(hidden)]
    fn count_memory_with_others(&self, quota: Box<dyn Quota>) {
        let _ = quota;
    }

    /// Carries out all of `batch`, and returns when every one is [`Progress::Done`]. Each is for itself: one that fails changes nothing for the
    /// others. The caller holds no lock that a fault needs.
    fn transfer(&self, batch: &mut [Transfer]);

    /// Begins all of `batch`, and leaves each [`Progress::Done`] or [`Progress::UnderWay`]. Called by the thread that serves faults, for pages that
    /// somebody waits for; it doesn't wait for the device, and neither allocates nor blocks. At most [`MAX_UNDER_WAY`](crate::fault::MAX_UNDER_WAY)
    /// are under way at a time.
    fn submit(&self, batch: &mut [Transfer]) {
        self.transfer(batch);
    }

    /// Calls `visit` with each transfer that was under way and has ended since the last call, once for each. Called by the thread that submits.
    fn completions(&self, visit: &mut dyn FnMut(Ticket, Result<(), TransferError>)) {
        let _ = visit;
    }

    /// A descriptor that is readable while [`Device::completions`] has something to say, if [`Device::submit`] ever leaves a transfer under way; open
    /// and the same as long as the device lives.
    fn completion_descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Nobody refers to the frames of `run` any more, and their contents are of no use: a device that keeps something for them lets go of it. Called
    /// once for each time that a frame was allocated, before it can be allocated again, and with locks held: the device is quick, and takes none that
    /// it holds elsewhere while it waits for anything.
    fn released(&self, run: FrameRun) {
        let _ = run;
    }

    /// Makes the frames of `run`, which nobody uses, read as zeros: nothing of a page is left where it was. Called some time after
    /// [`Device::released`], for frames that were not allocated again meanwhile.
    fn clear(&self, run: FrameRun);

    /// Calls `visit` with each page of `range`, all mapped by the program from frames of this device, that is not in the device's memory
    /// any more. Called with the gate and a block held. Nobody moves pages of devices that have memory of hetmem's own.
    fn astray(&self, range: PageRange, visit: &mut dyn FnMut(VirtAddr, Astray)) {
        let _ = (range, visit);
    }
}

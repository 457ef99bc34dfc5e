//! Pages in a file on a disk: a private device for programs that need more memory than their machine has.
//!
//! ```text
//! stretch   batches, cut into what is read or written at once
//! sums      a checksum for each frame, in memory
//! room      how far the file has room on the disk
//! desk      batches that are waited for: many reads and writes under way at a time
//! late      reads that nobody waits for here: a fault's
//! alone     what has failed, once more by itself
//! kind      what `file=FOLDER` means, and what is refused
//! ```
//!
//! Each process has an unnamed file of its own in the folder, which nobody else can open by a name and which is gone with its last descriptor. A frame is
//! a page of it. Pages go there and back past the page cache, from and to the places where hetmem has them: nothing is copied, and nothing allocated.
//! Each page that comes back is checked against its sum, so that a disk that errs stops the program, and is never believed.
//!
//! What is read or written in part, or not at all, is done once more by itself, transfer by transfer, so that each has a result of its own.
//!
//! *Limits:* the disk keeps the bytes of pages until its file system uses the place again, as swap does. Nothing is encrypted.

mod alone;
mod desk;
mod kind;
mod late;
mod room;
mod stretch;
mod sums;

use std::os::fd::{AsFd as _, BorrowedFd};

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::{MemoryType, Owner, Pagemap};
use hetmem_core::port::{Device, Direction, NoBacking, Progress, Reach, Ticket, Transfer, TransferError};
use hetmem_core::units::{DeviceId, PAGE_SIZE, PageCount};
use hetmem_sys::aio::{Queue, Request};
use hetmem_sys::errno::Errno;
use hetmem_sys::scratch::{NoSizeSignal, Scratch};

use crate::kind::MakeError;
use crate::spec::DeviceSpec;
use desk::Desks;
pub(crate) use kind::FileKind;
use late::{Late, Read};
use room::Room;
use stretch::{Cut, Stretch};
use sums::Sums;

/// So many stretches are begun at a time.
const AT_ONCE: usize = 16;

/// A device whose frames are pages of an unnamed file.
pub struct FileStore {
    pagemap: Pagemap,
    file: Scratch,
    room: Room,
    sums: Sums,
    desks: Desks,
    late: Late,
    #[cfg(test)]
    trouble: tests::Trouble,
}

/// What is asked of the disk: tests have each of them fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Reserve,
    Begin,
    Read,
    Write,
}

impl Step {
    const fn of(direction: Direction) -> Self {
        match direction {
            Direction::In => Self::Write,
            Direction::Out => Self::Read,
        }
    }
}

impl FileStore {
    /// The device that `spec` describes, with `device` as its id and `owner` as the owner of its pages.
    ///
    /// # Errors
    ///
    /// If no such file can be made in the folder, or the host has no address space for the books.
    pub fn new(device: DeviceId, owner: Owner, spec: &DeviceSpec) -> Result<Self, MakeError> {
        let frames = spec.size.whole_pages().ok_or(Errno::INVAL)?;
        let file = Scratch::create(spec.backend.argument()).map_err(|why| MakeError::Unsuitable(why.to_string()))?;
        Ok(Self {
            pagemap: Pagemap::new(device, MemoryType::DevicePrivate, owner, frames),
            file,
            room: Room::new(frames),
            sums: Sums::new(frames)?,
            desks: Desks::new(),
            late: Late::new()?,
            #[cfg(test)]
            trouble: tests::Trouble::default(),
        })
    }

    /// Sees to it that the frames of `run` can have something.
    fn make_room(&self, run: FrameRun) -> Result<(), Errno> {
        let end = u64::from(run.first.get()) + run.pages.get();
        self.room.extend(end, |from, to| {
            self.sums.open(to)?;
            let _held = NoSizeSignal::hold();
            let reserved = self.file.reserve(from * PAGE_SIZE, to * PAGE_SIZE);
            self.outcome(Step::Reserve, reserved.map(|()| 0)).map(drop)
        })
    }

    /// Whether all of `stretch` has come, or gone, if so many bytes have; what has come is looked at.
    #[expect(unsafe_code, reason = "looks at pages that are named by number")]
    fn is_whole(&self, stretch: &Stretch, bytes: Result<usize, Errno>) -> bool {
        let bytes = self.outcome(Step::of(stretch.direction), bytes);
        if bytes != Ok(stretch.bytes()) {
            return false;
        }
        stretch.direction == Direction::In
            || stretch.by_frame().all(|(frame, piece)| {
                // SAFETY: by the contract of the trait pages of hetmem's, which nobody else uses meanwhile; the disk has done.
                unsafe { self.sums.check(frame, piece) }.is_ok()
            })
    }

    /// Notes what the frames of `stretch` are about to have.
    #[expect(unsafe_code, reason = "reads pages that are named by number")]
    fn note(&self, stretch: &Stretch) {
        for (frame, piece) in stretch.by_frame().filter(|_| stretch.direction == Direction::In) {
            // SAFETY: by the contract of the trait pages of hetmem's, which nobody else uses meanwhile; the disk only reads them.
            unsafe { self.sums.note(frame, piece) };
        }
    }

    /// What came of a step of which the kernel says `result`.
    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests ask it")]
    fn outcome(&self, _step: Step, result: Result<usize, Errno>) -> Result<usize, Errno> {
        result
    }

    #[cfg(test)]
    fn outcome(&self, step: Step, result: Result<usize, Errno>) -> Result<usize, Errno> {
        self.trouble.outcome(step, result)
    }

    /// Begins a fault's reads, as far as there is room for them. Says whether there may be more.
    fn begin(&self, batch: &mut [Transfer]) -> bool {
        let late = &self.late;
        let mut cut = Cut::default();
        let mut begun: [Option<(usize, Stretch)>; AT_ONCE] = [None; AT_ONCE];
        let mut count = 0;
        while count < begun.len()
            && let Some(stretch) = cut.next(batch)
        {
            let (first, last) = stretch.transfers;
            let whole: PageCount = batch[first..=last].iter().map(|transfer| transfer.frames.pages).sum();
            // What is divided is no fault's.
            if whole != stretch.pages() {
                continue;
            }
            let Some(number) = late.add(Read::of(stretch, batch)) else { break };
            batch[first..=last].iter_mut().for_each(|transfer| transfer.progress = Progress::UnderWay);
            begun[count] = Some((number, stretch));
            count += 1;
        }
        let mut requests = [Request::NONE; AT_ONCE];
        for (request, (number, stretch)) in requests.iter_mut().zip(begun.iter().flatten()) {
            *request = stretch.request(*number as u64);
        }
        let accepted = self.submit_to(&late.queue, &requests[..count]);
        for (number, stretch) in begun[accepted..count].iter().flatten() {
            late.take(*number);
            let (first, last) = stretch.transfers;
            batch[first..=last].iter_mut().for_each(|transfer| transfer.progress = Progress::Waiting);
        }
        accepted == AT_ONCE
    }

    /// Begins `requests`, and says how many.
    #[expect(unsafe_code, reason = "pages that are named by number")]
    fn submit_to(&self, queue: &Queue, requests: &[Request<'_>]) -> usize {
        if requests.is_empty() || self.outcome(Step::Begin, Ok(0)).is_err() {
            return 0;
        }
        // SAFETY: by the contract of the trait pages of hetmem's, which nobody else uses until their transfers are done.
        unsafe { queue.submit(self.file.as_fd(), requests) }
    }
}

impl Device for FileStore {
    fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    fn reach(&self) -> Reach {
        Reach::Copied
    }

    fn prepare(&self, run: FrameRun) -> Result<PageCount, NoBacking> {
        self.make_room(run).map_err(|_| NoBacking)?;
        Ok(PageCount::ZERO)
    }

    fn room(&self) -> PageCount {
        self.room.left(self.pagemap.frames.used())
    }

    fn transfer(&self, batch: &mut [Transfer]) {
        let is_in = |transfer: &Transfer| transfer.direction == Direction::In;
        let _held = batch.iter().any(is_in).then(NoSizeSignal::hold);
        for transfer in batch.iter_mut().filter(|transfer| is_in(transfer)) {
            // There is by now, but for a caller who doesn't ask to prepare.
            if self.make_room(transfer.frames).is_err() {
                transfer.progress = Progress::Done(Err(TransferError::Full));
            }
        }
        self.carry_out(batch);
        for transfer in batch.iter_mut() {
            match transfer.progress {
                Progress::Waiting => transfer.progress = Progress::Done(Ok(())),
                Progress::UnderWay => transfer.progress = Progress::Done(self.alone(transfer)),
                Progress::Done(_) => {}
            }
        }
    }

    fn submit(&self, batch: &mut [Transfer]) {
        if batch.iter().all(|transfer| transfer.direction == Direction::Out) {
            while self.begin(batch) {}
        }
        for transfer in batch.iter_mut().filter(|transfer| transfer.progress == Progress::Waiting) {
            self.transfer(std::slice::from_mut(transfer));
        }
    }

    fn completions(&self, visit: &mut dyn FnMut(Ticket, Result<(), TransferError>)) {
        let late = &self.late;
        late.queue.ended(&mut |number, bytes| {
            // A read that ends is one that was begun, once.
            let Some(Read { stretch, tickets }) = usize::try_from(number).ok().and_then(|number| late.take(number))
            else {
                return;
            };
            let is_whole = self.is_whole(&stretch, bytes);
            for ((frame, piece), ticket) in stretch.by_frame().zip(tickets) {
                visit(ticket, if is_whole { Ok(()) } else { self.read_alone(frame, piece) });
            }
        });
    }

    fn completion_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.late.queue.descriptor()
    }

    fn clear(&self, run: FrameRun) {
        self.sums.forget(run);
    }
}

#[cfg(test)]
mod tests;

//! Batches, cut into what is read or written at once.

use hetmem_core::port::{Direction, Progress, Transfer};
use hetmem_core::units::{PAGE_SIZE, PageCount};
use hetmem_sys::aio::{Operation, Request};
use hetmem_sys::scratch::Piece;

/// As much is read or written at once: a quarter of a block, so that the first pages of one are looked at while others are on their way.
const MOST: PageCount = PageCount::new(128);

/// Pages whose frames follow one another, wherever they are in memory.
#[derive(Clone, Copy)]
pub(super) struct Stretch {
    pub(super) direction: Direction,
    /// The first frame.
    pub(super) first: u32,
    pieces: [Piece; Piece::MOST],
    len: usize,
    /// The transfers that it is of, or of which it is a part: from this one on.
    pub(super) transfers: (usize, usize),
}

impl Stretch {
    /// Where its pages are, in the order of their frames.
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces[..self.len]
    }

    pub(super) fn pages(&self) -> PageCount {
        self.pieces().iter().map(|piece| piece.pages()).sum()
    }

    pub(super) fn bytes(&self) -> usize {
        self.pages().bytes().as_usize()
    }

    /// Each piece, with its first frame.
    pub(super) fn by_frame(&self) -> impl Iterator<Item = (u32, Piece)> {
        let mut frame = self.first;
        self.pieces().iter().map(move |piece| {
            let first = frame;
            frame += u32::try_from(piece.pages().get()).unwrap_or(u32::MAX);
            (first, *piece)
        })
    }

    /// Where in the file it begins.
    pub(super) fn offset(&self) -> u64 {
        u64::from(self.first) * PAGE_SIZE
    }

    pub(super) fn request(&self, tag: u64) -> Request<'_> {
        let operation = match self.direction {
            Direction::In => Operation::Write,
            Direction::Out => Operation::Read,
        };
        Request { operation, pieces: self.pieces(), offset: self.offset(), tag }
    }
}

/// How far a batch is cut. Transfers that are not [`Progress::Waiting`] are passed by; one that is larger than [`MOST`] is divided, any other is not.
#[derive(Default)]
pub(super) struct Cut {
    transfer: usize,
    page: PageCount,
}

impl Cut {
    /// The next stretch.
    pub(super) fn next(&mut self, batch: &[Transfer]) -> Option<Stretch> {
        let is_passed = |transfer: &Transfer| transfer.progress != Progress::Waiting || transfer.frames.pages.is_zero();
        while batch.get(self.transfer).is_some_and(is_passed) {
            *self = Self { transfer: self.transfer + 1, page: PageCount::ZERO };
        }
        let begin = batch.get(self.transfer)?;
        let mut stretch = Stretch {
            direction: begin.direction,
            first: begin.frames.slice(self.page, PageCount::ONE).first.get(),
            pieces: [Piece::NONE; Piece::MOST],
            len: 0,
            transfers: (self.transfer, self.transfer),
        };
        let mut pages = PageCount::ZERO;
        while let Some(transfer) = batch.get(self.transfer)
            && !is_passed(transfer)
            && transfer.direction == stretch.direction
            && stretch.len < Piece::MOST
        {
            let left = transfer.frames.pages - self.page;
            let frames = transfer.frames.slice(self.page, left);
            let follows = u64::from(frames.first.get()) == u64::from(stretch.first) + pages.get();
            let fits = pages + left <= MOST;
            if !follows || !(fits || pages.is_zero()) {
                break;
            }
            let taken = left.min(MOST);
            stretch.pieces[stretch.len] = Piece::new(transfer.memory.add_pages(self.page), taken);
            stretch.len += 1;
            stretch.transfers.1 = self.transfer;
            pages += taken;
            if taken < left {
                self.page += taken;
                break;
            }
            *self = Self { transfer: self.transfer + 1, page: PageCount::ZERO };
        }
        Some(stretch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hetmem_core::frames::FrameRun;
    use hetmem_core::units::{FrameIndex, VirtAddr};

    fn transfer(direction: Direction, first: u32, pages: u64, memory: u64) -> Transfer {
        let frames = FrameRun { first: FrameIndex::new(first), pages: PageCount::new(pages) };
        let memory = VirtAddr::new(memory * PAGE_SIZE);
        match direction {
            Direction::In => Transfer::into_frames(frames, memory),
            Direction::Out => Transfer::out_of_frames(frames, memory),
        }
    }

    /// First frame, pages, pieces and transfers of each stretch.
    fn cut(batch: &[Transfer]) -> Vec<(u32, u64, usize, (usize, usize))> {
        let mut cut = Cut::default();
        std::iter::from_fn(|| cut.next(batch))
            .map(|stretch| (stretch.first, stretch.pages().get(), stretch.pieces().len(), stretch.transfers))
            .collect()
    }

    #[test]
    fn what_follows_one_another_in_the_file_goes_together_and_blocks_go_by_quarters() {
        use Direction::{In, Out};
        let singles: Vec<_> = (0..20).map(|i| transfer(Out, 100 + i, 1, u64::from(i) * 7)).collect();
        assert_eq!(cut(&singles), [(100, 16, 16, (0, 15)), (116, 4, 4, (16, 19))]);
        let apart = [transfer(Out, 5, 2, 0), transfer(Out, 8, 1, 9), transfer(In, 9, 1, 4), transfer(In, 10, 120, 20)];
        assert_eq!(cut(&apart), [(5, 2, 1, (0, 0)), (8, 1, 1, (1, 1)), (9, 121, 2, (2, 3))]);
        let block = [transfer(In, 0, 512, 0), transfer(In, 512, 1, 0)];
        let quarter = |at: u32| (at * 128, 128, 1, (0, 0));
        assert_eq!(cut(&block), [quarter(0), quarter(1), quarter(2), quarter(3), (512, 1, 1, (1, 1))]);
        let mut passed = apart;
        passed[0].progress = Progress::Done(Ok(()));
        passed[2].progress = Progress::UnderWay;
        assert_eq!(cut(&passed), [(8, 1, 1, (1, 1)), (10, 120, 1, (3, 3))]);
        let together = [transfer(In, 0, 100, 0), transfer(In, 100, 100, 0)];
        assert_eq!(cut(&together), [(0, 100, 1, (0, 0)), (100, 100, 1, (1, 1))], "neither is divided");
    }
}

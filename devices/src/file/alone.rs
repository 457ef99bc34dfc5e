//! Transfers that are done by themselves, and waited for: what was read or written in part, refused, or is wrong, once more.

use hetmem_core::port::{Direction, Transfer, TransferError};
use hetmem_core::units::{PAGE_SIZE, PageCount};
use hetmem_sys::errno::Errno;
use hetmem_sys::scratch::Piece;

use super::{FileStore, Step};

impl FileStore {
    /// Carries out one transfer.
    pub(super) fn alone(&self, transfer: &Transfer) -> Result<(), TransferError> {
        let Transfer { direction, frames, memory, .. } = *transfer;
        let piece = Piece::new(memory, frames.pages);
        match direction {
            Direction::In => self.write_alone(frames.first.get(), piece),
            Direction::Out => self.read_alone(frames.first.get(), piece),
        }
    }

    #[expect(unsafe_code, reason = "reads pages that are named by number")]
    fn write_alone(&self, first: u32, piece: Piece) -> Result<(), TransferError> {
        // SAFETY: by the contract of the trait pages of hetmem's, which nobody else uses meanwhile.
        unsafe { self.sums.note(first, piece) };
        self.go_through(Direction::In, first, piece).map_err(|errno| match errno {
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => TransferError::Full,
            _ => TransferError::Transient,
        })
    }

    /// Fills the pages of `piece` from the frames from `first` on. That these are lost is said where the first of them is: any other is asked for by itself
    /// when it is needed.
    pub(super) fn read_alone(&self, first: u32, piece: Piece) -> Result<(), TransferError> {
        let result = self.read_once(first, piece);
        if piece.pages() > PageCount::ONE && result.is_err() {
            return match self.read_once(first, Piece::new(piece.at(), PageCount::ONE)) {
                Err(TransferError::Lost) => Err(TransferError::Lost),
                Ok(()) | Err(_) => Err(TransferError::Transient),
            };
        }
        result
    }

    #[expect(unsafe_code, reason = "looks at pages that are named by number")]
    fn read_once(&self, first: u32, piece: Piece) -> Result<(), TransferError> {
        self.go_through(Direction::Out, first, piece).map_err(|errno| match errno {
            Errno::AGAIN | Errno::INTR | Errno::NOMEM => TransferError::Transient,
            _ => TransferError::Lost,
        })?;
        // SAFETY: by the contract of the trait pages of hetmem's, which nobody else uses meanwhile; all of them were read.
        unsafe { self.sums.check(first, piece) }.map_err(|_| TransferError::Lost)
    }

    /// Reads or writes all of `piece`, however little is done at a time.
    fn go_through(&self, direction: Direction, first: u32, piece: Piece) -> Result<(), Errno> {
        let (mut done, mut in_vain) = (PageCount::ZERO, 0);
        while done < piece.pages() {
            let rest = Piece::new(piece.at().add_pages(done), piece.pages() - done);
            let bytes = self.once(direction, u64::from(first) * PAGE_SIZE + done.bytes().get(), rest)?;
            // A part of a page is begun again, from its beginning.
            let pages = PageCount::new(bytes as u64 / PAGE_SIZE);
            in_vain = if pages.is_zero() { in_vain + 1 } else { 0 };
            if in_vain > IN_VAIN {
                return Err(match direction {
                    Direction::In => Errno::NOSPC,
                    Direction::Out => Errno::IO,
                });
            }
            done += pages;
        }
        Ok(())
    }

    #[expect(unsafe_code, reason = "pages that are named by number")]
    fn once(&self, direction: Direction, offset: u64, piece: Piece) -> Result<usize, Errno> {
        let result = match direction {
            // SAFETY: by the contract of the trait pages of hetmem's, which nobody else uses meanwhile.
            Direction::In => unsafe { self.file.write(&[piece], offset) },
            // SAFETY: as above.
            Direction::Out => unsafe { self.file.read(&[piece], offset) },
        };
        self.outcome(Step::of(direction), result)
    }
}

/// How often less than a page may be read or written.
const IN_VAIN: u32 = 3;

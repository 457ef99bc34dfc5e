//! What each frame has, by a checksum of 64 bits: 8 bytes of memory for each frame that was ever used.
//!
//! It is kept here and not on the disk: so a page that was written to another place than it should have been, or not at all, is found as one is that has
//! changed.

use hetmem_core::frames::FrameRun;
use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{ByteLen, PAGE_SIZE, PageCount};
use hetmem_sys::copy::{PageBytes, store_page, with_page};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::ByteArena;
use hetmem_sys::scratch::Piece;
use xxhash_rust::xxh3::xxh3_64;

/// Of a frame that has nothing: it is zeros, whatever the disk says.
const NOTHING: u64 = 0;
/// With the lock taken once.
const AT_ONCE: usize = 64;

/// The sums of all frames.
pub(super) struct Sums {
    words: Mutex<ByteArena>,
}

/// What a frame has on the disk is not what was put there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wrong;

impl Sums {
    /// Those of `frames` frames that have nothing.
    pub(super) fn new(frames: PageCount) -> Result<Self, Errno> {
        let bytes = ByteLen::new((frames.get() * 8).next_multiple_of(PAGE_SIZE));
        Ok(Self { words: Mutex::new(ByteArena::reserve(bytes.pages_down(), c"hetmem:sums")?) })
    }

    /// Sees to it that the first `frames` frames can have something.
    pub(super) fn open(&self, frames: u64) -> Result<(), Errno> {
        lock(&self.words).open(usize::try_from(frames * 8).map_err(|_| Errno::INVAL)?)
    }

    /// The frames from `first` on, which are open, are about to have the pages of `piece`.
    ///
    /// # Safety
    ///
    /// The pages may be loaded from, and nobody stores to them meanwhile.
    #[expect(unsafe_code, reason = "reads pages that are named by number")]
    pub(super) unsafe fn note(&self, first: u32, piece: Piece) {
        for (frame, part) in parts(first, piece) {
            let mut bytes = [[0; 8]; AT_ONCE];
            let sums = &mut bytes[..part.pages().as_usize()];
            for (sum, page) in sums.iter_mut().zip(0..) {
                // SAFETY: the caller's.
                *sum = unsafe { with_page(part.at().add_pages(PageCount::new(page)), sum_of) }.to_ne_bytes();
            }
            lock(&self.words).write(frame as usize * 8, sums.as_flattened());
        }
    }

    /// Whether the pages of `piece`, which were read from the frames from `first` on, are what was put there. Those of frames that have nothing become zeros.
    ///
    /// # Safety
    ///
    /// The pages may be loaded from and stored to, and nobody accesses them meanwhile.
    #[expect(unsafe_code, reason = "reads and writes pages that are named by number")]
    pub(super) unsafe fn check(&self, first: u32, piece: Piece) -> Result<(), Wrong> {
        for (frame, part) in parts(first, piece) {
            let mut bytes = [[0; 8]; AT_ONCE];
            let expected = &mut bytes[..part.pages().as_usize()];
            lock(&self.words).read(frame as usize * 8, expected.as_flattened_mut());
            for (sum, page) in expected.iter().map(|bytes| u64::from_ne_bytes(*bytes)).zip(0..) {
                let at = part.at().add_pages(PageCount::new(page));
                if sum == NOTHING {
                    // SAFETY: the caller's.
                    unsafe { store_page(at, &[0; ByteLen::new(PAGE_SIZE).as_usize()]) };
                    continue;
                }
                // SAFETY: the caller's.
                if unsafe { with_page(at, sum_of) } != sum {
                    return Err(Wrong);
                }
            }
        }
        Ok(())
    }

    /// The frames of `run` have nothing any more.
    pub(super) fn forget(&self, run: FrameRun) {
        let mut words = lock(&self.words);
        for frame in run.iter() {
            let at = frame.get() as usize * 8;
            let mut sum = [0; 8];
            words.read(at, &mut sum);
            // What has something is open.
            if u64::from_ne_bytes(sum) != NOTHING {
                words.write(at, &NOTHING.to_ne_bytes());
            }
        }
    }
}

fn sum_of(page: &PageBytes) -> u64 {
    match xxh3_64(page) {
        NOTHING => 1,
        sum => sum,
    }
}

/// The frames from `first` on and the pages of `piece`, a few at a time.
fn parts(first: u32, piece: Piece) -> impl Iterator<Item = (u32, Piece)> {
    let pages = piece.pages().get();
    (0..pages).step_by(AT_ONCE).zip((first..).step_by(AT_ONCE)).map(move |(page, frame)| {
        let count = PageCount::new((pages - page).min(AT_ONCE as u64));
        (frame, Piece::new(piece.at().add_pages(PageCount::new(page)), count))
    })
}

//! How far the file has room on the disk: it is taken in large steps, as frames come into use.

use std::time::Instant;

use hetmem_core::sync::atomic::{AtomicU64, Ordering};
use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{BLOCK_PAGES, ByteLen, PAGE_SIZE, PageCount};
use hetmem_sys::errno::Errno;

/// What is taken at a time, if there is as much.
pub(super) const STEP: ByteLen = ByteLen::new(64 << 20);
/// For so many nanoseconds after the disk had no room it is taken to have none still.
const HOLDS_FOR: u64 = 1_000_000_000;

/// How much of the file has room.
pub(super) struct Room {
    capacity: u64,
    /// Frames below this number have room.
    frames: AtomicU64,
    growing: Mutex<()>,
    began: Instant,
    /// Until when the disk has no room, in nanoseconds from then; 0 if it was never refused.
    refused_until: AtomicU64,
}

impl Room {
    pub(super) fn new(capacity: PageCount) -> Self {
        Self {
            capacity: capacity.get(),
            frames: AtomicU64::new(0),
            growing: Mutex::new(()),
            began: Instant::now(),
            refused_until: AtomicU64::new(0),
        }
    }

    /// Sees to it that the frames below `end` have room: `take` is called with the frames that are to have some, from the first to the one behind the last.
    pub(super) fn extend(&self, end: u64, take: impl Fn(u64, u64) -> Result<(), Errno>) -> Result<(), Errno> {
        // Acquire pairs with the Release below: what `take` did is seen.
        if end <= self.frames.load(Ordering::Acquire) {
            return Ok(());
        }
        let _growing = lock(&self.growing);
        let from = self.frames.load(Ordering::Acquire);
        if end <= from {
            return Ok(());
        }
        let mut result = Err(Errno::NOSPC);
        for step in [STEP.get() / PAGE_SIZE, BLOCK_PAGES] {
            let to = end.next_multiple_of(step).min(self.capacity);
            result = take(from, to);
            if result.is_ok() {
                self.frames.store(to, Ordering::Release);
                return result;
            }
        }
        // Relaxed: a hint.
        self.refused_until.store(self.now() + HOLDS_FOR, Ordering::Relaxed);
        result
    }

    /// How many more pages there is likely to be room for, while `used` frames are in use.
    pub(super) fn left(&self, used: PageCount) -> PageCount {
        let refused = self.now() < self.refused_until.load(Ordering::Relaxed);
        let frames = if refused { self.frames.load(Ordering::Relaxed) } else { self.capacity };
        PageCount::new(frames.saturating_sub(used.get()))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn room_is_taken_in_large_steps_and_in_small_ones_where_the_disk_is_nearly_full() {
        let room = Room::new(PageCount::new(40_000));
        let asked = RefCell::new(Vec::new());
        let disk = |limit: u64| {
            let asked = &asked;
            move |from, to| {
                asked.borrow_mut().push((from, to));
                if to <= limit { Ok(()) } else { Err(Errno::NOSPC) }
            }
        };
        room.extend(1, disk(40_000)).unwrap();
        room.extend(16_384, disk(0)).unwrap();
        assert_eq!(asked.take(), [(0, 16_384)]);
        room.extend(16_400, disk(20_000)).unwrap();
        assert_eq!(asked.take(), [(16_384, 32_768), (16_384, 16_896)]);
        assert_eq!(room.left(PageCount::new(100)).get(), 39_900);
        assert_eq!(room.extend(39_999, disk(20_000)), Err(Errno::NOSPC));
        assert_eq!(asked.take(), [(16_896, 40_000), (16_896, 40_000)]);
        assert_eq!(room.left(PageCount::new(100)).get(), 16_796, "no more than there is room for");
        room.extend(39_999, disk(40_000)).unwrap();
        assert_eq!(room.left(PageCount::new(100)).get(), 39_900);
    }
}

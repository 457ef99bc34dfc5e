//! Unmappings that are announced late.
//!
//! Where memory is moved (`mremap`), the kernel announces the move, waits until that was read, and announces only then that the old place is unmapped
//! (`do_mremap` of mm/mremap.c). The lock on mappings is free by then, and another thread may have moved other memory there:
//!
//! ```text
//! one thread                    another                    what is read
//! mremap A -> B
//!                               mremap C -> A              moved A -> B, moved C -> A, unmapped C, unmapped A
//! ```
//!
//! What the last of these speaks of is not what is there. So each move is noted until its unmapping was read, with what came to its old place meanwhile.
//! A move that leaves its old place mapped (`MREMAP_DONTUNMAP`) is not told apart, and nothing unmaps its old place: notes are dropped when the kernel
//! says that no change is under way.
//!
//! *Limits:* the unmapping of a `munmap(2)` may be announced late, too, and is not told from one of what has moved there.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::PageRange;

/// A move, whose unmapping was not read.
struct Move {
    from: PageRange,
    /// What came there since.
    taken: Vec<PageRange>,
}

/// Moves whose unmappings were not read. Used with the gate held alone, but for [`Moves::is_empty`].
#[derive(Default)]
pub(crate) struct Moves {
    moves: Mutex<Vec<Move>>,
    count: AtomicUsize,
}

impl Moves {
    /// Memory has moved from `from` to `to`.
    pub(super) fn moved(&self, from: PageRange, to: PageRange) {
        let mut moves = lock(&self.moves);
        for earlier in moves.iter_mut() {
            earlier.taken.extend(earlier.from.intersect(to));
        }
        moves.push(Move { from, taken: Vec::new() });
        self.count.store(moves.len(), Relaxed);
    }

    /// The parts of `range`, of which an unmapping was read, that are unmapped.
    pub(super) fn unmapped(&self, range: PageRange) -> Vec<PageRange> {
        let mut moves = lock(&self.moves);
        let Some(at) = moves.iter().position(|earlier| earlier.from == range) else { return vec![range] };
        let taken = moves.remove(at).taken;
        self.count.store(moves.len(), Relaxed);
        let mut parts = vec![range];
        for other in taken {
            let around = |part: PageRange| {
                let before = PageRange::between(part.start(), other.start().min(part.end()));
                let after = PageRange::between(other.end().max(part.start()), part.end());
                [before, after].into_iter().flatten().filter(|part| !part.is_empty())
            };
            parts = parts.into_iter().flat_map(around).collect();
        }
        parts
    }

    /// No change of mappings is under way: every unmapping was read.
    pub(super) fn settle(&self) {
        lock(&self.moves).clear();
        self.count.store(0, Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count.load(Relaxed) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hetmem_core::units::{PAGE_SIZE, PageCount, VirtAddr};

    fn range(first: u64, pages: u64) -> PageRange {
        PageRange::new(VirtAddr::new(first * PAGE_SIZE), PageCount::new(pages)).unwrap()
    }

    #[test]
    fn what_came_to_the_old_place_of_a_move_is_not_what_is_unmapped_there() {
        let moves = Moves::default();
        moves.moved(range(100, 10), range(200, 10));
        moves.moved(range(300, 4), range(102, 4));
        moves.moved(range(400, 2), range(108, 2));
        assert_eq!(moves.unmapped(range(300, 4)), [range(300, 4)]);
        assert_eq!(moves.unmapped(range(100, 10)), [range(100, 2), range(106, 2)]);
        assert_eq!(moves.unmapped(range(100, 10)), [range(100, 10)], "one move, one unmapping");
    }

    #[test]
    fn moves_to_and_fro_have_an_unmapping_each() {
        let moves = Moves::default();
        moves.moved(range(100, 4), range(200, 4));
        moves.moved(range(300, 4), range(100, 4));
        moves.moved(range(100, 4), range(400, 4));
        moves.moved(range(500, 4), range(100, 4));
        for _ in 0..2 {
            assert!(moves.unmapped(range(100, 4)).is_empty());
        }
        assert_eq!(moves.unmapped(range(100, 4)), [range(100, 4)]);
        assert!(!moves.is_empty());
        moves.settle();
        assert!(moves.is_empty());
        assert_eq!(moves.unmapped(range(300, 4)), [range(300, 4)]);
    }
}

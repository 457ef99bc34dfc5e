//! Which blocks exist.
//!
//! Blocks are made in groups of 32 MiB, one allocation for all blocks of a group: one of which little was migrated costs less than what finds it and
//! what counts who uses it would. A block of a group *exists* from when something in it is first migrated until it is forgotten.

use std::collections::BTreeMap;
use std::ops::Deref;

use super::{Block, BlockState, Space};
use crate::sync::{Arc, RwLock, read, write};
use crate::units::{BlockNo, PageCount, PageRange};

/// Blocks of a group; few for the model checker, which looks at each.
const GROUP: usize = if cfg!(loom) { 1 } else { 16 };

struct Group([Block; GROUP]);

/// What is known of a group.
struct Known {
    /// Which of its blocks exist, as bits.
    made: u16,
    group: Arc<Group>,
}

/// Groups, by number.
#[derive(Default)]
pub(super) struct Blocks {
    groups: RwLock<BTreeMap<u64, Known>>,
}

/// A block, which stays where it is as long as this lives.
#[derive(Clone)]
pub struct BlockRef {
    group: Arc<Group>,
    at: usize,
}

impl Deref for BlockRef {
    type Target = Block;
    fn deref(&self) -> &Block {
        &self.group.0[self.at]
    }
}

/// The number of the group of a block, and which of its blocks that is.
const fn place(no: BlockNo) -> (u64, usize) {
    let group = GROUP as u64;
    (no.get() / group, PageCount::new(no.get() % group).as_usize())
}

/// The number of block `at` of a group.
const fn number(group: u64, at: usize) -> BlockNo {
    BlockNo::new(group * GROUP as u64 + at as u64)
}

impl Default for Known {
    fn default() -> Self {
        Self { made: 0, group: Arc::new(Group(std::array::from_fn(|_| Block::default()))) }
    }
}

impl Known {
    const fn has(&self, at: usize) -> bool {
        self.made & 1 << at != 0
    }

    fn block(&self, at: usize) -> BlockRef {
        BlockRef { group: Arc::clone(&self.group), at }
    }

    /// Those of its blocks that exist, with their numbers; it is the group numbered `group`.
    fn existing(&self, group: u64) -> impl Iterator<Item = (BlockNo, BlockRef)> {
        (0..GROUP).filter(|at| self.has(*at)).map(move |at| (number(group, at), self.block(at)))
    }
}

impl Blocks {
    fn existing(&self, no: BlockNo) -> Option<BlockRef> {
        let (group, at) = place(no);
        read(&self.groups).get(&group).filter(|known| known.has(at)).map(|known| known.block(at))
    }

    fn made(&self, no: BlockNo) -> BlockRef {
        let (group, at) = place(no);
        let mut groups = write(&self.groups);
        let known = groups.entry(group).or_default();
        known.made |= 1 << at;
        known.block(at)
    }

    /// Those from `first` to `last`, in order.
    fn between(&self, first: BlockNo, last: BlockNo) -> Vec<(BlockNo, BlockRef)> {
        let groups = read(&self.groups);
        let known = groups.range(place(first).0..=place(last).0);
        let is_asked_for = |(no, _): &(BlockNo, BlockRef)| (first..=last).contains(no);
        known.flat_map(|(group, known)| known.existing(*group)).filter(is_asked_for).collect()
    }

    /// Checks every block: those that exist, and that those which don't hold nothing.
    ///
    /// # Panics
    ///
    /// If an invariant does not hold.
    pub(super) fn check(&self) {
        for known in read(&self.groups).values() {
            assert_ne!(known.made, 0, "a group has a block");
            for (at, block) in known.group.0.iter().enumerate() {
                let state = block.lock();
                state.check();
                assert!(known.has(at) || state.is_system(), "a page that is away is in a block that exists");
            }
        }
    }

    /// The block numbered `no` exists no longer. With the gate held alone.
    pub(super) fn forget(&self, no: BlockNo) {
        let (group, at) = place(no);
        let mut groups = write(&self.groups);
        let Some(known) = groups.get_mut(&group) else { return };
        known.made &= !(1 << at);
        if known.made == 0 {
            groups.remove(&group);
        } else {
            known.group.0[at].lock().forget();
        }
    }
}

impl Space {
    /// The block numbered `no`, made if need be.
    pub fn block(&self, no: BlockNo) -> BlockRef {
        self.existing_block(no).unwrap_or_else(|| self.blocks.made(no))
    }

    /// The block numbered `no`, if anything in it was ever migrated.
    #[must_use]
    pub fn existing_block(&self, no: BlockNo) -> Option<BlockRef> {
        self.blocks.existing(no)
    }

    /// Runs `f` while block `no` does not exist and can't be made; `None` if it exists.
    pub fn while_absent<R>(&self, no: BlockNo, f: impl FnOnce() -> R) -> Option<R> {
        let (group, at) = place(no);
        let groups = read(&self.blocks.groups);
        if groups.get(&group).is_some_and(|known| known.has(at)) { None } else { Some(f()) }
    }

    /// The existing blocks that overlap `range`, in order.
    #[must_use]
    pub fn blocks_in(&self, range: PageRange) -> Vec<(BlockNo, BlockRef)> {
        if range.is_empty() {
            return Vec::new();
        }
        let last = range.slice(range.pages() - PageCount::ONE, range.pages()).start().block();
        self.blocks.between(range.start().block(), last)
    }

    /// Calls `visit` with each existing block that overlaps `range`, locked, and the part of it that `range` has, in order. No block is made meanwhile.
    pub(crate) fn visit_blocks(&self, range: PageRange, mut visit: impl FnMut(PageRange, &BlockState)) {
        let groups = read(&self.blocks.groups);
        for (group, known) in groups.range(place(range.start().block()).0..) {
            for at in (0..GROUP).filter(|at| known.has(*at)) {
                let no = number(*group, at);
                match range.intersect(no.range()) {
                    Some(part) => visit(part, &known.group.0[at].lock()),
                    None if no.start() >= range.end() => return,
                    None => {}
                }
            }
        }
    }

    /// Whether `what` is so of an existing block that overlaps `range`, which is locked, and the part of it that `range` has. Asked of one after the
    /// other until it is; no block is made meanwhile.
    pub(crate) fn any_block(&self, range: PageRange, what: impl Fn(PageRange, &BlockState) -> bool) -> bool {
        let groups = read(&self.blocks.groups);
        let blocks = groups.range(place(range.start().block()).0..).flat_map(|(group, known)| {
            (0..GROUP).filter(|at| known.has(*at)).map(move |at| (number(*group, at), &known.group.0[at]))
        });
        let mut parts = blocks.take_while(|(no, _)| no.start() < range.end());
        parts.any(|(no, block)| {
            range.intersect(no.range()).is_some_and(|part| !part.is_empty() && what(part, &block.lock()))
        })
    }

    /// The first existing block after the one numbered `after`, or of all. Allocates nothing.
    pub(crate) fn block_after(&self, after: Option<BlockNo>) -> Option<(BlockNo, BlockRef)> {
        let first = after.map_or(BlockNo::new(0), BlockNo::after);
        let groups = read(&self.blocks.groups);
        let mut blocks = groups.range(place(first).0..).flat_map(|(group, known)| known.existing(*group));
        blocks.find(|(no, _)| *no >= first)
    }

    /// All existing blocks, in order.
    #[must_use]
    pub fn blocks(&self) -> Vec<(BlockNo, BlockRef)> {
        self.blocks.between(BlockNo::new(0), BlockNo::new(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heat::BlockHeat;
    use crate::slot::{Frame, Slot};
    use crate::units::{DeviceId, FrameIndex};

    fn numbers(blocks: &[(BlockNo, BlockRef)]) -> Vec<u64> {
        blocks.iter().map(|(no, _)| no.get()).collect()
    }

    #[test]
    fn blocks_exist_one_by_one_until_they_are_forgotten() {
        let space = Space::default();
        let all = [3, 15, 16, 17, 400];
        all.iter().rev().for_each(|no| drop(space.block(BlockNo::new(*no))));
        assert_eq!(numbers(&space.blocks()), all);
        let range = PageRange::between(BlockNo::new(4).start(), BlockNo::new(17).start()).unwrap();
        assert_eq!(numbers(&space.blocks_in(range)), [15, 16]);
        let next = |no| space.block_after(Some(BlockNo::new(no))).map(|(no, _)| no.get());
        assert_eq!([next(0), next(3), next(15), next(17), next(400)], [Some(3), Some(15), Some(16), Some(400), None]);
        assert_eq!(space.block_after(None).map(|(no, _)| no.get()), Some(3));
        let exists = |no| space.existing_block(BlockNo::new(no)).is_some();
        assert!(exists(15) && !exists(14) && !exists(18));
        assert!(
            space.while_absent(BlockNo::new(14), || ()).is_some()
                && space.while_absent(BlockNo::new(15), || ()).is_none()
        );

        space.forget_blocks(&space.gate.events(), range);
        assert_eq!(numbers(&space.blocks()), [3, 17, 400]);
        assert!(!exists(15) && !exists(16) && exists(17));
        space.forget_blocks(&space.gate.events(), PageRange::ALL);
        assert!(space.blocks().is_empty() && read(&space.blocks.groups).is_empty(), "nor does a group stay");
        space.check();
    }

    #[test]
    fn a_block_with_a_page_that_is_away_is_not_forgotten_and_one_that_comes_again_is_as_new() {
        let space = Space::default();
        let [away, gone] = [3, 4].map(|no| space.block(BlockNo::new(no)));
        let frame = Frame { device: DeviceId::new(0), index: FrameIndex::new(1) };
        away.lock().set(9, Slot::Unmapped { frame, busy: false });
        gone.lock().heat = Some(Box::new(BlockHeat::new(9)));
        space.forget_blocks(&space.gate.events(), PageRange::ALL);
        assert_eq!(numbers(&space.blocks()), [3]);
        assert_eq!(space.existing_block(BlockNo::new(3)).unwrap().lock().slot(9).frame(), Some(frame));
        assert!(space.block(BlockNo::new(4)).lock().heat.is_none());
    }
}

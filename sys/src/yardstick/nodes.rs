//! Moving pages between two nodes by the kernel's own means.

use std::sync::atomic::AtomicU64;

use hetmem_core::units::{BLOCK_PAGES, PageCount, PageRange, VirtAddr};

use super::buffer::Buffer;
use crate::errno::Errno;
use crate::mapping::HugePages;
use crate::numa::{Node, Place, move_list, nodes_of};

/// How the kernel is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KernelWay {
    /// `move_pages(2)`: each page is named.
    MovePages,
    /// `mbind(2)` with `MPOL_MF_MOVE`: a range is.
    Mbind,
}

/// Populated memory that the kernel moves.
#[derive(Debug)]
pub struct NodeMover {
    buffer: Buffer,
    way: KernelWay,
    /// The pages that are named: each, or the first of each huge page, which goes as a whole.
    named: Vec<u64>,
}

impl NodeMover {
    /// `pages` pages that read as zeros, on whatever node.
    pub fn new(pages: PageCount, huge_pages: HugePages, way: KernelWay) -> Result<Self, Errno> {
        let buffer = Buffer::new(pages, huge_pages)?;
        let step = if huge_pages == HugePages::Never { 1 } else { BLOCK_PAGES };
        let named = buffer.range().iter().step_by(usize::try_from(step).unwrap_or(1)).map(VirtAddr::get).collect();
        Ok(Self { buffer, way, named })
    }

    /// Its contents.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        self.buffer.words()
    }

    /// Moves all of it to `node`. What could not be moved is found by [`pages_on`].
    pub fn move_to(&self, node: Node) -> Result<(), Errno> {
        match self.way {
            KernelWay::MovePages => {
                let (targets, mut status) = (vec![node.signed(); self.named.len()], vec![0; self.named.len()]);
                move_list(&self.named, Some(&targets), &mut status)
            }
            KernelWay::Mbind => node.claim(self.buffer.range()),
        }
    }

    /// Where it is.
    #[must_use]
    pub const fn range(&self) -> PageRange {
        self.buffer.range()
    }
}

/// How many pages of `range` are on `node`.
pub fn pages_on(range: PageRange, node: Node) -> Result<PageCount, Errno> {
    let mut pages = 0;
    nodes_of(range, |_, place| pages += u64::from(place == Place::On(node)))?;
    Ok(PageCount::new(pages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numa::nodes_with_memory;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn contents_and_places_are_right_after_each_way() {
        for way in [KernelWay::MovePages, KernelWay::Mbind] {
            let mover = NodeMover::new(PageCount::new(600), HugePages::Never, way).unwrap();
            for (i, word) in (0..).zip(mover.words()) {
                word.store(i, Relaxed);
            }
            for node in nodes_with_memory() {
                mover.move_to(node).unwrap();
                assert_eq!(pages_on(mover.range(), node), Ok(PageCount::new(600)), "{way:?}");
            }
            assert!((0..).zip(mover.words()).all(|(i, word)| word.load(Relaxed) == i));
        }
    }
}

//! A page takes the ways that the table of [`hetmem_core::slot`] lists, and no other.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hetmem_core::slot::{Frame, SYSTEM_POOL, Slot};
use hetmem_core::space::Block;
use hetmem_core::units::{DeviceId, FrameIndex};

const fn frame(device: u8, index: u32) -> Frame {
    Frame { device: DeviceId::new(device), index: FrameIndex::new(index) }
}

const A: Frame = frame(0, 1);
const B: Frame = frame(0, 2);
const ELSEWHERE: Frame = frame(1, 1);
const POOL: Frame = Frame { device: SYSTEM_POOL, index: FrameIndex::new(1) };
const FRAMES: [Frame; 4] = [A, B, ELSEWHERE, POOL];

const fn rest(frame: Frame) -> Slot {
    Slot::Unmapped { frame, busy: false }
}

const fn busy(frame: Frame) -> Slot {
    Slot::Unmapped { frame, busy: true }
}

fn states() -> Vec<Slot> {
    let mapped = FRAMES.into_iter().filter(|f| f.device != SYSTEM_POOL).map(Slot::Mapped);
    let unmapped = FRAMES.into_iter().flat_map(|f| [rest(f), busy(f)]);
    std::iter::once(Slot::System).chain(mapped).chain(unmapped).collect()
}

/// The table, written out: every change that is listed, for frames `f` and others.
fn listed() -> Vec<(Slot, Slot)> {
    let mut listed = vec![(Slot::System, busy(POOL))];
    for f in FRAMES {
        listed.extend([(Slot::System, rest(f)), (rest(f), Slot::System), (rest(f), busy(f)), (busy(f), Slot::System)]);
        listed.extend(FRAMES.map(|other| (busy(f), rest(other))));
        listed.extend([A, B, ELSEWHERE].map(|other| (busy(f), Slot::Mapped(other))));
    }
    for f in [A, B, ELSEWHERE] {
        let mapped = Slot::Mapped(f);
        listed.extend([(Slot::System, mapped), (mapped, Slot::System), (mapped, busy(f)), (rest(f), mapped)]);
    }
    listed
}

/// A block whose page 7 is in `state`, reached by listed changes only, and of whose other pages so many are away.
fn block_with(state: Slot, others: usize) -> Block {
    let block = Block::default();
    {
        let mut pages = block.lock();
        (8..8 + others).for_each(|page| pages.set(page, rest(A)));
        match state {
            Slot::System => {}
            Slot::Mapped(_) | Slot::Unmapped { busy: false, .. } => pages.set(7, state),
            Slot::Unmapped { frame, busy: true } => {
                pages.set(7, rest(frame));
                pages.set(7, state);
            }
        }
    }
    block
}

#[test]
fn listed_changes_are_made_and_all_others_refused() {
    let listed = listed();
    for from in states() {
        for to in states() {
            let is_listed = listed.contains(&(from, to));
            assert_eq!(from.may_become(to), is_listed, "{from:?} to {to:?}");
            // However a block keeps them: one, few, as many as are few, many.
            for others in [0, 1, 31, 32, 300] {
                let block = block_with(from, others);
                let made = catch_unwind(AssertUnwindSafe(|| {
                    let mut pages = block.lock();
                    pages.set(7, to);
                    assert_eq!(pages.slot(7), to);
                    assert!((8..8 + others).all(|page| pages.slot(page) == rest(A)));
                    pages.check();
                }));
                assert_eq!(made.is_ok(), is_listed, "{from:?} to {to:?}");
            }
        }
    }
}

#[test]
fn the_pool_is_never_mapped() {
    for from in states() {
        assert!(!from.may_become(Slot::Mapped(POOL)));
    }
}

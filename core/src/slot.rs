//! Where a page's bytes are: its slot. In which form a block keeps those of its pages is `core::space::slots`'s business.
//!
//! A page is in exactly one of these states:
//!
//! | state | the bytes are | a CPU touch |
//! | --- | --- | --- |
//! | `System` | in system memory, or nowhere yet (a hole) | is the kernel's business |
//! | `Mapped(frame)` | in the frame of a coherent device, mapped | uses the frame in place |
//! | `Unmapped(frame)` | in the frame, which the program doesn't map | waits, and brings the page in |
//! | `Unmapped(frame)`, busy | in the frame; a migration or a fault works on it | waits for that to end |
//!
//! | from → to | System | Mapped | Unmapped, busy | Unmapped |
//! | --- | --- | --- | --- | --- |
//! | System | – | remap (arrives); lay, or a lift that fails (removed meanwhile) | collect (taken out to the pool) | remap (arrives) |
//! | Mapped | unmap, remove, remap (leaves); has gone astray | – | collect (taken out to its frame); lift (its frame) | – |
//! | Unmapped | unmap, remove, remap (leaves); fault | fault (its frame) | collect, fault (its frame) | – |
//! | Unmapped, busy | finalize, rollback, fault; unmap, remove, remap (leaves) | finalize, rollback; lay, or a lift that fails | – | finalize, rollback, fault; lift |
//!
//! Frames that are laid over the program's pages ([`crate::exchange`]) are `Mapped` by whole blocks, and no removal takes a page out of them. A page
//! that is removed while its block is laid or lifted is `System` until that ends.
//!
//! No other change is accepted ([`Slot::may_become`]). A busy page that is remapped arrives as one that is not: whoever works on
//! it finds it gone from where it was.
//!
//! The pool of system pages is one more set of frames ([`SYSTEM_POOL`]): a page in transit is just a page in a frame of the pool.

use crate::frames::FrameRun;
use crate::units::{DeviceId, FrameIndex, PageCount};

/// The number under which frames of the pool of system pages appear in slots.
pub const SYSTEM_POOL: DeviceId = DeviceId::new(u8::MAX);

/// A frame of a device or of the pool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Frame {
    /// Whose frame.
    pub device: DeviceId,
    /// Which.
    pub index: FrameIndex,
}

/// The state of a page; see the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slot {
    /// In system memory, or a hole.
    System,
    /// In the frame of a coherent device, mapped.
    Mapped(Frame),
    /// In the frame, missing from the program.
    Unmapped {
        /// Where the bytes are.
        frame: Frame,
        /// Whether a migration or a fault works on the page.
        busy: bool,
    },
}

impl Slot {
    /// Whether a migration or a fault works on the page.
    #[inline]
    #[must_use]
    pub const fn is_busy(self) -> bool {
        matches!(self, Self::Unmapped { busy: true, .. })
    }

    /// Where the page's bytes are, unless that is the system's business.
    #[inline]
    #[must_use]
    pub const fn frame(self) -> Option<Frame> {
        match self {
            Self::System => None,
            Self::Mapped(frame) | Self::Unmapped { frame, .. } => Some(frame),
        }
    }

    /// That of the page `pages` behind one in this state, where pages are alike: the system's, or in frames that follow one another.
    #[inline]
    #[must_use]
    pub fn behind(self, pages: PageCount) -> Self {
        let behind = |Frame { device, index }| {
            let run = FrameRun { first: index, pages: pages + PageCount::ONE };
            Frame { device, index: run.frame(pages) }
        };
        match self {
            Self::System => Self::System,
            Self::Mapped(frame) => Self::Mapped(behind(frame)),
            Self::Unmapped { frame, busy } => Self::Unmapped { frame: behind(frame), busy },
        }
    }

    /// Whether the table of the module lists the change from this state to `next`.
    #[inline]
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::System, Self::Unmapped { frame, busy: true }) => frame.device == SYSTEM_POOL,
            (Self::System, Self::Unmapped { busy: false, .. }) => true,
            (Self::Mapped(_) | Self::Unmapped { .. }, Self::System) => true,
            (Self::System | Self::Unmapped { busy: true, .. }, Self::Mapped(frame)) => frame.device != SYSTEM_POOL,
            (Self::Unmapped { frame, busy: false }, Self::Mapped(to)) => frame == to && to.device != SYSTEM_POOL,
            (Self::Mapped(frame) | Self::Unmapped { frame, busy: false }, Self::Unmapped { frame: to, busy: true }) => {
                frame == to
            }
            (Self::Unmapped { busy: true, .. }, Self::Unmapped { busy, .. }) => !busy,
            (Self::System, Self::System)
            | (Self::Mapped(_), Self::Mapped(_) | Self::Unmapped { busy: false, .. })
            | (Self::Unmapped { busy: false, .. }, Self::Unmapped { busy: false, .. }) => false,
        }
    }
}

/// A [`Slot`] in six bytes: state and device, and the two halves of the frame's number. All-zero is `System`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotWord([u16; 3]);

const TAG_MAPPED: u16 = 1;
const TAG_UNMAPPED: u16 = 2;
const TAG_BUSY: u16 = 3;

impl SlotWord {
    /// Packs `slot`.
    #[inline]
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the number is cut into halves, and a device has a number below 256"
    )]
    pub fn new(slot: Slot) -> Self {
        let word = |tag, frame: Frame| {
            let index = frame.index.get();
            Self([tag | (frame.device.index() as u16) << 8, index as u16, (index >> 16) as u16])
        };
        match slot {
            Slot::System => Self::default(),
            Slot::Mapped(frame) => word(TAG_MAPPED, frame),
            Slot::Unmapped { frame, busy: false } => word(TAG_UNMAPPED, frame),
            Slot::Unmapped { frame, busy: true } => word(TAG_BUSY, frame),
        }
    }

    /// Whether `next` may be the slot of the page behind this one's in a run of pages that are alike: both are the system's, or in frames that
    /// follow one another.
    #[inline]
    #[must_use]
    pub fn goes_on_with(self, next: Self) -> bool {
        let index = |[_, low, high]: [u16; 3]| u32::from(low) | u32::from(high) << 16;
        match self.0[0] {
            0 => next.0[0] == 0,
            word => word == next.0[0] && index(self.0).checked_add(1) == Some(index(next.0)),
        }
    }

    /// Unpacks the slot.
    #[inline]
    #[must_use]
    pub const fn get(self) -> Slot {
        let [word, low, high] = self.0;
        let index = FrameIndex::new(low as u32 | (high as u32) << 16);
        let frame = Frame { device: DeviceId::new((word >> 8) as u8), index };
        match word & 3 {
            TAG_MAPPED => Slot::Mapped(frame),
            TAG_UNMAPPED => Slot::Unmapped { frame, busy: false },
            TAG_BUSY => Slot::Unmapped { frame, busy: true },
            _ => Slot::System,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_survive_packing() {
        for (device, index) in [(SYSTEM_POOL, u32::MAX), (SYSTEM_POOL, 0), (DeviceId::new(0), 0x1234_5678)] {
            let frame = Frame { device, index: FrameIndex::new(index) };
            let unmapped = |busy| Slot::Unmapped { frame, busy };
            for slot in [Slot::System, Slot::Mapped(frame), unmapped(false), unmapped(true)] {
                assert_eq!(SlotWord::new(slot).get(), slot);
            }
        }
    }

    #[test]
    fn a_run_goes_on_in_the_next_frame_of_the_same_device_in_the_same_state() {
        let frame = |device, index| Frame { device: DeviceId::new(device), index: FrameIndex::new(index) };
        let states = |frame| {
            let unmapped = |busy| Slot::Unmapped { frame, busy };
            [Slot::Mapped(frame), unmapped(false), unmapped(true)]
        };
        let frames = [frame(1, 4), frame(1, 5), frame(1, 6), frame(2, 5), frame(1, u32::MAX), frame(2, 0), frame(1, 0)];
        let mut slots: Vec<Slot> = frames.into_iter().flat_map(states).collect();
        slots.push(Slot::System);
        for slot in &slots {
            for next in &slots {
                let follows = match (slot.frame(), next.frame()) {
                    (None, None) => true,
                    (Some(a), Some(b)) => {
                        let ends_before = u64::from(a.index.get()) + 1 == u64::from(b.index.get());
                        let alike = std::mem::discriminant(slot) == std::mem::discriminant(next);
                        a.device == b.device && ends_before && alike && slot.is_busy() == next.is_busy()
                    }
                    (None, Some(_)) | (Some(_), None) => false,
                };
                assert_eq!(SlotWord::new(*slot).goes_on_with(SlotWord::new(*next)), follows, "{slot:?}, then {next:?}");
            }
        }
    }
}

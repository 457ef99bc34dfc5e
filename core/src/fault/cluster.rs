//! The touched page and the neighbours that come home with it.

use super::MAX_AROUND;
use crate::engine::Engine;
use crate::frames::{Frames, Leaving, Left, restate};
use crate::port::Host;
use crate::slot::{Frame, SYSTEM_POOL, Slot};
use crate::space::BlockState;
use crate::units::{BLOCK_PAGES, FrameIndex, PageCount, PageRange, VirtAddr};

/// A run of missing pages, each in some private frame, busy on behalf of a fault, which has a reference to each frame. They are dealt with from the front
/// on. It lies on the stack: faults don't allocate.
pub(super) struct Cluster<'e, H: Host> {
    engine: &'e Engine<H>,
    start: VirtAddr,
    len: u16,
    done: u16,
    window: u16,
    frames: [Frame; MAX_AROUND as usize],
}

impl<'e, H: Host> Cluster<'e, H> {
    /// The page at `page` and its neighbours, as the block's stream suggests. They are busy on return.
    pub(super) fn begin(engine: &'e Engine<H>, state: &mut BlockState, page: VirtAddr) -> Self {
        let first = page.index_in_block();
        state.touch(first);
        let none = Frame { device: SYSTEM_POOL, index: FrameIndex::new(0) };
        let sequential = engine.fault_around && usize::from(state.stream.next) == first && state.stream.window > 0;
        let window = if sequential { (state.stream.window * 4).min(MAX_AROUND) } else { 1 };
        let frames = [none; MAX_AROUND as usize];
        let mut this = Self { engine, start: page, len: 0, done: 0, window, frames };
        // The page itself needs no look at its region.
        let region = match window {
            1 => PageRange::page_of(page),
            _ => engine.space.region_at(page).map_or(PageRange::page_of(page), |(range, _)| range),
        };
        while this.len < window {
            let index = first + usize::from(this.len);
            if index as u64 == BLOCK_PAGES || !region.contains(page.add_pages(PageCount::new(u64::from(this.len)))) {
                break;
            }
            match state.slot(index) {
                Slot::Unmapped { frame, busy: false } if engine.address(Frames::single(frame)).is_none() => {
                    this.add(state, frame);
                }
                Slot::Unmapped { .. } | Slot::Mapped(_) | Slot::System => break,
            }
        }
        if let (0, Slot::Unmapped { frame, .. }) = (this.len, state.slot(first)) {
            // The region ended under the fault; the page itself is still owed.
            this.add(state, frame);
        }
        state.stream.next = u16::try_from(first).unwrap_or(0) + this.len;
        state.stream.window = window;
        this
    }

    fn add(&mut self, state: &mut BlockState, frame: Frame) {
        let at = PageRange::page_of(self.page(PageCount::new(u64::from(self.len))));
        // Let go of with those of other pages, by runs.
        let frames = self.engine.refer_to(Frames::single(frame)).into_counted();
        restate(state, at, frames, |frame| Slot::Unmapped { frame, busy: true });
        self.frames[usize::from(self.len)] = frame;
        self.len += 1;
    }

    /// The pages that are not dealt with.
    pub(super) fn rest(&self) -> PageRange {
        let start = self.start.add_pages(PageCount::new(u64::from(self.done)));
        PageRange::new(start, self.pages()).unwrap_or_else(|| PageRange::page_of(start))
    }

    /// How many those are.
    pub(super) fn pages(&self) -> PageCount {
        PageCount::new(u64::from(self.len - self.done))
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.done == self.len
    }

    /// Whether the touched page is still to be dealt with: it is the first.
    pub(super) const fn owes_touched(&self) -> bool {
        self.done == 0
    }

    /// How many pages the fault was to bring home at most.
    pub(super) const fn window(&self) -> u16 {
        self.window
    }

    /// The frame of page `offset` of the rest.
    pub(super) fn frame(&self, offset: PageCount) -> Frame {
        self.frames[usize::from(self.done)..usize::from(self.len)][offset.as_usize()]
    }

    fn page(&self, offset: PageCount) -> VirtAddr {
        self.start.add_pages(offset)
    }

    /// How many pages of the rest, at most `most`, are this fault's still: events may have dropped or moved them.
    pub(super) fn ours(&self, state: &BlockState, most: PageCount) -> PageCount {
        let is_ours = |(page, frame): (VirtAddr, Frame)| {
            state.slot(page.index_in_block()) == Slot::Unmapped { frame, busy: true }
        };
        let rest = self.rest().slice(PageCount::ZERO, most);
        let frames = &self.frames[usize::from(self.done)..];
        PageCount::new(rest.iter().zip(frames.iter().copied()).take_while(|page| is_ours(*page)).count() as u64)
    }

    /// The first `pages` pages of the rest are dealt with.
    pub(super) fn advance(&mut self, pages: PageCount) {
        let mut leaving = Leaving::new(self.engine, Left::Page);
        for i in 0..pages.get() {
            leaving.add(self.frame(PageCount::new(i)));
        }
        drop(leaving);
        self.done += u16::try_from(pages.get()).expect("a cluster has a few pages");
    }
}

impl<H: Host> Drop for Cluster<'_, H> {
    fn drop(&mut self) {
        self.advance(self.pages());
    }
}

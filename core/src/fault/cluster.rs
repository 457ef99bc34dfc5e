//! The touched page and the neighbours that come home with it.

use super::MAX_AROUND;
use crate::engine::Engine;
use crate::frames::{Frames, Leaving, Left, restate};
use crate::port::Host;
use crate::slot::{Frame, SYSTEM_POOL, Slot};
use crate::space::BlockState;
use crate::units::{FrameIndex, PageCount, PageRange, VirtAddr};

/// How far a touch reaches.
#[derive(Clone, Copy)]
pub(super) struct Around {
    /// The touched page, and behind it those of its region and block that may come along.
    pub(super) pages: PageRange,
    /// How many they would be at most.
    pub(super) window: u16,
}

impl Around {
    /// The page at `page` and its neighbours, as the block's stream suggests.
    pub(super) fn of<H: Host>(engine: &Engine<H>, state: &BlockState, page: VirtAddr) -> Self {
        let stream = state.stream;
        let sequential = engine.fault_around && usize::from(stream.next) == page.index_in_block() && stream.window > 0;
        if !sequential {
            return Self { pages: PageRange::page_of(page), window: 1 };
        }
        let window = (stream.window * 4).min(MAX_AROUND);
        let within = |range: PageRange| range.slice(page.pages_since(range.start()), PageCount::new(u64::from(window)));
        let in_block = within(page.block().range());
        // The region may have ended under the fault; the page itself is still owed.
        let region = engine.space.region_at(page).and_then(|(region, _)| in_block.intersect(region));
        Self { pages: region.unwrap_or(PageRange::page_of(page)), window }
    }
}

/// A run of missing pages, each in some private frame of one device. They are dealt with from the front on. It lies on the stack, or in a fixed
/// table: faults don't allocate.
#[derive(Clone, Copy)]
pub(super) struct Pages {
    start: VirtAddr,
    len: u16,
    done: u16,
    window: u16,
    frames: [Frame; MAX_AROUND as usize],
}

impl Pages {
    /// The first page that is not dealt with.
    pub(super) fn first(&self) -> VirtAddr {
        self.start.add_pages(PageCount::new(u64::from(self.done)))
    }

    /// Its frame.
    pub(super) const fn first_frame(&self) -> Frame {
        self.frames[self.done as usize]
    }
}

/// Pages that are busy on behalf of a fault, which has a reference to the frame of each that is not dealt with.
pub(super) struct Cluster<'e, H: Host> {
    engine: &'e Engine<H>,
    pages: Pages,
}

impl<'e, H: Host> Cluster<'e, H> {
    /// The touched page, which is in a private frame, and its neighbours, as far as they are in such frames of the same device. They are busy on return.
    pub(super) fn begin(engine: &'e Engine<H>, state: &mut BlockState, around: Around) -> Self {
        let Around { pages: range, window } = around;
        let none = Frame { device: SYSTEM_POOL, index: FrameIndex::new(0) };
        let frames = [none; MAX_AROUND as usize];
        let mut this = Self { engine, pages: Pages { start: range.start(), len: 0, done: 0, window, frames } };
        for page in range.iter() {
            match state.slot(page.index_in_block()) {
                Slot::Unmapped { frame, busy: false } if this.may_have(frame) => this.add(state, frame),
                Slot::Unmapped { .. } | Slot::Mapped(_) | Slot::System => break,
            }
        }
        engine.note_touch(state, this.rest(), window);
        this
    }

    /// Whether the page in `frame` may come along: one device is asked.
    fn may_have(&self, frame: Frame) -> bool {
        let is_first = self.pages.len == 0;
        self.engine.address(Frames::single(frame)).is_none()
            && (is_first || self.pages.frames[0].device == frame.device)
    }

    fn add(&mut self, state: &mut BlockState, frame: Frame) {
        let page = self.pages.start.add_pages(PageCount::new(u64::from(self.pages.len)));
        // Let go of with those of other pages, by runs.
        let frames = self.engine.refer_to(Frames::single(frame)).into_counted();
        restate(state, PageRange::page_of(page), frames, |frame| Slot::Unmapped { frame, busy: true });
        self.pages.frames[usize::from(self.pages.len)] = frame;
        self.pages.len += 1;
    }

    /// The pages, to whose references somebody else sees until [`Cluster::of`].
    pub(super) fn into_pages(mut self) -> Pages {
        let pages = self.pages;
        self.pages.done = self.pages.len;
        pages
    }

    /// The pages whose references were counted.
    pub(super) const fn of(engine: &'e Engine<H>, pages: Pages) -> Self {
        Self { engine, pages }
    }

    /// All but the first `pages` of the rest.
    pub(super) fn split_off(&mut self, pages: PageCount) -> Self {
        let at = self.pages.done + u16::try_from(pages.get()).expect("a cluster has a few pages").min(self.pages.len);
        let at = at.min(self.pages.len);
        let beyond = Self { engine: self.engine, pages: Pages { done: at, ..self.pages } };
        self.pages.len = at;
        beyond
    }

    /// The pages that are not dealt with.
    pub(super) fn rest(&self) -> PageRange {
        let start = self.pages.first();
        PageRange::new(start, self.pages()).unwrap_or_else(|| PageRange::page_of(start))
    }

    /// How many those are.
    pub(super) fn pages(&self) -> PageCount {
        PageCount::new(u64::from(self.pages.len - self.pages.done))
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.pages.done == self.pages.len
    }

    /// Whether the touched page is still to be dealt with: it is the first.
    pub(super) const fn owes_touched(&self) -> bool {
        self.pages.done == 0
    }

    /// How many pages the fault was to bring home at most.
    pub(super) const fn window(&self) -> u16 {
        self.pages.window
    }

    /// The frame of page `offset` of the rest.
    pub(super) fn frame(&self, offset: PageCount) -> Frame {
        self.pages.frames[usize::from(self.pages.done)..usize::from(self.pages.len)][offset.as_usize()]
    }

    /// Those from page `offset` of the rest on, at most `most`, whose frames follow one another.
    pub(super) fn run(&self, offset: PageCount, most: PageCount) -> Frames {
        let first = self.frame(offset);
        let mut n = PageCount::ONE;
        while n < most && offset + n < self.pages() && Frames::new(first, n).goes_on_with(self.frame(offset + n)) {
            n += PageCount::ONE;
        }
        Frames::new(first, n)
    }

    /// How many pages of the rest, at most `most`, are this fault's still: events may have dropped or moved them.
    pub(super) fn ours(&self, state: &BlockState, most: PageCount) -> PageCount {
        let is_ours = |(page, frame): (VirtAddr, Frame)| {
            state.slot(page.index_in_block()) == Slot::Unmapped { frame, busy: true }
        };
        let rest = self.rest().slice(PageCount::ZERO, most);
        let frames = &self.pages.frames[usize::from(self.pages.done)..];
        PageCount::new(rest.iter().zip(frames.iter().copied()).take_while(|page| is_ours(*page)).count() as u64)
    }

    /// The first `pages` pages of the rest are dealt with.
    pub(super) fn advance(&mut self, pages: PageCount) {
        let mut leaving = Leaving::new(self.engine, Left::Page);
        for i in 0..pages.get() {
            leaving.add(Frames::single(self.frame(PageCount::new(i))));
        }
        drop(leaving);
        self.pages.done += u16::try_from(pages.get()).expect("a cluster has a few pages");
    }
}

impl<H: Host> Drop for Cluster<'_, H> {
    fn drop(&mut self) {
        self.advance(self.pages());
    }
}

//! References to frames, which their holders own.
//!
//! A frame is in use as long as somebody refers to it: the slot of the page that it holds, and whoever works on it. The latter's references are
//! values ([`FrameRefs`]): cloning one counts, dropping it lets go. The former's are in the slots, eight bytes a page; they become values where a
//! slot leaves its frame, and values become theirs where it gets one:
//!
//! | | slots | the reference |
//! | --- | --- | --- |
//! | [`Engine::occupy`] | name these frames now | goes to the slots; those they had before are let go of |
//! | [`Engine::vacate`] | name none | is let go of |
//! | [`Engine::take_slot`] | names none | is the caller's |
//! | [`restate`] | name the same frames, in another state | stays |

use crate::engine::Engine;
use crate::frames::FrameRun;
use crate::port::Host;
use crate::slot::{Frame, SYSTEM_POOL, Slot};
use crate::space::BlockState;
use crate::units::{DeviceId, PageCount, PageRange, VirtAddr};

/// A run of frames and whose they are. This names them, and keeps none in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Frames {
    pub(crate) device: DeviceId,
    pub(crate) run: FrameRun,
}

impl Frames {
    #[inline]
    pub(crate) fn new(first: Frame, pages: PageCount) -> Self {
        Self { device: first.device, run: FrameRun { first: first.index, pages } }
    }

    #[inline]
    pub(crate) fn single(frame: Frame) -> Self {
        Self::new(frame, PageCount::ONE)
    }

    #[inline]
    pub(crate) fn slice(self, skip: PageCount, take: PageCount) -> Self {
        Self { device: self.device, run: self.run.slice(skip, take) }
    }

    #[inline]
    pub(crate) fn frame(self, offset: PageCount) -> Frame {
        Frame { device: self.device, index: self.run.frame(offset) }
    }

    #[inline]
    pub(crate) fn iter(self) -> impl Iterator<Item = Frame> {
        self.run.iter().map(move |index| Frame { device: self.device, index })
    }

    #[inline]
    pub(crate) const fn is_pool(self) -> bool {
        self.device.index() == SYSTEM_POOL.index()
    }

    /// Whether `frame` comes after the last of them.
    #[inline]
    pub(crate) fn goes_on_with(self, frame: Frame) -> bool {
        let next = u64::from(self.run.first.get()) + self.run.pages.get();
        self.device == frame.device && next == u64::from(frame.index.get())
    }
}

/// What is in frames that a page leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Left {
    /// The page's bytes.
    Page,
    /// Nothing: the page itself was moved away, or is not there for another reason.
    Nothing,
}

/// A reference to each of a run of frames, let go of when it is dropped, with the page's bytes left in the frame ([`Left::Page`]).
#[must_use]
pub(crate) struct FrameRefs<'e, H: Host> {
    engine: &'e Engine<H>,
    /// None is left where the references went elsewhere.
    frames: Frames,
}

impl<'e, H: Host> FrameRefs<'e, H> {
    /// Those that were counted for the caller.
    pub(crate) const fn counted(engine: &'e Engine<H>, frames: Frames) -> Self {
        Self { engine, frames }
    }

    #[inline]
    pub(crate) const fn frames(&self) -> Frames {
        self.frames
    }

    #[inline]
    pub(crate) const fn pages(&self) -> PageCount {
        self.frames.run.pages
    }

    #[inline]
    pub(crate) fn frame(&self, offset: PageCount) -> Frame {
        self.frames.frame(offset)
    }

    /// Where the frames lie while the program does not map them ([`Engine::address`]).
    pub(crate) fn address(&self) -> Option<VirtAddr> {
        self.engine.address(self.frames)
    }

    /// Those to the first `pages` frames; the others stay.
    pub(crate) fn take_front(&mut self, pages: PageCount) -> Self {
        let front = self.frames.slice(PageCount::ZERO, pages);
        self.frames = self.frames.slice(pages, self.frames.run.pages - pages);
        Self { engine: self.engine, frames: front }
    }

    /// Says in the descriptor of the first frame that it holds `page` now, if it is a device's.
    pub(crate) fn set_page(&self, page: VirtAddr) {
        let Frame { device, index } = self.frame(PageCount::ZERO);
        if device != SYSTEM_POOL {
            self.engine.device_of(device).pagemap().frames.descriptor(index).set_page(page);
        }
    }

    /// Lets go of them, saying what is in the frames.
    pub(crate) fn release(self, left: Left) {
        let engine = self.engine;
        engine.release(self.into_counted(), left);
    }

    /// The frames, to whose references somebody else sees now.
    pub(crate) fn into_counted(mut self) -> Frames {
        let frames = self.frames;
        self.frames.run.pages = PageCount::ZERO;
        frames
    }
}

impl<H: Host> Clone for FrameRefs<'_, H> {
    fn clone(&self) -> Self {
        self.engine.refer_to(self.frames)
    }
}

impl<H: Host> Drop for FrameRefs<'_, H> {
    fn drop(&mut self) {
        if !self.pages().is_zero() {
            self.engine.release(self.frames, Left::Page);
        }
    }
}

/// References that come in pieces and are let go of by runs.
pub(crate) struct Leaving<'e, H: Host> {
    engine: &'e Engine<H>,
    left: Left,
    run: Option<Frames>,
}

impl<'e, H: Host> Leaving<'e, H> {
    #[inline]
    pub(crate) const fn new(engine: &'e Engine<H>, left: Left) -> Self {
        Self { engine, left, run: None }
    }

    /// Lets go of a reference to each of `frames` that was counted.
    #[inline]
    pub(crate) fn add(&mut self, frames: Frames) {
        match &mut self.run {
            Some(run) if run.goes_on_with(frames.frame(PageCount::ZERO)) => run.run.pages += frames.run.pages,
            run => {
                if let Some(run) = run.replace(frames) {
                    self.engine.release(run, self.left);
                }
            }
        }
    }
}

impl<H: Host> Drop for Leaving<'_, H> {
    fn drop(&mut self) {
        if let Some(run) = self.run {
            self.engine.release(run, self.left);
        }
    }
}

/// The slots of `at` name `frames` as before, each in the state that `state_of` gives it.
pub(crate) fn restate(state: &mut BlockState, at: PageRange, frames: Frames, state_of: impl Fn(Frame) -> Slot) {
    if at.is_empty() {
        return;
    }
    let mut at_frame = PageCount::ZERO;
    state.set_run(at, state_of(frames.frame(PageCount::ZERO)), |was, pages| {
        debug_assert_eq!(was.frame(), Some(frames.frame(at_frame)), "the slot's reference stays");
        at_frame += pages;
    });
}

impl<H: Host> Engine<H> {
    /// Takes another reference to frames that are in use.
    pub(crate) fn refer_to(&self, frames: Frames) -> FrameRefs<'_, H> {
        if frames.is_pool() {
            self.pool.acquire(frames.run);
        } else {
            self.device_of(frames.device).pagemap().frames.acquire(frames.run);
        }
        FrameRefs::counted(self, frames)
    }

    fn release(&self, frames: Frames, left: Left) {
        if frames.is_pool() {
            return match left {
                Left::Page => self.pool.release(frames.run),
                Left::Nothing => self.pool.release_empty(frames.run),
            };
        }
        let device = self.device_of(frames.device);
        let (table, released) = (&device.pagemap().frames, |run| device.released(run));
        let freed = match left {
            // The device keeps what was laid over the program's.
            Left::Nothing if !self.lays(frames.device) => table.release_empty(frames.run, released),
            Left::Page | Left::Nothing => table.release(frames.run, released),
        };
        self.counters.devices[frames.device.index()].sub(freed.bytes().get());
    }

    /// The pages of `at`, all of one block, are in the frames of `refs` now, in the state that `state_of` gives each slot.
    pub(crate) fn occupy(
        &self,
        state: &mut BlockState,
        at: PageRange,
        refs: FrameRefs<'_, H>,
        state_of: impl Fn(Frame) -> Slot,
    ) {
        assert_eq!(at.pages(), refs.pages(), "each page has a frame");
        let frames = refs.into_counted();
        if at.is_empty() {
            return;
        }
        let mut before = Leaving::new(self, Left::Page);
        state.set_run(at, state_of(frames.frame(PageCount::ZERO)), |was, pages| {
            was.frame().into_iter().for_each(|frame| before.add(Frames::new(frame, pages)));
        });
    }

    /// The pages of `at`, all of one block, are the system's now, and `left` is what they leave in their frames.
    pub(crate) fn vacate(&self, state: &mut BlockState, at: PageRange, left: Left) {
        let mut before = Leaving::new(self, left);
        state.set_run(at, Slot::System, |was, pages| {
            was.frame().into_iter().for_each(|frame| before.add(Frames::new(frame, pages)));
        });
    }

    /// The slot of `page`, if it names a frame, with the reference that it had: the page is the system's as long as no other slot gets it.
    pub(crate) fn take_slot(&self, state: &mut BlockState, page: VirtAddr) -> Option<(Slot, FrameRefs<'_, H>)> {
        let was = state.slot(page.index_in_block());
        let frame = was.frame()?;
        state.set(page.index_in_block(), Slot::System);
        Some((was, FrameRefs::counted(self, Frames::single(frame))))
    }
}

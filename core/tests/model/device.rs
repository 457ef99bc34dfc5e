//! Devices over the model.

use std::sync::Arc;

use hetmem_core::frames::FrameRun;
use hetmem_core::physmap::Pagemap;
use hetmem_core::port::{Astray, Device, DeviceError};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};

use super::{Failure, GARBAGE, Memory, Model, StepKind, Token, ZERO, nth};

/// A device, private unless it has an arena or a window.
pub(crate) struct ModelDevice {
    pub(crate) pagemap: Pagemap,
    pub(crate) arena: Option<VirtAddr>,
    /// Where the frames lie that are laid over the program's pages.
    pub(crate) window: Option<VirtAddr>,
    pub(crate) model: Arc<Model>,
}

impl ModelDevice {
    /// The content of the run's frame `i`, which must have one.
    fn get(&self, memory: &Memory, run: FrameRun, i: u64) -> Token {
        let frame = run.frame(PageCount::new(i));
        match self.arena.or(self.window) {
            Some(arena) => memory.own_content(nth(arena, u64::from(frame.get()))),
            None => {
                let at = (self.pagemap.device.index(), frame.get());
                *memory.private.get(&at).expect("a frame that was never filled is read")
            }
        }
    }

    fn set(&self, memory: &mut Memory, run: FrameRun, i: u64, content: Token) {
        let frame = run.frame(PageCount::new(i));
        match self.arena.or(self.window) {
            Some(arena) => memory.own.insert(nth(arena, u64::from(frame.get())).get(), content),
            None => memory.private.insert((self.pagemap.device.index(), frame.get()), content),
        };
    }
}

impl ModelDevice {
    fn panic_if_told(&self, failure: Option<Failure>) {
        let panics = failure.is_none() && std::mem::take(&mut self.model.lock().panics);
        assert!(!panics, "the device panics");
    }
}

impl Device for ModelDevice {
    fn pagemap(&self) -> &Pagemap {
        &self.pagemap
    }

    fn frames_start(&self) -> Option<VirtAddr> {
        self.arena
    }

    fn overlay_start(&self) -> Option<VirtAddr> {
        self.window
    }

    fn astray(&self, range: PageRange, visit: &mut dyn FnMut(VirtAddr, Astray)) {
        let strays = self.model.lock().strays.clone();
        range.iter().filter(|page| strays.contains(&page.get())).for_each(|page| visit(page, Astray::Elsewhere));
    }

    fn copy_in(&self, to: FrameRun, from: VirtAddr) -> Result<(), DeviceError> {
        let failure = self.model.step(StepKind::CopyIn);
        self.panic_if_told(failure);
        let mut memory = self.model.lock();
        for i in 0..to.pages.get() {
            let content = memory.own_content(nth(from, i));
            self.set(&mut memory, to, i, if failure.is_some() { GARBAGE } else { content });
        }
        if failure.is_some() { Err(DeviceError) } else { Ok(()) }
    }

    fn copy_out(&self, from: FrameRun, to: VirtAddr) -> Result<(), DeviceError> {
        let failure = self.model.step(StepKind::CopyOut);
        self.panic_if_told(failure);
        let mut memory = self.model.lock();
        let device = self.pagemap.device.index();
        let fails = failure.is_some() || from.iter().any(|frame| memory.broken.contains(&(device, frame.get())));
        for i in 0..from.pages.get() {
            let content = self.get(&memory, from, i);
            memory.own.insert(nth(to, i).get(), if fails { GARBAGE } else { content });
        }
        if fails { Err(DeviceError) } else { Ok(()) }
    }

    fn clear(&self, run: FrameRun) {
        let mut memory = self.model.lock();
        for i in 0..run.pages.get() {
            self.set(&mut memory, run, i, ZERO);
        }
    }
}

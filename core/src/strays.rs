//! Strays: pages that are mapped from a device's frames and have left the device's memory behind hetmem's back.
//!
//! A mapped page is the kernel's business, which copies and moves it by rules of its own: it copies where parent or child write first
//! after a fork, and puts the copy where the program's policy says; administrators and demotion move pages, too. None of that is
//! told. So the device is asked ([`Device::astray`]):
//!
//! | when | what becomes of a stray |
//! | --- | --- |
//! | [`Engine::residency`] | it is said to be in system memory, as it is |
//! | pages are collected for that device | its slot becomes `System`, and it moves as any other system page |
//! | [`Engine::audit`], a few pages at a time | its slot becomes `System`: its frame is free, and policies count the page where it is |
//!
//! *Limits:* an answer holds at the moment of the question, as a touch may bring any page elsewhere at any time.

use std::sync::atomic::Ordering::Relaxed;

use crate::engine::Engine;
use crate::frames::Left;
use crate::notifier::Event;
#[cfg(doc)]
use crate::port::Device;
use crate::port::{Astray, Host};
use crate::slot::Slot;
use crate::space::BlockState;
use crate::units::{BlockNo, DeviceId, PageCount, PageRange, VirtAddr};

/// Mapped pages after which an audit is over for now.
const AUDITED: PageCount = PageCount::new(1024);
/// Blocks after which it is, whatever is in them.
const AUDITED_BLOCKS: usize = 64;

impl<H: Host> Engine<H> {
    /// Calls `visit` with each page of `part`, which lies in the block of `state`, that is mapped from a device, the device `only` if one
    /// is given, and no longer in its memory.
    pub(crate) fn each_stray(
        &self,
        state: &BlockState,
        part: PageRange,
        only: Option<DeviceId>,
        mut visit: impl FnMut(VirtAddr, Astray),
    ) {
        if state.mapped() == 0 {
            return;
        }
        let device_at = |offset: PageCount| match state.slot(part.start().add_pages(offset).index_in_block()) {
            Slot::Mapped(frame) if only.is_none_or(|only| only == frame.device) => Some(frame.device),
            Slot::System | Slot::Mapped(_) | Slot::Unmapped { .. } => None,
        };
        let mut at = PageCount::ZERO;
        while at < part.pages() {
            let device = device_at(at);
            let mut n = PageCount::ONE;
            while at + n < part.pages() && device_at(at + n) == device {
                n += PageCount::ONE;
            }
            if let Some(device) = device {
                self.device_of(device).astray(part.slice(at, n), &mut visit);
            }
            at += n;
        }
    }

    /// Corrects the slots of strays. With the gate held, and mirrors told.
    pub(crate) fn forget_strays(&self, state: &mut BlockState, part: PageRange, only: Option<DeviceId>) {
        let mut strays = Vec::new();
        self.each_stray(state, part, only, |page, place| strays.push((page, place)));
        for (page, place) in strays {
            let Slot::Mapped(frame) = state.slot(page.index_in_block()) else { continue };
            self.vacate(state, PageRange::page_of(page), Left::Nothing);
            if place == Astray::Elsewhere {
                self.counters.devices[frame.device.index()].stray_pages.fetch_add(1, Relaxed);
            }
        }
    }

    /// Calls `visit` with each page that is mapped from a device's frame and could be moved there. With the gate and a block held.
    pub fn each_mapped(&self, mut visit: impl FnMut(PageRange)) {
        let mut at = None;
        loop {
            let _shared = self.space.gate.share();
            let Some((no, block)) = self.space.block_after(at) else { return };
            at = Some(no);
            let state = block.lock();
            if state.mapped() == 0 {
                continue;
            }
            for page in no.range().iter() {
                if let Slot::Mapped(frame) = state.slot(page.index_in_block())
                    && !self.lays(frame.device)
                {
                    visit(PageRange::page_of(page));
                }
            }
        }
    }

    /// The program writes to `page`, which it shares with a forked child: the kernel makes it a copy in system memory, and what was the device's is
    /// the child's. For a thread that serves faults.
    pub fn copied_on_write(&self, page: VirtAddr) {
        let _notice = self.notifiers.start_if_any(PageRange::page_of(page), Event::Migrate(None), false);
        let _shared = self.space.gate.share();
        let Some(block) = self.space.existing_block(page.block()) else { return };
        let mut state = block.lock();
        if let Slot::Mapped(frame) = state.slot(page.index_in_block())
            && !self.lays(frame.device)
        {
            self.vacate(&mut state, PageRange::page_of(page), Left::Nothing);
            self.counters.devices[frame.device.index()].stray_pages.fetch_add(1, Relaxed);
        }
    }

    /// Corrects the slots of strays in some blocks after `after`, or from the first on. Returns where to go on; `None` is the end.
    pub fn audit(&self, after: Option<BlockNo>) -> Option<BlockNo> {
        let (mut at, mut asked) = (after, PageCount::ZERO);
        for _ in 0..AUDITED_BLOCKS {
            if asked >= AUDITED {
                break;
            }
            let (no, mapped, found) = {
                // A block is looked up with the gate held, or an event may have ended it.
                let _shared = self.space.gate.share();
                let (no, block) = self.space.block_after(at)?;
                let state = block.lock();
                let mut found = false;
                self.each_stray(&state, no.range(), None, |_, _| found = true);
                (no, state.mapped(), found)
            };
            if found {
                let (shared, notice) = self.share_noticed(no.range(), Event::Migrate(None));
                if let Some(block) = self.space.existing_block(no) {
                    self.forget_strays(&mut block.lock(), no.range(), None);
                }
                drop(shared);
                drop(notice);
            }
            (at, asked) = (Some(no), asked + PageCount::new(u64::from(mapped)));
        }
        at
    }
}

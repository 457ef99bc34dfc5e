//! The physical map: which frame numbers exist, of what kind, and whose they are.
//!
//! The machine's frames are known by ranges, which the caller has from the firmware's map; each device adds a [`Pagemap`] of frames in a
//! number space of its own ([`Pfn`]). `pfn_valid`, `pfn_to_page` and `page_to_pfn` hold for system, coherent and private
//! pages alike, and not for plain MMIO, which nobody registers. [`Engine::physmap`] is that of a running engine, [`Engine::pfn_of`] says which frame
//! a page is in.

use std::ops::Range;

use crate::engine::Engine;
use crate::frames::FrameTable;
use crate::port::Host;
use crate::slot::SYSTEM_POOL;
use crate::units::{DeviceId, FrameIndex, PageCount, Pfn, VirtAddr};

/// What the CPU can do with a device's memory (`enum memory_type`, `include/linux/memremap.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MemoryType {
    /// The CPU can't address it: a touch brings the page home (`MEMORY_DEVICE_PRIVATE`).
    DevicePrivate,
    /// The CPU maps it and uses it in place (`MEMORY_DEVICE_COHERENT`; `DEVICE_PUBLIC` in the discussion of 2021).
    DeviceCoherent,
}

impl MemoryType {
    /// The word for it in device specifications and statistics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::DevicePrivate => "private",
            Self::DeviceCoherent => "coherent",
        }
    }
}

/// Whose a device's pages are. A request may name an owner; then it moves no device's page of another owner.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Owner(u64);

impl Owner {
    /// The owner `raw`; any number, compared for equality only.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// The frames of one device (`struct dev_pagemap`).
#[derive(Debug)]
pub struct Pagemap {
    /// The device.
    pub device: DeviceId,
    /// What the CPU can do with its frames.
    pub memory_type: MemoryType,
    /// Whose they are.
    pub owner: Owner,
    /// Their descriptors.
    pub frames: FrameTable,
}

impl Pagemap {
    /// A pagemap of `capacity` free frames.
    #[must_use]
    pub fn new(device: DeviceId, memory_type: MemoryType, owner: Owner, capacity: PageCount) -> Self {
        Self { device, memory_type, owner, frames: FrameTable::new(capacity) }
    }
}

/// A page: its descriptor for a device's, its number for the machine's.
#[derive(Clone, Copy)]
pub enum Page<'a> {
    /// A page of system memory.
    System(Pfn),
    /// A page of a device.
    Device(&'a Pagemap, FrameIndex),
}

/// Every frame that has a page descriptor.
#[derive(Default)]
pub struct PhysMap<'a> {
    system: Vec<Range<u64>>,
    pagemaps: Vec<&'a Pagemap>,
}

impl<'a> PhysMap<'a> {
    /// Says that the machine's frames numbered `pfns` are system memory.
    pub fn add_system(&mut self, pfns: Range<u64>) {
        self.system.push(pfns);
    }

    /// Adds a device's frames.
    ///
    /// # Panics
    ///
    /// If a pagemap of the same device is there already.
    pub fn add_pagemap(&mut self, pagemap: &'a Pagemap) {
        assert!(self.pagemap(pagemap.device).is_none(), "a device has one pagemap");
        self.pagemaps.push(pagemap);
    }

    fn pagemap(&self, device: DeviceId) -> Option<&'a Pagemap> {
        self.pagemaps.iter().copied().find(|p| p.device == device)
    }

    /// Whether `pfn` has a page descriptor (it says nothing about who may use it, as in the kernel).
    #[must_use]
    pub fn pfn_valid(&self, pfn: Pfn) -> bool {
        self.pfn_to_page(pfn).is_some()
    }

    /// The page numbered `pfn`, if there is one.
    #[must_use]
    pub fn pfn_to_page(&self, pfn: Pfn) -> Option<Page<'a>> {
        if let Some((device, frame)) = pfn.as_device() {
            let pagemap = self.pagemap(device)?;
            return pagemap.frames.contains(frame).then_some(Page::Device(pagemap, frame));
        }
        let raw = pfn.as_machine()?;
        self.system.iter().any(|r| r.contains(&raw)).then_some(Page::System(pfn))
    }

    /// The number of `page`.
    #[must_use]
    pub fn page_to_pfn(&self, page: Page<'_>) -> Pfn {
        match page {
            Page::System(pfn) => pfn,
            Page::Device(pagemap, frame) => Pfn::device(pagemap.device, frame),
        }
    }
}

impl<H: Host> Engine<H> {
    /// The frames of this engine's devices, and the machine's numbered `system`.
    pub fn physmap(&self, system: impl IntoIterator<Item = Range<u64>>) -> PhysMap<'_> {
        let pagemaps = self.devices().iter().map(|device| device.pagemap()).collect();
        PhysMap { system: system.into_iter().collect(), pagemaps }
    }

    /// The frame of a device that `page` is in, by the books; `None` for a page in system memory, whose frame number the kernel tells nobody without
    /// privilege.
    pub fn pfn_of(&self, page: VirtAddr) -> Option<Pfn> {
        let frame = self.slot(page).frame().filter(|frame| frame.device != SYSTEM_POOL)?;
        Some(Pfn::device(frame.device, frame.index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pfns_and_pages_convert_both_ways_for_every_kind_and_not_for_mmio() {
        let coherent = Pagemap::new(DeviceId::new(0), MemoryType::DeviceCoherent, Owner::new(1), PageCount::new(4));
        let private = Pagemap::new(DeviceId::new(1), MemoryType::DevicePrivate, Owner::new(2), PageCount::new(4));
        let mut map = PhysMap::default();
        map.add_system(0x100..0x200);
        map.add_pagemap(&coherent);
        map.add_pagemap(&private);
        let device = |d, f| Pfn::device(DeviceId::new(d), FrameIndex::new(f));
        for pfn in [Pfn::machine(0x100).unwrap(), device(0, 3), device(1, 0)] {
            assert!(map.pfn_valid(pfn));
            assert_eq!(map.page_to_pfn(map.pfn_to_page(pfn).unwrap()), pfn);
        }
        for pfn in [Pfn::machine(0x200).unwrap(), device(0, 4), device(2, 0)] {
            assert!(!map.pfn_valid(pfn), "{pfn:?}");
        }
    }
}

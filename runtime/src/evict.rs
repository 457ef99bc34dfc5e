//! Emptying a device: pages are found by their frames, and brought home.

use hetmem_core::frames::FrameRun;
use hetmem_core::migrate::{Request, Select, Target};
use hetmem_core::outcome::KeptReason;
use hetmem_core::physmap::{MemoryType, Owner};
use hetmem_core::port::Host as _;
use hetmem_core::units::{DeviceId, FrameIndex, PageCount, PageRange, VirtAddr};

use crate::error::Error;
use crate::inner::Inner;
use crate::runtime::Runtime;

/// How often the pages of a device are looked for that is being emptied while others use it.
const ROUNDS: u32 = 1000;

impl Runtime {
    /// Brings the pages in the `frames` of `device` home, without need of knowing where they belong, and returns how many came. A device under
    /// pressure makes room so.
    pub fn evict(&self, device: DeviceId, frames: FrameRun) -> PageCount {
        self.inner.evict(device, frames).0
    }

    /// Takes `device` out of use: no page goes there any more, and all that are there come home.
    ///
    /// # Errors
    ///
    /// If there is no such device, or if pages could not come home. These are where they were, come home with a touch as ever, no page goes to the
    /// device, and this may be called again.
    pub fn remove_device(&self, device: DeviceId) -> Result<(), Error> {
        let Some(known) = self.inner.engine.device(device) else {
            return Err(Error::invalid(format!("there is no device {}", device.index())));
        };
        let table = &known.pagemap().frames;
        table.close(true);
        let all = FrameRun { first: FrameIndex::new(0), pages: table.capacity() };
        let mut why = None;
        for _ in 0..ROUNDS {
            if table.used().is_zero() {
                return Ok(());
            }
            let (moved, reason) = self.inner.evict(device, all);
            why = reason.or(why);
            if moved.is_zero() {
                // Others are at work on them: a migration, a touch, an event.
                self.inner.engine.host().await_events();
            }
        }
        let left = table.used().get();
        let why = why.map_or("they are in use all the time", KeptReason::label);
        Err(Error::invalid(format!("{left} pages of device {} could not come home ({why})", device.index())))
    }

    /// Takes a device that was removed into use again.
    pub fn restore_device(&self, device: DeviceId) {
        if let Some(known) = self.inner.engine.device(device) {
            known.pagemap().frames.close(false);
        }
    }
}

impl Inner {
    /// Returns how many pages came home, and why another did not.
    fn evict(&self, device: DeviceId, frames: FrameRun) -> (PageCount, Option<KeptReason>) {
        let Some(pagemap) = self.engine.device(device).map(|device| device.pagemap()) else {
            return (PageCount::ZERO, None);
        };
        let select = match pagemap.memory_type {
            MemoryType::DevicePrivate => Select::DEVICE_PRIVATE,
            MemoryType::DeviceCoherent => Select::DEVICE_COHERENT,
        };
        let pages = self.engine.pages_in(device, frames);
        let request = Request { target: Target::System, select, owner: Some(pagemap.owner) };
        let outcomes = self.migrate(&pages, request);
        let moved = outcomes.iter().map(hetmem_core::outcome::Outcomes::moved).sum();
        let kept = outcomes.iter().flat_map(|o| o.as_slice()).find_map(|o| match o.kept() {
            Some(KeptReason::AlreadyThere | KeptReason::Hole) | None => None,
            reason => reason,
        });
        (moved, kept)
    }

    /// [`hetmem_core::engine::Engine::make_exclusive`], with touches of the page trapped.
    pub(crate) fn make_exclusive(&self, page: VirtAddr, owner: Owner) -> Result<VirtAddr, KeptReason> {
        let claim = self.trapped(PageRange::page_of(page));
        let result = match claim.refused().iter().find(|(range, _)| range.contains(page)) {
            Some((_, reason)) => Err(*reason),
            // If it is not managed, this says so.
            None => self.engine.make_exclusive(page, owner),
        };
        drop(claim);
        self.tell_of_resting();
        result
    }
}

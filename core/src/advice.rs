//! What a program says of the use of its memory ([`Advice`]), and what it gives up of it ([`Engine::discard_range`]).
//!
//! What is said of a range is kept with its regions. So it is cut where they are cut, goes with the pages where these go (`mremap`), and ends with the
//! mapping.
//!
//! | advice | is | who goes by it |
//! | --- | --- | --- |
//! | `Pin` | [`Region::pinned`] | every migration, and samples |
//! | `PreferredLocation`, `ReadMostly` | [`Region::preferred`] | policies; where `Soon` brings pages |
//! | `NotSoon` | [`Region::not_soon`], until a policy has [taken it](Engine::take_not_soon); and its pages are cold | policies |
//! | `Soon` | no longer that, and its pages are [hot](Engine::expect_use) | who gives the advice brings them; policies |
//!
//! *Limits:* there is one copy of a page. So read-mostly memory is best kept where processors and devices both read it, and nowhere twice.

use std::sync::atomic::Ordering::SeqCst;

use crate::engine::Engine;
use crate::frames::FrameTable;
use crate::heat::{BlockHeat, Heat};
use crate::migrate::Target;
use crate::outcome::{KeptReason, Outcomes, PageOutcome};
use crate::physmap::MemoryType;
use crate::port::Host;
use crate::space::Region;
use crate::units::{DeviceId, PageCount, PageRange};

/// What is known of the use of a range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Advice {
    /// Its pages are best kept on this device: what a policy sends out of system memory goes there first, and [`Advice::Soon`] brings pages there.
    PreferredLocation(DeviceId),
    /// Processors and devices read its pages, and seldom write them: they are best kept on the first coherent device that has room, where both read them
    /// in place. There is one copy of each page, as ever. Takes the place of a preferred location.
    ReadMostly,
    /// No place is preferred: undoes [`Advice::PreferredLocation`] and [`Advice::ReadMostly`].
    NoPreference,
    /// Keep here: its pages stay where they are. Migrations keep them as [`KeptReason::Advised`], and no policy takes them out to look whether they are
    /// used. Faults still bring private pages home.
    Pin,
    /// Its pages may move again.
    Unpin,
    /// It is used soon: its pages are brought to where they are best kept now, which is system memory if nothing else is preferred. Said once, it is done
    /// once. Pages that can't be moved stay where they are; the use of them is what finds out.
    Soon,
    /// It is not used for a while: a policy that has to make room takes its pages first. It holds for what is there now, until they were taken, or until
    /// [`Advice::Soon`]; nothing moves for it by itself.
    NotSoon,
}

/// Where pages are best kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preference {
    /// On this device.
    Device(DeviceId),
    /// On a coherent device.
    Coherent,
}

/// Why advice is not taken, or not wholly.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AdviceError {
    /// No such device; nothing was said.
    #[error("there is no device {}; there are {devices}", .device.index())]
    NoDevice {
        /// Which was named.
        device: DeviceId,
        /// How many there are.
        devices: usize,
    },
    /// This part of the range, the first of its kind, is not managed. The others have the advice.
    #[error("{0} is not managed; the advice holds for what is")]
    Unmanaged(PageRange),
}

/// Why a range was not discarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiscardError<E> {
    /// This part of it is not managed. Nothing was discarded.
    Unmanaged(PageRange),
    /// A block of device memory that is mapped over a part of it stays, for this reason. Nothing was discarded.
    Laid(KeptReason),
    /// The host refuses. Parts may be discarded.
    Host(E),
}

impl<H: Host> Engine<H> {
    /// Takes advice on `range`. Who gives [`Advice::Soon`] has the pages brought to their [best places](Self::best_places), too. The caller holds no lock.
    ///
    /// # Errors
    ///
    /// If a device is named that is not there, or a part of the range is not managed.
    pub fn advise(&self, range: PageRange, advice: Advice) -> Result<(), AdviceError> {
        let devices = self.devices().len();
        if let Advice::PreferredLocation(device) = advice
            && device.index() >= devices
        {
            return Err(AdviceError::NoDevice { device, devices });
        }
        self.change_region(range, |region| match advice {
            Advice::PreferredLocation(device) => region.preferred = Some(Preference::Device(device)),
            Advice::ReadMostly => region.preferred = Some(Preference::Coherent),
            Advice::NoPreference => region.preferred = None,
            Advice::Pin => region.pinned = true,
            Advice::Unpin => region.pinned = false,
            Advice::Soon => region.not_soon = false,
            Advice::NotSoon => region.not_soon = true,
        });
        match advice {
            // A block that was about to come home does, and none after.
            Advice::Pin => _ = self.await_exchanges(range),
            Advice::NotSoon => {
                self.forget_use(range);
                // SeqCst pairs with `take_not_soon`: who takes them sees the regions, or what is stored here.
                self.space.some_not_soon.store(true, SeqCst);
            }
            Advice::PreferredLocation(_) | Advice::ReadMostly | Advice::NoPreference | Advice::Unpin | Advice::Soon => {
            }
        }
        self.unmanaged_in(range).map_or(Ok(()), |part| Err(AdviceError::Unmanaged(part)))
    }

    /// What advice there is, in order of address, unless somebody is about to change it.
    #[must_use]
    pub fn try_advice(&self) -> Option<Vec<(PageRange, Region)>> {
        let is_advised = |region: &Region| region.pinned || region.preferred.is_some() || region.not_soon;
        Some(self.space.try_regions()?.into_iter().filter(|(_, region)| is_advised(region)).collect())
    }

    /// The first part of `range` that is not managed, if any.
    #[must_use]
    pub fn unmanaged_in(&self, range: PageRange) -> Option<PageRange> {
        self.space.regions_in(range).into_iter().find(|(_, region)| region.is_none()).map(|(part, _)| part)
    }

    /// The device on which pages of `region` are best kept now.
    #[must_use]
    pub fn preferred(&self, region: &Region) -> Option<DeviceId> {
        match region.preferred? {
            Preference::Device(device) => Some(device),
            Preference::Coherent => {
                let mut pagemaps = self.devices().iter().map(|device| device.pagemap());
                let has_room = |frames: &FrameTable| frames.used() < frames.capacity();
                let coherent =
                    pagemaps.find(|map| map.memory_type == MemoryType::DeviceCoherent && has_room(&map.frames));
                coherent.map(|pagemap| pagemap.device)
            }
        }
    }

    /// The managed parts of `range`, in order, each with where its pages are best kept now.
    #[must_use]
    pub fn best_places(&self, range: PageRange) -> Vec<(PageRange, Target)> {
        let place = |region: &Region| self.preferred(region).map_or(Target::System, Target::Device);
        let parts = self.space.regions_in(range).into_iter();
        parts.filter_map(|(part, region)| Some((part, place(&region?)))).collect()
    }

    /// To policies the pages of `range` are in use from now on, as far as it is managed.
    pub fn expect_use(&self, range: PageRange) {
        for (part, _) in self.managed_parts(&[range]) {
            let _shared = self.space.gate.share();
            let block = self.space.block(part.start().block());
            let mut state = block.lock();
            part.iter().for_each(|page| state.warmth.touch(page.index_in_block()));
            let heat = state.heat.get_or_insert_with(|| Box::new(BlockHeat::new(self.tick())));
            heat.set(part, Heat::IN_USE);
        }
    }

    /// To policies the pages of `range` were not used for long.
    fn forget_use(&self, range: PageRange) {
        for (no, block) in self.space.blocks_in(range) {
            let Some(part) = range.intersect(no.range()) else { continue };
            let mut state = block.lock();
            part.iter().for_each(|page| _ = state.warmth.take(page.index_in_block()));
            if let Some(heat) = &mut state.heat {
                heat.set(part, Heat::UNKNOWN);
            }
        }
    }

    /// Up to `most` pages that are [not used soon](Advice::NotSoon), the next in order of address; that was said of them no longer. Costs nothing while it
    /// is said of none, and a search if it is.
    #[must_use]
    pub fn take_not_soon(&self, most: PageCount) -> Option<PageRange> {
        if most.is_zero() || !self.space.some_not_soon.swap(false, SeqCst) {
            return None;
        }
        let (range, _) = self.space.regions().into_iter().find(|(_, region)| region.not_soon)?;
        let part = range.slice(PageCount::ZERO, most);
        self.change_region(part, |region| region.not_soon = false);
        self.space.some_not_soon.store(true, SeqCst);
        Some(part)
    }

    /// Gives the contents of `range` up: it reads as zeros on return, whoever has moved its pages meanwhile, and takes no memory. What other threads write
    /// there before the return may be lost.
    ///
    /// `drop_pages` has the kernel drop them, as by `MADV_DONTNEED`, of which the event is read on another thread; and `bring_home` migrates what it is
    /// given to system memory. The caller holds no lock.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn discard_range<E>(
        &self,
        range: PageRange,
        bring_home: impl FnOnce(&[PageRange]) -> Vec<Outcomes>,
        drop_pages: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), DiscardError<E>> {
        if let Some(part) = self.unmanaged_in(range) {
            return Err(DiscardError::Unmanaged(part));
        }
        // To the kernel a block of device memory is a shared mapping, which keeps its bytes.
        let _held = self.has_overlays().then(|| Held::overlays(self));
        let laid: Vec<PageRange> = self.laid_in(range).into_iter().filter_map(|block| block.intersect(range)).collect();
        if !laid.is_empty() {
            let outcomes = bring_home(&laid);
            if !self.laid_in(range).is_empty() {
                let kept = outcomes.iter().flat_map(Outcomes::as_slice).find_map(|outcome| match outcome {
                    PageOutcome::Kept(reason) => Some(*reason),
                    PageOutcome::Moved => None,
                });
                return Err(DiscardError::Laid(kept.unwrap_or(KeptReason::Raced)));
            }
        }
        let dropped = drop_pages();
        // The kernel lets the caller go on when the event was read. Now it is applied, too: frames are free.
        self.while_no_event_is_read(|| ());
        dropped.map_err(DiscardError::Host)
    }
}

/// While this lives no block is laid.
struct Held<'e, H: Host>(&'e Engine<H>);

impl<'e, H: Host> Held<'e, H> {
    fn overlays(engine: &'e Engine<H>) -> Self {
        engine.hold_exchanges();
        Self(engine)
    }
}

impl<H: Host> Drop for Held<'_, H> {
    fn drop(&mut self) {
        self.0.release_exchanges();
    }
}

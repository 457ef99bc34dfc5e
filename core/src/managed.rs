//! What is under management, as the crates above see and change it.
//!
//! Nobody else locks what the engine has: each method says what it does, and takes the locks for it.
//!
//! | what for | methods | with the gate held |
//! | --- | --- | --- |
//! | regions | [`Engine::manage_new`], [`Engine::manage_rest`] | shared: an event of what was mapped there before is applied first |
//! | | [`Engine::end_management`] | alone: nobody takes pages out, and without a region nobody will |
//! | | the others | no |
//! | exclusions, removals | all | no |
//! | events | [`Engine::events`] | alone, as long as the result lives |
//! | registrations | [`Engine::while_no_event_is_read`] | shared |

use std::sync::atomic::Ordering::Relaxed;

use crate::engine::Engine;
use crate::frames::SystemPool;
use crate::notifier::{Event, Invalidation};
use crate::port::FaultPath;
use crate::port::Host;
use crate::slot::Slot;
use crate::space::{Events, Region};
use crate::stats::Counters;
use crate::units::{PageCount, PageRange, VirtAddr};

impl<H: Host> Engine<H> {
    /// The program's memory.
    pub const fn host(&self) -> &H {
        &self.host
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// System pages at rest.
    pub const fn pool(&self) -> &SystemPool {
        &self.pool
    }

    /// Whether a touch may bring neighbours of its page along; it does from the beginning.
    pub const fn set_fault_around(&mut self, may: bool) {
        self.fault_around = may;
    }

    /// From now on the touch of a hole fills no hole but its own: the program asks which there are.
    pub fn keep_holes(&self) {
        // Relaxed: it orders nothing.
        self.zero_around.store(false, Relaxed);
    }

    /// Puts `range` under management, whatever was said of it. The caller knows that no event of what was mapped there before is unread, or not
    /// applied.
    pub fn manage(&self, range: PageRange, region: Region) {
        self.space.add_region(range, region);
    }

    /// Puts `range` under management if no part of it is.
    ///
    /// # Errors
    ///
    /// A part that is managed already; nothing has changed then.
    pub fn manage_new(&self, range: PageRange, region: Region) -> Result<(), PageRange> {
        self.while_no_event_is_read(|| self.space.add_new_region(range, region))
    }

    /// Puts those parts of `range` under management that are not, and returns them, in order.
    pub fn manage_rest(&self, range: PageRange, region: Region) -> Vec<PageRange> {
        self.while_no_event_is_read(|| self.space.add_rest(range, region))
    }

    /// Changes what is said of the managed parts of `range`.
    pub fn change_region(&self, range: PageRange, change: impl Fn(&mut Region)) {
        self.space.change_region(range, change);
    }

    /// Leaves `range` alone from now on; its pages are home.
    pub fn forget_region(&self, range: PageRange) {
        self.space.remove_region(range);
    }

    /// Ends the management of `range` if all its pages are home, and says how many were managed.
    ///
    /// # Errors
    ///
    /// How many pages are not home; nothing has changed then.
    pub fn end_management(&self, range: PageRange) -> Result<PageCount, PageCount> {
        let events = self.events();
        let (unmapped, mapped) = self.away_in(range);
        let left = unmapped + mapped;
        if !left.is_zero() {
            return Err(left);
        }
        let exchanged = self.exchanged_in(range);
        if !exchanged.is_zero() {
            return Err(exchanged);
        }
        let parts = self.space.regions_in(range).into_iter().filter(|(_, region)| region.is_some());
        let managed = parts.map(|(part, _)| part.pages()).sum();
        self.space.remove_region(range);
        self.space.forget_blocks(&events, range);
        Ok(managed)
    }

    /// The region at `page`, if it is managed.
    pub fn region_at(&self, page: VirtAddr) -> Option<(PageRange, Region)> {
        self.space.region_at(page)
    }

    /// `range` cut at region boundaries, with the region of each part; `None` for the unmanaged parts.
    pub fn regions_in(&self, range: PageRange) -> Vec<(PageRange, Option<Region>)> {
        self.space.regions_in(range)
    }

    /// All regions, in order.
    pub fn regions(&self) -> Vec<(PageRange, Region)> {
        self.space.regions()
    }

    /// The parts of `range` of which anything was ever migrated, by whole blocks, in order.
    pub fn migrated_parts(&self, range: PageRange) -> Vec<PageRange> {
        self.space.blocks_in(range).into_iter().filter_map(|(no, _)| no.range().intersect(range)).collect()
    }

    /// The extents of `ranges`, in order: each region that overlaps one of them, joined with those before and behind it that touch it and have its
    /// path, as those are one mapping to the kernel.
    pub fn extents(&self, ranges: &[PageRange]) -> Vec<(PageRange, FaultPath)> {
        self.space.extents(ranges)
    }

    /// Where `page` is by the books.
    pub fn slot(&self, page: VirtAddr) -> Slot {
        self.space.existing_block(page.block()).map_or(Slot::System, |block| block.lock().slot(page.index_in_block()))
    }

    /// How warm `chunk` is, for who looks on ([`crate::heat`]).
    pub fn warmth(&self, chunk: PageRange) -> u8 {
        self.space.warmth(chunk)
    }

    /// Whether something of `chunk` was brought home by a touch since this was asked last ([`crate::heat`]).
    pub fn take_warmth(&self, chunk: PageRange) -> bool {
        self.space.take_warmth(chunk)
    }

    /// Keeps the pages of `range` from being taken out, until [`Engine::include`] has been called as often as this. On return no migration that began
    /// earlier can still take one; a page that is out already comes home with its next touch, and stays.
    pub fn exclude(&self, range: PageRange) {
        self.space.exclude(range);
    }

    /// Keeps the pages of `range` from being taken out, for good.
    pub fn exclude_for_good(&self, range: PageRange) {
        self.space.exclude_for_good(range);
    }

    /// Ends one exclusion of `range`.
    pub fn include(&self, range: PageRange) {
        self.space.include(range);
    }

    /// The excluded ranges, in order.
    pub fn exclusions(&self) -> Vec<PageRange> {
        self.space.exclusions()
    }

    /// The excluded ranges, in order, unless somebody is about to change them.
    pub fn try_exclusions(&self) -> Option<Vec<PageRange>> {
        self.space.try_exclusions()
    }

    /// Announced removals that are not known to be over.
    pub fn removals(&self) -> Vec<PageRange> {
        self.space.removals()
    }

    /// A removal of `range` was announced to another who watched the range before.
    pub fn add_removal(&self, range: PageRange) {
        self.space.add_removal(range);
    }

    /// Waits until nobody installs or takes out pages. As long as the result lives nobody does: events may be read and applied.
    pub fn events(&self) -> Events<'_> {
        self.space.gate.events()
    }

    /// Waits until the events that were read are applied, and calls `work` before any other is read. Whoever installs does it so, and whoever changes
    /// registrations.
    pub fn while_no_event_is_read<R>(&self, work: impl FnOnce() -> R) -> R {
        let _shared = self.space.gate.share();
        work()
    }

    /// Whether a mirror is told of changes in `range`.
    pub fn is_mirrored(&self, range: PageRange) -> bool {
        self.notifiers.any_in(range)
    }

    /// Tells mirrors of a change of `range`, until the result is dropped. The caller holds no lock.
    pub fn announce(&self, range: PageRange, event: Event) -> Invalidation<'_> {
        self.notifiers.start(range, event, true)
    }
}

//! What the agent needs of a runtime's inside: for crate `hetmem-agent`, and for nobody else. No promise holds for it.
//!
//! A [`Managed`] is a runtime without threads of its own. The agent lends it one, which [serves](Managed::serve), and decides what is managed and
//! what moves.

mod files;
mod seen;

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hetmem_core::advice::{Advice, AdviceError};
use hetmem_core::engine::CountersAt;
use hetmem_core::frames::Quota;
use hetmem_core::home::Home;
use hetmem_core::migrate::{Request, Select, Survey, Target};
use hetmem_core::outcome::Outcomes;
use hetmem_core::port::{FaultPath, Host as _};
use hetmem_core::range_map::RangeMap;
use hetmem_core::record::{Record, Ring};
use hetmem_core::space::Region;
use hetmem_core::units::{BlockNo, ByteLen, DeviceId, PageCount, PageRange, VirtAddr};
use hetmem_devices::spec::DeviceSpec;
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::Guard;
use hetmem_sys::maps::MapsFile;
use hetmem_sys::thread::Processors;
use thiserror::Error;

use crate::builder::make_devices;
pub use crate::files::{Adopted, FileMapped};
use crate::host::contexts::Contexts;
use crate::host::removals::RETURNED;
use crate::inner::Inner;
pub use crate::inner::Others;
use crate::recorder::Recorder;
use crate::rest::Warmth;
use crate::service::crew::{self, MOST};
use crate::service::{self, MEMORY_PATIENCE};

/// How long to wait, in nanoseconds, before pages that did not come home are asked again.
const ASK_AGAIN_AFTER: u32 = 100_000;
/// How long a core dump waits for pages that do not come: those that somebody works on do.
const DUMP_PATIENCE: Duration = Duration::from_secs(1);

/// Why this process can't be managed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The kernel's files about the process can't be opened.
    #[error("the agent can't read /proc")]
    Proc(#[source] Errno),
    /// Userfaultfd can't be had.
    #[error(transparent)]
    Userfaultfd(#[from] hetmem_sys::uffd::OpenError),
    /// A device can't be made.
    #[error(transparent)]
    Device(#[from] crate::Error),
    /// There is no memory for hetmem itself.
    #[error("the agent's memory can't be set up")]
    Memory(#[source] Errno),
}

/// Of [`Managed::each_place`]: a page in system memory, or nowhere yet.
pub const IN_SYSTEM_MEMORY: u8 = 0;
/// Of [`Managed::each_place`]: a page that is moving.
pub const ON_ITS_WAY: u8 = u8::MAX;

/// As many threads serve beside the first at most.
pub const MOST_HELPERS: usize = MOST - 1;

/// How many threads are of use beside the one that [serves](Managed::serve), where the calling thread may run.
#[must_use]
pub fn useful_helpers() -> usize {
    crew::useful(&Processors::of_this_thread()) - 1
}

/// The memory of this process, managed.
pub struct Managed(Inner);

/// What is said of the use of a range.
#[derive(Clone, Copy, Debug)]
pub struct Advised(Region);

/// The beginning, the threads, the end.
impl Managed {
    /// Opens all that it takes, in the calling thread's table of descriptors. At most `stock`, a multiple of the page, of populated system memory is
    /// kept for pages on their way home. `on_fatal` is told, in a line, why the program is stopped.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub fn open(
        devices: &[DeviceSpec],
        stock: ByteLen,
        counters: CountersAt,
        on_fatal: fn(&str),
    ) -> Result<Self, OpenError> {
        let maps = MapsFile::open().map_err(OpenError::Proc)?;
        let contexts = Contexts::open(false, maps)?;
        let devices = make_devices(devices)?;
        Inner::new(contexts, devices, stock, Warmth::Strict, counters, on_fatal).map(Self).map_err(OpenError::Memory)
    }

    /// The frames of device `id` are counted together with those that other processes have, by `frames`, and by `memory` what it packs pages into.
    pub fn share_device(&self, id: DeviceId, frames: Box<dyn Quota>, memory: Box<dyn Quota>) {
        if let Some(device) = self.0.engine.device(id) {
            device.pagemap().frames.count_with_others(frames);
            device.count_memory_with_others(memory);
        }
    }

    /// Leaves records of what happens in `ring` from now on, the first that the process begins.
    pub fn record_in(&mut self, ring: &'static Ring) {
        ring.push(Record::Began);
        self.0.recorder = Some(Recorder::new(ring, self.0.started));
    }

    /// Records that `range` is managed now, or no longer.
    pub fn record_managed(&self, range: PageRange, is_managed: bool) {
        self.0.record(if is_managed { Record::Managed(range) } else { Record::Forgotten(range) });
    }

    /// Records that the policy has been asked, while the process has so much anonymous memory.
    pub fn record_tick(&self, anonymous: PageCount) {
        if let Some(recorder) = &self.0.recorder {
            recorder.push(Record::Tick { anonymous, time: recorder.at(self.0.started.now()) });
        }
    }

    /// Whether what happens is recorded.
    #[must_use]
    pub const fn is_recorded(&self) -> bool {
        self.0.recorder.is_some()
    }

    /// Serves touches and events until `stop` is readable.
    pub fn serve(&self, stop: &OwnedFd) {
        service::run(&self.0, stop);
    }

    /// Serves touches and events, as number `number` of the helpers, until [`Self::serve`] has returned.
    pub fn help(&self, number: usize) {
        service::help(&self.0, number);
    }

    /// Finds out what a touch waits beside the time that it takes to serve, if touches were served lately. Called by one thread at a time, which no
    /// handler thread waits for: the touch is of a page of hetmem's own.
    pub fn probe(&self) {
        self.0.probe.answer();
    }

    /// The calling thread can open nothing by a path from now on, if it may have that.
    pub fn enclose_caller(&self) {
        self.0.engine.host().tasks.enclose_caller();
    }

    /// How the program's first thread has ended, if it has no thread left, but for `others`.
    #[must_use]
    pub fn ended_but(&self, others: usize) -> Option<i32> {
        self.0.engine.host().tasks.ended_but(others)
    }

    /// Whether a fork that nobody announces is told of, so that what is away can be copied for the child.
    #[must_use]
    pub fn hears_of_forks(&self) -> bool {
        self.0.engine.host().contexts.fork_events && self.has_room_for_forks()
    }

    /// Whether the descriptor that comes with a fork could be had now. Where it can't, a fork of what is registered never ends.
    #[must_use]
    pub fn has_room_for_forks(&self) -> bool {
        self.0.engine.host().contexts.has_room_for_forks()
    }

    /// Stops the program; `why` says what of its memory can't be made right.
    pub fn stop_the_program(&self, why: &'static str) -> ! {
        self.0.engine.host().stop_the_program(VirtAddr::default(), why)
    }

    /// Counts an error.
    pub fn count_error(&self) {
        self.0.engine.counters().errors.fetch_add(1, Relaxed);
    }
}

/// What is managed.
impl Managed {
    /// The program's private anonymous memory, without what is to be left `alone`; in order of address.
    #[must_use]
    pub fn adoptable(&self, alone: RangeMap<()>) -> Vec<PageRange> {
        crate::mappings::adoptable(&self.0.engine.host().contexts.maps, alone)
    }

    /// What is managed, in order of address.
    #[must_use]
    pub fn regions(&self) -> Vec<PageRange> {
        self.0.engine.regions().into_iter().map(|(range, _)| range).collect()
    }

    /// Manages `range`.
    pub fn manage(&self, range: PageRange) {
        self.0.engine.manage(range, Region { path: FaultPath::Thread, ..Region::default() });
    }

    /// Manages `range` as another agent did, which has told so ([`Managed::try_advice`]).
    pub fn manage_as(&self, range: PageRange, advised: Advised) {
        let Region { pinned, preferred, not_soon, .. } = advised.0;
        self.0
            .engine
            .manage(range, Region { path: FaultPath::Thread, pinned, preferred, not_soon, ..Region::default() });
    }

    /// What advice there is, in order of address, unless somebody is about to change it.
    #[must_use]
    pub fn try_advice(&self) -> Option<Vec<(PageRange, Advised)>> {
        Some(self.0.engine.try_advice()?.into_iter().map(|(range, region)| (range, Advised(region))).collect())
    }

    /// Takes advice. Who gives [`Advice::Soon`] has the pages [brought](Self::bring_to_best_places), too.
    ///
    /// # Errors
    ///
    /// If a device is named that is not there, or a part of the range is not managed.
    pub fn advise(&self, range: PageRange, advice: Advice) -> Result<(), AdviceError> {
        let taken = self.0.engine.advise(range, advice);
        if advice == Advice::Soon {
            self.0.engine.expect_use(range);
        }
        taken
    }

    /// The managed parts of `range`, in order.
    #[must_use]
    pub fn managed_in(&self, range: PageRange) -> Vec<PageRange> {
        let parts = self.0.engine.regions_in(range).into_iter();
        parts.filter_map(|(part, region)| region.map(|_| part)).collect()
    }

    /// The first part of `range` that is not managed, if any.
    #[must_use]
    pub fn unmanaged_in(&self, range: PageRange) -> Option<PageRange> {
        self.0.engine.unmanaged_in(range)
    }

    /// Up to `most` pages that are not used soon; it is told once.
    #[must_use]
    pub fn take_not_soon(&self, most: PageCount) -> Option<PageRange> {
        self.0.engine.take_not_soon(most)
    }

    /// Manages `range` no longer, but for files' mappings; nothing of it is on a device.
    pub fn forget(&self, range: PageRange) {
        let of_no_file = |(part, region): (PageRange, Option<Region>)| {
            region.is_some_and(|region| region.home == Home::Anonymous).then_some(part)
        };
        let parts = self.0.engine.regions_in(range).into_iter().filter_map(of_no_file);
        parts.for_each(|part| self.0.engine.forget_region(part));
    }

    /// Says in the statistics how much is managed.
    pub fn set_adopted(&self, pages: PageCount) {
        self.0.engine.counters().adopted_bytes.store(pages.bytes().get(), Relaxed);
    }

    /// Keeps `range` from being taken out until [`Managed::include`] was called as often.
    pub fn exclude(&self, range: PageRange) {
        self.0.engine.exclude(range);
    }

    /// Keeps it so for good.
    pub fn exclude_for_good(&self, range: PageRange) {
        self.0.engine.exclude_for_good(range);
    }

    /// Ends one exclusion.
    pub fn include(&self, range: PageRange) {
        self.0.engine.include(range);
    }

    /// What is excluded, in order.
    #[must_use]
    pub fn exclusions(&self) -> Vec<PageRange> {
        self.0.engine.exclusions()
    }

    /// What is excluded, in order; `None` while somebody is about to change it.
    #[must_use]
    pub fn try_exclusions(&self) -> Option<Vec<PageRange>> {
        self.0.engine.try_exclusions()
    }

    /// Removals that were announced and are not known to be over.
    #[must_use]
    pub fn removals(&self) -> Vec<PageRange> {
        self.0.engine.removals()
    }

    /// A removal of `range` was announced to an earlier agent, and is not known to be over.
    pub fn add_removal(&self, range: PageRange) {
        self.0.engine.add_removal(range);
    }

    /// A touch of a hole fills that hole only from now on.
    pub fn fill_no_neighbours(&self) {
        self.0.engine.keep_holes();
    }

    /// Lets registrations fall that nothing needs any more.
    pub fn release_idle(&self) {
        self.0.release_idle();
    }

    /// Counts how devices pack pages now.
    pub fn look_at_packing(&self) {
        self.0.engine.look_at_packing();
    }

    /// Compares the books with where pages are, in some blocks after `after`. Returns where to go on; `None` is the end.
    #[must_use]
    pub fn audit(&self, after: Option<BlockNo>) -> Option<BlockNo> {
        self.0.engine.audit(after)
    }

    /// `madvise(2)` with guard markers on behalf of the calling thread.
    ///
    /// # Errors
    ///
    /// The kernel's.
    ///
    /// # Safety
    ///
    /// What is discarded nobody counts on.
    #[expect(unsafe_code, reason = "guard markers discard memory that is named by number")]
    pub unsafe fn guard(&self, start: u64, len: u64, what: Guard) -> Result<(), Errno> {
        // SAFETY: the caller's.
        unsafe { self.0.guard(start, len, what) }
    }

    /// Drops from the books what guard markers have discarded.
    pub fn look_for_guards(&self) {
        self.0.look_for_guards();
    }
}

/// What moves.
impl Managed {
    /// Migrates what `request` selects of `range`.
    #[must_use]
    pub fn migrate(&self, range: PageRange, request: Request) -> Outcomes {
        self.migrate_all(&[range], request, Others::Copy).pop().unwrap_or_default()
    }

    /// Migrates what `request` selects of `ranges`; the outcomes are those of each range, in order. What other processes map as well is as `others`
    /// says.
    #[must_use]
    pub fn migrate_all(&self, ranges: &[PageRange], request: Request, others: Others) -> Vec<Outcomes> {
        self.0.migrate_beside(ranges, request, others)
    }

    /// Brings what is managed of `range` to where it is best kept now, as far as it goes there.
    pub fn bring_to_best_places(&self, range: PageRange) {
        self.0.bring_to_best_places(range);
    }

    /// Takes the pages of `ranges` that `select` names out as samples; how many those are. What other processes map as well is as `others` says.
    #[must_use]
    pub fn sample(&self, ranges: &[PageRange], select: Select, others: Others) -> PageCount {
        self.0.sample(ranges, select, others)
    }

    /// How warm the pages of `ranges` are is to be known from now on, though they are not sampled.
    pub fn expect_heat(&self, ranges: &[PageRange]) {
        self.0.engine.expect_heat(ranges);
    }

    /// Puts the pages of `ranges` back that are out as samples; how many came.
    #[must_use]
    pub fn put_back(&self, ranges: &[PageRange]) -> PageCount {
        let put = self.0.engine.put_back(ranges);
        self.0.tell_of_resting();
        put
    }

    /// It is tick `tick` of [heat](hetmem_core::heat) now.
    pub fn set_tick(&self, tick: u32) {
        self.0.engine.set_tick(tick);
    }

    /// Looks where each page of `range` is, which lies in one block, and how warm.
    pub fn survey(&self, range: PageRange, survey: &mut Survey) {
        self.0.engine.survey(range, survey);
    }

    /// Brings everything home that the program doesn't map; `false` if some could not come.
    #[must_use]
    pub fn bring_all_home(&self) -> bool {
        self.bring_home_within(MEMORY_PATIENCE)
    }

    /// Before a core dump: brings home everything that the program doesn't map; `false` if some did not come within a second. That is long enough for
    /// pages that somebody works on, and nobody waits for those that a device fails to give.
    #[must_use]
    pub fn bring_home_for_dump(&self) -> bool {
        self.bring_home_within(DUMP_PATIENCE)
    }

    fn bring_home_within(&self, patience: Duration) -> bool {
        let home = self.all_come(patience, || self.0.engine.bring_all_home());
        self.0.tell_of_resting();
        home
    }

    /// Brings everything of `range` home and lets go of it; `false` if some could not come, and all is as it was then.
    #[must_use]
    pub fn let_go(&self, range: PageRange) -> bool {
        // It may be far larger than what is managed of it.
        let managed: Vec<PageRange> = self.regions().into_iter().filter_map(|part| part.intersect(range)).collect();
        let home = self.all_come(MEMORY_PATIENCE, || {
            self.0.migrate(&managed, Request::all_to(Target::System));
            self.away_in(range)
        });
        if home {
            self.forget(range);
            self.unregister(range);
        }
        home
    }

    /// Calls `ask`, which says how many pages did not come home, until there are none. Such a page is busy, or there is no memory for
    /// it; `false` if that lasts longer than `patience`.
    fn all_come(&self, patience: Duration, ask: impl Fn() -> PageCount) -> bool {
        let start = Instant::now();
        while !ask().is_zero() {
            if start.elapsed() > patience {
                self.count_error();
                return false;
            }
            hetmem_sys::thread::backoff_sleep(ASK_AGAIN_AFTER);
        }
        true
    }

    /// Ends every registration of `range`, unless pages of it are away after all.
    pub fn unregister(&self, range: PageRange) {
        self.0.unregister(range);
    }

    /// Ends every registration of the mappings that `range` touches, unless pages of them are away after all.
    pub fn unregister_around(&self, range: PageRange) {
        self.0.unregister_around(range);
    }
}

/// Thread `tid`, the caller, has come back from a call that removes pages and announces it.
pub fn removal_returned(tid: u32) {
    RETURNED.returned(tid);
}

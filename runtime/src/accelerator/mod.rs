//! An emulated accelerator: kernels (closures) that run on worker threads and use the program's memory through the page table of a device.
//!
//! ```no_run
//! use hetmem::accelerator::{InPlace, Options};
//! use hetmem::{ByteLen, DeviceId, FaultPath, Request, Runtime, Target, VirtAddr};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = Runtime::builder().device("private:emulated,size=64M".parse()?).start()?;
//! let mapping = runtime.map(ByteLen::new(1 << 20), FaultPath::Thread)?;
//! let device = DeviceId::new(0);
//! runtime.migrate(mapping.range(), Request::all_to(Target::Device(device)));
//!
//! let accelerator = mapping.accelerator(device, Options::default())?;
//! let first = mapping.range().start().get();
//! accelerator.launch(mapping.len() / 8, |view, i| {
//!     let word = VirtAddr::new(first + i as u64 * 8);
//!     let value = view.load(word)?;
//!     view.store(word, value + 1)
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Runtime::accelerator`] makes one for any memory of the program.
//!
//! # Where an access goes
//!
//! | the page | a kernel's access |
//! | --- | --- |
//! | in a private frame of the device | to the frame |
//! | held exclusively ([`Accelerator::make_exclusive`], [`View::fetch_add`]) | to the frame that it rests in |
//! | anywhere else in memory, coherent or the system's | in place, at the program's address ([`InPlace`]) |
//! | in a private frame of another device | a device fault brings it home first |
//! | not there, or not allowed | a device fault: it is faulted in as by a touch, or [`AccessError`] |
//!
//! A driver that serves its device's faults itself, range by range, has [`Accelerator::fault_range`], [`View::read_mapped`] and
//! [`View::write_mapped`].
//!
//! An access in place is one like that of any other thread: it finds the page wherever it goes. An access to a frame is over before the
//! page leaves the frame, as the callback of the accelerator's subscription waits for it.

mod by_range;
mod on_mapping;
mod view;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use hetmem_core::device_table::{Await, DeviceTable};
use hetmem_core::engine::Engine;
use hetmem_core::mirror::{MirrorPage, Place, RangeFault, RangeFaultError, Want};
use hetmem_core::notifier::{Event, Notice, Subscription};
use hetmem_core::outcome::KeptReason;
use hetmem_core::physmap::Owner;
use hetmem_core::port::{Access, Host as _};
use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{DeviceId, PageCount, PageRange, VirtAddr};

pub use hetmem_core::device_table::{Entry, Route};
pub use on_mapping::OnMapping;
pub use view::View;

use crate::error::Error;
use crate::host::UserMemory;
use crate::runtime::{Running, Runtime};

/// Pages that a device fault looks at: the touched one and those that follow it.
const AROUND: PageCount = PageCount::new(16);
/// Pages that a batch of [`Accelerator::fault_range`] has, as in the kernel's test device.
const BATCH: PageCount = PageCount::new(64);
/// Numbers of a launch that a worker takes at a time, at most.
const AT_ONCE: usize = 4096;
/// How often an access or a request is tried again that another thread has thwarted.
const TRIES: u32 = 10_000;

/// How pages in place are accessed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum InPlace {
    /// By a system call that checks the address: what is unmapped or protected at that moment is a device fault, and nothing ends in a signal.
    #[default]
    Checked,
    /// By the processor's loads and stores, in nanoseconds. Every unmapping and protection of memory that kernels may be using is announced
    /// ([`Runtime::announce`]); one that is not ends the process by a signal.
    Direct,
}

/// How an accelerator is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads that run kernels.
    pub workers: usize,
    /// How pages in place are accessed.
    pub in_place: InPlace,
}

impl Default for Options {
    fn default() -> Self {
        Self { workers: 2, in_place: InPlace::default() }
    }
}

/// Why a kernel could not access an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The address is outside of what the accelerator was made for, or is not a multiple of what is accessed.
    #[error("the accelerator may not use {0}")]
    OutOfRange(VirtAddr),
    /// The page is not there, or does not allow it.
    #[error(transparent)]
    Fault(#[from] RangeFaultError),
    /// The page can't be held exclusively.
    #[error("{0} can't be held exclusively: {label}", label = .1.label())]
    NotExclusive(VirtAddr, KeptReason),
    /// The table has no entry for the page that allows it, and no device fault was to be made.
    #[error("the device does not map {0}")]
    NotMapped(VirtAddr),
    /// Others changed the page again and again.
    #[error("the page at {0} was changed by others too often")]
    Contended(VirtAddr),
}

/// What an accelerator has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Activity {
    /// Device faults that were served.
    pub faults: u64,
    /// Notices that emptied a part of its table.
    pub invalidations: u64,
    /// Of those, exclusive pages that somebody else touched or took.
    pub exclusives_ended: u64,
}

/// What the callback of the subscription works on.
struct Mirror {
    table: DeviceTable,
    owner: Owner,
    faults: AtomicU64,
    invalidations: AtomicU64,
    exclusives_ended: AtomicU64,
}

impl Mirror {
    fn accept(&self, notice: &Notice<'_>) {
        // Migrations need not wait for accesses in place, which find the page wherever it goes. Who changes the program's mappings must, unless
        // that is done already and this is the thread that serves their faults.
        let wait = match notice.event() {
            Event::Migrate(_) | Event::Exclusive(_) => Await::Frames,
            _ if !notice.may_wait() => Await::Frames,
            Event::Unmap | Event::Clear | Event::ProtectionVma | Event::ProtectionPage | Event::Release => Await::All,
        };
        if notice.event() == Event::Exclusive(Some(self.owner)) {
            // This accelerator's own doing, which sets the entries anew.
            return self.table.erase(notice.range(), wait);
        }
        self.invalidations.fetch_add(1, Ordering::Relaxed);
        let exclusive = |page| self.table.entry(page).is_some_and(|entry| entry.exclusive);
        if matches!(notice.event(), Event::Exclusive(_)) && exclusive(notice.range().start()) {
            self.exclusives_ended.fetch_add(1, Ordering::Relaxed);
        }
        self.table.invalidate(notice, wait);
    }
}

/// An emulated accelerator: it runs kernels on worker threads, which use the program's memory through a page table of its own. As long as it lives
/// the runtime does, too.
#[must_use]
pub struct Accelerator {
    // Ends first: it would be told of the runtime's end.
    subscription: Subscription,
    mirror: Arc<Mirror>,
    inner: Arc<Running>,
    device: DeviceId,
    frames: VirtAddr,
    options: Options,
}

impl fmt::Debug for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, range) = (self.device, self.subscription.range());
        f.debug_struct("Accelerator")
            .field("device", &device)
            .field("range", &range)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Runtime {
    /// An accelerator that is `device`, whose kernels use memory of `range`, managed or not.
    ///
    /// # Errors
    ///
    /// If there is no such device, if it is one on which no code of this process can run, or if the range is empty.
    ///
    /// # Safety
    ///
    /// Kernels read and write the program's memory by address, as threads do that have pointers to it: what they access must be
    /// memory that may be accessed so, and that no Rust reference forbids. With [`InPlace::Direct`], mappings that kernels may be using are changed
    /// only as is said there.
    #[expect(unsafe_code, reason = "the promise can only be the caller's")]
    pub unsafe fn accelerator(
        &self,
        device: DeviceId,
        range: PageRange,
        options: Options,
    ) -> Result<Accelerator, Error> {
        // SAFETY: as the caller promised.
        unsafe { Accelerator::new(&self.inner, device, range, options) }
    }
}

impl Accelerator {
    /// # Safety
    ///
    /// As [`Runtime::accelerator`].
    #[expect(unsafe_code, reason = "the promise can only be the caller's")]
    unsafe fn new(inner: &Arc<Running>, device: DeviceId, range: PageRange, options: Options) -> Result<Self, Error> {
        let known = inner.engine.device(device);
        let Some((known, frames)) = known.and_then(|known| Some((known, known.device_side()?))) else {
            return Err(Error::invalid(format!("device {} is none on which kernels can run", device.index())));
        };
        let mirror = Arc::new(Mirror {
            table: DeviceTable::default(),
            owner: known.pagemap().owner,
            faults: AtomicU64::new(0),
            invalidations: AtomicU64::new(0),
            exclusives_ended: AtomicU64::new(0),
        });
        let told = Arc::clone(&mirror);
        let subscription = inner.subscribe(range, move |notice| told.accept(notice))?;
        Ok(Self { subscription, mirror, inner: Arc::clone(inner), device, frames, options })
    }

    /// Runs `kernel` for each number below `items`, on the accelerator's workers, and returns when all are done. After an error no further
    /// number is begun.
    ///
    /// # Errors
    ///
    /// The first error of a kernel.
    pub fn launch(
        &self,
        items: usize,
        kernel: impl Fn(&mut View<'_>, usize) -> Result<(), AccessError> + Sync,
    ) -> Result<(), AccessError> {
        let (next, failed, first) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
        // Few at a time towards the end, so that all workers end together.
        let take = || -> Range<usize> {
            let left = items.saturating_sub(next.load(Ordering::Relaxed));
            let n = (left / (self.options.workers.max(1) * 8)).clamp(1, AT_ONCE);
            let start = next.fetch_add(n, Ordering::Relaxed).min(items);
            start..(start + n).min(items)
        };
        let work = || {
            let mut view = self.view();
            loop {
                let range = take();
                if range.is_empty() || failed.load(Ordering::Relaxed) {
                    return;
                }
                for item in range {
                    if let Err(error) = kernel(&mut view, item) {
                        failed.store(true, Ordering::Relaxed);
                        lock(&first).get_or_insert(error);
                        return;
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.options.workers.max(1) {
                scope.spawn(work);
            }
            work();
        });
        let result = lock(&first).take();
        result.map_or(Ok(()), Err)
    }

    /// A view of the program's memory for this thread, as a kernel has it.
    pub fn view(&self) -> View<'_> {
        View::new(self)
    }

    /// Takes each page of `range` for this accelerator alone, until somebody touches it or moves it. Pages in its private frames are so
    /// anyway.
    ///
    /// # Errors
    ///
    /// At the first page that can't be; those before it are held.
    pub fn make_exclusive(&self, range: PageRange) -> Result<(), AccessError> {
        range.iter().try_for_each(|page| self.make_page_exclusive(page))
    }

    /// Whether `page` is held exclusively now.
    #[must_use]
    pub fn is_exclusive(&self, page: VirtAddr) -> bool {
        self.mirror.table.entry(page).is_some_and(|entry| entry.exclusive)
    }

    /// What the table says of `page`, if anything.
    #[must_use]
    pub fn entry(&self, page: VirtAddr) -> Option<Entry> {
        self.mirror.table.entry(page)
    }

    /// What it has done so far.
    #[must_use]
    pub fn activity(&self) -> Activity {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Activity {
            faults: read(&self.mirror.faults),
            invalidations: read(&self.mirror.invalidations),
            exclusives_ended: read(&self.mirror.exclusives_ended),
        }
    }

    fn engine(&self) -> &Engine<UserMemory> {
        &self.inner.engine
    }

    /// A device fault: the page at `page` is made accessible and entered in the table, and of the `around` pages from it on what is known.
    fn fault(&self, page: VirtAddr, access: Access, around: PageCount) -> Result<(), AccessError> {
        let range = self.subscription.range();
        let around = range.slice(page.pages_since(range.start()), around);
        let wants = [if access == Access::Write { Want::Write } else { Want::Read }];
        let mut tries = 0..TRIES;
        self.fill(around, Want::Snapshot, &wants, || tries.next().is_some())
    }

    /// Asks for the pages of `range`, at most [`AROUND`] or as many as a batch has, and enters in the table what is there, as long as others
    /// change them and it is to `go_on`.
    fn fill(
        &self,
        range: PageRange,
        want: Want,
        wants: &[Want],
        mut go_on: impl FnMut() -> bool,
    ) -> Result<(), AccessError> {
        self.mirror.faults.fetch_add(1, Ordering::Relaxed);
        let mut runs = Vec::new();
        while go_on() {
            let seq = self.subscription.read_begin();
            let unless_changed = Some((&self.subscription, seq));
            let request = RangeFault { want, wants, owner: Some(self.mirror.owner), unless_changed };
            let found = self.engine().range_fault_runs(range, request, &mut runs);
            self.inner.tell_of_resting();
            match found {
                Ok(()) => {}
                // What was found is of a moment in which it was being changed.
                Err(_) if self.subscription.check_retry(seq) => continue,
                Err(error) => return Err(error.into()),
            }
            let found = || runs.iter().flat_map(|run| run.pages());
            let entries = found().filter_map(|(page, found)| Some((page, self.entry_for(found)?)));
            if !self.mirror.table.program(&self.subscription, seq, entries) {
                continue;
            }
            // A frame of the device's own is not faulted, even if the mapping does not allow what is wanted.
            let want_of = |i: usize| wants.get(i).map_or(want, |more| want.max(*more));
            let refused = (0..).zip(found()).find(|(i, (_, found))| want_of(*i) == Want::Write && !found.is_writable());
            return refused.map_or(Ok(()), |(_, (page, _))| Err(RangeFaultError::ReadOnly(page).into()));
        }
        Err(AccessError::Contended(range.start()))
    }

    fn entry_for(&self, found: MirrorPage) -> Option<Entry> {
        let route = match found.place()? {
            Place::Device(frame) if found.is_private() => {
                // The owner's other devices are no concern of this one.
                (frame.device == self.device)
                    .then(|| Route::Frame(self.frames.add_pages(PageCount::new(u64::from(frame.index.get())))))?
            }
            Place::Device(_) | Place::System | Place::Zero => Route::InPlace,
        };
        Some(Entry { route, writable: found.is_writable(), exclusive: false })
    }

    fn make_page_exclusive(&self, page: VirtAddr) -> Result<(), AccessError> {
        if !self.subscription.range().contains(page) {
            return Err(AccessError::OutOfRange(page));
        }
        let mut why = KeptReason::Raced;
        for _ in 0..TRIES {
            // Present, writable and nobody else's, as by a touch. In a frame of its own it is exclusive by nature.
            if self.reaches_own_frame(page) {
                return Ok(());
            }
            self.fault(page, Access::Write, PageCount::ONE)?;
            if self.reaches_own_frame(page) {
                return Ok(());
            }
            let seq = self.subscription.read_begin();
            match self.inner.make_exclusive(page, self.mirror.owner) {
                Ok(at) => {
                    let entry = Entry { route: Route::Frame(at), writable: true, exclusive: true };
                    if self.mirror.table.program(&self.subscription, seq, std::iter::once((page, entry))) {
                        return Ok(());
                    }
                }
                // It went to a private frame meanwhile.
                Err(KeptReason::NotSelected) => why = KeptReason::NotSelected,
                // With a forked child; that can't be seen beforehand.
                Err(KeptReason::Shared) => {
                    why = KeptReason::Shared;
                    UserMemory::unshare(PageRange::page_of(page));
                }
                Err(reason @ (KeptReason::Raced | KeptReason::Hole | KeptReason::Occupied | KeptReason::NoMemory)) => {
                    why = reason;
                    self.engine().host().await_events();
                }
                Err(reason) => return Err(AccessError::NotExclusive(page, reason)),
            }
        }
        Err(AccessError::NotExclusive(page, why))
    }

    fn reaches_own_frame(&self, page: VirtAddr) -> bool {
        self.entry(page).is_some_and(|entry| entry.writable && matches!(entry.route, Route::Frame(_)))
    }
}

//! The public API: a runtime, the memory it manages, and what can be asked of it.

use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::Instant;

use hetmem_core::engine::CountersAt;
use hetmem_core::notifier::Event;
use hetmem_core::physmap::{MemoryType, Owner};
use hetmem_core::port::Device;
use hetmem_core::space::{Region as RegionEntry, Space};
use hetmem_core::stats::Counters;
use hetmem_core::units::{BLOCK_PAGES, ByteLen, DeviceId, PAGE_SIZE, PageCount, PageRange, VirtAddr};
use hetmem_devices::kind::{self, MakeError};
use hetmem_devices::spec::DeviceSpec;
use hetmem_sys::mapping::{Arena, ArenaOptions, HugePages, OnFork, Whose};
use hetmem_sys::maps::MapsFile;
use hetmem_sys::uffd::WriteProtect;

pub use hetmem_core::engine::Residency;
pub use hetmem_core::migrate::{Request, Select, Target};
pub use hetmem_core::outcome::{KeptReason, Outcomes, PageOutcome};
pub use hetmem_core::port::FaultPath;
pub use hetmem_sys::mapping::Guard;

use crate::error::Error;
use crate::host::{Contexts, MAPPING_NAME};
use crate::inner::Inner;
use crate::service::MEMORY_PATIENCE;
use crate::{fast, forks, service};

/// What is known of the use of a range, for [`Runtime::advise`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Advice {
    /// Its pages are best kept on this device; policies send them there first.
    PreferredLocation(DeviceId),
    /// No device is preferred.
    NoPreference,
    /// Its pages stay where they are; migrations keep them as [`KeptReason::Advised`]. Faults still bring private pages home.
    Pin,
    /// Its pages may move again.
    Unpin,
}

/// Sets up a [`Runtime`].
#[derive(Default)]
pub struct Builder {
    devices: Vec<DeviceSpec>,
    stock: Option<ByteLen>,
    sigbus: bool,
    single_faults: bool,
    own_allocator: bool,
    forks_exec_at_once: bool,
}

impl Builder {
    /// Adds a device; its id is its place in the order of these calls, from 0.
    #[must_use]
    pub fn device(mut self, spec: DeviceSpec) -> Self {
        self.devices.push(spec);
        self
    }

    /// Keeps at most `len` of populated system pages in stock for pages on their way home (64 MiB unless said otherwise). More makes
    /// large migrations home faster, and uses as much memory.
    #[must_use]
    pub fn stock(mut self, len: ByteLen) -> Self {
        self.stock = Some(len);
        self
    }

    /// Allows regions with [`FaultPath::Sigbus`]: installs a handler for SIGBUS, which passes on what is not hetmem's.
    #[must_use]
    pub fn sigbus(mut self) -> Self {
        self.sigbus = true;
        self
    }

    /// Has each touch bring home the touched page and no other, as the kernel's test device does. Otherwise neighbours come along while touches
    /// go on in sequence, which is faster.
    #[must_use]
    pub fn single_faults(mut self) -> Self {
        self.single_faults = true;
        self
    }

    /// Says that hetmem does not allocate from the C library's heap, but from one that no fork locks (a `#[global_allocator]` of the library that
    /// hetmem is a part of). Otherwise the runtime stands still during each fork by the C library, as the heap does, and a handler of
    /// `pthread_atfork` may ask nothing of it but [`Runtime::bring_home`].
    #[must_use]
    pub fn own_allocator(mut self) -> Self {
        self.own_allocator = true;
        self
    }

    /// Says that forked children of this program execute another program at once, or at least touch no managed memory, so that forks need not wait for pages.
    ///
    /// Otherwise each fork by the C library brings home before what the child would not have, and while it is under way no page leaves: migrations keep what they
    /// would move as [`KeptReason::Raced`]. (It brings nothing home where userfaultfd announces forks, with `CAP_SYS_PTRACE`: then the child gets copies.) With
    /// this, and without that privilege, a child reads zeros where its parent had pages away. `posix_spawn`, `vfork` and [`std::process::Command`] as long as it
    /// uses these bring nothing home in any case.
    #[must_use]
    pub fn forks_exec_at_once(mut self) -> Self {
        self.forks_exec_at_once = true;
        self
    }

    /// Starts the runtime and its handler thread.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind) if there are too many devices or one can't be made as described;
    /// [`ErrorKind::HostRefuses`](crate::ErrorKind) if userfaultfd can't be used, with what would fix it.
    pub fn start(self) -> Result<Runtime, Error> {
        let devices = make_devices(&self.devices)?;
        self.start_with(devices)
    }

    /// The same, with these devices.
    pub(crate) fn start_with(self, devices: Vec<Box<dyn Device>>) -> Result<Runtime, Error> {
        let maps = MapsFile::open().map_err(|errno| Error::os("/proc/self/maps can't be read", errno))?;
        let contexts = Contexts::open(self.sigbus, maps)?;
        let stock = self.stock.unwrap_or(DEFAULT_STOCK);
        if stock.whole_pages().is_none() {
            return Err(Error::invalid(format!("a stock of {stock} is not a multiple of the page, {PAGE_SIZE} B")));
        }
        let counters = CountersAt::Own(Box::default());
        let mut inner = Inner::new(contexts, devices, stock, counters, print_fatal)
            .map_err(|errno| Error::os("the runtime's memory can't be set up", errno))?;
        inner.engine.fault_around = !self.single_faults;
        let inner = Arc::new(inner);
        let told = inner.engine.host.contexts.fork_events;
        let needs = forks::Needs { parks: told && !self.own_allocator, homes: !told && !self.forks_exec_at_once };
        if needs.parks || needs.homes || inner.engine.has_overlays() {
            forks::expect(&inner, needs)?;
        }
        Runtime::start(inner, self.sigbus)
    }
}

/// The stock of populated system pages unless said otherwise.
pub(crate) const DEFAULT_STOCK: ByteLen = ByteLen::new(64 << 20);

#[expect(clippy::print_stderr, reason = "the program is about to be stopped; this is the last word")]
fn print_fatal(line: &str) {
    eprintln!("hetmem: {line}");
}

pub(crate) fn make_devices(specs: &[DeviceSpec]) -> Result<Vec<Box<dyn Device>>, Error> {
    if specs.len() > hetmem_core::stats::MAX_DEVICES {
        return Err(Error::invalid(format!(
            "{} devices are too many; at most {} can be used",
            specs.len(),
            hetmem_core::stats::MAX_DEVICES
        )));
    }
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    for (id, spec) in (0..).zip(specs) {
        devices.push(make_device(DeviceId::new(id), Owner::new(u64::from(id) + 1), spec)?);
    }
    Ok(devices)
}

pub(crate) fn make_device(id: DeviceId, owner: Owner, spec: &DeviceSpec) -> Result<Box<dyn Device>, Error> {
    kind::make(id, owner, spec).map_err(|error| match error {
        MakeError::Unsuitable(why) => Error::invalid(format!("device {}: {why}", spec.name)),
        MakeError::Os(errno) => Error::os(format!("device {} can't be made", spec.name), errno),
    })
}

/// Manages memory of this process: moves its pages to devices and back while threads use it.
///
/// Dropping the runtime brings every page home and ends the management; memory from [`Runtime::map`] must be gone before.
pub struct Runtime {
    pub(crate) inner: Arc<Inner>,
    stop: OwnedFd,
    service: Option<JoinHandle<()>>,
    sigbus: bool,
}

impl Runtime {
    /// Begins to set up a runtime.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn start(inner: Arc<Inner>, sigbus: bool) -> Result<Self, Error> {
        if sigbus {
            fast::enter(&inner)?;
        }
        let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
            .map_err(|errno| Error::os("no descriptor to stop the handler thread by", errno))?;
        let stopped = stop
            .try_clone()
            .map_err(|error| Error::os("no descriptor to stop the handler thread by", errno_of(&error)))?;
        let shared = Arc::clone(&inner);
        let before = inner.engine.host.events.count();
        let service = std::thread::Builder::new()
            .name("hetmem".to_owned())
            .spawn(move || {
                // Nothing that it leaves behind is used again.
                let served = catch_unwind(AssertUnwindSafe(|| service::run(&shared, &stopped)));
                if let Err(panic) = served {
                    shared.engine.host.end_after_panic("the thread that serves touches", &*panic);
                }
            })
            .map_err(|error| {
                inner.forks.end();
                Error::os("the handler thread can't be started", errno_of(&error))
            })?;
        // A beginning thread allocates, until `service::run` says otherwise, and a fork keeps it from that: the fork would wait for this thread to
        // read its event, and this thread for the C library's heap.
        while inner.engine.host.events.count() == before {
            inner.engine.host.events.wait_after(before);
        }
        Ok(Self { inner, stop, service: Some(service), sigbus })
    }

    /// Maps `len` of managed memory that reads as zeros. It begins at a multiple of 2 MiB.
    ///
    /// The mapping is hetmem's: the program unmaps, protects and moves no part of it. Whole blocks of 2 MiB may go to a coherent DAX device, where they are used in
    /// place; `MADV_DONTNEED` keeps their bytes there, and a transfer by direct I/O, io_uring or RDMA into them is lost if they are migrated meanwhile: pin them
    /// before ([`Advice::Pin`]).
    ///
    /// # Errors
    ///
    /// If `len` is zero or not a multiple of the page, if `path` is [`FaultPath::Sigbus`] and the builder was not told so, or if the host
    /// has no address space.
    pub fn map(&self, len: ByteLen, path: FaultPath) -> Result<Mapping, Error> {
        let pages = len.whole_pages().filter(|pages| !pages.is_zero()).ok_or_else(|| {
            Error::invalid(format!("a mapping of {len} is not a positive multiple of the page, {PAGE_SIZE} B"))
        })?;
        self.check_path(path)?;
        let options = ArenaOptions {
            huge_pages: HugePages::Prefer,
            on_fork: OnFork::Inherit,
            name: Some(MAPPING_NAME),
            whose: Whose::Program,
            ..ArenaOptions::default()
        };
        let arena =
            Arena::reserve(pages, &options).map_err(|errno| Error::os(format!("{len} can't be mapped"), errno))?;
        let (range, region) = (arena.range(), RegionEntry { path, owned: true, ..RegionEntry::default() });
        self.add(|space| (space.add_region(range, region), vec![range]));
        Ok(Mapping { inner: Arc::clone(&self.inner), arena: Some(arena) })
    }

    /// `madvise(2)` with guard markers on `range`. The kernel tells nobody of these, so in managed memory they are installed and, above all,
    /// removed by this: what is on a device where a marker was removed otherwise comes back. (`hetmem run` sees to it by itself.)
    ///
    /// # Errors
    ///
    /// What `madvise` says; markers may have been installed or removed in a part of the range then.
    ///
    /// # Safety
    ///
    /// With [`Guard::Install`] the contents of the range are lost, and touches end in SIGSEGV.
    #[expect(unsafe_code, reason = "discards memory that is named by number")]
    pub unsafe fn guard(&self, range: PageRange, what: Guard) -> Result<(), Error> {
        if !self.inner.is_of_this_process() {
            return Err(Error::invalid("a forked child has no runtime".to_owned()));
        }
        let (start, len) = (range.start().get(), range.pages().bytes().get());
        // SAFETY: the caller's.
        forks::unparked(&self.inner, || unsafe { self.inner.guard(start, len, what) })
            .map_err(|errno| Error::os(format!("guard markers of {range}"), errno))
    }

    /// Puts existing private anonymous memory under management: any of the process's, such as its heap. Pages that can't be moved
    /// are kept, with a reason, when they are asked to.
    ///
    /// # Errors
    ///
    /// If the range is empty, is managed already, or if `path` is [`FaultPath::Sigbus`] and the builder was not told so.
    ///
    /// # Safety
    ///
    /// Until [`Runtime::release`] or the end of the runtime:
    /// * nothing that hetmem itself uses lies in the range. The range may hold memory of the process's allocator only if hetmem
    ///   doesn't allocate from it, as in the preloaded agent;
    /// * no thread control block lies in it whose thread may end: the kernel writes it then, and can't wait for a page;
    /// * with [`FaultPath::Sigbus`], no system call is given an address in the range whose page is on a private device.
    #[expect(unsafe_code, reason = "the promise can only be the caller's")]
    pub unsafe fn adopt(&self, range: PageRange, path: FaultPath) -> Result<(), Error> {
        self.check_path(path)?;
        if range.is_empty() {
            return Err(Error::invalid("an empty range can't be adopted"));
        }
        let region = RegionEntry { path, ..RegionEntry::default() };
        self.add(|space| match space.add_new_region(range, region) {
            Ok(()) => (Ok(()), vec![range]),
            Err(part) => (Err(Error::invalid(format!("{part} of {range} is managed already"))), Vec::new()),
        })
    }

    /// The same for those parts of existing memory that are not managed yet, which are returned, in order. Of several threads that ask for the same memory
    /// at once, one gets each page.
    ///
    /// # Errors
    ///
    /// If `path` is [`FaultPath::Sigbus`] and the builder was not told so.
    ///
    /// # Safety
    ///
    /// As for [`Runtime::adopt`].
    #[expect(unsafe_code, reason = "the promise can only be the caller's")]
    pub unsafe fn adopt_rest(&self, range: PageRange, path: FaultPath) -> Result<Vec<PageRange>, Error> {
        self.check_path(path)?;
        let region = RegionEntry { path, ..RegionEntry::default() };
        Ok(self.add(|space| {
            let rest = space.add_rest(range, region);
            (rest.clone(), rest)
        }))
    }

    fn check_path(&self, path: FaultPath) -> Result<(), Error> {
        if path == FaultPath::Sigbus && !self.sigbus {
            return Err(Error::invalid("faults by SIGBUS must be allowed when the runtime is built (Builder::sigbus)"));
        }
        Ok(())
    }

    /// Has `add` put memory under management, which says what it has added.
    fn add<R>(&self, add: impl FnOnce(&Space) -> (R, Vec<PageRange>)) -> R {
        let engine = &self.inner.engine;
        let (result, added) = {
            // An event of what was mapped here before may have been read, and not been applied yet.
            let _installing = engine.space.gate.install();
            add(&engine.space)
        };
        for range in added {
            engine.counters.adopted_bytes.fetch_add(range.pages().bytes().get(), Relaxed);
            if engine.notifiers.any_in(range) {
                self.inner.watch(range);
            }
        }
        result
    }

    /// Brings the pages of `range` home, pinned ones, too, and ends its management.
    ///
    /// # Errors
    ///
    /// If a page could not come home. The range stays managed then, and its advice holds; other pages of it may have come home.
    pub fn release(&self, range: PageRange) -> Result<(), Error> {
        release(&self.inner, range)
    }

    /// Brings every page home that a forked child would not have: those on private and on coherent DAX devices, and those held exclusively. Forks by the C library
    /// do it by themselves; whoever forks past it does this before, and lets nobody migrate until the fork is done.
    ///
    /// # Errors
    ///
    /// If a page could not come home; others may have.
    pub fn bring_home(&self) -> Result<(), Error> {
        if forks::unparked(&self.inner, || self.inner.bring_home()) {
            return Ok(());
        }
        Err(Error::invalid("pages could not come home; they are in use all the time"))
    }

    /// From here on the first write to each page on a coherent device that a forked child shares at this moment is noticed: the kernel makes a copy of it then, which is in
    /// system memory, and [`Runtime::residency`] says so. Of nodes the kernel tells where a page is; of other coherent devices nothing does but this. The noticing
    /// ends where pages of the same mapping migrate: whoever wants it to go on asks anew.
    pub fn notice_copies(&self) {
        let host = &self.inner.engine.host;
        self.inner.engine.each_mapped(|page| {
            if host.is_shared(page) {
                // A failure leaves a page unnoticed.
                let _ = host.contexts.thread.write_protect(page, WriteProtect::Protect);
            }
        });
    }

    /// Migrates the pages of `range` that `request` selects, and says what became of each, in order. Zero moved pages is not an
    /// error.
    pub fn migrate(&self, range: PageRange, request: Request) -> Outcomes {
        self.migrate_all(&[range], request).pop().unwrap_or_default()
    }

    /// Migrates several ranges at once: cheaper than one by one. The outcomes are those of each range, in order.
    pub fn migrate_all(&self, ranges: &[PageRange], request: Request) -> Vec<Outcomes> {
        self.inner.migrate(ranges, request)
    }

    /// Gives each hole of `range`, and each page of zeros that all share, a page of its own, as a write of what is there does; pages that are on a
    /// private device come home. Parts that can't be written stay as they are. Migrations keep holes, as there is nothing to move.
    pub fn populate(&self, range: PageRange) {
        self.inner.populate(range);
    }

    /// Where each page of `range` is, in order. Nothing is moved.
    #[must_use]
    pub fn residency(&self, range: PageRange) -> Vec<Residency> {
        self.inner.engine.residency(range)
    }

    /// Says what is known of the use of `range`. Parts that are not managed are passed over.
    ///
    /// # Errors
    ///
    /// If a device is named that doesn't exist.
    pub fn advise(&self, range: PageRange, advice: Advice) -> Result<(), Error> {
        if let Advice::PreferredLocation(device) = advice
            && self.inner.engine.device(device).is_none()
        {
            return Err(Error::invalid(format!(
                "there is no device {}; the runtime has {}",
                device.index(),
                self.inner.engine.devices().len()
            )));
        }
        self.inner.engine.space.change_region(range, |region| match advice {
            Advice::PreferredLocation(device) => region.preferred = Some(device),
            Advice::NoPreference => region.preferred = None,
            Advice::Pin => region.pinned = true,
            Advice::Unpin => region.pinned = false,
        });
        if advice == Advice::Pin {
            // A block that was about to come home does, and none after.
            self.inner.engine.await_exchanges(range);
        }
        Ok(())
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.inner.engine.counters
    }

    /// Whose the pages of `device` are, if there is such a device.
    #[must_use]
    pub fn owner(&self, device: DeviceId) -> Option<Owner> {
        self.inner.engine.device(device).map(|device| device.pagemap().owner)
    }

    /// The type of each device, in the order of the ids.
    #[must_use]
    pub fn devices(&self) -> Vec<MemoryType> {
        self.inner.engine.devices().iter().map(|d| d.pagemap().memory_type).collect()
    }

    /// Checks the books against themselves; nothing may be in flight. For tests.
    ///
    /// # Panics
    ///
    /// If they don't add up.
    pub fn check(&self) {
        self.inner.engine.check();
    }
}

fn release(inner: &Inner, range: PageRange) -> Result<(), Error> {
    if !inner.is_of_this_process() {
        return Err(Error::invalid(format!(
            "{range} is managed by the runtime of the process that this one was forked from"
        )));
    }
    let space = &inner.engine.space;
    let start = Instant::now();
    loop {
        // Anew each time, as another's attempt at a part of it may have failed.
        space.change_region(range, |region| region.ending = true);
        let parts: Vec<PageRange> =
            space.blocks_in(range).into_iter().filter_map(|(no, _)| no.range().intersect(range)).collect();
        let outcomes = inner.migrate(&parts, Request::all_to(Target::System));
        // With the gate held alone nobody takes pages out, and without a region nobody will.
        let events = space.gate.events();
        let (unmapped, mapped) = inner.engine.away_in(range);
        let left = unmapped + mapped;
        if left.is_zero() {
            let managed = space.regions_in(range).into_iter().filter(|(_, region)| region.is_some());
            let bytes: u64 = managed.map(|(part, _)| part.pages().bytes().get()).sum();
            inner.engine.counters.adopted_bytes.fetch_sub(bytes, Relaxed);
            space.remove_region(range);
            space.forget_blocks(&events, range);
            break;
        }
        drop(events);
        let why = outcomes.iter().flat_map(|o| o.as_slice()).find_map(|o| match o {
            PageOutcome::Kept(
                KeptReason::AlreadyThere | KeptReason::Hole | KeptReason::Unmanaged | KeptReason::Raced,
            )
            | PageOutcome::Moved => None,
            PageOutcome::Kept(reason) => Some(reason.label()),
        });
        if why.is_some() || start.elapsed() > MEMORY_PATIENCE {
            let why = why.unwrap_or("raced");
            space.change_region(range, |region| region.ending = false);
            return Err(Error::invalid(format!(
                "{left} pages of {range} could not come home ({why})",
                left = left.get()
            )));
        }
        // Somebody works on them: a fault, or another's migration.
        hetmem_sys::thread::yield_now();
    }
    // So the end of the mapping raises no event, which would come over what is mapped there next.
    inner.unregister(range);
    Ok(())
}

fn errno_of(error: &std::io::Error) -> hetmem_sys::errno::Errno {
    hetmem_sys::errno::Errno::from_io_error(error).unwrap_or(hetmem_sys::errno::Errno::IO)
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if !self.inner.is_of_this_process() {
            // What ends here goes on in the parent.
            return;
        }
        drop(self.inner.engine.notifiers.start(PageRange::ALL, Event::Release, true));
        let regions: Vec<PageRange> = self.inner.engine.space.regions().into_iter().map(|(range, _)| range).collect();
        for range in regions {
            // A page that can't come home keeps its frame, and with it the runtime's memory, until the process ends.
            let _ = release(&self.inner, range);
        }
        if self.sigbus {
            fast::leave(&self.inner);
        }
        // An eventfd takes eight bytes at a time and is never full of ones.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(service) = self.service.take() {
            // It does not end by a panic: then the process would have.
            let _ = service.join();
        }
    }
}

/// Managed memory from [`Runtime::map`], unmapped on drop.
pub struct Mapping {
    pub(crate) inner: Arc<Inner>,
    arena: Option<Arena>,
}

impl Mapping {
    /// Where it is.
    #[must_use]
    pub fn range(&self) -> PageRange {
        self.arena.as_ref().map_or_else(|| PageRange::page_of(VirtAddr::default()), Arena::range)
    }

    /// Its first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        let address = usize::try_from(self.range().start().get()).unwrap_or(0);
        std::ptr::with_exposed_provenance_mut(address)
    }

    /// Its contents. Words are atomic, as other threads may use the pointer; a touch of a page that is on a private device brings
    /// it home.
    #[must_use]
    #[expect(unsafe_code, reason = "memory named by number is lent")]
    pub fn words(&self) -> &[std::sync::atomic::AtomicU64] {
        let first = self.as_ptr().cast::<std::sync::atomic::AtomicU64>().cast_const();
        // SAFETY: readable and writable memory of that length, aligned to a page, which lives as long as the mapping; any bytes are
        // valid. Pages leave and come back with their contents, which no touch can tell from their having stayed.
        unsafe { std::slice::from_raw_parts(first, self.len() / 8) }
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.range().pages().as_usize() * 4096
    }

    /// Whether it has no byte; never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range().is_empty()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let range = self.range();
        if !self.inner.is_of_this_process() {
            return;
        }
        // A page that can't come home still has its slot, which lets go of the frame below.
        let _ = release(&self.inner, range);
        // Nor may a block of a device be laid over what is mapped there next.
        self.inner.engine.end_overlays(range);
        {
            let events = self.inner.engine.space.gate.events();
            self.inner.engine.unmapped(&events, range);
        }
        self.inner.tell_of_resting();
        // Last: from then on the address may be another mapping's, and what the books say of it is that one's.
        drop(self.arena.take());
    }
}

/// The number of pages in a block, for those who align to it.
pub const BLOCK: PageCount = PageCount::new(BLOCK_PAGES);

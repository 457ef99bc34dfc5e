//! What a runtime is to be like, and its devices.

use std::fmt;
use std::sync::Arc;

use hetmem_core::engine::CountersAt;
use hetmem_core::physmap::{MemoryType, Owner};
use hetmem_core::port::{Device, Reach};
use hetmem_core::stats::MAX_DEVICES;
use hetmem_core::units::{BLOCK_PAGES, ByteLen, DeviceId, PAGE_SIZE, PageRange};
use hetmem_devices::kind::{self, MakeError};
use hetmem_devices::spec::DeviceSpec;
use hetmem_sys::maps::MapsFile;
use hetmem_sys::uffd::check_page_size;

use crate::error::Error;
use crate::forks;
use crate::host::contexts::Contexts;
use crate::inner::Inner;
use crate::rest::Warmth;
use crate::runtime::Runtime;

/// The stock of populated system pages unless said otherwise.
pub(crate) const DEFAULT_STOCK: ByteLen = ByteLen::new(64 << 20);

/// A device that is asked for.
enum Wanted {
    Described(DeviceSpec),
    Custom(Box<dyn Device>),
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Described(spec) => write!(f, "{spec}"),
            Self::Custom(device) => device.pagemap().fmt(f),
        }
    }
}

/// Sets up a [`Runtime`].
#[derive(Default, Debug)]
#[must_use]
pub struct Builder {
    devices: Vec<Wanted>,
    stock: Option<ByteLen>,
    strict_stock: bool,
    sigbus: bool,
    single_faults: bool,
    own_allocator: bool,
    forks_exec_at_once: bool,
}

impl Builder {
    /// Adds a device; its id is its place in the order of these calls and of those of [`Builder::custom`], from 0. Each device's pages have an owner
    /// of their own ([`Runtime::owner`]).
    pub fn device(mut self, spec: DeviceSpec) -> Self {
        self.devices.push(Wanted::Described(spec));
        self
    }

    /// Adds a device of the program's own; see [`crate::device`]. Its id is its place, as that of [`Builder::device`]. The owner of its pages is the
    /// one that its pagemap names. (Of a device that is described it is a number: its place, counted from 1.)
    ///
    /// # Safety
    ///
    /// The device keeps the contract of [`crate::device`]: hetmem moves pages of the program to the addresses that it names, and gives the program
    /// the bytes that it gives back.
    #[expect(unsafe_code, reason = "the promise can only be the caller's")]
    pub unsafe fn custom(mut self, device: Box<dyn Device>) -> Self {
        self.devices.push(Wanted::Custom(device));
        self
    }

    /// Keeps at most `len` of populated system pages in stock for pages on their way home (64 MiB unless said otherwise). More makes
    /// large migrations home faster, and uses as much memory.
    ///
    /// While migrations go on, up to 4 GiB more of what pages have left may stay, and at most a quarter of what the machine and the control group
    /// have left; half a second after the last one it is given back. [`Builder::strict_stock`] gives it back at once.
    pub fn stock(mut self, len: ByteLen) -> Self {
        self.stock = Some(len);
        self
    }

    /// Gives system memory that pages have left back at once, as far as it is beyond the stock.
    pub fn strict_stock(mut self) -> Self {
        self.strict_stock = true;
        self
    }

    /// Allows regions with [`FaultPath::Sigbus`](crate::FaultPath::Sigbus): installs a handler for SIGBUS, which passes on what is not hetmem's.
    pub fn sigbus(mut self) -> Self {
        self.sigbus = true;
        self
    }

    /// Has each touch bring home the touched page and no other, as the kernel's test device does. Otherwise neighbours come along while touches
    /// go on in sequence, which is faster.
    pub fn single_faults(mut self) -> Self {
        self.single_faults = true;
        self
    }

    /// Says that hetmem does not allocate from the C library's heap, but from one that no fork locks (a `#[global_allocator]` of the library that
    /// hetmem is a part of). Otherwise the runtime stands still during each fork by the C library, as the heap does, and a handler of
    /// `pthread_atfork` may ask nothing of it but [`Runtime::bring_home`].
    pub fn own_allocator(mut self) -> Self {
        self.own_allocator = true;
        self
    }

    /// Says that forked children of this program execute another program at once, or at least touch no managed memory, so that forks need not wait
    /// for pages.
    ///
    /// Otherwise each fork by the C library brings home before what the child would not have, and while it is under way no page leaves: migrations
    /// keep what they would move as [`KeptReason::Raced`](crate::KeptReason::Raced). (It brings nothing home where userfaultfd announces forks, with
    /// `CAP_SYS_PTRACE`: then the child gets copies.) With this, and without that privilege, a child reads zeros where its parent had pages away.
    /// `posix_spawn`, `vfork` and [`std::process::Command`] as long as it uses these bring nothing home in any case.
    pub fn forks_exec_at_once(mut self) -> Self {
        self.forks_exec_at_once = true;
        self
    }

    /// Starts the runtime and its handler thread.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind) if there are too many devices (at most 16), or one can't be made as described, or contradicts
    /// itself; [`ErrorKind::HostRefuses`](crate::ErrorKind) if userfaultfd can't be used, with what would fix it.
    pub fn start(mut self) -> Result<Runtime, Error> {
        check_page_size().map_err(Error::no_userfaultfd)?;
        let devices = make_all(std::mem::take(&mut self.devices))?;
        let maps = MapsFile::open().map_err(|errno| Error::os("/proc/self/maps can't be read", errno))?;
        let contexts = Contexts::open(self.sigbus, maps).map_err(Error::no_userfaultfd)?;
        let stock = self.stock.unwrap_or(DEFAULT_STOCK);
        if stock.whole_pages().is_none() {
            return Err(Error::invalid(format!("a stock of {stock} is not a multiple of the page, {PAGE_SIZE} B")));
        }
        let counters = CountersAt::Own(Box::default());
        let warmth = if self.strict_stock { Warmth::Strict } else { Warmth::in_use() };
        let mut inner = Inner::new(contexts, devices, stock, warmth, counters, print_fatal)
            .map_err(|errno| Error::os("the runtime's memory can't be set up", errno))?;
        inner.engine.set_fault_around(!self.single_faults);
        let inner = Arc::new(inner);
        let told = inner.engine.host().contexts.fork_events;
        let needs = forks::Needs { parks: told && !self.own_allocator, homes: !told && !self.forks_exec_at_once };
        if needs.parks || needs.homes || inner.engine.has_overlays() {
            forks::expect(&inner, needs)?;
        }
        Runtime::start(inner, self.sigbus)
    }
}

#[expect(clippy::print_stderr, reason = "the program is about to be stopped; this is the last word")]
fn print_fatal(line: &str) {
    eprintln!("hetmem: {line}");
}

/// The devices that `specs` describe.
pub(crate) fn make_devices(specs: &[DeviceSpec]) -> Result<Vec<Box<dyn Device>>, Error> {
    make_all(specs.iter().cloned().map(Wanted::Described).collect())
}

fn make_all(wanted: Vec<Wanted>) -> Result<Vec<Box<dyn Device>>, Error> {
    if wanted.len() > MAX_DEVICES {
        return Err(Error::invalid(format!(
            "{} devices are too many; at most {MAX_DEVICES} can be used",
            wanted.len()
        )));
    }
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    for (place, wanted) in (0..).zip(wanted) {
        let id = DeviceId::new(place);
        devices.push(match wanted {
            Wanted::Described(spec) => make_device(id, Owner::new(u64::from(place) + 1), &spec)?,
            Wanted::Custom(device) => {
                check_custom(id, &*device)?;
                device
            }
        });
    }
    Ok(devices)
}

/// Whether what a device of the program's own says of itself can be so.
fn check_custom(id: DeviceId, device: &dyn Device) -> Result<(), Error> {
    let refused = |why: &str| Err(Error::invalid(format!("device {}: {why}", id.index())));
    let pagemap = device.pagemap();
    if pagemap.device != id {
        let said = pagemap.device.index();
        return refused(&format!(
            "its pagemap says that it is device {said}; an id is the place among the builder's devices"
        ));
    }
    if !pagemap.frames.used().is_zero() {
        return refused("frames are in use already");
    }
    let (moved, laid) = (device.reach().movable(), device.reach().laid());
    match (pagemap.memory_type, device.reach()) {
        (MemoryType::DevicePrivate, Reach::Movable(_) | Reach::Laid(_)) => {
            return refused("it is private, and its frames have an address for the program's use");
        }
        (MemoryType::DeviceCoherent, Reach::Copied) => {
            return refused("it is coherent, and its frames have no address (Reach::Movable, Reach::Laid)");
        }
        (MemoryType::DevicePrivate, Reach::Copied)
        | (MemoryType::DeviceCoherent, Reach::Movable(_) | Reach::Laid(_)) => {}
    }
    let capacity = pagemap.frames.capacity();
    if moved.or(laid).is_some_and(|start| PageRange::new(start, capacity).is_none()) {
        return refused("its frames don't begin at a page, or reach past the end of the address space");
    }
    if moved.is_some() && device.readable().is_some_and(|start| Some(start) != moved) {
        return refused("its frames are said to be readable elsewhere than they are movable");
    }
    if laid.is_some() && !capacity.get().is_multiple_of(BLOCK_PAGES) {
        return refused("its frames are not whole blocks of 2 MiB");
    }
    Ok(())
}

pub(crate) fn make_device(id: DeviceId, owner: Owner, spec: &DeviceSpec) -> Result<Box<dyn Device>, Error> {
    kind::make(id, owner, spec).map_err(|error| match error {
        MakeError::Unsuitable(why) => Error::invalid(format!("device {}: {why}", spec.name)),
        MakeError::Os(errno) => Error::os(format!("device {} can't be made", spec.name), errno),
    })
}

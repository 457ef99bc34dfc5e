//! Faults whose device is at work: what is known of each until its transfers have ended, so that the thread that serves faults serves others
//! meanwhile.
//!
//! ```text
//! Engine::begin_fault ── pages are busy, places of the pool are taken, Device::submit ──┬── all done: the pages are installed at once
//!                                                                                       └── under way: FaultResolution::UnderWay
//! Engine::end_faults ─── Device::completions; a fault whose last transfer has ended: its pages are installed
//! ```
//!
//! To everybody else the pages are busy, as those of a batch are: events drop or move them, further touches wait.
//!
//! *Limits:* [`MAX_FAULTS`] faults and [`MAX_UNDER_WAY`] transfers at a time; what comes then is told to come again ([`FaultResolution::NoRoom`]).
//! The table is made with the engine, and only where a device may complete late, so that nothing is allocated on a fault's way.

use crate::engine::Engine;
use crate::fault::cluster::{Cluster, Pages};
use crate::fault::{FaultResolution, MAX_AROUND};
use crate::frames::{FrameRefs, FrameRun, Frames, Purpose};
use crate::port::{Device, FaultPath, Host, Progress, Ticket, Transfer, TransferError};
use crate::slot::SYSTEM_POOL;
use crate::space::BlockRef;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, lock};
use crate::units::{DeviceId, FrameIndex, PageCount, VirtAddr};

/// Faults that are under way at a time, at most.
pub const MAX_FAULTS: usize = 64;
/// Transfers of faults that are under way at a time, at most.
pub const MAX_UNDER_WAY: usize = 256;

/// Bits of a ticket that say which page of its fault a transfer begins with.
const PAGE_BITS: u32 = 8;

/// A fault that was under way, and what became of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The address that was touched.
    pub addr: VirtAddr,
    /// What [`Engine::begin_fault`] was given.
    pub token: u64,
    /// As of a fault that was served at once.
    pub resolution: FaultResolution,
}

/// Places of the pool for the pages of a cluster, each with a reference that was counted.
#[derive(Clone, Copy)]
struct Places {
    len: usize,
    index: [FrameIndex; MAX_AROUND as usize],
}

impl Places {
    /// At most `want` places; fewer where the host has no memory for more.
    fn take<H: Host>(engine: &Engine<H>, want: PageCount) -> Self {
        let mut this = Self { len: 0, index: [FrameIndex::new(0); MAX_AROUND as usize] };
        while this.len < want.as_usize() {
            let left = PageCount::new((want.as_usize() - this.len) as u64);
            let Some(places) = engine.take_stocked(left, Purpose::Fault) else { break };
            for index in places.into_counted().run.iter() {
                this.index[this.len] = index;
                this.len += 1;
            }
        }
        this
    }

    /// The places from the `from`-th on that follow one another, at most up to the `to`-th.
    fn run(&self, from: usize, to: usize) -> Frames {
        let follows = |i: usize| self.index[i].index() == self.index[from].index() + (i - from);
        let pages = (from + 1..to).find(|&i| !follows(i)).unwrap_or(to) - from;
        let run = FrameRun { first: self.index[from], pages: PageCount::new(pages as u64) };
        Frames { device: SYSTEM_POOL, run }
    }
}

/// A fault under way.
pub(crate) struct Fault {
    addr: VirtAddr,
    token: u64,
    block: BlockRef,
    pages: Pages,
    places: Places,
    /// Transfers that have not ended.
    waits_for: usize,
    /// So many pages from the first on have come, or will.
    came: usize,
    /// Why the one after them has not.
    error: Option<TransferError>,
}

#[derive(Default)]
struct Table {
    faults: Box<[Option<Fault>]>,
    transfers: usize,
}

/// The faults whose pages a device is about to give, in a table of fixed size.
#[derive(Default)]
pub(crate) struct UnderWay {
    table: Mutex<Table>,
    faults: AtomicUsize,
}

impl UnderWay {
    /// The table for these devices.
    pub(crate) fn new(devices: &[Box<dyn Device>]) -> Self {
        let is_needed = devices.iter().any(|device| device.completion_descriptor().is_some());
        let faults = (0..if is_needed { MAX_FAULTS } else { 0 }).map(|_| None).collect();
        Self { table: Mutex::new(Table { faults, transfers: 0 }), faults: AtomicUsize::new(0) }
    }

    /// Takes `fault` over, and says by which number it is known; if there is no room, it stays the caller's.
    fn add(&self, fault: &mut Option<Fault>) -> Option<usize> {
        let mut table = lock(&self.table);
        let number = table.faults.iter().position(Option::is_none)?;
        let waits_for = fault.as_ref()?.waits_for;
        if table.transfers + waits_for > MAX_UNDER_WAY {
            return None;
        }
        table.transfers += waits_for;
        table.faults[number] = fault.take();
        // Relaxed: whoever asks has added it, or asks again.
        self.faults.fetch_add(1, Ordering::Relaxed);
        Some(number)
    }

    /// A transfer has ended. If it was the last of its fault, that is the caller's again.
    fn transfer_ended(&self, ticket: Ticket, result: Result<(), TransferError>) -> Option<Fault> {
        let (number, page) = parts_of(ticket);
        let mut table = lock(&self.table);
        table.transfers -= 1;
        let fault = table.faults[number].as_mut().expect("a transfer that ends belongs to a fault");
        fault.waits_for -= 1;
        if let Err(error) = result
            && page < fault.came
        {
            (fault.came, fault.error) = (page, Some(error));
        }
        if fault.waits_for > 0 {
            return None;
        }
        self.faults.fetch_sub(1, Ordering::Relaxed);
        table.faults[number].take()
    }
}

fn ticket(number: usize, page: usize) -> Ticket {
    Ticket::new((number as u64) << PAGE_BITS | page as u64)
}

fn parts_of(ticket: Ticket) -> (usize, usize) {
    let part = |raw: u64| usize::try_from(raw).expect("a ticket is made of two small numbers");
    (part(ticket.get() >> PAGE_BITS), part(ticket.get() & ((1 << PAGE_BITS) - 1)))
}

impl<H: Host> Engine<H> {
    /// As [`Engine::fault`] on [`FaultPath::Thread`], and does not wait for devices that can say when they have done: then the result is
    /// [`FaultResolution::UnderWay`], and [`Engine::end_faults`] gives `token` back when it has ended; or [`FaultResolution::NoRoom`].
    pub fn begin_fault(&self, addr: VirtAddr, token: u64) -> FaultResolution {
        self.fault_or_begin(addr, FaultPath::Thread, Some(token))
    }

    /// How many faults are under way.
    pub fn faults_under_way(&self) -> usize {
        self.under_way.faults.load(Ordering::Relaxed)
    }

    /// Looks which faults' transfers have ended, ends those faults, and calls `ended` with each. Called by the threads that begin faults, when a
    /// device's completion descriptor is readable; at any other time, too.
    pub fn end_faults(&self, ended: &mut dyn FnMut(Ended)) {
        for device in self.devices().iter().filter(|_| self.faults_under_way() > 0) {
            device.completions(&mut |ticket, result| {
                if let Some(fault) = self.under_way.transfer_ended(ticket, result) {
                    let (addr, token) = (fault.addr, fault.token);
                    ended(Ended { addr, token, resolution: self.arrive(fault) });
                }
            });
        }
    }

    pub(super) fn completes_late(&self, device: DeviceId) -> bool {
        self.device_of(device).completion_descriptor().is_some()
    }

    /// Whether there is no room for another fault.
    pub(super) fn is_full(&self) -> bool {
        self.faults_under_way() == MAX_FAULTS
    }

    /// Has the device copy the pages of `cluster`, all in frames of one device.
    // Its arrays are large, and faults that are served at once have none of them on their stack.
    #[inline(never)]
    pub(super) fn set_out(
        &self,
        block: BlockRef,
        addr: VirtAddr,
        token: u64,
        mut cluster: Cluster<'_, H>,
    ) -> FaultResolution {
        let path = FaultPath::Thread;
        let all = cluster.rest();
        let places = Places::take(self, cluster.pages());
        if places.len == 0 {
            self.give_up(&block, path, &mut cluster, all);
            return FaultResolution::NoMemory;
        }
        let mut beyond = cluster.split_off(PageCount::new(places.len as u64));
        if !beyond.is_empty() {
            self.give_up(&block, path, &mut beyond, all);
        }
        let device = cluster.frame(PageCount::ZERO).device;
        let (mut batch, n) = transfers(self, &cluster, &places);
        let pages = cluster.into_pages();
        let fault =
            Fault { addr, token, block: block.clone(), pages, places, waits_for: n, came: places.len, error: None };
        let mut fault = Some(fault);
        let added = self.under_way.add(&mut fault);
        if let Some(fault) = fault {
            let mut cluster = self.let_go_of_places(&fault, 0);
            self.give_up(&block, path, &mut cluster, all);
        }
        let Some(number) = added else { return FaultResolution::NoRoom };
        for transfer in &mut batch[..n] {
            let (_, page) = parts_of(transfer.ticket);
            transfer.ticket = ticket(number, page);
        }
        self.device_of(device).submit(&mut batch[..n]);
        let mut last = None;
        for transfer in &batch[..n] {
            if let Progress::Done(result) = transfer.progress {
                last = self.under_way.transfer_ended(transfer.ticket, result).or(last);
            }
        }
        last.map_or(FaultResolution::UnderWay, |fault| self.arrive(fault))
    }

    /// Gives the places from the `from`-th on back; the result are the pages.
    fn let_go_of_places(&self, fault: &Fault, from: usize) -> Cluster<'_, H> {
        let mut at = from;
        while at < fault.places.len {
            let run = fault.places.run(at, fault.places.len);
            at += run.run.pages.as_usize();
            drop(FrameRefs::counted(self, run));
        }
        Cluster::of(self, fault.pages)
    }

    /// The last transfer of `fault` has ended: installs the pages that came.
    fn arrive(&self, mut fault: Fault) -> FaultResolution {
        let path = FaultPath::Thread;
        if let Some(error) = fault.error {
            self.counters.errors.fetch_add(1, Ordering::Relaxed);
            if fault.came == 0 {
                let from = Frames::single(fault.pages.first_frame());
                self.fetch_owed(fault.pages.first(), from, fault.places.run(0, 1), error);
                fault.came = 1;
            }
        }
        let copied = PageCount::new(fault.came as u64).bytes();
        self.counters.bytes_copied.fetch_add(copied.get(), Ordering::Relaxed);
        let (block, places, came) = (fault.block.clone(), fault.places, fault.came);
        let mut cluster = self.let_go_of_places(&fault, came);
        let all = cluster.rest();
        let mut result = FaultResolution::Home(PageCount::ZERO);
        {
            let _shared = self.space.gate.share();
            let mut state = block.lock();
            let mut at = 0;
            while at < came {
                let run = places.run(at, came);
                at += run.run.pages.as_usize();
                let copies = FrameRefs::counted(self, run);
                // What has stopped one stops those behind it, which are given back.
                if result == FaultResolution::Home(PageCount::ZERO)
                    && let Some(stop) = self.install_cluster(&mut state, path, &mut cluster, copies)
                {
                    result = stop;
                }
            }
            if cluster.is_empty() {
                self.release_waiters(&block, &mut state, path, all);
            }
        }
        self.came_home(&block, path, &mut cluster, all, result)
    }
}

/// The transfers that bring the pages of `cluster` to `places`, and how many they are. Their tickets say which page each begins with.
fn transfers<H: Host>(
    engine: &Engine<H>,
    cluster: &Cluster<'_, H>,
    places: &Places,
) -> ([Transfer; MAX_AROUND as usize], usize) {
    let nothing = FrameRun { first: FrameIndex::new(0), pages: PageCount::ZERO };
    let mut batch = [Transfer::out_of_frames(nothing, VirtAddr::default()); MAX_AROUND as usize];
    let (mut at, mut n) = (0, 0);
    while at < places.len {
        let to = places.run(at, places.len);
        let first = PageCount::new(at as u64);
        let from = cluster.run(first, to.run.pages);
        let address = engine.pool.address(to.run);
        batch[n] = Transfer::out_of_frames(from.run, address).with_ticket(ticket(0, at));
        at += from.run.pages.as_usize();
        n += 1;
    }
    (batch, n)
}

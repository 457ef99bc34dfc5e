//! The statistics memory: one shared area in which every process of a `hetmem run` counts, and which the supervisor reads
//! while the program runs, if somebody looks, and when it has ended, however it ended.
//!
//! ```text
//! header    magic, version, processes without a slot of their own, first refusal
//! live      what the supervisor wants of all processes: another limit, figures
//! requests  what it asks of one, and the answer
//! members   what the processes that are alive share (`budget`)
//! slot 0    pid, since when, figures, Counters
//! slot 1    pid, since when, figures, Counters
//! …         SLOTS of them; the memory is sparse, so a slot costs nothing before it is claimed
//! ```
//!
//! The supervisor [`create`](Ledger::create)s it, each agent [`open`](Ledger::open)s it by path and
//! [`claim`](Ledger::claim)s a slot. Everything in it is an atomic word, all-zero memory is an empty ledger, and nothing
//! in it is trusted to be consistent: the processes that write it may be killed at any moment.
//!
//! *Limits:* a slot stays claimed when its process ends. Processes beyond the last slot count together in that one:
//! sums stay right, but for what such a process says about the present (`adopted_bytes`), which the next one overwrites.
#![expect(unsafe_code, reason = "a type is declared fit for shared memory")]

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use std::time::Duration;

use hetmem_core::port::Packing;
use hetmem_core::stats::Counters;
use hetmem_core::units::{ByteLen, DeviceId, PAGE_SIZE, PageCount, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{SharedLayout, SharedMemory};
use hetmem_sys::thread::time_since_boot;
use thiserror::Error;

use super::budget::{Good, Members, Part};
use super::requests::{Request, RequestArea, State};

/// Processes that can count apart from one another.
pub const SLOTS: usize = 1024;
/// Bytes of a refusal's message that are kept.
pub const MESSAGE_BYTES: usize = 512;

/// "hetmem" and a number that changes with the layout.
const MAGIC: u64 = 0x6865_746d_656d_0001;
/// What the memory is called, and how a link to it begins.
const NAME: &CStr = c"hetmem-statistics";
const LINK: &[u8] = b"/memfd:hetmem-statistics";
const MESSAGE_WORDS: usize = MESSAGE_BYTES / 8;

#[repr(C)]
#[derive(Debug)]
struct Area {
    magic: AtomicU64,
    /// The size of the area: another build's layout may differ under the same number.
    bytes: AtomicU64,
    /// Processes that count in the last slot because all others were taken.
    overflow: AtomicU64,
    /// Agents that could not start.
    refusals: AtomicU64,
    /// The process whose refusal's message is kept; 0 if there is none.
    refused_pid: AtomicU64,
    /// Length of that message; stored (Release) after the message, and loaded (Acquire) before it.
    message_bytes: AtomicU64,
    message: [AtomicU64; MESSAGE_WORDS],
    /// How often figures were wanted.
    looks: AtomicU64,
    /// The limit that was set while the program ran, in bytes; 0 if none was.
    system_limit: AtomicU64,
    requests: RequestArea,
    members: Members,
    slots: [Slot; SLOTS],
}

#[repr(C)]
#[derive(Debug)]
struct Slot {
    /// The process that counts here; 0 for none.
    pid: AtomicU64,
    /// When it last began to, in nanoseconds since the machine was booted.
    since: AtomicU64,
    /// How many pages of managed memory were in system memory when it last counted them, and for which look that was: stored (Release) after it, and
    /// loaded (Acquire) before it.
    resident_pages: AtomicU64,
    looked: AtomicU64,
    counters: Counters,
}

/// A process that counts, or has counted, as far as it can be believed.
#[derive(Debug)]
pub struct Process<'a> {
    /// Its number, in its own namespace.
    pub pid: u32,
    /// Whether that is the caller's namespace.
    pub is_here: bool,
    /// When it began to count, since the machine was booted. If it executes another program it begins anew.
    pub since: Duration,
    /// What it counts.
    pub counters: &'a Counters,
    /// How many pages of managed memory were in system memory at its last look, and which look that was; `None` before the first.
    pub resident: Option<(PageCount, u64)>,
}

/// The slot of one process, as that process sees it: what the supervisor wants of it.
#[derive(Clone, Copy, Debug)]
pub struct Seat<'a> {
    area: &'a Area,
    slot: &'a Slot,
    key: u64,
}

/// A process can't have more.
const MOST_PAGES: u64 = (1 << 52) - 1;

const AREA_BYTES: u64 = size_of::<Area>() as u64;

// SAFETY: `repr(C)`, and made of `AtomicU64`, arrays of it, `RequestArea`, which is `repr(C)` and made of those, and `Members` and `Counters`, which
// are `SharedLayout` themselves.
unsafe impl SharedLayout for Area {}

/// Why an agent could not start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The process.
    pub pid: u32,
    /// One line: what is missing, and what would fix it.
    pub message: String,
}

/// Why a statistics memory can't be used.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// It can't be made.
    #[error("the statistics memory could not be made")]
    Create(#[source] Errno),
    /// It can't be opened or mapped.
    #[error("the statistics memory {path} could not be mapped")]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: Errno,
    },
    /// The memory is something else, or another version's.
    #[error("{0} is not a statistics memory of this version of hetmem")]
    Foreign(PathBuf),
}

/// The statistics memory of one `hetmem run`, mapped into this process.
#[derive(Debug)]
pub struct Ledger {
    area: SharedMemory<Area>,
    /// In the process that made it: the descriptor by which others find it.
    fd: Option<OwnedFd>,
}

impl Ledger {
    /// Makes an empty one. It lives as long as a process has it mapped.
    ///
    /// # Errors
    ///
    /// If the memory can't be made.
    pub fn create() -> Result<Self, LedgerError> {
        let (area, fd) = SharedMemory::<Area>::create(NAME).map_err(LedgerError::Create)?;
        area.bytes.store(AREA_BYTES, Relaxed);
        // Release: whoever sees the magic number (`open`) sees the size as well.
        area.magic.store(MAGIC, Release);
        Ok(Self { area, fd: Some(fd) })
    }

    /// Maps the one at `path`.
    ///
    /// # Errors
    ///
    /// If it can't be mapped, or isn't one of this version.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let failed = |source| LedgerError::Open { path: path.to_owned(), source };
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| failed(Errno::INVAL))?;
        // Where `/proc` is another namespace's the path names a descriptor of somebody else's, which is not to be opened.
        let target = rustix::fs::readlink(&name, Vec::new()).map_err(failed)?;
        if !target.to_bytes().starts_with(LINK) {
            return Err(LedgerError::Foreign(path.to_owned()));
        }
        let area = SharedMemory::<Area>::open(&name).map_err(failed)?;
        if area.magic.load(Acquire) != MAGIC || area.bytes.load(Relaxed) != AREA_BYTES {
            return Err(LedgerError::Foreign(path.to_owned()));
        }
        Ok(Self { area, fd: None })
    }

    /// The path by which other processes of the same user [`open`](Ledger::open) it while this process lives; `None` in a
    /// process that did not make it.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        self.fd.as_ref().map(|fd| path_of(fd.as_raw_fd()))
    }

    /// The counters of process `pid`. A process that asks again, as one does after exec, gets the same ones, with what they
    /// say about the present set to zero. When no slot is free, several processes share the last.
    #[must_use]
    pub fn claim(&self, pid: u32) -> &Counters {
        let pid = key(pid);
        for slot in &self.area.slots {
            // Relaxed: a slot holds nothing but independent counters.
            match slot.pid.compare_exchange(0, pid, Relaxed, Relaxed) {
                Ok(_) => {
                    slot.begin();
                    return &slot.counters;
                }
                Err(taken) if taken == pid => {
                    slot.begin();
                    slot.counters.adopted_bytes.store(0, Relaxed);
                    for device in &slot.counters.devices {
                        device.used_bytes.store(0, Relaxed);
                        device.packing.forget_present();
                    }
                    return &slot.counters;
                }
                Err(_) => {}
            }
        }
        self.area.overflow.fetch_add(1, Relaxed);
        &self.area.slots[SLOTS - 1].counters
    }

    /// Makes the process of the calling thread one that shares with the others of the run, as long as that thread lives.
    ///
    /// # Safety
    ///
    /// The calling thread has no list of robust mutexes of somebody else's, such as the C library's, and joins once.
    pub(super) unsafe fn join(&'static self) -> Part {
        // SAFETY: the caller's.
        unsafe { self.area.members.join() }
    }

    /// The counters of all processes together at the end of process `pid`, where they share the sizes of the devices that `shares` names by their
    /// places: those who have ended before have none of these any more.
    #[must_use]
    pub fn sum_at_end(&self, pid: u32, shares: impl Iterator<Item = usize>) -> Counters {
        let (sum, own) = (self.sum(), self.counters_of(pid));
        for device in shares {
            let (counters, members) = (&sum.devices[device], &self.area.members);
            let id = u8::try_from(device).map_or(DeviceId::new(u8::MAX), DeviceId::new);
            // Anything may be written there.
            let bytes = |pages: PageCount| pages.get().saturating_mul(PAGE_SIZE);
            let packing = own.map_or_else(Packing::default, |own| own.devices[device].packing.get(0));
            let peak_memory_bytes = self.peak_memory(device).get();
            let compacted_pages = counters.packing.get(0).compacted_pages;
            counters.packing.set(&Packing { peak_memory_bytes, compacted_pages, ..packing });
            let own = own.map_or(0, |own| own.devices[device].used_bytes.load(Relaxed));
            let [peak, used] = [members.peak(Good::Frames(id)), members.taken(Good::Frames(id))].map(bytes);
            counters.peak_used_bytes.fetch_min(peak, Relaxed);
            counters.used_bytes.fetch_min(own.saturating_add(used).min(peak), Relaxed);
        }
        sum
    }

    /// The most memory that device number `device` has ever packed pages into, in all processes together, where they share its size.
    #[must_use]
    pub fn peak_memory(&self, device: usize) -> ByteLen {
        let id = u8::try_from(device).map_or(DeviceId::new(u8::MAX), DeviceId::new);
        // Anything may be written there.
        ByteLen::new(self.area.members.peak(Good::Memory(id)).get().saturating_mul(PAGE_SIZE))
    }

    /// The counters of process `pid`, if it has a slot.
    #[must_use]
    pub fn counters_of(&self, pid: u32) -> Option<&Counters> {
        let key = key(pid);
        self.claimed().find(|slot| slot.pid.load(Relaxed) == key).map(|slot| &slot.counters)
    }

    /// What the supervisor may want of process `pid`, if it has a slot of its own.
    #[must_use]
    pub fn seat(&self, pid: u32) -> Option<Seat<'_>> {
        let key = key(pid);
        let slot = self.claimed().find(|slot| slot.pid.load(Relaxed) == key)?;
        Some(Seat { area: &self.area, slot, key })
    }

    /// The processes that have slots, in the order in which they came.
    pub fn each_process(&self) -> impl Iterator<Item = Process<'_>> {
        let here = key(0);
        self.claimed().map(move |slot| {
            let (pid, namespace) = parts(slot.pid.load(Relaxed));
            // Acquire: pairs with `tell_resident`.
            let looked = slot.looked.load(Acquire);
            let pages = PageCount::new(slot.resident_pages.load(Relaxed) & MOST_PAGES);
            Process {
                pid,
                is_here: namespace == parts(here).1,
                since: Duration::from_nanos(slot.since.load(Relaxed)),
                counters: &slot.counters,
                resident: (looked != 0).then_some((pages, looked)),
            }
        })
    }

    fn claimed(&self) -> impl Iterator<Item = &Slot> {
        // They are claimed in order, and memory that nobody has claimed is not to be made by a look at it.
        self.area.slots.iter().take_while(|slot| slot.pid.load(Relaxed) != 0)
    }

    /// Has each process count what is in system memory, soon; the number of this look.
    pub fn look(&self) -> u64 {
        self.area.looks.fetch_add(1, Relaxed).wrapping_add(1)
    }

    /// Asks process `pid` of the caller's namespace; the number of the request. Who asks has the turn to.
    pub fn ask(&self, pid: u32, request: Request) -> u64 {
        self.area.requests.ask(key(pid), request)
    }

    /// What has come of request `number`.
    #[must_use]
    pub fn state(&self, number: u64) -> State {
        self.area.requests.state(number)
    }

    /// Sets what each process of the run may keep in system memory from now on, if its policy goes by that.
    pub fn set_system_limit(&self, limit: ByteLen) {
        self.area.system_limit.store(limit.get(), Relaxed);
    }

    /// What was set so.
    #[must_use]
    pub fn system_limit(&self) -> Option<ByteLen> {
        Some(self.area.system_limit.load(Relaxed)).filter(|limit| *limit != 0).map(ByteLen::new)
    }

    /// How many processes have counted here.
    #[must_use]
    pub fn processes(&self) -> u64 {
        (self.claimed().count() as u64).saturating_add(self.area.overflow.load(Relaxed))
    }

    /// The counters of all processes together.
    #[must_use]
    pub fn sum(&self) -> Counters {
        let sum = Counters::default();
        self.claimed().for_each(|slot| sum.absorb(&slot.counters));
        sum
    }

    /// Records that the agent of process `pid` could not start. The first message is kept, up to [`MESSAGE_BYTES`].
    pub fn refuse(&self, pid: u32, message: &str) {
        let area = &*self.area;
        area.refusals.fetch_add(1, Relaxed);
        if area.refused_pid.compare_exchange(0, u64::from(pid), Relaxed, Relaxed).is_err() {
            return;
        }
        let bytes = &message.as_bytes()[..message.len().min(MESSAGE_BYTES)];
        for (word, chunk) in area.message.iter().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(padded), Relaxed);
        }
        // Release: pairs with the load in `refusal`.
        area.message_bytes.store(bytes.len() as u64, Release);
    }

    /// How many agents could not start.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.area.refusals.load(Relaxed)
    }

    /// The first refusal, if there was one.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        let area = &*self.area;
        let pid = u32::try_from(area.refused_pid.load(Relaxed)).ok().filter(|pid| *pid != 0)?;
        // Acquire: pairs with the store in `refuse`.
        let length = usize::try_from(area.message_bytes.load(Acquire)).ok()?.min(MESSAGE_BYTES);
        let bytes: Vec<u8> = area.message.iter().flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect();
        Some(Refusal { pid, message: String::from_utf8_lossy(&bytes[..length]).into_owned() })
    }
}

impl Slot {
    /// Its process begins to count.
    fn begin(&self) {
        let now = u64::try_from(time_since_boot().as_nanos()).unwrap_or(u64::MAX);
        self.since.store(now, Relaxed);
        self.looked.store(0, Relaxed);
    }
}

impl Seat<'_> {
    /// How often figures were wanted.
    #[must_use]
    pub fn looks(&self) -> u64 {
        self.area.looks.load(Relaxed)
    }

    /// Tells how many pages of managed memory are in system memory, for look `look`.
    pub fn tell_resident(&self, pages: PageCount, look: u64) {
        self.slot.resident_pages.store(pages.get(), Relaxed);
        // Release: pairs with the load in `each_process`.
        self.slot.looked.store(look, Release);
    }

    /// The limit that was set while the program ran; zero if none was.
    #[must_use]
    pub fn system_limit(&self) -> ByteLen {
        ByteLen::new(self.area.system_limit.load(Relaxed))
    }

    /// The number of the last request, if it is for this process; 0 if not.
    #[must_use]
    pub fn request_number(&self) -> u64 {
        self.area.requests.number_for(self.key)
    }

    /// What is asked by request `number`, if that is the last still.
    #[must_use]
    pub fn request(&self, number: u64) -> Option<Request> {
        self.area.requests.read(number, self.key)
    }

    /// Answers request `number`.
    pub fn answer(&self, number: u64, words: &[u64], next: Option<VirtAddr>) {
        self.area.requests.answer(number, words, next);
    }
}

/// A process's number, and that of its namespace.
const fn parts(key: u64) -> (u32, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the halves of a word")]
    (key as u32, (key >> 32) as u32)
}

/// The path by which other processes of the same user open what this process has as descriptor `fd`.
pub(super) fn path_of(fd: RawFd) -> PathBuf {
    // The number that `/proc` knows this process by: that of its own namespace, which need not be this one's.
    let link = rustix::fs::readlink(c"/proc/self", Vec::new()).ok();
    let number = link.and_then(|link| link.into_string().ok()).unwrap_or_else(|| std::process::id().to_string());
    PathBuf::from(format!("/proc/{number}/fd/{fd}"))
}

/// A process's number, and the namespace that it counts in: the same number is another process's in another.
pub(super) fn key(pid: u32) -> u64 {
    // Without `/proc` the number alone.
    let namespace = rustix::fs::stat(c"/proc/self/ns/pid").map_or(0, |stat| stat.st_ino);
    u64::from(pid) | (namespace & u64::from(u32::MAX)) << 32
}

#[cfg(test)]
mod tests;

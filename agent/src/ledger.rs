//! The statistics memory: one shared area in which every process of a `hetmem run` counts, and which the supervisor reads
//! when the program has ended, however it ended.
//!
//! ```text
//! header   magic, version, processes without a slot of their own, first refusal
//! slot 0   pid, Counters
//! slot 1   pid, Counters
//! …        SLOTS of them; the memory is sparse, so a slot costs nothing before it is claimed
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
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use hetmem_core::stats::Counters;
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{SharedLayout, SharedMemory};
use thiserror::Error;

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
    slots: [Slot; SLOTS],
}

#[repr(C)]
#[derive(Debug)]
struct Slot {
    /// The process that counts here; 0 for none.
    pid: AtomicU64,
    counters: Counters,
}

const AREA_BYTES: u64 = size_of::<Area>() as u64;

// SAFETY: `repr(C)`, and made of `AtomicU64`, arrays of it, and `Counters`, which is a `SharedLayout` itself.
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
        let fd = self.fd.as_ref()?;
        // The number that `/proc` knows this process by: that of its own namespace, which need not be this one's.
        let link = rustix::fs::readlink(c"/proc/self", Vec::new()).ok();
        let number = link.and_then(|link| link.into_string().ok()).unwrap_or_else(|| std::process::id().to_string());
        Some(PathBuf::from(format!("/proc/{number}/fd/{}", fd.as_raw_fd())))
    }

    /// The counters of process `pid`. A process that asks again, as one does after exec, gets the same ones, with what they
    /// say about the present set to zero. When no slot is free, several processes share the last.
    #[must_use]
    pub fn claim(&self, pid: u32) -> &Counters {
        let pid = key(pid);
        for slot in &self.area.slots {
            // Relaxed: a slot holds nothing but independent counters.
            match slot.pid.compare_exchange(0, pid, Relaxed, Relaxed) {
                Ok(_) => return &slot.counters,
                Err(taken) if taken == pid => {
                    slot.counters.adopted_bytes.store(0, Relaxed);
                    slot.counters.devices.iter().for_each(|d| d.used_bytes.store(0, Relaxed));
                    return &slot.counters;
                }
                Err(_) => {}
            }
        }
        self.area.overflow.fetch_add(1, Relaxed);
        &self.area.slots[SLOTS - 1].counters
    }

    /// The counters of process `pid`, if it has a slot.
    #[must_use]
    pub fn counters_of(&self, pid: u32) -> Option<&Counters> {
        let key = key(pid);
        // They are claimed in order, and memory that nobody has claimed is not to be made by a look at it.
        let mut claimed = self.area.slots.iter().take_while(|slot| slot.pid.load(Relaxed) != 0);
        let slot = claimed.find(|slot| slot.pid.load(Relaxed) == key)?;
        Some(&slot.counters)
    }

    /// How many processes have counted here.
    #[must_use]
    pub fn processes(&self) -> u64 {
        let area = &*self.area;
        let claimed = area.slots.iter().take_while(|slot| slot.pid.load(Relaxed) != 0).count();
        (claimed as u64).saturating_add(area.overflow.load(Relaxed))
    }

    /// The counters of all processes together.
    #[must_use]
    pub fn sum(&self) -> Counters {
        let sum = Counters::default();
        for slot in self.area.slots.iter().take_while(|slot| slot.pid.load(Relaxed) != 0) {
            sum.absorb(&slot.counters);
        }
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

/// A process's number, and the namespace that it counts in: the same number is another process's in another.
fn key(pid: u32) -> u64 {
    // Without `/proc` the number alone.
    let namespace = rustix::fs::stat(c"/proc/self/ns/pid").map_or(0, |stat| stat.st_ino);
    u64::from(pid) | (namespace & u64::from(u32::MAX)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_open_it_by_path_count_in_one_place() {
        let parent = Ledger::create().unwrap();
        let agent = Ledger::open(&parent.path().unwrap()).unwrap();
        agent.claim(7).cpu_faults.fetch_add(3, Relaxed);
        Ledger::open(&parent.path().unwrap()).unwrap().claim(8).cpu_faults.fetch_add(4, Relaxed);
        assert_eq!(parent.sum().cpu_faults.load(Relaxed), 7);
        assert_eq!(parent.counters_of(7).unwrap().cpu_faults.load(Relaxed), 3);
        assert!(parent.counters_of(9).is_none());
        assert_eq!(parent.processes(), 2);
    }

    #[test]
    fn a_process_that_claims_again_keeps_its_sums_and_loses_what_it_held() {
        let ledger = Ledger::create().unwrap();
        let before = ledger.claim(7);
        before.adopted_bytes.store(4096, Relaxed);
        before.devices[0].add(8192);
        before.errors.fetch_add(1, Relaxed);
        let after = ledger.claim(7);
        assert!(std::ptr::eq(before, after));
        assert_eq!(after.adopted_bytes.load(Relaxed), 0);
        assert_eq!(after.devices[0].used_bytes.load(Relaxed), 0);
        assert_eq!(after.devices[0].peak_used_bytes.load(Relaxed), 8192);
        assert_eq!(after.errors.load(Relaxed), 1);
        assert_eq!(ledger.processes(), 1);
    }

    #[test]
    fn processes_beyond_the_last_slot_share_it() {
        let ledger = Ledger::create().unwrap();
        let slots = u32::try_from(SLOTS).unwrap();
        for pid in 1..=slots + 5 {
            ledger.claim(pid).errors.fetch_add(1, Relaxed);
        }
        assert_eq!(ledger.processes(), SLOTS as u64 + 5);
        assert_eq!(ledger.sum().errors.load(Relaxed), SLOTS as u64 + 5);
        assert_eq!(ledger.counters_of(slots).unwrap().errors.load(Relaxed), 6);
    }

    #[test]
    fn concurrent_claims_get_slots_of_their_own() {
        let ledger = Ledger::create().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8_u32 {
                let ledger = &ledger;
                scope.spawn(move || {
                    for i in 0..100 {
                        ledger.claim(1 + thread * 100 + i).errors.fetch_add(1, Relaxed);
                    }
                });
            }
        });
        assert_eq!(ledger.processes(), 800);
        assert!((1..=800).all(|pid| ledger.counters_of(pid).unwrap().errors.load(Relaxed) == 1));
    }

    #[test]
    fn the_first_refusal_is_kept_whole() {
        let ledger = Ledger::create().unwrap();
        assert_eq!(ledger.refusal(), None);
        ledger.refuse(5, "no permission for userfaultfd");
        ledger.refuse(6, "another reason");
        assert_eq!(ledger.refusals(), 2);
        assert_eq!(ledger.refusal(), Some(Refusal { pid: 5, message: "no permission for userfaultfd".into() }));
        let long = Ledger::create().unwrap();
        long.refuse(5, &"x".repeat(MESSAGE_BYTES + 1));
        assert_eq!(long.refusal().unwrap().message.len(), MESSAGE_BYTES);
    }

    #[test]
    fn other_files_are_refused() {
        let (_memory, fd) = SharedMemory::<Area>::create(c"something-else").unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        assert_eq!(Ledger::open(&path).unwrap_err(), LedgerError::Foreign(path));
        // Of the right name, and something else inside.
        let (_memory, fd) = SharedMemory::<Area>::create(NAME).unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        assert_eq!(Ledger::open(&path).unwrap_err(), LedgerError::Foreign(path));
        assert!(matches!(Ledger::open(Path::new("/nonexistent")), Err(LedgerError::Open { source: Errno::NOENT, .. })));
    }
}

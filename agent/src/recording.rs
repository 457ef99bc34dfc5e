//! The memory through which the processes of a run leave records to `hetmem run --record`: a ring for each.
//!
//! As the statistics memory it is a memfd that the supervisor makes and agents open by path. A process claims a ring when its agent starts; when it has
//! ended the supervisor takes what is left in it, and frees it.
//!
//! *Limits:* of the processes beyond [`RINGS`] at one time none is recorded; they are counted.
#![expect(unsafe_code, reason = "a type is declared fit for shared memory")]

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use hetmem_core::record::Ring;
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{SharedLayout, SharedMemory};

use super::ledger::key;

/// Processes that can be recorded at one time.
pub const RINGS: usize = 64;

/// "hetmrec" and a number that changes with the layout.
const MAGIC: u64 = 0x6865_746d_7265_6301;

#[repr(C)]
#[derive(Debug)]
struct Area {
    magic: AtomicU64,
    /// Processes for which no ring was free.
    unrecorded: AtomicU64,
    slots: [Slot; RINGS],
}

#[repr(C)]
#[derive(Debug)]
struct Slot {
    /// The process, and the namespace of its number, as in the statistics memory; 0 for none.
    owner: AtomicU64,
    ring: Ring,
}

// SAFETY: `repr(C)`, and made of `AtomicU64` and arrays of `repr(C)` structs of such.
unsafe impl SharedLayout for Area {}

/// The rings of one run, mapped into this process.
#[derive(Debug)]
pub struct Rings {
    area: SharedMemory<Area>,
    /// In the process that made them.
    fd: Option<OwnedFd>,
    /// The namespace of this process's number.
    namespace: u64,
}

/// A ring, and whose it is.
#[derive(Debug)]
pub struct Owned<'a> {
    slot: &'a Slot,
    owner: u64,
    namespace: u64,
}

impl Owned<'_> {
    /// The process that leaves records in it, by its number in its own namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        let [a, b, c, d, ..] = self.owner.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// The ring.
    #[must_use]
    pub const fn ring(&self) -> &Ring {
        &self.slot.ring
    }

    /// Whether the process is known to have ended.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        // Of another namespace's numbers nothing is known.
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        u64::from(self.pid()) | self.namespace == self.owner
            && pid.is_some_and(|pid| rustix::process::test_kill_process(pid) == Err(Errno::SRCH))
    }

    /// Makes it free; its process has ended, and nothing is in it.
    pub fn free(self) {
        // Release pairs with the acquire in `claim`: who claims it finds it empty.
        let _ = self.slot.owner.compare_exchange(self.owner, 0, Release, Relaxed);
    }
}

impl Rings {
    /// Makes empty ones.
    ///
    /// # Errors
    ///
    /// If the memory can't be made.
    pub fn create() -> Result<Self, Errno> {
        let (area, fd) = SharedMemory::<Area>::create(c"hetmem-recording")?;
        area.magic.store(MAGIC, Release);
        Ok(Self { area, fd: Some(fd), namespace: key(0) })
    }

    /// Maps those at `path`.
    ///
    /// # Errors
    ///
    /// If they can't be mapped, or are none of this version.
    pub fn open(path: &Path) -> Result<Self, Errno> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
        // Where `/proc` is another namespace's the path names a descriptor of somebody else's, which is not to be opened.
        let target = rustix::fs::readlink(&name, Vec::new())?;
        if !target.to_bytes().starts_with(b"/memfd:hetmem-recording") {
            return Err(Errno::INVAL);
        }
        let area = SharedMemory::<Area>::open(&name)?;
        if area.magic.load(Acquire) != MAGIC {
            return Err(Errno::INVAL);
        }
        Ok(Self { area, fd: None, namespace: key(0) })
    }

    /// The path by which other processes of the same user open them while this process lives; `None` in a process that did not make them.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        self.fd.as_ref().map(|fd| super::ledger::path_of(fd.as_raw_fd()))
    }

    /// The ring of process `pid`, the same one if it asks again, as one does after exec; `None` if none is free.
    #[must_use]
    pub fn claim(&self, pid: u32) -> Option<&Ring> {
        let owner = key(pid);
        let is_own = |slot: &&Slot| slot.owner.load(Relaxed) == owner;
        // Acquire pairs with the release in `free`.
        let claim = |slot: &&Slot| slot.owner.compare_exchange(0, owner, Acquire, Relaxed).is_ok();
        let slot = self.area.slots.iter().find(is_own).or_else(|| self.area.slots.iter().find(claim));
        if slot.is_none() {
            self.area.unrecorded.fetch_add(1, Relaxed);
        }
        slot.map(|slot| &slot.ring)
    }

    /// The rings that somebody has claimed.
    pub fn owned(&self) -> impl Iterator<Item = Owned<'_>> {
        let owned = |slot| Owned { owner: Slot::owner(slot), slot, namespace: self.namespace };
        self.area.slots.iter().map(owned).filter(|owned| owned.owner != 0)
    }

    /// Nobody leaves records from now on.
    pub fn close(&self) {
        self.area.slots.iter().for_each(|slot| slot.ring.close());
    }

    /// How many processes had no ring.
    #[must_use]
    pub fn unrecorded(&self) -> u64 {
        self.area.unrecorded.load(Relaxed)
    }
}

impl Slot {
    fn owner(&self) -> u64 {
        self.owner.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hetmem_core::record::Record;

    #[test]
    fn a_process_finds_its_ring_again_and_others_have_their_own() {
        let rings = Rings::create().unwrap();
        let agent = Rings::open(&rings.path().unwrap()).unwrap();
        agent.claim(7).unwrap().push(Record::End { time: 1 });
        agent.claim(8).unwrap().push(Record::End { time: 2 });
        agent.claim(7).unwrap().push(Record::End { time: 3 });
        let mut found = Vec::new();
        for owned in rings.owned() {
            owned.ring().drain(false, |words| found.push((owned.pid(), words[1])));
        }
        assert_eq!(found, [(7, 1), (7, 3), (8, 2)]);
    }

    #[test]
    fn a_ring_is_free_when_its_process_has_ended_and_those_without_one_are_counted() {
        let rings = Rings::create().unwrap();
        let own = std::process::id();
        assert!(rings.claim(own).is_some());
        // There can be none of this number.
        let never = u32::try_from(i32::MAX).unwrap();
        assert!(rings.claim(never).is_some());
        let ended: Vec<bool> = rings.owned().map(|owned| owned.has_ended()).collect();
        assert_eq!(ended, [false, true]);
        let others = u32::try_from(RINGS).unwrap() - 2;
        assert!((1..=others).all(|other| rings.claim(never - other).is_some()));
        assert!(rings.claim(never - 1000).is_none());
        assert_eq!(rings.unrecorded(), 1);
        rings.owned().nth(1).unwrap().free();
        assert!(rings.claim(never - 1000).is_some());
    }

    #[test]
    fn other_files_are_refused() {
        let (_memory, fd) = SharedMemory::<AtomicU64>::create(c"something-else").unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        assert_eq!(Rings::open(&path).err(), Some(Errno::INVAL));
        assert!(Rings::open(Path::new("/nonexistent")).is_err());
    }
}

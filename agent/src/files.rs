//! Files that the program maps to be read (`hetmem run --files`): what its threads ask of the thread that looks after these, the *keeper*.
//!
//! ```text
//! program's thread                          keeper
//! ------------------------------------      --------------------------------------------------
//! mmap(), natively
//! mapped(): "this, of that file" ─────────► is there a lease on it? Then it is managed
//!   if not: has one taken (opener) ───────► has the description of the lease from there
//!
//! give_up(), before it changes any ───────► brings all of those mappings home, and lets go of them
//! munmap(), mprotect(), …, natively
//!                                           a signal: somebody wants to write a file; its pages come home, the lease ends
//! ```
//!
//! Threads of the program may hold none of hetmem's locks that a touch needs, as a page of their own stacks may be away: so the keeper does what they ask
//! for, and where what is managed is they find in a table of words.
//!
//! *Limits:* up to 2048 mappings at a time; others are left alone. Whoever changes one past the functions that the agent stands in front of changes it, or
//! what stands in for it, as it is at that moment.

mod opener;

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use hetmem::for_agent::{Adopted, FileMapped, Managed};
use hetmem_core::outcome::KeptReason;
use hetmem_core::sync::{Condvar, Mutex, lock};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::lease::{Keeper, LeaseFile, OpenFile, Woken};
use hetmem_sys::process::{address_space_limit, descriptor_limit};

use super::notes::is_this_process;
use super::presence::Use;
use opener::Opened;

/// How many mappings are managed at most: each costs three more, with what stands in for it, of the 65,530 that a process has.
const MOST: usize = 2048;

/// At how many mappings it is looked each time whether they are what they were.
const LOOKED_AT: usize = 64;

/// Whether what is mapped from now on is managed.
static ON: AtomicBool = AtomicBool::new(false);
/// Whether none is any more, for good: here, and in forked children, which have the same filters of system calls.
static OVER: AtomicBool = AtomicBool::new(false);

/// Where files are managed: first byte and end, or zeros. Written by the keeper, and read by threads that hold nothing: no lock is taken for it.
static MANAGED: [[AtomicU64; 2]; MOST] = [const { [const { AtomicU64::new(0) }; 2] }; MOST];
/// How many places of that have been used.
static USED: AtomicUsize = AtomicUsize::new(0);

/// From now on agents of this process manage files.
pub(super) fn expect() {
    ON.store(!OVER.load(Ordering::SeqCst), Ordering::SeqCst);
}

/// Whether files are managed, or were.
#[must_use]
pub fn manages_files() -> bool {
    // Relaxed: what a thread changes of a mapping was mapped before, by itself or by one that has told it so.
    ON.load(Ordering::Relaxed) || USED.load(Ordering::Relaxed) > 0
}

/// Whether a file that is mapped now is to be managed.
#[must_use]
pub fn takes_files() -> bool {
    ON.load(Ordering::Relaxed)
}

/// The places of the table with what is in them.
fn places() -> impl Iterator<Item = (&'static [AtomicU64; 2], PageRange)> {
    let used = USED.load(Ordering::SeqCst).min(MOST);
    MANAGED[..used].iter().filter_map(|place| {
        // The end is written first, and cleared last.
        let start = VirtAddr::new(place[0].load(Ordering::SeqCst));
        let range = PageRange::between(start, VirtAddr::new(place[1].load(Ordering::SeqCst)))?;
        (start.get() != 0 && !range.is_empty()).then_some((place, range))
    })
}

/// Notes that a file is managed in `range`; `false` if there is no room.
fn note(range: PageRange) -> bool {
    let used = USED.load(Ordering::SeqCst);
    let free = MANAGED[..used].iter().position(|place| place[0].load(Ordering::SeqCst) == 0).unwrap_or(used);
    let Some(place) = MANAGED.get(free) else { return false };
    place[1].store(range.end().get(), Ordering::SeqCst);
    place[0].store(range.start().get(), Ordering::SeqCst);
    if free == used {
        USED.store(used + 1, Ordering::SeqCst);
    }
    true
}

fn clear(place: &[AtomicU64; 2]) {
    place[0].store(0, Ordering::SeqCst);
    place[1].store(0, Ordering::SeqCst);
}

/// In a forked child, which manages none of what its parent had mapped.
pub(super) fn forget_in_child() {
    places().for_each(|(place, _)| clear(place));
    USED.store(0, Ordering::SeqCst);
    opener::forget_in_child();
}

/// What a thread of the program asks for.
#[derive(Clone, Copy)]
enum Ask {
    /// That what it has mapped is managed, with the lease that a thread has, as a number of its own, if there is one for that.
    Adopt(FileMapped, Option<(u32, u32)>),
    /// That all of files is home that is mapped in the range.
    Home(PageRange),
    /// The same, and that the mappings are managed no longer.
    GiveUp(PageRange),
}

#[derive(Default)]
struct Asked {
    /// The last ticket.
    last: u64,
    waiting: Vec<(u64, Ask)>,
    answers: Vec<(u64, Adopted)>,
    /// Nobody answers any more.
    ended: bool,
}

/// The way from the program's threads to the keeper.
#[derive(Default)]
pub(super) struct Desk {
    asked: Mutex<Asked>,
    answered: Condvar,
    keeper: OnceLock<Keeper>,
}

impl Desk {
    /// What the keeper answers.
    fn ask(&self, ask: Ask) -> Adopted {
        let mut asked = lock(&self.asked);
        if asked.ended {
            return Adopted::Nothing;
        }
        asked.last += 1;
        let ticket = asked.last;
        asked.waiting.push((ticket, ask));
        // If it can't be roused it looks within a second.
        self.keeper.get().inspect(|keeper| keeper.rouse());
        loop {
            if let Some(at) = asked.answers.iter().position(|(of, _)| *of == ticket) {
                return asked.answers.swap_remove(at).1;
            }
            asked = self.answered.wait(asked).expect("no thread panicked while it held this lock");
        }
    }

    /// Has the keeper end, which answers those who have asked before.
    pub(super) fn close(&self) {
        lock(&self.asked).ended = true;
        self.keeper.get().inspect(|keeper| keeper.rouse());
    }

    /// The keeper: gives leases up that others wait for, and answers, until the desk is closed.
    pub(super) fn keep(&self, managed: &Managed) {
        let keeper = *self.keeper.get_or_init(Keeper::of_this_thread);
        let mut looked = 0;
        loop {
            loop {
                let next = {
                    let mut asked = lock(&self.asked);
                    if asked.waiting.is_empty() && asked.ended {
                        places().for_each(|(place, _)| clear(place));
                        return;
                    }
                    // In turn.
                    (!asked.waiting.is_empty()).then(|| asked.waiting.remove(0))
                };
                let Some((ticket, ask)) = next else { break };
                let answer = answer(managed, keeper, ask);
                lock(&self.asked).answers.push((ticket, answer));
                self.answered.notify_all();
            }
            // Who only asks has none of the leases looked at: there may be many of both.
            if keeper.wait() == Woken::ToLook && places().next().is_some() {
                managed.look_at_leases();
                looked = look_at_some(managed, looked);
            }
        }
    }
}

/// Does what is asked, as the keeper.
fn answer(managed: &Managed, keeper: Keeper, ask: Ask) -> Adopted {
    match ask {
        Ask::Adopt(mapped, taken) => return adopt(managed, keeper, mapped, taken),
        Ask::Home(range) => managed.bring_files_home_in(range),
        Ask::GiveUp(range) => give_up_in(managed, range),
    }
    Adopted::Nothing
}

fn adopt(managed: &Managed, keeper: Keeper, mapped: FileMapped, taken: Option<(u32, u32)>) -> Adopted {
    // What was noted there the program has unmapped past the functions that would have told.
    give_up_in(managed, mapped.range);
    let kept = |reason| {
        managed.count_kept(mapped.range.pages(), reason);
        Adopted::Nothing
    };
    if !takes_files() {
        return Adopted::Nothing;
    }
    if places().count() == MOST {
        return kept(KeptReason::NoMemory);
    }
    let lease = match taken.map(|(tid, number)| LeaseFile::of_thread(tid, number, keeper)) {
        // The agent's table of descriptors is as large as the program's may be, and is to have room for what else it opens.
        Some(Ok(lease)) if u64::from(lease.number()) < descriptor_limit() / 2 => Some(lease),
        Some(_) => return kept(KeptReason::NoLease),
        None => None,
    };
    let adopted = managed.adopt_file(mapped, lease);
    if let Adopted::Pages(pages) = adopted
        && !note(mapped.range.slice(PageCount::ZERO, pages))
    {
        managed.release_files(mapped.range);
    }
    adopted
}

/// Lets go of mappings that the program has changed past the functions that would have told: looks at some, those behind the first `looked`. How many have
/// been looked at since the first was.
fn look_at_some(managed: &Managed, looked: usize) -> usize {
    let mut some = 0;
    for (_, mapping) in places().skip(looked).take(LOOKED_AT) {
        some += 1;
        if !managed.is_as_mapped(mapping) {
            give_up_in(managed, mapping);
        }
    }
    managed.forget_unmapped_files();
    if some == LOOKED_AT { looked + some } else { 0 }
}

/// Lets go of all mappings that `range` touches, as wholes.
fn give_up_in(managed: &Managed, range: PageRange) {
    for (place, mapping) in places().filter(|(_, mapping)| mapping.overlaps(range)) {
        managed.release_files(mapping);
        clear(place);
    }
}

fn is_managed(range: PageRange) -> bool {
    places().any(|(_, mapping)| mapping.overlaps(range))
}

/// The calling thread of the program has just mapped `range`, by descriptor `fd`, to be read, from byte `offset` of the file on.
pub fn file_mapped(range: PageRange, fd: BorrowedFd<'_>, offset: u64) {
    // A child that shares the memory (vfork) has descriptors of its own, and where address space is short none is to be taken for files.
    if !is_this_process() || address_space_limit() != u64::MAX {
        return;
    }
    let Some(agent) = Use::begin() else { return };
    let kept = |reason| agent.managed.count_kept(range.pages(), reason);
    let file = match OpenFile::mapped_by(fd) {
        Ok(file) => file,
        Err(Errno::TXTBSY) => return kept(KeptReason::FileOpenForWriting),
        // It is no regular file.
        Err(Errno::INVAL | Errno::BADF) => return,
        Err(_) => return kept(KeptReason::NoLease),
    };
    let mapped = FileMapped { range, file: file.identity(), size: file.size(), offset };
    let (desk, keeper) = (&agent.desk, agent.desk.keeper.get());
    let Some(keeper) = keeper.filter(|_| desk.ask(Ask::Adopt(mapped, None)) == Adopted::WantsLease) else { return };
    match Opened::with_lease(file, *keeper) {
        Ok(opened) => {
            // With the size that it has while nobody writes it.
            let mapped = FileMapped { size: opened.size(), ..mapped };
            let _ = desk.ask(Ask::Adopt(mapped, Some(opened.place())));
        }
        Err(Errno::AGAIN) => kept(KeptReason::FileOpenForWriting),
        Err(Errno::TIMEDOUT) => {
            // Whoever is asked whether files may be opened does not answer: it may be this process.
            give_all_files_up();
            kept(KeptReason::NoLease);
        }
        Err(_) => kept(KeptReason::NoLease),
    }
}

/// The program is about to change what is mapped in `range` otherwise than by touches: what of it is a file's is home on return, and the program's alone.
pub fn give_files_up(range: PageRange) {
    if is_managed(range)
        && let Some(agent) = Use::begin()
    {
        let _ = agent.desk.ask(Ask::GiveUp(range));
    }
}

/// No file is managed any more, for good.
pub fn give_all_files_up() {
    OVER.store(true, Ordering::SeqCst);
    ON.store(false, Ordering::SeqCst);
    // Also where none is: one may be about to be.
    if let Some(agent) = Use::begin() {
        let _ = agent.desk.ask(Ask::GiveUp(PageRange::ALL));
    }
}

/// The program is about to ask what is there in `range`: what of it is a file's is home on return.
pub fn have_files_home(range: PageRange) {
    if is_managed(range)
        && let Some(agent) = Use::begin()
    {
        let _ = agent.desk.ask(Ask::Home(range));
    }
}

/// Whether any file is managed.
pub(super) fn are_managed() -> bool {
    places().next().is_some()
}

//! What the program's threads ask of the worker, and how it answers: between two moves of the policy's.
//!
//! ```text
//! program's thread                 worker
//! ----------------                 ------
//! quiesce() ─────────────────────► brings all home, stands still
//! forks, or what else can't bear   answers looks
//! that anything is away
//! resume() ──────────────────────► goes on
//!
//! gather() ──────────────────────► brings home what can be, stands still: a core dump is about to be written
//! disperse() ────────────────────► goes on
//!
//! release(), look(), advise() ───► answers each
//! leave() ───────────────────────► brings all home, and ends if that went well
//! ```

use std::time::Duration;

use hetmem_core::advice::{Advice, AdviceError};
use hetmem_core::sync::{Condvar, Mutex, MutexGuard, lock};
use hetmem_core::units::PageRange;

use super::advice::Advised;
use super::housekeeping::Housekeeping;
use hetmem::for_agent::Managed;
use hetmem_sys::process::MemoryUse;

/// A question about each page of a range: a byte for each, or none at all where that can't be said.
pub(super) type Look = fn(&Managed, PageRange) -> Vec<u8>;

/// What the program's threads want of the worker.
#[derive(Default)]
struct Wants {
    /// Threads that are about to fork, or are forking.
    forks: u32,
    /// Whether the worker stands still for them, with nothing away.
    quiet: bool,
    /// Threads that are about to end the process with a core dump.
    dumps: u32,
    /// Whether the worker stands still, with nothing away that can come home.
    gathered: bool,
    /// Ranges whose registrations must end before the worker stands still.
    undivided: Vec<PageRange>,
    /// Ranges to be let go of for good, each with the asker's ticket, and the tickets of those that were.
    release: Vec<(u64, PageRange)>,
    released: Vec<u64>,
    /// Ranges of which something is asked, and the answers.
    looks: Vec<(u64, PageRange, Look)>,
    seen: Vec<(u64, Vec<u8>)>,
    /// Ranges of which something is said, or none but whether they are managed, and what came of it.
    advice: Vec<(u64, PageRange, Option<Advice>)>,
    taken: Vec<(u64, Result<(), AdviceError>)>,
    /// The last ticket.
    asked: u64,
    /// Whether the agent is to leave, and what came of it.
    leave: Leave,
}

#[derive(Default, PartialEq, Eq, Clone, Copy)]
enum Leave {
    #[default]
    No,
    Asked,
    Granted,
    /// Pages can't come home.
    Refused,
}

impl Wants {
    fn next_ticket(&mut self) -> u64 {
        self.asked += 1;
        self.asked
    }

    fn nothing(&self) -> bool {
        self.forks == 0
            && self.dumps == 0
            && self.release.is_empty()
            && self.looks.is_empty()
            && self.advice.is_empty()
            && self.leave != Leave::Asked
    }
}

/// The way from the program's threads to the worker.
#[derive(Default)]
pub(super) struct Mailbox {
    wants: Mutex<Wants>,
    changed: Condvar,
}

impl Mailbox {
    /// Returns once the worker stands still and no page is away; [`Mailbox::resume`] lets it go on.
    pub(super) fn quiesce(&self) {
        self.quiesce_for(None);
    }

    /// Returns once the worker stands still, no page is away, and nothing that touches `undivided` is registered; [`Mailbox::resume`] lets it go on.
    pub(super) fn quiesce_for(&self, undivided: Option<PageRange>) {
        let mut wants = lock(&self.wants);
        wants.forks += 1;
        wants.undivided.extend(undivided);
        self.changed.notify_all();
        while !wants.quiet || !wants.undivided.is_empty() {
            wants = self.changed.wait(wants).expect("no thread panicked while it held this lock");
        }
    }

    pub(super) fn resume(&self) {
        let mut wants = lock(&self.wants);
        wants.forks -= 1;
        self.changed.notify_all();
    }

    /// Before a core dump: returns once the worker stands still and all is home but what can't come home. [`Mailbox::disperse`] lets it go on.
    ///
    /// Called by a handler of signals. It interrupts nobody who has this lock, or the allocator's: those have signals blocked.
    pub(super) fn gather(&self) {
        let mut wants = lock(&self.wants);
        wants.dumps += 1;
        self.changed.notify_all();
        while !wants.gathered {
            wants = self.changed.wait(wants).expect("no thread panicked while it held this lock");
        }
    }

    pub(super) fn disperse(&self) {
        let mut wants = lock(&self.wants);
        wants.dumps -= 1;
        self.changed.notify_all();
    }

    /// Returns once nothing of `range` is managed any more.
    pub(super) fn release(&self, range: PageRange) {
        let mut wants = lock(&self.wants);
        let ticket = wants.next_ticket();
        wants.release.push((ticket, range));
        self.changed.notify_all();
        loop {
            if let Some(at) = wants.released.iter().position(|of| *of == ticket) {
                wants.released.swap_remove(at);
                return;
            }
            wants = self.changed.wait(wants).expect("no thread panicked while it held this lock");
        }
    }

    /// What the worker answers to `look` of `range`. It has a stack that is never away, and holds no lock that a touch needs when this returns.
    pub(super) fn look(&self, range: PageRange, look: Look) -> Vec<u8> {
        let mut wants = lock(&self.wants);
        let ticket = wants.next_ticket();
        wants.looks.push((ticket, range, look));
        self.changed.notify_all();
        loop {
            if let Some(at) = wants.seen.iter().position(|(of, _)| *of == ticket) {
                return wants.seen.swap_remove(at).1;
            }
            wants = self.changed.wait(wants).expect("no thread panicked while it held this lock");
        }
    }

    /// What the worker says of `advice` on `range`, or of whether that is managed.
    pub(super) fn advise(&self, range: PageRange, advice: Option<Advice>) -> Result<(), AdviceError> {
        let mut wants = lock(&self.wants);
        let ticket = wants.next_ticket();
        wants.advice.push((ticket, range, advice));
        self.changed.notify_all();
        loop {
            if let Some(at) = wants.taken.iter().position(|(of, _)| *of == ticket) {
                return wants.taken.swap_remove(at).1;
            }
            wants = self.changed.wait(wants).expect("no thread panicked while it held this lock");
        }
    }
}

impl Mailbox {
    /// Asks the worker to bring everything home and to end; whether it does.
    pub(super) fn leave(&self) -> bool {
        let mut wants = lock(&self.wants);
        wants.leave = Leave::Asked;
        self.changed.notify_all();
        while wants.leave == Leave::Asked {
            wants = self.changed.wait(wants).expect("no thread panicked while it held this lock");
        }
        let granted = wants.leave == Leave::Granted;
        wants.leave = Leave::No;
        granted
    }
}

/// The worker's side.
impl Mailbox {
    /// Whether nobody waits for the worker.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.wants).nothing()
    }

    /// Waits until somebody asks, or `time` is over.
    pub(super) fn wait(&self, time: Duration) {
        let wants = lock(&self.wants);
        if wants.nothing() {
            // Woken or not: the worker looks at everything anyway.
            drop(self.changed.wait_timeout(wants, time).expect("no thread panicked while it held this lock"));
        }
    }

    /// Does what the program's threads ask for; `true` if the agent leaves.
    pub(super) fn answer(
        &self,
        managed: &Managed,
        memory: &MemoryUse,
        house: &mut Housekeeping<'_>,
        advised: &mut Advised,
    ) -> bool {
        let mut wants = lock(&self.wants);
        while let Some((ticket, range)) = wants.release.pop() {
            drop(wants);
            house.let_go(range);
            wants = lock(&self.wants);
            wants.released.push(ticket);
            self.changed.notify_all();
        }
        wants = self.answer_looks(managed, wants);
        wants = self.take_advice(managed, house, advised, wants);
        if wants.forks == 0 && wants.dumps == 0 && wants.leave != Leave::Asked {
            return false;
        }
        // Who forks, or leaves, can't go on without its pages.
        let for_dumps = wants.forks == 0 && wants.leave != Leave::Asked;
        drop(wants);
        let home = match for_dumps {
            true => has_room(managed, memory) && managed.bring_home_for_dump(),
            false => managed.bring_all_home(),
        };
        let mut wants = lock(&self.wants);
        if wants.leave == Leave::Asked {
            drop(wants);
            if home {
                // While the handler still reads: a removal that is announced now is one that whoever watches next must know of.
                managed.unregister(PageRange::ALL);
            }
            wants = lock(&self.wants);
            wants.leave = if home { Leave::Granted } else { Leave::Refused };
            self.changed.notify_all();
            return home;
        }
        if home && !for_dumps && !managed.has_room_for_forks() {
            drop(wants);
            managed.unregister(PageRange::ALL);
            wants = lock(&self.wants);
        }
        // Whoever else asks while a dump is waited for waits for the end.
        let quiet = home || (managed.hears_of_forks() && !for_dumps);
        if !quiet && !for_dumps {
            managed.stop_the_program("it can't come home, and a forked child would read zeros");
        }
        wants.quiet = quiet;
        wants.gathered = true;
        self.changed.notify_all();
        while wants.dumps > 0 || (wants.forks > 0 && wants.quiet) {
            wants = self.answer_looks(managed, wants);
            wants = self.take_advice(managed, house, advised, wants);
            if wants.quiet
                && let Some(range) = wants.undivided.pop()
            {
                managed.unregister_around(range);
                self.changed.notify_all();
                continue;
            }
            // Who looked may have taken longer than the forks.
            if wants.forks == 0 && wants.dumps == 0 {
                break;
            }
            wants = self.changed.wait(wants).expect("no thread panicked while it held this lock");
        }
        wants.quiet = false;
        wants.gathered = false;
        false
    }

    /// Takes advice: while all stands still, too, and moves nothing for it.
    fn take_advice<'a>(
        &'a self,
        managed: &Managed,
        house: &mut Housekeeping<'_>,
        advised: &mut Advised,
        mut wants: MutexGuard<'a, Wants>,
    ) -> MutexGuard<'a, Wants> {
        while let Some((ticket, range, advice)) = wants.advice.pop() {
            drop(wants);
            let taken = advised.take(managed, house, range, advice);
            wants = lock(&self.wants);
            wants.taken.push((ticket, taken));
            self.changed.notify_all();
        }
        wants
    }

    /// Says what is there to those who ask: while all stands still, too, as a fork may take long.
    fn answer_looks<'a>(&'a self, managed: &Managed, mut wants: MutexGuard<'a, Wants>) -> MutexGuard<'a, Wants> {
        while let Some((ticket, range, look)) = wants.looks.pop() {
            drop(wants);
            let seen = look(managed, range);
            wants = lock(&self.wants);
            wants.seen.push((ticket, seen));
            self.changed.notify_all();
        }
        wants
    }
}

/// Whether the machine has room for all that is on private devices: without it, it would be the kernel's choice whom to kill, and there would be no
/// dump at all.
fn has_room(managed: &Managed, memory: &MemoryUse) -> bool {
    // An answer that can't be had forbids nothing.
    memory.available().map_or(true, |available| managed.on_private_devices().bytes() <= available)
}

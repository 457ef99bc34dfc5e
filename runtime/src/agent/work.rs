//! The agent's second thread: carries out the policy, and what the program's threads ask for between two of its steps.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hetmem_core::migrate::{Request, Select, Target};
use hetmem_core::outcome::KeptReason;
use hetmem_core::physmap::MemoryType;
use hetmem_core::policy::{Chaos, Clock};
use hetmem_core::port::Host;
use hetmem_core::sync::{Condvar, Mutex, MutexGuard, lock};
use hetmem_core::units::{BlockNo, ByteLen, DeviceId, PageCount, PageRange, VirtAddr};
use hetmem_sys::thread::thread_exists;

use super::adopt;
use super::config::Policy;
use super::pace::{Nap, Paced};
use super::start::Agent;
use crate::inner::Inner;
use crate::service::MEMORY_PATIENCE;

/// Steps of chaos between two looks at the program's mappings.
const STEPS_A_LOOK: u32 = 32;
/// How long to wait, in nanoseconds, before pages that did not come home are asked again.
const ASK_AGAIN_AFTER: u32 = 100_000;
/// How long a core dump waits for pages that do not come: those that somebody works on do.
const DUMP_PATIENCE: Duration = Duration::from_secs(1);
/// The agent's threads.
const OWN_THREADS: usize = 2;

/// Why the worker has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Departure {
    /// The agent leaves: everything is home.
    Asked,
    /// The program has no thread left; its first has ended so, as `wait(2)` would say it.
    Alone(i32),
}

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
    /// Ranges of which it is asked what is there, and the answers.
    looks: Vec<(u64, PageRange)>,
    seen: Vec<(u64, Vec<u8>)>,
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

    /// The same, and on return nothing that touches `undivided` is registered.
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

    /// The same before a core dump, but what can't come home stays away: returns once the rest is there. [`Mailbox::disperse`] lets the worker go on.
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

    /// As `mincore(2)` of `range` would say if nothing of it were away: a byte for each page. Empty where the kernel refuses.
    pub(super) fn residency(&self, range: PageRange) -> Vec<u8> {
        let mut wants = lock(&self.wants);
        let ticket = wants.next_ticket();
        wants.looks.push((ticket, range));
        self.changed.notify_all();
        loop {
            if let Some(at) = wants.seen.iter().position(|(of, _)| *of == ticket) {
                return wants.seen.swap_remove(at).1;
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

    /// Whether somebody waits for the worker.
    fn is_empty(&self) -> bool {
        lock(&self.wants).nothing()
    }
}

/// Stacks of the program's threads, kept from migration while the threads live. Those of threads that have ended may overlap those of threads that live: a
/// program that makes them itself cuts them anew. So each counts by itself.
#[derive(Default)]
pub(super) struct Stacks(Mutex<Vec<(PageRange, u32)>>);

impl Stacks {
    pub(super) fn add(&self, inner: &Inner, stack: PageRange, tid: u32) {
        inner.engine.space.exclude(stack);
        lock(&self.0).push((stack, tid));
    }

    /// `memory` is excluded, and is included again when thread `tid` has ended; at once if there is none.
    pub(super) fn follow(&self, inner: &Inner, memory: PageRange, tid: Option<u32>) {
        match tid {
            Some(tid) => lock(&self.0).push((memory, tid)),
            None => inner.engine.space.include(memory),
        }
    }

    /// Ends the exclusion of stacks whose threads have ended, in the kernel's sense: it writes to them no more.
    fn prune(&self, inner: &Inner) {
        lock(&self.0).retain(|(stack, tid)| {
            let lives = thread_exists(*tid);
            if !lives {
                inner.engine.space.include(*stack);
            }
            lives
        });
    }
}

/// Runs until the agent leaves, or the program has no thread left.
pub(super) fn run(agent: &Agent) -> Departure {
    let mut worker = Worker::new(agent);
    loop {
        if worker.answer() {
            return Departure::Asked;
        }
        if worker.is_time_to_look() {
            if let Some(status) = agent.inner.engine.host.tasks.ended_but(OWN_THREADS) {
                return Departure::Alone(status);
            }
            worker.look();
        }
        worker.steps = worker.steps.wrapping_add(1);
        if worker.step() == Pace::Rest {
            worker.steps = 0;
            if let Some(status) = agent.inner.engine.host.tasks.ended_but(OWN_THREADS) {
                return Departure::Alone(status);
            }
            worker.rest();
        }
    }
}

/// Whether there is more to do at once.
#[derive(PartialEq, Eq)]
enum Pace {
    GoOn,
    Rest,
}

enum Act {
    Manual,
    Limit { clock: Clock, limit: ByteLen },
    Chaos(Chaos),
}

impl Act {
    fn new(policy: Policy) -> Self {
        match policy {
            Policy::Manual => Self::Manual,
            Policy::Limit { system_limit } => Self::Limit { clock: Clock::default(), limit: system_limit },
            Policy::Chaos { seed } => Self::Chaos(Chaos::new(seed)),
        }
    }
}

struct Worker<'a> {
    agent: &'a Agent,
    inner: &'a Inner,
    ranges: Vec<PageRange>,
    /// Ranges that the program wants to itself.
    kept_alone: Vec<PageRange>,
    act: Act,
    steps: u32,
    /// Up to where the books were compared with where pages are.
    audited: Option<BlockNo>,
    looks: Paced,
    counts: Paced,
    nap: Nap,
    /// Whether the program has done something lately.
    busy: bool,
    last: Signs,
    counted: Option<Counted>,
    /// What the program showed when nothing of it could leave.
    futile: Option<Signs>,
}

/// By what it shows that a program does something.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Signs {
    /// Anonymous memory of the process, hetmem's included.
    anonymous: PageCount,
    /// Pages that came home.
    home: u64,
    faults: u64,
}

/// A count of the pages in system memory.
#[derive(Clone, Copy)]
struct Counted {
    resident: PageCount,
    signs: Signs,
    /// Whether nothing moved since.
    exact: bool,
}

impl<'a> Worker<'a> {
    fn new(agent: &'a Agent) -> Self {
        Self {
            agent,
            inner: &agent.inner,
            ranges: Vec::new(),
            kept_alone: Vec::new(),
            act: Act::new(agent.policy),
            steps: 0,
            audited: None,
            looks: Paced::new(),
            counts: Paced::new(),
            nap: Nap::new(),
            busy: true,
            last: Signs::default(),
            counted: None,
            futile: None,
        }
    }

    fn is_time_to_look(&self) -> bool {
        match self.act {
            Act::Chaos(_) => self.steps.is_multiple_of(STEPS_A_LOOK),
            Act::Manual | Act::Limit { .. } => self.looks.is_due(Instant::now(), self.busy),
        }
    }

    fn look(&mut self) {
        let (inner, kept_alone) = (self.inner, &self.kept_alone);
        self.agent.stacks.prune(inner);
        self.ranges = self.looks.run(|| {
            let ranges = adopt::refresh(inner);
            kept_alone.iter().for_each(|alone| inner.engine.space.remove_region(*alone));
            ranges
        });
        self.inner.release_idle();
        self.audited = self.inner.engine.audit(self.audited);
    }

    fn signs(&self) -> Signs {
        let counters = &self.inner.engine.counters;
        Signs {
            // An answer that can't be had is no sign.
            anonymous: self.agent.memory.anonymous().unwrap_or(self.last.anonymous),
            home: counters.pages_migrated_to_system.load(Relaxed),
            faults: counters.cpu_faults.load(Relaxed),
        }
    }

    fn rest(&mut self) {
        let signs = self.signs();
        self.busy = signs != self.last;
        self.last = signs;
        let nap = self.nap.next(self.busy);
        let mailbox = &self.agent.mailbox;
        let wants = lock(&mailbox.wants);
        if wants.nothing() {
            // Woken or not: the loop looks at everything anyway.
            drop(mailbox.changed.wait_timeout(wants, nap).expect("no thread panicked while it held this lock"));
        }
    }

    /// Does what the program's threads ask for; `true` if the agent leaves.
    fn answer(&mut self) -> bool {
        let mailbox = &self.agent.mailbox;
        let mut wants = lock(&mailbox.wants);
        while let Some((ticket, range)) = wants.release.pop() {
            drop(wants);
            // The range may be far larger than what is managed of it.
            let managed: Vec<PageRange> =
                self.inner.engine.space.regions().into_iter().filter_map(|(part, _)| part.intersect(range)).collect();
            let home = || {
                self.inner.migrate(&managed, Request::all_to(Target::System));
                let (unmapped, mapped) = self.inner.engine.away_in(range);
                unmapped + mapped
            };
            // A range of which something is away stays hetmem's, and the kernel refuses it to others.
            if self.all_come(MEMORY_PATIENCE, home) {
                self.kept_alone.push(range);
                self.inner.engine.space.remove_region(range);
                self.inner.unregister(range);
            }
            wants = lock(&mailbox.wants);
            wants.released.push(ticket);
            mailbox.changed.notify_all();
        }
        wants = self.answer_looks(wants);
        if wants.forks == 0 && wants.dumps == 0 && wants.leave != Leave::Asked {
            return false;
        }
        // Who forks, or leaves, can't go on without its pages.
        let for_dumps = wants.forks == 0 && wants.leave != Leave::Asked;
        drop(wants);
        let engine = &self.inner.engine;
        let home = if for_dumps && !self.has_room() {
            false
        } else {
            let patience = if for_dumps { DUMP_PATIENCE } else { MEMORY_PATIENCE };
            self.all_come(patience, || engine.bring_all_home())
        };
        self.inner.tell_of_resting();
        let mut wants = lock(&mailbox.wants);
        if wants.leave == Leave::Asked {
            drop(wants);
            if home {
                // While the handler still reads: a removal that is announced now is one that whoever watches next must know of.
                self.inner.unregister(PageRange::ALL);
            }
            wants = lock(&mailbox.wants);
            wants.leave = if home { Leave::Granted } else { Leave::Refused };
            mailbox.changed.notify_all();
            return home;
        }
        // Whoever else asks while a dump is waited for waits for the end.
        let quiet = home || (engine.host.contexts.fork_events && !for_dumps);
        if !quiet && !for_dumps {
            engine
                .host
                .stop_the_program(VirtAddr::default(), "it can't come home, and a forked child would read zeros");
        }
        wants.quiet = quiet;
        wants.gathered = true;
        mailbox.changed.notify_all();
        while wants.dumps > 0 || (wants.forks > 0 && wants.quiet) {
            wants = self.answer_looks(wants);
            if wants.quiet
                && let Some(range) = wants.undivided.pop()
            {
                self.inner.unregister_around(range);
                mailbox.changed.notify_all();
                continue;
            }
            // Who looked may have taken longer than the forks.
            if wants.forks == 0 && wants.dumps == 0 {
                break;
            }
            wants = mailbox.changed.wait(wants).expect("no thread panicked while it held this lock");
        }
        wants.quiet = false;
        wants.gathered = false;
        false
    }

    /// Whether the machine has room for all that is on private devices: without it, it would be the kernel's choice whom to kill, and there would be no dump at all.
    fn has_room(&self) -> bool {
        let devices = self.inner.engine.devices();
        let private = devices.iter().filter(|device| device.pagemap().memory_type == MemoryType::DevicePrivate);
        let away = private.fold(PageCount::ZERO, |sum, device| sum + device.pagemap().frames.used());
        // An answer that can't be had forbids nothing.
        self.agent.memory.available().map_or(true, |available| away.bytes() <= available)
    }

    /// Says what is there to those who ask: while all stands still, too, as a fork may take long.
    fn answer_looks(&self, mut wants: MutexGuard<'a, Wants>) -> MutexGuard<'a, Wants> {
        let mailbox = &self.agent.mailbox;
        while let Some((ticket, range)) = wants.looks.pop() {
            drop(wants);
            let seen = residency(self.inner, range);
            wants = lock(&mailbox.wants);
            wants.seen.push((ticket, seen));
            mailbox.changed.notify_all();
        }
        wants
    }

    /// Calls `ask`, which says how many pages did not come home, until there are none. Such a page is busy, or there is no memory for
    /// it; `false` if that lasts longer than `patience`.
    fn all_come(&self, patience: Duration, ask: impl Fn() -> PageCount) -> bool {
        let start = Instant::now();
        while !ask().is_zero() {
            if start.elapsed() > patience {
                self.inner.engine.counters.errors.fetch_add(1, Relaxed);
                return false;
            }
            hetmem_sys::thread::backoff_sleep(ASK_AGAIN_AFTER);
        }
        true
    }

    fn step(&mut self) -> Pace {
        let devices = self.inner.engine.devices().len() as u64;
        match &mut self.act {
            Act::Manual => Pace::Rest,
            Act::Chaos(chaos) => {
                let Some((chunk, choice)) = chaos.next(&self.ranges, devices + 1) else { return Pace::Rest };
                let target = device_at(choice, devices).map_or(Target::System, Target::Device);
                self.inner.migrate(&[chunk], Request::all_to(target));
                Pace::GoOn
            }
            Act::Limit { limit, .. } => {
                let limit = *limit;
                self.keep_to(limit)
            }
        }
    }

    /// How many pages are in system memory: the last count, and what has come since. Never more than there are.
    fn estimate(&self, signs: Signs) -> PageCount {
        let Some(counted) = self.counted else { return signs.anonymous };
        let came = signs.home.saturating_sub(counted.signs.home);
        // The counters are where the program can write.
        let now = (counted.resident + signs.anonymous).get().saturating_add(came);
        PageCount::new(now.saturating_sub(counted.signs.anonymous.get())).min(signs.anonymous)
    }

    /// Evicts what is above the limit, chunk by chunk.
    fn keep_to(&mut self, limit: ByteLen) -> Pace {
        let signs = self.signs();
        // What was counted is an estimate from the next thing on that the program does, and what it did while pages left is not known at all.
        let is_exact = self.counted.is_some_and(|counted| counted.exact && counted.signs == signs);
        let may_exceed = signs.anonymous.bytes() > limit;
        if may_exceed && !is_exact && self.counts.is_due(Instant::now(), true) {
            let (inner, ranges) = (self.inner, &self.ranges);
            let resident = self.counts.run(|| inner.resident(ranges));
            self.counted = Some(Counted { resident, signs, exact: true });
        }
        // What can't leave is not asked again while nothing happens: the devices are full, or pages are kept.
        if self.estimate(signs).bytes() <= limit || self.futile == Some(signs) {
            return Pace::Rest;
        }
        let resident = self.estimate(signs);
        let mut surplus = resident.bytes().get().saturating_sub(limit.get());
        let mut moved_out = PageCount::ZERO;
        // Twice round, at most: the second chance of each chunk is over then.
        let mut chunks = self.ranges.iter().map(|r| r.pages().get() / 64 + 2).sum::<u64>() * 2;
        let Act::Limit { clock, .. } = &mut self.act else { return Pace::Rest };
        while surplus > 0 && chunks > 0 {
            chunks -= 1;
            let Some(chunk) = clock.next(&self.ranges) else { break };
            if is_warm(self.inner, chunk) {
                continue;
            }
            let moved = evict(self.inner, chunk);
            moved_out += moved;
            surplus = surplus.saturating_sub(moved.bytes().get());
            // Who forks, or asks for anything else, does not wait until all is done.
            if !self.agent.mailbox.is_empty() {
                break;
            }
        }
        self.futile = (surplus > 0 && chunks == 0 && moved_out.is_zero()).then_some(signs);
        let resident = resident - moved_out.min(resident);
        self.counted = Some(Counted { resident, signs: self.signs(), exact: moved_out.is_zero() && is_exact });
        if surplus > 0 && !moved_out.is_zero() { Pace::GoOn } else { Pace::Rest }
    }
}

/// What the kernel says of the pages of `range`, and of those that are away what it would say. With the gate held alone nothing is on its way.
fn residency(inner: &Inner, range: PageRange) -> Vec<u8> {
    let _events = inner.engine.space.gate.events();
    let Ok(mut seen) = hetmem_sys::mapping::resident(range) else { return Vec::new() };
    inner.engine.each_away(range, |page| seen[page.start().pages_since(range.start()).as_usize()] |= 1);
    seen
}

fn device_at(choice: u64, devices: u64) -> Option<DeviceId> {
    (choice < devices).then(|| DeviceId::new(u8::try_from(choice).unwrap_or(u8::MAX)))
}

/// Whether a touch brought something of `chunk` home since this was asked last: then it has another chance.
fn is_warm(inner: &Inner, chunk: PageRange) -> bool {
    inner.engine.space.existing_block(chunk.start().block()).is_some_and(|block| {
        let index = chunk.start().index_in_block();
        block.lock().take_touched(index)
    })
}

/// Moves the system pages of `chunk` to the device that is preferred there, or to the first that has room.
fn evict(inner: &Inner, chunk: PageRange) -> PageCount {
    let preferred = inner.engine.space.region_at(chunk.start()).and_then(|(_, region)| region.preferred);
    let all = (0..inner.engine.devices().len()).map(|i| DeviceId::new(u8::try_from(i).unwrap_or(u8::MAX)));
    let mut moved = PageCount::ZERO;
    for device in preferred.into_iter().chain(all) {
        let frames = inner.engine.device(device).map(|d| &d.pagemap().frames);
        if frames.is_none_or(|frames| frames.used() == frames.capacity()) {
            continue;
        }
        let request = Request { target: Target::Device(device), select: Select::SYSTEM, owner: None };
        for outcomes in inner.migrate(&[chunk], request) {
            moved += outcomes.moved();
            if outcomes.kept(KeptReason::NoFrame).is_zero() {
                return moved;
            }
        }
    }
    moved
}

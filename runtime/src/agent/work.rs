//! The agent's second thread: carries out the policy, and what the program's threads ask for between two of its steps.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use hetmem_core::migrate::{Request, Target};
use hetmem_core::policy::Signs;
use hetmem_core::port::Host;
use hetmem_core::sync::{Condvar, Mutex, MutexGuard, lock};
use hetmem_core::units::{BlockNo, PageCount, PageRange, VirtAddr};
use hetmem_sys::thread::thread_exists;

use super::adopt;
use super::executor::{Executor, Pace};
use super::pace::{Nap, Paced};
use super::start::Agent;
use crate::inner::Inner;
use crate::service::MEMORY_PATIENCE;

/// How long to wait, in nanoseconds, before pages that did not come home are asked again.
const ASK_AGAIN_AFTER: u32 = 100_000;
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
        self.forks == 0 && self.release.is_empty() && self.looks.is_empty() && self.leave != Leave::Asked
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
        if worker.executor.step(|| !agent.mailbox.is_empty()) == Pace::Rest {
            if let Some(status) = agent.inner.engine.host.tasks.ended_but(OWN_THREADS) {
                return Departure::Alone(status);
            }
            worker.rest();
        }
    }
}

struct Worker<'a> {
    agent: &'a Agent,
    inner: &'a Inner,
    executor: Executor<'a>,
    /// Ranges that the program wants to itself.
    kept_alone: Vec<PageRange>,
    /// Up to where the books were compared with where pages are.
    audited: Option<BlockNo>,
    looks: Paced,
    nap: Nap,
    /// Whether the program has done something lately.
    busy: bool,
    last: Signs,
}

impl<'a> Worker<'a> {
    fn new(agent: &'a Agent) -> Self {
        let policy = agent.policy.make().expect("a configuration that was read has a policy that can be made");
        Self {
            agent,
            inner: &agent.inner,
            executor: Executor::new(policy, &agent.inner, &agent.memory),
            kept_alone: Vec::new(),
            audited: None,
            looks: Paced::new(),
            nap: Nap::new(),
            busy: true,
            last: Signs::default(),
        }
    }

    fn is_time_to_look(&self) -> bool {
        self.executor.wants_a_look().unwrap_or_else(|| self.looks.is_due(Instant::now(), self.busy))
    }

    fn look(&mut self) {
        let (inner, kept_alone) = (self.inner, &self.kept_alone);
        self.agent.stacks.prune(inner);
        let ranges = self.looks.run(|| {
            let ranges = adopt::refresh(inner);
            kept_alone.iter().for_each(|alone| inner.engine.space.remove_region(*alone));
            ranges
        });
        self.executor.set_ranges(ranges);
        self.inner.release_idle();
        self.audited = self.inner.engine.audit(self.audited);
    }

    fn rest(&mut self) {
        let signs = self.executor.signs();
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
            if self.all_come(home) {
                self.kept_alone.push(range);
                self.inner.engine.space.remove_region(range);
                self.inner.unregister(range);
            }
            wants = lock(&mailbox.wants);
            wants.released.push(ticket);
            mailbox.changed.notify_all();
        }
        wants = self.answer_looks(wants);
        if wants.forks == 0 && wants.leave != Leave::Asked {
            return false;
        }
        drop(wants);
        let engine = &self.inner.engine;
        let home = self.all_come(|| engine.bring_all_home());
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
        if !home && !engine.host.contexts.fork_events {
            engine
                .host
                .stop_the_program(VirtAddr::default(), "it can't come home, and a forked child would read zeros");
        }
        wants.quiet = true;
        mailbox.changed.notify_all();
        while wants.forks > 0 {
            wants = self.answer_looks(wants);
            if let Some(range) = wants.undivided.pop() {
                self.inner.unregister_around(range);
                mailbox.changed.notify_all();
                continue;
            }
            // Who looked may have taken longer than the forks.
            if wants.forks == 0 {
                break;
            }
            wants = mailbox.changed.wait(wants).expect("no thread panicked while it held this lock");
        }
        wants.quiet = false;
        false
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
    /// it; `false` if that lasts.
    fn all_come(&self, ask: impl Fn() -> PageCount) -> bool {
        let start = Instant::now();
        while !ask().is_zero() {
            if start.elapsed() > MEMORY_PATIENCE {
                self.inner.engine.counters.errors.fetch_add(1, Relaxed);
                return false;
            }
            hetmem_sys::thread::backoff_sleep(ASK_AGAIN_AFTER);
        }
        true
    }
}

/// What the kernel says of the pages of `range`, and of those that are away what it would say. With the gate held alone nothing is on its way.
fn residency(inner: &Inner, range: PageRange) -> Vec<u8> {
    let _events = inner.engine.space.gate.events();
    let Ok(mut seen) = hetmem_sys::mapping::resident(range) else { return Vec::new() };
    inner.engine.each_away(range, |page| seen[page.start().pages_since(range.start()).as_usize()] |= 1);
    seen
}

//! The agent's second thread: carries out the policy, and what the program's threads ask for between two of its steps.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hetmem_core::migrate::{Request, Select, Target};
use hetmem_core::outcome::KeptReason;
use hetmem_core::policy::{Chaos, Clock};
use hetmem_core::port::Host;
use hetmem_core::sync::{Condvar, Mutex, lock};
use hetmem_core::units::{BlockNo, ByteLen, DeviceId, PageCount, PageRange, VirtAddr};
use hetmem_sys::thread::thread_exists;

use super::adopt;
use super::config::Policy;
use crate::inner::Inner;
use crate::service::MEMORY_PATIENCE;

/// How often the program's mappings are looked at when nothing else is to be done.
const TICK: Duration = Duration::from_millis(10);
/// Steps of chaos between two looks at the program's mappings.
const STEPS_A_LOOK: u32 = 32;
/// How long to wait, in nanoseconds, before pages that did not come home are asked again.
const ASK_AGAIN_AFTER: u32 = 100_000;

/// What the program's threads want of the worker.
#[derive(Default)]
struct Wants {
    /// Threads that are about to fork, or are forking.
    forks: u32,
    /// Whether the worker stands still for them, with nothing away.
    quiet: bool,
    /// Ranges whose registrations must end before the worker stands still.
    undivided: Vec<PageRange>,
    /// Ranges to be let go of for good.
    release: Vec<PageRange>,
    released: u64,
    asked: u64,
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
        wants.release.push(range);
        wants.asked += 1;
        let ticket = wants.asked;
        self.changed.notify_all();
        while wants.released < ticket {
            wants = self.changed.wait(wants).expect("no thread panicked while it held this lock");
        }
    }
}

/// Stacks of the program's threads, kept from migration while the threads live.
#[derive(Default)]
pub(super) struct Stacks(Mutex<Vec<(PageRange, u32)>>);

impl Stacks {
    pub(super) fn add(&self, inner: &Inner, stack: PageRange, tid: u32) {
        // The exclusion is made under the lock, so that the end of the stack's last owner can't undo it.
        let mut stacks = lock(&self.0);
        stacks.retain(|(old, _)| *old != stack);
        stacks.push((stack, tid));
        inner.engine.space.exclude(stack);
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

/// Runs until the process ends.
pub(super) fn run(inner: &Inner, mailbox: &Mailbox, stacks: &Stacks, policy: Policy) -> ! {
    let mut worker =
        Worker { inner, ranges: Vec::new(), kept_alone: Vec::new(), act: Act::new(policy), steps: 0, audited: None };
    loop {
        worker.answer(mailbox);
        if worker.steps.is_multiple_of(STEPS_A_LOOK) {
            stacks.prune(inner);
            worker.look();
        }
        worker.steps = worker.steps.wrapping_add(1);
        if worker.step() == Pace::Rest {
            worker.steps = 0;
            worker.rest(mailbox);
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
    inner: &'a Inner,
    ranges: Vec<PageRange>,
    /// Ranges that the program wants to itself.
    kept_alone: Vec<PageRange>,
    act: Act,
    steps: u32,
    /// Up to where the books were compared with where pages are.
    audited: Option<BlockNo>,
}

impl Worker<'_> {
    fn look(&mut self) {
        self.ranges = adopt::refresh(self.inner);
        for alone in &self.kept_alone {
            self.inner.engine.space.remove_region(*alone);
        }
        self.inner.release_idle();
        self.audited = self.inner.engine.audit(self.audited);
    }

    fn rest(&self, mailbox: &Mailbox) {
        let wants = lock(&mailbox.wants);
        if wants.forks == 0 && wants.release.is_empty() {
            // Woken or not: the loop looks at everything anyway.
            drop(mailbox.changed.wait_timeout(wants, TICK).expect("no thread panicked while it held this lock"));
        }
    }

    fn answer(&mut self, mailbox: &Mailbox) {
        let mut wants = lock(&mailbox.wants);
        while let Some(range) = wants.release.pop() {
            drop(wants);
            let home = || {
                self.inner.migrate(&[range], Request::all_to(Target::System));
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
            wants.released += 1;
            mailbox.changed.notify_all();
        }
        if wants.forks == 0 {
            return;
        }
        drop(wants);
        let engine = &self.inner.engine;
        if !self.all_come(|| engine.bring_all_home()) && !engine.host.contexts.fork_events {
            engine
                .host
                .stop_the_program(VirtAddr::default(), "it can't come home, and a forked child would read zeros");
        }
        let mut wants = lock(&mailbox.wants);
        wants.quiet = true;
        mailbox.changed.notify_all();
        while wants.forks > 0 {
            if let Some(range) = wants.undivided.pop() {
                self.inner.unregister_around(range);
                mailbox.changed.notify_all();
                continue;
            }
            wants = mailbox.changed.wait(wants).expect("no thread panicked while it held this lock");
        }
        wants.quiet = false;
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
            Act::Limit { clock, limit } => {
                let resident = self.inner.resident(&self.ranges).bytes();
                let mut surplus = resident.get().saturating_sub(limit.get());
                let mut chunks = self.ranges.iter().map(|r| r.pages().get() / 64 + 2).sum::<u64>() * 2;
                while surplus > 0 && chunks > 0 {
                    chunks -= 1;
                    let Some(chunk) = clock.next(&self.ranges) else { break };
                    if is_warm(self.inner, chunk) {
                        continue;
                    }
                    let moved = evict(self.inner, chunk);
                    surplus = surplus.saturating_sub(moved.bytes().get());
                }
                Pace::Rest
            }
        }
    }
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

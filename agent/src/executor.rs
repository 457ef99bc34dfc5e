//! Carries out what the policy plans: shows it the program, and migrates.

use std::cell::Cell;
use std::time::{Duration, Instant};

use hetmem_core::heat::{self, Sources};
use hetmem_core::migrate::{Request, Select, Survey, Target};
use hetmem_core::outcome::{KeptReason, Outcomes};
use hetmem_core::policy::{Act, DeviceState, Move, Plan, Policy, Resident, Signs, Turnover, View};
use hetmem_core::units::{BLOCK_PAGES, DeviceId, PageCount, PageRange, VirtAddr};
use hetmem_sys::process::MemoryUse;
use hetmem_sys::thread::{process_time, processor_time};

use super::adopt::without;
use super::files::are_managed;
use super::pace::Paced;
use super::sharing::Sharing;
use hetmem::for_agent::{Managed, Others};

/// How much is planned at a time (16 MiB): more would be known too long before.
const BUDGET: PageCount = PageCount::new(8 * BLOCK_PAGES);

/// Whether there is more to do at once.
#[derive(PartialEq, Eq)]
pub(super) enum Pace {
    GoOn,
    Rest,
}

/// Asks the policy for plans, and carries them out on the program.
pub(super) struct Executor<'a> {
    policy: Box<dyn Policy>,
    plan: Plan,
    program: Program<'a>,
    /// Plans since the last rest.
    plans: u32,
    /// When the policy was asked last, if it found then that memory thrashes.
    thrashing: Option<u64>,
}

impl<'a> Executor<'a> {
    /// The policy goes by `heat`. `sharing` is with the other processes of the run, if the limit is theirs, too.
    pub(super) fn new(
        policy: Box<dyn Policy>,
        heat: Sources,
        managed: &'a Managed,
        memory: &'a MemoryUse,
        sharing: Option<Sharing<'a>>,
    ) -> Self {
        let program = Program {
            managed,
            memory,
            counts_files: policy.takes_files(),
            takes_samples: heat.samples,
            began: Instant::now(),
            ranges: Vec::new(),
            changes: 0,
            advice: 0,
            limit: None,
            signs: Cell::default(),
            resident: Resident::default(),
            counts: Paced::new(),
            sharing,
        };
        Self { policy, plan: Plan::new(BUDGET), program, plans: 0, thrashing: None }
    }

    /// Whether the policy wants the program's mappings looked at now; `None` if it leaves that to others.
    pub(super) fn wants_a_look(&self) -> Option<bool> {
        self.policy.plans_a_look().map(|plans| self.plans.is_multiple_of(plans))
    }

    /// What is managed from now on, in order of address.
    pub(super) fn set_ranges(&mut self, ranges: Vec<PageRange>) {
        let ranges = match self.program.counts_files {
            true => ranges,
            false => without(&ranges, &self.program.managed.files()),
        };
        if self.program.ranges == ranges {
            return;
        }
        self.program.changes += 1;
        if self.program.managed.is_recorded() {
            let (before, managed) = (&self.program.ranges, self.program.managed);
            let only = |of: &[PageRange], than: &[PageRange]| {
                let new = |range: &&PageRange| than.binary_search(range).is_err();
                of.iter().filter(new).copied().collect::<Vec<_>>()
            };
            only(before, &ranges).into_iter().for_each(|range| managed.record_managed(range, false));
            only(&ranges, before).into_iter().for_each(|range| managed.record_managed(range, true));
        }
        self.program.ranges = ranges;
    }

    /// So often advice was taken: what could not leave before may leave now.
    pub(super) const fn set_advice(&mut self, times: u64) {
        self.program.advice = times;
    }

    /// From now on `limit` is what may stay in system memory, whatever the policy was told.
    pub(super) const fn set_limit(&mut self, limit: PageCount) {
        self.program.limit = Some(limit);
    }

    pub(super) fn signs(&self) -> Signs {
        self.program.look_for_signs()
    }

    /// How soon the policy wants to be asked again, if it has said so when it was asked last.
    pub(super) const fn again_within(&mut self) -> Option<Duration> {
        match self.plan.take_again() {
            Some(micros) => Some(Duration::from_micros(micros)),
            None => None,
        }
    }

    /// Has the policy plan, and carries that out until there is something more urgent.
    pub(super) fn step(&mut self, urgent: impl Fn() -> bool) -> Pace {
        self.plans = self.plans.wrapping_add(1);
        self.program.tick();
        self.policy.plan(&mut self.program, &mut self.plan);
        let now = self.program.now();
        if let Some(since) = self.thrashing {
            self.program.managed.count_thrashing(now.saturating_sub(since));
        }
        self.thrashing = self.policy.is_thrashing().then_some(now);
        self.program.managed.record_tick(self.program.signs.get().anonymous);
        if self.plan.is_empty() {
            self.plans = 0;
            return Pace::Rest;
        }
        let program = &self.program;
        let others = program.sharing.as_ref().map_or(Others::Copy, Sharing::others);
        let act = |of: &Move| {
            program.tick();
            if !program.takes_samples && matches!(of.act, Act::Migrate { from: Select::SYSTEM, .. }) {
                program.managed.expect_heat(&of.ranges);
            }
            carry_out(program.managed, of, others)
        };
        self.plan.carry_out(act, urgent);
        Pace::GoOn
    }
}

/// The program that this is the agent of, as a policy sees it.
struct Program<'a> {
    managed: &'a Managed,
    memory: &'a MemoryUse,
    /// Whether files' mappings are among the ranges.
    counts_files: bool,
    takes_samples: bool,
    /// What the policy's time counts from.
    began: Instant,
    ranges: Vec<PageRange>,
    /// How often they have changed, and how often advice was taken on them.
    changes: u64,
    advice: u64,
    /// What may stay in system memory, if that was set while the program ran.
    limit: Option<PageCount>,
    /// As they were seen last.
    signs: Cell<Signs>,
    resident: Resident,
    counts: Paced,
    sharing: Option<Sharing<'a>>,
}

impl Program<'_> {
    /// Lets those who note touches know what time it is.
    fn tick(&self) {
        self.managed.set_tick(heat::tick(self.now()));
    }

    /// What grows where more of what is managed comes to be in memory.
    fn present(&self) -> Result<PageCount, hetmem_sys::errno::Errno> {
        if self.counts_files && are_managed() { self.memory.resident() } else { self.memory.anonymous() }
    }

    fn look_for_signs(&self) -> Signs {
        let signs = Signs {
            // An answer that can't be had is no sign.
            anonymous: self.present().unwrap_or(self.signs.get().anonymous),
            own: self.managed.kept_populated(),
            home: self.managed.came_home(),
            faults: self.managed.faults(),
            changes: self.changes + self.advice,
        };
        self.signs.set(signs);
        signs
    }

    /// Counts what is in system memory, unless that is known, or it was counted so short a time ago that it would cost too much.
    fn count(&mut self, signs: Signs) {
        // What a fork has left shared becomes this process's own unseen.
        let apart = self.sharing.as_mut().filter(|sharing| sharing.is_apart());
        let is_apart = apart.is_some();
        if !self.resident.is_exact(signs) || apart.is_some_and(Sharing::has_run) {
            self.counts.something_happened();
        } else {
            return;
        }
        if self.counts.is_due(Instant::now()) {
            let (managed, ranges) = (self.managed, &self.ranges);
            let count = || if is_apart { managed.count_own(ranges) } else { managed.count_resident(ranges) };
            self.resident.count(self.counts.run(count), signs);
        }
    }
}

impl View for Program<'_> {
    fn signs(&mut self) -> Signs {
        self.look_for_signs()
    }

    fn system_limit(&mut self, told: PageCount) -> PageCount {
        let limit = self.limit.unwrap_or(told);
        let signs = self.signs.get();
        let Some(sharing) = &mut self.sharing else { return limit };
        if sharing.parent_has_ended() {
            // What was shared with it alone is this process's now.
            self.counts = Paced::new();
            self.resident = Resident::default();
        }
        if sharing.decides(limit, signs) {
            self.count(signs);
        }
        let held = self.resident.pages(signs) + self.managed.stocked();
        self.sharing.as_mut().map_or(limit, |sharing| sharing.share(limit, held, signs))
    }

    fn ranges(&self) -> &[PageRange] {
        &self.ranges
    }

    fn resident(&mut self, signs: Signs) -> PageCount {
        self.count(signs);
        self.resident.pages(signs) + self.managed.stocked()
    }

    fn devices(&self) -> Vec<DeviceState> {
        self.managed.devices()
    }

    fn preferred(&self, page: VirtAddr) -> Option<DeviceId> {
        self.managed.preferred(page)
    }

    fn take_not_soon(&mut self, most: PageCount) -> Option<PageRange> {
        self.managed.take_not_soon(most)
    }

    fn take_warmth(&mut self, chunk: PageRange) -> bool {
        self.managed.take_warmth(chunk)
    }

    fn now(&self) -> u64 {
        micros(self.began.elapsed())
    }

    fn used(&self) -> u64 {
        // What the policy costs is no sign that the program does something.
        micros(process_time().saturating_sub(processor_time()))
    }

    fn spent(&self) -> u64 {
        micros(processor_time())
    }

    fn takes_samples(&self) -> bool {
        self.takes_samples
    }

    fn turnover(&self) -> Turnover {
        self.managed.turnover()
    }

    fn survey(&mut self, range: PageRange, survey: &mut Survey) {
        self.managed.survey(range, survey);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Does what is to be done, moving to the first place that has room; how many pages it moved.
fn carry_out(managed: &Managed, what: &Move, others: Others) -> PageCount {
    let (select, to) = match &what.act {
        Act::Migrate { from, to } => (*from, to),
        Act::Sample { from } => return managed.sample(&what.ranges, *from, others),
        Act::PutBack => return managed.put_back(&what.ranges),
    };
    let mut moved = PageCount::ZERO;
    for (at, target) in to.iter().enumerate() {
        if at + 1 < to.len() && is_full(managed, *target) {
            continue;
        }
        let request = Request { target: *target, select, owner: None };
        let outcomes = managed.migrate_all(&what.ranges, request, others);
        moved += outcomes.iter().map(Outcomes::moved).sum();
        if outcomes.iter().all(|outcomes| outcomes.kept(KeptReason::NoFrame).is_zero()) {
            break;
        }
    }
    moved
}

fn is_full(managed: &Managed, target: Target) -> bool {
    let Target::Device(device) = target else { return false };
    managed.device(device).is_none_or(|device| device.room().is_zero())
}

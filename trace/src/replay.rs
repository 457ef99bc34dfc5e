//! The simulation: policies at limits, and textbook policies at the same, over one look at a trace.
//!
//! ```text
//! records ── numbered, batch by batch ─┬─► CLOCK, LRU, S3-FIFO, Belady, each at each limit
//!                                      └─► the real policies, each at each limit, over a model of the program
//! ```
//!
//! A policy is asked when it was asked as the trace was recorded, and every [`NAP`] while it wants something; in a trace that says nothing of
//! that, when as many pages have come as a chunk has, and every [`NAP`]. If it says when it wants to be asked again, it is asked then, too.

use std::collections::HashMap;

use hetmem_core::policy::{Plan, Policy, PolicyError, PolicySpec};
use hetmem_core::record::{CHUNK, Record};
use hetmem_core::units::{BLOCK_PAGES, PAGE_SIZE, PageCount, PageRange, VirtAddr};

use crate::baseline::{BASELINES, Baseline, Misses, Op, What};
use crate::model::{Found, Model, Shown, SimulatedDevice};
use crate::space::{GROUPS, Mix, Numbers, PROCESS_PAGES, Page, Sampling, number, of_process, process};

/// How much is planned at a time, as in the agent.
const BUDGET: PageCount = PageCount::new(8 * BLOCK_PAGES);
/// Nanoseconds: the agent's shortest nap.
const NAP: u64 = 10_000_000;
/// Nanoseconds after which a policy is told the time again.
const MOMENT: u64 = 500_000;
/// A policy that always finds something more to do rests after so many plans.
const MOST_PLANS: usize = 1 << 16;
const MICROSECOND: u64 = 1000;

/// What is to be simulated.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The policies, without their limits.
    pub policies: Vec<PolicySpec>,
    /// The limits.
    pub limits: Vec<PageCount>,
    /// Where pages can go.
    pub devices: Vec<SimulatedDevice>,
    /// Populated system memory that is kept for pages on their way home, which counts against the limit.
    pub stock: PageCount,
    /// The part of the trace's memory that is simulated.
    pub sampling: Sampling,
    /// Whether the trace says when the policy was asked.
    pub is_recorded: bool,
}

impl Setup {
    /// What a simulation at `limits` limits of `policies` policies keeps of a page, in bytes.
    #[must_use]
    pub fn bytes_by_page(limits: usize, policies: usize) -> u64 {
        let baselines: u64 = BASELINES.iter().map(|(.., bytes)| bytes).sum();
        // Its number, and what a policy keeps of a page; a vector that grows takes twice as much.
        2 * (4 + limits as u64 * (baselines + policies as u64))
    }
}

/// What came of one policy at one limit. Numbers are of the whole trace, estimated from the part that was simulated.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// The policy.
    pub policy: String,
    /// Whether it is one of hetmem's, and not of a textbook.
    pub is_real: bool,
    /// The limit.
    pub limit: PageCount,
    /// Touches that found their page elsewhere than in system memory.
    pub misses: f64,
    /// By how much this may be wrong because a part was simulated: two standard errors; none if all was.
    pub error: f64,
    /// Pages that moved to devices, and home; of hetmem's policies.
    pub moved: Option<(f64, f64)>,
}

/// What came of a simulation.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcomes {
    /// Touches in the trace.
    pub touches: u64,
    /// Those that found nothing, as nobody had touched the page before: no misses, whatever the policy.
    pub first_touches: f64,
    /// Pages of the trace.
    pub pages: f64,
    /// Each policy at each limit.
    pub all: Vec<Outcome>,
}

/// Something that happens, as the model of a program has it.
#[derive(Clone, Copy)]
enum Event {
    Page(Page, What),
    /// A page came with the one before it, if that did.
    Along(Page),
    /// A block is known for the first time, by a page of it.
    Found(u64),
    Renamed(Page, Page),
    Managed(PageRange),
    Forgotten(PageRange),
    /// It is so late.
    Time(u64),
    /// The policy was asked.
    Asked,
}

/// A policy at a limit.
struct Simulated {
    name: String,
    limit: PageCount,
    policy: Box<dyn Policy>,
    plan: Plan,
    model: Model,
    misses: Misses,
    now: u64,
    asked: u64,
    /// Whether it wanted something when it was asked last.
    wanted: bool,
    /// Nanoseconds after which it wants to be asked again, if it said so.
    again: Option<u64>,
    /// Pages that came since.
    came: u64,
    /// After how many it is asked again.
    patience: u64,
    is_recorded: bool,
}

impl Simulated {
    fn run(&mut self, events: &[Event], numbers: &Numbers) {
        self.model.reach(numbers.chunks());
        // Whether the page that was touched last came home.
        let mut came = false;
        for event in events {
            match *event {
                Event::Page(page, What::Touch | What::First) => {
                    let found = self.model.touch(page, numbers, true);
                    came = found == Found::Away;
                    self.misses.0[usize::from(page.group)] += u64::from(found == Found::Away);
                    if found != Found::There {
                        self.came += 1;
                        // Nobody said when it was asked: in good time.
                        if self.came >= self.patience && !self.is_recorded {
                            self.ask(numbers, MOST_PLANS);
                        }
                    }
                }
                Event::Page(page, What::Along) => self.model.appear(page),
                Event::Page(page, What::Forget) => self.model.vanish(page),
                // It comes with one that came, and not with one that was there.
                Event::Along(page) if came => {
                    self.came += u64::from(self.model.touch(page, numbers, false) != Found::There);
                }
                Event::Along(page) => self.model.appear(page),
                Event::Found(page) => self.model.found(page),
                Event::Renamed(from, to) => self.model.rename(from, to),
                Event::Managed(range) => self.model.manage(range, true),
                Event::Forgotten(range) => self.model.manage(range, false),
                Event::Time(now) => {
                    self.model.now = now / MICROSECOND;
                    if self.is_due(now) {
                        self.ask(numbers, 1);
                    }
                }
                Event::Asked => self.ask(numbers, 1),
            }
        }
    }

    /// Whether the agent would ask the policy at `now` that it asked before.
    fn is_due(&mut self, now: u64) -> bool {
        self.now = now;
        let since = now.saturating_sub(self.asked);
        (self.wanted || !self.is_recorded) && since >= NAP || self.again.is_some_and(|again| since >= again)
    }

    /// Asks the policy, and does what it wants, until it wants nothing, `times` times at most.
    fn ask(&mut self, numbers: &Numbers, times: usize) {
        (self.asked, self.came) = (self.now, 0);
        self.model.look();
        for _ in 0..times {
            let model = &mut self.model;
            self.policy.plan(&mut Shown { model, numbers }, &mut self.plan);
            self.again = self.plan.take_again().map(|micros| micros * MICROSECOND);
            self.wanted = !self.plan.is_empty();
            if !self.wanted {
                return;
            }
            self.plan.carry_out(|what| model.carry_out(numbers, what), || false);
        }
    }
}

/// A simulation under way.
pub struct Replay {
    sampling: Sampling,
    is_recorded: bool,
    numbers: Numbers,
    limits: Vec<PageCount>,
    /// The textbook's, limit by limit.
    baselines: Vec<Vec<Box<dyn Baseline>>>,
    simulated: Vec<Simulated>,
    processes: HashMap<u32, u64, Mix>,
    process: u64,
    touches: u64,
    /// Those that were simulated, by groups.
    simulated_touches: [u64; GROUPS],
    first_touches: u64,
    /// The beginning of the trace's time.
    began: Option<u64>,
    told: u64,
    ops: Vec<Op>,
    events: Vec<Event>,
}

impl Replay {
    /// Begins one.
    ///
    /// # Errors
    ///
    /// If a policy can't be had at a limit.
    pub fn new(setup: &Setup) -> Result<Self, PolicyError> {
        let part = |limit: PageCount| setup.sampling.of(limit.get());
        let mut simulated = Vec::new();
        for spec in &setup.policies {
            for limit in &setup.limits {
                let policy = spec.with(&(part(*limit) * PAGE_SIZE).to_string())?.make()?;
                simulated.push(Simulated {
                    name: spec.name().to_owned(),
                    limit: *limit,
                    policy,
                    plan: Plan::new(BUDGET),
                    model: Model::new(&setup.devices, setup.stock, setup.sampling),
                    misses: Misses::NONE,
                    now: 0,
                    asked: 0,
                    wanted: false,
                    again: None,
                    came: 0,
                    patience: setup.sampling.of(CHUNK),
                    is_recorded: setup.is_recorded,
                });
            }
        }
        let at = |limit: &PageCount| usize::try_from(part(*limit)).unwrap_or(usize::MAX);
        let baselines = setup.limits.iter().map(|limit| BASELINES.iter().map(|(_, make, _)| make(at(limit))).collect());
        Ok(Self {
            sampling: setup.sampling,
            is_recorded: setup.is_recorded,
            numbers: Numbers::new(setup.sampling),
            limits: setup.limits.clone(),
            baselines: baselines.collect(),
            simulated,
            processes: HashMap::default(),
            process: 0,
            touches: 0,
            simulated_touches: [0; GROUPS],
            first_touches: 0,
            began: None,
            told: 0,
            ops: Vec::new(),
            events: Vec::new(),
        })
    }

    /// Has all of this happen, in all that is simulated.
    pub fn feed(&mut self, records: &[Record]) {
        self.ops.clear();
        self.events.clear();
        records.iter().for_each(|record| self.take(*record));
        self.baselines.iter_mut().flatten().for_each(|baseline| baseline.run(&self.ops));
        self.simulated.iter_mut().for_each(|simulated| simulated.run(&self.events, &self.numbers));
    }

    fn take(&mut self, record: Record) {
        match record {
            Record::Touch { page, time, .. } | Record::Sample { page, touched: true, time, .. } => {
                self.time(time);
                self.touch(number(page));
            }
            Record::Fault { page, pages, time } => {
                self.time(time);
                self.touch(number(page));
                for neighbour in number(page) + 1..number(page) + u64::from(pages) {
                    self.along(neighbour);
                }
            }
            Record::Sample { touched: false, time, .. } => self.time(time),
            // What was moved when it was recorded is known to be there; what moves now others decide.
            Record::Moved { chunk, pages, .. } | Record::Present { chunk, pages } => {
                (0..CHUNK).filter(|bit| pages >> bit & 1 == 1).for_each(|bit| self.appear(number(chunk) + bit));
            }
            Record::Managed(range) => self.each_simulated(range, Event::Managed),
            Record::Forgotten(range) => self.each_simulated(range, Event::Forgotten),
            Record::Gone(range) => self.gone(range),
            Record::Renamed { from, to } => self.renamed(from, to),
            Record::Tick { time, .. } => {
                self.time(time);
                self.events.push(Event::Asked);
            }
            Record::Process { pid } => self.process = process(&mut self.processes, pid),
            Record::Began => {
                if let Some(all) = PageRange::new(VirtAddr::default(), PageCount::new(PROCESS_PAGES)) {
                    self.gone(all);
                    self.events.extend(self.of_process(all).map(Event::Forgotten));
                }
            }
            Record::Dropped { .. } | Record::End { .. } => {}
        }
    }

    fn time(&mut self, time: u64) {
        let now = time.saturating_sub(*self.began.get_or_insert(time));
        if now >= self.told + MOMENT {
            self.told = now;
            self.events.push(Event::Time(now));
        }
    }

    #[inline]
    fn push(&mut self, page: Page, what: What) {
        self.ops.push(Op { page: page.number, group: page.group, what });
        self.events.push(Event::Page(page, what));
    }

    /// The page of that number in this process, if it is simulated.
    #[inline]
    fn page(&mut self, page: u64) -> Option<Page> {
        let page = of_process(page, self.process);
        let chunks = self.numbers.chunks();
        let found = self.numbers.page(page)?;
        if !self.is_recorded && self.numbers.chunks() > chunks {
            self.events.push(Event::Found(page));
        }
        Some(found)
    }

    #[inline]
    fn touch(&mut self, page: u64) {
        self.touches += 1;
        if let Some(page) = self.page(page) {
            self.simulated_touches[usize::from(page.group)] += 1;
            self.first_touches += u64::from(page.is_new);
            self.push(page, if page.is_new { What::First } else { What::Touch });
        }
    }

    /// A page came with the one before it.
    fn along(&mut self, page: u64) {
        if let Some(page) = self.page(page) {
            self.ops.push(Op { page: page.number, group: page.group, what: What::Along });
            self.events.push(Event::Along(page));
        }
    }

    /// A page is there, as was found out.
    fn appear(&mut self, page: u64) {
        if let Some(page) = self.page(page).filter(|page| page.is_new) {
            self.push(page, What::Along);
        }
    }

    fn gone(&mut self, range: PageRange) {
        for page in self.known(range) {
            if let Some(page) = self.numbers.forget(page) {
                self.push(page, What::Forget);
            }
        }
    }

    /// The pages of a range in this process that may be simulated: of a chunk of which nothing is known none is.
    fn known(&self, range: PageRange) -> Vec<u64> {
        let first = of_process(number(range.start()), self.process);
        let end = first.saturating_add(range.pages().get());
        let known = self.numbers.seen_of(first / CHUNK..end.div_ceil(CHUNK)).into_iter();
        known.flat_map(|chunk| (chunk * CHUNK).max(first)..((chunk + 1) * CHUNK).min(end)).collect()
    }

    fn renamed(&mut self, from: PageRange, to: VirtAddr) {
        let to = PageRange::new(to, from.pages());
        to.into_iter().for_each(|to| self.gone(to));
        let (Some(to), first) = (to, of_process(number(from.start()), self.process)) else { return };
        for page in self.known(from) {
            let Some(before) = self.numbers.forget(page) else { continue };
            self.ops.push(Op { page: before.number, group: before.group, what: What::Forget });
            match self.page(number(to.start()) + (page - first)) {
                Some(after) => {
                    self.ops.push(Op { page: after.number, group: after.group, what: What::Along });
                    self.events.push(Event::Renamed(before, after));
                }
                None => self.events.push(Event::Page(before, What::Forget)),
            }
        }
    }

    /// A range of this process, in the one space for all of them.
    fn of_process(&self, range: PageRange) -> Option<PageRange> {
        let first = of_process(number(range.start()), self.process);
        PageRange::new(VirtAddr::new(first * PAGE_SIZE), range.pages())
    }

    /// The parts of a range in this process that are simulated.
    fn each_simulated(&mut self, range: PageRange, event: impl Fn(PageRange) -> Event) {
        let Some(range) = self.of_process(range) else { return };
        if self.sampling.is_all() {
            return self.events.push(event(range));
        }
        let parts = range.by_block().filter(|(_, part)| self.sampling.has(number(part.start())));
        self.events.extend(parts.map(|(_, part)| event(part)));
    }

    /// What came of it.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "what is estimated needs no 64 bits")]
    pub fn finish(self) -> Outcomes {
        let rate = self.sampling.rate();
        let whole = |part: u64| part as f64 / rate;
        let estimate = |misses: &Misses| {
            let of_all = |of: [u64; GROUPS]| of.map(|of| of as f64);
            estimate(rate, self.touches as f64, of_all(misses.0), of_all(self.simulated_touches))
        };
        let mut all = Vec::new();
        for simulated in &self.simulated {
            let (misses, error) = estimate(&simulated.misses);
            all.push(Outcome {
                policy: simulated.name.clone(),
                is_real: true,
                limit: simulated.limit,
                misses,
                error,
                moved: Some((whole(simulated.model.out), whole(simulated.model.home))),
            });
        }
        for (at, (name, ..)) in BASELINES.iter().enumerate() {
            for (limit, baselines) in self.limits.iter().zip(&self.baselines) {
                let (misses, error) = estimate(baselines[at].misses());
                all.push(Outcome {
                    policy: (*name).to_owned(),
                    is_real: false,
                    limit: *limit,
                    misses,
                    error,
                    moved: None,
                });
            }
        }
        let pages = whole(self.numbers.pages());
        Outcomes { touches: self.touches, first_touches: whole(self.first_touches), pages, all }
    }
}

/// The misses of all touches, of which there are `touches`, and two standard errors; of each group of the part it is known how many touches it has
/// and how many of them missed. As far as groups with more touches have more misses, what is known of all touches says how far the part is from the
/// whole (a regression estimator).
#[expect(clippy::cast_precision_loss, reason = "there are few groups")]
fn estimate(rate: f64, touches: f64, misses: [f64; GROUPS], of: [f64; GROUPS]) -> (f64, f64) {
    let groups = GROUPS as f64;
    let sum = |of: &[f64; GROUPS]| of.iter().sum::<f64>();
    let (all_misses, all) = (sum(&misses), sum(&of));
    if rate >= 1.0 {
        return (all_misses, 0.0);
    }
    let from_mean = |of: [f64; GROUPS]| {
        let mean = sum(&of) / groups;
        of.map(|of| of - mean)
    };
    let (misses, of) = (from_mean(misses), from_mean(of));
    let together: f64 = misses.iter().zip(&of).map(|(misses, of)| misses * of).sum();
    let squares: f64 = of.iter().map(|of| of * of).sum();
    let slope = if squares > 0.0 { (together / squares).clamp(0.0, 1.0) } else { 0.0 };
    let left: f64 = misses.iter().zip(&of).map(|(misses, of)| (misses - slope * of).powi(2)).sum();
    let misses = all_misses / rate + slope * (touches - all / rate);
    (misses.clamp(0.0, touches), 2.0 * ((1.0 - rate) * left * groups / (groups - 1.0)).sqrt() / rate)
}

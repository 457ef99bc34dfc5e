//! Whatever the program and hetmem do, in whatever order: a read finds what the program wrote.

use std::sync::atomic::Ordering::Relaxed;

use hetmem_core::advice::{Advice, AdviceError, DiscardError, Preference};
use hetmem_core::engine::Residency;
use hetmem_core::heat;
use hetmem_core::migrate::{Request, Select, Target};
use hetmem_core::mirror::{RangeFault, Want};
use hetmem_core::outcome::{KeptReason, PageOutcome};
use hetmem_core::physmap::{MemoryType, Owner};
use hetmem_core::space::Region;
use hetmem_core::units::{DeviceId, PageCount, PageRange, VirtAddr};
use proptest::prelude::*;

use crate::model::{Action, Chaos, Gives, World};

/// The program's address space: three blocks, of which stretches around the borders are used.
const SPACE: u64 = 3 * 512;

#[derive(Clone, Debug)]
enum Op {
    Read(u64),
    Write(u64),
    /// Reads one page after the other.
    Stream(u64, u64),
    WriteAll(u64, u64),
    Migrate {
        first: u64,
        count: u64,
        target: u8,
        select: u8,
        owner: Option<u64>,
    },
    /// Where are they, for an owner who wants to know, to read or to write?
    RangeFault(u64, u64, Want, Option<u64>),
    /// Some are taken out as samples.
    Sample(Vec<(u64, u64)>, u8),
    PutBack(Vec<(u64, u64)>),
    /// Several ranges in one go, perhaps out of order, perhaps overlapping.
    MigrateAll(Vec<(u64, u64)>, u8),
    Unmap(u64, u64),
    Map(u64, u64),
    Remap {
        from: u64,
        count: u64,
        to: u64,
    },
    Remove(u64, u64),
    Zap,
    Home,
    Advise(u64, u64, Advice),
    /// As a policy does, of so many pages.
    TakeNotSoon(u64),
    Discard(u64, u64),
    Exclude(u64, u64, bool),
    Protect(u64, u64, bool),
    Stick(u64, bool),
    Fork,
    Deliver,
    /// The program acts at a step of the next operation.
    During(usize, Box<Op>),
}

/// Pages near the borders of blocks are the interesting ones.
fn page() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..24, 500u64..540, 1000u64..1060]
}

fn count() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 1u64..8, 1 => 8u64..40]
}

fn range_fault() -> impl Strategy<Value = Op> {
    let want = prop_oneof![Just(Want::Snapshot), Just(Want::Read), Just(Want::Write)];
    (page(), count(), want, prop::option::of(1u64..3)).prop_map(|(p, n, want, owner)| Op::RangeFault(p, n, want, owner))
}

fn program_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (page(), count()).prop_map(|(p, n)| Op::Unmap(p, n)),
        4 => (page(), count(), page()).prop_map(|(from, count, to)| Op::Remap { from, count, to }),
        3 => (page(), count()).prop_map(|(p, n)| Op::Remove(p, n)),
        2 => Just(Op::Zap),
        4 => page().prop_map(Op::Read),
        1 => Just(Op::Fork),
        3 => Just(Op::Deliver),
        1 => (page(), count(), any::<bool>()).prop_map(|(p, n, on)| Op::Protect(p, n, on)),
    ]
}

fn advice() -> impl Strategy<Value = Advice> {
    prop_oneof![
        2 => Just(Advice::Pin),
        4 => Just(Advice::Unpin),
        1 => (0u8..5).prop_map(|device| Advice::PreferredLocation(DeviceId::new(device))),
        1 => Just(Advice::ReadMostly),
        1 => Just(Advice::NoPreference),
        3 => Just(Advice::Soon),
        3 => Just(Advice::NotSoon),
    ]
}

fn select() -> impl Strategy<Value = u8> {
    prop_oneof![3 => Just(7u8), 2 => 1u8..16]
}

fn op() -> impl Strategy<Value = Op> {
    let migrate = (page(), count(), 0u8..6, select(), prop::option::weighted(0.4, 1u64..3))
        .prop_map(|(first, count, target, select, owner)| Op::Migrate { first, count, target, select, owner });
    prop_oneof![
        10 => migrate,
        4 => (prop::collection::vec((page(), 1u64..8), 1..6), 0u8..6).prop_map(|(r, target)| Op::MigrateAll(r, target)),
        4 => (prop::collection::vec((page(), 1u64..16), 1..4), select()).prop_map(|(r, select)| Op::Sample(r, select)),
        2 => prop::collection::vec((page(), 1u64..40), 1..4).prop_map(Op::PutBack),
        6 => program_op(),
        5 => range_fault(),
        6 => (0usize..12, program_op()).prop_map(|(at, op)| Op::During(at, Box::new(op))),
        3 => page().prop_map(Op::Write),
        2 => (page(), count()).prop_map(|(p, n)| Op::Stream(p, n)),
        3 => (page(), count()).prop_map(|(p, n)| Op::WriteAll(p, n)),
        4 => (page(), count()).prop_map(|(p, n)| Op::Map(p, n)),
        1 => Just(Op::Home),
        3 => (page(), count(), advice()).prop_map(|(p, n, advice)| Op::Advise(p, n, advice)),
        1 => (1u64..20).prop_map(Op::TakeNotSoon),
        3 => (page(), count()).prop_map(|(p, n)| Op::Discard(p, n)),
        1 => (page(), count(), any::<bool>()).prop_map(|(p, n, on)| Op::Exclude(p, n, on)),
        1 => (page(), any::<bool>()).prop_map(|(p, on)| Op::Stick(p, on)),
    ]
}

fn selected(bits: u8) -> Select {
    [Select::SYSTEM, Select::DEVICE_PRIVATE, Select::DEVICE_COHERENT, Select::SAMPLED]
        .into_iter()
        .enumerate()
        .filter(|(bit, _)| bits & (1 << bit) != 0)
        .map(|(_, s)| s)
        .reduce(Select::union)
        .unwrap_or(Select::ALL)
}

struct Run {
    world: World,
    /// Whether the engine is let alone, so that its promises can be held against it exactly.
    calm: bool,
    /// Ranges have as many times their pages.
    scale: u64,
}

impl Run {
    fn range(&self, first: u64, count: u64) -> PageRange {
        self.world.at(first, (count * self.scale).min(SPACE - first))
    }

    fn ranges(&self, ranges: &[(u64, u64)]) -> Vec<PageRange> {
        ranges.iter().map(|(p, n)| self.range(*p, *n)).collect()
    }

    fn page(&self, page: u64) -> PageRange {
        self.world.at(page, 1)
    }

    fn action(&self, op: &Op) -> Option<Action> {
        Some(match *op {
            Op::Unmap(p, n) => Action::Unmap(self.range(p, n)),
            Op::Remap { from, count, to } => Action::Remap(self.range(from, count), self.page(to).start()),
            Op::Remove(p, n) => Action::Remove(self.range(p, n)),
            Op::Zap => Action::Zap,
            Op::Read(p) => Action::Touch(self.page(p).start()),
            Op::Fork => Action::Fork(self.range(0, SPACE)),
            Op::Deliver => Action::Handle,
            Op::Protect(p, n, true) => Action::Protect(self.range(p, n)),
            Op::Protect(_, _, false)
            | Op::Write(_)
            | Op::Stream(..)
            | Op::WriteAll(..)
            | Op::Migrate { .. }
            | Op::MigrateAll(..)
            | Op::Sample(..)
            | Op::PutBack(..)
            | Op::RangeFault(..)
            | Op::Map(..)
            | Op::Home
            | Op::Advise(..)
            | Op::TakeNotSoon(_)
            | Op::Discard(..)
            | Op::Exclude(..)
            | Op::Stick(..)
            | Op::During(..) => return None,
        })
    }

    fn apply(&mut self, op: &Op) {
        let (model, engine) = (&self.world.model, &self.world.engine);
        match *op {
            Op::Read(p) => model.read(self.page(p).start()),
            Op::Write(p) => model.write(self.page(p).start()),
            Op::Stream(p, n) => self.range(p, n).iter().for_each(|page| model.read(page)),
            Op::WriteAll(p, n) => self.range(p, n).iter().for_each(|page| model.write(page)),
            Op::Migrate { first, count, target, select, owner } => {
                let select = selected(select);
                let target = self.target(target);
                self.migrate(&[self.range(first, count)], Request { target, select, owner: owner.map(Owner::new) });
            }
            Op::MigrateAll(ref ranges, target) => {
                self.migrate(&self.ranges(ranges), Request::all_to(self.target(target)));
            }
            Op::Sample(ref ranges, select) => {
                let ranges = self.ranges(ranges);
                let before = engine.residency(self.range(0, SPACE));
                engine.set_tick(heat::tick(engine.counters().cpu_faults.load(Relaxed) << 12));
                let sampled = engine.sample(&ranges, selected(select)).pages;
                if self.calm && model.lock().zaps.is_empty() {
                    assert!(sampled <= ranges.iter().map(|range| range.pages()).sum());
                    self.are_where_they_were(&before);
                }
            }
            Op::PutBack(ref ranges) => {
                let ranges = self.ranges(ranges);
                let before = engine.residency(self.range(0, SPACE));
                let _ = engine.put_back(&ranges);
                if self.calm && model.lock().zaps.is_empty() {
                    self.are_where_they_were(&before);
                }
            }
            Op::RangeFault(p, n, want, owner) => self.range_fault(self.range(p, n), want, owner.map(Owner::new)),
            Op::Unmap(p, n) => model.unmap(self.range(p, n)),
            Op::Map(p, n) => {
                for page in self.range(p, n).iter() {
                    let page = PageRange::page_of(page);
                    let free = !model.lock().pages.contains_key(&page.start().get());
                    if free {
                        model.map(page, false);
                    }
                }
                // Adoption fails where something is unread; the memory is then the program's alone.
                let _ = model.adopt(self.range(p, n), Region::default());
            }
            Op::Remap { from, count, to } => model.remap(self.range(from, count), self.page(to).start()),
            Op::Remove(p, n) => model.remove(self.range(p, n)),
            Op::Zap => model.zap_all(),
            Op::Home => {
                let away = engine.away_in(self.range(0, SPACE)).0;
                let left = engine.bring_all_home();
                let removing = !model.lock().zaps.is_empty();
                if self.calm && !removing {
                    assert_eq!(left, PageCount::ZERO, "of {away:?} pages some stayed away");
                }
            }
            Op::Advise(p, n, advice) => self.advise(self.range(p, n), advice),
            Op::TakeNotSoon(most) => {
                let before = engine.regions();
                let first = before.iter().find(|(_, region)| region.not_soon);
                let expected = first.map(|(range, _)| range.slice(PageCount::ZERO, PageCount::new(most)));
                let taken = engine.take_not_soon(PageCount::new(most));
                if self.calm {
                    assert_eq!(taken, expected, "the first of {before:?}");
                }
            }
            Op::Discard(p, n) => self.discard(self.range(p, n)),
            Op::Exclude(p, n, true) => engine.exclude(self.range(p, n)),
            Op::Exclude(p, n, false) => engine.include(self.range(p, n)),
            Op::Protect(p, n, on) => model.protect(self.range(p, n), on),
            Op::Stick(p, on) => {
                if let Some(page) = model.lock().pages.get_mut(&self.page(p).start().get()) {
                    page.stuck = on.then_some(KeptReason::Pinned);
                }
            }
            Op::Fork => model.fork(self.range(0, SPACE)),
            Op::Deliver => model.deliver(),
            Op::During(at, ref op) => {
                if let Some(action) = self.action(op) {
                    let mut memory = model.lock();
                    let step = memory.steps().len() + at;
                    memory.at_step(step, action);
                    self.calm = false;
                }
                return;
            }
        }
        let memory = model.lock();
        self.calm = memory.events.is_empty() && !memory.has_plans();
    }

    /// A sample is where it was, and where it is put back; but of what the program has dropped while nobody watched, that may be found only now.
    fn are_where_they_were(&self, before: &[Residency]) {
        let all = self.range(0, SPACE);
        let now = self.world.engine.residency(all);
        let model = self.world.model.lock();
        let is_hole = |page: VirtAddr| model.pages.get(&page.get()).is_none_or(|page| page.content.is_none());
        for (page, (was, is)) in all.iter().zip(before.iter().zip(&now)) {
            assert!(was == is || *is == Residency::System && is_hole(page), "{page:?} was {was:?} and is {is:?}");
        }
    }

    fn advise(&self, range: PageRange, advice: Advice) {
        let engine = &self.world.engine;
        let result = engine.advise(range, advice);
        if matches!(advice, Advice::PreferredLocation(device) if device.index() >= 4) {
            return assert!(matches!(result, Err(AdviceError::NoDevice { .. })));
        }
        if advice == Advice::Soon {
            engine.expect_use(range);
            for (part, target) in engine.best_places(range) {
                self.migrate(&[part], Request::all_to(target));
            }
        }
        if !self.calm {
            return;
        }
        let parts = engine.regions_in(range);
        let unmanaged =
            parts.iter().find(|(_, region)| region.is_none()).map(|(part, _)| AdviceError::Unmanaged(*part));
        assert_eq!(result, unmanaged.map_or(Ok(()), Err));
        for region in parts.iter().filter_map(|(_, region)| *region) {
            assert!(match advice {
                Advice::Pin => region.pinned,
                Advice::Unpin => !region.pinned,
                Advice::PreferredLocation(device) => region.preferred == Some(Preference::Device(device)),
                Advice::ReadMostly => region.preferred == Some(Preference::Coherent),
                Advice::NoPreference => region.preferred.is_none(),
                Advice::NotSoon => region.not_soon,
                Advice::Soon | _ => !region.not_soon,
            });
        }
        let regions = engine.regions();
        let apart =
            |(a, of_a): &(PageRange, Region), (b, of_b): &(PageRange, Region)| a.end() < b.start() || of_a != of_b;
        let near: Vec<_> = regions.iter().filter(|(part, _)| part.overlaps(range)).collect();
        assert!(near.windows(2).all(|two| apart(two[0], two[1])), "what says the same is one region: {regions:?}");
    }

    fn discard(&self, range: PageRange) {
        let unmanaged = self.world.engine.unmanaged_in(range);
        let result = self.world.model.discard(range);
        if !self.calm {
            return;
        }
        assert_eq!(result, unmanaged.map_or(Ok(()), |part| Err(DiscardError::Unmanaged(part))));
        if result.is_ok() {
            let memory = self.world.model.lock();
            // What a read finds is compared with that.
            assert!(range.iter().all(|page| memory.truth[&page.get()].is_zero()), "there are zeros and nothing else");
            drop(memory);
            assert_eq!(self.world.engine.away_in(range), (PageCount::ZERO, PageCount::ZERO), "and no frame is used");
        }
    }

    fn target(&self, number: u8) -> Target {
        if number < 4 { Target::Device(DeviceId::new(number)) } else { Target::System }
    }

    fn migrate(&self, ranges: &[PageRange], request: Request) {
        let engine = &self.world.engine;
        let all = self.range(0, SPACE);
        let before = engine.residency(all);
        let outcomes = engine.migrate_all(ranges, request);
        assert_eq!(outcomes.len(), ranges.len());
        let after = engine.residency(all);
        for (range, outcomes) in ranges.iter().zip(&outcomes) {
            assert_eq!(outcomes.as_slice().len(), range.pages().as_usize());
            // A page that is named twice has one outcome for each time.
            let once = |page| ranges.iter().filter(|r| r.contains(page)).count() == 1;
            for (page, outcome) in range.iter().zip(outcomes.as_slice()) {
                if self.calm && once(page) {
                    let i = page.pages_since(all.start()).as_usize();
                    self.judge(request, *outcome, before[i], after[i]);
                }
            }
        }
    }

    fn range_fault(&self, range: PageRange, want: Want, owner: Option<Owner>) {
        let request = RangeFault { want, owner, ..RangeFault::default() };
        if self.calm {
            let (result, out) = self.world.ask(range, request);
            self.world.judge(range, want, owner, result, &out);
        } else {
            let _whatever = self.world.ask_by_runs(range, request);
        }
    }

    /// Whether what became of a page is what was asked, with nobody else at work.
    fn judge(&self, request: Request, outcome: PageOutcome, before: Residency, after: Residency) {
        let pagemap = |id: DeviceId| self.world.engine.devices()[id.index()].pagemap();
        match (outcome, request.target) {
            (PageOutcome::Moved, Target::Device(id)) => assert_eq!(after, Residency::Device(id)),
            (PageOutcome::Moved, Target::System) | (PageOutcome::Kept(KeptReason::Hole), _) => {
                assert_eq!(after, Residency::System);
            }
            (PageOutcome::Kept(KeptReason::Raced), _) => {
                assert!(!self.world.model.lock().zaps.is_empty(), "nothing else goes on that the page could race with");
            }
            (PageOutcome::Kept(_), _) => assert_eq!(after, before, "{outcome:?}: a kept page stays"),
        }
        match before {
            Residency::Device(id) => {
                let kind = match pagemap(id).memory_type {
                    MemoryType::DevicePrivate => Select::DEVICE_PRIVATE,
                    MemoryType::DeviceCoherent => Select::DEVICE_COHERENT,
                };
                let foreign = request.owner.is_some_and(|owner| owner != pagemap(id).owner);
                if foreign || !request.select.contains(kind) {
                    assert_eq!(after, before, "a page of another owner, or one not selected, never moves");
                }
            }
            Residency::System
                if !request.select.contains(Select::SYSTEM) && !request.select.contains(Select::SAMPLED) =>
            {
                assert_eq!(after, before, "system memory is not selected");
            }
            Residency::System | Residency::Migrating => {}
        }
    }
}

fn run(ops: &[Op], chaos: Option<Chaos>, gives: Gives, scale: u64) {
    let stretches = [(0, 24), (500, 40), (1000, 60)];
    let world = if scale == 1 { World::new(24) } else { World::large(24 * scale) };
    let world = stretches.iter().fold(world, |world, (p, n)| world.with_pages(*p, n * scale));
    let model = std::sync::Arc::clone(&world.model);
    model.lock().gives = gives;
    let mut run = Run { world, calm: true, scale };
    for op in ops {
        model.lock().set_chaos(chaos);
        run.calm &= chaos.is_none();
        run.apply(op);
        model.lock().set_chaos(None);
        model.serve(false);
        if model.lock().events.is_empty() {
            model.compare_in_place();
        }
        run.world.engine.check();
    }
    run.world.verify();
}

fn gives() -> impl Strategy<Value = Gives> {
    prop::sample::select(&Gives::ALL)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn contents_are_what_the_program_wrote(ops in prop::collection::vec(op(), 1..60), gives in gives()) {
        run(&ops, None, gives, 1);
    }

    /// Of a block so many pages may be away that it keeps a table of them, or so few that it doesn't.
    #[test]
    fn contents_are_what_the_program_wrote_where_few_pages_become_many(
        ops in prop::collection::vec(op(), 1..40),
        seed: u64,
        fails: bool,
        gives in gives(),
    ) {
        run(&ops, fails.then_some(Chaos { seed, one_in: 8 }), gives, 6);
    }

    #[test]
    fn contents_survive_failures_at_random_steps(ops in prop::collection::vec(op(), 1..60), seed: u64, gives in gives()) {
        run(&ops, Some(Chaos { seed, one_in: 8 }), gives, 1);
    }
}

/// What is removed leaves after the removal is known, so that of pages which come to a coherent device meanwhile nobody sees it.
#[test]
fn a_sample_finds_what_was_dropped_unseen() {
    let ops = [
        Op::Sample(vec![(500, 6)], 7),
        Op::During(0, Box::new(Op::Remap { from: 500, count: 1, to: 14 })),
        Op::Remove(0, 3),
        Op::WriteAll(500, 1),
        Op::MigrateAll(vec![(0, 3)], 1),
        Op::Discard(506, 1),
        Op::Sample(vec![(0, 3)], 7),
    ];
    run(&ops, None, Gives::AtOnce, 6);
}

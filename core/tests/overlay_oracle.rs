//! Whatever the program and hetmem do where blocks are laid, in whatever order: a read finds what the program wrote.

use hetmem_core::advice::DiscardError;
use hetmem_core::engine::Residency;
use hetmem_core::frames::FrameRun;
use hetmem_core::migrate::{Request, Target};
use hetmem_core::mirror::{RangeFault, Want};
use hetmem_core::outcome::{KeptReason, PageOutcome};
use hetmem_core::physmap::Owner;
use hetmem_core::space::Region;
use hetmem_core::units::{DeviceId, FrameIndex, PageCount, PageRange};
use proptest::prelude::*;

use crate::model::{Action, Chaos, OVERLAY, World};

const BLOCKS: u64 = 3;

#[derive(Clone, Debug)]
enum Op {
    Read(u64),
    Write(u64),
    /// Writes all pages of a block, so that it can be laid.
    WriteBlock(u64),
    /// Migrates so many blocks from this one on.
    Migrate(u64, u64, u8),
    /// Migrates so many pages from this one on.
    MigratePart(u64, u64, u8),
    /// Where are they, for an owner who wants to know, to read or to write?
    RangeFault(u64, u64, Want, Option<u64>),
    Remove(u64, u64),
    Discard(u64, u64),
    Zap,
    Deliver,
    Exclusive(u64),
    /// Empties some frames of a device whose blocks are laid.
    Evict(u32),
    Home,
    Pin(u64, bool),
    /// Announces a fork: what is laid goes home, nothing is laid, and the child must find everything.
    Fork,
    Hold(bool),
    /// The program acts at a step of the next operation.
    During(usize, Box<Op>),
}

/// Pages near the ends of blocks, and some in the middle.
fn page() -> impl Strategy<Value = u64> {
    (0..BLOCKS, prop_oneof![0u64..8, 200u64..208, 504u64..512]).prop_map(|(block, page)| 512 * block + page)
}

fn range_fault() -> impl Strategy<Value = Op> {
    let want = prop_oneof![Just(Want::Snapshot), Just(Want::Read), Just(Want::Write)];
    (page(), 1u64..40, want, prop::option::of(1u64..3))
        .prop_map(|(p, n, want, owner)| Op::RangeFault(p, n, want, owner))
}

fn program_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => page().prop_map(Op::Read),
        4 => page().prop_map(Op::Write),
        3 => (page(), prop_oneof![1u64..8, Just(512)]).prop_map(|(p, n)| Op::Remove(p, n)),
        2 => Just(Op::Zap),
        3 => Just(Op::Deliver),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    // Four devices, two more whose blocks are laid, and home.
    let target = || prop_oneof![0u8..7, 4u8..6];
    prop_oneof![
        12 => (0..BLOCKS, 1u64..3, target()).prop_map(|(block, n, target)| Op::Migrate(block, n, target)),
        3 => (page(), prop_oneof![1u64..8, 400u64..700], target()).prop_map(|(p, n, target)| Op::MigratePart(p, n, target)),
        4 => range_fault(),
        8 => program_op(),
        8 => (0usize..12, program_op()).prop_map(|(at, op)| Op::During(at, Box::new(op))),
        6 => (0..BLOCKS).prop_map(Op::WriteBlock),
        3 => (page(), prop_oneof![1u64..8, 400u64..700]).prop_map(|(p, n)| Op::Discard(p, n)),
        1 => page().prop_map(Op::Exclusive),
        1 => (0u32..1000).prop_map(Op::Evict),
        1 => Just(Op::Home),
        1 => (0..BLOCKS, any::<bool>()).prop_map(|(block, on)| Op::Pin(block, on)),
        2 => Just(Op::Fork),
        1 => any::<bool>().prop_map(Op::Hold),
    ]
}

struct Run {
    world: World,
    held: bool,
    /// Whether nobody else is at work, so that the engine's promises can be held against it exactly.
    calm: bool,
}

impl Run {
    fn range(&self, first: u64, count: u64) -> PageRange {
        self.world.at(first, count.min(512 * BLOCKS - first))
    }

    fn action(&self, op: &Op) -> Option<Action> {
        Some(match *op {
            Op::Read(p) => Action::Touch(self.range(p, 1).start()),
            Op::Write(p) => Action::Write(self.range(p, 1).start()),
            Op::Remove(p, n) => Action::Remove(self.range(p, n)),
            Op::Zap => Action::Zap,
            Op::Deliver => Action::Handle,
            Op::WriteBlock(_)
            | Op::Migrate(..)
            | Op::MigratePart(..)
            | Op::Discard(..)
            | Op::RangeFault(..)
            | Op::Exclusive(_)
            | Op::Evict(_)
            | Op::Home
            | Op::Pin(..)
            | Op::Fork
            | Op::Hold(_)
            | Op::During(..) => return None,
        })
    }

    fn apply(&mut self, op: &Op) {
        let (model, engine) = (&self.world.model, &self.world.engine);
        let target = |number: u8| if number < 6 { Target::Device(DeviceId::new(number)) } else { Target::System };
        match *op {
            Op::Read(p) => model.read(self.range(p, 1).start()),
            Op::Write(p) => model.write(self.range(p, 1).start()),
            Op::WriteBlock(block) => self.world.write_all(self.range(512 * block, 512)),
            Op::Migrate(block, n, to) => self.migrate(self.range(512 * block, 512 * n), target(to)),
            Op::MigratePart(p, n, to) => self.migrate(self.range(p, n), target(to)),
            Op::Remove(p, n) => model.remove(self.range(p, n)),
            Op::RangeFault(p, n, want, owner) => self.range_fault(self.range(p, n), want, owner.map(Owner::new)),
            Op::Discard(p, n) => self.discard(self.range(p, n)),
            Op::Zap => model.zap_all(),
            Op::Deliver => model.deliver(),
            Op::Exclusive(p) => _ = engine.make_exclusive(self.range(p, 1).start(), Owner::new(1)),
            Op::Evict(first) => {
                let frames = FrameRun { first: FrameIndex::new(first), pages: PageCount::new(24) };
                engine.pages_in(OVERLAY, frames).into_iter().for_each(|range| self.migrate(range, Target::System));
            }
            Op::Home => _ = engine.bring_all_home(),
            Op::Pin(block, on) => engine.change_region(self.range(512 * block, 512), |region| region.pinned = on),
            Op::Fork => self.fork(),
            Op::Hold(on) => {
                match (self.held, on) {
                    (false, true) => engine.hold_exchanges(),
                    (true, false) => engine.release_exchanges(),
                    _ => {}
                }
                self.held = on;
            }
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

    fn range_fault(&self, range: PageRange, want: Want, owner: Option<Owner>) {
        let request = RangeFault { want, owner, ..RangeFault::default() };
        if self.calm {
            let (result, out) = self.world.ask(range, request);
            self.world.judge(range, want, owner, result, &out);
        } else {
            let _whatever = self.world.ask_by_runs(range, request);
        }
    }

    fn discard(&self, range: PageRange) {
        let engine = &self.world.engine;
        let is_pinned = engine
            .laid_in(range)
            .into_iter()
            .any(|block| engine.regions_in(block).iter().any(|(_, region)| region.is_some_and(|region| region.pinned)));
        let result = self.world.model.discard(range);
        if !self.calm {
            return;
        }
        let is_away = !self.world.model.lock().zaps.is_empty();
        match result {
            Ok(()) => {
                let memory = self.world.model.lock();
                assert!(
                    range.iter().all(|page| memory.truth[&page.get()].is_zero()),
                    "there are zeros and nothing else"
                );
                drop(memory);
                assert_eq!(engine.away_in(range), (PageCount::ZERO, PageCount::ZERO), "and no frame is used");
            }
            Err(DiscardError::Laid(KeptReason::Advised)) => assert!(is_pinned),
            Err(error) => assert!(is_away, "{error:?}"),
        }
    }

    fn fork(&self) {
        let engine = &self.world.engine;
        let all = self.range(0, 512 * BLOCKS);
        engine.hold_exchanges();
        for block in engine.laid_in(all) {
            let _ = engine.migrate(block, Request::all_to(Target::System));
        }
        // One that advice keeps, or that can't be lifted, keeps the program from forking.
        if engine.laid_in(all).is_empty() {
            self.world.model.fork(all);
            self.world.model.deliver();
        }
        engine.release_exchanges();
    }

    fn migrate(&self, range: PageRange, target: Target) {
        let engine = &self.world.engine;
        let before = engine.residency(range);
        let outcomes = engine.migrate(range, Request::all_to(target));
        let after = engine.residency(range);
        if !self.calm {
            return;
        }
        for ((outcome, before), after) in outcomes.as_slice().iter().zip(before).zip(after) {
            match (outcome, target) {
                (PageOutcome::Moved, Target::Device(id)) => assert_eq!(after, Residency::Device(id)),
                (PageOutcome::Moved, Target::System) | (PageOutcome::Kept(KeptReason::Hole), _) => {
                    assert_eq!(after, Residency::System);
                }
                (PageOutcome::Kept(reason), _) => {
                    assert_eq!(after, before, "{outcome:?}: a kept page stays");
                    let raced = self.held || !self.world.model.lock().zaps.is_empty();
                    assert!(raced || *reason != KeptReason::Raced, "nothing else goes on that it could race with");
                }
            }
        }
    }
}

fn run(ops: &[Op], chaos: Option<Chaos>) {
    let owned = Region { owned: true, ..Region::default() };
    let world = World::with_overlays(false).with_region(0, 512 * BLOCKS, owned);
    world.write_all(world.at(0, 512 * BLOCKS));
    let model = std::sync::Arc::clone(&world.model);
    model.lock().calm();
    let mut run = Run { world, held: false, calm: true };
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

proptest! {
    // A case with whole blocks takes long.
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: ProptestConfig::default().cases / 6,
        ..ProptestConfig::default()
    })]

    #[test]
    fn contents_are_what_the_program_wrote(ops in prop::collection::vec(op(), 1..40)) {
        run(&ops, None);
    }

    #[test]
    fn contents_survive_failures_at_random_steps(ops in prop::collection::vec(op(), 1..40), seed: u64) {
        run(&ops, Some(Chaos { seed, one_in: 8 }));
    }
}

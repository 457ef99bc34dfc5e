//! Numbered steps: each call of the host or of a device may fail, or give the program a chance to act.

use hetmem_core::migrate::{Request, Target};
use hetmem_core::outcome::KeptReason;
use hetmem_core::port::{InstallStop, TransferError};
use hetmem_core::units::{PageRange, VirtAddr};

use super::{Memory, Model};

/// A kind of call that can fail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum StepKind {
    TakeOut,
    Install,
    ZeroFill,
    CopyIn,
    CopyOut,
    HostCopy,
    RemovalIsOver,
    Discard,
    OpenPlaces,
    Trapped,
    MappingFrom,
    Presence,
    FaultIn,
    /// Before a block is laid.
    Lay,
    /// Before a block is lifted.
    Lift,
    /// Before memory stands in for a file's mapping.
    StandIn,
    /// Before a file is mapped again.
    MapFile,
    ReadFile,
    /// After any of these, with the slots as they were.
    Exchanged,
}

/// Why the kernel may refuse to take a page out.
const TAKE_REASONS: [KeptReason; 7] = [
    KeptReason::Pinned,
    KeptReason::Shared,
    KeptReason::Locked,
    KeptReason::Raced,
    KeptReason::NoMemory,
    KeptReason::ForeignUserfaultfd,
    KeptReason::Unsupported,
];
/// Why touches of a mapping may not be trapped.
const TRAP_REASONS: [KeptReason; 3] = [KeptReason::ForeignUserfaultfd, KeptReason::Unsupported, KeptReason::NoMemory];
/// Why a block may be neither laid nor lifted.
const EXCHANGE_REASONS: [KeptReason; 2] = [KeptReason::NoMemory, KeptReason::Unsupported];
const INSTALL_STOPS: [InstallStop; 3] = [InstallStop::EventsPending, InstallStop::NoMemory, InstallStop::Refused];

/// How much of a call is done before it fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Done {
    /// Nothing, and the reason holds for one page.
    None,
    /// Nothing, and the reason holds for all pages.
    NoneAtAll,
    /// The first half.
    Half,
}

/// What a failing step says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    Take(KeptReason, Done),
    Install(InstallStop, Done),
    Device(TransferError),
    NotOver,
    /// The first page can't be trapped.
    NotTrapped(KeptReason),
    /// Only the first page is.
    TrappedOne,
    /// A touch ends in a signal.
    Fault,
    /// The block is as it was.
    NotExchanged(KeptReason),
    /// There was an error.
    NotRead,
    /// Pages stay, or the process may have no more memory.
    Refused,
}

impl StepKind {
    /// Every way in which a call of this kind can fail.
    pub(crate) fn failures(self) -> Vec<Failure> {
        match self {
            Self::TakeOut => [Done::None, Done::NoneAtAll, Done::Half]
                .into_iter()
                .flat_map(|done| TAKE_REASONS.map(|reason| Failure::Take(reason, done)))
                .chain([Done::None, Done::Half].map(|done| Failure::Take(KeptReason::Occupied, done)))
                .collect(),
            Self::Install => [Done::None, Done::Half]
                .into_iter()
                .flat_map(|done| INSTALL_STOPS.map(|stop| Failure::Install(stop, done)))
                .collect(),
            Self::ZeroFill => INSTALL_STOPS.map(|stop| Failure::Install(stop, Done::None)).to_vec(),
            Self::CopyIn => {
                [TransferError::Transient, TransferError::Full, TransferError::Lost].map(Failure::Device).to_vec()
            }
            // What is lost for good is a test of its own.
            Self::CopyOut => vec![Failure::Device(TransferError::Transient)],
            Self::HostCopy | Self::MappingFrom | Self::Presence | Self::Exchanged => Vec::new(),
            Self::Discard | Self::OpenPlaces => vec![Failure::Refused],
            Self::ReadFile => vec![Failure::NotRead],
            Self::Lay | Self::Lift | Self::StandIn | Self::MapFile => {
                EXCHANGE_REASONS.map(Failure::NotExchanged).to_vec()
            }
            Self::FaultIn => vec![Failure::Fault],
            Self::RemovalIsOver => vec![Failure::NotOver],
            Self::Trapped => TRAP_REASONS.map(Failure::NotTrapped).into_iter().chain([Failure::TrappedOne]).collect(),
        }
    }

    /// Whether the engine holds no lock during such a call, so that events are read and faults served meanwhile.
    const fn is_unlocked(self) -> bool {
        match self {
            Self::CopyIn | Self::CopyOut | Self::HostCopy | Self::Discard => true,
            Self::MappingFrom | Self::Presence | Self::FaultIn | Self::Lay | Self::Lift | Self::Exchanged => true,
            Self::StandIn | Self::MapFile => true,
            // Bytes are read to fill a touched hole, too.
            Self::ReadFile => false,
            Self::TakeOut | Self::Install | Self::ZeroFill | Self::RemovalIsOver | Self::Trapped | Self::OpenPlaces => {
                false
            }
        }
    }
}

/// What the program does while the engine is in a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    Unmap(PageRange),
    /// Unmaps and maps anew, with nobody told yet.
    Replace(PageRange),
    Remap(PageRange, VirtAddr),
    /// There and back again.
    RemapBack(PageRange, VirtAddr),
    Remove(PageRange),
    /// The same, announced so late that the next block is laid or lifted first.
    RemoveLate(PageRange),
    /// Carries out the removals that were announced.
    Zap,
    Touch(VirtAddr),
    /// Touches the page, and writes if it need not wait.
    Write(VirtAddr),
    Fork(PageRange),
    /// Installs guard markers, with nobody told.
    Guard(PageRange),
    /// Removes them, if the call leaves the gate to who wants it alone.
    Unguard(PageRange),
    Protect(PageRange),
    /// Ends the management of what is home, if the call leaves the gate to who wants it alone.
    EndManagement(PageRange),
    /// Another thread of hetmem migrates, if the call leaves it the locks.
    Migrate(PageRange, Target),
    /// The handler thread reads events and serves faults, if the call leaves it the locks.
    Handle,
}

/// Random failures, from a seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chaos {
    /// Any number.
    pub(crate) seed: u64,
    /// One step in so many fails.
    pub(crate) one_in: u64,
}

/// Which steps fail, and when the program acts.
#[derive(Default)]
pub(crate) struct Injector {
    /// Steps so far.
    pub(crate) kinds: Vec<StepKind>,
    /// The step to fail, how, and how many more of its kind fail after it.
    pub(crate) fail_at: Option<(usize, Failure, usize)>,
    pub(crate) chaos: Option<Chaos>,
    /// What the program does at which step.
    pub(crate) script: Vec<(usize, Action)>,
}

impl Injector {
    fn failure(&mut self, kind: StepKind) -> Option<Failure> {
        let step = self.kinds.len() - 1;
        if let Some((at, failure, more)) = &mut self.fail_at {
            let again = step > *at && self.kinds[*at] == kind && *more > 0;
            *more -= usize::from(again);
            return (step == *at || again).then_some(*failure);
        }
        let chaos = self.chaos.as_mut()?;
        // Knuth's generator; the high bits are the good ones.
        chaos.seed = chaos.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let dice = chaos.seed >> 33;
        let failures = kind.failures();
        (dice.is_multiple_of(chaos.one_in) && !failures.is_empty())
            .then(|| failures[(dice / chaos.one_in) as usize % failures.len()])
    }
}

impl Model {
    /// Begins a call of the host or of a device: lets the program act, then says how the call must fail, if it must.
    pub(crate) fn step(&self, kind: StepKind) -> Option<Failure> {
        let actions: Vec<Action> = {
            let mut memory = self.lock();
            memory.inject.kinds.push(kind);
            let step = memory.inject.kinds.len() - 1;
            memory.inject.script.iter().filter(|(at, _)| *at == step).map(|(_, action)| *action).collect()
        };
        let failure = self.lock().inject.failure(kind);
        for action in actions {
            self.act(action, kind.is_unlocked() && !self.lock().delivering);
        }
        failure
    }

    /// Carries out what the script says. With `unlocked`, events may be read and faults served.
    pub(crate) fn act(&self, action: Action, unlocked: bool) {
        match action {
            Action::Unmap(range) => self.unmap(range),
            Action::Replace(range) => {
                self.unmap(range);
                self.map(range, false);
                for page in range.iter() {
                    self.write_present(page);
                }
            }
            Action::Remap(from, to) => self.remap(from, to),
            Action::RemapBack(from, to) => {
                self.remap(from, to);
                if unlocked {
                    self.deliver();
                }
                self.remap(pages_at(to, from), from.start());
            }
            Action::Remove(range) => self.remove(range),
            Action::RemoveLate(range) => self.remove_late(range),
            Action::Zap => self.zap_all(),
            Action::Touch(page) | Action::Write(page) => self.begin_touch(page),
            Action::Fork(within) => self.fork(within),
            Action::Guard(range) => self.guard(range),
            Action::Unguard(range) if unlocked => self.unguard(range),
            Action::Protect(range) => self.protect(range, true),
            Action::Migrate(range, target) if unlocked => {
                let _ = self.engine().migrate(range, Request::all_to(target));
            }
            Action::EndManagement(range) if unlocked => {
                let _ = self.engine().end_management(range);
            }
            Action::Migrate(..) | Action::Unguard(_) | Action::EndManagement(_) | Action::Handle => {}
        }
        if unlocked && matches!(action, Action::Handle | Action::Touch(_) | Action::Write(_)) {
            self.deliver();
            self.serve(true);
        }
        if let Action::Write(page) = action {
            self.write_present(page);
        }
    }
}

fn pages_at(start: VirtAddr, like: PageRange) -> PageRange {
    PageRange::new(start, like.pages()).expect("a range of the test is valid")
}

impl Memory {
    /// Steps taken so far.
    pub(crate) fn steps(&self) -> &[StepKind] {
        &self.inject.kinds
    }

    /// Forgets all steps and plans.
    pub(crate) fn calm(&mut self) {
        self.inject = Injector::default();
    }

    pub(crate) fn fail_at(&mut self, step: usize, failure: Failure, more: usize) {
        self.inject.fail_at = Some((step, failure, more));
    }

    pub(crate) fn set_chaos(&mut self, chaos: Option<Chaos>) {
        self.inject.chaos = chaos;
    }

    /// Whether the program has something left to do at a step to come.
    pub(crate) fn has_plans(&self) -> bool {
        self.inject.script.iter().any(|(at, _)| *at >= self.inject.kinds.len())
    }

    pub(crate) fn at_step(&mut self, step: usize, action: Action) {
        self.inject.script.push((step, action));
    }
}

//! What the worker says of this process to the others of the run, with which it shares the limit, and what it is told ([`super::budget`]).
//!
//! What a forked child shares with its parent is counted once, by the parent, as long as that lives: the child counts only pages that nobody else maps
//! ([`Managed::count_own`]). After its end each that has them counts them.

use std::time::{Duration, Instant};

use hetmem_core::policy::Signs;
use hetmem_core::units::PageCount;
use hetmem_sys::thread::{process_time, processor_time};

use super::budget::{Budget, Membership, Need, Part};
use hetmem::for_agent::{Managed, Others};

/// Who has less than one part of so many of the limit is believed without a count.
const LITTLE: u64 = 16;
/// What a program computes at least that changes anything.
const BUSY: Duration = Duration::from_millis(1);
/// After as long without that all that the program has is cold.
const ASLEEP: Duration = Duration::from_secs(1);

/// This process among those of the run.
pub(super) struct Sharing<'a> {
    managed: &'a Managed,
    budget: Budget,
    /// The process that it was forked from, while that lives.
    parent: Option<Membership>,
    /// What the program had of processors when it was last asked whether it has run.
    ran: Duration,
    /// What it had, and when, when it was last seen to have done something.
    awake: (Duration, Instant),
}

impl<'a> Sharing<'a> {
    pub(super) fn new(managed: &'a Managed, part: Part, parent: Option<Membership>) -> Self {
        Self {
            managed,
            budget: Budget::new(part),
            parent,
            ran: Duration::ZERO,
            awake: (Duration::ZERO, Instant::now()),
        }
    }

    /// What becomes of pages that other processes map as well: they stay, if the policy goes by a limit that is shared.
    pub(super) const fn others(&self) -> Others {
        if self.budget.was_asked() { Others::Leave } else { Others::Copy }
    }

    /// Whether it is a child that leaves to its parent what they share.
    pub(super) const fn is_apart(&self) -> bool {
        self.parent.is_some()
    }

    /// Whether the program has computed anything since this was asked last: nothing else shows that pages which were shared are its own now.
    pub(super) fn has_run(&mut self) -> bool {
        let ran = time_of_program();
        let has_run = ran.saturating_sub(self.ran) >= BUSY;
        if has_run {
            self.ran = ran;
        }
        has_run
    }

    /// Whether the program has computed nothing for a while.
    fn is_asleep(&mut self) -> bool {
        let (ran, now) = (time_of_program(), Instant::now());
        if ran.saturating_sub(self.awake.0) >= BUSY {
            self.awake = (ran, now);
        }
        now.saturating_duration_since(self.awake.1) >= ASLEEP
    }

    /// Whether it was such a child until now.
    pub(super) fn parent_has_ended(&mut self) -> bool {
        self.parent.take_if(|parent| !parent.is_alive()).is_some()
    }

    /// Whether it matters to anybody how much of system memory this process holds.
    pub(super) fn decides(&self, limit: PageCount, signs: Signs) -> bool {
        signs.anonymous.get() > limit.get() / LITTLE && self.budget.is_shared()
    }

    /// What this process, which holds `held` pages of system memory, may hold of the run's `limit`.
    pub(super) fn share(&mut self, limit: PageCount, held: PageCount, signs: Signs) -> PageCount {
        let wanted = held + self.managed.on_devices();
        let cold = if self.is_asleep() { wanted } else { PageCount::ZERO };
        let share = self.budget.share(limit, Need { held, wanted, cold }, signs.faults);
        self.managed.limit_stock(share, limit);
        share
    }
}

/// What the program has had of processors.
fn time_of_program() -> Duration {
    process_time().saturating_sub(processor_time())
}

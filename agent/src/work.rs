//! The agent's worker: carries out the policy, keeps house, and does what the program's threads ask for between two moves.

use std::time::Instant;

use hetmem_core::policy::Signs;

use super::advice::Advised;
use super::executor::{Executor, Pace};
use super::housekeeping::Housekeeping;
use super::pace::{Nap, SHORTEST};
use super::sharing::Sharing;
use super::start::Agent;
use super::supervised::Supervised;

/// Why the worker has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Departure {
    /// The agent leaves: everything is home.
    Asked,
    /// The program has no thread left; its first has ended so, as `wait(2)` would say it.
    Alone(i32),
}

/// Runs until the agent leaves, or the program has no thread left.
pub(super) fn run(agent: &Agent) -> Departure {
    let (managed, mailbox) = (&agent.managed, &agent.mailbox);
    let policy = agent.policy.make().expect("a configuration that was read has a policy that can be made");
    let sharing = agent.run.map(|part| Sharing::new(managed, part, agent.parent));
    let mut executor = Executor::new(policy, agent.heat, managed, &agent.memory, sharing);
    let mut house = Housekeeping::new(managed, &agent.stacks);
    let mut supervised = Supervised::new(agent.seat, agent.parent);
    let mut advised = Advised::default();
    let mut nap = Nap::new();
    // What the program showed last.
    let mut last = Signs::default();
    // When it was looked whether there is a program still.
    let mut rested = Instant::now();
    loop {
        if mailbox.answer(managed, &agent.memory, &mut house, &mut advised) {
            return Departure::Asked;
        }
        if let Some(limit) = supervised.new_limit() {
            executor.set_limit(limit);
        }
        managed.probe();
        let attended = supervised.attend(managed, &mut house, &mut advised);
        if executor.wants_a_look().unwrap_or_else(|| house.is_due()) {
            if let Some(status) = managed.ended_but(agent.threads()) {
                return Departure::Alone(status);
            }
            executor.set_ranges(house.look());
        }
        if let Some(ranges) = advised.take_found() {
            executor.set_ranges(ranges);
        }
        executor.set_advice(advised.times());
        let brought = advised.bring_some(managed);
        let pace = executor.step(|| !mailbox.is_empty() || supervised.is_asked());
        let again = executor.again_within();
        if pace == Pace::Rest && !brought {
            if let Some(again) = again.filter(|again| *again < SHORTEST && rested.elapsed() < SHORTEST) {
                mailbox.wait(again);
                continue;
            }
            rested = Instant::now();
            if let Some(status) = managed.ended_but(agent.threads()) {
                return Departure::Alone(status);
            }
            let signs = executor.signs();
            let busy = signs != last;
            last = signs;
            if busy {
                house.program_was_busy();
            }
            // Who asks has often more to ask.
            let within = nap.next(busy || attended);
            mailbox.wait(again.map_or(within, |again| again.min(within)));
        }
    }
}

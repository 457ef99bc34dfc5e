//! Policies: which pages go where, and when.
//!
//! A policy is shown what there is ([`View`]) and plans what is to move ([`Plan`]); only migration acts. None of them knows an operating system, a
//! clock or a thread, so what they decide can be tested, and run again, without a program.
//!
//! ```text
//! mechanism                              policy
//! ---------                              ------
//! plan(view, plan) ────────────────────► asks the view for as much as it needs
//!                  ◄──────────────────── moves, the most urgent first, until the plan has no room
//! carries them out, one by one,
//! until something is more urgent
//! plan(view, plan) ────────────────────► what has moved, and what was left, is in the plan
//!                  ◄──────────────────── nothing: the mechanism rests, until it has been a while,
//!                                        or the program shows a sign
//! ```
//!
//! | module | what |
//! | --- | --- |
//! | `manual`, `limit`, `clock`, `chaos` | the policies, each in a file |
//! | `registry` | their table: name, argument, help |
//! | `view`, `plan` | what a policy sees, and what it says |
//! | `resident` | how many pages are in system memory, between two counts |
//! | `hand` | what goes round the managed memory |
//! | `random` | random numbers |

mod chaos;
mod clock;
mod hand;
mod limit;
mod manual;
#[cfg(test)]
mod model;
mod plan;
mod random;
mod registry;
mod resident;
mod view;

use std::fmt;

pub use plan::{Act, Move, Plan};
pub use random::Random;
pub use registry::{Argument, Entry, POLICIES, PolicyError, PolicySpec, with_limit};
pub use resident::Resident;
pub use view::{DeviceState, Signs, Turnover, View};

/// Decides what moves.
pub trait Policy: fmt::Debug + Send {
    /// Says what is to move now, the most urgent first, by adding it to `plan`. Who adds nothing is asked again when the mechanism has rested, so
    /// whatever is asked of `view` until it is known that nothing is to be done is asked all the time.
    ///
    /// What is in the plan already was not carried out when it was planned before, as something else was more urgent; it may be kept, or cleared.
    fn plan(&mut self, view: &mut dyn View, plan: &mut Plan);

    /// Its argument, as it is written on the command line, if it has one.
    fn argument(&self) -> Option<String> {
        None
    }

    /// Plans that are carried out without a rest after which the program's mappings are looked at again, whatever that costs; `None` if they are
    /// looked at as often as costs nothing that shows.
    fn plans_a_look(&self) -> Option<u32> {
        None
    }

    /// Whether memory is turned over for nothing, as far as it knows: what leaves is wanted again at once, whatever leaves.
    fn is_thrashing(&self) -> bool {
        false
    }

    /// Whether files' mappings are among the ranges that it is shown. Pages of those are taken as no samples.
    fn takes_files(&self) -> bool {
        true
    }
}

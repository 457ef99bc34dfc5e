//! The agent: what runs inside a program that `hetmem run` started.
//!
//! ```text
//! start      two threads on stacks of their own, with descriptors of their own
//! adopt      finds the program's memory
//! work       the thread that migrates: policies, and what the program's threads ask for
//! config     what `hetmem run` asks of the agent
//! ledger     the statistics memory shared with `hetmem run`
//! ```
//!
//! The agent must not touch memory that may be away while it holds a lock that a fault needs, and its handler thread must never touch
//! any. So its allocator, its stacks and its arenas are set aside ([`hetmem_sys::mapping::set_aside`]), its threads block
//! all signals, and what thread-local storage of theirs lies on the program's heap is excluded from migration.

mod adopt;
pub mod config;
pub mod ledger;
mod removal;
mod start;
mod work;

pub use removal::{at_home, guard, look_for_guards};
pub use start::{
    after_fork_in_child, after_fork_in_parent, before_fork, is_running, keep_in_place, last_word, protect_thread,
    release_range, start, undivided,
};

//! The agent: what runs inside a program that `hetmem run` started.
//!
//! ```text
//! start      two threads on stacks of their own, with descriptors of their own: how they begin, leave, and come back
//! calls      what the program's threads ask
//! adopt      finds the program's memory
//! work       the thread that migrates: what the program's threads ask for, and the policy
//! pace       when it looks at what
//! ends       how its last thread has ended
//! removal    removals that userfaultfd does not tell of
//! dump       everything home before a core dump
//! config     what `hetmem run` asks of the agent
//! ledger     the statistics memory shared with `hetmem run`
//! ```
//!
//! The agent must not touch memory that may be away while it holds a lock that a fault needs, and its handler thread must never touch
//! any. So its allocator, its stacks and its arenas are set aside ([`hetmem_sys::mapping::set_aside`]), and its threads, which block all signals,
//! have thread-local storage of their own.

mod adopt;
mod calls;
pub mod config;
pub mod dump;
mod ends;
pub mod ledger;
mod pace;
mod removal;
mod start;
mod work;

pub use calls::{
    after_fork_in_parent, all_home, before_fork, begin_thread, is_running, keep_at_home, keep_in_place, let_go,
    protect_thread, release_range, residency, thread_began, undisturbed, undivided,
};
pub use ends::{thread_exits, thread_is_strict};
pub use removal::{guard, look_for_guards, removal_returned};
pub use start::{Away, after_fork_in_child, is_first, is_this_process, last_word, leave, note, start, start_again};

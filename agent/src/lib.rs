//! The agent: what runs inside a program that `hetmem run` started.
//!
//! ```text
//! start         two threads on stacks of their own, with descriptors of their own: how they begin, leave, and come back
//! presence      whether there is an agent, and who uses it
//! calls         what the program's threads ask
//! advice        what they say of the use of the program's memory
//! mailbox       what of that the worker does, between two moves
//! work          the worker: the thread that migrates
//! sharing       what it says to the other processes of the run, which share a limit
//! executor      shows the policy the program, and carries out what it plans
//! housekeeping  looks at mappings, stacks, strays
//! adopt         finds the program's memory
//! files         files that it maps, and the thread that looks after leases on them
//! pace          when it is looked at what
//! ends          how its last thread has ended
//! dump          everything home before a core dump
//! removal       removals that userfaultfd does not tell of
//! config        what `hetmem run` asks of the agent
//! recording     the memory through which records reach `hetmem run`
//! ledger        the statistics memory shared with `hetmem run`
//! budget        the part of it in which processes share the run's limit, and frames of devices
//! requests      the part of it by which `hetmem run` asks one process, and the answer
//! supervised    what the worker does of that
//! notes         lines left there for `hetmem run`
//! ```
//!
//! The agent must not touch memory that may be away while it holds a lock that a fault needs, and its handler thread must never touch
//! any. So its allocator, its stacks and its arenas are set aside ([`hetmem_sys::mapping::set_aside`]), and its threads, which block all signals,
//! have thread-local storage of their own.

mod adopt;
mod advice;
mod budget;
mod calls;
pub mod config;
pub mod dump;
mod ends;
mod executor;
mod files;
mod housekeeping;
pub mod ledger;
mod mailbox;
mod notes;
mod pace;
mod presence;
pub mod recording;
mod removal;
pub mod requests;
mod sharing;
mod start;
mod supervised;
mod work;

pub use advice::{advise, discard};
pub use calls::{
    after_fork_in_parent, all_home, before_fork, begin_thread, is_running, keep_at_home, keep_in_place, let_go, places,
    protect_thread, release_range, residency, thread_began, undisturbed, undivided,
};
pub use ends::{thread_exits, thread_is_strict};
pub use files::{file_mapped, give_all_files_up, give_files_up, have_files_home, manages_files, takes_files};
pub use notes::{is_first, is_this_process, last_word, note};
pub use removal::{guard, look_for_guards, removal_returned};
pub use start::{Away, after_fork_in_child, leave, start, start_again};

/// The examples of the tutorial, which are tested as those of the documentation are. Here, as what is published comes without the tutorial.
#[cfg(doctest)]
#[doc = include_str!("../../docs/hmm.md")]
mod tutorial {}

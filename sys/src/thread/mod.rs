//! Threads that live inside a foreign program without disturbing it, and how they wait.
//!
//! An agent's thread is one of which the C library knows nothing ([`Stack`]). It runs in hetmem's own memory, with all signals blocked (so that no
//! handler of the program ever runs on it), with a descriptor table of its own, so that the program neither sees nor closes what the agent has
//! open, and with no privilege that it does not need ([`give_up_privileges`], [`confine`]).
//!
//! ```text
//! spawn       clone(2) of such a thread
//! tls         what is behind its thread pointer
//! privilege   what it gives up
//! processors  where they run
//! slice       how soon they run
//! lease       what is one thread's until it has ended
//! tasks       which threads the process has, and what they are at
//! wait        futexes, sleeps, numbers of threads
//! ```

mod lease;
mod privilege;
mod processors;
mod slice;
mod spawn;
mod tasks;
mod tls;
mod wait;

pub use lease::Lease;
pub use privilege::{OF_LEASES, confine, give_up_privileges, is_dumpable, unused_id};
pub use processors::Processors;
pub use slice::ask_for_short_slices;
pub use spawn::{Stack, next_symbol, unshare_directories, unshare_files};
pub use tasks::Tasks;
pub use tls::control_block;
pub use wait::{
    backoff_sleep, current_tid, futex_wait, futex_wake, process_time, processor_time, thread_exists, time_since_boot,
    yield_now,
};

//! Threads that live inside a foreign program without disturbing it, and how they wait.
//!
//! An agent's thread runs on a stack in hetmem's own memory, with all signals blocked (so that no handler of the
//! program ever runs on it), and with a descriptor table of its own, so that the program neither sees nor closes what
//! the agent has open.

mod spawn;
mod tasks;
mod tcb;
mod wait;

pub use spawn::{next_symbol, spawn_on, unshare_files};
pub use tasks::{is_outside, threads};
pub use tcb::dtv_extent;
pub use wait::{backoff_sleep, current_tid, futex_wait, futex_wake, thread_exists, yield_now};

//! Memory of hetmem's own, and advice on memory of others.
//!
//! * [`Arena`]: anonymous private memory between two guard pages, for frames, stacks and transit windows.
//! * [`SharedMemory`]: a file in memory that several processes map, for counters.
//! * [`map_again_over`], [`Spare`]: mappings that take the place of others.
//! * [`populate_read`], [`populate_write`] and [`discard`]: make pages present, or drop them, in any range of this process.

mod advice;
mod arena;
mod exchange;
mod query;
mod set_aside;
mod shared;

pub use advice::{Guard, discard, forbid_huge_pages, guard, populate_read, populate_write};
pub use arena::{Arena, ArenaOptions, HugePages, OnFork, Prefault, Whose};
pub use exchange::{Spare, map_again_over};
pub use query::is_mapped;
pub use set_aside::{forget_omitted, set_aside};
pub use shared::{SharedLayout, SharedMemory};

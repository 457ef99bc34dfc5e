//! Memory of hetmem's own, and advice on memory of others.
//!
//! * [`Arena`]: anonymous private memory between two guard pages, for frames, stacks and transit windows.
//! * [`ByteArena`]: the same, read and written by offset.
//! * [`SharedMemory`]: a file in memory that several processes map, for counters.
//! * [`wiped_on_fork`]: words that no forked child inherits.
//! * [`map_again_over`], [`Spare`]: mappings that take the place of others.
//! * [`populate_read`], [`populate_write`] and [`discard`]: make pages present, or drop them, in any range of this process.

mod advice;
mod arena;
mod bytes;
mod exchange;
mod query;
mod set_aside;
mod shared;
mod wiped;

pub use advice::{
    Guard, discard, discard_locked_too, forbid_huge_pages, guard, is_locked, keep_to_this_process, page_out,
    populate_huge, populate_read, populate_write, split_huge,
};
pub use arena::{Access, Arena, ArenaOptions, HugePages, OnDump, OnFork, Prefault, Whose, allow_access};
pub use bytes::ByteArena;
pub use exchange::{Spare, map_again_over, map_once_more, map_once_more_over};
pub use query::{is_mapped, resident};
pub use set_aside::{forget_omitted, set_aside, unlock_set_aside};
pub use shared::{SharedLayout, SharedMemory};
pub use wiped::wiped_on_fork;

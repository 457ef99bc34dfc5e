//! Frames: places for one page each, of a device or of the pool of system pages.
//!
//! | file | what |
//! | --- | --- |
//! | `descriptor` | who refers to a frame ([`FrameDescriptor`]) |
//! | `table` | a device's frames, and which are free ([`FrameTable`]) |
//! | `refs` | references that are let go of when they are dropped (`FrameRefs`) |
//! | `pool` | the same of the pool of system pages ([`SystemPool`]) |
//! | `references` | how many refer to a place of the pool: it needs no other descriptor |
//! | `run_set` | the free ones, handed out by runs ([`RunSet`], [`FrameRun`]), huge pages and what pages leave behind in mind |
//! | `quota` | what a process may have of frames that several processes count together ([`Quota`]) |
//! | `clearing` | what is taken out of such a set to be cleared |

mod clearing;
mod descriptor;
mod pool;
mod quota;
mod references;
mod refs;
mod run;
mod run_set;
mod table;

pub use descriptor::FrameDescriptor;
pub use pool::{FAULT_RESERVE, Keep, PoolSize, Purpose, SystemPool};
pub use quota::Quota;
pub use references::{References, Released};
pub(crate) use refs::{FrameRefs, Frames, Leaving, Left, restate};
pub use run::FrameRun;
pub use run_set::RunSet;
pub use table::FrameTable;

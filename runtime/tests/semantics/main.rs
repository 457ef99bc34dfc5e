//! The kernel's tables of heterogeneous memory, row by row, on real memory: what `migrate_vma`, `hmm_range_fault`, the interval notifiers and
//! exclusive access do with each kind of page, for private and coherent devices, with and without huge pages.
//!
//! | module | the kernel's |
//! | --- | --- |
//! | `collect` | `migrate_vma_setup`: which pages a request takes |
//! | `migrate` | `migrate_vma_pages`, `_finalize`, `migrate_device_range`: what becomes of those it took |
//! | `range_fault` | `hmm_range_fault`, on memory of the program |
//! | `device_frames` | the same, on pages of devices |
//! | `events` | `mmu_interval_notifier` |
//! | `exclusive` | `make_device_exclusive` |
//!
//! What happens in a fork is in `semantics_fork`, since a fork is one of the whole process. SPECIFICATION.md names the rows that user
//! space can't do.
#![expect(unsafe_code, reason = "tests map and touch memory by address")]
#![expect(clippy::print_stderr, reason = "a row that can't run here says so")]

#[path = "../common/mod.rs"]
mod common;

mod case;
mod collect;
mod device_frames;
mod events;
mod exclusive;
mod mappings;
mod migrate;
mod range_fault;

//! The C interface: what `include/hetmem.h` declares, on top of the crate `hetmem`.
//!
//! ```text
//! pointers     what C hands in, checked: handles, texts, arrays, places for results
//! failure      the error object
//! config       hetmem_config_*: devices as texts, the stock, SIGBUS
//! instance     hetmem_runtime_*: a runtime and its devices
//! memory       mapping, adopting, releasing, advice, residency
//! migration    hetmem_migrate and hetmem_migrate_all
//! eviction     pages home by frame, and devices taken out of use
//! mirror       subscriptions, their notices, hetmem_range_fault
//! statistics   the counters
//! version      the library's own
//! ```
//!
//! The header is written by hand and is the documentation; a function here says only what the header doesn't. Each function checks all
//! that can be checked of its arguments before it changes anything, and gives back a [`failure::Failure`] or null.
//!
//! **No panic crosses.** A panic inside an `extern "C"` function ends the process, with a message, and never unwinds into C. That none
//! is reached is a matter of the arguments: a null or misaligned pointer is refused (`pointers`); a range is made by
//! `PageRange::new` from checked numbers and lies below [`memory::ADDRESS_LIMIT`], so that no sum of addresses overflows; numbers that
//! stand for a choice are matched, with a refusal for the rest; devices are looked up before their number is used; long ranges are
//! worked on a GiB at a time, so that the library's own heap is not exhausted by a caller's numbers.
//!
//! *Limits:* a pointer that is neither null nor valid can't be told from a good one. A program that runs under `hetmem run` gets no
//! runtime of its own: its memory is managed by the agent.

mod config;
mod eviction;
mod failure;
mod instance;
mod memory;
mod migration;
mod mirror;
mod pointers;
mod statistics;
mod version;

//! The only floor of hetmem with system calls: userfaultfd, mappings, page maps, threads, signals.
//!
//! Each module puts one kernel interface into Rust shape and decides nothing: an errno is returned as it came, and the
//! floors above turn it into an outcome. Everything that the agent inside a foreign program calls while pages of that
//! program may be away obeys one rule: **raw system calls only** (rustix's `linux_raw` backend, or `raw.rs` where
//! rustix has no wrapper). No allocation, no thread-local storage, no `errno`, no C symbol that a preloaded library
//! may replace.
//!
//! ```text
//! uffd     userfaultfd: open, register, take pages out and put them in, events
//! mapping  arenas of anonymous memory, memory shared between processes
//! pagemap  which pages are there, and of which kind
//! maps     which mappings there are
//! numa     which node pages are on, and on which they are to be
//! procmap  which mapping is at an address
//! access   loads, stores and copies beside other threads
//! copy     page copies that race with nobody
//! dax      memory that is a character device
//! lease    files that are mapped, and leases on them
//! scratch  unnamed files on a disk, read and written past the page cache
//! aio      reads and writes that end later
//! process  this process: its limits, its signals, its end
//! room     how much memory there is left
//! timer    a timer that is a descriptor
//! thread   threads on given stacks, with signals blocked and descriptors of their own; futexes
//! raw      system calls by number
//! flags    sets of flags
//! errno    error numbers, by name
//! fatal    signals that end the process with a core dump
//! sigbus   the handler for faults that are reported as signals
//! probe    what this kernel and this process can do
//! yardstick  what measurements compare hetmem with
//! ```
//!
//! *Limits:* Linux on x86-64 and arm64 with glibc and 4 KiB pages.

#[cfg(not(all(target_os = "linux", target_env = "gnu", target_endian = "little")))]
compile_error!("hetmem runs on Linux with glibc, on little-endian machines");
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("hetmem runs on x86-64 and arm64");

pub mod access;
pub mod aio;
pub mod copy;
pub mod dax;
pub mod errno;
pub mod fatal;
mod flags;
pub mod lease;
pub mod mapping;
pub mod maps;
pub mod numa;
pub mod pagemap;
pub mod probe;
pub mod process;
pub mod procmap;
pub mod raw;
pub mod room;
pub mod scratch;
pub mod sigbus;
pub mod thread;
pub mod timer;
pub mod uffd;
pub mod yardstick;

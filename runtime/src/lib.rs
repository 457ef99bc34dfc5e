//! Heterogeneous memory management (HMM) in user space, for Linux: a program's anonymous pages move between system
//! memory and the memory of devices while the program uses them, and its pointers stay as they are.
//!
//! The kernel does this for drivers (`migrate_vma_setup`, `hmm_range_fault`). This crate does it in a process, with
//! userfaultfd, and needs neither a driver nor a module: a device is memory of a NUMA node, device-DAX memory, or
//! ordinary memory that plays a device.
//!
//! ```
//! use std::sync::atomic::Ordering::Relaxed;
//!
//! use hetmem::{ByteLen, DeviceId, FaultPath, Request, Residency, Runtime, Target};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A private device of 64 MiB.
//! let runtime = Runtime::builder().device("private:emulated,size=64M".parse()?).start()?;
//! let device = DeviceId::new(0);
//!
//! let mapping = runtime.map(ByteLen::new(2 << 20), FaultPath::Thread)?;
//! mapping.words()[0].store(42, Relaxed);
//!
//! // Each page of a request has an outcome. Those that were never written are holes, and kept as such.
//! let outcomes = runtime.migrate(mapping.range(), Request::all_to(Target::Device(device)));
//! assert!(outcomes.moved().get() >= 1);
//! assert_eq!(runtime.residency(mapping.range())[0], Residency::Device(device));
//!
//! // The touch waits until its page is back.
//! assert_eq!(mapping.words()[0].load(Relaxed), 42);
//! assert_eq!(runtime.residency(mapping.range())[0], Residency::System);
//! # Ok(())
//! # }
//! ```
//!
//! # Ideas
//!
//! * A [`Runtime`] has devices, numbered in the order of [`Builder::device`], and the handler thread that serves
//!   touches. Memory is managed once it is mapped by [`Runtime::map`] or handed over by [`Runtime::adopt`], which
//!   is unsafe: whoever adopts memory answers for what else uses it.
//! * Devices are of one of two types. A page on a *coherent* device stays mapped, and the CPU uses it in place. A
//!   page on a *private* one can't be addressed by the CPU: a touch of it waits, and brings the page home. A
//!   device's description says the type: `coherent:node=1`, `private:dax=/dev/dax0.0`, `private:emulated,size=64M`.
//! * A [`Request`] says where pages are to go, and which of them. [`Runtime::migrate`] answers page by page
//!   ([`PageOutcome`]): moved, or kept with the reason ([`KeptReason`]). Threads may use the pages meanwhile.
//! * Touches are served by the handler thread ([`FaultPath::Thread`]), also those of system calls; or by the
//!   touching thread itself, in a handler of SIGBUS ([`FaultPath::Sigbus`], after [`Builder::sigbus`]), which is
//!   faster, and then system calls fail with `EFAULT` on a page that is away.
//! * A device may be the program's own: [`Builder::custom`], with the contract in [`device`].
//! * [`mirror`] tells a device what a range of memory is, page by page, and who else is to know before that
//!   changes; [`accelerator`] is an emulated device that computes through a page table of its own.
//!
//! # Errors
//!
//! An operation that is refused has an [`Error`], whose [`ErrorKind`] says who has to do something: the caller, or
//! the operator of the host. A page that stays is no error, but an outcome. A page whose bytes can't be given back
//! to a touch stops the program with a message: it never reads zeros instead.
//!
//! # What it needs
//!
//! Linux 6.8 or newer on x86-64, 6.10 or newer on arm64, pages of 4 KiB, glibc, and permission for userfaultfd: `CAP_SYS_PTRACE`, the
//! sysctl `vm.unprivileged_userfaultfd=1`, or access to `/dev/userfaultfd`. [`Builder::start`] says what is
//! missing. There are no cargo features: what a host can do is asked when a runtime starts.
#![warn(missing_debug_implementations)]

pub mod accelerator;
mod advice;
mod builder;
mod children;
mod claim;
mod delegate;
pub mod device;
mod error;
mod evict;
mod files;
#[doc(hidden)]
#[expect(missing_debug_implementations, reason = "not for users")]
pub mod for_agent;
mod forks;
mod guards;
mod host;
mod inner;
#[doc(hidden)]
pub mod mappings;
mod memory;
mod migration;
pub mod mirror;
mod mirror_host;
mod overlay;
mod probe;
mod recorder;
mod rest;
mod runtime;
mod service;
mod sigbus;
mod statistics;
mod traps;

pub use builder::Builder;
pub use device::{Device, FrameRun};
pub use error::{Error, ErrorKind};
pub use hetmem_core::advice::Advice;
pub use hetmem_core::engine::Residency;
pub use hetmem_core::migrate::{Request, Select, Target};
pub use hetmem_core::outcome::{KeptReason, Outcomes, PageOutcome};
pub use hetmem_core::physmap::{MemoryType, Owner};
pub use hetmem_core::port::FaultPath;
pub use hetmem_core::units::{
    BLOCK_PAGES, BLOCK_SIZE, BlockNo, ByteLen, DeviceId, FrameIndex, PAGE_SIZE, PageCount, PageRange, Pfn, VirtAddr,
};
pub use hetmem_devices::spec::{DeviceSpec, SpecError};
#[doc(inline)]
pub use hetmem_devices::{kind, spec};
pub use hetmem_sys::mapping::Guard;
pub use memory::{FileMapping, Mapping};
pub use runtime::Runtime;
pub use statistics::{DeviceStatistics, Statistics};

/// The examples of the README, which are tested as those of the documentation are.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

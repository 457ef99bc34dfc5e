#![doc = include_str!("../../README.md")]
#![warn(missing_debug_implementations)]

pub mod accelerator;
mod builder;
mod children;
mod claim;
mod delegate;
pub mod device;
mod error;
mod evict;
mod fast;
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
mod rest;
mod runtime;
mod service;
mod statistics;
mod traps;

pub use builder::Builder;
pub use device::{Device, FrameRun};
pub use error::{Error, ErrorKind};
pub use hetmem_core::engine::Residency;
pub use hetmem_core::migrate::{Request, Select, Target};
pub use hetmem_core::outcome::{KeptReason, Outcomes, PageOutcome};
pub use hetmem_core::physmap::{MemoryType, Owner};
pub use hetmem_core::port::FaultPath;
pub use hetmem_core::units::{
    BLOCK_PAGES, BLOCK_SIZE, BlockNo, ByteLen, DeviceId, FrameIndex, PAGE_SIZE, PageCount, PageRange, VirtAddr,
};
#[doc(inline)]
pub use hetmem_devices::spec;
pub use hetmem_devices::spec::{DeviceSpec, SpecError};
pub use hetmem_sys::mapping::Guard;
pub use memory::{Advice, Mapping};
pub use runtime::Runtime;
pub use statistics::{DeviceStatistics, Statistics};

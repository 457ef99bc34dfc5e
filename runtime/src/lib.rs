#![doc = include_str!("../../README.md")]

pub mod accelerator;
mod children;
mod delegate;
mod error;
mod evict;
mod fast;
#[doc(hidden)]
pub mod for_agent;
mod forks;
mod guards;
mod host;
mod inner;
pub mod mappings;
pub mod mirror;
mod mirror_host;
mod overlay;
mod rest;
mod runtime;
mod service;
mod traps;

pub use error::{Error, ErrorKind};
pub use runtime::{
    Advice, BLOCK, Builder, FaultPath, Guard, KeptReason, Mapping, Outcomes, PageOutcome, Request, Residency, Runtime,
    Select, Target,
};

#![doc = include_str!("../../README.md")]

pub mod accelerator;
pub mod agent;
mod children;
mod claim;
mod delegate;
mod error;
mod evict;
mod fast;
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

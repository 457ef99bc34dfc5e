#![doc = include_str!("../../README.md")]

pub mod agent;
mod error;
mod fast;
mod host;
mod inner;
mod mappings;
mod runtime;
mod service;
mod traps;

pub use error::{Error, ErrorKind};
pub use runtime::{
    Advice, BLOCK, Builder, FaultPath, KeptReason, Mapping, Outcomes, PageOutcome, Request, Residency, Runtime, Select,
    Target,
};

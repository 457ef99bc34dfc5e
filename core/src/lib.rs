//! The decisions of hetmem, with no operating system in them.
#![forbid(unsafe_code)]

pub mod outcome;
pub mod stats;
pub mod sync;
pub mod units;

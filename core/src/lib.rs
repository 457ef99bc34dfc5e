//! The decisions of hetmem, with no operating system in them.
#![forbid(unsafe_code)]

pub mod device_table;
pub mod engine;
pub mod events;
pub mod exchange;
pub mod fault;
pub mod frames;
pub mod heat;
pub mod home;
mod install;
pub mod managed;
pub mod migrate;
pub mod mirror;
pub mod notifier;
pub mod outcome;
pub mod physmap;
pub mod policy;
pub mod port;
pub mod quantity;
pub mod range_map;
pub mod slot;
pub mod space;
pub mod stats;
pub mod strays;
pub mod sync;
mod transfer;
pub mod units;

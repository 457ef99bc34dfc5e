//! The agent: what runs inside a program that `hetmem run` started.

pub mod config;
pub mod ledger;

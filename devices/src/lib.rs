//! Device backends: where device memory comes from.
//!
//! A backend answers [`hetmem_core::port::Device`]: it has a pagemap of frames, and copies pages into them and out of them. Every
//! backend must pass the [`conformance`] suite.

pub mod conformance;
pub mod emulated;
pub mod spec;

pub use emulated::Emulated;

//! Device backends: where device memory comes from.
//!
//! A backend answers [`hetmem_core::port::Device`]: it has a pagemap of frames, and copies pages into them and out of them. Every
//! backend must pass the [`conformance`] suite.

pub mod compressed;
pub mod conformance;
pub mod dax;
pub mod emulated;
pub mod file;
mod frames;
mod injected;
pub mod kind;
pub mod node;
pub mod spec;

pub use compressed::Compressed;
pub use dax::DaxStore;
pub use emulated::Emulated;
pub use file::FileStore;
pub use node::NodeMemory;

//! `libhetmem.so`: the agent that `hetmem run` preloads into programs.
//!
//! ```text
//! allocator    memory for the agent that is never the program's
//! preload      what happens before main(), and the functions put in front of the C library's
//! ```
//!
//! Loaded without `HETMEM_AGENT` in the environment it does nothing.

mod allocator;
mod preload;

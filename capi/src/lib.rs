//! `libhetmem.so`: the agent that `hetmem run` preloads into programs.
//!
//! ```text
//! allocator    memory for the agent that is never the program's
//! divided      moving what a registration has divided
//! preload      what happens before main(), and the functions put in front of the C library's
//! ```
//!
//! Loaded without `HETMEM_AGENT` in the environment it does nothing.

mod allocator;
mod divided;
mod preload;

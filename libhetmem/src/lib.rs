//! `libhetmem.so`: the agent that `hetmem run` preloads into programs, and the C interface of `include/hetmem.h`.
//!
//! ```text
//! api          the C interface
//! preload      what happens before main(), and the functions put in front of the C library's
//! ```
//!
//! Loaded without `HETMEM_AGENT` in the environment it does nothing until a function of the C interface is called.

mod api;
mod preload;

use hetmem_interpose::heap::SetAside;

#[global_allocator]
static ALLOCATOR: SetAside = SetAside::new();

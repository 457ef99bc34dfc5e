//! What the libraries of hetmem that are loaded into other programs have in common: `libhetmem.so` and `libhetmem_dmirror.so`.
//!
//! ```text
//! heap       memory for the library that is never the program's
//! next       the functions that it stands in front of
//! thread     pthread_create, with each thread's stack made known
//! divided    mremap of what a registration has divided
//! errno      the C library's
//! cancel     what may not be unwound through
//! ```
//!
//! *Limits:* glibc.

pub mod cancel;
pub mod divided;
pub mod errno;
pub mod heap;
pub mod next;
pub mod thread;

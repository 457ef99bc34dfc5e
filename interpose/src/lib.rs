//! What the libraries of hetmem that are loaded into other programs have in common: `libhetmem.so` and `libhetmem_dmirror.so`.
//!
//! ```text
//! heap       memory for the library that is never the program's
//! next       the functions that it stands in front of
//! cancel     what may not be unwound through
//! errno      the C library's
//! fork       what is done around a fork
//! thread     pthread_create, with each thread's stack made known
//! divided    mremap of what a registration has divided
//! ```
//!
//! A library defines each interposed function itself, and says in a table which (the headers of `libhetmem/src/preload/mod.rs` and
//! `dmirror/src/interpose/mod.rs`).
//!
//! *Limits:* glibc.

pub mod cancel;
pub mod divided;
pub mod errno;
pub mod fork;
pub mod heap;
pub mod next;
pub mod thread;

//! `libhetmem_dmirror.so`: the kernel's HMM test device (`lib/test_hmm.c` of Linux 6.12) in user space, for programs that it is preloaded into.
//!
//! ```text
//! abi          numbers and layouts of the interface
//! commands     what each ioctl does, on an accelerator of the crate `hetmem`
//! file         an open device; the devices' runtime
//! process      which devices this process has open, who works on them, forks
//! descriptors  which descriptor is an open device's
//! mappings     what the driver asks of the program's mappings
//! memory       the program's buffers
//! stacks       threads' stacks, which stay where they are
//! interpose    open, close, ioctl, mmap and the like, put in front of the C library's
//! ```
//!
//! A program opens `/dev/hmm_dmirror0` to `3`: 0 and 1 are private devices, 2 and 3 coherent. The first open starts a runtime of hetmem's, and the
//! last close ends it; in between the interposed functions announce what the program does to its mappings. Devices are a process's own.
//!
//! **Locks**: [`process`] (the gate, then the open files), then `interpose::memory`'s, then those of `hetmem`. No signal handler of the program
//! runs in a thread that is inside, and no thread's stack is ever away, so that no lock is held by somebody who waits for a page.
//!
//! *Limits:* SPECIFICATION.md says where the answers differ from the kernel's.

mod abi;
mod commands;
mod descriptors;
mod file;
mod interpose;
mod mappings;
mod memory;
mod process;
mod stacks;

use hetmem_interpose::heap::SetAside;

#[global_allocator]
static ALLOCATOR: SetAside = SetAside::new();

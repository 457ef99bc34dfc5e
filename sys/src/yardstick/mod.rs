//! What measurements compare hetmem with: the same work done by the plainest means, with nothing decided and nothing
//! kept in books.
//!
//! ```text
//! Buffer      populated memory, and copies between two of them         the floor of a migration: the best copy
//! PlainMover  UFFDIO_COPY in, copy and MADV_DONTNEED out               what other user-space movers do
//! FaultFloor  handlers that answer each fault with one UFFDIO_COPY      the floor of a fault, on either path
//! SharedWords memory that no policy moves, as it is shared               what a measured program has beside its data
//! Pieces      memory in many mappings                                  what is moved one mapping at a time
//! NodeMover   move_pages(2), mbind(2)                                  the kernel's own migration between nodes
//! heap_bytes  what the C library's allocator has given out             the size of the books
//! ```
//!
//! Memory is lent as `&[AtomicU64]`: its pages come and go under the borrow, and atomic words may change at any time.
//! Copies take their buffers by `&mut`, so that nobody has words of them meanwhile.
//!
//! *Limits:* made for `hetmem bench` and tests; failures end in an errno, and in the handlers in the end of the process.

mod buffer;
mod floor;
mod heap;
mod nodes;
mod pieces;
mod plain;
mod shared;

pub use buffer::{Buffer, CopyRun, CopyWay};
pub use floor::{FaultFloor, FloorPath, SigbusTurn};
pub use heap::heap_bytes;
pub use nodes::{KernelWay, NodeMover, pages_on};
pub use pieces::Pieces;
pub use plain::PlainMover;
pub use shared::SharedWords;

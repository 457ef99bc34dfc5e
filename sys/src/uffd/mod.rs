//! userfaultfd: a range of memory is registered, touches of its missing or write-protected pages wait until somebody
//! resolves them, and pages are moved in and out whole.
//!
//! ```text
//!   program touches a missing page ──► event on the descriptor ──► reader decides ──► move_pages / copy / zeropage
//!          waits ◄───────────────────────────────── woken ◄──────────────────────────────────┘
//! ```
//!
//! Key types: [`Userfaultfd`] (one context), [`Features`], [`Mode`] (what is trapped in a range), [`Progress`] (how far
//! an install came, and what stopped it), [`EventBuffer`] and [`Event`].
//!
//! # What the kernel does, found out by experiment (Linux 6.18; `tests/uffd_*.rs` hold each of them)
//!
//! * MOVE wants its *destination* registered, in whichever mode, with the context of the call. The source may be
//!   registered with another context or with none; moving out of it raises no event there.
//! * MOVE wants both mappings anonymous, writable, with the same access and `mlock` state: else `EINVAL`. A page that
//!   is not exclusively owned (after a fork, until written) or is pinned gives `EBUSY`; a hole in the source `ENOENT`;
//!   a page at the destination `EEXIST`. Zero pages move and stay zero pages. A huge page moves whole, even to where
//!   huge pages are advised against, and is split first where the run holds a part of it.
//! * COPY and ZEROPAGE fill holes of mappings of any protection, in either mode of registration. Both are for any
//!   process; MOVE is for the caller's own.
//! * While an event of the context is unread, installs stop with `EAGAIN` and no progress, and go on doing so until the
//!   thread that caused the event has run again. A REMOVE event comes before the contents go: what is installed
//!   between its being read and the drop itself is dropped too.
//! * `fork(2)` waits for its event to be read with the C library's allocator locked: a reader that allocates at that
//!   moment waits for ever. `posix_spawn(3)` and `vfork(2)` raise no event.
//! * Unregistering, or replacing the mode, wakes nobody who was stopped by write protection.
//!
//! # Safety of installs
//!
//! To the Rust program these calls are stores and loads at addresses given by number. [`Userfaultfd::move_pages`],
//! [`Userfaultfd::copy`], [`Userfaultfd::zeropage`] and [`Userfaultfd::poison`] are therefore `unsafe`; the others only
//! make a toucher wait or go on.

mod abi;
mod events;
mod fd;
mod features;
mod install;

pub use events::{Event, EventBuffer, Events, FaultFlags};
pub use fd::{Access, Fill, Mode, OLDEST, OpenError, Route, Userfaultfd, check_page_size, is_userfaultfd};
pub use features::Features;
/// The number of the `ioctl(2)` by which a program registers a range with a userfaultfd of its own.
pub const REGISTER_REQUEST: u64 = abi::UFFDIO_REGISTER as u64;
/// The number of the one by which it moves pages.
pub const MOVE_REQUEST: u64 = abi::UFFDIO_MOVE as u64;

pub use install::{CopyFlags, MoveFlags, OwnSide, Progress, Wake, WriteProtect, ends_where_nothing_can_be_split};

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
//!   registered with another context or with none.
//! * MOVE wants both mappings anonymous, writable, with the same access and `mlock` state: else `EINVAL`. A page that
//!   is not exclusively owned (after a fork, until written) or is pinned gives `EBUSY`; a hole in the source `ENOENT`;
//!   a page at the destination `EEXIST`.
//! * COPY and ZEROPAGE fill holes of mappings of any protection.
//! * While an event of the context is unread, installs stop with `EAGAIN`: read, then go on.
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
pub use fd::{Access, Mode, OpenError, Route, Userfaultfd};
pub use features::Features;
pub use install::{CopyFlags, MoveFlags, Progress, Wake, WriteProtect};

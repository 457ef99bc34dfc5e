//! A model of a program's memory and of devices, to drive the real engine without an operating system.
//!
//! A page's content is a [`Token`]. The model keeps the program's pages, hetmem's own memory (the pool and the coherent devices' arenas)
//! and the private devices' frames, and answers [`hetmem_core::port::Host`] and [`hetmem_core::port::Device`] over them as
//! the kernel does. Beside them it keeps the *truth*: which contents the program may read at each address, by what the
//! program itself did. Whatever the engine does, a read must agree with the truth.
//!
//! ```text
//! the test ── program.rs: write, read, unmap, remap, remove, fork ──> pages, truth, queue of events
//!    │                                                                      ^
//!    └── engine.migrate() ── host.rs, device.rs: take out, copy, put in ────┘
//!                                └── inject.rs: each call is a numbered step, which may fail or let the program act
//! ```
//!
//! The model insists on what the kernel would not forgive: a hole is never read or moved in, a page is never taken out of memory
//! that nobody watches, a toucher that waits is woken.
//!
//! *Limits:* an unmapping, a remapping or a removal is one event of one context.

#![allow(clippy::cast_possible_truncation, reason = "the numbers here are small")]

mod device;
mod file;
mod host;
mod inject;
mod lay;
mod mirror;
mod program;
mod threads;
mod world;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, Weak};

use hetmem_core::engine::Engine;
use hetmem_core::outcome::KeptReason;
use hetmem_core::port::Transfer;
use hetmem_core::units::{PAGE_SIZE, PageCount, PageRange, VirtAddr};

pub(crate) use device::ModelDevice;
pub(crate) use inject::{Action, Chaos, Done, Failure, StepKind};
pub(crate) use mirror::Answer;
pub(crate) use world::{COHERENT, COHERENT_B, OVERLAY, OVERLAY_B, OWNED, PRIVATE, PRIVATE_B, World};

/// What a page holds. No two writes of a test write the same one.
pub(crate) type Token = u64;
/// The content of a page that was never written.
pub(crate) const ZERO: Token = 0;
/// What a device leaves behind where it failed to copy.
pub(crate) const GARBAGE: Token = u64::MAX;

/// What the panic of [`hetmem_core::port::Host::stop_the_program`] begins with.
pub(crate) const STOPPED: &str = "the program is stopped";

/// The engine over the model.
pub(crate) type ModelEngine = Engine<ModelHost>;

/// The [`hetmem_core::port::Host`] over a shared model.
pub(crate) struct ModelHost(pub(crate) Arc<Model>);

/// A page that is mapped in the program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// Whether touches of it are trapped while it is missing.
    pub(crate) registered: bool,
    /// Whether moving is refused, as in a read-only mapping.
    pub(crate) read_only: bool,
    /// Why it can't be taken out, if so: pinned, shared, ….
    pub(crate) stuck: Option<KeptReason>,
    /// Whether it has a page of its own, whatever that holds: a page of zeros may be the one that all share.
    pub(crate) written: bool,
    /// Its content, if present.
    pub(crate) content: Option<Token>,
    /// The frame that is laid over it, if one is: its content is then that of the frame, and nobody watches it.
    pub(crate) laid: Option<VirtAddr>,
    /// Whether a guard marker is there, and no page: a touch ends in a signal.
    pub(crate) guarded: bool,
    /// Which page of the file it is, if it is one.
    pub(crate) file: Option<u64>,
}

/// What the program may find at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Truth(Vec<Token>);

impl Truth {
    /// Whether it is zeros for certain.
    pub(crate) fn is_zero(&self) -> bool {
        self.0 == [ZERO]
    }
}

/// Something that the program did, and nobody has read of.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Unmap(PageRange),
    Remap { from: PageRange, to: VirtAddr },
    Remove(PageRange),
    Fork(Fork),
}

/// A child at the moment of its birth, and what it must find.
#[derive(Clone, Debug)]
pub(crate) struct Fork {
    pages: BTreeMap<u64, Page>,
    truth: BTreeMap<u64, Truth>,
    /// Whose pages are compared: other threads go on writing theirs.
    within: PageRange,
}

/// A removal that was announced and is not over.
#[derive(Clone, Debug)]
pub(crate) struct Zap {
    pub(crate) range: PageRange,
    /// Pages that were there at the announcement and have not been written or mapped anew since: they read as zeros in the end.
    sure: BTreeSet<u64>,
}

/// A thread of the program that touches a page.
#[derive(Clone, Copy, Debug)]
struct Touch {
    page: u64,
    /// Whether the engine said that somebody else works on it.
    told_to_wait: bool,
}

/// How private devices give pages to who touches them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Gives {
    /// They copy while they are asked.
    #[default]
    AtOnce,
    /// They do what is submitted when they are asked what has ended, and not before.
    Late,
    /// They can be read.
    Read,
}

impl Gives {
    pub(crate) const ALL: [Self; 3] = [Self::AtOnce, Self::Late, Self::Read];
}

/// Everything behind the model's one lock.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) pages: BTreeMap<u64, Page>,
    pub(crate) truth: BTreeMap<u64, Truth>,
    pub(crate) own: BTreeMap<u64, Token>,
    /// Frames of private devices that no copy gets out, while they are here.
    pub(crate) broken: BTreeSet<(usize, u32)>,
    /// Frames that were allocated and not released since, by device.
    pub(crate) prepared: BTreeSet<(usize, u32)>,
    pub(crate) gives: Gives,
    /// What was submitted and has not ended, by device.
    pub(crate) under_way: Vec<(usize, Transfer)>,
    /// The next copy of a device that is not told to fail panics.
    pub(crate) panics: bool,
    /// Mapped pages that the kernel has copied or moved elsewhere than to their device.
    pub(crate) strays: BTreeSet<u64>,
    pub(crate) events: VecDeque<Event>,
    /// How many events were read, ever.
    pub(crate) events_read: u64,
    /// How many events were queued, ever.
    pub(crate) events_queued: u64,
    pub(crate) zaps: Vec<Zap>,
    /// Events that are raised only after the next change of mappings that hetmem makes.
    late: Vec<Event>,
    /// Blocks that hetmem is about to change the mapping of.
    exchanging: Vec<PageRange>,
    /// What pages held that were dropped meanwhile: a block that is laid over them brings it back.
    dropped: BTreeMap<u64, Truth>,
    /// Pages of huge pages that stay huge: the kernel does not come back from a MOVE of a part of one.
    pub(crate) unsplittable: BTreeSet<u64>,
    /// What the file has.
    pub(crate) file: BTreeMap<u64, Token>,
    /// Whether somebody wants to write it, or does: nothing more of it may leave.
    pub(crate) wanted: bool,
    /// Whether it is written.
    pub(crate) written: bool,
    /// How many calls to fault pages in were made to fail.
    pub(crate) faults_refused: u32,
    /// Pages on which threads of the program sleep.
    pub(crate) waiters: BTreeSet<u64>,
    touches: Vec<Touch>,
    /// Pages whose touch the handler thread has not looked at.
    messages: VecDeque<u64>,
    inject: inject::Injector,
    next_token: Token,
    delivering: bool,
    stop_handler: bool,
}

/// See the module.
pub(crate) struct Model {
    memory: Mutex<Memory>,
    changed: Condvar,
    engine: OnceLock<Weak<ModelEngine>>,
    threaded: bool,
}

impl Model {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(|poisoned| {
            // A panic under the lock has failed the test already; a clean-up may still want to look.
            poisoned.into_inner()
        })
    }

    pub(crate) fn engine(&self) -> Arc<ModelEngine> {
        self.engine.get().and_then(Weak::upgrade).expect("the engine outlives every call")
    }
}

impl Memory {
    /// A content that was never written before.
    pub(crate) fn fresh(&mut self) -> Token {
        self.next_token += 1;
        self.next_token
    }

    pub(crate) fn queue(&mut self, event: Event) {
        self.events_queued += 1;
        self.events.push_back(event);
    }
}

/// The address of page `index` after `start`.
pub(crate) fn nth(start: VirtAddr, index: u64) -> VirtAddr {
    start.add_pages(PageCount::new(index))
}

pub(crate) fn pages(start: VirtAddr, count: u64) -> PageRange {
    PageRange::new(start, PageCount::new(count)).expect("a range of the test is valid")
}

/// The number of pages from `range.start()` on for which `same` holds.
fn run_of(range: PageRange, same: impl Fn(u64) -> bool) -> PageCount {
    PageCount::new(range.iter().take_while(|page| same(page.get())).count() as u64)
}

const _: () = assert!(PAGE_SIZE == 4096);

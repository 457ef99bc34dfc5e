//! The allocator of everything in a library that is loaded into another program: memory set aside, that is never adopted. A library that
//! has it as its `#[global_allocator]` never allocates from memory that may be away.
//!
//! The algorithm is `dlmalloc`'s; its memory comes from one arena. A forked child leaves what its parent used as it is, as a thread
//! that the child does not have may have been half-way through a change, and goes on in the rest of the arena.
//!
//! The program's threads allocate with signals blocked: a handler that does so, too, would find the heap locked by the thread that it has
//! interrupted.
//!
//! *Limits:* the arena's size, 4 GiB of address space, or a sixteenth of what `RLIMIT_AS` allows; one heap for each library.
#![expect(unsafe_code, reason = "implements GlobalAlloc")]

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use dlmalloc::Dlmalloc;
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::mapping::{Access, Arena, ArenaOptions, HugePages, OnDump, allow_access};

/// Address space of the arena: 4 GiB, of which only what is used can be used by anybody.
const CAPACITY: usize = 4 << 30;
/// The part of the process's address space that the arena may be, where that is limited.
const SHARE: u64 = 16;
/// The least to work with.
const SMALLEST: usize = 16 << 20;
/// What is opened at a time.
const STEP: usize = 256 << 10;
/// What is open beyond what is used: a program that takes all that `RLIMIT_DATA` leaves is served on, from this.
const AHEAD: usize = 2 << 20;

/// The allocator of a preloaded library, for its `#[global_allocator]`.
pub struct SetAside {
    heap: Mutex<Heap>,
}

struct Heap {
    malloc: Dlmalloc<Source>,
}

/// The part of the arena that dlmalloc doesn't have yet.
struct Source;

/// The arena, once there is one. Only read and written with the heap locked, or in a child's only thread, so that all accesses are relaxed.
static START: AtomicUsize = AtomicUsize::new(0);
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Up to where it is opened.
static OPEN: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);

impl Heap {
    const fn new() -> Self {
        Self { malloc: Dlmalloc::new_with_allocator(Source) }
    }
}

/// Reserves an arena, as large as can be had. `false` if there is none to be had.
fn reserve() -> bool {
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current.unwrap_or(u64::MAX);
    let share = usize::try_from(limit / SHARE).unwrap_or(usize::MAX).next_multiple_of(4096);
    let mut size = CAPACITY.min(share.max(SMALLEST));
    while size >= SMALLEST {
        let options = ArenaOptions {
            huge_pages: HugePages::Never,
            // Nothing of the program's is here, and most of it can be used by nobody: 4 GiB of a dump.
            on_dump: OnDump::Omit,
            access: Access::AsAllowed,
            name: Some(c"hetmem:heap"),
            ..ArenaOptions::default()
        };
        if let Ok(arena) = Arena::reserve(PageCount::new(size as u64 / 4096), &options) {
            let start = usize::try_from(arena.range().start().get()).unwrap_or(0);
            // The arena lasts as long as the process.
            let _ = std::mem::ManuallyDrop::new(arena);
            START.store(start, Ordering::Relaxed);
            NEXT.store(start, Ordering::Relaxed);
            OPEN.store(start, Ordering::Relaxed);
            END.store(start + size, Ordering::Relaxed);
            return true;
        }
        size = (size / 2).next_multiple_of(4096);
    }
    false
}

/// Opens the arena up to `end` at least; `false` where the process may have no more memory.
fn open(end: usize) -> bool {
    let open = OPEN.load(Ordering::Relaxed);
    if end <= open {
        return true;
    }
    let to = end.next_multiple_of(STEP).min(END.load(Ordering::Relaxed));
    let range = PageRange::between(VirtAddr::new(open as u64), VirtAddr::new(to as u64));
    if range.is_none_or(|range| allow_access(range).is_err()) {
        return false;
    }
    OPEN.store(to, Ordering::Relaxed);
    true
}

// SAFETY: `alloc` hands out disjoint parts of a zeroed arena, and nothing is ever taken back.
unsafe impl dlmalloc::Allocator for Source {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        if END.load(Ordering::Relaxed) == 0 && !reserve() {
            return (ptr::null_mut(), 0, 0);
        }
        let size = size.next_multiple_of(64 << 10);
        let next = NEXT.load(Ordering::Relaxed);
        let end = END.load(Ordering::Relaxed);
        if size > end - next || !(open((next + size + AHEAD).min(end)) || open(next + size)) {
            return (ptr::null_mut(), 0, 0);
        }
        NEXT.store(next + size, Ordering::Relaxed);
        (ptr::with_exposed_provenance_mut(next), size, 0)
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        ptr::null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        4096
    }
}

impl SetAside {
    /// The heap, to be a `static`.
    #[expect(clippy::new_without_default, reason = "one for each library, and in a constant")]
    #[must_use]
    pub const fn new() -> Self {
        Self { heap: Mutex::new(Heap::new()) }
    }

    fn lock(&self) -> MutexGuard<'_, Heap> {
        // A panic while the heap is locked ends the process, so the lock is never poisoned.
        self.heap.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Whether `at` lies in the part of the arena that this process uses, and not in its parent's.
fn is_current(at: *mut u8) -> bool {
    (START.load(Ordering::Relaxed)..END.load(Ordering::Relaxed)).contains(&at.addr())
}

impl SetAside {
    /// In a forked child, before anything else: goes on in the part of the arena that is unused yet.
    ///
    /// # Safety
    ///
    /// The calling thread is the only one of a process that was forked a moment ago, and this is the library's heap.
    pub unsafe fn restart_in_child(&'static self) {
        START.store(NEXT.load(Ordering::Relaxed), Ordering::Relaxed);
        // SAFETY: whoever held the lock does not exist in this process. The old heap is overwritten, not dropped; the lock makes its memory one
        // that may be written.
        unsafe { ptr::from_ref(&self.heap).cast_mut().write(Mutex::new(Heap::new())) };
    }
}

// SAFETY: dlmalloc keeps the contract; the lock makes it one call at a time.
unsafe impl GlobalAlloc for SetAside {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut heap = self.lock();
        // SAFETY: the layout is the caller's, not of size zero.
        unsafe { heap.malloc.malloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let mut heap = self.lock();
        if is_current(at) {
            // SAFETY: from `alloc` of the same heap, by the caller's promise.
            unsafe { heap.malloc.free(at, layout.size(), layout.align()) };
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let mut heap = self.lock();
        // SAFETY: the layout is the caller's, not of size zero.
        unsafe { heap.malloc.calloc(layout.size(), layout.align()) }
    }
}

//! Populated memory, and copies between two pieces of it.
#![expect(unsafe_code, reason = "memory named by number is lent as atomic words, and copied")]

use std::sync::atomic::AtomicU64;

use hetmem_core::units::{PAGE_SIZE, PageCount, PageRange, VirtAddr};

#[cfg(target_arch = "x86_64")]
use crate::copy::stream_pages;
use crate::copy::{address, copy_pages};
use crate::errno::Errno;
use crate::mapping::{Arena, ArenaOptions, HugePages, Prefault, Whose, populate_write};
use crate::numa::Node;

/// Pages to be copied from one buffer to the other, by their places in both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CopyRun {
    /// The first page's place in the source.
    pub from: PageCount,
    /// The first page's place in the destination.
    pub to: PageCount,
    /// How many pages.
    pub pages: PageCount,
}

impl CopyRun {
    /// The copy that brings these pages back.
    #[must_use]
    pub const fn back(self) -> Self {
        Self { from: self.to, to: self.from, pages: self.pages }
    }
}

/// A way to copy. Which is the fastest depends on the machine, and on how much is copied at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyWay {
    /// The C library's `memcpy`.
    Library,
    /// Stores that go past the caches.
    #[cfg(target_arch = "x86_64")]
    Streamed,
    /// The processor's own instruction for it (`rep movsb`).
    #[cfg(target_arch = "x86_64")]
    Instruction,
}

impl CopyWay {
    /// All that this architecture has.
    #[cfg(target_arch = "x86_64")]
    pub const ALL: [Self; 3] = [Self::Library, Self::Streamed, Self::Instruction];
    /// All that this architecture has.
    #[cfg(not(target_arch = "x86_64"))]
    pub const ALL: [Self; 1] = [Self::Library];

    /// What it is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Library => "memcpy",
            #[cfg(target_arch = "x86_64")]
            Self::Streamed => "streamed copy",
            #[cfg(target_arch = "x86_64")]
            Self::Instruction => "rep movsb",
        }
    }

    /// Copies `pages` pages.
    ///
    /// # Safety
    ///
    /// As [`copy_pages`].
    unsafe fn copy(self, to: VirtAddr, from: VirtAddr, pages: PageCount) {
        match self {
            // SAFETY: the caller's.
            Self::Library => unsafe { copy_pages(to, from, pages) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller's.
            Self::Streamed => unsafe { stream_pages(to, from, pages) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the caller's.
            Self::Instruction => unsafe { move_bytes(to, from, pages) },
        }
    }
}

/// # Safety
///
/// As [`copy_pages`].
#[cfg(target_arch = "x86_64")]
unsafe fn move_bytes(to: VirtAddr, from: VirtAddr, pages: PageCount) {
    // SAFETY: stores to that many bytes and loads as many, which the caller has; the direction flag is clear between instructions of Rust's.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") pages.bytes().as_usize() => _,
            inout("rdi") address(to) => _,
            inout("rsi") address(from) => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Anonymous memory, whose pages were all made present, but for what is said otherwise.
#[derive(Debug)]
pub struct Buffer {
    arena: Arena,
}

impl Buffer {
    /// `pages` pages that read as zeros.
    pub fn new(pages: PageCount, huge_pages: HugePages) -> Result<Self, Errno> {
        let options = ArenaOptions {
            huge_pages,
            prefault: Prefault::All,
            name: Some(c"hetmem:yardstick"),
            ..ArenaOptions::default()
        };
        Ok(Self { arena: Arena::reserve(pages, &options)? })
    }

    /// The same, of a program's own: what hetmem manages where that program is run by it. Its pages are present when they were touched: a control group
    /// that is smaller than that ends a process which has the kernel populate it at once.
    pub fn of_program(pages: PageCount, huge_pages: HugePages) -> Result<Self, Errno> {
        let options = ArenaOptions { huge_pages, whose: Whose::Program, ..ArenaOptions::default() };
        Ok(Self { arena: Arena::reserve(pages, &options)? })
    }

    /// `pages` pages of `node` that read as zeros. A node that is full or may not be used gives pages of others:
    /// [`numa::nodes_of`](crate::numa::nodes_of) says.
    pub fn on_node(pages: PageCount, huge_pages: HugePages, node: Node) -> Result<Self, Errno> {
        let options = ArenaOptions { huge_pages, name: Some(c"hetmem:yardstick"), ..ArenaOptions::default() };
        let arena = Arena::reserve(pages, &options)?;
        node.prefer_for(arena.range())?;
        populate_write(arena.range())?;
        Ok(Self { arena })
    }

    /// Where it is.
    #[must_use]
    pub const fn range(&self) -> PageRange {
        self.arena.range()
    }

    /// Its contents.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        let first: *const AtomicU64 = std::ptr::with_exposed_provenance(address(self.range().start()));
        let words = self.range().pages().as_usize() * (PAGE_SIZE / 8) as usize;
        // SAFETY: readable and writable memory of that length, aligned to a page, which lives as long as the buffer; any
        // bytes are valid, and while the borrow lasts it is accessed by atomic operations, or by the kernel, only.
        unsafe { std::slice::from_raw_parts(first, words) }
    }

    /// Copies `runs` from this buffer to `to`, each by itself.
    ///
    /// # Panics
    ///
    /// If a run does not lie in both buffers.
    pub fn copy_runs(&mut self, to: &mut Self, runs: &[CopyRun], way: CopyWay) {
        for run in runs {
            let (source, target) = (self.part(run.from, run.pages), to.part(run.to, run.pages));
            // SAFETY: both are parts of buffers, which are two as they are borrowed for writing, and nobody has words of
            // them while they are.
            unsafe { way.copy(target.start(), source.start(), run.pages) };
        }
    }

    /// The `pages` pages at place `first`.
    pub(super) fn part(&self, first: PageCount, pages: PageCount) -> PageRange {
        let part = self.range().slice(first, pages);
        assert_eq!(part.pages(), pages, "the run lies inside the buffer");
        part
    }
}

//! Arenas: anonymous private memory that belongs to hetmem and to nobody else.
//!
//! ```text
//!   ┌─guard─┬──────────────── arena ────────────────┬─guard─┐
//!   │ NONE  │ READ|WRITE, starts on a 2 MiB boundary │ NONE  │
//! ```
//!
//! Address space is counted, and looked through: what can be written counts against `RLIMIT_DATA`, is populated by `mlockall(2)`, and is read by who
//! reads all of his memory. So an arena may be reserved without access and opened block by block, as it is used ([`Access::AsOpened`]).
//!
//! The guards keep the kernel from merging the arena with a neighbouring mapping of the program, and turn a run past
//! either end into a fault.
#![expect(unsafe_code, reason = "memory is mapped and unmapped")]

use std::ffi::CStr;
use std::sync::atomic::{AtomicU64, Ordering};

use hetmem_core::units::{BLOCK_PAGES, BLOCK_SIZE, PageCount, PageRange, VirtAddr};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use super::advice::{advise, discard, pointer, populate_write};
use crate::errno::Errno;
use crate::raw;

/// Whether the kernel may back the arena with huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HugePages {
    /// As the system's setting says.
    #[default]
    System,
    /// It should.
    Prefer,
    /// It must not.
    Never,
}

/// Whether a forked child has the arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnFork {
    /// It has a copy.
    #[default]
    Inherit,
    /// The range is unmapped in the child.
    Omit,
}

/// Whether a core dump has the arena (core(5)).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnDump {
    /// As any other memory.
    #[default]
    Include,
    /// No: what is in it may be pages that the program keeps out of dumps.
    Omit,
}

/// Whether pages are made present at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Prefault {
    /// When they are first touched.
    #[default]
    OnTouch,
    /// At once.
    All,
}

/// Which of the arena's memory can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Access {
    /// All of it, from the start.
    #[default]
    All,
    /// The blocks that [`Arena::open`] was asked for.
    AsOpened,
    /// What [`allow_access`] was asked for: for who must not allocate.
    AsAllowed,
}

/// Whose memory the arena is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Whose {
    /// hetmem's own: it is listed in [`set_aside`](super::set_aside), and never adopted.
    #[default]
    Hetmem,
    /// The program's, like any other of its mappings.
    Program,
}

/// How an arena is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct ArenaOptions<'a> {
    /// Huge pages.
    pub huge_pages: HugePages,
    /// Forks.
    pub on_fork: OnFork,
    /// Core dumps.
    pub on_dump: OnDump,
    /// First touch.
    pub prefault: Prefault,
    /// Access.
    pub access: Access,
    /// Whose it is.
    pub whose: Whose,
    /// What `/proc/<pid>/maps` calls the arena: printable ASCII without `\`, `` ` ``, `$`, `[` and `]`, at most 79
    /// bytes, and by convention with `hetmem:` in front. A kernel that can't name memory leaves it unnamed.
    pub name: Option<&'a CStr>,
}

/// A range of private anonymous memory with a guard page on either side, unmapped on drop.
#[derive(Debug)]
pub struct Arena {
    // Invariants: `guarded` is mapped, was mapped by this arena, and is `range` with a page on either side.
    range: PageRange,
    guarded: PageRange,
    /// A bit for each block that is open; none where all are.
    opened: Option<Box<[AtomicU64]>>,
}

impl Arena {
    /// Maps an arena of `pages` pages.
    pub fn reserve(pages: PageCount, options: &ArenaOptions<'_>) -> Result<Self, Errno> {
        let mut arena = Self::map(pages)?;
        match options.access {
            Access::All => set_access(arena.range, MprotectFlags::READ | MprotectFlags::WRITE)?,
            Access::AsOpened => arena.prepare_to_open()?,
            Access::AsAllowed => {}
        }
        if options.whose == Whose::Hetmem {
            super::set_aside::add(arena.range, options.on_fork)?;
        }
        // SAFETY: nobody has the address of this memory yet, so its inheritance is this function's to decide.
        let advise_own = |advice| unsafe { advise(arena.guarded, advice) };
        match options.on_fork {
            OnFork::Inherit => {}
            OnFork::Omit => advise_own(Advice::LinuxDontFork)?,
        }
        match options.on_dump {
            OnDump::Include => {}
            OnDump::Omit => advise_own(Advice::LinuxDontDump)?,
        }
        match options.huge_pages {
            HugePages::System => {}
            // A kernel without huge pages says EINVAL; then there are none, which is what `Never` asks for.
            HugePages::Prefer => advise_own(Advice::LinuxHugepage)?,
            HugePages::Never => ignore_unsupported(advise_own(Advice::LinuxNoHugepage))?,
        }
        if let Some(name) = options.name {
            name_memory(arena.range, name);
        }
        match options.prefault {
            Prefault::OnTouch => {}
            Prefault::All => populate_write(arena.range)?,
        }
        Ok(arena)
    }

    fn map(pages: PageCount) -> Result<Self, Errno> {
        let guard = PageCount::ONE;
        let wanted = pages.get().checked_add(BLOCK_PAGES + 2).ok_or(Errno::NOMEM)?;
        let bytes = wanted.checked_mul(4096).and_then(|bytes| usize::try_from(bytes).ok()).ok_or(Errno::NOMEM)?;
        if pages.is_zero() {
            return Err(Errno::INVAL);
        }
        // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
        let mapped = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let all = PageRange::new(VirtAddr::new(mapped.expose_provenance() as u64), PageCount::new(wanted))
            .expect("the kernel maps whole pages inside the address space");
        let first = all.start().get() + 4096;
        let start = VirtAddr::new(first.next_multiple_of(BLOCK_SIZE));
        let before = start.pages_since(all.start()) - guard;
        let guarded = all.slice(before, pages + guard + guard);
        let after = all.pages() - before - guarded.pages();
        // INVARIANT: `guarded` is a part of what was just mapped; should trimming fail below, drop unmaps it.
        let arena = Self { range: guarded.slice(guard, pages), guarded, opened: None };
        for excess in [all.slice(PageCount::ZERO, before), all.slice(all.pages() - after, after)] {
            if !excess.is_empty() {
                // SAFETY: a part of the fresh mapping that nobody knows of.
                unsafe { rustix::mm::munmap(pointer(excess.start()), excess.pages().as_usize() * 4096)? };
            }
        }
        // A process that locks what it will map (mlockall(2), MCL_FUTURE) means its own memory, of which this is none.
        // SAFETY: contents and access stay.
        unsafe { rustix::mm::munlock(pointer(guarded.start()), guarded.pages().as_usize() * 4096)? };
        Ok(arena)
    }

    /// Has all of the arena be of one kind to the kernel, so that blocks that are opened in any order become one mapping where they touch: the kernel
    /// joins no two mappings that got their pages apart (`mm/vma.c`, `is_mergeable_anon_vma`), and moves pages within one only. So it gets a page
    /// while it is one mapping: the guard in front, as a page that was in a block leaves a page table there, which no huge page takes the place of.
    fn prepare_to_open(&mut self) -> Result<(), Errno> {
        let first = PageRange::page_of(self.guarded.start());
        set_access(first, MprotectFlags::READ | MprotectFlags::WRITE)?;
        populate_write(first)?;
        // SAFETY: the page is the arena's, and nothing was put there.
        unsafe { discard(first)? };
        set_access(first, MprotectFlags::empty())?;
        let words = self.range.pages().get().div_ceil(BLOCK_PAGES).div_ceil(64);
        self.opened = Some((0..words).map(|_| AtomicU64::new(0)).collect());
        Ok(())
    }

    /// Makes sure that `part` can be read and written, `EINVAL` if it is not a part of the arena, `ENOMEM` where the process may have no more such
    /// memory.
    pub fn open(&self, part: PageRange) -> Result<(), Errno> {
        if !self.range.contains_range(part) {
            return Err(Errno::INVAL);
        }
        let Some(opened) = &self.opened else { return Ok(()) };
        let block_of = |at: VirtAddr| at.pages_since(self.range.start()).get() / BLOCK_PAGES;
        if part.is_empty() {
            return Ok(());
        }
        let last = part.slice(part.pages() - PageCount::ONE, PageCount::ONE).start();
        for block in block_of(part.start())..=block_of(last) {
            let (word, bit) = (usize::try_from(block / 64).unwrap_or(usize::MAX), 1 << (block % 64));
            // Acquire pairs with the Release below: the kernel has let the memory be used before the bit is seen.
            if opened[word].load(Ordering::Acquire) & bit != 0 {
                continue;
            }
            // Twice is the same as once.
            let whole = self.range.slice(PageCount::new(block * BLOCK_PAGES), PageCount::new(BLOCK_PAGES));
            set_access(whole, MprotectFlags::READ | MprotectFlags::WRITE)?;
            opened[word].fetch_or(bit, Ordering::Release);
        }
        Ok(())
    }

    /// The arena's pages, without the guards.
    #[must_use]
    pub const fn range(&self) -> PageRange {
        self.range
    }

    /// Makes the pages of `part` present; `EINVAL` if it is not a part of the arena.
    pub fn populate(&self, part: PageRange) -> Result<(), Errno> {
        if !self.range.contains_range(part) {
            return Err(Errno::INVAL);
        }
        populate_write(part)
    }

    /// Drops the pages of `part`, which become holes; `EINVAL` if it is not a part of the arena.
    ///
    /// This is safe because the arena never lends its memory as a reference: whoever reads it by address answers for
    /// what is there.
    pub fn discard(&self, part: PageRange) -> Result<(), Errno> {
        if !self.range.contains_range(part) {
            return Err(Errno::INVAL);
        }
        // SAFETY: the pages are the arena's, whose owner gives their contents up.
        unsafe { discard(part) }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        super::set_aside::remove(self.range);
        // SAFETY: by the invariant the range is this arena's. Whoever was told addresses in it was told that they
        // are valid while the arena lives.
        let unmapped =
            unsafe { rustix::mm::munmap(pointer(self.guarded.start()), self.guarded.pages().as_usize() * 4096) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

/// Lets `range`, of an arena that was made [`Access::AsAllowed`], be read and written; `EINVAL` if it is not in hetmem's memory, `ENOMEM` where the
/// process may have no more such memory.
pub fn allow_access(range: PageRange) -> Result<(), Errno> {
    if !super::set_aside().any(|arena| arena.contains_range(range)) {
        return Err(Errno::INVAL);
    }
    set_access(range, MprotectFlags::READ | MprotectFlags::WRITE)
}

fn set_access(range: PageRange, access: MprotectFlags) -> Result<(), Errno> {
    // SAFETY: an arena's own memory, of which nobody uses what can't be used yet.
    unsafe { rustix::mm::mprotect(pointer(range.start()), range.pages().as_usize() * 4096, access) }
}

pub(super) fn ignore_unsupported(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// Gives `range` a name in `/proc/<pid>/maps`. Kernels without `CONFIG_ANON_VMA_NAME` refuse; the name is for people.
pub(super) fn name_memory(range: PageRange, name: &CStr) {
    const PR_SET_VMA: usize = 0x5356_4d41;
    const PR_SET_VMA_ANON_NAME: usize = 0;
    let start = pointer(range.start()).addr();
    let args =
        [PR_SET_VMA, PR_SET_VMA_ANON_NAME, start, range.pages().as_usize() * 4096, name.as_ptr().expose_provenance()];
    // SAFETY: the kernel reads the name, which lives through the call, and changes no memory.
    let _refused = unsafe { raw::syscall5(libc::SYS_prctl, args) };
}

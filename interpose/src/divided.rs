//! `mremap(2)` of a range that the kernel holds as several mappings, as a registration divides it: the call is made again with that ended.
//!
//! Ending the registrations doesn't always make one mapping of them again: where pages came in meanwhile, each has an `anon_vma` of its
//! own, and the kernel joins no two of these (`mm/vma.c`, `is_mergeable_anon_vma`). The program knows of one mapping, so its call is made
//! good here: the range grows at its end, or is moved mapping by mapping to a place that was reserved for all of it.
#![expect(unsafe_code, reason = "moves mappings of the program, as it asked")]

use std::ffi::{c_int, c_void};
use std::ops::ControlFlow;

use hetmem_core::units::{ByteLen, PageCount, PageRange, VirtAddr};
use hetmem_sys::maps::{self, Perms, for_each_mapping};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use crate::cancel::uncancelled;
use crate::errno::{errno, set_errno};
use crate::next::pages_of;

/// The C library's `mremap`.
pub type MremapFn = unsafe extern "C-unwind" fn(*mut c_void, usize, usize, c_int, *mut c_void) -> *mut c_void;

/// More mappings than this are not the work of a registration.
const MAX_PIECES: usize = 64;

/// The mappings of a range, which follow one another and allow the same.
struct Pieces {
    parts: [PageRange; MAX_PIECES],
    count: usize,
    perms: Perms,
}

impl Pieces {
    /// Those of `range`; `None` unless it consists of several private anonymous mappings without gaps.
    fn of(range: PageRange) -> Option<Self> {
        let mut pieces = Self { parts: [PageRange::page_of(range.start()); MAX_PIECES], count: 0, perms: Perms::NONE };
        let mut at = range.start();
        let mut buffer = [0; maps::BUFFER_SIZE];
        let walked = for_each_mapping(&mut buffer, |mapping| {
            let Some(part) = mapping.range.intersect(range).filter(|part| !part.is_empty()) else {
                return if mapping.range.start() >= range.end() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                };
            };
            let anonymous = mapping.inode == 0 && !mapping.perms.contains(Perms::SHARED);
            let alike = pieces.count == 0 || pieces.perms == mapping.perms;
            if part.start() != at || !anonymous || !alike || pieces.count == MAX_PIECES {
                return ControlFlow::Break(());
            }
            pieces.parts[pieces.count] = part;
            pieces.count += 1;
            pieces.perms = mapping.perms;
            at = part.end();
            ControlFlow::Continue(())
        });
        (walked.is_ok() && at == range.end() && pieces.count > 1).then_some(pieces)
    }

    fn parts(&self) -> &[PageRange] {
        &self.parts[..self.count]
    }

    fn protection(&self) -> ProtFlags {
        let bit = |perm: Perms, bit| if self.perms.contains(perm) { bit } else { ProtFlags::empty() };
        bit(Perms::READ, ProtFlags::READ) | bit(Perms::WRITE, ProtFlags::WRITE) | bit(Perms::EXEC, ProtFlags::EXEC)
    }
}

/// A call of `mremap(2)`, as the program makes it.
#[derive(Clone, Copy)]
pub struct Call {
    /// The C library's function.
    pub next: MremapFn,
    /// Where the range begins.
    pub old: *mut c_void,
    /// How many bytes it has.
    pub old_size: usize,
    /// How many it is to have.
    pub new_size: usize,
    /// `MREMAP_MAYMOVE` and so on.
    pub flags: c_int,
    /// Where it is to go, with `MREMAP_FIXED`.
    pub new: *mut c_void,
}

impl Call {
    /// Makes it, and no more.
    ///
    /// # Safety
    ///
    /// As for `mremap(2)`.
    pub unsafe fn make(self) -> *mut c_void {
        // SAFETY: as the caller promised.
        unsafe { (self.next)(self.old, self.old_size, self.new_size, self.flags, self.new) }
    }

    /// Makes it as if no registration divided the range: `undivided` runs what it is given, once, while everything in the range is home and
    /// registered nowhere. The result is the call's, with `errno` set on failure. `last_word` tells the user why the program is stopped, should a
    /// mapping be lost half-way.
    ///
    /// # Safety
    ///
    /// As for `mremap(2)`.
    #[inline(always)]
    pub unsafe fn make_undivided(
        self,
        undivided: impl FnOnce(PageRange, &mut dyn FnMut()),
        last_word: fn(&str),
    ) -> *mut c_void {
        let before = errno();
        // SAFETY: as the caller promised.
        let make = || unsafe { self.make() };
        let Some(range) = pages_of(self.old, self.old_size) else { return make() };
        let is_refused = |moved| moved == libc::MAP_FAILED && errno() == libc::EFAULT;
        // To a fixed place Linux 6.17 and newer move several mappings one by one, and stop half-way at one that is registered.
        if self.flags & libc::MREMAP_FIXED == 0 {
            let moved = make();
            if !is_refused(moved) {
                return moved;
            }
        }
        // A range that spans two mappings is refused: those of the program, or one that a registration has divided.
        uncancelled(|| {
            let (mut moved, mut left) = (libc::MAP_FAILED, libc::EFAULT);
            undivided(range, &mut || {
                set_errno(before);
                moved = make();
                if is_refused(moved) {
                    // SAFETY: as the caller promised.
                    moved = unsafe { by_pieces(self, range, last_word) }.unwrap_or_else(|| {
                        set_errno(libc::EFAULT);
                        libc::MAP_FAILED
                    });
                }
                left = errno();
            });
            set_errno(left);
            moved
        })
    }
}

/// The `call`, for a range that is home and registered nowhere. `None` if it is none of this module's business: then the kernel's answer stands.
///
/// # Safety
///
/// As for `mremap(2)`.
unsafe fn by_pieces(call: Call, old: PageRange, last_word: fn(&str)) -> Option<*mut c_void> {
    let Call { next, new_size, flags, new, .. } = call;
    let pieces = Pieces::of(old)?;
    let new_pages = pages_up(new_size)?;
    let (fixed, keeps_old) = (flags & libc::MREMAP_FIXED != 0, flags & libc::MREMAP_DONTUNMAP != 0);
    if new_pages < old.pages() || (keeps_old && new_pages != old.pages()) {
        return None;
    }
    let protection = pieces.protection();
    if !fixed && !keeps_old {
        let more = PageRange::new(old.end(), new_pages - old.pages())?;
        if more.is_empty() {
            return Some(pointer(old.start()));
        }
        // SAFETY: takes only address space that nothing uses.
        let grown = unsafe { map(more, protection, MapFlags::FIXED_NOREPLACE) };
        if grown == pointer(more.start()) {
            return Some(pointer(old.start()));
        }
        if flags & libc::MREMAP_MAYMOVE == 0 {
            set_errno(libc::ENOMEM);
            return Some(libc::MAP_FAILED);
        }
    }
    let at = if fixed { VirtAddr::new(new.expose_provenance() as u64) } else { VirtAddr::default() };
    let place = PageRange::new(at, new_pages)?;
    // SAFETY: with MREMAP_FIXED the caller gave up what is there; otherwise the kernel chooses a place that nothing uses.
    let target = unsafe { map(place, protection, if fixed { MapFlags::FIXED } else { MapFlags::empty() }) };
    if target == libc::MAP_FAILED {
        return Some(target);
    }
    let target = PageRange::new(VirtAddr::new(target.expose_provenance() as u64), new_pages)?;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | (flags & libc::MREMAP_DONTUNMAP);
    for (i, part) in pieces.parts().iter().enumerate() {
        let to = target.slice(part.start().pages_since(old.start()), part.pages());
        // SAFETY: the program's own pages, to the place that was reserved for them.
        if unsafe { move_one(next, *part, to, flags) } {
            continue;
        }
        // The kernel has no memory for more mappings: everything goes back.
        let why = errno();
        for part in &pieces.parts()[..i] {
            let to = target.slice(part.start().pages_since(old.start()), part.pages());
            // SAFETY: as above, the other way; with MREMAP_DONTUNMAP the old mapping is empty and is replaced.
            if !unsafe { move_one(next, to, *part, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) } {
                last_word("a mapping that was to be moved can neither be moved nor put back");
                hetmem_sys::process::die();
            }
        }
        // SAFETY: reserved above, and nothing of the program's is left in it.
        let _ = unsafe { rustix::mm::munmap(pointer(target.start()), bytes(target.pages())) };
        set_errno(why);
        return Some(libc::MAP_FAILED);
    }
    Some(pointer(target.start()))
}

/// # Safety
///
/// As for `mremap(2)`.
unsafe fn move_one(next: MremapFn, from: PageRange, to: PageRange, flags: c_int) -> bool {
    let len = bytes(from.pages());
    // SAFETY: as the caller promised.
    unsafe { next(pointer(from.start()), len, len, flags, pointer(to.start())) != libc::MAP_FAILED }
}

/// # Safety
///
/// As for `mmap(2)`.
unsafe fn map(at: PageRange, protection: ProtFlags, flags: MapFlags) -> *mut c_void {
    // By the system call: this library may stand in front of the C library's function.
    // SAFETY: as the caller promised.
    let mapped =
        unsafe { mmap_anonymous(pointer(at.start()), bytes(at.pages()), protection, MapFlags::PRIVATE | flags) };
    mapped.unwrap_or_else(|errno| {
        set_errno(errno.raw_os_error());
        libc::MAP_FAILED
    })
}

fn pointer(at: VirtAddr) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(usize::try_from(at.get()).unwrap_or(0))
}

fn bytes(pages: PageCount) -> usize {
    usize::try_from(pages.bytes().get()).unwrap_or(usize::MAX)
}

/// The kernel takes a length up to the next page.
fn pages_up(len: usize) -> Option<PageCount> {
    ByteLen::new((len as u64).checked_next_multiple_of(hetmem_core::units::PAGE_SIZE)?).whole_pages()
}

//! Which pages of this process are there, and of which kind: the `PAGEMAP_SCAN` ioctl (Linux 6.7) and the older table
//! of one word a page, both on `/proc/self/pagemap`.
//!
//! The descriptor shows the address space of the process that opened it, for as long as it is open. After a fork the
//! child opens its own; a thread with a descriptor table of its own opens its own too.
#![expect(unsafe_code, reason = "an ioctl with a layout of its own")]

use std::ffi::c_void;
use std::os::fd::OwnedFd;

use hetmem_core::units::{PAGE_SHIFT, PageCount, PageRange, VirtAddr};
use rustix::fs::{Mode, OFlags};

use crate::errno::Errno;
use crate::flags::flags;

flags! {
    /// Kinds of page (`PAGE_IS_*`).
    Categories {
        /// Asynchronous write protection is on.
        WPALLOWED = 1 << 0,
        /// Written since it was last write-protected.
        WRITTEN = 1 << 1,
        /// Of a file or of shared memory.
        FILE = 1 << 2,
        /// In memory and mapped.
        PRESENT = 1 << 3,
        /// In swap, or under migration by the kernel.
        SWAPPED = 1 << 4,
        /// The zero page.
        PFNZERO = 1 << 5,
        /// Part of a huge page that is mapped as one.
        HUGE = 1 << 6,
        /// Soft-dirty.
        SOFT_DIRTY = 1 << 7,
        /// A guard region (6.15).
        GUARD = 1 << 8,
    }
}

/// Which pages a scan looks for, and what it tells of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScanQuery {
    /// At least one of these; none given means no such condition.
    pub any_of: Categories,
    /// All of these.
    pub all_of: Categories,
    /// These count as set where they are not, in both conditions above.
    pub inverted: Categories,
    /// The categories that are reported, and by which neighbouring pages are told apart.
    pub report: Categories,
}

/// A run of pages of the same reported categories (`struct page_region`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Region {
    // Invariant: page boundaries, in order. Only the kernel writes these.
    start: u64,
    end: u64,
    categories: u64,
}

impl Region {
    /// The pages.
    #[must_use]
    pub fn range(self) -> PageRange {
        PageRange::between(VirtAddr::new(self.start), VirtAddr::new(self.end)).expect("the kernel reports whole pages")
    }

    /// What they are, as far as the query asked for a report.
    #[must_use]
    pub const fn categories(self) -> Categories {
        Categories::from_bits(self.categories)
    }
}

/// One word of the page map.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PagemapEntry(u64);

impl PagemapEntry {
    /// The entry `raw`.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The kernel's word.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether the page is in memory and mapped.
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.0 & (1 << 63) != 0
    }

    /// Whether the page is in swap, or under migration by the kernel.
    #[must_use]
    pub const fn is_swapped(self) -> bool {
        self.0 & (1 << 62) != 0
    }

    /// Whether the page is of a file or of shared memory.
    #[must_use]
    pub const fn is_file(self) -> bool {
        self.0 & (1 << 61) != 0
    }

    /// Whether the page is mapped once. That is not the exclusive ownership that MOVE asks for: after a forked child
    /// has ended its parent's pages are mapped once and still not exclusive.
    #[must_use]
    pub const fn is_mapped_once(self) -> bool {
        self.0 & (1 << 56) != 0
    }

    /// Whether a guard marker is there, as far as the kernel tells (6.15).
    #[must_use]
    pub const fn is_guarded(self) -> bool {
        self.0 & (1 << 58) != 0
    }

    /// Whether the page is write-protected by a userfaultfd.
    #[must_use]
    pub const fn is_uffd_write_protected(self) -> bool {
        self.0 & (1 << 57) != 0
    }

    /// The machine's frame number; `None` if the page is not there or the kernel hides the number (it shows it to
    /// `CAP_SYS_ADMIN` only).
    #[must_use]
    pub const fn pfn(self) -> Option<u64> {
        let pfn = self.0 & ((1 << 55) - 1);
        if self.is_present() && pfn != 0 { Some(pfn) } else { None }
    }
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = 0xC060_6610;

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<PmScanArg>() == 96 && (PAGEMAP_SCAN >> 16 & 0x3FFF) as usize == size_of::<PmScanArg>());
    assert!(offset_of!(PmScanArg, walk_end) == 32 && offset_of!(PmScanArg, vec) == 40);
    assert!(offset_of!(PmScanArg, category_inverted) == 64 && offset_of!(PmScanArg, return_mask) == 88);
    assert!(size_of::<Region>() == 24 && offset_of!(Region, categories) == 16);
};

// SAFETY: number and layout are the kernel's, the result is a count, and the kernel writes the argument (which `as_ptr`
// points to) and the array that it names.
unsafe impl rustix::ioctl::Ioctl for &mut PmScanArg {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> rustix::ioctl::Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut::<PmScanArg>(self).cast()
    }

    unsafe fn output_from_ptr(out: rustix::ioctl::IoctlOutput, _: *mut c_void) -> Result<usize, Errno> {
        usize::try_from(out).map_err(|_| Errno::INVAL)
    }
}

/// A reader of this process's page map.
#[derive(Debug)]
pub struct PagemapScanner {
    fd: OwnedFd,
    /// How guard markers show: as such, or as pages in swap do.
    guards: Categories,
}

impl PagemapScanner {
    /// Opens the page map of the calling process.
    pub fn open() -> Result<Self, Errno> {
        let fd = rustix::fs::open(c"/proc/thread-self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut this = Self { fd, guards: Categories::GUARD };
        // Kernels before 6.15 refuse the category; what they have of guards (6.13) shows as a page in swap does.
        let somewhere = PageRange::page_of(VirtAddr::new(1 << PAGE_SHIFT));
        if this.guarded(somewhere, &mut [Region::default()]) == Err(Errno::INVAL) {
            this = this.without_guards();
        }
        Ok(this)
    }

    /// This scanner, as it is on a kernel that does not tell guard markers from pages in swap.
    #[must_use]
    pub fn without_guards(self) -> Self {
        Self { guards: Categories::SWAPPED, ..self }
    }

    /// Whether the kernel tells guard markers from pages in swap.
    #[must_use]
    pub fn tells_guards(&self) -> bool {
        self.guards == Categories::GUARD
    }

    /// Finds the pages of `range` that have guard markers, as [`Self::scan`] does. Where the kernel does not tell them from pages in swap
    /// ([`Self::tells_guards`]), it finds both.
    pub fn guarded(&self, range: PageRange, out: &mut [Region]) -> Result<(usize, VirtAddr), Errno> {
        let query = ScanQuery { all_of: self.guards, report: self.guards, ..ScanQuery::default() };
        self.scan(range, query, out)
    }

    /// Whether the first page of `range` has a guard marker, and how many pages from there on are alike; without the scan, not.
    pub fn first_guarded(&self, range: PageRange) -> (bool, PageCount) {
        let mut found = [Region::default()];
        match self.guarded(range, &mut found) {
            Ok((1, _)) if found[0].range().start() == range.start() => (true, found[0].range().pages()),
            Ok((1, _)) => (false, found[0].range().start().pages_since(range.start())),
            Ok(_) => (false, range.pages()),
            Err(_) => (false, PageCount::ONE),
        }
    }

    /// Finds the pages of `range` that match `query` and writes them to `out`, in order. Returns how many regions there
    /// are, and where the scan ended: at the end of the range, or earlier with `out` full. `ENOTTY` on kernels
    /// before 6.7.
    pub fn scan(&self, range: PageRange, query: ScanQuery, out: &mut [Region]) -> Result<(usize, VirtAddr), Errno> {
        if range.is_empty() {
            return Ok((0, range.end()));
        }
        rustix::io::retry_on_intr(|| {
            let mut arg = PmScanArg {
                size: size_of::<PmScanArg>() as u64,
                start: range.start().get(),
                end: range.end().get(),
                vec: out.as_mut_ptr().expose_provenance() as u64,
                vec_len: out.len() as u64,
                category_inverted: query.inverted.bits(),
                category_mask: query.all_of.bits(),
                category_anyof_mask: query.any_of.bits(),
                return_mask: query.report.bits(),
                ..PmScanArg::default()
            };
            // SAFETY: the kernel writes at most `vec_len` regions to `out`, whose layout is its own and any contents of
            // which are valid; the flags ask for no change of the pages.
            let filled = unsafe { rustix::ioctl::ioctl(&self.fd, &mut arg) }?;
            Ok((filled, VirtAddr::new(arg.walk_end)))
        })
    }

    /// Whether `range`, a whole number of huge pages, is mapped by huge pages only.
    pub fn is_huge(&self, range: PageRange) -> Result<bool, Errno> {
        let query = ScanQuery { all_of: Categories::HUGE, report: Categories::HUGE, ..ScanQuery::default() };
        let mut found = [Region::default()];
        let (n, _) = self.scan(range, query, &mut found)?;
        Ok(n == 1 && found[0].range() == range)
    }

    /// Whether `page` is there, in memory or in swap, and not merely a guard marker. Where the kernel does not tell such from pages in swap, those
    /// count as markers.
    pub fn is_page(&self, page: VirtAddr) -> Result<bool, Errno> {
        let either = Categories::PRESENT | Categories::SWAPPED;
        let query = ScanQuery { any_of: either, report: either | self.guards, ..ScanQuery::default() };
        let mut found = [Region::default()];
        let (n, _) = self.scan(PageRange::page_of(page), query, &mut found)?;
        let kind = found[0].categories();
        Ok(n == 1 && (kind.contains(Categories::PRESENT) || !kind.intersects(self.guards)))
    }

    /// Whether any page of `range` is there, in memory or in swap.
    pub fn is_there(&self, range: PageRange) -> Result<bool, Errno> {
        let query = ScanQuery { any_of: Categories::PRESENT | Categories::SWAPPED, ..ScanQuery::default() };
        Ok(self.scan(range, query, &mut [Region::default()])?.0 > 0)
    }

    /// Reads the words of the pages of `range` into `out`; returns how many, which is less than asked for only where
    /// `out` is shorter than the range.
    pub fn entries(&self, range: PageRange, out: &mut [PagemapEntry]) -> Result<usize, Errno> {
        const CHUNK: usize = 64;
        let wanted = range.pages().as_usize().min(out.len());
        let mut done = 0;
        while done < wanted {
            let mut bytes = [0; CHUNK * 8];
            let chunk = (wanted - done).min(CHUNK) * 8;
            let first = range.start().add_pages(PageCount::new(done as u64)).get() >> PAGE_SHIFT;
            let read = rustix::io::retry_on_intr(|| rustix::io::pread(&self.fd, &mut bytes[..chunk], first * 8))?;
            if read < 8 {
                break;
            }
            for (entry, word) in out[done..].iter_mut().zip(bytes[..read].chunks_exact(8)) {
                *entry = PagemapEntry(u64::from_ne_bytes(std::array::from_fn(|i| word[i])));
            }
            done += read / 8;
        }
        Ok(done)
    }
}

//! The units that every other module counts in: addresses, page counts, byte lengths, frame numbers.
//!
//! Each unit is a type of its own, so that a page count can't be taken for a byte length, and what must be a multiple
//! of the page is one by construction. All arithmetic is checked: an operation that would leave the range of its type
//! panics in `Add`/`Sub`, and has a `checked_` form where the operands come from outside.
//!
//! *Limits:* the page is 4 KiB, the block 2 MiB. `sys` refuses to run on a machine whose base page is another size.

use std::fmt;

/// log2 of the page size in bytes.
pub const PAGE_SHIFT: u32 = 12;
/// The base page in bytes (x86-64 and the common arm64 configuration).
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Pages in a block: the unit of locking, and of a transparent huge page on the supported machines.
pub const BLOCK_PAGES: u64 = 512;
/// A block in bytes (2 MiB).
pub const BLOCK_SIZE: u64 = BLOCK_PAGES * PAGE_SIZE;

/// A unit: a number in a type of its own, made by `new` and read by `get`.
macro_rules! unit {
    ($(#[$attribute:meta])* $name:ident($raw:ty)) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($raw);

        impl $name {
            /// The unit of value `raw`.
            #[must_use]
            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            /// The value as a number.
            #[must_use]
            pub const fn get(self) -> $raw {
                self.0
            }
        }
    };
}

unit! {
    /// A virtual address of this process, to the byte.
    #[derive(Default)]
    VirtAddr(u64)
}

impl VirtAddr {
    /// The first byte of the page that holds this address.
    #[inline]
    #[must_use]
    pub const fn page_down(self) -> Self {
        Self(self.0 & !(PAGE_SIZE - 1))
    }

    /// The first page boundary at or above this address; `None` past the end of the address space.
    #[inline]
    #[must_use]
    pub const fn page_up(self) -> Option<Self> {
        match self.0.checked_add(PAGE_SIZE - 1) {
            Some(raw) => Some(Self(raw & !(PAGE_SIZE - 1))),
            None => None,
        }
    }

    /// Whether the address is a multiple of the page.
    #[inline]
    #[must_use]
    pub const fn is_page_aligned(self) -> bool {
        self.0 & (PAGE_SIZE - 1) == 0
    }

    /// The number of the 2 MiB block that holds this address.
    #[inline]
    #[must_use]
    pub const fn block(self) -> BlockNo {
        BlockNo(self.0 / BLOCK_SIZE)
    }

    /// The index of this address's page inside its block, 0 to 511.
    #[inline]
    #[must_use]
    pub const fn index_in_block(self) -> usize {
        ((self.0 >> PAGE_SHIFT) & (BLOCK_PAGES - 1)) as usize
    }

    /// The address `pages` further on.
    #[inline]
    #[must_use]
    pub fn add_pages(self, pages: PageCount) -> Self {
        Self(self.0.checked_add(pages.bytes().get()).expect("address stays inside the address space"))
    }

    /// The distance from `from` up to this address in whole pages.
    #[inline]
    #[must_use]
    pub fn pages_since(self, from: Self) -> PageCount {
        PageCount((self.0 - from.0) >> PAGE_SHIFT)
    }
}

impl fmt::Debug for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for VirtAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

unit! {
    /// The number of a 2 MiB block of the address space (its address divided by 2 MiB).
    #[derive(Debug)]
    BlockNo(u64)
}

impl BlockNo {
    /// The next block.
    #[inline]
    #[must_use]
    pub const fn after(self) -> Self {
        Self(self.0 + 1)
    }

    /// The block's first byte.
    #[inline]
    #[must_use]
    pub const fn start(self) -> VirtAddr {
        VirtAddr(self.0 * BLOCK_SIZE)
    }

    /// The whole block as a range.
    #[inline]
    #[must_use]
    pub fn range(self) -> PageRange {
        PageRange { start: self.start(), pages: PageCount(BLOCK_PAGES) }
    }
}

unit! {
    /// A number of pages.
    #[derive(Default, Debug)]
    PageCount(u64)
}

impl PageCount {
    /// No page.
    pub const ZERO: Self = Self(0);
    /// One page.
    pub const ONE: Self = Self(1);
    /// The pages of a block.
    pub const BLOCK: Self = Self(BLOCK_PAGES);

    /// The count as an index or a slice length.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "hetmem runs on 64-bit machines only")]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }

    /// How many bytes those are.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> ByteLen {
        ByteLen(self.0 * PAGE_SIZE)
    }

    /// Whether there is no page.
    #[inline]
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl std::ops::Add for PageCount {
    type Output = Self;
    #[inline]
    fn add(self, other: Self) -> Self {
        Self(self.0.checked_add(other.0).expect("page count fits"))
    }
}

impl std::ops::AddAssign for PageCount {
    #[inline]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl std::ops::Sub for PageCount {
    type Output = Self;
    #[inline]
    fn sub(self, other: Self) -> Self {
        Self(self.0.checked_sub(other.0).expect("page count stays positive"))
    }
}

impl std::iter::Sum for PageCount {
    #[inline]
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, |a, b| a + b)
    }
}

unit! {
    /// A length in bytes.
    #[derive(Default, Debug)]
    ByteLen(u64)
}

impl ByteLen {
    /// The length as a slice length.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "hetmem runs on 64-bit machines only")]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }

    /// The whole pages in it.
    #[inline]
    #[must_use]
    pub const fn pages_down(self) -> PageCount {
        PageCount(self.0 >> PAGE_SHIFT)
    }

    /// The length in pages, if it is a multiple of the page.
    #[inline]
    #[must_use]
    pub const fn whole_pages(self) -> Option<PageCount> {
        if self.0 & (PAGE_SIZE - 1) == 0 { Some(PageCount(self.0 >> PAGE_SHIFT)) } else { None }
    }
}

/// Shown with the largest binary unit that divides it: `64 MiB`, `12 KiB`, `5 B`.
impl fmt::Display for ByteLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// A run of whole pages of the address space: `[start, end)`, never past its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRange {
    // Invariants: `start` is a multiple of the page; `start + pages` does not overflow.
    start: VirtAddr,
    pages: PageCount,
}

impl PageRange {
    /// Every page of the address space but its last.
    pub const ALL: Self = Self { start: VirtAddr(0), pages: PageCount((1 << (64 - PAGE_SHIFT)) - 1) };

    /// `pages` pages from `start`; `None` if `start` is not a multiple of the page or the end overflows.
    #[inline]
    #[must_use]
    pub fn new(start: VirtAddr, pages: PageCount) -> Option<Self> {
        let bytes = pages.get().checked_mul(PAGE_SIZE)?;
        start.get().checked_add(bytes)?;
        start.is_page_aligned().then_some(Self { start, pages })
    }

    /// The pages from `start` up to but without `end`; `None` unless both are page boundaries and in order.
    #[inline]
    #[must_use]
    pub fn between(start: VirtAddr, end: VirtAddr) -> Option<Self> {
        let bytes = end.get().checked_sub(start.get())?;
        Self::new(start, ByteLen(bytes).whole_pages()?)
    }

    /// The single page that holds `addr`.
    #[inline]
    #[must_use]
    pub const fn page_of(addr: VirtAddr) -> Self {
        Self { start: addr.page_down(), pages: PageCount::ONE }
    }

    /// The first address.
    #[inline]
    #[must_use]
    pub const fn start(self) -> VirtAddr {
        self.start
    }

    /// The first address after the range.
    #[inline]
    #[must_use]
    pub const fn end(self) -> VirtAddr {
        VirtAddr(self.start.0 + self.pages.0 * PAGE_SIZE)
    }

    /// The number of pages.
    #[inline]
    #[must_use]
    pub const fn pages(self) -> PageCount {
        self.pages
    }

    /// Whether the range holds no page.
    #[inline]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.pages.0 == 0
    }

    /// Whether `addr` lies in the range.
    #[inline]
    #[must_use]
    pub const fn contains(self, addr: VirtAddr) -> bool {
        self.start.0 <= addr.0 && addr.0 < self.end().0
    }

    /// Whether all of `other` lies in the range.
    #[inline]
    #[must_use]
    pub const fn contains_range(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.end().0 <= self.end().0
    }

    /// What both ranges hold; `None` if that is nothing.
    #[inline]
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (start < end).then(|| Self { start, pages: end.pages_since(start) })
    }

    /// Whether the ranges share a page.
    #[inline]
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.intersect(other).is_some()
    }

    /// The part of the range from page `skip` on, at most `take` pages long.
    #[inline]
    #[must_use]
    pub fn slice(self, skip: PageCount, take: PageCount) -> Self {
        let skip = skip.min(self.pages);
        Self { start: self.start.add_pages(skip), pages: take.min(self.pages - skip) }
    }

    /// The parts of the range that lie in one block each, in order.
    #[inline]
    pub fn by_block(self) -> impl Iterator<Item = (BlockNo, Self)> {
        let mut rest = self;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let block = rest.start.block();
            let here = rest.intersect(block.range())?;
            rest = rest.slice(here.pages, rest.pages);
            Some((block, here))
        })
    }

    /// The address of each page, in order.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = VirtAddr> {
        (0..self.pages.0).map(move |i| VirtAddr(self.start.0 + i * PAGE_SIZE))
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end())
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end())
    }
}

unit! {
    /// Which device: its place among the devices of a runtime, 0 to 255.
    #[derive(Debug)]
    DeviceId(u8)
}

impl DeviceId {
    /// The number, as an index.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

unit! {
    /// Which frame of a device: an index from 0 up to the device's capacity in pages.
    #[derive(Debug)]
    FrameIndex(u32)
}

impl FrameIndex {
    /// The number, as an index.
    #[inline]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A page frame number. The machine's own frames and the devices' frames are two spaces that never meet: bit 63 says
/// which, as the kernel is about to do for device-private pages (J. Niethe's series of 2025/26).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pfn(u64);

const PFN_DEVICE: u64 = 1 << 63;
/// x86-64 and arm64 end at 52 physical address bits, that is 40 bits of frame number.
const PFN_MACHINE_LIMIT: u64 = 1 << 40;

impl Pfn {
    /// A frame of the machine; `None` above what 52 physical address bits can name.
    #[inline]
    #[must_use]
    pub const fn machine(raw: u64) -> Option<Self> {
        if raw < PFN_MACHINE_LIMIT { Some(Self(raw)) } else { None }
    }

    /// A frame of a device.
    #[inline]
    #[must_use]
    pub const fn device(device: DeviceId, frame: FrameIndex) -> Self {
        Self(PFN_DEVICE | (device.0 as u64) << 32 | frame.0 as u64)
    }

    /// The device and frame, if this is a device's.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the fields are cut out of the word on purpose")]
    pub const fn as_device(self) -> Option<(DeviceId, FrameIndex)> {
        if self.0 & PFN_DEVICE == 0 {
            return None;
        }
        Some((DeviceId((self.0 >> 32) as u8), FrameIndex(self.0 as u32)))
    }

    /// The machine's frame number, if this is the machine's.
    #[inline]
    #[must_use]
    pub const fn as_machine(self) -> Option<u64> {
        if self.0 & PFN_DEVICE == 0 { Some(self.0) } else { None }
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_device() {
            Some((device, frame)) => write!(f, "device {} frame {}", device.0, frame.0),
            None => write!(f, "pfn {:#x}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_range_cannot_be_misaligned_or_overflow() {
        assert!(PageRange::new(VirtAddr::new(1), PageCount::ONE).is_none());
        assert!(PageRange::new(VirtAddr::new(!(PAGE_SIZE - 1)), PageCount::ONE).is_none());
        assert!(PageRange::between(VirtAddr::new(PAGE_SIZE), VirtAddr::new(0)).is_none());
    }

    #[test]
    fn by_block_covers_the_range_once_and_in_order() {
        let range = PageRange::new(VirtAddr::new(BLOCK_SIZE - PAGE_SIZE), PageCount::new(BLOCK_PAGES + 2)).unwrap();
        let parts: Vec<_> = range.by_block().collect();
        assert_eq!(
            parts.iter().map(|(b, r)| (b.get(), r.pages().get())).collect::<Vec<_>>(),
            [(0, 1), (1, 512), (2, 1)]
        );
        assert_eq!(parts.iter().flat_map(|(_, r)| r.iter()).collect::<Vec<_>>(), range.iter().collect::<Vec<_>>());
    }

    #[test]
    fn device_and_machine_frames_never_collide() {
        let device = Pfn::device(DeviceId::new(0), FrameIndex::new(5));
        assert_ne!(Some(device), Pfn::machine(5));
        assert!(Pfn::machine(1 << 40).is_none());
        assert_eq!(device.as_machine(), None);
    }

    #[test]
    fn byte_lengths_print_with_the_largest_exact_unit() {
        assert_eq!(ByteLen::new(64 << 20).to_string(), "64 MiB");
        assert_eq!(ByteLen::new(12 << 10).to_string(), "12 KiB");
        assert_eq!(ByteLen::new(5).to_string(), "5 B");
    }
}

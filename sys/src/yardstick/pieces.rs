//! Memory in many mappings, none of which the kernel joins with another.
#![expect(unsafe_code, reason = "memory named by number is lent as atomic words")]

use std::sync::atomic::AtomicU64;

use hetmem_core::units::{PAGE_SIZE, PageCount, PageRange};

use crate::copy::address;
use crate::errno::Errno;
use crate::mapping::{Access, Arena, ArenaOptions, HugePages, allow_access};

/// Mappings of the same size in small pages, with a page without access between each two, which is a mapping, too.
#[derive(Debug)]
pub struct Pieces {
    ranges: Vec<PageRange>,
    // The ranges are parts of it.
    _arena: Arena,
}

impl Pieces {
    /// `count` mappings of `pages` pages each that read as zeros; `ENOMEM` also where the process may not have that many mappings.
    pub fn new(count: usize, pages: PageCount) -> Result<Self, Errno> {
        let options = ArenaOptions {
            huge_pages: HugePages::Never,
            access: Access::AsAllowed,
            name: Some(c"hetmem:yardstick"),
            ..ArenaOptions::default()
        };
        let stride = pages + PageCount::ONE;
        let arena = Arena::reserve(PageCount::new(stride.get() * count as u64), &options)?;
        let piece = |i: u64| arena.range().slice(PageCount::new(i * stride.get()), pages);
        let ranges: Vec<PageRange> = (0..count as u64).map(piece).collect();
        ranges.iter().try_for_each(|range| allow_access(*range))?;
        Ok(Self { ranges, _arena: arena })
    }

    /// Where the mappings are, in order of address.
    #[must_use]
    pub fn ranges(&self) -> &[PageRange] {
        &self.ranges
    }

    /// The first word of each page of all of them.
    pub fn first_words(&self) -> impl Iterator<Item = &AtomicU64> {
        self.ranges.iter().flat_map(|range| range.iter()).map(|page| {
            let word: *const AtomicU64 = std::ptr::with_exposed_provenance(address(page));
            // SAFETY: readable and writable memory, aligned to a page, which lives as long as the pieces; any bytes are valid, and it is accessed
            // by atomic operations, or by the kernel, only.
            unsafe { &*word }
        })
    }

    /// All bytes of the mappings.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.pages().get() * PAGE_SIZE).sum()
    }
}

//! What is concluded of this machine, against what its kernel says page by page: `/proc/kpageflags`.
#![expect(clippy::print_stderr, reason = "a test that can't run here says so")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use hetmem_topology::Root;
use hetmem_topology::model::StructPages;

const PAGE: u64 = 4096;
const SUBSECTION: u64 = 2 << 20;
/// Bits of a page's word: there is no descriptor; the descriptor is reserved.
const NO_PAGE: u64 = 1 << 20;
const RESERVED: u64 = 1 << 32;

/// The word of the page at `address`; `None` past the last page that the kernel has.
fn flags(file: &File, address: u64) -> Option<u64> {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, address / PAGE * 8).ok()?;
    Some(u64::from_ne_bytes(word))
}

/// Where memory is there are pages, and where no descriptors are the kernel has none. What shares 2 MiB with memory of the boot is reserved.
///
/// The file shows no more: it asks for pages that are online, so the rest of the boot's sections, where `pfn_valid` holds as well, and ZONE_DEVICE
/// are not in it. Newer kernels say 0 for no page, which a page in use may have too.
#[test]
fn descriptors_are_where_the_kernel_says() {
    let file = match File::open("/proc/kpageflags") {
        Ok(file) if flags(&file, 0).is_some() => file,
        other => return eprintln!("skipped: /proc/kpageflags can't be read: {other:?}"),
    };
    let found = hetmem_topology::look(&Root::this_machine());
    let online: Vec<_> = found.ranges.iter().filter(|range| range.struct_pages == StructPages::Online).collect();
    let near_memory = |address: u64| {
        let around = address & !(SUBSECTION - 1);
        online.iter().any(|range| range.start.get() < around + SUBSECTION && around < range.end.get())
    };
    for range in found.ranges.iter().filter(|range| range.size_bytes >= 2 * PAGE) {
        // Whole pages inside it: its ends may share theirs with a neighbour.
        let first = range.start.get().next_multiple_of(PAGE);
        let last = (range.end.get() / PAGE - 1) * PAGE;
        for address in [first, last] {
            let word = flags(&file, address);
            #[expect(clippy::wildcard_enum_match_arm, reason = "of the others the file says nothing")]
            let right = match range.struct_pages {
                StructPages::Online => word.is_some_and(|word| word & NO_PAGE == 0),
                StructPages::BootSection if near_memory(address) => word.is_some_and(|word| word & RESERVED != 0),
                StructPages::None => word.is_none_or(|word| word == 0 || word & NO_PAGE != 0),
                _ => true,
            };
            assert!(right, "{address:#x} has {word:x?}: {range:#?}");
        }
    }
}

//! What the driver asks of the program's mappings before it migrates.

use std::sync::OnceLock;

use hetmem::mappings::{behind_files, visit};
use hetmem_core::units::{PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::maps::{Mapping, Perms};

/// The name of the files that stand for an open device and for memory mapped from it, without the number.
pub(crate) const NAME: &str = "hmm_dmirror";

/// A part of a range that lies in one mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) range: PageRange,
    pub(crate) perms: Perms,
}

/// The mappings of `range`, one after the other, and where the first of them is that can't be asked to migrate: not there, not readable, or
/// not ordinary memory.
pub(crate) fn migratable(range: PageRange) -> (Vec<Part>, Result<(), Errno>) {
    let mut parts: Vec<Part> = Vec::new();
    let mut at = range.start();
    let mut whole = true;
    // What was not visited is not reached below.
    let _ = visit(|mapping| {
        let Some(part) = mapping.range.intersect(range).filter(|part| !part.is_empty()) else { return };
        whole &= part.start() == at && mapping.perms.contains(Perms::READ) && !is_special(mapping);
        if whole {
            at = part.end();
            parts.push(Part { range: part, perms: mapping.perms });
        }
    });
    (parts, if at == range.end() { Ok(()) } else { Err(Errno::INVAL) })
}

/// This library's variables, which are its code's own, the fault path's too.
pub(crate) fn own_variables() -> &'static [PageRange] {
    static FOUND: OnceLock<Vec<PageRange>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let code = VirtAddr::new((own_variables as *const ()).addr() as u64);
        let mut library = Vec::new();
        // Unreadable once, unreadable below, where all memory is this library's then.
        let _ = visit(|mapping| {
            if mapping.range.contains(code.page_down()) {
                library = mapping.name.to_vec();
            }
        });
        behind_files(|file| file.name == library)
    })
}

/// Whether the kernel would migrate nothing of the mapping, and refuse to be asked (`VM_SPECIAL`, hugetlb, DAX).
fn is_special(mapping: &Mapping<'_>) -> bool {
    let name = mapping.name;
    let device = name.starts_with(b"/dev/") && ![&b"/dev/zero"[..], b"/dev/shm/"].iter().any(|n| name.starts_with(n));
    let of_this_device = name.strip_prefix(b"/memfd:").is_some_and(|name| name.starts_with(NAME.as_bytes()));
    let of_the_kernel = [&b"[vdso]"[..], b"[vvar", b"[vsyscall]"].iter().any(|n| name.starts_with(n));
    device || of_this_device || of_the_kernel || name.starts_with(b"/anon_hugepage")
}

/// Whether `page` is memory that the kernel maps by itself, which no device can read.
pub(crate) fn is_of_the_kernel(page: VirtAddr) -> bool {
    let mut found = false;
    // Where the mappings can't be read any may be.
    visit(|mapping| found |= mapping.range.contains(page) && is_special(mapping)).is_err() || found
}

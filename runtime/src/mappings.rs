//! The program's mappings, read from `/proc/self/maps`: which of its memory can be managed.

use std::ops::ControlFlow;

use hetmem_core::units::PageRange;
use hetmem_sys::maps::{Mapping, Perms, for_each_mapping};

/// Room for a line of the file: a path is at most 4096 bytes.
const BUFFER: usize = 16 << 10;

/// Calls `visit` with each mapping of the process, in order of address. A file that can't be read shows no mapping.
pub(crate) fn visit(mut visit: impl FnMut(&Mapping<'_>)) {
    let mut buffer = vec![0; BUFFER];
    // An unreadable file means that nothing is adopted, which is safe.
    let _ = for_each_mapping(&mut buffer, |mapping| {
        visit(mapping);
        ControlFlow::Continue(())
    });
}

/// Whether `mapping` is private memory that is no file's.
pub(crate) fn is_private_anonymous(mapping: &Mapping<'_>) -> bool {
    mapping.inode == 0 && !mapping.perms.contains(Perms::SHARED) && !is_special(mapping.name)
}

/// Names such as `[vdso]` or `[stack]` are the kernel's own; `[heap]` is the program's, and `[anon:…]` what it named itself.
fn is_special(name: &[u8]) -> bool {
    !name.is_empty() && name != b"[heap]" && !name.starts_with(b"[anon:")
}

/// The mappings of `extent`, in order, and whether each is private memory that is no file's.
pub(crate) fn mappings_in(extent: PageRange) -> Vec<(PageRange, bool)> {
    let mut found = Vec::new();
    visit(|mapping| {
        if let Some(part) = mapping.range.intersect(extent) {
            found.push((part, is_private_anonymous(mapping)));
        }
    });
    found
}

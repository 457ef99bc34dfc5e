//! The program's mappings, read from `/proc/self/maps`: which of its memory can be managed.

use std::ops::ControlFlow;

use hetmem_core::units::{PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::maps::{Mapping, Perms, for_each_mapping};

/// Room for a line of the file: a path is at most 4096 bytes.
const BUFFER: usize = 16 << 10;

/// Calls `visit` with each mapping of the process, in order of address.
///
/// # Errors
///
/// If the file can't be read, as after a `chroot`. What was visited until then is not all there is.
pub fn visit(mut visit: impl FnMut(&Mapping<'_>)) -> Result<(), Errno> {
    let mut buffer = vec![0; BUFFER];
    for_each_mapping(&mut buffer, |mapping| {
        visit(mapping);
        ControlFlow::Continue(())
    })
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
///
/// # Errors
///
/// As those of [`visit`].
pub(crate) fn mappings_in(extent: PageRange) -> Result<Vec<(PageRange, bool)>, Errno> {
    let mut found = Vec::new();
    visit(|mapping| {
        if let Some(part) = mapping.range.intersect(extent) {
            found.push((part, is_private_anonymous(mapping)));
        }
    })?;
    Ok(found)
}

/// The program's private anonymous memory in `within` that allows `needs`, without what is to be left `alone`, in order of address; none, if the mappings
/// can't be read. The main stack is left out: the kernel reads arguments and environment there for others. So is what can be written and executed, as
/// none of it can be moved ([`KeptReason::Executable`](crate::KeptReason::Executable)).
#[must_use]
pub fn eligible(within: PageRange, needs: Perms, alone: &[PageRange]) -> Vec<PageRange> {
    let mut found = Vec::new();
    let read = visit(|mapping| {
        if is_private_anonymous(mapping)
            && mapping.perms.contains(needs)
            && !mapping.perms.contains(Perms::WRITE | Perms::EXEC)
            && let Some(part) = mapping.range.intersect(within)
        {
            subtract(part, alone, &mut found);
        }
    });
    if read.is_ok() { found } else { Vec::new() }
}

/// The anonymous memory right behind mappings of files that are `chosen`: the variables that a library has no bytes for in its file, or what else happens
/// to be there. `chosen` is told whether the file is the program's own. All memory, if the mappings can't be read: whoever leaves alone what is here adopts
/// nothing then.
#[must_use]
pub fn behind_files(chosen: impl Fn(&Mapping<'_>, bool) -> bool) -> Vec<PageRange> {
    let mut found = Vec::new();
    let mut last: Option<VirtAddr> = None;
    let mut program = Vec::new();
    let read = visit(|mapping| {
        if mapping.inode != 0 {
            if program.is_empty() {
                // The first mapping of a file is the program's own: position-independent or not, it is lowest.
                program = mapping.name.to_vec();
            }
            last = chosen(mapping, mapping.name == program).then_some(mapping.range.end());
        } else if last == Some(mapping.range.start()) {
            last = Some(mapping.range.end());
            found.push(mapping.range);
        }
    });
    if read.is_ok() { found } else { vec![PageRange::ALL] }
}

fn subtract(range: PageRange, holes: &[PageRange], out: &mut Vec<PageRange>) {
    let Some(hole) = holes.iter().find_map(|hole| hole.intersect(range)) else {
        out.extend(Some(range).filter(|range| !range.is_empty()));
        return;
    };
    for rest in [PageRange::between(range.start(), hole.start()), PageRange::between(hole.end(), range.end())] {
        if let Some(rest) = rest.filter(|r| !r.is_empty()) {
            subtract(rest, holes, out);
        }
    }
}

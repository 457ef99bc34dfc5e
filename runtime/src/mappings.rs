//! The program's mappings, read from `/proc/self/maps`: which of its memory can be managed.

use std::ops::ControlFlow;

use hetmem_core::range_map::RangeMap;
use hetmem_core::units::{PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::maps::{Mapping, MapsFile, Perms};

/// Room for a line of the file: a path is at most 4096 bytes.
const BUFFER: usize = 16 << 10;

/// Calls `visit` with each mapping of the process, in order of address.
///
/// # Errors
///
/// If the file can't be read, as after a `chroot`. What was visited until then is not all there is.
pub fn visit(visit: impl FnMut(&Mapping<'_>)) -> Result<(), Errno> {
    visit_in(&MapsFile::open()?, visit)
}

/// Calls `visit` with each mapping that `maps`, a file that is open, shows, in order of address.
pub(crate) fn visit_in(maps: &MapsFile, mut visit: impl FnMut(&Mapping<'_>)) -> Result<(), Errno> {
    let mut buffer = vec![0; BUFFER];
    maps.for_each(&mut buffer, |mapping| {
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
pub(crate) fn mappings_in(maps: &MapsFile, extent: PageRange) -> Result<Vec<(PageRange, bool)>, Errno> {
    let mut found = Vec::new();
    visit_in(maps, |mapping| {
        if let Some(part) = mapping.range.intersect(extent) {
            found.push((part, is_private_anonymous(mapping)));
        }
    })?;
    Ok(found)
}

/// The program's private anonymous memory in `within` that allows `needs`, without what is to be left `alone`, in order of address; none, if the
/// mappings can't be read. The main stack is left out: the kernel reads arguments and environment there for others. So is what can be written and
/// executed, as none of it can be moved ([`KeptReason::Executable`](crate::KeptReason::Executable)).
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

/// Whether memory that allows this can be moved: what can be executed, too, can't be ([`KeptReason::Executable`](crate::KeptReason::Executable)).
fn is_adopted(perms: Perms) -> bool {
    perms.contains(Perms::READ | Perms::WRITE) && !perms.contains(Perms::EXEC)
}

/// What an agent adopts: the program's private anonymous memory that can be read and written, without what is to be left `alone`, the variables of
/// libraries and the main stack; in order of address. One look at the file.
pub(crate) fn adoptable(maps: &MapsFile, mut alone: RangeMap<()>) -> Vec<PageRange> {
    let mut candidates = Vec::new();
    let mut behind = BehindFiles::default();
    let read = visit_in(maps, |mapping| {
        if behind.is_a_librarys(mapping) {
            alone.insert(mapping.range, ());
        } else if is_private_anonymous(mapping) && is_adopted(mapping.perms) {
            candidates.push(mapping.range);
        }
    });
    if read.is_err() {
        // What is to be left alone may not have been seen.
        return Vec::new();
    }
    let mut found = Vec::new();
    for range in candidates {
        let mut at = range.start();
        for (hole, ()) in alone.overlapping(range) {
            found.extend(PageRange::between(at, hole.start()).filter(|part| !part.is_empty()));
            at = hole.end();
        }
        found.extend(PageRange::between(at, range.end()).filter(|part| !part.is_empty()));
    }
    found
}

/// Tells the anonymous memory right behind the mappings of a library: the variables that it has no bytes for in its file. A library is a file other than
/// the program that is mapped to be executed, and privately: its code is in front of its variables. Behind other files there is memory of any kind.
#[derive(Default)]
struct BehindFiles {
    program: Vec<u8>,
    /// The last file that was mapped to be executed.
    executed: Vec<u8>,
    /// The end of the last mapping, if what follows is a library's.
    end: Option<VirtAddr>,
}

impl BehindFiles {
    /// Whether `mapping` is such memory. Asked of each mapping, in order.
    fn is_a_librarys(&mut self, mapping: &Mapping<'_>) -> bool {
        if mapping.inode != 0 {
            if self.program.is_empty() {
                // The first mapping of a file is the program's own: position-independent or not, it is lowest.
                self.program = mapping.name.to_vec();
            }
            if mapping.perms.contains(Perms::EXEC) {
                self.executed = mapping.name.to_vec();
            }
            let is_a_librarys =
                mapping.name != self.program && mapping.name == self.executed && !mapping.perms.contains(Perms::SHARED);
            self.end = is_a_librarys.then_some(mapping.range.end());
            return false;
        }
        let follows = self.end == Some(mapping.range.start());
        if follows {
            self.end = Some(mapping.range.end());
        }
        follows
    }
}

/// The anonymous memory right behind mappings of files that are `chosen`: the variables that a library has no bytes for in its file, or what else
/// happens to be there. All memory, if the mappings can't be read: whoever leaves alone what is here adopts nothing then.
#[must_use]
pub fn behind_files(chosen: impl Fn(&Mapping<'_>) -> bool) -> Vec<PageRange> {
    let mut found = Vec::new();
    let mut last: Option<VirtAddr> = None;
    let read = visit(|mapping| {
        if mapping.inode != 0 {
            last = chosen(mapping).then_some(mapping.range.end());
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

#[cfg(test)]
mod tests {
    use super::*;
    use hetmem_core::units::PageCount;
    use hetmem_sys::maps::DeviceNumber;

    #[test]
    fn behind_a_library_are_its_variables_and_behind_other_files_is_memory_of_any_kind() {
        // Pages from here on, what they allow, and the file.
        let mappings: [(u64, Perms, &str); 12] = [
            (10, Perms::READ, "/program"),
            (11, Perms::READ | Perms::EXEC, "/program"),
            (12, Perms::READ | Perms::WRITE, "/program"),
            (13, Perms::READ | Perms::WRITE, ""),
            (20, Perms::READ, "/data"),
            (21, Perms::READ | Perms::WRITE, ""),
            (30, Perms::READ | Perms::EXEC, "/library"),
            (31, Perms::READ | Perms::WRITE, "/library"),
            (32, Perms::READ | Perms::WRITE, ""),
            (40, Perms::READ | Perms::WRITE, ""),
            (50, Perms::READ | Perms::WRITE | Perms::SHARED, "/library"),
            (51, Perms::READ | Perms::WRITE, ""),
        ];
        let mut behind = BehindFiles::default();
        let found = mappings.into_iter().filter(|(page, perms, name)| {
            let range = PageRange::new(VirtAddr::new(page * 4096), PageCount::ONE).unwrap();
            let inode = name.bytes().map(u64::from).sum();
            behind.is_a_librarys(&Mapping {
                range,
                perms: *perms,
                offset: 0,
                device: DeviceNumber { major: 0, minor: 0 },
                inode,
                name: name.as_bytes(),
            })
        });
        assert_eq!(found.map(|(page, ..)| page).collect::<Vec<_>>(), [32]);
    }
}

//! Which mappings this process has: `/proc/self/maps`, read and parsed without allocating.
//!
//! The kernel hands the file out in pieces, each consistent in itself: a mapping that changes during the walk may be
//! seen before or after the change, and one that moves may be missed. Whoever acts on a mapping must cope with its
//! being gone.

use std::ffi::CStr;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;

use hetmem_core::sync::{Mutex, lock};
use hetmem_core::units::{PageRange, VirtAddr};
use rustix::fs::{Mode, OFlags, SeekFrom};

use crate::errno::Errno;
use crate::flags::flags;

/// The buffer that [`for_each_mapping`] does well with: one page, and whole names up to that length.
pub const BUFFER_SIZE: usize = 4096;

flags! {
    /// What a mapping allows, and whether it is shared.
    Perms {
        /// Reads.
        READ = 1 << 0,
        /// Writes.
        WRITE = 1 << 1,
        /// Execution.
        EXEC = 1 << 2,
        /// Shared with whoever else maps the same file; else private.
        SHARED = 1 << 3,
    }
}

/// The number of a device that holds a mapped file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceNumber {
    /// The major number.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

/// One line of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping<'a> {
    /// Where it is.
    pub range: PageRange,
    /// What it allows.
    pub perms: Perms,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// The device that the file is on.
    pub device: DeviceNumber,
    /// The file; 0 if there is none.
    pub inode: u64,
    /// The file's path as the kernel prints it, or a name such as `[heap]`, `[anon:…]`; empty for anonymous memory.
    pub name: &'a [u8],
}

impl<'a> Mapping<'a> {
    /// Reads one line, without its line break; `None` if it has another form.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor { rest: line };
        let start = cursor.number(16, b'-')?;
        let end = cursor.number(16, b' ')?;
        let range = PageRange::between(VirtAddr::new(start), VirtAddr::new(end))?;
        let perms = parse_perms(cursor.field(b' ')?)?;
        let offset = cursor.number(16, b' ')?;
        let major = u32::try_from(cursor.number(16, b':')?).ok()?;
        let minor = u32::try_from(cursor.number(16, b' ')?).ok()?;
        let (inode, name) = match cursor.field(b' ') {
            Some(inode) => (number(inode, 10)?, cursor.rest.trim_ascii_start()),
            None => (number(cursor.rest, 10)?, &b""[..]),
        };
        Some(Self { range, perms, offset, device: DeviceNumber { major, minor }, inode, name })
    }

    /// Whether it is of no file. (Shared memory is of one, whose number may be 0.)
    #[must_use]
    pub const fn is_anonymous(&self) -> bool {
        self.inode == 0 && self.device.major == 0 && self.device.minor == 0
    }
}

struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// What comes before the next `end`, which is dropped.
    fn field(&mut self, end: u8) -> Option<&'a [u8]> {
        let at = self.rest.iter().position(|byte| *byte == end)?;
        let field = &self.rest[..at];
        self.rest = &self.rest[at + 1..];
        Some(field)
    }

    fn number(&mut self, radix: u32, end: u8) -> Option<u64> {
        number(self.field(end)?, radix)
    }
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    if digits.first() == Some(&b'+') {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
}

fn parse_perms(field: &[u8]) -> Option<Perms> {
    let [read, write, exec, share] = field else { return None };
    let one = |byte: u8, letter: u8, flag: Perms, off: u8| match byte {
        b if b == letter => Some(flag),
        b if b == off => Some(Perms::NONE),
        _ => None,
    };
    Some(
        one(*read, b'r', Perms::READ, b'-')?
            | one(*write, b'w', Perms::WRITE, b'-')?
            | one(*exec, b'x', Perms::EXEC, b'-')?
            | one(*share, b's', Perms::SHARED, b'p')?,
    )
}

/// The list of this process's mappings, kept open: later the process may have another root directory, or `/proc` may be gone.
#[derive(Debug)]
pub struct MapsFile {
    file: OwnedFd,
    // One reader at a time, as they share the file's offset.
    reading: Mutex<()>,
}

impl MapsFile {
    /// Opens the calling process's list.
    pub fn open() -> Result<Self, Errno> {
        let open = |path: &CStr| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut file = open(c"/proc/self/maps")?;
        // Once the first thread has ended, that one shows an empty file; this one does so once the calling thread has.
        if rustix::io::pread(&file, &mut [0; 1], 0) != Ok(1) {
            file = open(c"/proc/thread-self/maps")?;
        }
        Ok(Self { file, reading: Mutex::new(()) })
    }

    /// Calls `visit` with each mapping, in the order of addresses, until it breaks.
    ///
    /// `buffer` is where the file is read to; [`BUFFER_SIZE`] is a good size. A name that doesn't fit is cut short; a
    /// buffer that can't hold the fields before the name gives `EINVAL`.
    pub fn for_each(&self, buffer: &mut [u8], visit: impl FnMut(&Mapping<'_>) -> ControlFlow<()>) -> Result<(), Errno> {
        let _one_at_a_time = lock(&self.reading);
        rustix::fs::seek(&self.file, SeekFrom::Start(0))?;
        let mut seen = false;
        let read = |room: &mut [u8]| {
            let n = rustix::io::retry_on_intr(|| rustix::io::read(&self.file, &mut *room))?;
            // There is no process without a mapping.
            if n == 0 && !seen {
                Err(Errno::SRCH)
            } else {
                seen = true;
                Ok(n)
            }
        };
        walk(buffer, read, visit)
    }
}

/// Calls `visit` with each mapping of this process, as [`MapsFile::for_each`] does.
pub fn for_each_mapping(buffer: &mut [u8], visit: impl FnMut(&Mapping<'_>) -> ControlFlow<()>) -> Result<(), Errno> {
    MapsFile::open()?.for_each(buffer, visit)
}

/// Splits what `read` delivers into lines, and each line into a mapping.
fn walk(
    buffer: &mut [u8],
    mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>,
    mut visit: impl FnMut(&Mapping<'_>) -> ControlFlow<()>,
) -> Result<(), Errno> {
    if buffer.is_empty() {
        return Err(Errno::INVAL);
    }
    let mut filled = 0;
    // Whether what comes before the next line break is the tail of a line that has been visited, cut short.
    let mut skipping = false;
    loop {
        let got = read(&mut buffer[filled..])?;
        if got == 0 {
            return Ok(());
        }
        filled += got;
        let mut start = 0;
        while let Some(length) = buffer[start..filled].iter().position(|byte| *byte == b'\n') {
            let line = &buffer[start..start + length];
            start += length + 1;
            if std::mem::take(&mut skipping) {
                continue;
            }
            if visit(&Mapping::parse(line).ok_or(Errno::INVAL)?).is_break() {
                return Ok(());
            }
        }
        buffer.copy_within(start..filled, 0);
        filled -= start;
        if filled == buffer.len() {
            if !skipping && visit(&Mapping::parse(buffer).ok_or(Errno::INVAL)?).is_break() {
                return Ok(());
            }
            skipping = true;
            filled = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILE: &[u8] = b"00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/a file\n\
        00e03000-00e24000 rw-p 00000000 00:00 0           [heap]\n\
        7f0000000000-7f0000021000 rw-s 00001000 103:0a 18446744073709551615 /memfd:x (deleted)\n\
        7f0000021000-7f0004000000 ---p 00000000 00:00 0 \n\
        ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

    /// Reads `file` in pieces of `piece` bytes through a buffer of `size`; the starts and the names.
    fn walked(file: &[u8], size: usize, piece: usize) -> Result<Vec<(u64, Vec<u8>)>, Errno> {
        let mut rest = file;
        let mut seen = Vec::new();
        walk(
            &mut vec![0; size],
            |room| {
                let n = room.len().min(piece).min(rest.len());
                room[..n].copy_from_slice(&rest[..n]);
                rest = &rest[n..];
                Ok(n)
            },
            |mapping| {
                seen.push((mapping.range.start().get(), mapping.name.to_vec()));
                ControlFlow::Continue(())
            },
        )?;
        Ok(seen)
    }

    #[test]
    fn every_field_of_a_line_is_read() {
        let line = FILE.split(|b| *b == b'\n').nth(2).unwrap();
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!(mapping.range.pages().get(), 0x21);
        assert_eq!(mapping.perms, Perms::READ | Perms::WRITE | Perms::SHARED);
        assert_eq!((mapping.offset, mapping.inode), (0x1000, u64::MAX));
        assert_eq!(mapping.device, DeviceNumber { major: 0x103, minor: 10 });
        assert_eq!(mapping.name, b"/memfd:x (deleted)");
    }

    #[test]
    fn lines_split_anywhere_are_put_together() {
        let whole = walked(FILE, 4096, 4096).unwrap();
        assert_eq!(whole.len(), 5);
        assert_eq!(whole[0].1, b"/usr/bin/a file");
        assert_eq!(whole[3].1, b"");
        for size in [128, 200, 4096] {
            for piece in 1..130 {
                assert_eq!(walked(FILE, size, piece).unwrap(), whole, "buffer {size}, pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_name_longer_than_the_buffer_is_cut_and_the_next_line_is_whole() {
        let long =
            [b"1000-2000 rw-p 00000000 00:00 7 /".as_slice(), &[b'n'; 900], b"\n3000-4000 r--p 0 0:0 0\n"].concat();
        for piece in [1, 7, 4096] {
            let seen = walked(&long, 100, piece).unwrap();
            assert_eq!((seen[0].0, seen[0].1.len()), (0x1000, 100 - 32));
            assert_eq!(seen[1..], [(0x3000, Vec::new())]);
        }
    }

    #[test]
    fn a_buffer_too_small_for_the_fields_is_refused() {
        assert_eq!(walked(FILE, 16, 16), Err(Errno::INVAL));
        assert_eq!(walked(FILE, 0, 16), Err(Errno::INVAL));
    }

    #[test]
    fn this_process_has_a_stack_and_this_code() {
        let here = VirtAddr::new((this_process_has_a_stack_and_this_code as fn()) as usize as u64);
        let (mut stack, mut code) = (false, false);
        for_each_mapping(&mut [0; BUFFER_SIZE], |mapping| {
            stack |= mapping.name == b"[stack]";
            code |= mapping.range.contains(here) && mapping.perms.contains(Perms::EXEC);
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(stack && code);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(
            file in prop::collection::vec(
                prop_oneof![any::<u8>(), prop::sample::select(&b"0f-: rwxsp\n+"[..])],
                0..300,
            ),
            size in 0usize..64,
            piece in 1usize..64,
        ) {
            let _ = walked(&file, size, piece);
            let _ = Mapping::parse(&file);
        }

        #[test]
        fn a_damaged_line_never_panics(at in 0usize..60, byte in any::<u8>()) {
            let mut file = FILE.to_vec();
            file[at] = byte;
            let _ = walked(&file, 128, 9);
        }
    }
}

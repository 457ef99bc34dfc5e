//! A file, and mappings of it.
#![allow(dead_code, reason = "each test uses a part")]

use std::fs::File;
use std::io::Write;

use hetmem::{ByteLen, FileMapping, Outcomes, PageCount, Request, Runtime, Target};
use tempfile::NamedTempFile;

use super::PAGE;

/// Two blocks and a part of one.
pub(crate) const PAGES: usize = 512 * 2 + 100;
pub(crate) const HOME: Request = Request::all_to(Target::System);

pub(crate) fn word(page: usize, version: u64) -> u64 {
    (page as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ version
}

pub(crate) fn bytes(version: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGES * PAGE];
    for page in 0..PAGES {
        bytes[page * PAGE..page * PAGE + 8].copy_from_slice(&word(page, version).to_ne_bytes());
        bytes[(page + 1) * PAGE - 8..(page + 1) * PAGE].copy_from_slice(&word(page, version).to_ne_bytes());
    }
    bytes
}

/// A file of [`PAGES`] pages that nobody has open for writing.
pub(crate) fn file() -> tempfile::TempPath {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&bytes(0)).unwrap();
    file.into_temp_path()
}

pub(crate) fn map(runtime: &Runtime, path: &std::path::Path) -> FileMapping {
    runtime.map_file(File::open(path).unwrap(), 0, ByteLen::new((PAGES * PAGE) as u64)).unwrap()
}

pub(crate) fn read(mapping: &FileMapping, page: usize) -> (u64, u64) {
    let first = mapping.as_ptr().wrapping_add(page * PAGE).cast::<u64>();
    let last = mapping.as_ptr().wrapping_add((page + 1) * PAGE - 8).cast::<u64>();
    // SAFETY: inside the mapping, and words are aligned.
    [first, last].map(|word| unsafe { word.read_volatile() }).into()
}

pub(crate) fn is_page(mapping: &FileMapping, page: usize, version: u64) -> bool {
    read(mapping, page) == (word(page, version), word(page, version))
}

#[track_caller]
pub(crate) fn verify(mapping: &FileMapping, version: u64) {
    assert_eq!((0..PAGES).find(|page| !is_page(mapping, *page, version)), None, "a page is not the file's");
}

#[track_caller]
pub(crate) fn all_moved(outcomes: &Outcomes) {
    assert_eq!(outcomes.moved(), PageCount::new(PAGES as u64), "{outcomes:?}");
}

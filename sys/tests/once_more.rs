//! A file's mapping a second time, as it is mapped.
#![allow(unsafe_code, reason = "maps memory named by number")]

use std::io::Write as _;
use std::os::fd::AsFd as _;

use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::lease::Shadow;
use hetmem_sys::mapping::{map_once_more, map_once_more_over};
use hetmem_sys::procmap::{Found, MappingQuery};
use rustix::mm::{MapFlags, ProtFlags};

const PAGES: PageCount = PageCount::new(5);

/// A file that can only be read, with the number of the page in each byte.
fn file() -> std::fs::File {
    let path =
        std::env::temp_dir().join(format!("hetmem-once-more-{}-{:?}", std::process::id(), std::thread::current().id()));
    let mut made = std::fs::File::create(&path).unwrap();
    (0..5).for_each(|page| made.write_all(&[page; 4096]).unwrap());
    let opened = std::fs::File::open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    opened
}

fn map(file: &std::fs::File, flags: MapFlags) -> PageRange {
    // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
    let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), 5 * 4096, ProtFlags::READ, flags, file.as_fd(), 0) };
    PageRange::new(VirtAddr::new(at.unwrap().expose_provenance() as u64), PAGES).unwrap()
}

fn bytes(range: PageRange) -> Vec<u8> {
    let byte = |page: VirtAddr| {
        let at = std::ptr::with_exposed_provenance::<u8>(usize::try_from(page.get()).unwrap());
        // SAFETY: the first byte of a page of a mapping that can be read.
        unsafe { at.read() }
    };
    range.iter().map(byte).collect()
}

#[test]
fn it_is_private_or_shared_as_the_first_which_stays() {
    let Ok(query) = MappingQuery::open() else { return };
    let what = |found: Found| (found.perms, found.file, found.offset, found.anonymous);
    for flags in [MapFlags::PRIVATE, MapFlags::SHARED] {
        let file = file();
        let first = map(&file, flags);
        let as_first = what(query.find(first.start()).unwrap().unwrap());
        assert!(!as_first.3);
        drop(file);
        let second = PageRange::new(map_once_more(first).unwrap(), PAGES).unwrap();
        assert_eq!(what(query.find(second.start()).unwrap().unwrap()), as_first);
        assert_eq!((bytes(first), bytes(second)), (vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4]));
        // A part of it takes the place of other memory.
        // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
        let other = unsafe {
            let flags = MapFlags::PRIVATE;
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), 2 * 4096, ProtFlags::READ, flags)
        }
        .unwrap();
        let other = PageRange::new(VirtAddr::new(other.expose_provenance() as u64), PageCount::new(2)).unwrap();
        let part = second.slice(PageCount::new(2), PageCount::new(2));
        // SAFETY: the test's own memory.
        unsafe { map_once_more_over(part, other.start()) }.unwrap();
        let found = query.find(other.start()).unwrap().unwrap();
        assert_eq!((found.perms, found.file, found.offset), (as_first.0, as_first.1, as_first.2 + 2 * 4096));
        assert_eq!((bytes(other), bytes(second)), (vec![2, 3], vec![0, 1, 2, 3, 4]));
    }
}

#[test]
fn a_shadow_is_the_whole_mapping_or_none() {
    let file = file();
    let first = map(&file, MapFlags::PRIVATE);
    let shadow = Shadow::of_mapping(first, 0).unwrap();
    assert_eq!(bytes(shadow.range()), [0, 1, 2, 3, 4]);
    // SAFETY: the test's own memory.
    unsafe { hetmem_sys::lease::unmap(first.slice(PageCount::new(1), PageCount::new(1))) }.unwrap();
    assert_eq!(Shadow::of_mapping(first, 0).map(|_| ()), Err(Errno::FAULT));
}

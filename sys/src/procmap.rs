//! One mapping of this process by its address: the `PROCMAP_QUERY` ioctl (Linux 6.11). Unlike [`crate::maps`] it reads no text and
//! nothing but the mapping that is asked for.
#![expect(unsafe_code, reason = "an ioctl with a layout of its own")]

use std::ffi::c_void;
use std::os::fd::OwnedFd;

use hetmem_core::units::{PageRange, VirtAddr};
use rustix::fs::{Mode, OFlags};

use crate::errno::Errno;
use crate::maps::Perms;

/// `struct procmap_query`.
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// `_IOWR('f', 17, struct procmap_query)`.
const PROCMAP_QUERY: u32 = 0xC068_6611;
/// `PROCMAP_QUERY_COVERING_OR_NEXT_VMA`.
const COVERING_OR_NEXT: u64 = 1 << 4;
/// `PROCMAP_QUERY_VMA_READABLE` and so on are the bits of [`Perms`].
const PERMS: u64 = 0xF;

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<ProcmapQuery>() == 104 && (PROCMAP_QUERY >> 16 & 0x3FFF) as usize == size_of::<ProcmapQuery>());
    assert!(offset_of!(ProcmapQuery, vma_flags) == 40 && offset_of!(ProcmapQuery, vma_name_size) == 80);
    assert!(
        Perms::READ.bits() == 1 && Perms::WRITE.bits() == 2 && Perms::EXEC.bits() == 4 && Perms::SHARED.bits() == 8
    );
};

// SAFETY: number and layout are the kernel's, and the kernel writes nothing but the argument, which `as_ptr` points to: no buffer is
// named in it.
unsafe impl rustix::ioctl::Ioctl for &mut ProcmapQuery {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> rustix::ioctl::Opcode {
        PROCMAP_QUERY
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut::<ProcmapQuery>(self).cast()
    }

    unsafe fn output_from_ptr(_: rustix::ioctl::IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

/// What the kernel says of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Where it is.
    pub range: PageRange,
    /// What it allows.
    pub perms: Perms,
    /// The bytes that one of its pages has at least: more than 4096 for hugetlb.
    pub page_size: u64,
    /// Whether it is of no file.
    pub anonymous: bool,
    /// Which file it is of: device and number; zeros if it is of none.
    pub file: (u64, u64),
    /// Which byte of that is its first.
    pub offset: u64,
}

/// Asks for mappings of this process.
#[derive(Debug)]
pub struct MappingQuery {
    fd: OwnedFd,
}

impl MappingQuery {
    /// Opens the calling process's list. `ENOTTY` on kernels before 6.11.
    pub fn open() -> Result<Self, Errno> {
        let fd = rustix::fs::open(c"/proc/thread-self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let this = Self { fd };
        this.find(VirtAddr::default())?;
        Ok(this)
    }

    /// The mapping at `addr`, or else the next one after it; `None` if there is no such.
    pub fn find(&self, addr: VirtAddr) -> Result<Option<Found>, Errno> {
        let mut query = ProcmapQuery {
            size: size_of::<ProcmapQuery>() as u64,
            query_flags: COVERING_OR_NEXT,
            query_addr: addr.get(),
            ..ProcmapQuery::default()
        };
        // SAFETY: the layout is the kernel's and no buffer is named.
        match unsafe { rustix::ioctl::ioctl(&self.fd, &mut query) } {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        let range = PageRange::between(VirtAddr::new(query.vma_start), VirtAddr::new(query.vma_end));
        let range = range.ok_or(Errno::INVAL)?;
        Ok(Some(Found {
            range,
            perms: Perms::from_bits(query.vma_flags & PERMS),
            page_size: query.vma_page_size,
            anonymous: (query.inode, query.dev_major, query.dev_minor) == (0, 0, 0),
            file: (rustix::fs::makedev(query.dev_major, query.dev_minor), query.inode),
            offset: query.vma_offset,
        }))
    }
}

#[cfg(test)]
#[expect(clippy::print_stderr, reason = "a test that can't run here says so")]
mod tests {
    use super::*;
    use std::ops::ControlFlow;

    #[test]
    fn says_the_same_as_the_list() {
        let query = match MappingQuery::open() {
            Ok(query) => query,
            Err(Errno::NOTTY) => return eprintln!("skipped: PROCMAP_QUERY needs Linux 6.11"),
            Err(errno) => panic!("{errno}"),
        };
        let on_the_stack = 0u8;
        let places =
            [(says_the_same_as_the_list as fn()) as usize, std::ptr::from_ref(&on_the_stack).expose_provenance()];
        for (place, anonymous) in places.into_iter().zip([false, true]) {
            let here = VirtAddr::new(place as u64);
            let mut listed = None;
            crate::maps::for_each_mapping(&mut [0; 4096], |mapping| {
                if mapping.range.contains(here) {
                    listed = Some((mapping.range, mapping.perms, mapping.is_anonymous()));
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })
            .unwrap();
            let found = query.find(here).unwrap().unwrap();
            assert_eq!(Some((found.range, found.perms, found.anonymous)), listed);
            assert_eq!((found.page_size, found.anonymous), (4096, anonymous));
        }
        assert_eq!(query.find(VirtAddr::new(1 << 62)).unwrap(), None);
    }
}

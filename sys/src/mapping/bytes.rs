//! Memory of hetmem's own that is read and written by offset, as a file is, and grows from its beginning on.
#![expect(unsafe_code, reason = "copies into and out of an arena")]

use std::ffi::CStr;

use hetmem_core::units::{BLOCK_SIZE, ByteLen, PAGE_SIZE, PageCount, PageRange};

use super::arena::{Access, Arena, ArenaOptions, HugePages, OnDump, OnFork};
use crate::copy::address;
use crate::errno::Errno;

/// Bytes that are zeros until they are written. No memory is taken before, and none of it is lent: bytes are copied in and out. Neither forked children
/// nor core dumps have them.
#[derive(Debug)]
pub struct ByteArena {
    // Invariant: the first `open` bytes can be read and written, by who has this alone.
    arena: Arena,
    open: usize,
}

impl ByteArena {
    /// Reserves address space for `pages` pages, which `/proc/PID/maps` calls `name`.
    ///
    /// # Errors
    ///
    /// Where there is none.
    pub fn reserve(pages: PageCount, name: &CStr) -> Result<Self, Errno> {
        let options = ArenaOptions {
            // What is dropped is to be free, and what is not used never taken.
            huge_pages: HugePages::Never,
            on_fork: OnFork::Omit,
            on_dump: OnDump::Omit,
            access: Access::AsOpened,
            name: Some(name),
            ..ArenaOptions::default()
        };
        Ok(Self { arena: Arena::reserve(pages, &options)?, open: 0 })
    }

    /// How many bytes there can be.
    #[must_use]
    pub fn len(&self) -> usize {
        self.arena.range().pages().bytes().as_usize()
    }

    /// Whether there can be none, which is never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.arena.range().is_empty()
    }

    /// Has the first `bytes` bytes be such that they can be written.
    ///
    /// # Errors
    ///
    /// `ENOMEM` where the process may have no more such memory, `EINVAL` beyond what was reserved.
    pub fn open(&mut self, bytes: usize) -> Result<(), Errno> {
        if bytes <= self.open {
            return Ok(());
        }
        if bytes > self.len() {
            return Err(Errno::INVAL);
        }
        // Whole blocks, as the arena opens them.
        let block = ByteLen::new(BLOCK_SIZE).as_usize();
        let to = bytes.next_multiple_of(block).min(self.len());
        self.arena.open(self.part(self.open, to - self.open))?;
        self.open = to;
        Ok(())
    }

    /// Copies the bytes from `at` on into `to`.
    ///
    /// # Panics
    ///
    /// If they are beyond the end.
    pub fn read(&self, at: usize, to: &mut [u8]) {
        assert!(at <= self.len() && to.len() <= self.len() - at, "bytes that are read are there");
        let there = to.len().min(self.open.saturating_sub(at));
        let (there, beyond) = to.split_at_mut(there);
        beyond.fill(0);
        // SAFETY: by the invariant the bytes can be read, and nobody writes them while this is borrowed; `there` is somebody's own memory.
        unsafe { std::ptr::copy_nonoverlapping(self.pointer(at).cast_const(), there.as_mut_ptr(), there.len()) };
    }

    /// Copies `from` to where the bytes from `at` on are.
    ///
    /// # Panics
    ///
    /// If they are not open.
    pub fn write(&mut self, at: usize, from: &[u8]) {
        assert!(at <= self.open && from.len() <= self.open - at, "bytes that are written are open");
        // SAFETY: by the invariant the bytes can be written, and nobody else has them; `from` is somebody's own memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.pointer(at), from.len()) };
    }

    /// Copies `bytes` bytes from `from` to `to`.
    ///
    /// # Panics
    ///
    /// If they are not open.
    pub fn copy(&mut self, from: usize, to: usize, bytes: usize) {
        assert!(from.max(to) <= self.open && bytes <= self.open - from.max(to), "bytes that are copied are open");
        // SAFETY: by the invariant both can be read and written, and nobody else has them.
        unsafe { std::ptr::copy(self.pointer(from).cast_const(), self.pointer(to), bytes) };
    }

    /// Takes memory for the pages that the `bytes` bytes from `at` on are in, which are open.
    ///
    /// # Errors
    ///
    /// `ENOMEM` where there is none.
    pub fn populate(&mut self, at: usize, bytes: usize) -> Result<(), Errno> {
        self.arena.populate(self.part(at, bytes))
    }

    /// Gives back the memory of the pages that the `bytes` bytes from `at` on are in: they are zeros again.
    ///
    /// # Errors
    ///
    /// If it is locked.
    pub fn discard(&mut self, at: usize, bytes: usize) -> Result<(), Errno> {
        self.arena.discard(self.part(at, bytes))
    }

    fn part(&self, at: usize, bytes: usize) -> PageRange {
        let page = ByteLen::new(PAGE_SIZE).as_usize();
        let (first, end) = (at / page, (at + bytes).div_ceil(page));
        self.arena.range().slice(PageCount::new(first as u64), PageCount::new((end - first) as u64))
    }

    fn pointer(&self, at: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(address(self.arena.range().start()) + at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_zeros_until_they_are_written_and_after_they_were_dropped() {
        let mut bytes = ByteArena::reserve(PageCount::new(1025), c"hetmem:test").unwrap();
        let mut read = [7; 6];
        bytes.read(bytes.len() - 6, &mut read);
        assert_eq!(read, [0; 6]);
        bytes.open(5000).unwrap();
        bytes.populate(4096, 4096).unwrap();
        bytes.write(4094, &[1, 2, 3, 4]);
        bytes.read(4093, &mut read);
        assert_eq!(read, [0, 1, 2, 3, 4, 0]);
        bytes.copy(4094, 100, 3);
        bytes.read(99, &mut read[..5]);
        assert_eq!(read, [0, 1, 2, 3, 0, 0]);
        bytes.discard(4096, 1).unwrap();
        bytes.read(4093, &mut read);
        assert_eq!(read, [0, 1, 2, 0, 0, 0]);
        bytes.open(bytes.len()).unwrap();
        bytes.write(bytes.len() - 1, &[9]);
        bytes.read(bytes.len() - 6, &mut read);
        assert_eq!(read, [0, 0, 0, 0, 0, 9]);
        assert_eq!(bytes.open(bytes.len() + 1), Err(Errno::INVAL));
    }

    #[test]
    fn what_is_not_open_can_be_read_and_not_written() {
        let mut bytes = ByteArena::reserve(PageCount::new(1024), c"hetmem:test").unwrap();
        bytes.open(1).unwrap();
        // Half of it is open: blocks are 2 MiB.
        let mut across = [1; 8];
        bytes.read(2 << 20, &mut across);
        bytes.read((2 << 20) - 4, &mut across);
        assert_eq!(across, [0; 8]);
        let beyond = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| bytes.write(2 << 20, &[1])));
        assert!(beyond.is_err());
    }
}

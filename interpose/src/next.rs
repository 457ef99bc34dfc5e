//! The functions behind those that a preloaded library puts in front of the C library's.

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

use hetmem_core::units::{PageRange, VirtAddr};
use hetmem_sys::thread::next_symbol;

/// The C library's own definition of a function, looked up once.
pub struct Next {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

impl Next {
    /// Of this name.
    #[must_use]
    pub const fn new(name: &'static CStr) -> Self {
        Self { name, found: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Its address.
    #[must_use]
    pub fn get(&self) -> *mut c_void {
        // Relaxed: every look-up finds the same.
        let found = self.found.load(Ordering::Relaxed);
        if !found.is_null() {
            return found;
        }
        let found = next_symbol(self.name);
        if found.is_null() {
            // The program was linked against this function, so some library has it.
            hetmem_sys::process::die();
        }
        self.found.store(found, Ordering::Relaxed);
        found
    }
}

/// The pages that hold `size` bytes from `start` on, as an argument of such a function names them.
#[must_use]
pub fn pages_of(start: *mut c_void, size: usize) -> Option<PageRange> {
    let first = VirtAddr::new(start.addr() as u64);
    let end = VirtAddr::new(first.get().checked_add(size as u64)?).page_up()?;
    PageRange::between(first.page_down(), end).filter(|range| !range.is_empty())
}

//! The functions behind those that a preloaded library puts in front of the C library's.
#![expect(unsafe_code, reason = "a symbol is an address, and becomes a function")]

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
    /// The function of this name; it is looked up when it is first asked for.
    #[must_use]
    pub const fn new(name: &'static CStr) -> Self {
        Self { name, found: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// The function's address. Ends the process if no library has it.
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

    /// The function, with the type of the one that stands in front of it.
    ///
    /// # Safety
    ///
    /// `F` is a type of function pointers, and callers of the function use it as one of this type.
    #[inline(always)]
    pub unsafe fn like<F: Copy>(&self, _in_front: F) -> F {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let found = self.get();
        // SAFETY: as the caller promised; of the same size.
        unsafe { std::mem::transmute_copy(&found) }
    }
}

/// The function behind the one of this name, which stands in front of it and gives it its type: in `setns` that is `next!(setns(_, _))`, with a
/// `_` for each argument.
#[macro_export]
macro_rules! next {
    ($name:ident($($argument:ty),*)) => {{
        static NEXT: $crate::next::Next = $crate::next::Next::new($crate::next::symbol(concat!(stringify!($name), "\0")));
        let in_front: unsafe extern "C-unwind" fn($($argument),*) -> _ = $name;
        // SAFETY: whoever calls it by its name finds the one or the other. Arguments that the program does not pass are not looked at.
        unsafe { NEXT.like(in_front) }
    }};
}

/// For [`next!`](crate::next!): a name with a NUL behind it.
#[doc(hidden)]
#[must_use]
pub const fn symbol(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a name and a NUL"),
    }
}

/// The pages that hold `size` bytes from `start` on, as an argument of such a function names them.
#[must_use]
pub fn pages_of(start: *mut c_void, size: usize) -> Option<PageRange> {
    let first = VirtAddr::new(start.addr() as u64);
    let end = VirtAddr::new(first.get().checked_add(size as u64)?).page_up()?;
    PageRange::between(first.page_down(), end).filter(|range| !range.is_empty())
}

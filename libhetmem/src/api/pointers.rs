//! What C hands in: each pointer is checked as far as one can be, once, and is a Rust reference or a typed place from then on.
#![expect(unsafe_code, reason = "makes references of C's pointers")]

use std::ffi::{CStr, c_char};
use std::mem::size_of;
use std::ptr::NonNull;

use super::failure::Failure;

fn checked<T>(at: *const T, name: &str) -> Result<NonNull<T>, Failure> {
    let Some(found) = NonNull::new(at.cast_mut()) else {
        return Err(Failure::invalid(format!("{name} is NULL")));
    };
    if found.is_aligned() {
        Ok(found)
    } else {
        Err(Failure::invalid(format!("{name} is {at:p}, which is not aligned to {} bytes", align_of::<T>())))
    }
}

/// What `at` points to.
///
/// # Safety
///
/// If `at` is neither null nor misaligned, it is valid for reads for as long as the caller uses the result, and nobody writes to it
/// meanwhile.
pub(crate) unsafe fn borrow<'a, T>(at: *const T, name: &str) -> Result<&'a T, Failure> {
    let at = checked(at, name)?;
    // SAFETY: not null and aligned; the rest is the caller's promise.
    Ok(unsafe { at.as_ref() })
}

/// As [`borrow`], to change it.
///
/// # Safety
///
/// As for [`borrow`], and nobody reads it meanwhile.
pub(crate) unsafe fn borrow_mut<'a, T>(at: *mut T, name: &str) -> Result<&'a mut T, Failure> {
    let mut at = checked(at, name)?;
    // SAFETY: not null and aligned; the rest is the caller's promise.
    Ok(unsafe { at.as_mut() })
}

/// A text.
///
/// # Safety
///
/// If `at` is not null, it points to a text that ends with a NUL and stays as it is while the caller uses the result.
pub(crate) unsafe fn text<'a>(at: *const c_char, name: &str) -> Result<&'a str, Failure> {
    let at = checked(at, name)?;
    // SAFETY: not null; the rest is the caller's promise.
    let text = unsafe { CStr::from_ptr(at.as_ptr()) };
    text.to_str().map_err(|error| Failure::invalid(format!("{name} is not UTF-8: {error}")))
}

/// The array of `count` elements at `at`, which may be null if there are none.
///
/// # Safety
///
/// As for [`borrow`], for all elements.
pub(crate) unsafe fn array<'a, T>(at: *const T, count: usize, name: &str) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    let at = checked_array(at, count, name)?;
    // SAFETY: not null, aligned, and its size is that of an object; the rest is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(at.as_ptr(), count) })
}

fn checked_array<T>(at: *const T, count: usize, name: &str) -> Result<NonNull<T>, Failure> {
    let start = checked(at, name)?;
    let bytes = count.checked_mul(size_of::<T>()).filter(|bytes| isize::try_from(*bytes).is_ok());
    if bytes.and_then(|bytes| at.addr().checked_add(bytes)).is_none() {
        return Err(Failure::invalid(format!("{count} elements of {name} are more than memory holds")));
    }
    Ok(start)
}

/// A place of the caller's for results: `count` elements, written one after the other.
///
/// Nothing is referred to, only written: another thread may read the place, which is its own affair.
pub(crate) struct Out<T> {
    // INVARIANT: the `left` elements from `next` on are valid for writes.
    next: NonNull<T>,
    left: usize,
}

impl<T: Copy> Out<T> {
    /// A place for one.
    ///
    /// # Safety
    ///
    /// If `at` is neither null nor misaligned, it is valid for writes for as long as the caller uses the result.
    pub(crate) unsafe fn one(at: *mut T, name: &str) -> Result<Self, Failure> {
        // INVARIANT: the caller's promise.
        Ok(Self { next: checked(at, name)?, left: 1 })
    }

    /// A place for `count`; null, for none, is right if `count` is 0.
    ///
    /// # Safety
    ///
    /// As for [`Out::one`], for all elements.
    pub(crate) unsafe fn many(at: *mut T, count: usize, name: &str) -> Result<Self, Failure> {
        let next = if count == 0 { NonNull::dangling() } else { checked_array(at, count, name)? };
        // INVARIANT: the caller's promise.
        Ok(Self { next, left: count })
    }

    /// A place for one that the caller may not want.
    ///
    /// # Safety
    ///
    /// As for [`Out::one`].
    pub(crate) unsafe fn optional(at: *mut T, name: &str) -> Result<Self, Failure> {
        // SAFETY: as the caller promised.
        unsafe { Self::many(at, usize::from(!at.is_null()), name) }
    }

    /// How many are still to be written.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Writes the next one; does nothing when there is no place left.
    pub(crate) fn put(&mut self, value: T) {
        if self.left == 0 {
            return;
        }
        // SAFETY: by the invariant.
        unsafe { self.next.write(value) };
        // SAFETY: there was one more, so this is at most the end of the caller's array.
        self.next = unsafe { self.next.add(1) };
        self.left -= 1;
    }
}

/// What a handle owns; `None` for null.
///
/// # Safety
///
/// `at` is null or from `Box::into_raw`, and is not used again.
pub(crate) unsafe fn take<T>(at: *mut T) -> Option<Box<T>> {
    // SAFETY: not null, and as the caller promised.
    (!at.is_null()).then(|| unsafe { Box::from_raw(at) })
}

//! Calls about the program's memory.

use std::ffi::{c_int, c_ulong, c_void};
use std::mem::MaybeUninit;

use hetmem_core::units::{PageRange, VirtAddr};
use hetmem_preload::divided::{self, MremapFn};
use hetmem_preload::errno::{errno, set_errno};
use hetmem_preload::next::{Next, pages_of};
use hetmem_sys::access::read_checked;
use hetmem_sys::errno::Errno;
use hetmem_sys::uffd::{MOVE_REQUEST, REGISTER_REQUEST, is_userfaultfd};
use runtime::agent;

static NEXT_IOCTL: Next = Next::new(c"ioctl");
static NEXT_MREMAP: Next = Next::new(c"mremap");
static NEXT_MINCORE: Next = Next::new(c"mincore");
static NEXT_MLOCKALL: Next = Next::new(c"mlockall");

/// A type of which any bytes are a value.
///
/// # Safety
///
/// They are.
pub(super) unsafe trait Readable: Copy {}

// SAFETY: words.
unsafe impl<const N: usize> Readable for [u64; N] {}

/// What is at `at`, read as the kernel would; `None` if it can't be.
pub(super) fn read<T: Readable>(at: *const T) -> Option<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: all of the value's bytes, which are initialised.
    let bytes = unsafe { std::slice::from_raw_parts_mut(value.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
    match read_checked(VirtAddr::new(at.addr() as u64), bytes) {
        Ok(()) => {}
        Err(Errno::FAULT) => return None,
        // A sandbox forbids the call: the caller has pointed to something it says is there.
        // SAFETY: as the caller of the C function promised.
        Err(_) if !at.is_null() => return Some(unsafe { at.read_unaligned() }),
        Err(_) => return None,
    }
    // SAFETY: any bytes are a value.
    Some(unsafe { value.assume_init() })
}

/// `ioctl(2)`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn ioctl(fd: c_int, request: c_ulong, arg: *mut c_void) -> c_int {
    type IoctlFn = unsafe extern "C-unwind" fn(c_int, c_ulong, *mut c_void) -> c_int;
    // SAFETY: the symbol is a function of this type, as far as its callers use it.
    let next = unsafe { std::mem::transmute::<*mut c_void, IoctlFn>(NEXT_IOCTL.get()) };
    // SAFETY: as the caller promised.
    let call = || unsafe { next(fd, request, arg) };
    if !matches!(request, REGISTER_REQUEST | MOVE_REQUEST) || !agent::is_running() || !is_userfaultfd(fd) {
        return call();
    }
    // What the program moves must be home: the kernel takes a page that is away for a hole.
    if request == MOVE_REQUEST {
        return agent::all_home(call);
    }
    // The argument of a registration begins with the range, two words.
    if let Some([start, len]) = read(arg.cast_const().cast::<[u64; 2]>()) {
        let end = start.checked_add(len).map(VirtAddr::new);
        if let Some(range) = end.and_then(|end| PageRange::between(VirtAddr::new(start), end)) {
            agent::release_range(range);
        }
    }
    call()
}

/// `mremap(2)`.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn mremap(
    old: *mut c_void,
    old_size: usize,
    new_size: usize,
    flags: c_int,
    new: *mut c_void,
) -> *mut c_void {
    // SAFETY: the symbol is a function of this type; where the caller passed four arguments, the fifth is not looked at.
    let next = unsafe { std::mem::transmute::<*mut c_void, MremapFn>(NEXT_MREMAP.get()) };
    // SAFETY: as the caller promised.
    let call = || unsafe { next(old, old_size, new_size, flags, new) };
    let Some(range) = pages_of(old, old_size).filter(|_| agent::is_running()) else { return call() };
    // To a fixed place Linux 6.17 and newer move several mappings one by one, and stop half-way at one that is registered.
    if flags & libc::MREMAP_FIXED == 0 {
        let moved = call();
        if moved != libc::MAP_FAILED || errno() != libc::EFAULT {
            return moved;
        }
    }
    // A range that spans two mappings is refused: those of the program, or one that a registration has divided.
    agent::undivided(range, || {
        let moved = call();
        if moved != libc::MAP_FAILED || errno() != libc::EFAULT {
            return moved;
        }
        // SAFETY: as the caller promised.
        unsafe { divided::mremap(next, range, new_size, flags, new, agent::last_word) }.unwrap_or_else(|| {
            set_errno(libc::EFAULT);
            moved
        })
    })
}

/// `mincore(2)`: to the program, pages that are away are in memory.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn mincore(start: *mut c_void, size: usize, resident: *mut u8) -> c_int {
    type MincoreFn = unsafe extern "C-unwind" fn(*mut c_void, usize, *mut u8) -> c_int;
    // SAFETY: the symbol is a function of this type.
    let next = unsafe { std::mem::transmute::<*mut c_void, MincoreFn>(NEXT_MINCORE.get()) };
    let Some(range) = pages_of(start, size).filter(|_| agent::is_running()) else {
        // SAFETY: as the caller promised.
        return unsafe { next(start, size, resident) };
    };
    // Asked before as well as after: a page that comes home in between is in neither of the kernel's and the second answer.
    let mut away = Vec::new();
    agent::each_unseen(range, |page| away.push(page.start()));
    // SAFETY: as the caller promised.
    let result = unsafe { next(start, size, resident) };
    if result == 0 {
        agent::each_unseen(range, |page| away.push(page.start()));
        for page in away {
            let at = resident.wrapping_add(page.pages_since(range.start()).as_usize());
            // SAFETY: the kernel has written a byte for each page of the range.
            unsafe { *at |= 1 };
        }
    }
    result
}

/// `mlockall(2)`: what is hetmem's is not the program's to lock.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn mlockall(flags: c_int) -> c_int {
    // SAFETY: the symbol is a function of this type.
    let next =
        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn(c_int) -> c_int>(NEXT_MLOCKALL.get()) };
    // SAFETY: as the caller promised.
    let result = unsafe { next(flags) };
    if result == 0 && agent::is_running() {
        hetmem_sys::mapping::unlock_set_aside();
    }
    result
}

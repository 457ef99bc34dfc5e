//! Calls about the program's memory.

use std::ffi::{c_int, c_ulong, c_void};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;

use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_interpose::cancel::uncancelled;
use hetmem_interpose::divided;
use hetmem_interpose::errno::{errno, keeping_errno, set_errno};
use hetmem_interpose::next;
use hetmem_interpose::next::pages_of;
use hetmem_sys::access::read_checked;
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::{Guard, set_aside, unlock_set_aside};
use hetmem_sys::maps::{self, Mapping};
use hetmem_sys::process::{lock_limit, with_signals_blocked};
use hetmem_sys::uffd::{MOVE_REQUEST, REGISTER_REQUEST, is_userfaultfd};

use super::alone::leave_for_good;
use super::direct::make;
use super::files::{change, is_a_hint};

/// Where the addresses of programs end at the latest, on the largest page tables.
const ADDRESSES: u64 = 1 << 56;

/// Linux 5.18; the C library's headers may be older.
const MADV_DONTNEED_LOCKED: c_int = 24;

/// Pages of which is asked at a time what is there (256 MiB).
const MINCORE_STEP: PageCount = PageCount::new(1 << 16);

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
    let next = next!(ioctl(_, _, _));
    // SAFETY: as the caller promised.
    let call = || unsafe { next(fd, request, arg) };
    if !matches!(request, REGISTER_REQUEST | MOVE_REQUEST) || !agent::is_running() {
        return call();
    }
    uncancelled(|| if is_userfaultfd(fd) { ask_userfaultfd(request, arg, call) } else { call() })
}

/// Makes the `call` that registers memory with a userfaultfd of the program's, or moves what is in its memory.
fn ask_userfaultfd(request: c_ulong, arg: *mut c_void, call: impl FnOnce() -> c_int) -> c_int {
    // What the program moves must be home: the kernel takes a page that is away for a hole.
    if request == MOVE_REQUEST {
        let mut left = 0;
        let moved = agent::all_home(|| {
            let moved = call();
            left = errno();
            moved
        });
        set_errno(left);
        return moved;
    }
    // The argument of a registration begins with the range, two words.
    if let Some([start, len]) = read(arg.cast_const().cast::<[u64; 2]>()) {
        let end = start.checked_add(len).filter(|end| *end <= ADDRESSES).map(VirtAddr::new);
        // Others are refused.
        let range = end.and_then(|end| PageRange::between(VirtAddr::new(start), end));
        if let Some(range) = range.filter(|range| !range.is_empty()) {
            agent::give_files_up(range);
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
    let call = divided::Call { next: next!(mremap(_, _, _, _, _)), old, old_size, new_size, flags, new };
    if !agent::is_running() {
        // SAFETY: as the caller promised.
        return unsafe { call.make() };
    }
    if agent::manages_files() {
        uncancelled(|| {
            // One of no length maps a second time what is there.
            change(old, old_size.max(1));
            if flags & libc::MREMAP_FIXED != 0 {
                change(new, new_size);
            }
        });
    }
    // SAFETY: as the caller promised.
    unsafe { call.make_undivided(|range, call| agent::undivided(range, call), agent::last_word) }
}

/// `madvise(2)`: guard markers are put in place with nothing on its way, and the end of a removal is heard of.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn madvise(start: *mut c_void, size: usize, advice: c_int) -> c_int {
    if agent::manages_files() && !is_a_hint(advice) && agent::is_running() {
        uncancelled(|| change(start, size));
    }
    if let Some(what) = Guard::from_advice(advice)
        // SAFETY: as the caller promised.
        && let Some(result) = uncancelled(|| unsafe { agent::guard(start.addr() as u64, size as u64, what) })
    {
        return result.map_or_else(
            |errno| {
                set_errno(errno.raw_os_error());
                -1
            },
            |()| 0,
        );
    }
    let next = next!(madvise(_, _, _));
    // SAFETY: as the caller promised.
    let result = unsafe { next(start, size, advice) };
    if matches!(advice, libc::MADV_DONTNEED | libc::MADV_FREE | libc::MADV_REMOVE | MADV_DONTNEED_LOCKED) {
        agent::removal_returned();
    }
    result
}

/// `process_madvise(2)`.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn process_madvise(
    pidfd: c_int,
    iov: *const libc::iovec,
    count: usize,
    advice: c_int,
    flags: libc::c_uint,
) -> isize {
    before_process_madvise(advice);
    let (vectors, word) = (iov.expose_provenance(), |number: c_int| (number as isize).cast_unsigned());
    // Not the C library's, which has it since glibc 2.36 only, and adds nothing.
    // SAFETY: as the caller promised.
    unsafe { make(libc::SYS_process_madvise, [word(pidfd), vectors, count, word(advice), flags as usize, 0]) }
}

/// The vectors may lie where nothing can be read, which is the kernel's to say: so not only what they name is looked at.
pub(super) fn before_process_madvise(advice: c_int) {
    if Guard::from_advice(advice) == Some(Guard::Remove) {
        uncancelled(agent::look_for_guards);
    }
}

/// `mincore(2)`: to the program, pages that are away are in memory.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn mincore(start: *mut c_void, size: usize, resident: *mut u8) -> c_int {
    if let Some(range) = pages_of(start, size).filter(|_| agent::manages_files() && agent::is_running()) {
        uncancelled(|| keeping_errno(|| agent::have_files_home(range)));
    }
    let next = next!(mincore(_, _, _));
    // The kernel says whether it can be asked, and where the answer goes.
    // SAFETY: as the caller promised.
    let result = unsafe { next(start, size, resident) };
    let Some(range) = pages_of(start, size).filter(|_| result == 0 && agent::is_running()) else { return result };
    // SAFETY: the kernel has written a byte for each page of the range.
    let told = uncancelled(|| with_signals_blocked(|| unsafe { tell_of_each(range, agent::residency, resident) }));
    match told {
        true => result,
        // The agent has left since: everything is home.
        // SAFETY: as the caller promised.
        false => unsafe { next(start, size, resident) },
    }
}

/// What `hetmem bench policy` asks of the program that it measures, and nobody else knows: where the pages of a range are, a byte for each
/// (`hetmem::for_agent::Managed::each_place`). Returns 0, or -1 where there is no agent.
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn __hetmem_places(start: *mut c_void, size: usize, places: *mut u8) -> c_int {
    let Some(range) = pages_of(start, size) else { return -1 };
    // SAFETY: as the caller promised.
    let told = uncancelled(|| with_signals_blocked(|| unsafe { tell_of_each(range, agent::places, places) }));
    if told { 0 } else { -1 }
}

/// Writes to `bytes` what is answered of each page of `range`, part by part; `false` where there is no answer.
///
/// # Safety
///
/// There is a byte for each page.
unsafe fn tell_of_each(range: PageRange, ask: impl Fn(PageRange) -> Option<Vec<u8>>, bytes: *mut u8) -> bool {
    let mut at = PageCount::ZERO;
    while at < range.pages() {
        let part = range.slice(at, MINCORE_STEP);
        let Some(told) = ask(part) else { return false };
        for (i, byte) in told.into_iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { bytes.wrapping_add(at.as_usize() + i).write(byte) };
        }
        at += part.pages();
    }
    true
}

/// `munmap(2)`: a program that unmaps hetmem's memory, too, does so without the agent; what it unmaps of files is home before.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn munmap(start: *mut c_void, size: usize) -> c_int {
    let next = next!(munmap(_, _));
    if agent::is_running() && pages_of(start, size).is_some_and(|range| set_aside().any(|own| own.overlaps(range))) {
        leave_for_good();
    }
    if agent::manages_files() && agent::is_running() {
        uncancelled(|| change(start, size));
    }
    // SAFETY: as the caller promised.
    unsafe { next(start, size) }
}

/// `mlockall(2)`: what is hetmem's is not the program's to lock.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C-unwind" fn mlockall(flags: c_int) -> c_int {
    // What is mapped from then on may be locked, too: it is the kernel's alone.
    if agent::manages_files() && agent::is_running() {
        uncancelled(|| keeping_errno(agent::give_all_files_up));
    }
    let next = next!(mlockall(_));
    // SAFETY: as the caller promised.
    let result = unsafe { next(flags) };
    if !agent::is_running() {
        return result;
    }
    if result == 0 {
        uncancelled(unlock_set_aside);
        return 0;
    }
    // To a user with a limit the kernel counts all address space, hetmem's too, also what nobody can use.
    if errno() != libc::ENOMEM || flags & libc::MCL_CURRENT == 0 {
        return result;
    }
    let lock = || {
        if !may_lock_all() {
            set_errno(libc::ENOMEM);
            return -1;
        }
        let later = flags & !libc::MCL_CURRENT;
        // SAFETY: as the caller promised; without MCL_CURRENT nothing is counted now.
        if later & libc::MCL_FUTURE != 0 && unsafe { next(later) } != 0 {
            return -1;
        }
        if lock_each(flags & libc::MCL_ONFAULT != 0) {
            return 0;
        }
        set_errno(libc::ENOMEM);
        -1
    };
    uncancelled(|| with_signals_blocked(lock))
}

/// Whether the kernel would lock all of the program's memory, hetmem's not counted (`mlockall` of mm/mlock.c).
fn may_lock_all() -> bool {
    let mut bytes = 0;
    let counted = for_each_of_the_program(|mapping| {
        bytes += mapping.range.pages().bytes().get();
        true
    });
    counted && bytes <= lock_limit()
}

/// Locks each mapping of the program by itself; `false` where one can't be.
fn lock_each(when_touched: bool) -> bool {
    for_each_of_the_program(|mapping| {
        let size = mapping.range.pages().as_usize() * 4096;
        let start = usize::try_from(mapping.range.start().get()).unwrap_or(0);
        let lock = |flag: libc::c_uint| {
            // SAFETY: contents and access of the program's memory stay; it asked for this.
            unsafe { hetmem_sys::raw::syscall6(libc::SYS_mlock2, [start, size, flag as usize, 0, 0, 0]) }
        };
        // Whether it is locked is known before anything is populated. What can't be populated is locked all the same, as by `mlockall`.
        let locked = lock(libc::MLOCK_ONFAULT).is_ok();
        if locked && !when_touched {
            let _ = lock(0);
        }
        locked
    })
}

/// Calls `visit` with each mapping of the process that is neither hetmem's nor the kernel's, until it answers `false`; whether all were visited.
fn for_each_of_the_program(mut visit: impl FnMut(&Mapping<'_>) -> bool) -> bool {
    let mut buffer = [0; maps::BUFFER_SIZE];
    let here = VirtAddr::new((may_lock_all as fn() -> bool) as usize as u64);
    let mut library = Vec::new();
    let found = maps::for_each_mapping(&mut buffer, |mapping| {
        if !mapping.range.contains(here) {
            return ControlFlow::Continue(());
        }
        library = mapping.name.to_vec();
        ControlFlow::Break(())
    });
    let mut all = found.is_ok();
    let walked = maps::for_each_mapping(&mut buffer, |mapping| {
        let of_the_kernel = mapping.name.starts_with(b"[v");
        let own = mapping.name == library || mapping.name.starts_with(b"/memfd:hetmem-");
        if !of_the_kernel && !own && !set_aside().any(|own| own.overlaps(mapping.range)) {
            all &= visit(mapping);
        }
        if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    all && walked.is_ok()
}

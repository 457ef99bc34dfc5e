//! `syscall(2)` of the C library: what a program asks the kernel for by number is what it asks for by name.
//!
//! The function is written in assembly, as some system calls return on another stack than they were made on: it asks [`before`] whether the call is
//! one of those below, and else makes it with nothing of its own on the stack.
//!
//! *Limits:* a program that makes system calls by instructions of its own goes past this.

use std::ffi::{c_int, c_void};

use hetmem_interpose::cancel::uncancelled;
use hetmem_interpose::errno::set_errno;
use hetmem_interpose::next::pages_of;

use super::alone::{is_for_one_thread, leave_to_filters, leave_to_sharer, note_strict, undisturbed, without_agent};
use super::fatal;
use super::files;
use super::io::Referred;
use super::memory::{self, read};
use super::threads::with_word_in_place;
use super::with_all_home;

/// Registers as the function finds them, and as it restores them.
pub(super) type Arguments = [usize; 6];

/// `syscall(2)`: the number, and up to six arguments.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn syscall() -> isize {
    std::arch::naked_asm!(
        ".cfi_startproc",
        // The arguments, the number, and a place for a result.
        "mov rax, [rsp + 8]",
        "sub rsp, 72",
        ".cfi_adjust_cfa_offset 72",
        "mov [rsp], rsi",
        "mov [rsp + 8], rdx",
        "mov [rsp + 16], rcx",
        "mov [rsp + 24], r8",
        "mov [rsp + 32], r9",
        "mov [rsp + 40], rax",
        "mov [rsp + 48], rdi",
        "mov rsi, rsp",
        "lea rdx, [rsp + 56]",
        "call {before}",
        "test al, al",
        "mov rax, [rsp + 48]",
        "mov rdi, [rsp]",
        "mov rsi, [rsp + 8]",
        "mov rdx, [rsp + 16]",
        "mov r10, [rsp + 24]",
        "mov r8, [rsp + 32]",
        "mov r9, [rsp + 40]",
        "mov rcx, [rsp + 56]",
        "lea rsp, [rsp + 72]",
        ".cfi_adjust_cfa_offset -72",
        "jnz 2f",
        "syscall",
        "cmp rax, -4095",
        "jae 3f",
        "ret",
        "2:",
        "mov rax, rcx",
        "ret",
        "3:",
        "mov rdi, rax",
        "jmp {fail}",
        ".cfi_endproc",
        before = sym before,
        fail = sym fail,
    )
}

/// `syscall(2)`: the number, and up to six arguments.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn syscall() -> isize {
    std::arch::naked_asm!(
        ".cfi_startproc",
        // The arguments, the number, and a place for a result.
        "sub sp, sp, #80",
        ".cfi_adjust_cfa_offset 80",
        "stp x1, x2, [sp]",
        "stp x3, x4, [sp, #16]",
        "stp x5, x6, [sp, #32]",
        "str x0, [sp, #48]",
        "str x30, [sp, #64]",
        ".cfi_rel_offset x30, 64",
        "mov x1, sp",
        "add x2, sp, #56",
        "bl {before}",
        "mov w9, w0",
        "ldr x8, [sp, #48]",
        "ldp x0, x1, [sp]",
        "ldp x2, x3, [sp, #16]",
        "ldp x4, x5, [sp, #32]",
        "ldr x10, [sp, #56]",
        "ldr x30, [sp, #64]",
        "add sp, sp, #80",
        ".cfi_adjust_cfa_offset -80",
        "tst w9, #0xff",
        "b.ne 2f",
        "svc 0",
        "cmn x0, #4095",
        "b.hs 3f",
        "ret",
        "2:",
        "mov x0, x10",
        "ret",
        "3:",
        "b {fail}",
        ".cfi_endproc",
        before = sym before,
        fail = sym fail,
    )
}

/// The end of a call that the kernel has refused.
extern "C-unwind" fn fail(result: isize) -> isize {
    set_errno(c_int::try_from(result.wrapping_neg()).unwrap_or(libc::EINVAL));
    -1
}

fn pointer<T>(word: usize) -> *mut T {
    std::ptr::with_exposed_provenance_mut(word)
}

/// The low half of an argument that is an `int`.
#[expect(clippy::cast_possible_truncation, reason = "the kernel looks at no more of it either")]
const fn int(word: usize) -> c_int {
    word as u32 as c_int
}

/// Before system call `number` with `args`: prepares for it. `true` if it was made here; then its result is stored, with the C library's `errno`.
extern "C-unwind" fn before(number: libc::c_long, args: &Arguments, result: &mut isize) -> bool {
    if number == libc::SYS_rt_sigaction {
        // SAFETY: as the caller of `syscall` promised; the call returns on this stack.
        *result = unsafe { make(number, *args) };
        if *result == 0 {
            uncancelled(|| fatal::attend_number(args));
        }
        return true;
    }
    if matches!(number, libc::SYS_seccomp | libc::SYS_prctl) {
        before_filter(number, args);
    }
    if !is_of_concern(number) || !agent::is_running() {
        return false;
    }
    let made = attend(number, args);
    *result = made.unwrap_or(0);
    made.is_some()
}

/// Before a call that may put a filter on the calling thread.
fn before_filter(number: libc::c_long, args: &Arguments) {
    let filters = match number {
        // Without a filter the kernel is only asked whether it knows the flags.
        libc::SYS_seccomp => args[0] == SET_STRICT || (args[0] == SET_FILTER && args[2] != 0),
        _ => int(args[0]) == libc::PR_SET_SECCOMP,
    };
    if filters {
        uncancelled(|| {
            fatal::disarm();
            files::leave_to_filters();
        });
    }
}

/// Most calls are none of these, and this is all that they pay.
const fn is_of_concern(number: libc::c_long) -> bool {
    #[cfg(target_arch = "x86_64")]
    if number == libc::SYS_fork {
        return true;
    }
    matches!(
        number,
        libc::SYS_exit
            | libc::SYS_prctl
            | libc::SYS_seccomp
            | libc::SYS_unshare
            | libc::SYS_setns
            | libc::SYS_set_tid_address
            | libc::SYS_clone
            | libc::SYS_clone3
            | libc::SYS_vmsplice
            | libc::SYS_sendto
            | libc::SYS_sendmsg
            | libc::SYS_sendmmsg
            | libc::SYS_mmap
            | libc::SYS_mprotect
            | libc::SYS_pkey_mprotect
            | libc::SYS_mlock
            | libc::SYS_mlock2
            | libc::SYS_remap_file_pages
            | libc::SYS_mbind
            | files::SYS_MSEAL
            | libc::SYS_fcntl
            | libc::SYS_mremap
            | libc::SYS_mincore
            | libc::SYS_mlockall
            | libc::SYS_munmap
            | libc::SYS_madvise
            | libc::SYS_process_madvise
            | libc::SYS_ioctl
    )
}

/// Prepares for a call, or makes it: then the result is as of the C library's function.
fn attend(number: libc::c_long, args: &Arguments) -> Option<isize> {
    // SAFETY: as the caller of `syscall` promised; where it is used the call returns on this stack, or a copy of it.
    let call = || unsafe { make(number, *args) };
    let has = |argument: usize, flag: c_int| args[argument] & flag.cast_unsigned() as usize != 0;
    let (first, third) = (pointer::<c_void>(args[0]), pointer::<u8>(args[2]));
    match number {
        // Without a filter the kernel is only asked whether it knows the flags.
        libc::SYS_seccomp if args[0] == SET_FILTER && args[1] & FOR_ALL_THREADS != 0 && args[2] != 0 => {
            leave_to_filters();
            None
        }
        libc::SYS_seccomp => {
            if args[0] == SET_STRICT {
                uncancelled(agent::thread_is_strict);
            }
            None
        }
        libc::SYS_prctl if int(args[0]) == libc::PR_SET_DUMPABLE => Some(undisturbed(call)),
        libc::SYS_prctl => {
            if int(args[0]) == libc::PR_SET_VMA {
                files::before_change(pointer(args[2]), args[3]);
            }
            note_strict(int(args[0]), args[1]);
            None
        }
        libc::SYS_exit => {
            uncancelled(|| agent::thread_exits(int(args[0])));
            None
        }
        libc::SYS_unshare => is_for_one_thread(int(args[0])).then(|| without_agent(call)),
        libc::SYS_setns => Some(without_agent(call)),
        libc::SYS_set_tid_address => Some(with_word_in_place(Some(first), call)),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_fork => Some(with_all_home(call)),
        // A child that goes on here, with a copy of the stack.
        libc::SYS_clone if !has(0, libc::CLONE_VM) && args[1] == 0 => Some(with_all_home(call)),
        // Any other begins on a stack of its own, and returns from this function there. So its word stays for good.
        libc::SYS_clone => {
            leave_to_sharer(int(args[0]));
            if has(0, libc::CLONE_CHILD_CLEARTID) {
                keep_word(args[CHILD_TID]);
            }
            None
        }
        libc::SYS_clone3 => {
            // `struct clone_args` begins with flags, pidfd, child_tid, parent_tid, exit_signal, stack.
            let [flags, _, child_tid, _, _, stack] = read(first.cast_const().cast::<[u64; 6]>())?;
            if flags & u64::from(libc::CLONE_VM.cast_unsigned()) == 0 && stack == 0 {
                return Some(with_all_home(call));
            }
            // Those that are looked at are in the low half.
            leave_to_sharer(u32::try_from(flags & u64::from(u32::MAX)).unwrap_or(0).cast_signed());
            if flags & u64::from(libc::CLONE_CHILD_CLEARTID.cast_unsigned()) != 0 {
                keep_word(usize::try_from(child_tid).unwrap_or(0));
            }
            None
        }
        libc::SYS_vmsplice => Some(Referred::by_vectors(pointer(args[1]), args[2]).settle(call())),
        libc::SYS_sendto => Some(Referred::by_send(pointer(args[1]), args[2], int(args[3])).settle(call())),
        libc::SYS_sendmsg => Some(Referred::by_message(pointer(args[1]), int(args[2])).settle(call())),
        libc::SYS_sendmmsg => Some(Referred::by_messages(pointer(args[1]), args[2], int(args[3])).settle(call())),
        // SAFETY: as the caller of `syscall` promised.
        libc::SYS_mremap => Some(unsafe {
            memory::mremap(first, args[1], args[2], int(args[3]), pointer(args[4])).addr().cast_signed()
        }),
        libc::SYS_mmap => Some(
            // SAFETY: as the caller of `syscall` promised.
            unsafe {
                files::mmap(first, args[1], int(args[2]), int(args[3]), int(args[4]), args[5].cast_signed() as i64)
            }
            .addr()
            .cast_signed(),
        ),
        libc::SYS_mprotect
        | libc::SYS_pkey_mprotect
        | libc::SYS_mlock
        | libc::SYS_mlock2
        | libc::SYS_remap_file_pages
        | libc::SYS_mbind
        | files::SYS_MSEAL => {
            files::before_change(first, args[1]);
            None
        }
        libc::SYS_fcntl => {
            files::before_fcntl(int(args[1]), args[2]);
            None
        }
        // SAFETY: as the caller of `syscall` promised.
        libc::SYS_mincore => Some(unsafe { memory::mincore(first, args[1], third) } as isize),
        // SAFETY: as the caller of `syscall` promised.
        libc::SYS_madvise => Some(unsafe { memory::madvise(first, args[1], int(args[2])) } as isize),
        libc::SYS_process_madvise => {
            memory::before_process_madvise(int(args[3]));
            None
        }
        // SAFETY: as the caller of `syscall` promised.
        libc::SYS_munmap => Some(unsafe { memory::munmap(first, args[1]) } as isize),
        // SAFETY: as the caller of `syscall` promised.
        libc::SYS_mlockall => Some(unsafe { memory::mlockall(int(args[0])) } as isize),
        libc::SYS_ioctl => {
            let request = args[1] as libc::c_ulong;
            // SAFETY: as the caller of `syscall` promised.
            Some(unsafe { memory::ioctl(int(args[0]), request, third.cast()) } as isize)
        }
        _ => None,
    }
}

const SET_STRICT: usize = libc::SECCOMP_SET_MODE_STRICT as usize;
const SET_FILTER: usize = libc::SECCOMP_SET_MODE_FILTER as usize;
const FOR_ALL_THREADS: usize = 1; // SECCOMP_FILTER_FLAG_TSYNC
/// Which argument of `clone(2)` is the word that the kernel clears.
const CHILD_TID: usize = if cfg!(target_arch = "x86_64") { 3 } else { 4 };

/// Keeps the page of a word in place that the kernel clears at the end of a thread that is not known.
fn keep_word(word: usize) {
    if let Some(page) = pages_of(pointer(word), size_of::<c_int>()) {
        uncancelled(|| agent::keep_at_home(page));
    }
}

/// Makes a system call; the result is as of the C library's function.
///
/// # Safety
///
/// As for that call.
pub(super) unsafe fn make(number: libc::c_long, args: Arguments) -> isize {
    // SAFETY: as the caller promised.
    match unsafe { hetmem_sys::raw::syscall6(number, args) } {
        Ok(result) => result.cast_signed(),
        Err(errno) => {
            set_errno(errno.raw_os_error());
            -1
        }
    }
}

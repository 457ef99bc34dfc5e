//! The system calls that rustix doesn't wrap, made with the machine's own instruction.
//!
//! Not through `libc::syscall`: that writes `errno`, and a preloaded library may have replaced it.
#![expect(unsafe_code, reason = "a system call is an instruction that Rust cannot express")]

use crate::errno::Errno;

/// Makes system call `number` with up to six arguments.
///
/// # Safety
///
/// The arguments must be what the system call asks for, and its effects on memory and descriptors must be ones that
/// the caller may cause.
#[cfg(target_arch = "x86_64")]
pub unsafe fn syscall6(number: libc::c_long, args: [usize; 6]) -> Result<usize, Errno> {
    let ret: i64;
    // SAFETY: the kernel keeps all registers but rax, rcx and r11; the caller answers for the call's effects.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => ret,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack, preserves_flags),
        );
    }
    decode_word(ret)
}

/// Makes system call `number` with up to six arguments.
///
/// # Safety
///
/// The arguments must be what the system call asks for, and its effects on memory and descriptors must be ones that
/// the caller may cause.
#[cfg(target_arch = "aarch64")]
pub unsafe fn syscall6(number: libc::c_long, args: [usize; 6]) -> Result<usize, Errno> {
    let ret: i64;
    // SAFETY: the kernel keeps all registers but x0; the caller answers for the call's effects.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] => ret,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            in("x5") args[5],
            options(nostack, preserves_flags),
        );
    }
    decode_word(ret)
}

/// [`syscall6`] with five arguments.
///
/// # Safety
///
/// As for [`syscall6`].
pub(crate) unsafe fn syscall5(number: libc::c_long, args: [usize; 5]) -> Result<usize, Errno> {
    let [a, b, c, d, e] = args;
    // SAFETY: the caller's; a call of five arguments looks at no sixth.
    unsafe { syscall6(number, [a, b, c, d, e, 0]) }
}

/// [`decode_word`], of what a function returned.
pub(crate) fn decode(ret: isize) -> Result<usize, Errno> {
    decode_word(ret as i64)
}

/// Splits what the kernel returned: −4095 to −1 is an errno, all else is the result.
#[expect(clippy::cast_possible_truncation, reason = "hetmem runs on 64-bit machines only")]
fn decode_word(ret: i64) -> Result<usize, Errno> {
    match i32::try_from(ret) {
        Ok(small @ -4095..=-1) => Err(Errno::from_raw_os_error(-small)),
        Ok(_) | Err(_) => Ok(ret.cast_unsigned() as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_returns_its_result_or_its_errno() {
        // SAFETY: getpid takes no argument and changes nothing.
        let pid = unsafe { syscall5(libc::SYS_getpid, [0; 5]) };
        assert_eq!(pid, Ok(std::process::id() as usize));
        // SAFETY: closing a descriptor that can't exist changes nothing.
        let closed = unsafe { syscall5(libc::SYS_close, [usize::MAX, 0, 0, 0, 0]) };
        assert_eq!(closed, Err(Errno::BADF));
    }
}

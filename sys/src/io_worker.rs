//! Threads of this process that the kernel runs for io_uring. They are listed as its own are, and carry out what was submitted, `madvise(2)`
//! among it, in no system call of theirs.

use rustix::fs::{Mode, OFlags};

use crate::errno::Errno;

/// The flag of such a thread in the ninth field of its `stat` (`PF_IO_WORKER`).
const IO_WORKER: u32 = 0x10;

/// Whether thread `tid` of this process is, or may be, one that the kernel runs for io_uring; one that has ended is not.
#[must_use]
pub fn may_be_one(tid: u32) -> bool {
    let mut path = [0; 40];
    let Some(path) = stat_path(&mut path, tid) else { return true };
    let file = match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(errno) => return errno != Errno::NOENT && errno != Errno::SRCH,
    };
    let mut line = [0; 512];
    match rustix::io::read(&file, &mut line) {
        Ok(n) => flags(&line[..n]).is_none_or(|flags| flags & IO_WORKER != 0),
        Err(errno) => errno != Errno::SRCH,
    }
}

/// `PID (NAME) STATE PPID PGRP SESSION TTY TPGID FLAGS …`, where the name may hold anything.
fn flags(line: &[u8]) -> Option<u32> {
    let after_name = line.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&line[after_name + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(6)?.parse().ok()
}

fn stat_path(buffer: &mut [u8; 40], tid: u32) -> Option<&std::ffi::CStr> {
    use std::io::Write as _;
    let capacity = buffer.len();
    let mut rest = &mut buffer[..];
    write!(rest, "/proc/self/task/{tid}/stat\0").ok()?;
    let used = capacity - rest.len();
    std::ffi::CStr::from_bytes_with_nul(&buffer[..used]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_the_seventh_field_after_the_name() {
        assert_eq!(flags(b"7 (iou-wrk-7) S 1 7 7 0 -1 4194384 0 0"), Some(4_194_384));
        assert_eq!(flags(b"7 (a) b (c) S 1 7 7 0 -1 64 0"), Some(64));
        assert_eq!(flags(b"7 (cut"), None);
    }

    #[test]
    fn a_thread_of_the_program_is_none_and_neither_is_one_that_does_not_exist() {
        assert!(!may_be_one(crate::thread::current_tid()));
        assert!(!may_be_one(u32::MAX >> 1));
    }
}

//! The threads of this process, as the kernel shows them.

use rustix::fs::{Mode, OFlags, RawDir};
use std::mem::MaybeUninit;

/// The threads of this process. Empty if `/proc` can't be read.
#[must_use]
pub fn threads() -> Vec<u32> {
    let mut found = Vec::new();
    let Ok(dir) =
        rustix::fs::open(c"/proc/self/task", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    else {
        return found;
    };
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        found.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
    }
    found
}

/// Whether thread `tid` is certainly outside each of the system calls `calls` at this moment: asleep elsewhere, or gone.
/// A thread that is running may be anywhere.
#[must_use]
pub fn is_outside(tid: u32, calls: &[i64]) -> bool {
    let mut path = [0; 40];
    let Some(path) = syscall_path(&mut path, tid) else { return false };
    let file = match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => return true,
        Err(_) => return false,
    };
    // `NUMBER ARGUMENT…`, `-1 SP PC` outside a system call, or `running`.
    let mut line = [0; 256];
    match rustix::io::read(&file, &mut line) {
        Ok(n) => std::str::from_utf8(&line[..n])
            .ok()
            .and_then(|line| line.split_ascii_whitespace().next()?.parse::<i64>().ok())
            .is_some_and(|number| !calls.contains(&number)),
        Err(rustix::io::Errno::SRCH) => true,
        Err(_) => false,
    }
}

fn syscall_path(buffer: &mut [u8; 40], tid: u32) -> Option<&std::ffi::CStr> {
    use std::io::Write as _;
    let capacity = buffer.len();
    let mut rest = &mut buffer[..];
    write!(rest, "/proc/self/task/{tid}/syscall\0").ok()?;
    let used = capacity - rest.len();
    std::ffi::CStr::from_bytes_with_nul(&buffer[..used]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_is_listed_and_inside_the_read_that_asks() {
        let own = crate::thread::current_tid();
        assert!(threads().contains(&own));
        assert!(!is_outside(own, &[libc::SYS_read]));
    }

    #[test]
    fn a_sleeping_thread_is_outside_of_what_it_does_not_do() {
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            tell.send(crate::thread::current_tid()).unwrap();
            let _ = stopped.recv();
        });
        let tid = told.recv().unwrap();
        while !is_outside(tid, &[libc::SYS_madvise]) {
            std::thread::yield_now();
        }
        assert!(!is_outside(tid, &[libc::SYS_futex]));
        drop(stop);
        sleeper.join().unwrap();
        assert!(is_outside(u32::MAX >> 1, &[]), "a thread that does not exist is nowhere");
    }
}

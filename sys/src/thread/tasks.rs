//! The threads of this process, as the kernel shows them.
//!
//! All files are opened at the start: later the process may have another root directory, or other ids, or `/proc` may be gone.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};

use crate::errno::Errno;

/// Room for `/proc/PID/stat`: 52 numbers of up to 20 digits, and a name of up to 64 bytes.
const STAT: usize = 1200;

/// The list of this process's threads, and what each of them is doing.
#[derive(Debug)]
pub struct Tasks {
    tasks: OwnedFd,
    process: OwnedFd,
}

/// What `/proc/PID/stat` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stat {
    /// `R`, `S`, `D`, …: proc_pid_stat(5).
    state: u8,
    /// Threads of the process that the kernel has not let go of.
    threads: usize,
    /// How it has ended, in the form of `wait(2)`.
    exit_code: i32,
}

impl Tasks {
    /// Opens the files of the calling process.
    pub fn open() -> Result<Self, Errno> {
        let open = |path: &std::ffi::CStr, more| {
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | more, Mode::empty())
        };
        Ok(Self {
            tasks: open(c"/proc/self/task", OFlags::DIRECTORY)?,
            process: open(c"/proc/self/stat", OFlags::empty())?,
        })
    }

    /// The threads. An error means that there may be any.
    pub fn list(&self) -> Result<Vec<u32>, Errno> {
        let mut found = Vec::new();
        rustix::fs::seek(&self.tasks, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); 2048];
        let mut entries = RawDir::new(&self.tasks, &mut buffer);
        while let Some(entry) = entries.next() {
            found.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
        }
        // The caller is one of them.
        if found.is_empty() { Err(Errno::SRCH) } else { Ok(found) }
    }

    /// Whether thread `tid` is certainly not at work in the kernel on memory: it sleeps and could be woken by a signal, is stopped, or gone.
    /// What the kernel waits for while it changes mappings can't be interrupted (`D`), and who runs may be anywhere.
    #[must_use]
    pub fn is_at_rest(&self, tid: u32) -> bool {
        let mut path = [0; 24];
        let Some(path) = stat_path(&mut path, tid) else { return false };
        let file = match rustix::fs::openat(&self.tasks, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::SRCH) => return true,
            Err(_) => return false,
        };
        match read_stat(&file) {
            Ok(stat) => matches!(stat.state, b'S' | b'T' | b't' | b'Z' | b'X' | b'I'),
            Err(errno) => errno == Errno::SRCH,
        }
    }

    /// Makes the list of threads the calling thread's root directory, if it may: then it can open nothing else by a path.
    pub fn enclose_caller(&self) {
        // Without the privilege for it the thread can't be enclosed, and what it may open is what the program's user may.
        if rustix::process::fchdir(&self.tasks).is_ok() {
            let _ = rustix::process::chroot(c".");
        }
    }

    /// How the first thread has ended, as `wait(2)` would say it, if the process has no threads left but that one and `others`.
    #[must_use]
    pub fn ended_but(&self, others: usize) -> Option<i32> {
        // The file is that of the first thread.
        let stat = read_stat(&self.process).ok()?;
        (matches!(stat.state, b'Z' | b'X') && stat.threads <= others + 1).then_some(stat.exit_code)
    }
}

fn read_stat(file: &OwnedFd) -> Result<Stat, Errno> {
    let mut line = [0; STAT];
    let n = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut line, 0))?;
    parse_stat(&line[..n]).ok_or(Errno::INVAL)
}

/// The fields behind the name, which stands in parentheses and may have any in it.
fn parse_stat(line: &[u8]) -> Option<Stat> {
    let end = line.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(line.get(end + 1..)?).ok()?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // Field 20 of the line, and the state is field 3.
    let threads = fields.nth(16)?.parse().ok()?;
    // Field 52, the last.
    let exit_code = fields.nth(31)?.parse().ok()?;
    Some(Stat { state, threads, exit_code })
}

fn stat_path(buffer: &mut [u8; 24], tid: u32) -> Option<&std::ffi::CStr> {
    use std::io::Write as _;
    let capacity = buffer.len();
    let mut rest = &mut buffer[..];
    write!(rest, "{tid}/stat\0").ok()?;
    let used = capacity - rest.len();
    std::ffi::CStr::from_bytes_with_nul(&buffer[..used]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_thread_is_listed_and_not_at_rest() {
        let own = crate::thread::current_tid();
        let tasks = Tasks::open().unwrap();
        assert!(tasks.list().unwrap().contains(&own));
        assert!(!tasks.is_at_rest(own), "who asks runs");
        assert_eq!(tasks.ended_but(usize::MAX - 1), None, "the first thread lives");
    }

    #[test]
    fn a_sleeping_thread_is_at_rest_and_one_that_has_ended_too() {
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            tell.send(crate::thread::current_tid()).unwrap();
            let _ = stopped.recv();
        });
        let tid = told.recv().unwrap();
        let tasks = Tasks::open().unwrap();
        while !tasks.is_at_rest(tid) {
            std::thread::yield_now();
        }
        drop(stop);
        sleeper.join().unwrap();
        assert!(tasks.is_at_rest(u32::MAX >> 1), "a thread that does not exist is nowhere");
    }

    #[test]
    fn any_name_of_a_program_is_skipped() {
        let more: String = (21..52).map(|field| format!(" {field}")).collect();
        let line = format!("7 (a) S 1 (b) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 42{more} 1280\n");
        assert_eq!(parse_stat(line.as_bytes()), Some(Stat { state: b'Z', threads: 42, exit_code: 1280 }));
        assert_eq!(parse_stat(b"7 (a) S 1"), None);
        assert_eq!(parse_stat(b""), None);
    }
}

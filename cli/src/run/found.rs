//! What hetmem was started with, as it was before Rust's runtime looked at it: that opens `/dev/null` for standard streams that are closed, and
//! ignores SIGPIPE, or has it at its default in programs that it starts. The program gets what hetmem was given.
#![expect(unsafe_code, reason = "looks before `main`, and acts between fork and exec")]

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The standard streams.
const STREAMS: std::ops::Range<i32> = 0..3;
/// That SIGPIPE was ignored; below it, that stream N was closed, as bit N.
const PIPE_IGNORED: u32 = 1 << 3;

static FOUND: AtomicU32 = AtomicU32::new(0);

/// Run by the loader, before `main` and what comes before it.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    // SAFETY: asks for flags.
    let is_closed = |stream: &i32| unsafe { libc::fcntl(*stream, libc::F_GETFD) } == -1;
    let closed = STREAMS.filter(is_closed).fold(0, |found, stream| found | 1 << stream);
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: writes the action, and changes none.
    let asked = unsafe { libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: written above.
    let ignored = asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN;
    FOUND.store(closed | if ignored { PIPE_IGNORED } else { 0 }, Relaxed);
}

/// Whether standard stream `number` was closed.
pub(crate) fn is_closed(number: u8) -> bool {
    FOUND.load(Relaxed) >> number & 1 == 1
}

/// Has `command` start with what was found.
pub(crate) fn hand_on(command: &mut Command) {
    let found = FOUND.load(Relaxed);
    if found == 0 {
        return;
    }
    let restore = move || {
        for stream in STREAMS.filter(|stream| found >> stream & 1 == 1) {
            // SAFETY: the child's copy of what Rust's runtime has opened.
            unsafe { libc::close(stream) };
        }
        if found & PIPE_IGNORED != 0 {
            // SAFETY: as the signal was when hetmem was executed.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        }
        Ok(())
    };
    // SAFETY: makes nothing but two kinds of system call, which may be made between fork and exec.
    unsafe { command.pre_exec(restore) };
}

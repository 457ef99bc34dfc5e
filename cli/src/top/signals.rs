//! Signals that come while a screen is shown.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use hetmem_core::sync::Arc;
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use signal_hook::{flag, low_level};

/// Those that end it, after the terminal was given back.
const ENDING: [i32; 4] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];
/// Those after which there is something to draw.
const DRAWING: [i32; 2] = [SIGWINCH, SIGCONT];

/// Readable when a signal has come.
#[derive(Debug)]
pub(super) struct Signals {
    woken: UnixStream,
    /// The last of those that end it; 0 before.
    ending: Arc<AtomicUsize>,
    stopping: Arc<AtomicBool>,
}

impl Signals {
    pub(super) fn new() -> io::Result<Self> {
        let (woken, wake) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let (ending, stopping) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        for signal in ENDING {
            flag::register_usize(signal, ending.clone(), usize::try_from(signal).unwrap_or_default())?;
        }
        flag::register(SIGTSTP, stopping.clone())?;
        // Behind the above: who is woken finds what has come.
        for signal in ENDING.into_iter().chain([SIGTSTP]).chain(DRAWING) {
            low_level::pipe::register(signal, wake.try_clone()?)?;
        }
        Ok(Self { woken, ending, stopping })
    }

    /// The signal that is to end it, if one has come.
    pub(super) fn ends(&self) -> Option<i32> {
        // What has come until now is looked at below.
        while (&self.woken).read(&mut [0; 64]).is_ok_and(|length| length > 0) {}
        i32::try_from(self.ending.load(SeqCst)).ok().filter(|signal| *signal != 0)
    }

    /// Whether it is to stop.
    pub(super) fn stops(&self) -> bool {
        self.stopping.swap(false, SeqCst)
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }
}

/// Stops this process as the signal would have, until it is continued.
pub(super) fn stop() {
    // Where it can't be, it goes on.
    let _ = low_level::emulate_default_handler(SIGTSTP);
}

/// Ends this process as `signal` would have.
pub(super) fn end(signal: i32) {
    let _ = low_level::emulate_default_handler(signal);
}

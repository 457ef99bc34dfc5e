//! Starts the program and waits for it, as a wrapper that nobody notices.
//!
//! - The program starts with the dispositions and the signal mask that hetmem was started with: signals that were ignored (as
//!   by `nohup`) stay so for both, and handlers of hetmem's own don't outlive exec.
//! - A signal that another process sends to hetmem is passed on. What the terminal sends (Ctrl-C, a new window size) has
//!   reached the program already, as both are in one process group; hetmem survives it and waits. A hangup of the terminal
//!   and a timer that was set before hetmem was executed concern hetmem alone, in the program's place: they are passed on.
//! - Stopping and continuing (TSTP, STOP, CONT) are left alone: job control acts on the group as a whole.
//! - When hetmem is killed, the program goes on. It counts into the statistics memory as before, but nobody reads it, and
//!   programs that it starts from then on run unmanaged.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::exfiltrator::origin::Origin;
use signal_hook::low_level::siginfo::Cause;

use super::room;

/// Signals that are passed on.
const PASSED_ON: [i32; 8] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH];

/// Bytes of the stack of the thread that passes signals on: little, for a program may be started where little memory can be had.
const SIGNALS_STACK: usize = 128 << 10;

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its process id, which is free again.
    pub(crate) pid: u32,
    /// Its status.
    pub(crate) status: ExitStatus,
    /// Time since it was started.
    pub(crate) wall: Duration,
}

impl Ended {
    /// The exit status that a shell would give: the program's, or 128+N for signal N.
    pub(crate) fn exit_code(&self) -> u8 {
        let code = match self.status.signal() {
            Some(signal) => 128 + signal,
            None => self.status.code().unwrap_or(255),
        };
        u8::try_from(code).unwrap_or(255)
    }
}

/// A program under way.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    started: Instant,
}

/// Why a program was not started. Nothing of it has run.
#[derive(Debug)]
pub(crate) enum NotStarted {
    /// There is too little memory for who would look after it.
    Memory(io::Error),
    /// Signals could not be passed on to it.
    Signals(io::Error),
    /// There can be no process, or it can't execute the program.
    Program(io::Error),
}

/// Starts `command`, and passes signals on to it from now on.
pub(crate) fn start(command: &mut Command) -> Result<Running, NotStarted> {
    // Whatever can fail comes before the program.
    room::beside_a_program().map_err(NotStarted::Memory)?;
    // Handlers first: a signal that comes while it starts is kept, and passed on once it has.
    let signals = SignalsInfo::<WithOrigin>::new(to_handle(ignored())).map_err(NotStarted::Signals)?;
    let (tell, told) = mpsc::channel();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .stack_size(SIGNALS_STACK)
        .spawn(move || {
            if let Ok((pid, program)) = told.recv() {
                pass_on(signals, pid, &program);
            }
        })
        .map_err(NotStarted::Signals)?;
    let started = Instant::now();
    let child = command.spawn().map_err(NotStarted::Program)?;
    let running = Running { child, started };
    // The child was not waited for yet, so its id is its own. Without a descriptor (a sandbox may forbid it) signals
    // are not passed on; the program runs all the same.
    if let Some(pid) = i32::try_from(running.child.id()).ok().and_then(Pid::from_raw)
        && let Ok(program) = pidfd_open(pid, PidfdFlags::empty())
    {
        // The thread waits for nothing else.
        let _ = tell.send((pid, program));
    }
    Ok(running)
}

impl Running {
    /// The program's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// When it was started.
    pub(crate) const fn started(&self) -> Instant {
        self.started
    }

    /// Waits until the program has ended.
    pub(crate) fn wait(mut self) -> io::Result<Ended> {
        let pid = self.child.id();
        let status = self.child.wait()?;
        Ok(Ended { pid, status, wall: self.started.elapsed() })
    }
}

fn pass_on(mut signals: SignalsInfo<WithOrigin>, pid: Pid, program: &OwnedFd) {
    for origin in signals.forever() {
        if is_for_the_program(&origin, pid)
            && let Some(signal) = Signal::from_named_raw(origin.signal)
        {
            // A program that has just ended takes no signals; its end is about to be noticed.
            let _ = pidfd_send_signal(program.as_fd(), signal);
        }
    }
}

/// Whether a signal that came to hetmem is meant for the program and has not reached it.
fn is_for_the_program(origin: &Origin, program: Pid) -> bool {
    if !PASSED_ON.contains(&origin.signal) {
        return false;
    }
    match origin.cause {
        // The terminal hangs up on the leader of its session, which hetmem is if nothing stood between; a timer goes
        // off in the process that set it, and lives on through exec.
        Cause::Kernel => match origin.signal {
            SIGHUP => rustix::process::getsid(None).is_ok_and(|leader| leader == rustix::process::getpid()),
            signal => signal == SIGALRM,
        },
        // A signal of the program's own comes here when it signals its whole group, and has reached it then.
        Cause::Sent(_) => origin.process.as_ref().is_none_or(|sender| sender.pid != program.as_raw_nonzero().get()),
        Cause::Unknown | Cause::Chld(_) | _ => false,
    }
}

/// The signals to have a handler for: those to pass on, but for ignored ones, which stay ignored. SIGCHLD is the other way
/// round: while it is ignored, the status of a child that ended is lost.
fn to_handle(ignored: u64) -> Vec<i32> {
    let is_ignored = |signal: i32| ignored >> (signal - 1) & 1 == 1;
    let mut signals: Vec<_> = PASSED_ON.into_iter().filter(|signal| !is_ignored(*signal)).collect();
    if is_ignored(SIGCHLD) {
        signals.push(SIGCHLD);
    }
    signals
}

/// The signals that this process ignores, signal N as bit N-1; none if that can't be known.
pub(crate) fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_get_no_handler() {
        assert_eq!(to_handle(0), PASSED_ON);
        assert!(!to_handle(1 << (SIGHUP - 1)).contains(&SIGHUP));
        assert!(to_handle(1 << (SIGCHLD - 1)).contains(&SIGCHLD));
    }

    #[test]
    fn an_end_is_told_as_a_shell_tells_it() {
        let ended = |raw| Ended { pid: 1, status: ExitStatus::from_raw(raw), wall: Duration::ZERO }.exit_code();
        assert_eq!(ended(0), 0);
        assert_eq!(ended(3 << 8), 3);
        assert_eq!(ended(9), 137);
        assert_eq!(ended(0x80 | 11), 139);
    }
}

//! Whoever asks a run: finds its socket, and waits for answers no longer than he says.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, connect, sockopt::socket_peercred};
use thiserror::Error;

use super::place::{self, Found};
use super::protocol::{Answer, Request, Run};
use super::wire::{self, Lines, NoLine};

/// Bytes that an answer may have: more than any has.
const LONGEST_ANSWER: usize = 16 << 20;
/// How long a request may take to be sent.
const SENDING: Duration = Duration::from_secs(2);
/// How long a run may take to say which it is.
const INTRODUCTION: Duration = Duration::from_secs(1);

/// Why a run does not answer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub(crate) enum AskError {
    /// It has ended.
    #[error("the run has ended")]
    Ended,
    /// It is stopped, or its machine is busy.
    #[error("the run does not answer; is it stopped?")]
    Silent,
    /// It refuses.
    #[error("{0}")]
    Refused(String),
    /// It is another version, or somebody else.
    #[error("{0}")]
    Garbled(String),
}

/// Why there is no connection.
#[derive(Debug)]
enum NoConnection {
    LeftBehind,
    Refused(String),
}

/// A connection to a run.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    lines: Lines,
}

impl Connection {
    fn open(found: &Found) -> Result<Self, NoConnection> {
        let refused = |error: std::io::Error| NoConnection::Refused(format!("{}: {error}", found.path.display()));
        let socket = place::socket().map_err(refused)?;
        let address = SocketAddrUnix::new(&found.path).map_err(|errno| refused(errno.into()))?;
        match connect(&socket, &address) {
            Ok(()) => {}
            Err(Errno::CONNREFUSED | Errno::NOENT) => return Err(NoConnection::LeftBehind),
            // As many wait as can: nobody accepts.
            Err(Errno::AGAIN) => return Err(NoConnection::Refused(AskError::Silent.to_string())),
            Err(errno) => return Err(refused(errno.into())),
        }
        // What listens there is whose it says.
        match socket_peercred(&socket) {
            Ok(peer) if peer.uid.as_raw() == found.owner || peer.uid.is_root() => {}
            _ => return Err(NoConnection::Refused(format!("{} is somebody else's", found.path.display()))),
        }
        Ok(Self { socket, lines: Lines::new(LONGEST_ANSWER) })
    }

    /// Sends a request.
    pub(crate) fn send(&self, request: &Request) -> Result<(), AskError> {
        wire::send(&self.socket, request.line().as_bytes(), SENDING).map_err(|error| {
            if error.kind() == std::io::ErrorKind::TimedOut { AskError::Silent } else { AskError::Ended }
        })
    }

    /// The next answer that has come; `None` if there is none yet. Waits for nobody.
    pub(crate) fn received(&mut self) -> Result<Option<Answer>, AskError> {
        match self.lines.next(&self.socket) {
            Ok(line) => {
                let answer = Answer::read(&line).map_err(AskError::Garbled)?;
                if let Answer::Error(why) = answer { Err(AskError::Refused(why)) } else { Ok(Some(answer)) }
            }
            Err(NoLine::Yet) => Ok(None),
            Err(NoLine::End) => Err(AskError::Ended),
            Err(NoLine::TooLong) => Err(AskError::Garbled("its answer is too long".to_owned())),
        }
    }

    /// The next answer, if it comes within `time`.
    pub(crate) fn receive(&mut self, time: Duration) -> Result<Answer, AskError> {
        let until = Instant::now() + time;
        loop {
            if let Some(answer) = self.received()? {
                return Ok(answer);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AskError::Silent);
            }
            wire::wait(self.socket.as_fd(), PollFlags::IN, Some(left));
        }
    }

    /// Asks, and waits for the answer no longer than `time`.
    pub(crate) fn ask(&mut self, request: &Request, time: Duration) -> Result<Answer, AskError> {
        self.send(request)?;
        self.receive(time)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A run that was found, and what it says of itself, or why it says nothing.
#[derive(Debug)]
pub(crate) struct Introduced {
    pub(crate) pid: u32,
    /// The user whose it is.
    owner: u32,
    pub(crate) run: Result<(Run, Connection), String>,
}

/// All runs of this user (of all users, for root). Names that killed runs have left behind are removed.
pub(crate) fn runs() -> Vec<Introduced> {
    let until = Instant::now() + INTRODUCTION;
    let mut opened: Vec<(Found, Result<Connection, String>)> = Vec::new();
    for found in place::sockets() {
        match Connection::open(&found) {
            Ok(connection) => {
                let asked = connection.send(&Request::Run {}).map(|()| connection);
                opened.push((found, asked.map_err(|error| error.to_string())));
            }
            Err(NoConnection::Refused(why)) => opened.push((found, Err(why))),
            Err(NoConnection::LeftBehind) => forget(&found),
        }
    }
    // All were asked at once: those that don't answer are waited for together.
    let introduce = |(found, connection): (Found, Result<Connection, String>)| {
        let run = connection.and_then(|mut connection| {
            let left = until.saturating_duration_since(Instant::now());
            match connection.receive(left) {
                Ok(Answer::Run(run)) => Ok((run, connection)),
                Ok(_) => Err("it answers something else".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        });
        Introduced { pid: found.pid, owner: found.owner, run }
    };
    let ended = AskError::Ended.to_string();
    opened.into_iter().map(introduce).filter(|found| found.run.as_ref().err() != Some(&ended)).collect()
}

/// The run of which process `pid` is one that is managed, or which it is itself: then its program is meant.
pub(crate) fn find_process(pid: u32, patience: Duration) -> Result<(Run, u32, Connection), String> {
    for found in runs() {
        let Ok((run, mut connection)) = found.run else { continue };
        if pid == run.pid || pid == run.program_pid {
            return Ok((run.clone(), run.program_pid, connection));
        }
        let Ok(Answer::Statistics(statistics)) = connection.ask(&Request::Statistics {}, patience) else { continue };
        if statistics.processes.iter().any(|process| process.pid == pid) {
            return Ok((run, pid, connection));
        }
    }
    Err(format!("process {pid} is of no run of hetmem's that may be asked; see `hetmem ps` and `hetmem top`"))
}

/// Removes the name of a run that was killed: nobody listens, and there is no such process.
fn forget(found: &Found) {
    let pid = i32::try_from(found.pid).ok().and_then(rustix::process::Pid::from_raw);
    let is_gone = pid.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(Errno::SRCH));
    if is_gone && place::is_left_behind(&found.path) {
        let _ = std::fs::remove_file(&found.path);
    }
}

/// The run whose `hetmem run`, or whose program, is process `pid`, or the only one of this user's; the error says what there is.
pub(crate) fn find(pid: Option<u32>) -> Result<(Run, Connection), String> {
    let mut runs = runs();
    let at = meant(&runs, pid, rustix::process::geteuid().as_raw())?;
    let found = runs.swap_remove(at);
    found.run.map_err(|why| format!("run {}: {why}", found.pid))
}

/// Which of `runs` user `user` means.
fn meant(runs: &[Introduced], pid: Option<u32>, user: u32) -> Result<usize, String> {
    let is_meant = |found: &Introduced| {
        let is_program = |pid| found.run.as_ref().is_ok_and(|(run, _)| run.program_pid == pid);
        // Root may ask those of others, too, and names them.
        pid.map_or(found.owner == user, |pid| found.pid == pid || is_program(pid))
    };
    let meant: Vec<usize> = (0..runs.len()).filter(|at| is_meant(&runs[*at])).collect();
    match (meant.as_slice(), pid) {
        ([at], _) => Ok(*at),
        ([], Some(pid)) => Err(format!("process {pid} is no run of hetmem's that may be asked; see `hetmem ps`")),
        ([], None) if runs.is_empty() => {
            Err("no run of hetmem's is under way; `hetmem run -- PROGRAM` begins one".to_owned())
        }
        ([], None) => {
            let others: Vec<String> =
                runs.iter().map(|found| format!("{} (of user {})", found.pid, found.owner)).collect();
            Err(format!("no run of yours is under way; there are others': {}; name one", others.join(", ")))
        }
        (several, _) => {
            let pids: Vec<String> = several.iter().map(|at| runs[*at].pid.to_string()).collect();
            Err(format!("there are several runs: {}; name one", pids.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_number_it_is_the_only_run_of_ones_own() {
        let run = |(pid, owner)| Introduced { pid, owner, run: Err("it is stopped".to_owned()) };
        let meant =
            |runs: &[(u32, u32)], pid, user| meant(&runs.iter().map(|one| run(*one)).collect::<Vec<_>>(), pid, user);
        assert_eq!(meant(&[(7, 1000), (8, 0)], None, 0), Ok(1));
        assert_eq!(meant(&[(7, 1000), (8, 0)], Some(7), 0), Ok(0));
        for (runs, part) in [
            (&[][..], "`hetmem run -- PROGRAM` begins one"),
            (&[(7, 1000)], "there are others': 7 (of user 1000); name one"),
            (&[(7, 0), (8, 0), (9, 1000)], "there are several runs: 7, 8; name one"),
        ] {
            let told = meant(runs, None, 0).unwrap_err();
            assert!(told.contains(part), "{told}");
        }
    }
}

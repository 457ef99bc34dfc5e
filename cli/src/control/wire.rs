//! Lines over a socket, both ways, with bounds: how long a line may be, and how long one waits.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// How much is read at a time.
const PIECE: usize = 4096;

/// Why there is no line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoLine {
    /// Nothing more is to be had now.
    Yet,
    /// The other has said all that he will.
    End,
    /// It is longer than it may be.
    TooLong,
}

/// Text that has come and is not a line yet.
#[derive(Debug)]
pub(super) struct Lines {
    received: Vec<u8>,
    /// Bytes that a line may have.
    longest: usize,
}

impl Lines {
    pub(super) const fn new(longest: usize) -> Self {
        Self { received: Vec::new(), longest }
    }

    /// The next line that is there, without its end. Waits for nobody.
    pub(super) fn next(&mut self, socket: impl AsFd) -> Result<Vec<u8>, NoLine> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.received[searched..].iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.received.drain(..=searched + end).collect();
                line.pop();
                return if line.len() > self.longest { Err(NoLine::TooLong) } else { Ok(line) };
            }
            if self.received.len() > self.longest {
                return Err(NoLine::TooLong);
            }
            searched = self.received.len();
            let mut piece = [0; PIECE];
            match rustix::net::recv(&socket, &mut piece, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(NoLine::End),
                Ok((length, _)) => self.received.extend_from_slice(&piece[..length]),
                Err(Errno::AGAIN) => return Err(NoLine::Yet),
                Err(Errno::INTR) => {}
                Err(_) => return Err(NoLine::End),
            }
        }
    }
}

/// Sends all of `bytes` within `time`.
pub(super) fn send(socket: impl AsFd, mut bytes: &[u8], time: Duration) -> io::Result<()> {
    let until = Instant::now() + time;
    while !bytes.is_empty() {
        match rustix::net::send(&socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Errno::TIMEDOUT.into());
                }
                wait(socket.as_fd(), PollFlags::OUT, Some(left));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits until `socket` is ready for `what`, or was hung up on, or `time` is over; what it is. A signal may end it early, with nothing.
pub(crate) fn wait(socket: BorrowedFd<'_>, what: PollFlags, time: Option<Duration>) -> PollFlags {
    let time = time.map(|time| Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    });
    let mut fds = [PollFd::from_borrowed_fd(socket, what)];
    match poll(&mut fds, time.as_ref()) {
        Ok(_) => fds[0].revents(),
        Err(_) => PollFlags::empty(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn lines_come_whole_and_long_ones_do_not() {
        let (mut there, here) = UnixStream::pair().unwrap();
        let mut lines = Lines::new(8);
        assert_eq!(lines.next(&here), Err(NoLine::Yet));
        there.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(lines.next(&here).as_deref(), Ok(&b"one"[..]));
        assert_eq!(lines.next(&here).as_deref(), Ok(&b"two"[..]));
        assert_eq!(lines.next(&here), Err(NoLine::Yet));
        there.write_all(b"ee\n\n123456789").unwrap();
        assert_eq!(lines.next(&here).as_deref(), Ok(&b"three"[..]));
        assert_eq!(lines.next(&here).as_deref(), Ok(&b""[..]));
        assert_eq!(lines.next(&here), Err(NoLine::TooLong));
        drop(there);
        assert_eq!(Lines::new(8).next(&here), Err(NoLine::End));
    }

    #[test]
    fn who_does_not_read_is_not_waited_for_long() {
        let (there, here) = UnixStream::pair().unwrap();
        let much = vec![0; 16 << 20];
        let error = send(&here, &much, Duration::from_millis(20)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(there);
        assert_eq!(send(&here, &much, Duration::from_secs(10)).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}

//! `hetmem run --metrics`: what is counted, for Prometheus, while the program runs: told to whoever asks on a port of this machine, or written into a file.
//!
//! ```text
//! text     the metrics of a moment
//! http     as little of HTTP as it takes to tell them
//! ```
//!
//! A port is bound, and a file is written, before the program is started, so that what can't be had is known by then. Whoever asks is answered one after
//! the other, each for no longer than a second; as long as nobody does, a thread sleeps. A file is written each [`PERIOD`], and at the end.

mod http;
mod text;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hetmem_core::sync::{Arc, Condvar, Mutex, lock};

use crate::control::Subject;
use crate::run::output::Output;
use crate::run::room;

/// From one writing of a file to the next.
const PERIOD: Duration = Duration::from_secs(10);
/// Bytes of the stack of the thread.
const STACK: usize = 256 << 10;

/// Where metrics go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Where {
    /// To whoever asks there.
    Port(SocketAddr),
    /// Into this file.
    File(PathBuf),
}

impl FromStr for Where {
    type Err = String;

    /// `127.0.0.1:9100`, `[::1]:9100`, `localhost:9100`; anything else is a file, unless it looks like an address.
    fn from_str(text: &str) -> Result<Self, String> {
        let local = |port: &str| Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port.parse().ok()?));
        let address = text.strip_prefix("localhost:").and_then(local).or_else(|| text.parse().ok());
        match address {
            Some(address) if !address.ip().is_loopback() => Err(format!(
                "{address} can be reached by other machines; an address of this one is 127.0.0.1:{}",
                address.port()
            )),
            Some(address) => Ok(Self::Port(address)),
            None if text.is_empty() => Err("it names neither an address nor a file".to_owned()),
            None if is_like_an_address(text) => Err(format!(
                "`{text}` is no address of this machine, such as 127.0.0.1:9100; for a file of that name write ./{text}"
            )),
            None => Ok(Self::File(text.into())),
        }
    }
}

/// Whether it ends in a port, and no folder is named.
fn is_like_an_address(text: &str) -> bool {
    let port = text.rsplit(':').next().unwrap_or_default();
    !text.contains('/') && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Metrics that can be told, before there is anything to tell.
#[derive(Debug)]
pub(crate) enum Prepared {
    Port(TcpListener),
    File(PathBuf),
}

/// Makes sure of where they go.
pub(crate) fn prepare(target: &Where) -> io::Result<Prepared> {
    match target {
        Where::Port(address) => TcpListener::bind(address).map(Prepared::Port),
        Where::File(path) => {
            // To open one is to wait for a reader, each time.
            if std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) {
                return Err(io::Error::other("it is a named pipe, which can't be replaced"));
            }
            // What is there stays until there is something to write.
            room::with_all_there_is(|| Output::prepare(path)).map(|_| Prepared::File(path.clone()))
        }
    }
}

impl Prepared {
    /// The port, if it was left to the kernel.
    pub(crate) fn drawn(&self, asked: &Where) -> Option<SocketAddr> {
        match (self, asked) {
            (Self::Port(listener), Where::Port(address)) if address.port() == 0 => listener.local_addr().ok(),
            _ => None,
        }
    }

    /// Tells the metrics of `subject` from now on. Where there can be no thread, a file is written at the end only, and nobody is answered.
    pub(crate) fn start(self, subject: Arc<Subject>) -> Metrics {
        let builder = std::thread::Builder::new().name("metrics".to_owned()).stack_size(STACK);
        match self {
            Self::Port(listener) => {
                let _ = builder.spawn(move || http::serve(&listener, &subject));
                Metrics(None)
            }
            Self::File(path) => {
                let file = Arc::new(Periodic { path, subject, is_over: Mutex::new(false), ended: Condvar::new() });
                let writer = file.clone();
                let _ = builder.spawn(move || writer.write_on());
                Metrics(Some(file))
            }
        }
    }
}

/// Metrics that are told.
#[derive(Debug)]
pub(crate) struct Metrics(Option<Arc<Periodic>>);

impl Metrics {
    /// The program has ended: a file gets what was counted to the end. Where it can't be written, what was written last stays.
    pub(crate) fn end(self) -> Result<(), (PathBuf, io::Error)> {
        let Some(file) = self.0 else { return Ok(()) };
        *lock(&file.is_over) = true;
        file.ended.notify_all();
        file.write().map_err(|error| (file.path.clone(), error))
    }
}

/// A file that is written again and again.
#[derive(Debug)]
struct Periodic {
    path: PathBuf,
    subject: Arc<Subject>,
    /// Whether the end has come. Who writes in the meantime holds it.
    is_over: Mutex<bool>,
    ended: Condvar,
}

impl Periodic {
    fn write_on(&self) {
        let mut is_over = lock(&self.is_over);
        while !*is_over {
            // The end will say what is wrong.
            let _ = self.write();
            is_over = self.ended.wait_timeout(is_over, PERIOD).expect("no thread panicked while it held this lock").0;
        }
    }

    /// Replaces the file as a whole.
    fn write(&self) -> io::Result<()> {
        write(&self.path, &text::of(&self.subject))
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    room::with_all_there_is(|| Output::prepare(path)?.write(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_this_machine_is_a_port_and_anything_else_a_file() {
        let read = |text: &str| text.parse::<Where>();
        for text in ["127.0.0.1:9100", "[::1]:0", "127.3.4.5:1"] {
            assert_eq!(read(text), Ok(Where::Port(text.parse().unwrap())));
        }
        assert_eq!(read("localhost:9100"), Ok(Where::Port("127.0.0.1:9100".parse().unwrap())));
        for text in ["/a/b.prom", "b.prom", "127.0.0.1", "localhost:x", "./9100"] {
            assert_eq!(read(text), Ok(Where::File(text.into())));
        }
        for text in ["9100", ":9100", "somewhere:9100", "localhost:99999", "127.0.0.1:99999"] {
            assert!(
                read(text).unwrap_err().contains("is no address of this machine, such as 127.0.0.1:9100"),
                "{text}"
            );
        }
        assert!(read("0.0.0.0:9100").unwrap_err().contains("other machines; an address of this one is 127.0.0.1:9100"));
        assert!(read("").is_err());
    }
}

//! Everything that can go wrong around a program, each with its exit status.
//!
//! | status | meaning |
//! | --- | --- |
//! | 2 | the command line is wrong |
//! | 125 | hetmem refuses, or failed itself |
//! | 126 | the program was found and can't be executed |
//! | 127 | the program was not found |
//! | other | the program's own; 128+N if signal N ended it |

use std::error::Error;
use std::io::{self, Write as _};
use std::path::PathBuf;

use hetmem_agent::ledger::LedgerError;
use thiserror::Error;

/// Exit status of a wrong command line.
pub(crate) const USAGE: u8 = 2;
/// Exit status of hetmem's own refusals and failures.
pub(crate) const REFUSED: u8 = 125;
/// Exit status when the program can't be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// Exit status when the program is not there.
pub(crate) const NOT_FOUND: u8 = 127;

/// Why there is no exit status of the program to pass on.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// The program is not there.
    #[error("{}: not found{}", .program.display(), .why)]
    NotFound { program: PathBuf, why: String },
    /// An interpreter that the program names is not there.
    #[error("{}: its interpreter {} was not found", .program.display(), .interpreter.display())]
    NoInterpreter { program: PathBuf, interpreter: PathBuf },
    /// The program is there, but is none that can be executed.
    #[error("{}: cannot be executed: {why}", .program.display())]
    NotExecutable { program: PathBuf, why: String },
    /// The program can't be managed.
    #[error("{}: {why}", .program.display())]
    Unmanageable { program: PathBuf, why: String },
    /// The host lacks something.
    #[error("{0}")]
    Host(String),
    /// The library that goes into programs is not there, or can't be named to the loader.
    #[error("{0}")]
    Library(String),
    /// The statistics can't be written.
    #[error("statistics can't be written to {}: {source}", .path.display())]
    Stats { path: PathBuf, source: io::Error },
    /// Metrics can't be told, or written.
    #[error("metrics can't be {what}: {source}")]
    Metrics { what: String, source: io::Error },
    /// The statistics memory can't be made.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The program could not be started, or its end not waited for.
    #[error("{}: {what}: {source}", .program.display())]
    Supervise { program: PathBuf, what: &'static str, source: io::Error },
    /// Output other than statistics can't be written.
    #[error("can't write {what}")]
    Output { what: &'static str, source: io::Error },
    /// The picture can't be written.
    #[error("the picture can't be written to {}: {source}", .path.display())]
    Picture { path: PathBuf, source: io::Error },
    /// A manual page or completions can't be written.
    #[error("{} can't be written: {source}", .path.display())]
    Page { path: PathBuf, source: io::Error },
    /// A run can't be asked, or refuses.
    #[error("{0}")]
    Control(String),
    /// A recording can't begin.
    #[error("the run can't be recorded in {}: {source}", .path.display())]
    Recording { path: PathBuf, source: io::Error },
    /// A trace can't be replayed.
    #[error("trace {}: {source}", .path.display())]
    Trace { path: PathBuf, source: hetmem_trace::TraceError },
    /// A measurement failed.
    #[error("bench: {0}")]
    Bench(String),
}

impl Failure {
    /// The exit status that says so.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => USAGE,
            Self::NotFound { .. } | Self::NoInterpreter { .. } => NOT_FOUND,
            Self::NotExecutable { .. } => NOT_EXECUTABLE,
            Self::Unmanageable { .. }
            | Self::Host(_)
            | Self::Library(_)
            | Self::Stats { .. }
            | Self::Metrics { .. }
            | Self::Ledger(_)
            | Self::Supervise { .. }
            | Self::Output { .. }
            | Self::Picture { .. }
            | Self::Page { .. }
            | Self::Control(_)
            | Self::Recording { .. }
            | Self::Trace { .. }
            | Self::Bench(_) => REFUSED,
        }
    }
}

/// Prints an error and what caused it on standard error, as one line of hetmem's.
pub(crate) fn say(error: &dyn Error) {
    tell(&chain(error));
}

/// An error and what caused it, in one text.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // A transparent error is its own cause.
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// Prints `message` on standard error as one line of hetmem's. A standard error that can't be written is not reported: there
/// is nowhere to.
pub(crate) fn tell(message: &str) {
    let _ = writeln!(io::stderr().lock(), "hetmem: {}", one_line(message));
}

/// `text` with control characters escaped, as names of files and programs may hold any.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_it_quotes() {
        assert_eq!(one_line("a\nb\u{1b}[1m é"), "a\\nb\\u{1b}[1m é");
    }
}

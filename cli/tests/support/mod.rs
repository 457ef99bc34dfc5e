//! What tests of the binary share.

mod users;

use std::process::{Command, Output};

pub(crate) use users::built;

/// The hetmem binary that users get, with its libraries beside it.
pub(crate) fn hetmem() -> Command {
    Command::new(built("hetmem"))
}

/// Runs a command to its end.
pub(crate) fn output(command: &mut Command) -> Output {
    command.output().expect("the command starts")
}

/// The exit status; a command that was killed has none.
pub(crate) fn status(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by {}", output.status))
}

/// Standard output as text.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

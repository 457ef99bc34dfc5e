//! Real programs under `hetmem run`: what they print, leave behind and exit with is what they do natively, while their
//! pages move to devices and back without pause.
//!
//! Each test runs a program twice, natively and managed, and compares. The programs are those of the host's packages
//! ([`packages`], [`mapped`], [`redis`]) and small ones of our own that check themselves ([`own`], [`cases`], [`disk`], sources in `c/`), some
//! of them with the runtime of a sanitizer or on valgrind's processor ([`sanitizers`]).
//!
//! ```text
//!   case ──► launch::Program ──► native run  ──┐
//!                        └─────► managed run ──┴─► compare output, status, files; look at the statistics
//!                                    └─ out of time ─► autopsy::report, then everything is killed
//! ```
//!
//! Programs that are not installed make a test *ignored*, with the reason beside it; with `CI` set, they make it fail.
//! `HETMEM_TEST_SEED` sets the seed of the chaos. Names filter as in every test binary: `cargo test --test programs redis`.
//!
//! Under chaos a program takes up to fifty times as long as natively. So each of the larger ones comes in two lengths
//! ([`Length`]): one that moves several times the pages that must move, and a *long* one, whose name ends in `::long`, and
//! which is tried when it is asked for: `-- --ignored`, or `-- --include-ignored`.
//!
//! # Limits
//!
//! A program's output must not depend on time, on addresses or on the folder it runs in, or there is nothing to compare.
#![expect(clippy::print_stderr, reason = "the only output besides the harness's own")]

mod autopsy;
mod cases;
mod compare;
mod disk;
mod host;
mod launch;
mod mapped;
mod own;
mod packages;
mod redis;
mod sanitizers;
mod stats;
#[path = "../support/tools.rs"]
mod tools;
#[path = "../support/users.rs"]
mod users;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// Why a test didn't pass.
#[derive(Clone)]
enum Problem {
    /// It can't run on this host.
    Missing(String),
    /// This host doesn't permit it, and nothing that could be installed would change that.
    Refused(String),
    /// It ran, and something is wrong.
    Wrong(String),
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self::Wrong(text)
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self::Wrong(error.to_string())
    }
}

type Outcome<T = ()> = Result<T, Problem>;

/// Makes `body` a test of the harness.
fn trial(name: impl Into<String>, body: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match host::ready().and_then(|()| body()) {
        Ok(()) => Ok(Completion::Completed),
        Err(Problem::Missing(what)) if host::in_ci() => Err(Failed::from(format!("CI must have everything: {what}"))),
        Err(Problem::Missing(what) | Problem::Refused(what)) => Ok(Completion::ignored_with(what)),
        Err(Problem::Wrong(what)) => Err(Failed::from(what)),
    })
}

/// How much a program does.
#[derive(Clone, Copy)]
enum Length {
    /// What is tried each time.
    Short,
    /// What is tried when it is asked for: it takes minutes.
    Long,
}

impl Length {
    /// A test of this length.
    fn trial(self, name: impl Into<String>, body: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
        match self {
            Self::Short => trial(name, body),
            Self::Long => trial(name.into() + "::long", body).with_ignored_flag(true),
        }
    }

    /// The measure for this length.
    fn of<T>(self, short: T, long: T) -> T {
        match self {
            Self::Short => short,
            Self::Long => long,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = own::trials();
    trials.extend(cases::trials());
    trials.extend(sanitizers::trials());
    trials.extend(packages::trials());
    trials.extend(mapped::trials());
    trials.extend(redis::trials());
    trials.extend(disk::trials());
    if !arguments.list {
        eprintln!("chaos seed {}", host::seed());
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

//! hetmem on stock Debian kernels, in virtual machines that are emulated in software: with two NUMA nodes and special-purpose memory, and on arm64.
//! That takes minutes, so it is done when it is asked for: `cargo test --release --test vm -- --ignored`.
//!
//! Each boot is a machine of its own ([`machine::BOOTS`]); it runs its cases ([`cases`]) one after the other, and each case is a test
//! here. A boot is made when its first case is asked for, and once.
//!
//! ```text
//!   host ──► kernel, QEMU, tools; builds the binaries        image ──► initramfs: busybox, hetmem, tests, programs, cases
//!                              machine: QEMU ──► second serial port ──► one result for each case
//! ```
//!
//! What runs on arm64 is built by a cross compiler ([`arm64`]).
//!
//! The kernel is what `.ci/kernel` put into `target/vm`, or the image that `HETMEM_VM_KERNEL` names, with its modules in
//! `HETMEM_VM_MODULES` (`/lib/modules/VERSION` unless said otherwise). Where there is none, or no QEMU, the tests are *ignored*, with the
//! reason beside them; with `CI` set, they fail.
//!
//! # Limits
//!
//! x86-64 hosts, whose order of memory accesses an emulated arm64 has, too: what relies on that is not found here. Times in the machine are those of an emulator: only their ratios mean something.
#![expect(clippy::print_stderr, reason = "the only output besides the harness's own")]

mod arm64;
mod cases;
mod host;
mod image;
mod machine;
#[path = "../support/tools.rs"]
mod tools;
#[path = "../support/users.rs"]
mod users;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// Why a test didn't pass.
#[derive(Clone, Debug)]
enum Problem {
    /// It can't run on this host.
    Missing(String),
    /// It ran, and something is wrong.
    Wrong(String),
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self::Wrong(error.to_string())
    }
}

type Outcome<T = ()> = Result<T, Problem>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    machine::select(arguments.filter.clone());
    let mut trials = Vec::new();
    for (number, boot) in machine::BOOTS.iter().enumerate() {
        for case in boot.cases {
            let body = move || match machine::result(number, case.name) {
                Ok(()) => Ok(Completion::Completed),
                Err(Problem::Missing(what)) if host::in_ci(boot.hardware) => {
                    Err(Failed::from(format!("CI must have everything: {what}")))
                }
                Err(Problem::Missing(what)) => Ok(Completion::ignored_with(what)),
                Err(Problem::Wrong(what)) => Err(Failed::from(what)),
            };
            // An emulated machine takes minutes.
            trials.push(Trial::ignorable_test(format!("{}::{}", boot.name, case.name), body).with_ignored_flag(true));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    machine::remove_shared();
    conclusion.exit_code()
}

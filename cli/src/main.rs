//! The `hetmem` command: runs programs with their pages on devices, says what the host allows and has, and measures.
//!
//! ```text
//! main ── args        what can be asked for
//!      ├─ mistakes    what is said where that is wrong
//!      ├─ run         preflight → program → supervise → report
//!      ├─ doctor      what hetmem can use on this host
//!      ├─ bench       measurements
//!      ├─ topology    what memory there is, and who claims it
//!      ├─ ps          which runs are under way
//!      ├─ top, heat   show one
//!      ├─ set         changes what one goes by
//!      ├─ advise      says to one how memory is used
//!      ├─ migrate     moves pages of one
//!      ├─ metrics     what one tells Prometheus
//!      ├─ progress    a bar while something takes long
//!      ├─ shown       what several commands show in one way
//!      ├─ control     how they are asked, and answer
//!      ├─ pages       manual pages and completions
//!      ├─ replay      what policies make of a trace
//!      └─ failure     everything that can go wrong before and around a program, with its exit status
//! ```
//!
//! Every failure is one line on standard error that begins with `hetmem:`.

mod advise;
mod args;
mod bench;
mod control;
mod doctor;
mod failure;
mod heat;
mod host;
mod metrics;
mod migrate;
mod mistakes;
mod pages;
mod progress;
mod ps;
mod replay;
mod run;
mod set;
mod shown;
mod top;
mod topology;

use std::process::ExitCode;

use args::Command;
use failure::Failure;

fn main() -> ExitCode {
    let result = match args::parse() {
        Ok(Command::Run(args)) => run::run(&args),
        Ok(Command::Doctor(args)) => doctor::run(&args),
        Ok(Command::Bench(args)) => bench::run(&args),
        Ok(Command::Topology(args)) => topology::run(&args),
        Ok(Command::Ps(args)) => ps::run(&args),
        Ok(Command::Top(args)) => top::run(&args),
        Ok(Command::Heat(args)) => heat::run(&args),
        Ok(Command::Set(args)) => set::run(&args),
        Ok(Command::Advise(args)) => advise::run(&args),
        Ok(Command::Migrate(args)) => migrate::run(&args),
        Ok(Command::Replay(args)) => replay::run(&args),
        Ok(Command::Pages(args)) => pages::run(&args, args::definition()),
        Ok(Command::BenchTarget(args)) => bench::target::run(&args),
        Err(args::Stop::Shown) => return ExitCode::SUCCESS,
        Err(args::Stop::Usage(message)) => Err(Failure::Usage(message)),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure::say(&failure);
            ExitCode::from(failure.exit_status())
        }
    }
}

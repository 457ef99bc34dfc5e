//! `hetmem ps`: the runs that are under way, as a table or as JSON.

use hetmem_core::units::ByteLen;
use serde::Serialize;

use crate::control::client::{self, Introduced};
use crate::control::protocol::{self, Run};
use crate::failure::{Failure, one_line};
use crate::run::report::{grouped, short};
use crate::shown;

/// Say which runs of hetmem are under way: those of this user; for root, those of all users.
///
/// PID is the process of `hetmem run`, by which `hetmem top`, `heat` and `set` name a run. One that does not answer within a second, as it is
/// stopped perhaps, is listed with the reason.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A run in JSON: what it says of itself, or why it does not.
#[derive(Serialize)]
#[serde(untagged)]
enum Listed<'a> {
    Answers(&'a Run),
    Silent { pid: u32, error: &'a str },
}

/// Looks, and prints; the result is the exit status.
pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let found = client::runs();
    let text = if args.json { json(&found) } else { table(&found) };
    shown::print(&text, "the list of runs")?;
    Ok(0)
}

fn json(found: &[Introduced]) -> String {
    #[derive(Serialize)]
    struct Runs<'a> {
        runs: Vec<Listed<'a>>,
    }
    let runs = found.iter().map(|found| match &found.run {
        Ok((run, _)) => Listed::Answers(run),
        Err(error) => Listed::Silent { pid: found.pid, error },
    });
    protocol::line(&Runs { runs: runs.collect() })
}

fn table(found: &[Introduced]) -> String {
    if found.is_empty() {
        return "no run is under way\n".to_owned();
    }
    let head = ["PID", "PROGRAM", "POLICY", "PROCESSES", "MANAGED", "ON DEVICES", "FAULTS", "TIME"].map(str::to_owned);
    let row = |found: &Introduced| match &found.run {
        Ok((run, _)) => [
            found.pid.to_string(),
            one_line(&run.program),
            policy(run),
            run.processes.to_string(),
            short(run.managed_bytes),
            short(run.device_bytes),
            grouped(run.cpu_faults),
            shown::time(run.seconds),
        ],
        Err(error) => {
            let mut row = ["-"; 8].map(str::to_owned);
            (row[0], row[1]) = (found.pid.to_string(), format!("({})", one_line(error)));
            row
        }
    };
    let rows: Vec<[String; 8]> = std::iter::once(head).chain(found.iter().map(row)).collect();
    // Names are on the left of their columns, and numbers on the right.
    shown::columns(&rows, &[1, 2])
}

/// The policy, with the limit that holds now, and whether that is each process's.
pub(crate) fn policy(run: &Run) -> String {
    let name = one_line(&run.policy);
    let each = if run.per_process { " each" } else { "" };
    match (run.system_limit_bytes, name.split_once('=')) {
        (Some(limit), Some((name, _))) => format!("{name}={}{each}", hetmem_core::quantity::Exact(ByteLen::new(limit))),
        _ => name,
    }
}

//! `hetmem migrate`: moves pages of a process of a run.

use std::time::Duration;

use hetmem_core::units::VirtAddr;

use crate::control::client;
use crate::control::protocol::{Address, Answer, Request};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::run::report::grouped;
use crate::shown;

/// How long the run may take to answer: more than it works on one request.
const PATIENCE: Duration = Duration::from_secs(20);

/// Move pages of a process of a run to a device, or home.
///
/// WHAT is `all`, or a range as a line of /proc/PID/maps begins. TO is `system`, or the name of a device (`hetmem top` shows them). What can't leave, was
/// never written, or finds no room is kept. A policy other than manual may move it all again.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The process, or the run: then its program (see `hetmem ps`)
    #[arg(value_parser = crate::args::pid)]
    pid: u32,

    /// `all`, or START-END: addresses in hexadecimal, the end exclusive
    #[arg(value_name = "WHAT", value_parser = what)]
    what: (Address, Address),

    /// `system`, or a device
    #[arg(value_name = "TO")]
    to: String,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

fn what(text: &str) -> Result<(Address, Address), String> {
    if text == "all" {
        // All that a program can map, on any machine.
        return Ok((Address(VirtAddr::new(0)), Address(VirtAddr::new(1 << 63))));
    }
    crate::args::range(text).map_err(|error| format!("{error}; nor is it `all`"))
}

/// Moves them; the result is the exit status.
pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let (run, pid, mut connection) = client::find_process(args.pid, PATIENCE).map_err(Failure::Control)?;
    let failed = |error: client::AskError| Failure::Control(format!("run {}: {error}", run.pid));
    let (mut start, end) = args.what;
    let (mut moved, mut kept) = (0_u64, 0_u64);
    let progress = Progress::new();
    progress.begin_counting("pages moved");
    loop {
        let request = Request::Migrate { pid, start, end, to: args.to.clone() };
        let Answer::Migrate(answer) = connection.ask(&request, PATIENCE).map_err(failed)? else {
            return Err(Failure::Control(format!("run {}: it answers something else", run.pid)));
        };
        moved = moved.saturating_add(answer.pages_moved);
        kept = kept.saturating_add(answer.pages_kept);
        progress.steps(usize::try_from(answer.pages_moved).unwrap_or(usize::MAX));
        match answer.next {
            // There was no time for all.
            Some(next) if next.0 > start.0 && next.0 < end.0 => start = next,
            _ => break,
        }
    }
    drop(progress);
    if moved == 0 && kept == 0 {
        return Err(Failure::Control(format!("process {pid}: nothing there is managed")));
    }
    let text = if args.json {
        format!("{}\n", serde_json::json!({ "pid": pid, "to": args.to, "pages_moved": moved, "pages_kept": kept }))
    } else {
        format!("process {pid}: {} pages to {}, {} kept\n", grouped(moved), args.to, grouped(kept))
    };
    shown::print(&text, "what was moved")?;
    Ok(0)
}

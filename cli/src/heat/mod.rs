//! `hetmem heat`: how warm the memory of a program is, over time: as text, line by line, or as a picture.

mod picture;

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use hetmem_core::quantity;
use hetmem_core::sync::Arc;
use rustix::event::PollFlags;
use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::control::client::{self, AskError, Connection};
use crate::control::protocol::{self, Answer, Heat, Request, Run};
use crate::control::wait;
use crate::failure::Failure;
use crate::run::report::short;
use crate::shown::{self, Picture};

/// Parts in a line of text, and in one of a picture.
const TEXT_CELLS: u32 = 72;
const PICTURE_CELLS: u32 = 200;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The shortest time from one line to the next: an agent is asked no more often than it answers.
const SHORTEST: Duration = Duration::from_millis(100);

/// Show how warm the memory of a run's program is: time goes down, addresses go across.
///
/// What is managed is told in parts of one size, in order of address, without the gaps between ranges. Each part is a digit, from 0 (cold) to 9, the mean of
/// what is in it. Ctrl-C ends it, as the run's end does; a picture is written then.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The run: the process of `hetmem run`, or of its program (see `hetmem ps`) [default: the only one]
    #[arg(value_parser = crate::args::pid)]
    pid: Option<u32>,

    /// Draw into this file, as SVG, instead of printing text
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Print JSON, a line each time
    #[arg(long, conflicts_with = "svg")]
    json: bool,

    /// How many lines
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rows: u32,

    /// The time from one line to the next
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = quantity::duration(text).map_err(|error| error.to_string())?;
    if time < SHORTEST { Err("the shortest interval is 100ms".to_owned()) } else { Ok(time) }
}

/// How warm it was at one time.
#[derive(Debug)]
struct Row {
    /// Since the first.
    time: Duration,
    heat: Heat,
}

/// Shows it; the result is the exit status.
pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let (run, mut connection) = client::find(args.pid).map_err(Failure::Control)?;
    let file = args.svg.as_deref().map(Picture::prepare).transpose()?;
    let failed = |error: AskError| Failure::Control(format!("run {}: {error}", run.pid));
    let is_interrupted = Arc::new(AtomicBool::new(false));
    if args.svg.is_some() {
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            // Without a handler what was seen until then is lost, and no more.
            let _ = signal_hook::flag::register(signal, is_interrupted.clone());
        }
    }
    let cells = if args.svg.is_some() { PICTURE_CELLS } else { TEXT_CELLS };
    let pid = process(&run, &mut connection).map_err(failed)?;
    let began = Instant::now();
    let mut rows: Vec<Row> = Vec::new();
    for number in 0..args.rows {
        let time = args.interval * number;
        // Woken or not: it is looked what the time is.
        loop {
            let left = time.saturating_sub(began.elapsed());
            let seen = wait(connection.as_fd(), PollFlags::empty(), Some(left));
            if seen.intersects(PollFlags::HUP | PollFlags::ERR) {
                // It has ended, which is for its answer to say, or nothing was asked for longer than it has patience.
                let Ok((_, again)) = client::find(Some(run.pid)) else { break };
                connection = again;
            }
            if began.elapsed() >= time || is_interrupted.load(SeqCst) {
                break;
            }
        }
        if is_interrupted.load(SeqCst) {
            break;
        }
        let heat = match connection.ask(&Request::Heat { pid, cells: Some(cells) }, PATIENCE) {
            Ok(Answer::Heat(heat)) => heat,
            Ok(_) => return Err(failed(AskError::Garbled("it answers something else".to_owned()))),
            // What was seen until then is all that there is.
            Err(AskError::Ended) if !rows.is_empty() => break,
            Err(AskError::Refused(_)) if has_ended(&mut connection) && !rows.is_empty() => break,
            Err(error) => return Err(failed(error)),
        };
        let row = Row { time: began.elapsed(), heat };
        if args.svg.is_none() {
            let told = if args.json { json(&row) } else { text(rows.last(), &row) };
            if !shown::print_on(&told, "heat")? {
                break;
            }
            rows.clear();
        }
        rows.push(row);
    }
    file.map_or(Ok(()), |file| file.write(&picture::draw(&run, &rows))).map(|()| 0)
}

/// The process of the program; if it is not managed, the one of which most is.
fn process(run: &Run, connection: &mut Connection) -> Result<u32, AskError> {
    let Answer::Statistics(statistics) = connection.ask(&Request::Statistics {}, PATIENCE)? else {
        return Err(AskError::Garbled("it answers something else".to_owned()));
    };
    let processes = &statistics.processes;
    let largest = processes.iter().max_by_key(|process| (process.pid == run.program_pid, process.managed_bytes));
    largest.map(|process| process.pid).ok_or_else(|| AskError::Refused("it has no managed process".to_owned()))
}

/// Whether the run has ended, or is about to: its process is gone.
fn has_ended(connection: &mut Connection) -> bool {
    match connection.ask(&Request::Run {}, PATIENCE) {
        Ok(Answer::Run(run)) => run.processes == 0,
        Ok(_) => false,
        Err(_) => true,
    }
}

/// A line of JSON.
fn json(row: &Row) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        seconds: f64,
        #[serde(flatten)]
        heat: &'a Heat,
    }
    protocol::line(&Line { seconds: row.time.as_secs_f64(), heat: &row.heat })
}

/// A line, and before it another if what is managed is not what it was.
fn text(before: Option<&Row>, row: &Row) -> String {
    let layout = |row: &Row| {
        let bytes = row.heat.cells.iter().fold(0_u64, |sum, cell| sum.saturating_add(cell.bytes));
        (row.heat.cells.first().map(|cell| cell.start), row.heat.cells.last().map(|cell| cell.start), bytes)
    };
    let mut text = String::new();
    let now = layout(row);
    if before.map(layout) != Some(now) {
        let each = row.heat.cells.first().map_or(0, |cell| cell.bytes);
        let address =
            |address: Option<crate::control::protocol::Address>| address.map(String::from).unwrap_or_default();
        let (first, last, bytes) = now;
        text = format!(
            "process {}: {} in {} parts of {}, from {} to {}\n",
            row.heat.pid,
            short(bytes),
            row.heat.cells.len(),
            short(each),
            address(first),
            address(last)
        );
    }
    let digits: String = row.heat.cells.iter().map(|cell| digit(cell.heat)).collect();
    format!("{text}{:6.1} {digits}\n", row.time.as_secs_f64())
}

/// Heat as a digit.
pub(crate) fn digit(heat: u8) -> char {
    char::from(b'0' + u8::try_from(u32::from(heat) * 10 / 256).unwrap_or(9))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::{Address, Cell};
    use hetmem_core::units::VirtAddr;

    fn row(seconds: u64, start: u64, heats: &[u8]) -> Row {
        let cell = |(at, heat): (u64, &u8)| Cell {
            start: Address(VirtAddr::new(start + at * 8192)),
            bytes: 8192,
            heat: *heat,
        };
        Row { time: Duration::from_secs(seconds), heat: Heat { pid: 7, cells: (0..).zip(heats).map(cell).collect() } }
    }

    #[test]
    fn heat_is_told_in_digits_from_0_to_9() {
        assert_eq!([0, 25, 26, 128, 230, 231, 255].map(digit), ['0', '0', '1', '5', '8', '9', '9']);
        let first = row(0, 0x10000, &[0, 128, 255]);
        assert_eq!(text(None, &first), "process 7: 24 KiB in 3 parts of 8 KiB, from 0x10000 to 0x14000\n   0.0 059\n");
        assert_eq!(text(Some(&first), &row(1, 0x10000, &[255, 0, 0])), "   1.0 900\n");
        assert!(text(Some(&first), &row(1, 0x20000, &[255, 0, 0])).starts_with("process 7: "));
        assert!(text(None, &row(0, 0, &[])).ends_with("   0.0 \n"));
    }

    #[test]
    fn a_picture_is_drawn_of_whatever_there_is() {
        let run: Run = serde_json::from_str(
            r#"{"pid": 1, "program": "<&>", "program_pid": 7, "policy": "manual", "system_limit_bytes": null, "seconds": 1.0,
                "processes": 1, "managed_bytes": 0, "device_bytes": 0, "cpu_faults": 0}"#,
        )
        .unwrap();
        for rows in [vec![], vec![row(0, 0, &[])], vec![row(0, 4096, &[0, 0, 255]), row(1, 4096, &[255; 200])]] {
            let drawn = picture::draw(&run, &rows).to_string();
            assert!(drawn.contains("&lt;&amp;&gt;") && drawn.contains("</svg>"), "{drawn}");
        }
        let two = picture::draw(&run, &[row(0, 4096, &[0, 0, 255])]).to_string();
        // A background, two stretches of one heat each, and the scale.
        assert_eq!(two.matches("class=\"cell\"").count(), 2, "{two}");
    }
}

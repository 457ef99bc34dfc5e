//! `hetmem advise`: says to a process of a run how its memory is used.

use std::time::Duration;

use crate::control::client;
use crate::control::protocol::{Address, Answer, Range, Request, Said};
use crate::failure::Failure;
use crate::shown;

/// How long the run may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Say to a process of a run how a range of its memory is used.
///
/// START-END is as a line of /proc/PID/maps begins. ADVICE is one of: pin (its pages stay where they are), unpin; prefer=DEVICE (what leaves goes
/// there first), read-mostly (as if the first coherent device with room were preferred), no-preference; soon (pages are brought to where they are
/// preferred, else to system memory), not-soon (of what must leave, its pages leave first, once). To give contents up is for the program itself.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The process, or the run: then its program (see `hetmem ps`)
    #[arg(value_parser = crate::args::pid)]
    pid: u32,

    /// Addresses in hexadecimal, the end exclusive
    #[arg(value_name = "START-END", value_parser = crate::args::range)]
    range: (Address, Address),

    /// What is said of it
    #[arg(value_name = "ADVICE", value_parser = advice)]
    advice: (Said, Option<String>),
}

fn advice(text: &str) -> Result<(Said, Option<String>), String> {
    let said = match text {
        "pin" => Said::Pin,
        "unpin" => Said::Unpin,
        "read-mostly" => Said::ReadMostly,
        "no-preference" => Said::NoPreference,
        "soon" => Said::Soon,
        "not-soon" => Said::NotSoon,
        _ => {
            let device = text.strip_prefix("prefer=").filter(|device| !device.is_empty());
            let known = "pin, unpin, prefer=DEVICE, read-mostly, no-preference, soon and not-soon";
            let device = device.ok_or_else(|| format!("there is no advice `{text}`; there are {known}"))?;
            return Ok((Said::PreferredLocation, Some(device.to_owned())));
        }
    };
    Ok((said, None))
}

/// Says it; the result is the exit status.
pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let (run, pid, mut connection) = client::find_process(args.pid, PATIENCE).map_err(Failure::Control)?;
    let failed = |error: client::AskError| Failure::Control(format!("run {}: {error}", run.pid));
    let (start, end) = args.range;
    let (advice, to) = args.advice.clone();
    let request = Request::Advise { pid, start, end, advice, to };
    let Answer::Advise(advised) = connection.ask(&request, PATIENCE).map_err(failed)? else {
        return Err(Failure::Control(format!("run {}: it answers something else", run.pid)));
    };
    if let Some(Range { start, end }) = advised.unmanaged {
        let (start, end) = (start.0.get(), end.0.get());
        return Err(Failure::Control(format!(
            "process {pid}: {start:x}-{end:x} is not managed; what is managed of the range has the advice"
        )));
    }
    shown::print(&format!("process {pid}: said\n"), "what was said")?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_that_there_is_not_is_named_with_what_there_is() {
        assert_eq!(advice("not-soon"), Ok((Said::NotSoon, None)));
        assert_eq!(advice("prefer=near"), Ok((Said::PreferredLocation, Some("near".to_owned()))));
        for text in ["", "prefer=", "discard", "Pin"] {
            let error = advice(text).unwrap_err();
            assert!(error.starts_with(&format!("there is no advice `{text}`; there are pin, ")), "{error}");
        }
    }
}

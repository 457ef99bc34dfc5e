//! `hetmem replay`: what policies make of a trace, at several limits, without a program.
//!
//! ```text
//! table      for people
//! json       for programs
//! picture    the share of misses by the limit, as SVG
//! ```
//!
//! The crate `hetmem-trace` reads and simulates; here it is asked, and shown. A trace is read twice: to see how much of it can be simulated, and to
//! do that.

mod json;
mod picture;
mod table;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hetmem_core::physmap::MemoryType;
use hetmem_core::policy::{PolicySpec, with_limit};
use hetmem_core::quantity;
use hetmem_core::record::Record;
use hetmem_core::units::{ByteLen, PAGE_SIZE, PageCount};
use hetmem_devices::spec::DeviceSpec;
use hetmem_trace::{Format, Outcomes, Played, Replay, Sampling, Setup, SimulatedDevice, Survey, TraceError, play};

use crate::failure::Failure;
use crate::progress::Progress;
use crate::shown;

/// What the simulation may take, if nobody says.
const MEMORY: &str = "1G";

/// Say what policies make of a trace, at several limits, without a program.
///
/// The policies of `hetmem run` are run over a model of the program that the trace was recorded of. Beside them stand CLOCK, LRU and S3-FIFO, which
/// see every touch and move pages at no cost, and Belady's optimum, which no policy can beat. A miss is a touch that finds its page on a device;
/// the first touch of a page is none.
#[derive(clap::Args, Debug)]
#[command(after_long_help = NOTES)]
pub(crate) struct Args {
    /// The trace
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// What may stay in system memory, as in 8M,32M [default: as recorded]
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = quantity::size)]
    system_limit: Vec<ByteLen>,

    /// The policies to run, of those that hold a limit, as in limit,clock
    #[arg(long, value_name = "POLICIES", value_delimiter = ',', default_value = "limit")]
    policy: Vec<PolicySpec>,

    /// hetmem, lackey, oracleGeneral or damo [default: by what is in it]
    ///
    /// Who recorded the trace.
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Simulate one of N blocks of 2 MiB [default: as many as --memory has room for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    sample: Option<u32>,

    /// About how much memory the simulation may take
    #[arg(long, value_name = "SIZE", default_value = MEMORY, value_parser = quantity::size)]
    memory: ByteLen,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Draw the share of misses by the limit into this file
    ///
    /// The picture is SVG.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

const NOTES: &str = "\
Examples:
  valgrind --tool=lackey --trace-mem=yes --log-file=lackey.txt ./program
  hetmem replay lackey.txt --system-limit 1M,4M,16M --policy limit,clock \\
               --svg misses.svg";

/// A simulation that has ended.
struct Done {
    file: String,
    played: Played,
    survey: Survey,
    sampling: Sampling,
    limits: Vec<PageCount>,
    outcomes: Outcomes,
    /// How long it took, without the look before.
    took: Duration,
}

/// Simulates, and prints; the result is the exit status.
pub(crate) fn run(args: &Args) -> Result<u8, Failure> {
    let usage = |message: String| Failure::Usage(message);
    if let Some(policy) = args.policy.iter().find(|policy| !policy.holds_limit() || policy.argument().is_some()) {
        return Err(usage(format!(
            "--policy {policy}: only policies that hold a limit are replayed, without it ({})",
            with_limit(", ")
        )));
    }
    let mut limits = args.system_limit.iter().map(|limit| pages(*limit)).collect::<Result<Vec<_>, _>>()?;
    limits.sort_unstable();
    limits.dedup();
    let failed = |source: TraceError| Failure::Trace { path: args.file.clone(), source };
    // What a pipe has given is gone when it is read again, and to open one waits for who writes.
    if !std::fs::metadata(&args.file).map_err(|source| failed(TraceError::Read(source)))?.is_file() {
        return Err(failed(TraceError::Read(io::Error::other("it is read twice, so it has to be a regular file"))));
    }
    let given = args.sample.map_or(Sampling::ALL, Sampling::one_in);
    let count = limits.len().max(1);
    let mut survey = Survey::new(given, args.memory.get(), Setup::bytes_by_page(count, args.policy.len()));
    let progress = Progress::new();
    progress.begin_counting("reading: records");
    let mut look = |records: &[Record]| {
        progress.steps(records.len());
        survey.look(records);
    };
    let played = play(&args.file, args.format, &mut look).map_err(failed)?;
    if limits.is_empty() {
        let recorded = played.recording.as_ref().and_then(|recording| recording.policy.parse::<PolicySpec>().ok());
        let limit = recorded.as_ref().and_then(PolicySpec::argument).and_then(|limit| quantity::size(limit).ok());
        let none = || usage("this trace says of no limit; give one with --system-limit SIZE".to_owned());
        limits.push(pages(limit.ok_or_else(none)?)?);
    }
    if survey.records > 0 && survey.pages() == 0 && !survey.sampling().is_all() {
        let message = "nothing of this trace is in the part of it that would be simulated; give more --memory, or a lower --sample";
        return Err(usage(message.to_owned()));
    }
    let setup = Setup {
        policies: args.policy.clone(),
        limits: limits.clone(),
        devices: devices(&played)?,
        stock: PageCount::new(played.recording.as_ref().map_or(0, |recording| recording.stock_bytes) / PAGE_SIZE),
        sampling: survey.sampling(),
        is_recorded: played.format == Format::Hetmem,
    };
    let began = Instant::now();
    let mut replay = Replay::new(&setup).map_err(|error| usage(error.to_string()))?;
    progress.begin("simulating", usize::try_from(survey.records).unwrap_or(usize::MAX));
    let mut feed = |records: &[Record]| {
        progress.steps(records.len());
        replay.feed(records);
    };
    play(&args.file, Some(played.format), &mut feed).map_err(failed)?;
    drop(progress);
    let done = Done {
        file: args.file.display().to_string(),
        played,
        sampling: survey.sampling(),
        survey,
        limits,
        outcomes: replay.finish(),
        took: began.elapsed(),
    };
    if let Some(path) = &args.svg {
        shown::Picture::prepare(path)?.write(&picture::draw(&done))?;
    }
    let text = if args.json { json::text(&done) } else { table::text(&done) };
    shown::print(&text, "the result")?;
    Ok(0)
}

/// A limit, in pages.
fn pages(limit: ByteLen) -> Result<PageCount, Failure> {
    limit.whole_pages().filter(|pages| !pages.is_zero()).ok_or_else(|| {
        Failure::Usage(format!("a limit of {limit} is not a positive multiple of the page, {PAGE_SIZE} B"))
    })
}

/// The devices of the recording; of other traces a private one that takes everything.
fn devices(played: &Played) -> Result<Vec<SimulatedDevice>, Failure> {
    let (memory_type, pages) = (MemoryType::DevicePrivate, PageCount::new(1 << 40));
    let everything = SimulatedDevice { memory_type, pages, is_readable: true };
    let Some(recording) = &played.recording else { return Ok(vec![everything]) };
    let device = |text: &String| {
        let spec: DeviceSpec =
            text.parse().map_err(|error| Failure::Usage(format!("the recording's device `{text}`: {error}")))?;
        let pages = spec.size.get() / PAGE_SIZE;
        // As those that private ones are made of: memory.
        let is_readable = !spec.is_injected();
        Ok(SimulatedDevice { memory_type: spec.memory_type, pages: PageCount::new(pages), is_readable })
    };
    recording.devices.iter().map(device).collect()
}

//! `hetmem run`: checks everything that can be checked, starts the program with the agent preloaded, waits, and reports.
//!
//! ```text
//! found      what hetmem was started with, and hands on
//! program    finds the program and refuses those that can't be managed
//! room       the limit on files, which is the program's
//! output     the file of --stats, made sure of before the start
//! record     what is written down of it, if that is asked for
//! supervise  starts the program, passes signals on, waits
//! report     what came of it
//! ```
//!
//! Nothing is started unless all checks pass. Once the program runs, its exit status is the result, with two exceptions: its
//! agent refused, or statistics could not be written although it succeeded; both are 125.

mod found;
pub(crate) mod output;
mod program;
mod record;
pub(crate) mod report;
pub(crate) mod room;
mod supervise;

use std::ffi::OsString;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::Command;

use hetmem_agent::config::{self, Config};
use hetmem_agent::ledger::Ledger;
use hetmem_core::heat::{Source, Sources};
use hetmem_core::policy::{PolicySpec, with_limit};
use hetmem_core::sync::Arc;
use hetmem_core::units::{ByteLen, PAGE_SIZE};
use hetmem_devices::spec::{self, DeviceSpec};
use hetmem_sys::probe::Capabilities;

use crate::args::RunArgs;
use crate::control::{Server, Subject};
use crate::failure::{self, Failure, REFUSED};
use crate::host;
use crate::metrics::{self, Metrics, Prepared, Where};
use hetmem_trace::format::Recording;
use output::Output;
use program::Program;
use record::Recorder;
use report::{End, Report};
pub(crate) use supervise::ignored as ignored_signals;
use supervise::{Ended, NotStarted};

/// The device when none is asked for.
const DEFAULT_DEVICE: &str = "coherent:emulated";
/// How much populated memory is kept if nobody says.
const STOCK: ByteLen = ByteLen::new(64 << 20);
/// Where there is a limit it is at most one part of so many.
const LIMIT_SHARE: u64 = 256;
/// The variable that names libraries to preload.
const PRELOAD: &str = "LD_PRELOAD";

/// What AddressSanitizer's runtime is told.
const ASAN_OPTIONS: &str = "ASAN_OPTIONS";

/// Runs the program; the result is the exit status.
pub(crate) fn run(args: &RunArgs) -> Result<u8, Failure> {
    let Some((name, arguments)) = args.command.split_first() else {
        return Err(Failure::Usage("no program is given".to_owned()));
    };
    let memory = host::memory()?;
    let devices = devices(&args.devices, memory)?;
    let policy = policy(&args.policy, args.system_limit, memory)?;
    let heat = heat(args.heat, &policy)?;
    let stock = stock(args.stock, policy.limit(), memory)?;
    let program = program::resolve(name)?;
    if let Some(obstacle) = host::obstacle(&Capabilities::probe()) {
        return Err(Failure::Host(format!("{obstacle}; see also `hetmem doctor`")));
    }
    let library = host::library()?;
    let stats_failure = |source| Failure::Stats { path: args.stats.clone().unwrap_or_default(), source };
    room::have_limits_told();
    let prepare = |path| room::with_all_there_is(|| Output::prepare(path));
    let output = args.stats.as_deref().map(prepare).transpose().map_err(stats_failure)?;
    let prepared = args.metrics.as_ref().map(prepare_metrics).transpose()?;
    let ledger = Arc::new(room::with_all_there_is(Ledger::create)?);

    let mut command = command(&program, arguments);
    command.env(PRELOAD, preload(library.into_os_string(), std::env::var_os(PRELOAD)));
    command.env(ASAN_OPTIONS, asan_options(std::env::var_os(ASAN_OPTIONS)));
    let supervisor = std::process::id();
    let name = name.to_string_lossy().into_owned();
    let recorder = match &args.record {
        None => None,
        Some(path) => Some(begin_recording(path, &name, &policy, &devices, stock)?),
    };
    let rings = recorder.as_ref().and_then(Recorder::rings);
    let (per_process, files, path) = (args.per_process, args.files, ledger.path().unwrap_or_default());
    let config = Config { devices, policy, heat, stock, per_process, files, ledger: path, rings, supervisor };
    command.env(config::VARIABLE, config.encode());
    let running = supervise::start(&mut command).map_err(|source| cannot_start(&program, source))?;
    let subject = Arc::new(Subject {
        ledger: ledger.clone(),
        devices: config.devices.clone(),
        policy: config.policy.clone(),
        stock,
        per_process: config.per_process,
        memory,
        program: name.clone(),
        program_pid: running.pid(),
        started: running.started(),
    });
    let control = Server::start(subject.clone());
    let metrics = prepared.map(|prepared| prepared.start(subject));
    let waiting =
        |source| Failure::Supervise { program: program.file.clone(), what: "could not be waited for", source };
    let ended = running.wait().map_err(waiting)?;
    if let Some(recorder) = recorder {
        recorder.end();
    }
    drop(control);
    let told = metrics.map_or(Ok(()), Metrics::end);

    let Ended { status, wall, .. } = ended;
    // By its number, which is another for a program in a process namespace of its own.
    let away = ledger.counters_of(ended.pid).map(|own| report::away(&config.devices, own));
    let away = away.unwrap_or_else(|| report::away(&config.devices, &ledger.sum()));
    let (signal, core_dumped) = (status.signal(), status.core_dumped());
    let end = End { exit_code: ended.exit_code(), signal, core_dumped, away, wall };
    let managed = report_agents(&ledger, &name, &ended);
    let mut unwritten = false;
    let shares = |of: &(usize, &DeviceSpec)| !config.per_process && of.1.backend.kind().shares_size();
    let shared = config.devices.iter().enumerate().filter(shares).map(|(place, _)| place);
    let report = Report::new(name, end, ledger.processes(), &config.devices, &ledger.sum_at_end(ended.pid, shared));
    if !args.quiet && managed {
        // A standard error that is gone is no reason to lose the program's status.
        let _ = write!(io::stderr().lock(), "{}", report.summary(end, &last_policy(&config.policy, &ledger)));
    }
    if let Err((path, source)) = told {
        failure::say(&Failure::Metrics { what: format!("written to {}", path.display()), source });
        unwritten = true;
    }
    if let Some(output) = output
        && let Err(source) = room::with_all_there_is(|| output.write(&report.json()))
    {
        failure::say(&stats_failure(source));
        unwritten = true;
    }
    Ok(if unwritten && end.exit_code == 0 { REFUSED } else { end.exit_code })
}

/// Makes sure that metrics can be told, and says where, if nobody has chosen that.
fn prepare_metrics(target: &Where) -> Result<Prepared, Failure> {
    let what = || match target {
        Where::Port(address) => format!("told at {address}"),
        Where::File(path) => format!("written to {}", path.display()),
    };
    let prepared = metrics::prepare(target).map_err(|source| Failure::Metrics { what: what(), source })?;
    if let Some(address) = prepared.drawn(target) {
        failure::tell(&format!("metrics are at http://{address}/metrics"));
    }
    Ok(prepared)
}

/// The policy with the limit that held last.
fn last_policy(policy: &PolicySpec, ledger: &Ledger) -> PolicySpec {
    let set = policy.limit().and_then(|_| ledger.system_limit());
    set.and_then(|limit| policy.with(&limit.get().to_string()).ok()).unwrap_or_else(|| policy.clone())
}

/// Begins to record the run of `program` into the file at `path`.
fn begin_recording(
    path: &Path,
    program: &str,
    policy: &PolicySpec,
    devices: &[DeviceSpec],
    stock: ByteLen,
) -> Result<Recorder, Failure> {
    let recording = Recording {
        hetmem: env!("CARGO_PKG_VERSION").to_owned(),
        program: program.to_owned(),
        policy: policy.to_string(),
        devices: devices.iter().map(ToString::to_string).collect(),
        stock_bytes: stock.get(),
    };
    let begun = room::with_all_there_is(|| Recorder::begin(path, &recording));
    begun.map_err(|source| Failure::Recording { path: path.to_owned(), source })
}

fn devices(texts: &[String], memory: ByteLen) -> Result<Vec<DeviceSpec>, Failure> {
    let default = [DEFAULT_DEVICE.to_owned()];
    let texts = if texts.is_empty() { &default[..] } else { texts };
    spec::check_for_any_program(texts)
        .and_then(|()| spec::parse_all(texts, memory))
        .map_err(|error| Failure::Usage(error.to_string()))
}

/// The policy with all that it needs. `--system-limit` is another way to write the argument of one that holds a limit.
fn policy(given: &PolicySpec, limit: Option<ByteLen>, memory: ByteLen) -> Result<PolicySpec, Failure> {
    let usage = |message: String| Err(Failure::Usage(message));
    let spec = match (limit, given.argument()) {
        (Some(_), _) if !given.holds_limit() => {
            return usage(format!("--system-limit goes with --policy {} only, not with {given}", with_limit(" or ")));
        }
        (Some(limit), Some(_)) => return usage(format!("--policy {given} goes without --system-limit {limit}")),
        (Some(limit), None) => given.with(&limit.get().to_string()),
        (None, None) if given.holds_limit() => {
            return usage(format!("--policy {given} needs --system-limit SIZE, such as 256M"));
        }
        // The summary names what was drawn, so that the run can be repeated.
        (None, _) => given.clone().complete(|| RandomState::new().hash_one(std::process::id())),
    };
    let spec = spec.map_err(|error| Failure::Usage(error.to_string()))?;
    match spec.limit() {
        Some(limit) if limit > memory => {
            usage(format!("the limit {limit} is larger than this machine's memory ({memory})"))
        }
        _ => Ok(spec),
    }
}

/// What shows the policy how pages are used: all that it goes by, if nothing is `given`.
fn heat(given: Option<Sources>, policy: &PolicySpec) -> Result<Sources, Failure> {
    let Some(heat) = given else { return Ok(Sources { samples: policy.heat().contains(&Source::Samples) }) };
    match heat.each().find(|source| !policy.heat().contains(source)) {
        Some(source) => {
            let (name, source) = (policy.name(), source.name());
            let goes_by = policy.heat().first().map_or("none", |first| first.name());
            Err(Failure::Usage(format!("--heat {heat}: policy {name} does not go by {source}, but by {goes_by}")))
        }
        None => Ok(heat),
    }
}

/// How much populated memory is kept, if `given` doesn't say: not much of a limit against which it counts.
fn stock(given: Option<ByteLen>, limit: Option<ByteLen>, memory: ByteLen) -> Result<ByteLen, Failure> {
    let Some(stock) = given else {
        let share = limit.map_or(STOCK, |limit| ByteLen::new(limit.get() / LIMIT_SHARE));
        return Ok(share.pages_down().bytes().min(STOCK));
    };
    let usage = |message: String| Err(Failure::Usage(message));
    match limit {
        _ if stock.whole_pages().is_none() => {
            usage(format!("a stock of {stock} is not a multiple of the page, {PAGE_SIZE} B"))
        }
        _ if stock > memory => usage(format!("a stock of {stock} is larger than this machine's memory ({memory})")),
        Some(limit) if stock >= limit => {
            usage(format!("a stock of {stock} leaves nothing of the limit {limit}; it must be less"))
        }
        _ => Ok(stock),
    }
}

fn command(program: &Program, arguments: &[OsString]) -> Command {
    let mut command = Command::new(&program.file);
    command.arg0(&program.argv0).args(&program.leading).args(arguments);
    found::hand_on(&mut command);
    command
}

/// The value of `LD_PRELOAD`: the library, then whatever was there.
fn preload(library: OsString, existing: Option<OsString>) -> OsString {
    let mut value = library;
    if let Some(existing) = existing.filter(|existing| !existing.is_empty()) {
        value.push(":");
        value.push(existing);
    }
    value
}

/// The value of `ASAN_OPTIONS`: a program that was built with the sanitizer ends at once if another library was loaded first, unless it is told that
/// this is meant. (It runs unmanaged.)
fn asan_options(existing: Option<OsString>) -> OsString {
    let mut value = OsString::from("verify_asan_link_order=0");
    if let Some(existing) = existing.filter(|existing| !existing.is_empty()) {
        value.push(":");
        value.push(existing);
    }
    value
}

/// What was refused although the checks found nothing: by `execve(2)`, or because there is no room for a process.
fn cannot_start(program: &Program, error: NotStarted) -> Failure {
    let program = program.file.clone();
    match error {
        NotStarted::Memory(source) => {
            Failure::Supervise { program, what: "is not started, as hetmem has too little memory beside it", source }
        }
        NotStarted::Signals(source) => {
            Failure::Supervise { program, what: "is not started, as signals could not be passed on to it", source }
        }
        NotStarted::Program(source) if source.kind() == io::ErrorKind::NotFound => {
            Failure::NotFound { program, why: String::new() }
        }
        NotStarted::Program(source)
            if matches!(source.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory) =>
        {
            Failure::Supervise { program, what: "could not be started", source }
        }
        NotStarted::Program(source) => Failure::NotExecutable { program, why: source.to_string() },
    }
}

/// Says which agents did not work, and whether the program's own did.
fn report_agents(ledger: &Ledger, name: &str, ended: &Ended) -> bool {
    if let Some(refusal) = ledger.refusal() {
        let whose = if refusal.pid == ended.pid { name.to_owned() } else { format!("process {}", refusal.pid) };
        let more = match ledger.refusals() {
            0 | 1 => String::new(),
            n => format!(" (and {} more processes)", n - 1),
        };
        failure::tell(&format!("{whose} {}{more}", refusal.message));
    } else if ledger.processes() == 0 {
        failure::tell(&format!("{name} ran unmanaged: the loader did not load the agent, or it did not start"));
    }
    ledger.processes() != 0
}

#[cfg(test)]
mod tests {
    use hetmem_core::quantity;

    use super::*;

    const MEMORY: ByteLen = ByteLen::new(1 << 30);

    #[test]
    fn what_was_preloaded_before_stays() {
        assert_eq!(preload("/l.so".into(), None), "/l.so");
        assert_eq!(preload("/l.so".into(), Some("".into())), "/l.so");
        assert_eq!(preload("/l.so".into(), Some("/a.so:/b.so".into())), "/l.so:/a.so:/b.so");
    }

    #[test]
    fn sources_of_heat_are_those_that_the_policy_goes_by() {
        let chosen = |given: Option<&str>, policy: &str| {
            let given = given.map(|text| text.parse().unwrap());
            heat(given, &policy.parse().unwrap()).map(|heat| heat.to_string()).map_err(|error| error.to_string())
        };
        for (given, policy, heat) in [
            (None, "limit=4K", "faults,samples"),
            (None, "clock=4K", "faults"),
            (None, "manual", "faults"),
            (Some("faults"), "limit=4K", "faults"),
            (Some("faults,samples"), "limit=4K", "faults,samples"),
            (Some("faults"), "clock=4K", "faults"),
        ] {
            assert_eq!(chosen(given, policy).as_deref(), Ok(heat), "{policy}");
        }
        let refused = |given, policy| chosen(Some(given), policy).unwrap_err();
        assert!(refused("faults,samples", "clock=4K").ends_with("policy clock does not go by samples, but by faults"));
        assert!(refused("faults", "manual").ends_with("policy manual does not go by faults, but by none"));
    }

    #[test]
    fn the_limit_belongs_to_its_policy() {
        let page = Some(ByteLen::new(PAGE_SIZE));
        let chosen = |name: &str, limit| policy(&name.parse().unwrap(), limit, MEMORY);
        for (name, limit) in [("limit", page), ("limit=4K", None), ("clock", page), ("clock=4K", None)] {
            let whole = format!("{}=4K", name.trim_end_matches("=4K"));
            assert_eq!(chosen(name, limit).unwrap().to_string(), whole);
        }
        for (name, limit) in [
            ("limit", None),
            ("clock", None),
            ("limit", Some(ByteLen::new(0))),
            ("limit", Some(ByteLen::new(5000))),
            ("limit", Some(ByteLen::new(2 << 30))),
            ("limit=2G", None),
            ("limit=4K", page),
            ("manual", page),
            ("chaos", page),
        ] {
            assert!(matches!(chosen(name, limit), Err(Failure::Usage(_))), "{name} {limit:?}");
        }
    }

    #[test]
    fn the_stock_is_a_part_of_the_limit() {
        let size = |text: &str| quantity::size(text).unwrap();
        let chosen = |given: Option<&str>, limit: Option<&str>| stock(given.map(size), limit.map(size), MEMORY);
        for (given, limit, stock) in [
            (None, None, "64M"),
            (None, Some("1G"), "4M"),
            (None, Some("80M"), "320K"),
            (None, Some("1T"), "64M"),
            (None, Some("4K"), "0"),
            (Some("0"), None, "0"),
            (Some("512M"), None, "512M"),
            (Some("12M"), Some("16M"), "12M"),
        ] {
            assert_eq!(chosen(given, limit).unwrap(), size(stock), "{given:?} of {limit:?}");
        }
        for (given, limit) in [("5000", None), ("2G", None), ("16M", Some("16M"))] {
            assert!(matches!(chosen(Some(given), limit), Err(Failure::Usage(_))), "{given} of {limit:?}");
        }
    }

    #[test]
    fn a_seed_is_drawn_where_none_is_given() {
        let seed = |name: &str| policy(&name.parse().unwrap(), None, MEMORY).unwrap().to_string();
        assert_eq!(seed("chaos=42"), "chaos=0x2a");
        assert_ne!(seed("chaos"), seed("chaos"));
        assert!(seed("chaos").parse::<PolicySpec>().unwrap().make().is_ok());
    }

    #[test]
    fn without_a_device_there_is_a_coherent_one() {
        let found = devices(&[], MEMORY).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].to_string(), "coherent:emulated,size=256M,name=coherent0");
    }
}

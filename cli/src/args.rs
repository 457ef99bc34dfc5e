//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::Resettable;
use clap::{ArgAction, Args, Parser, Subcommand};
use hetmem_core::heat::Sources;
use hetmem_core::policy::{POLICIES, PolicySpec};
use hetmem_core::quantity;
use hetmem_core::units::{ByteLen, VirtAddr};
use hetmem_devices::kind::KINDS;

use crate::control::protocol::Address;
use crate::{advise, bench, heat, metrics, migrate, mistakes, pages, ps, replay, set, top, topology};

/// Heterogeneous memory management in user space: pages of unmodified programs move between system memory and device
/// memory while the programs run.
#[derive(Parser, Debug)]
#[command(name = "hetmem", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// Each says at length what it does where its arguments are; a comment here would take the place of that.
#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    #[command(about = "Run a program with its memory managed")]
    Run(RunArgs),
    #[command(about = "Say what hetmem can use on this host, and what would fix what it can't")]
    Doctor(DoctorArgs),
    #[command(about = "Measure migration and faults on this host")]
    Bench(bench::Args),
    #[command(about = "Say what memory this machine has, who claims it, and which devices hetmem can make of it")]
    Topology(topology::Args),
    #[command(about = "Say which runs are under way")]
    Ps(ps::Args),
    #[command(about = "Watch a run, on the whole screen")]
    Top(top::Args),
    #[command(about = "Show how warm the memory of a run's program is")]
    Heat(heat::Args),
    #[command(about = "Change what a run goes by, while it is under way")]
    Set(set::Args),
    #[command(about = "Say to a process of a run how its memory is used")]
    Advise(advise::Args),
    #[command(about = "Move pages of a process of a run to a device, or home")]
    Migrate(migrate::Args),
    #[command(about = "Say what policies make of a trace, without a program")]
    Replay(replay::Args),
    /// Write manual pages and completions
    #[command(hide = true)]
    Pages(pages::Args),
    /// Be measured by `hetmem bench agent` or `hetmem bench policy`
    #[command(hide = true)]
    BenchTarget(bench::target::Args),
}

/// Run a program, unmodified, with its private anonymous memory managed by hetmem.
///
/// The program behaves as it does without hetmem, but for time. Programs that it starts are managed too, each with devices of
/// its own. Programs that ignore preloaded libraries (static, setuid) are refused.
#[derive(Args, Debug)]
#[command(after_long_help = RUN_NOTES)]
pub(crate) struct RunArgs {
    #[arg(long = "device", value_name = "SPEC", help = DEVICES, long_help = devices_at_length())]
    pub(crate) devices: Vec<String>,

    #[arg(long, value_name = "POLICY", default_value_t, help = policies(), long_help = policies_at_length())]
    pub(crate) policy: PolicySpec,

    /// What may stay in system memory (limit, clock)
    ///
    /// It is the SIZE of --policy limit or clock, and what all processes of the run together may have of their managed memory there.
    #[arg(long, value_name = "SIZE", value_parser = quantity::size)]
    pub(crate) system_limit: Option<ByteLen>,

    /// How use is seen: faults, samples [default: both]
    ///
    /// Names with commas between. `faults`: touches that bring pages home from private devices; they cost nothing beside. `samples`: some pages are taken out for some milliseconds, and
    /// a touch of one of these brings it back, which costs some microseconds; policy `limit` goes by them, too. Without them it moves nothing home from
    /// coherent devices, and what has never left counts as the coldest.
    #[arg(long, value_name = "SOURCES")]
    pub(crate) heat: Option<Sources>,

    /// Each process has limit and devices for itself
    ///
    /// Without it the limit and the sizes of devices are those of all processes of the run together, but for device-DAX, of which each takes a part.
    #[arg(long)]
    pub(crate) per_process: bool,

    /// Manage files that the program maps to be read, too
    ///
    /// Policies `clock` and `chaos` move them then, in blocks of 2 MiB. While anything of a file is on a device, who opens it for writing waits until that is
    /// home. It takes the file's owner, or root, and Linux 6.11. Mappings of 64 KiB and more count. It is not for programs that change such mappings past the C library.
    #[arg(long)]
    pub(crate) files: bool,

    /// System memory that is kept for pages on their way home [default: 64M]
    ///
    /// Each process keeps as much, populated; it counts against the limit. If a 256th of the limit is less, that is the default.
    #[arg(long, value_name = "SIZE", value_parser = quantity::size)]
    pub(crate) stock: Option<ByteLen>,

    /// Write statistics to this file, as JSON, at the end
    ///
    /// A regular file is replaced as a whole at the end, and left as it is if the program is not started. /dev/stdout, pipes
    /// and the like are written to.
    #[arg(long, value_name = "FILE")]
    pub(crate) stats: Option<PathBuf>,

    /// Tell metrics: at 127.0.0.1:9100, or in a file
    ///
    /// They are in Prometheus' text format. A port answers GET /metrics while the program runs, to any user of this machine; with port 0 the kernel chooses one, which is printed. A file is
    /// replaced as a whole every ten seconds and when the program has ended.
    #[arg(long, value_name = "ADDR|FILE")]
    pub(crate) metrics: Option<metrics::Where>,

    /// Record the run into this file, for `hetmem replay`
    ///
    /// The file is made, or emptied. What can't be written is said, and ends the recording, not the program.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,

    /// Print no summary when the program has ended
    #[arg(short, long)]
    pub(crate) quiet: bool,

    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM [ARGS]", num_args = 1..)]
    pub(crate) command: Vec<OsString>,
}

const POLICY: &str = "Which pages go where";

const DEVICES: &str = "TYPE:BACKEND[,KEY=VALUE]…, up to 16 times [default: coherent:emulated]";

fn devices_at_length() -> String {
    let each: String = KINDS.iter().map(|kind| format!("\n\n{}: {}", kind.syntax(), kind.help())).collect();
    format!(
        "A device that pages can move to: {DEVICES}\n\nTYPE is `coherent` (the CPU uses the pages in place) or `private` (a touch by the CPU brings them home). BACKEND is one of \
         these:{each}\n\nKeys: size=SIZE (default 1G, or a quarter of memory if that is less), name=NAME, latency=TIME and bandwidth=SIZE (copies take as long as \
         they would there), fail=N (each N-th copy fails). SIZE takes K, M, G, T in powers of 1024; TIME takes ns, us, ms, s."
    )
}

/// The policies in a line.
fn policies() -> String {
    let names: Vec<String> = POLICIES.iter().map(ToString::to_string).collect();
    format!("{POLICY}: {}", names.join(", "))
}

/// Each with what it does.
fn policies_at_length() -> String {
    let each = POLICIES.iter().map(|policy| format!("\n\n{policy}: {}", policy.help));
    format!("{POLICY}{}\n", each.collect::<String>())
}

/// Lines short enough for a narrow terminal: wrapped ones would lose their columns.
const RUN_NOTES: &str = "\
Examples:
  hetmem run --policy chaos -- python3 script.py
  hetmem run --device coherent:emulated,size=64M \\
             --device private:emulated,size=64M --policy chaos=42 \\
             --stats stats.json -- sqlite3 data.db 'PRAGMA integrity_check'
  hetmem run --device private:emulated,size=2G,latency=2us,bandwidth=8G \\
             --policy limit --system-limit 256M -- ./program

Exit status:
  the program's own, or 128+N if signal N ended it
  2    the command line is wrong
  125  hetmem refuses, and says why (see also `hetmem doctor`),
       or the program succeeded and its statistics could not be written
  126  the program can't be executed
  127  the program was not found

Signals:
  HUP, INT, QUIT, TERM, USR1, USR2, ALRM and WINCH sent to hetmem are passed
  on to the program; what the terminal sends reaches both. Stopping and
  continuing act on the job as a whole. If hetmem itself is killed, the
  program goes on.";

/// Say what hetmem can use on this host, and what would fix what it can't.
///
/// The exit status is 0 if `hetmem run` can work, and 1 if not.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Why there is nothing to do.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Help or the version was asked for, and printed.
    Shown,
    /// The command line is wrong, with the message in one line.
    Usage(String),
}

/// All that can be asked for. Help is what fits on a screen; all that there is to say is the manual.
pub(crate) fn definition() -> clap::Command {
    let flag = |name: &'static str, action, help: &'static str| {
        clap::Arg::new(name).long(name).action(action).help(help).help_heading(Resettable::Reset)
    };
    <Cli as clap::CommandFactory>::command().mut_subcommands(|command| {
        command
            .disable_help_flag(true)
            .arg(flag("help", ArgAction::HelpShort, "Print help, on one screen").short('h'))
            .arg(flag("manual", ArgAction::HelpLong, "Print all there is to say, with examples"))
    })
}

/// Reads the command line of this process.
pub(crate) fn parse() -> Result<Command, Stop> {
    parse_from(std::env::args_os())
}

fn parse_from(args: impl IntoIterator<Item = OsString>) -> Result<Command, Stop> {
    let args: Vec<OsString> = args.into_iter().collect();
    let matched = definition().try_get_matches_from(&args);
    match matched.and_then(|matches| <Cli as clap::FromArgMatches>::from_arg_matches(&matches)) {
        Ok(cli) => Ok(cli.command),
        Err(error) if !error.use_stderr() => {
            // A reader that went away early (`hetmem --help | head -1`) has seen what it wanted.
            let _ = error.print();
            Err(Stop::Shown)
        }
        Err(error) => Err(Stop::Usage(mistakes::in_one_line(&error, &args, &definition()))),
    }
}

/// Reads the number of a process.
pub(crate) fn pid(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "it is no number of a process; `hetmem ps` lists the runs".to_owned())
}

/// Reads a range of addresses, as a line of `/proc/PID/maps` begins.
pub(crate) fn range(text: &str) -> Result<(Address, Address), String> {
    let wrong = || format!("`{text}` is no range, such as 7f0012345000-7f0012347000");
    let (start, end) = text.split_once('-').ok_or_else(wrong)?;
    let address = |digits: &str| {
        let digits = digits.strip_prefix("0x").unwrap_or(digits);
        let number = u64::from_str_radix(digits, 16).map_err(|_| wrong())?;
        let address = VirtAddr::new(number);
        if address.is_page_aligned() {
            Ok(Address(address))
        } else {
            Err(format!("0x{digits} is not the start of a page"))
        }
    };
    let (start, end) = (address(start)?, address(end)?);
    if start.0 < end.0 { Ok((start, end)) } else { Err(format!("{text} ends before it begins")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_args(args: &[&str]) -> Result<RunArgs, String> {
        let all = ["hetmem", "run"].iter().chain(args).map(OsString::from);
        match parse_from(all) {
            Ok(Command::Run(args)) => Ok(args),
            Ok(other) => panic!("{other:?}"),
            Err(Stop::Usage(message)) => Err(message),
            Err(Stop::Shown) => panic!("help"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn everything_behind_the_program_is_the_programs() {
        for separator in [&["--"][..], &[]] {
            let args = [&["--quiet"], separator, &["ls", "--quiet", "-x", "--", "--stats"]].concat();
            assert_eq!(run_args(&args).unwrap().command, ["ls", "--quiet", "-x", "--", "--stats"]);
        }
    }

    #[test]
    fn options_are_read() {
        let args = run_args(&[
            "--device",
            "a",
            "--device=b",
            "--policy",
            "limit",
            "--system-limit",
            "2M",
            "--stats",
            "f",
            "--",
            "x",
        ])
        .unwrap();
        assert_eq!(args.devices, ["a", "b"]);
        assert_eq!(args.policy.to_string(), "limit");
        assert_eq!(args.system_limit, Some(ByteLen::new(2 << 20)));
        assert_eq!(args.stats, Some("f".into()));
        assert!(!args.quiet);
    }

    #[test]
    fn each_command_has_a_short_help_in_the_list_and_a_long_one_of_its_own() {
        let cli = <Cli as clap::CommandFactory>::command();
        for command in cli.get_subcommands().filter(|command| !command.is_hide_set()) {
            let (short, long) = (command.get_about().unwrap().to_string(), command.get_long_about());
            assert!(short.len() <= 88, "{short}");
            assert!(long.is_some_and(|long| long.to_string().contains("\n\n")), "{}", command.get_name());
        }
    }

    #[test]
    fn the_policies_are_the_same_in_the_table_the_help_and_the_documents() {
        let help = <Cli as clap::CommandFactory>::command().find_subcommand_mut("run").unwrap().render_long_help();
        let help = help.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        for policy in POLICIES {
            assert!(help.contains(&format!("{policy}: {}", policy.help)), "{policy}: {help}");
        }
        let (_, table) =
            include_str!("../../docs/run.md").split_once("| `POLICY` | what moves |\n| --- | --- |\n").unwrap();
        let rows = table.lines().map_while(|line| line.strip_prefix("| `")?.split_once('`'));
        let names: Vec<&str> = rows.map(|(name, _)| name).collect();
        assert_eq!(names, POLICIES.iter().map(ToString::to_string).collect::<Vec<_>>());
    }

    #[test]
    fn the_backends_are_the_same_in_the_table_the_help_and_the_documents() {
        let help = <Cli as clap::CommandFactory>::command().find_subcommand_mut("run").unwrap().render_long_help();
        let help = help.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        let (_, row) = include_str!("../../docs/run.md").split_once("| `BACKEND` | ").unwrap();
        let row = row.lines().next().unwrap();
        let described: Vec<&str> = row.split(" | ").next().unwrap().split("; ").collect();
        assert_eq!(described.len(), KINDS.len(), "{row}");
        for (kind, described) in KINDS.iter().zip(described) {
            assert!(help.contains(&format!("{}: {}", kind.syntax(), kind.help())), "{}: {help}", kind.name());
            assert_eq!(described, format!("`{}`: {}", kind.syntax(), kind.help()));
        }
    }

    #[test]
    fn ranges_are_as_in_maps() {
        let read = |text| range(text).map(|(start, end)| (start.0.get(), end.0.get()));
        assert_eq!(read("7f0012345000-7f0012347000"), Ok((0x7f00_1234_5000, 0x7f00_1234_7000)));
        assert_eq!(read("0x1000-0x2000"), Ok((0x1000, 0x2000)));
        for (text, part) in [
            ("", "is no range"),
            ("1000", "is no range"),
            ("1000-x", "is no range"),
            ("1000-2001", "0x2001 is not the start of a page"),
            ("2000-2000", "ends before it begins"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn mistakes_are_one_line() {
        for (args, part) in [
            (&["--polcy", "manual", "--", "x"][..], "unexpected argument '--polcy' found"),
            (&["--policy", "lru", "x"], "unknown policy `lru`; the policies are manual, limit=SIZE"),
            (&["--system-limit", "1GB", "x"], "sizes take K, M, G or T"),
            (&[], "required arguments were not provided: <PROGRAM [ARGS]>..."),
            (&["--"], "required arguments were not provided"),
        ] {
            let message = run_args(args).unwrap_err();
            assert!(message.contains(part) && !message.contains('\n'), "{message}");
            assert!(!message.contains("Usage:"), "{message}");
        }
    }
}

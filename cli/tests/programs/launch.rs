//! Starts a program natively or under `hetmem run`, and waits for it no longer than it may take.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tempfile::TempDir;

use crate::stats::Stats;
use crate::{Outcome, autopsy, host};

/// No run may take longer, managed or not. They take seconds; a slow and busy machine gets all the rest.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);

/// The devices and the policy of a managed run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Setting {
    /// Random chunks move to a coherent and to a private device and back, without pause.
    Chaos,
    /// Little system memory, and a private device for the rest.
    Limit,
    /// Less memory than programs want, of both.
    Small,
    /// Less, and devices of both kinds: some is promoted, and all of the programs' memory is sampled.
    Tiers,
    /// Nothing moves unless the program asks for it.
    Manual,
    /// Little system memory, and compressed memory for the rest.
    Compressed,
    /// Random chunks are compressed, and come back, without pause; there is no room for all.
    CompressedChaos,
    /// Little system memory, and a file for the rest.
    File,
    /// Random chunks move to a file and back, without pause.
    FileChaos,
    /// As under chaos, and files that are mapped to be read are managed, too.
    Files,
    /// Such files, and a limit that has no room for them.
    FilesLimit,
}

impl Setting {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Chaos => "chaos",
            Self::Limit => "limit",
            Self::Small => "small",
            Self::Tiers => "tiers",
            Self::Manual => "manual",
            Self::Compressed => "compressed",
            Self::CompressedChaos => "compressed-chaos",
            Self::File => "file",
            Self::FileChaos => "file-chaos",
            Self::Files => "files",
            Self::FilesLimit => "files-limit",
        }
    }

    /// How many pages must move where `under_chaos` do under chaos.
    pub(crate) fn least_moved(self, under_chaos: u64) -> u64 {
        match self {
            Self::Chaos
            | Self::Limit
            | Self::Small
            | Self::Tiers
            | Self::Files
            | Self::FilesLimit
            | Self::Compressed
            | Self::File => under_chaos,
            // A page is compressed, or read from a disk, in the time in which several are copied.
            Self::CompressedChaos | Self::FileChaos => under_chaos / 4,
            Self::Manual => 0,
        }
    }

    /// The arguments of `hetmem run` for this setting.
    fn arguments(self) -> Vec<String> {
        const BOTH: [&str; 4] = ["--device", "coherent:emulated,size=64M", "--device", "private:emulated,size=64M"];
        let seed = format!("chaos={}", host::seed());
        // On a disk, as the folder for temporary files may be memory.
        let file = |size| format!("private:file={},size={size}", env!("CARGO_TARGET_TMPDIR"));
        let (large, small) = (file("512M"), file("64M"));
        let words: &[&str] = match self {
            Self::Chaos => &[&["--policy", &seed], &BOTH[..]].concat(),
            Self::Files => &[&["--policy", &seed, "--files"], &BOTH[..]].concat(),
            Self::FilesLimit => &["--files", "--policy", "clock=32M", "--device", "private:emulated,size=512M"],
            Self::Manual => &[&["--policy", "manual"], &BOTH[..]].concat(),
            // By a policy that takes nothing out to look whether it is used: programs see of what is out only that it is not there.
            Self::Small => &["--policy", "clock=16M", "--device", "private:emulated,size=24M"],
            Self::Limit => &[
                &["--policy", "limit", "--system-limit", "32M", "--stock", "4M"][..],
                &["--device", "private:emulated,size=512M"],
            ]
            .concat(),
            Self::Tiers => &[
                &["--policy", "limit", "--system-limit", "16M"][..],
                &["--device", "private:emulated,size=512M", "--device", "coherent:emulated,size=32M"],
            ]
            .concat(),
            Self::Compressed => {
                &["--policy", "limit", "--system-limit", "32M", "--device", "private:compressed,size=512M,memory=256M"]
            }
            Self::CompressedChaos => &["--policy", &seed, "--device", "private:compressed,size=64M,memory=16M"],
            Self::File => &["--policy", "limit", "--system-limit", "32M", "--device", &large],
            Self::FileChaos => &["--policy", &seed, "--device", &small],
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }

    /// The devices that the statistics must name: type and capacity.
    pub(crate) fn devices(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::Chaos | Self::Manual | Self::Files => &[("coherent", 64 << 20), ("private", 64 << 20)],
            Self::Limit | Self::FilesLimit => &[("private", 512 << 20)],
            Self::Small => &[("private", 24 << 20)],
            Self::Tiers => &[("private", 512 << 20), ("coherent", 32 << 20)],
            Self::Compressed | Self::File => &[("private", 512 << 20)],
            Self::CompressedChaos | Self::FileChaos => &[("private", 64 << 20)],
        }
    }

    /// What stands behind them.
    pub(crate) fn backend(self) -> &'static str {
        match self {
            Self::Chaos | Self::Limit | Self::Small | Self::Tiers | Self::Manual | Self::Files | Self::FilesLimit => {
                "emulated"
            }
            Self::Compressed | Self::CompressedChaos => "compressed",
            Self::File | Self::FileChaos => "file",
        }
    }
}

/// A program and what it needs to be run any number of times with the same result.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
    stdin: Option<PathBuf>,
}

impl Program {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), arguments: Vec::new(), stdin: None }
    }

    pub(crate) fn arguments<T: Into<OsString>>(mut self, more: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(more.into_iter().map(Into::into));
        self
    }

    pub(crate) fn stdin(mut self, file: impl Into<PathBuf>) -> Self {
        self.stdin = Some(file.into());
        self
    }

    /// Starts it in a folder of its own: natively, or managed in `setting`.
    pub(crate) fn start(&self, setting: Option<Setting>) -> Outcome<Running> {
        self.start_in(host::folder()?, setting, None)
    }

    /// Starts it in `folder`; its standard output goes to `stdout`, or to a file that [`Running::wait`] reads.
    pub(crate) fn start_in(
        &self,
        folder: TempDir,
        setting: Option<Setting>,
        stdout: Option<Stdio>,
    ) -> Outcome<Running> {
        if matches!(setting, Some(Setting::File | Setting::FileChaos)) {
            host::disk()?;
        }
        let stats = folder.path().join(".stats.json");
        let mut command = match setting {
            None => Command::new(&self.path),
            Some(setting) => {
                let mut command = Command::new(host::hetmem());
                command.arg("run").args(setting.arguments());
                command.arg("--stats").arg(&stats).args(["--quiet", "--"]).arg(&self.path);
                command
            }
        };
        let (out, err) = (tempfile::tempfile()?, tempfile::tempfile()?);
        let stdin = match &self.stdin {
            Some(path) => Stdio::from(File::open(path)?),
            None => Stdio::null(),
        };
        let child = command
            .args(&self.arguments)
            .current_dir(folder.path())
            .env("PYTHONHASHSEED", "0")
            .env("LC_ALL", "C")
            .env_remove("LD_PRELOAD")
            .stdin(stdin)
            .stdout(match stdout {
                Some(stdout) => stdout,
                None => out.try_clone()?.into(),
            })
            .stderr(err.try_clone()?)
            .process_group(0)
            .spawn()?;
        let what = format!("{command:?}");
        Ok(Running { what, child, out, err, folder, setting, stats, started: Instant::now() })
    }
}

/// A started program. Dropping it kills it and all that it started.
#[derive(Debug)]
pub(crate) struct Running {
    what: String,
    pub(crate) child: Child,
    out: File,
    err: File,
    pub(crate) folder: TempDir,
    setting: Option<Setting>,
    stats: PathBuf,
    started: Instant,
}

/// A program that ended by itself, and what it left.
#[derive(Debug)]
pub(crate) struct Ended {
    /// How it was run, for messages.
    pub(crate) what: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) took: Duration,
    /// The folder in which it ran.
    pub(crate) folder: TempDir,
    /// The statistics of a managed run.
    pub(crate) stats: Option<Stats>,
}

impl Running {
    /// Waits until the program ends, or fails with a report on all of its threads.
    pub(crate) fn wait(mut self) -> Outcome<Ended> {
        let Some(status) = wait_until(&mut self.child, self.started + LIMIT)? else {
            return Err(self.stuck("did not end").into());
        };
        let took = self.started.elapsed();
        let (stdout, stderr) = (contents(&mut self.out)?, contents(&mut self.err)?);
        let stats = match self.setting {
            None => None,
            Some(setting) => Some(Stats::read(&self.stats, setting).map_err(|why| {
                let text = String::from_utf8_lossy(&stderr);
                format!("{}\nended with {status} and {why}; it wrote\n{text}", self.what)
            })?),
        };
        let folder = std::mem::replace(&mut self.folder, host::folder()?);
        Ok(Ended { what: self.what.clone(), status, stdout, stderr, took, folder, stats })
    }

    /// A report on the program, which is not getting on.
    pub(crate) fn stuck(&mut self, how: &str) -> String {
        let report = autopsy::report(self.child.id());
        let (out, err) = (contents(&mut self.out), contents(&mut self.err));
        let tail = |text: Result<Vec<u8>, _>| text.map_or_else(|_| String::new(), |text| last_part(&text));
        format!(
            "{}\n{how} within {:.0} s\n--- stdout\n{}\n--- stderr\n{}\n{report}",
            self.what,
            self.started.elapsed().as_secs_f64(),
            tail(out),
            tail(err),
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            autopsy::kill_all(self.child.id());
            // Reaped, so that no zombie is left; the status of a killed program says nothing.
            let _ = self.child.wait();
        }
    }
}

impl Ended {
    /// The exit status as a shell would give it: 128 + N for signal N.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }

    /// How many pages hetmem moved.
    pub(crate) fn moved(&self) -> u64 {
        self.stats.as_ref().map_or(0, Stats::moved)
    }
}

/// Runs a helper program, which must succeed, beside `server`; gives its standard output.
pub(crate) fn help(command: &mut Command, stdin: Option<&[u8]>, server: &mut Running) -> Outcome<String> {
    let what = format!("{command:?}");
    let mut input = tempfile::tempfile()?;
    std::io::Write::write_all(&mut input, stdin.unwrap_or_default())?;
    input.rewind()?;
    let (mut out, mut err) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command.stdin(input).stdout(out.try_clone()?).stderr(err.try_clone()?).spawn()?;
    let status = wait_until(&mut child, server.started + LIMIT)?;
    if status.is_none() {
        child.kill()?;
        child.wait()?;
    }
    let (stdout, stderr) = (last_whole(&mut out)?, last_whole(&mut err)?);
    match status {
        Some(status) if status.success() => Ok(stdout),
        Some(status) => Err(server.stuck(&format!("{what} ended with {status}:\n{}\n", stdout + &stderr)).into()),
        None => Err(server.stuck(&format!("{what} did not end:\n{}\n", stdout + &stderr)).into()),
    }
}

/// Waits for the child; `None` if it is still running at `deadline`.
pub(crate) fn wait_until(child: &mut Child, deadline: Instant) -> std::io::Result<Option<ExitStatus>> {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = left.try_into().map_err(std::io::Error::other)?;
        let ready = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout)))?;
        if ready == 0 {
            return Ok(None);
        }
    }
    child.wait().map(Some)
}

fn contents(file: &mut File) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    Ok(text)
}

fn last_whole(file: &mut File) -> std::io::Result<String> {
    Ok(String::from_utf8_lossy(&contents(file)?).into_owned())
}

/// The end of a long output, where programs say what went wrong.
pub(crate) fn last_part(text: &[u8]) -> String {
    const MOST: usize = 4096;
    let from = text.len().saturating_sub(MOST);
    let cut = if from > 0 { "… " } else { "" };
    format!("{cut}{}", String::from_utf8_lossy(text.get(from..).unwrap_or_default()))
}

//! Who keeps the program within its limit, or doesn't, and how the program is run under each.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hetmem_core::units::ByteLen;

use super::kernel::Group;
use super::program::{Course, Task};
use crate::bench::setup::failed;
use crate::failure::Failure;

/// What the program's memory is beside its data, at most, that a device is to have room for as well.
const BESIDE: ByteLen = ByteLen::new(64 << 20);

/// Who is compared.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Contender {
    /// hetmem's policy `limit`
    Limit,
    /// hetmem's policy `clock`
    Clock,
    /// A memory cgroup that swaps to compressed memory: makes a zram device and a cgroup, and swaps to it, until the end (root)
    Kernel,
}

impl Contender {
    /// What it is called on the command line and in results.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Clock => "clock",
            Self::Kernel => "kernel",
        }
    }
}

/// A device that is tried.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Device {
    /// Private, a fault as fast as it can be
    Private,
    /// Private, a fault takes about 50 µs
    #[value(name = "private-50us")]
    PrivateSlow,
    /// Coherent
    Coherent,
}

impl Device {
    /// What it is called on the command line and in results.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::PrivateSlow => "private-50us",
            Self::Coherent => "coherent",
        }
    }

    pub(super) const fn is_private(self) -> bool {
        !matches!(self, Self::Coherent)
    }

    /// Its spec, with room for `size`.
    pub(super) fn spec(self, size: ByteLen) -> String {
        let kind = match self {
            Self::Private => "private:emulated",
            // A fault takes some microseconds by itself.
            Self::PrivateSlow => "private:emulated,latency=43us",
            Self::Coherent => "coherent:emulated",
        };
        format!("{kind},size={}", size.get().next_multiple_of(1 << 20))
    }
}

/// How a program is run.
pub(super) enum Way<'a> {
    Native,
    /// Under `hetmem run`, with a policy of this name.
    Managed {
        policy: &'static str,
        device: Device,
        limit: ByteLen,
    },
    /// In a control group.
    Grouped(&'a Group),
}

/// Runs measured programs.
pub(super) struct Runner {
    hetmem: PathBuf,
}

impl Runner {
    pub(super) fn new() -> Result<Self, Failure> {
        Ok(Self { hetmem: std::env::current_exe().map_err(failed("hetmem can't tell where its own executable is"))? })
    }

    /// Has a program do `task`, to its end.
    pub(super) fn run(&self, way: &Way<'_>, task: &Task) -> Result<Course, Failure> {
        let task_text = serde_json::to_string(task).map_err(failed("a task can't be put into JSON"))?;
        let program = [self.hetmem.clone().into_os_string(), "bench-target".into(), "policy".into(), task_text.into()];
        let mut command = command(&self.hetmem, way, ByteLen::new(task.pages * hetmem::PAGE_SIZE), &program);
        command.stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = command.output().map_err(failed("a program can't be started"))?;
        if !output.status.success() {
            return Err(Failure::Bench(format!("the measured program ended with {}", output.status)));
        }
        serde_json::from_slice(&output.stdout).map_err(failed("the measured program doesn't say what it saw"))
    }
}

fn command(hetmem: &Path, way: &Way<'_>, data: ByteLen, program: &[OsString]) -> Command {
    match way {
        Way::Native => {
            let mut command = Command::new(&program[0]);
            command.args(&program[1..]);
            command
        }
        Way::Managed { policy, device, limit } => {
            let mut command = Command::new(hetmem);
            command.args(["run", "--quiet", "--device", &device.spec(ByteLen::new(data.get() + BESIDE.get()))]);
            command.args(["--policy", &format!("{policy}={}", limit.get())]);
            command.arg("--").args(program);
            command
        }
        Way::Grouped(group) => group.command(program),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_managed_program_is_the_native_one_behind_a_separator_and_the_policy_is_one_there_is() {
        let program = ["/h/hetmem", "bench-target"].map(OsString::from);
        let limit = ByteLen::new(100 << 20);
        for policy in [Contender::Limit, Contender::Clock] {
            for device in [Device::Private, Device::PrivateSlow, Device::Coherent] {
                let way = Way::Managed { policy: policy.name(), device, limit };
                let command = command(Path::new("/h/hetmem"), &way, ByteLen::new(1 << 30), &program);
                let words: Vec<_> = command.get_args().map(|word| word.to_str().unwrap().to_owned()).collect();
                let at = words.iter().position(|word| word == "--").unwrap();
                assert_eq!(words[at + 1..], ["/h/hetmem", "bench-target"]);
                assert_eq!(
                    words
                        .iter()
                        .find(|word| word.starts_with(policy.name()))
                        .unwrap()
                        .parse::<hetmem_core::policy::PolicySpec>()
                        .unwrap()
                        .name(),
                    policy.name()
                );
                assert!(device.spec(limit).parse::<hetmem::DeviceSpec>().is_ok());
            }
        }
    }
}

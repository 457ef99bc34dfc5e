//! The kernel at the same limit: a memory cgroup, and swap to memory that is compressed (zram).
//!
//! Both change the machine, so they are made only where they were asked for, and are gone on drop: a signal that would end this process waits until
//! they are, and until the run that is under way has ended ([`Interrupts`]). Who is killed (SIGKILL) leaves
//! them: `swapoff` and a write to `/sys/class/zram-control/hot_remove`, and `rmdir` of the group, take them away.
//!
//! *Limits:* the group's limit is for all of its memory, hetmem's for private anonymous memory: the program's tables, which are shared, are added.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use hetmem_core::sync::Arc;
use hetmem_core::units::ByteLen;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::emulate_default_handler;

use crate::failure::Failure;

/// Where cgroups are mounted: version 1 with a folder for memory, or version 2.
const ROOT: &str = "/sys/fs/cgroup";
const ZRAM: &str = "/sys/class/zram-control";

/// A failure of the step `what`.
fn failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::Bench(format!("no comparison with the kernel: {what}: {error}"))
}

/// Puts the signals off that would end this process, but for those that it ignores, until this is dropped.
#[derive(Debug)]
pub(super) struct Interrupts {
    /// The last that came; 0 before.
    noted: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

impl Interrupts {
    pub(super) fn new() -> Result<Self, Failure> {
        let new = Self { noted: Arc::default(), over: Arc::default() };
        let ignored = crate::run::ignored_signals();
        for signal in [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0) {
            flag::register_conditional_default(signal, new.over.clone())
                .and_then(|_| flag::register_usize(signal, new.noted.clone(), usize::try_from(signal).unwrap_or(1)))
                .map_err(failed("signals can't be handled"))?;
        }
        Ok(new)
    }

    /// An error once one has come.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match self.noted.load(SeqCst) {
            0 => Ok(()),
            signal => Err(Failure::Bench(format!("interrupted by signal {signal}"))),
        }
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        // One that comes from now on is not put off.
        self.over.store(true, SeqCst);
        if let Ok(signal @ 1..) = i32::try_from(self.noted.load(SeqCst)) {
            // What ends the process has no way to fail.
            let _ = emulate_default_handler(signal);
        }
    }
}

/// A memory cgroup, removed on drop.
#[derive(Debug)]
pub(super) struct Group {
    path: PathBuf,
    limit_file: &'static str,
}

impl Group {
    /// A new one without a limit.
    pub(super) fn new() -> Result<Self, Failure> {
        let of_one = Path::new(ROOT).join("memory");
        let (parent, limit_file) = if of_one.join("memory.limit_in_bytes").exists() {
            (of_one, "memory.limit_in_bytes")
        } else {
            // A group has no controllers unless its parent hands them on.
            let handed_on = Path::new(ROOT).join("cgroup.subtree_control");
            fs::write(&handed_on, "+memory").map_err(failed("there is no memory cgroup"))?;
            (PathBuf::from(ROOT), "memory.max")
        };
        let path = parent.join(format!("hetmem-bench-{}", std::process::id()));
        fs::create_dir(&path).map_err(failed(path.display()))?;
        Ok(Self { path, limit_file })
    }

    pub(super) fn set_limit(&self, limit: ByteLen) -> Result<(), Failure> {
        let file = self.path.join(self.limit_file);
        fs::write(&file, limit.get().to_string()).map_err(failed(file.display()))
    }

    /// The command that runs `program` in it.
    pub(super) fn command(&self, program: &[OsString]) -> Command {
        let mut command = Command::new("/bin/sh");
        // It joins the group, and then is the program.
        command.args(["-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(self.path.join("cgroup.procs")).args(program);
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            crate::failure::tell(&format!("{} is left behind: {error}", self.path.display()));
        }
    }
}

/// Swap to compressed memory, gone on drop.
#[derive(Debug)]
pub(in crate::bench) struct Swap {
    number: u32,
    on: bool,
}

impl Swap {
    /// A new device with room for `size`, and pages swapped to it before to any other.
    pub(in crate::bench) fn new(size: ByteLen) -> Result<Self, Failure> {
        let text = fs::read_to_string(Path::new(ZRAM).join("hot_add")).map_err(failed("there is no zram"))?;
        let number = text.trim().parse().map_err(|_| Failure::Bench(format!("zram has made a device {text}")))?;
        let mut swap = Self { number, on: false };
        let disk_size = format!("/sys/block/zram{number}/disksize");
        fs::write(&disk_size, size.get().to_string()).map_err(failed(&disk_size))?;
        swap.command("mkswap", &[])?;
        swap.command("swapon", &["--priority", "32767"])?;
        swap.on = true;
        Ok(swap)
    }

    fn command(&self, name: &str, options: &[&str]) -> Result<(), Failure> {
        let device = format!("/dev/zram{}", self.number);
        let output = Command::new(name).args(options).arg(&device).output().map_err(failed(name))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        Err(Failure::Bench(format!("no comparison with the kernel: {name} {device}: {said}")))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let off = if self.on { self.command("swapoff", &[]) } else { Ok(()) };
        let removed = || {
            let file = Path::new(ZRAM).join("hot_remove");
            fs::write(&file, self.number.to_string()).map_err(failed(file.display()))
        };
        if let Err(failure) = off.and_then(|()| removed()) {
            crate::failure::tell(&format!(
                "/dev/zram{} is left behind: {}",
                self.number,
                crate::failure::chain(&failure)
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_signal_ends_the_process_once_nothing_is_to_be_removed() {
        const AS_CHILD: &str = "HETMEM_TEST_IS_INTERRUPTED";
        if std::env::var_os(AS_CHILD).is_some() {
            let interrupts = Interrupts::new().unwrap();
            assert!(interrupts.check().is_ok());
            signal_hook::low_level::raise(SIGTERM).unwrap();
            assert!(interrupts.check().is_err());
            io::Write::write_all(&mut io::stdout(), b"still there\n").unwrap();
            return;
        }
        let (_, module) = module_path!().split_once("::").unwrap();
        let name = format!("{module}::a_signal_ends_the_process_once_nothing_is_to_be_removed");
        let mut child = Command::new(std::env::current_exe().unwrap());
        let run = child.args(["--exact", &name, "--nocapture"]).env(AS_CHILD, "1").output().unwrap();
        assert_eq!(run.status.signal(), Some(SIGTERM), "{run:?}");
        assert!(String::from_utf8_lossy(&run.stdout).contains("still there"), "{run:?}");
    }
}

//! The virtual machines: what each has, how it is started, and what it reports.
//!
//! | node | memory | in boots |
//! | --- | --- | --- |
//! | 0 | 1 GiB, the processor | all of x86-64 |
//! | 1 | 1 GiB | the same |
//! | 2 | 1 GiB from 4 GiB on, special-purpose as a whole | `dax`, `kmem` |
//!
//! `arm64` and `arm64_16k` are machines of that architecture with one node, whose kernels have pages of 4 KiB and of 16 KiB.
//!
//! In `fallback` and `mixed` the special-purpose range is a part of node 1 instead. That tells two ways of the kernel apart by which it
//! finds the range: with an HMAT (ACPI's table of latencies) it takes each range of the SRAT (its table of nodes), and a range
//! that holds ordinary memory too is no device; without one it takes the special-purpose ranges themselves.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::cases::{self, Case};
use crate::image::Files;
use crate::{Outcome, Problem, host};

/// A boot is ended after this many seconds, whatever it does.
const LIMIT: u32 = 900;

/// Where special-purpose memory lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Special {
    /// It is all of a third node.
    NodeOfItsOwn,
    /// It is a quarter of node 1.
    PartOfNode1,
}

/// What a machine is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hardware {
    /// x86-64 with nodes, and whether its firmware has an HMAT.
    Nodes { hmat: bool, special: Special },
    /// arm64, with a kernel of this flavour of Debian's.
    Arm64 { flavour: &'static str },
}

impl Hardware {
    pub(crate) const fn is_arm64(self) -> bool {
        matches!(self, Self::Arm64 { .. })
    }
}

/// One start of a machine.
#[derive(Debug)]
pub(crate) struct Boot {
    pub(crate) name: &'static str,
    pub(crate) hardware: Hardware,
    /// What the first process does before the cases.
    pub(crate) setup: &'static str,
    pub(crate) cases: &'static [Case],
}

pub(crate) const BOOTS: [Boot; 6] = [
    Boot {
        name: "dax",
        hardware: Hardware::Nodes { hmat: true, special: Special::NodeOfItsOwn },
        setup: "load dax_hmem device_dax; give_to_device_dax",
        cases: cases::DAX,
    },
    Boot {
        name: "kmem",
        hardware: Hardware::Nodes { hmat: true, special: Special::NodeOfItsOwn },
        setup: "echo online_movable >/sys/devices/system/memory/auto_online_blocks; load dax_hmem kmem; \
                until_there 10 /sys/devices/system/node/node2",
        cases: cases::KMEM,
    },
    Boot {
        name: "fallback",
        hardware: Hardware::Nodes { hmat: false, special: Special::PartOfNode1 },
        setup: "load dax_hmem device_dax; give_to_device_dax",
        cases: cases::FALLBACK,
    },
    Boot {
        name: "mixed",
        hardware: Hardware::Nodes { hmat: true, special: Special::PartOfNode1 },
        setup: "load dax_hmem device_dax; until_there 3 /dev/dax0.0",
        cases: cases::MIXED,
    },
    Boot { name: "arm64", hardware: Hardware::Arm64 { flavour: "cloud-arm64" }, setup: "", cases: cases::ARM64 },
    Boot { name: "arm64_16k", hardware: Hardware::Arm64 { flavour: "arm64-16k" }, setup: "", cases: cases::ARM64_16K },
];

/// What the names of cases must contain to be run.
static FILTER: OnceLock<Option<String>> = OnceLock::new();

/// Says which cases will be asked for: those whose name contains `filter`.
pub(crate) fn select(filter: Option<String>) {
    // Said once, by `main`.
    let _ = FILTER.set(filter);
}

impl Boot {
    /// The cases that will be asked for.
    pub(crate) fn selected(&self) -> impl Iterator<Item = &Case> {
        let filter = FILTER.get().and_then(Option::as_deref).unwrap_or_default();
        self.cases.iter().filter(move |case| format!("{}::{}", self.name, case.name).contains(filter))
    }

    /// QEMU's program, and the words of its command line that describe the machine. The kernel writes to the first serial port, the cases to the
    /// other one.
    fn hardware(&self) -> (&'static str, Vec<String>) {
        let (hmat, special) = match self.hardware {
            Hardware::Nodes { hmat, special } => (hmat, special),
            Hardware::Arm64 { .. } => {
                // With memory that has tags, and without what takes long to emulate when the kernel starts.
                let words =
                    "-machine virt,gic-version=3,mte=on -accel tcg -cpu max,pauth-impdef=on,sve=off -smp 1 -m 1G";
                return ("qemu-system-aarch64", words.split(' ').map(str::to_owned).collect());
            }
        };
        let mut words = vec![format!("-machine q35,hmat={}", if hmat { "on" } else { "off" })];
        // One processor: an interrupt from one emulated processor to another, such as each move of pages takes, waits until the host
        // lets the other run, which on a busy host takes as long as everything else together.
        words.push("-accel tcg -cpu max -smp 1".to_owned());
        let nodes = match special {
            Special::NodeOfItsOwn => 3,
            Special::PartOfNode1 => 2,
        };
        words.push(format!("-m {nodes}G"));
        for node in 0..nodes {
            words.push(format!("-object memory-backend-ram,id=m{node},size=1G"));
            let processors = match (node, hmat) {
                (0, _) => ",cpus=0",
                (_, true) => ",initiator=0",
                (_, false) => "",
            };
            words.push(format!("-numa node,nodeid={node},memdev=m{node}{processors}"));
        }
        if hmat {
            for node in 0..nodes {
                let about = format!("-numa hmat-lb,initiator=0,target={node},hierarchy=memory");
                words.push(format!("{about},data-type=access-latency,latency={}", 10 + 20 * node));
                words.push(format!("{about},data-type=access-bandwidth,bandwidth={}G", 10 / (node + 1)));
            }
        }
        ("qemu-system-x86_64", words.iter().flat_map(|line| line.split(' ')).map(str::to_owned).collect())
    }

    /// The words that name the second serial port's file.
    fn report_to(&self, path: &Path) -> Vec<String> {
        match self.hardware {
            Hardware::Nodes { .. } => vec!["-serial".to_owned(), format!("file:{}", path.display())],
            // The machine has one port of its own.
            Hardware::Arm64 { .. } => vec![
                "-chardev".to_owned(),
                format!("file,id=report,path={}", path.display()),
                "-device".to_owned(),
                "pci-serial,chardev=report".to_owned(),
            ],
        }
    }

    fn command_line(&self) -> String {
        let special = match self.hardware {
            Hardware::Nodes { special, .. } => special,
            Hardware::Arm64 { .. } => return "console=ttyAMA0 quiet panic=-1 report=ttyS0".to_owned(),
        };
        // Size and start of what the firmware is said to have marked.
        let special = match special {
            Special::NodeOfItsOwn => "1G%4G",
            Special::PartOfNode1 => "256M%0x60000000",
        };
        // Without `quiet` the kernel's log would take most of the time. What looks whether the timer ticks takes a machine that is emulated on a busy
        // processor for a broken one.
        format!("console=ttyS0 quiet no_timer_check panic=-1 memmap={special}-1+0xefffffff report=ttyS1")
    }

    fn run(&self, files: &Files, kernel: &Path) -> Outcome<Results> {
        let folder = tempfile::Builder::new().prefix("boot-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let (initrd, console, report) =
            (folder.path().join("initrd"), folder.path().join("console"), folder.path().join("report"));
        files.pack(self, &initrd)?;
        let (qemu, hardware) = self.hardware();
        let output = Command::new(host::program("timeout")?)
            .args(["--kill-after=5", &LIMIT.to_string()])
            .arg(host::program(qemu)?)
            .args(hardware)
            .args(["-nodefaults", "-no-reboot", "-display", "none", "-net", "none"])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(self.report_to(&report))
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", &self.command_line()])
            .output()?;
        let read = |path: &Path| {
            std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).replace('\r', "")).unwrap_or_default()
        };
        let (console, report) = (read(&console), read(&report));
        if report.is_empty() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Problem::Wrong(format!("the machine did not start: {said}\n{console}")));
        }
        let end = console.lines().rev().take(30).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
        Ok(Results { cases: parse(&report), rest: end })
    }
}

/// What a case printed, and its exit status with the seconds it took; `None` if the machine ended before it did.
type Result = (String, Option<(i32, u32)>);

/// What a boot reported.
struct Results {
    cases: BTreeMap<String, Result>,
    /// The end of the kernel's console.
    rest: String,
}

fn parse(report: &str) -> BTreeMap<String, Result> {
    let mut cases: BTreeMap<String, Result> = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in report.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        match (&words[..], &current) {
            (["@@", "begin", name], _) => {
                cases.insert((*name).to_owned(), Result::default());
                current = Some((*name).to_owned());
            }
            (["@@", "end", name, status, seconds], _) => {
                if let Some(case) = cases.get_mut(*name) {
                    case.1 = status.parse().ok().zip(seconds.parse().ok());
                }
                current = None;
            }
            (_, Some(name)) => {
                if let Some((output, _)) = cases.get_mut(name) {
                    output.push_str(line);
                    output.push('\n');
                }
            }
            (_, None) => {}
        }
    }
    cases
}

/// The result of a case of boot `number`; the first question makes the boot.
pub(crate) fn result(number: usize, case: &str) -> Outcome {
    static MADE: [OnceLock<Outcome<Results>>; BOOTS.len()] = [const { OnceLock::new() }; BOOTS.len()];
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let boot = &BOOTS[number];
    let made = MADE[number].get_or_init(|| {
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let (qemu, _) = boot.hardware();
        host::program(qemu)?;
        host::program("cpio")?;
        let kernel = host::kernel(boot.hardware)?;
        eprintln!("kernel: {}", kernel.image.display());
        boot.run(shared(boot.hardware, &kernel).as_ref().map_err(Clone::clone)?, &kernel.image)
    });
    let results = made.as_ref().map_err(Clone::clone)?;
    match results.cases.get(case) {
        Some((output, Some((0, seconds)))) => {
            eprintln!("{}::{case}: {seconds} s", boot.name);
            if std::env::var_os("HETMEM_VM_SHOW").is_some() {
                eprintln!("{output}");
            }
            Ok(())
        }
        Some((output, Some((status, _)))) => Err(Problem::Wrong(format!("exit status {status}\n{output}"))),
        Some((output, None)) => {
            Err(Problem::Wrong(format!("the machine ended before the case did\n{output}\n{}", results.rest)))
        }
        None => Err(Problem::Wrong(format!("the machine never came to it\n{}", results.rest))),
    }
}

/// Of the boots of x86-64, and of those of arm64.
static SHARED: [OnceLock<Outcome<Files>>; 2] = [const { OnceLock::new() }; 2];

/// Removes what boots shared: nobody drops it.
pub(crate) fn remove_shared() {
    for files in SHARED.iter().filter_map(OnceLock::get).flatten() {
        files.remove();
    }
}

/// What all boots of this architecture share, made once.
fn shared(hardware: Hardware, kernel: &host::Kernel) -> &'static Outcome<Files> {
    let arm64 = hardware.is_arm64();
    SHARED[usize::from(arm64)].get_or_init(|| if arm64 { Files::gather_for_arm64() } else { Files::gather(kernel) })
}

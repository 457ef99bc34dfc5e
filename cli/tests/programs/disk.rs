//! Programs whose pages are in a file, and what can happen to files: limits on their size, disks that are full or err, programs that are killed.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use libtest_mimic::Trial;
use tempfile::TempDir;

use crate::compare::{Expect, compare};
use crate::launch::{Program, Setting};
use crate::{Outcome, Problem, host, trial};

/// Fills 48 MiB, says so, waits for a line, and adds up what is there.
const FILL: &str = "
import sys
memory = bytearray(b'x') * (48 << 20)
print('ready', flush=True)
sys.stdin.readline()
print(sum(memory[::4096]))
";
const PAGE: u64 = 4096;

/// A program with more memory than its limit, which waits for a line.
struct Waiting {
    child: Child,
    stdout: BufReader<ChildStdout>,
    folder: TempDir,
}

impl Waiting {
    fn start() -> Outcome<Self> {
        host::disk()?;
        let folder = host::folder()?;
        let device = format!("private:file={},size=256M", folder.path().display());
        let mut child = Command::new(host::hetmem())
            .args(["run", "--policy", "limit", "--system-limit", "16M", "--device", &device, "--"])
            .arg(host::program("python3")?)
            .args(["-c", FILL])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdout = BufReader::new(child.stdout.take().ok_or("no standard output".to_owned())?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        if line == "ready\n" { Ok(Self { child, stdout, folder }) } else { Err(format!("it says `{line}`").into()) }
    }

    /// The files of all processes of the run, through the descriptors of their agents: they have no other way in.
    fn files(&self) -> Outcome<Vec<File>> {
        let mut found = Vec::new();
        for process in descendants(self.child.id())? {
            for task in folder_of(&format!("/proc/{process}/task")) {
                let ours = |fd: &PathBuf| std::fs::read_link(fd).is_ok_and(|to| to.starts_with(self.folder.path()));
                let file = folder_of(&format!("{}/fd", task.display())).into_iter().find(ours);
                if let Some(file) = file {
                    found.push(OpenOptions::new().read(true).write(true).open(file)?);
                    break;
                }
            }
        }
        Ok(found)
    }

    fn go_on(&mut self) -> Outcome {
        Ok(self.child.stdin.take().ok_or("no standard input".to_owned())?.write_all(b"\n")?)
    }

    fn entries(&self) -> usize {
        folder_of(&self.folder.path().display().to_string()).len()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder_of(path: &str) -> Vec<PathBuf> {
    std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn descendants(of: u32) -> Outcome<Vec<u32>> {
    let mut all = vec![of];
    let mut at = 0;
    while at < all.len() {
        for task in folder_of(&format!("/proc/{}/task", all[at])) {
            let children = std::fs::read_to_string(task.join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        at += 1;
    }
    Ok(all)
}

/// The pages of `file` in which there is something.
fn written(file: &File) -> Outcome<Vec<u64>> {
    let length = file.metadata()?.len();
    let mut byte = [0];
    let mut found = Vec::new();
    for page in 0..length / PAGE {
        file.read_exact_at(&mut byte, page * PAGE)?;
        if byte != [0] {
            found.push(page);
        }
    }
    Ok(found)
}

/// Pages that are not what was written are not used: the program is stopped, and says why.
fn damaged() -> Outcome {
    let mut waiting = Waiting::start()?;
    // Two thirds of its memory are above the limit.
    let (file, pages) = loop {
        let most = waiting.files()?.into_iter().map(|file| Ok((written(&file)?, file))).collect::<Outcome<Vec<_>>>()?;
        if let Some((pages, file)) = most.into_iter().find(|(pages, _)| pages.len() > 2048) {
            break (file, pages);
        }
    };
    for page in &pages {
        file.write_all_at(&[0xEE; 64], page * PAGE + 512)?;
    }
    file.sync_all()?;
    waiting.go_on()?;
    let mut said = String::new();
    waiting.stdout.read_line(&mut said)?;
    let mut why = String::new();
    let mut stderr = waiting.child.stderr.take().ok_or("no standard error".to_owned())?;
    std::io::Read::read_to_string(&mut stderr, &mut why)?;
    let status = waiting.child.wait()?;
    let stopped = status.code() == Some(128 + 6) || status.signal() == Some(6);
    if !said.is_empty() || !stopped || !why.contains("the device does not give a page back") {
        return Err(format!("{} pages were damaged: {status}, `{said}`\n{why}", pages.len()).into());
    }
    Ok(())
}

/// Nothing has a name while a program runs, and nothing is there when it was killed.
fn killed() -> Outcome {
    let mut waiting = Waiting::start()?;
    let files = waiting.files()?;
    if files.is_empty() || waiting.entries() > 0 {
        return Err(format!("{} files, and {} with a name", files.len(), waiting.entries()).into());
    }
    let processes = descendants(waiting.child.id())?;
    for process in processes.into_iter().rev() {
        if let Some(pid) = i32::try_from(process).ok().and_then(rustix::process::Pid::from_raw) {
            // It may have ended with the one before.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    waiting.child.wait()?;
    match waiting.entries() {
        0 => Ok(()),
        left => Err(format!("{left} files are left").into()),
    }
}

/// A program with a limit on the size of its files has pages in a file up to that limit, and never hears of it.
fn limited() -> Outcome {
    let threads = host::compiled("threads")?;
    let script = format!("ulimit -f 32768; exec '{}' 1 8 16384", threads.display());
    let program = Program::new(host::program("sh")?).arguments(["-c", &script]);
    compare(&program, Setting::File, &Expect::moved(1_000)).map(drop)
}

/// A file system of its own, in a file.
struct Disk {
    at: TempDir,
}

impl Disk {
    fn mount(megabytes: u64) -> Outcome<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(Problem::Refused("only root can mount a file system".to_owned()));
        }
        let at = host::folder()?;
        let image = at.path().join("image");
        File::create(&image)?.set_len(megabytes << 20)?;
        let mount = at.path().join("disk");
        std::fs::create_dir(&mount)?;
        let run = |command: &mut Command| -> Outcome {
            let output = command.output()?;
            let said = || Problem::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned());
            if output.status.success() { Ok(()) } else { Err(said()) }
        };
        run(Command::new(host::program("mkfs.ext4")?).args(["-q", "-m", "0"]).arg(&image))?;
        run(Command::new(host::program("mount")?).args(["-o", "loop"]).arg(&image).arg(&mount))?;
        Ok(Self { at })
    }

    fn folder(&self) -> PathBuf {
        self.at.path().join("disk")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.folder()).status();
    }
}

/// A disk that becomes full while a program runs: its pages stay in system memory, and the program goes on.
fn full() -> Outcome {
    let disk = Disk::mount(64)?;
    let threads = host::compiled("threads")?;
    let native = Command::new(&threads).args(["1", "8", "16384"]).output()?;
    let fill =
        format!("head -c 1G /dev/zero > '{}/filler'; exec '{}' 1 8 16384", disk.folder().display(), threads.display());
    let run = |folder: &Path, script: &str| {
        let device = format!("private:file={},size=40M", folder.display());
        Command::new(host::hetmem())
            .args(["run", "--policy", "limit", "--system-limit", "32M", "--device", &device, "--", "sh", "-c", script])
            .output()
    };
    let managed = run(&disk.folder(), &format!("{{ {fill}; }} 2>/dev/null"))?;
    let why = String::from_utf8_lossy(&managed.stderr).into_owned();
    if managed.status.code() != Some(0) || managed.stdout != native.stdout || !why.contains("no frame") {
        return Err(format!("{}\n{why}", managed.status).into());
    }
    // Before a program starts it is said that there is no room.
    let refused = run(&disk.folder(), "echo started")?;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    if refused.status.code() != Some(2) || !refused.stdout.is_empty() || !why.contains("has room for") {
        return Err(format!("{}\n{why}", refused.status).into());
    }
    Ok(())
}

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("file::damaged", damaged),
        trial("file::killed", killed),
        trial("file::limited", limited),
        trial("file::full", full),
    ]
}

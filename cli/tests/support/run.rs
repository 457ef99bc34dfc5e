//! A run that tests ask about.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::support::{hetmem, status, stderr};

/// Longer than anything here takes on a machine that is busy.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A program under way, and where its socket is.
pub(crate) struct Run {
    pub(crate) child: Child,
    pub(crate) output: BufReader<ChildStdout>,
    pub(crate) folder: tempfile::TempDir,
}

impl Run {
    /// Runs `script`, and waits until it has said `ready`, and the run can be asked.
    pub(crate) fn start(options: &[&str], script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = hetmem();
        command.arg("run").args(options).args(["--", "sh", "-c", script]).env("XDG_RUNTIME_DIR", folder.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut run = Self { child, output, folder };
        run.wait_for("ready");
        let until = Instant::now() + LONG;
        while !run.listens() {
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
        run
    }

    /// Whether its socket takes connections, which shows without one: field 4 has `__SO_ACCEPTCON`.
    fn listens(&self) -> bool {
        let path = self.folder.path().join(format!("hetmem/{}.sock", self.child.id()));
        let path = path.to_str().unwrap();
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        sockets.lines().any(|line| line.ends_with(path) && line.split_whitespace().nth(3) == Some("00010000"))
    }

    /// A program that has written 64 MiB, and sleeps until its input ends.
    pub(crate) fn with_memory(options: &[&str]) -> Option<Self> {
        let script = r#"exec /usr/bin/python3 -c '
import sys
memory = bytearray(64 << 20)
for at in range(0, len(memory), 4096): memory[at] = at // 4096 % 251
print("ready", flush=True)
sys.stdin.read()
assert all(memory[at] == at // 4096 % 251 for at in range(0, len(memory), 4096))
'"#;
        Path::new("/usr/bin/python3").exists().then(|| Self::start(options, script))
    }

    pub(crate) fn wait_for(&mut self, line: &str) {
        let mut read = String::new();
        while self.output.read_line(&mut read).unwrap() != 0 {
            if read.trim_end() == line {
                return;
            }
            read.clear();
        }
        panic!("the program ended without `{line}`");
    }

    /// Another command of hetmem's, about this run.
    pub(crate) fn hetmem(&self, args: &[&str]) -> Command {
        let mut command = hetmem();
        command.args(args).env("XDG_RUNTIME_DIR", self.folder.path());
        command
    }

    /// Has the program end, and checks that it did so well.
    pub(crate) fn end(mut self) -> String {
        drop(self.child.stdin.take());
        let run = self.child.wait_with_output().unwrap();
        assert_eq!(status(&run), 0, "{}", stderr(&run));
        assert_eq!(std::fs::read_dir(self.folder.path().join("hetmem")).unwrap().count(), 0, "the socket is left");
        stderr(&run)
    }
}

//! How a run is looked at: `hetmem top` on a terminal and once, `hetmem heat`, and metrics.
#![expect(clippy::print_stderr, reason = "a test that can't run here says so")]

#[path = "support/run.rs"]
mod run;
mod support;

use std::fs::{DirBuilder, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use run::{LONG, Run};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;
use support::{hetmem, output, status, stderr, stdout};

const SIZE: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// A terminal, and a command on it.
struct OnTerminal {
    master: File,
    slave: File,
    before: Termios,
    child: Child,
    seen: vt100::Parser,
    raw: Vec<u8>,
}

impl OnTerminal {
    fn start(command: &mut Command) -> Self {
        let master: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        tcsetwinsize(&master, SIZE).unwrap();
        let slave = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let before = tcgetattr(&slave).unwrap();
        let stream = || Stdio::from(slave.try_clone().unwrap());
        let child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
        let seen = vt100::Parser::new(SIZE.ws_row, SIZE.ws_col, 0);
        Self { master: master.into(), slave, before, child, seen, raw: Vec::new() }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed()).unwrap()
    }

    /// What the screen shows, once `holds` of it.
    #[track_caller]
    fn until(&mut self, holds: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + LONG;
        loop {
            let shown = self.seen.screen().contents();
            if holds(&shown) {
                return shown;
            }
            assert!(Instant::now() < until, "{shown}");
            self.read(Duration::from_secs(1));
        }
    }

    /// Takes what has come, or comes within `time`; whether there was anything.
    fn read(&mut self, time: Duration) -> bool {
        let time = Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap(), tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
        if poll(&mut fds, Some(&time)) != Ok(1) {
            return false;
        }
        let mut bytes = [0; 4096];
        let length = self.master.read(&mut bytes).unwrap();
        self.seen.process(&bytes[..length]);
        self.raw.extend_from_slice(&bytes[..length]);
        true
    }

    /// Whether the terminal has the modes that it had, once all that was written there is seen.
    fn is_as_it_was(&mut self) -> bool {
        while self.read(Duration::ZERO) {}
        let now = tcgetattr(&self.slave).unwrap();
        let modes =
            |termios: &Termios| (termios.input_modes, termios.output_modes, termios.local_modes, termios.control_modes);
        let screen = self.seen.screen();
        modes(&now) == modes(&self.before) && !screen.alternate_screen() && !screen.hide_cursor()
    }

    /// Waits for its end, and checks that the terminal is as it was.
    #[track_caller]
    fn ended(mut self) -> (std::process::ExitStatus, String) {
        let status = self.child.wait().unwrap();
        assert!(self.is_as_it_was());
        (status, self.seen.screen().contents())
    }
}

fn is_frame(shown: &str) -> bool {
    shown.starts_with("hetmem top  sh (") && shown.contains("\nfaults ") && shown.contains("PID  NAME")
}

#[test]
fn top_shows_a_run_on_a_terminal_and_leaves_that_as_it_was() {
    let run = Run::start(&["-q", "--policy", "chaos=1"], "echo ready; read x; true");
    let pid = run.child.id().to_string();
    let mut quits = OnTerminal::start(run.hetmem(&["top", &pid]).env_remove("NO_COLOR").env("LANG", "C.UTF-8"));
    let shown = quits.until(is_frame);
    for part in ["chaos=0x1", "\nsystem ", "\ncoherent0 ", "\nflow ", "\nheat ", "q quits"] {
        assert!(shown.contains(part), "no `{part}`: {shown}");
    }
    // Another size: what is right of the title moves there.
    tcsetwinsize(&quits.master, Winsize { ws_row: 30, ws_col: 100, ..SIZE }).unwrap();
    kill_process(quits.pid(), Signal::WINCH).unwrap();
    quits.seen.screen_mut().set_size(30, 100);
    quits.until(|shown| {
        shown.lines().next().is_some_and(|title| title.trim_end().len() == 100 && title.ends_with("q quits"))
    });
    // Stopped, it leaves the terminal to others; continued, it takes all of it again.
    quits.master.write_all(b"\x1a").unwrap();
    let (_, stopped) = waitpid(Some(quits.pid()), WaitOptions::UNTRACED).unwrap().unwrap();
    assert!(stopped.stopped() && quits.is_as_it_was());
    kill_process(quits.pid(), Signal::CONT).unwrap();
    quits.until(is_frame);
    assert!(quits.seen.screen().alternate_screen() && quits.seen.screen().hide_cursor());
    quits.master.write_all(b"xq").unwrap();
    assert!(String::from_utf8_lossy(&quits.raw).contains("\u{1b}[38;5;"), "it has colours");
    assert_eq!(quits.ended().0.code(), Some(0));

    let mut interrupted = OnTerminal::start(run.hetmem(&["top", &pid]).env("NO_COLOR", "1"));
    interrupted.until(is_frame);
    let raw = String::from_utf8_lossy(&interrupted.raw).into_owned();
    assert!(!raw.contains("\u{1b}[38;"), "{raw:?}");
    interrupted.master.write_all(b"\x03").unwrap();
    assert_eq!(interrupted.ended().0.code(), Some(0));

    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut killed = OnTerminal::start(&mut run.hetmem(&["top", &pid]));
        killed.until(is_frame);
        kill_process(killed.pid(), signal).unwrap();
        let status = std::os::unix::process::ExitStatusExt::signal(&killed.ended().0);
        assert_eq!(status, Some(signal.as_raw()));
    }

    let mut left = OnTerminal::start(&mut run.hetmem(&["top", &pid]));
    left.until(is_frame);
    run.end();
    let (status, said) = left.ended();
    assert!(status.success() && said.contains(&format!("run {pid} has ended")), "{said}");
}

#[test]
fn top_prints_a_frame_as_text_or_json_or_draws_it_and_needs_a_terminal_for_more() {
    let run = Run::start(&["-q", "--device", "private:emulated,size=64M,name=far"], "echo ready; read x; true");
    let text = output(&mut run.hetmem(&["top", &run.child.id().to_string(), "--once"]));
    let shown = stdout(&text);
    assert_eq!(status(&text), 0, "{}", stderr(&text));
    assert!(
        is_frame(&shown) && shown.contains("\nfar ") && shown.lines().all(|line| line.chars().count() <= 80),
        "{shown}"
    );
    let json = output(&mut run.hetmem(&["top", &run.child.id().to_string(), "--once", "--json"]));
    let frame: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(frame["statistics"]["interval"].is_object() && frame["heat"]["cells"].is_array(), "{frame}");
    let picture = output(
        run.hetmem(&["top", &run.child.id().to_string(), "--once", "--svg", "/dev/stdout"]).env("NO_COLOR", "1"),
    );
    let drawn = stdout(&picture);
    assert_eq!(status(&picture), 0, "{}", stderr(&picture));
    assert!(drawn.starts_with("<?xml") && drawn.ends_with("</svg>\n") && drawn.matches("<svg").count() == 1, "{drawn}");
    // The title, a place, and the processes' head in its colour, whatever the terminal is.
    assert!(
        drawn.contains("\nhetmem top  sh (") && drawn.contains("\nfar") && drawn.contains("\nPID  NAME"),
        "{drawn}"
    );
    assert!(drawn.contains(r##"fill="#e6c35c" font-weight="bold""##), "{drawn}");
    for (args, code, part) in [
        (&["top"][..], 2, "top needs a terminal; --once prints one frame as text"),
        (&["top", "1", "--once"], 125, "process 1 is no run of hetmem's"),
        (&["top", "--json"], 2, "--once"),
        (&["top", "--svg", "picture.svg"], 2, "--once"),
        (&["top", "--once", "--json", "--svg", "picture.svg"], 2, "cannot be used with"),
    ] {
        let refused = output(&mut run.hetmem(args));
        assert_eq!((status(&refused), stderr(&refused).lines().count()), (code, 1), "{}", stderr(&refused));
        assert!(stderr(&refused).contains(part), "{}", stderr(&refused));
    }
    run.end();
}

#[test]
fn heat_is_told_line_by_line_or_drawn() {
    let Some(run) = Run::with_memory(&["--policy", "limit=48M", "--device", "private:emulated,size=128M"]) else {
        return eprintln!("skipped: no /usr/bin/python3");
    };
    let pid = run.child.id().to_string();
    let text = output(&mut run.hetmem(&["heat", &pid, "--rows", "3", "--interval", "100ms"]));
    assert_eq!(status(&text), 0, "{}", stderr(&text));
    let shown = stdout(&text);
    assert!(shown.starts_with("process ") && shown.contains(" parts of "), "{shown}");
    let rows: Vec<&str> = shown.lines().filter(|line| !line.starts_with("process ")).collect();
    let digits = |row: &&str| {
        row.split_whitespace()
            .nth(1)
            .is_some_and(|row| row.len() == 72 && row.bytes().all(|byte| byte.is_ascii_digit()))
    };
    assert!(rows.len() == 3 && rows.iter().all(digits), "{shown}");
    let json = output(&mut run.hetmem(&["heat", "--json", &pid, "--rows", "2", "--interval", "100ms"]));
    let lines: Vec<serde_json::Value> = stdout(&json).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let is_told =
        |line: &serde_json::Value| line["seconds"].is_number() && line["cells"].as_array().unwrap().len() == 72;
    assert!(lines.len() == 2 && lines.iter().all(is_told), "{}", stdout(&json));
    let picture = run.folder.path().join("heat.svg");
    let drawn = output(&mut run.hetmem(&[
        "heat",
        &pid,
        "--rows",
        "2",
        "--interval",
        "100ms",
        "--svg",
        picture.to_str().unwrap(),
    ]));
    assert_eq!((status(&drawn), stdout(&drawn).as_str()), (0, ""), "{}", stderr(&drawn));
    let svg = std::fs::read_to_string(&picture).unwrap();
    assert!(svg.contains("class=\"cell\"") && svg.trim_end().ends_with("</svg>"), "{svg}");
    for (args, part) in
        [(&["--rows", "0"][..], "0 is not in 1..=10000"), (&["--interval", "1ms"], "the shortest interval is 100ms")]
    {
        let refused = output(&mut run.hetmem(&[&["heat", &pid], args].concat()));
        assert_eq!(status(&refused), 2);
        assert!(stderr(&refused).contains(part), "{}", stderr(&refused));
    }
    // Where no picture can be, that is said before it is waited for.
    let refused =
        output(&mut run.hetmem(&["heat", &pid, "--rows", "2", "--interval", "3600s", "--svg", "/nonexistent/x"]));
    assert_eq!((status(&refused), stderr(&refused).lines().count()), (125, 1), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("the picture can't be written to /nonexistent/x"), "{}", stderr(&refused));
    // It ends with its reader, and with the run: nobody waits for the next line.
    let begun = |interval: &str| {
        let mut heat = run.hetmem(&["heat", &pid, "--interval", interval]);
        let mut heat = heat.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(heat.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with(' ') {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0);
        }
        (heat, lines)
    };
    let (left, lines) = begun("100ms");
    drop(lines);
    let (mut ended, mut lines) = begun("3600s");
    let left = left.wait_with_output().unwrap();
    assert_eq!((status(&left), stderr(&left).as_str()), (0, ""));
    run.end();
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert_eq!((ended.wait().unwrap().code(), rest.as_str()), (Some(0), ""));
}

#[test]
fn heat_of_terabytes_that_were_never_written_is_told() {
    if !Path::new("/usr/bin/python3").exists() {
        return eprintln!("skipped: no /usr/bin/python3");
    }
    // MAP_NORESERVE.
    let script = "exec /usr/bin/python3 -c 'import mmap, sys
memory = mmap.mmap(-1, 8 << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
print(\"ready\", flush=True)
sys.stdin.read()'";
    let run = Run::start(&["-q"], script);
    let until = Instant::now() + LONG;
    loop {
        let told = output(&mut run.hetmem(&["heat", &run.child.id().to_string(), "--rows", "1"]));
        // Once the agent has found it.
        if stdout(&told).contains(" 8.0 TiB in 72 parts") {
            break;
        }
        assert!(Instant::now() < until, "{}{}", stdout(&told), stderr(&told));
    }
    run.end();
}

/// A folder with a socket that leads to that of `run`, but hangs up on whoever comes first as soon as heat was told; it says who comes.
fn hangs_up_once(run: &Run) -> (tempfile::TempDir, Receiver<usize>) {
    let folder = tempfile::tempdir().unwrap();
    DirBuilder::new().mode(0o700).create(folder.path().join("hetmem")).unwrap();
    let name = format!("hetmem/{}.sock", run.child.id());
    let (listener, real) = (UnixListener::bind(folder.path().join(&name)).unwrap(), run.folder.path().join(&name));
    let (comes, who) = channel();
    std::thread::spawn(move || {
        for (number, client) in listener.incoming().enumerate() {
            let (mut client, mut run) = (client.unwrap(), UnixStream::connect(&real).unwrap());
            let _ = comes.send(number);
            let (mut asks, answers) = (client.try_clone().unwrap(), BufReader::new(run.try_clone().unwrap()));
            std::thread::spawn(move || std::io::copy(&mut asks, &mut run));
            std::thread::spawn(move || {
                for line in answers.lines() {
                    let line = line.unwrap();
                    if writeln!(client, "{line}").is_err() || (number == 0 && line.contains("\"heat\":")) {
                        break;
                    }
                }
                client.shutdown(Shutdown::Both)
            });
        }
    });
    (folder, who)
}

#[test]
fn who_was_hung_up_on_comes_back_to_a_run_that_goes_on() {
    let run = Run::start(&["-q"], "echo ready; read x; true");
    let pid = run.child.id().to_string();
    let (folder, _) = hangs_up_once(&run);
    let heat = ["heat", &pid, "--rows", "3", "--interval", "100ms"];
    let heat = output(run.hetmem(&heat).env("XDG_RUNTIME_DIR", folder.path()));
    let rows = stdout(&heat).lines().filter(|line| line.starts_with(' ')).count();
    assert_eq!((status(&heat), rows), (0, 3), "{}{}", stdout(&heat), stderr(&heat));

    let (folder, who) = hangs_up_once(&run);
    let mut top = OnTerminal::start(run.hetmem(&["top", &pid]).env("XDG_RUNTIME_DIR", folder.path()));
    top.until(is_frame);
    for number in [0, 1] {
        assert_eq!(who.recv_timeout(LONG), Ok(number));
    }
    top.master.write_all(b"q").unwrap();
    let (status, said) = top.ended();
    assert!(status.success() && !said.contains("has ended"), "{said}");
    run.end();
}

/// The value of the metric that begins so.
fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
}

fn asked(port: u16, request: &str) -> String {
    let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.set_read_timeout(Some(LONG)).unwrap();
    client.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn metrics_are_told_on_a_port_of_this_machine() {
    let mut command = hetmem();
    command.args(["run", "-q", "--metrics", "127.0.0.1:0", "--", "sh", "-c", "(exit 3); read x; true"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stderr.take().unwrap()), &mut said).unwrap();
    let port = said
        .trim_end()
        .strip_prefix("hetmem: metrics are at http://127.0.0.1:")
        .and_then(|rest| rest.strip_suffix("/metrics"));
    let port: u16 = port.unwrap_or_else(|| panic!("{said}")).parse().unwrap();
    let answer = asked(port, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{answer}");
    let until = Instant::now() + LONG;
    while metric(&asked(port, "GET /metrics HTTP/1.0\r\n\r\n"), "hetmem_processes_managed_total") < 2.0 {
        assert!(Instant::now() < until);
    }
    let (_, text) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(metric(text, "hetmem_cpu_faults_total"), 0.0, "{text}");
    assert!(text.contains("hetmem_place_used_bytes{place=\"coherent0\",memory_type=\"coherent\"}"), "{text}");
    assert!(asked(port, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(asked(port, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    // One who says nothing, and one who says too much, are hung up on; the next is answered.
    let _silent = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut much = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let _ = much.write_all(&vec![b'x'; 1 << 20]);
    assert!(asked(port, "GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 OK"));
    // The port is taken: the next run is refused before its program is started.
    let again = output(hetmem().args(["run", "--metrics", &format!("127.0.0.1:{port}"), "--", "echo", "started"]));
    assert_eq!((status(&again), stdout(&again).as_str()), (125, ""));
    assert!(stderr(&again).contains("metrics can't be told at"), "{}", stderr(&again));
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn metrics_are_written_into_a_file_that_is_replaced_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hetmem.prom");
    let run = |metrics: &str, script: &str| {
        output(hetmem().args(["run", "-q", "--metrics", metrics, "--", "sh", "-c", script]).env("FILE", &file))
    };
    // It is there while the program runs, soon.
    let script = "until grep -q hetmem_run_seconds \"$FILE\" 2>/dev/null; do :; done; (exit 3); (exit 4); exit 5";
    assert_eq!(status(&run(file.to_str().unwrap(), script)), 5);
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(metric(&text, "hetmem_processes"), 0.0, "{text}");
    assert!(metric(&text, "hetmem_processes_managed_total") >= 3.0, "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (target, code, part) in [
        ("/nonexistent/file", 125, "metrics can't be"),
        (pipe.to_str().unwrap(), 125, "it is a named pipe"),
        ("0.0.0.0:9100", 2, "other machines"),
    ] {
        let refused = run(target, "echo started");
        assert_eq!((status(&refused), stdout(&refused).as_str()), (code, ""), "{}", stderr(&refused));
        assert!(stderr(&refused).contains(part), "{}", stderr(&refused));
    }
    // The program's limit on files is not hetmem's.
    std::fs::remove_file(&file).unwrap();
    let limited = "ulimit -S -f 1; exec \"$0\" run -q --metrics \"$1\" -- true";
    let limited = output(Command::new("sh").args(["-c", limited]).arg(hetmem().get_program()).arg(&file));
    assert_eq!((status(&limited), stderr(&limited).as_str()), (0, ""));
    assert!(std::fs::read_to_string(&file).unwrap().contains("hetmem_run_seconds"));
    let lost = run(file.to_str().unwrap(), "rm -r \"$(dirname \"$FILE\")\"; exit 0");
    assert_eq!(status(&lost), 125);
    assert!(stderr(&lost).contains("metrics can't be"), "{}", stderr(&lost));
}

//! The control socket of a run: what it answers, and that nobody who asks hurts the run or those who ask beside him.
#![expect(clippy::print_stderr, reason = "a test that can't run here says so")]

#[path = "support/run.rs"]
mod run;
mod support;

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use run::{LONG, Run};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::{hetmem, output, status, stderr, stdout};

impl Run {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed()).unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join(format!("hetmem/{}.sock", self.child.id()))
    }

    fn connected(&self) -> UnixStream {
        UnixStream::connect(self.socket()).unwrap()
    }
}

/// Somebody who asks.
struct Client(BufReader<UnixStream>);

impl Client {
    fn of(run: &Run) -> Self {
        Self::new(run.connected())
    }

    fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(LONG)).unwrap();
        Self(BufReader::new(socket))
    }

    fn send(&mut self, request: Value) {
        let mut request = request;
        request["format"] = json!(1);
        self.0.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(answer["format"], 1);
        answer
    }

    fn ask(&mut self, request: Value) -> Value {
        self.send(request);
        self.read()
    }

    /// What it says until it hangs up.
    fn rest(mut self) -> String {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
            _ => String::from_utf8(rest).unwrap(),
        }
    }

    /// Asks until `holds` of an answer.
    fn ask_until(&mut self, request: &Value, holds: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + LONG;
        loop {
            let answer = self.ask(request.clone());
            if holds(&answer) {
                return answer;
            }
            assert!(Instant::now() < until, "{answer}");
        }
    }
}

fn statistics() -> Value {
    json!({"request": "statistics"})
}

fn sum(values: &Value) -> u64 {
    values.as_array().unwrap().iter().map(|value| value.as_u64().unwrap()).sum()
}

const DEVICES: [&str; 4] =
    ["--device", "private:emulated,size=128M,name=far", "--device", "coherent:emulated,size=128M,name=near"];

#[test]
fn a_run_says_what_its_pages_are_and_moves_them() {
    let Some(run) = Run::with_memory(&DEVICES) else { return eprintln!("skipped: no /usr/bin/python3") };
    let mut client = Client::of(&run);
    let told = client
        .ask_until(&statistics(), |told| told["statistics"]["places"][0]["used_bytes"].as_u64() >= Some(64 << 20));
    let told = &told["statistics"];
    assert_eq!(told["run"]["pid"], run.child.id());
    assert_eq!(told["run"]["policy"], "manual");
    let names: Vec<&str> =
        told["places"].as_array().unwrap().iter().map(|place| place["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["system", "far", "near"]);
    let pid = told["run"]["program_pid"].as_u64().unwrap();
    let own = told["processes"].as_array().unwrap().iter().find(|process| process["pid"] == pid).unwrap();
    assert_eq!((&own["name"], &own["device_bytes"]), (&json!("python3"), &json!([0, 0])));

    let told = client.ask(json!({"request": "residency", "pid": pid}));
    let regions = told["residency"]["regions"].as_array().unwrap();
    let largest = regions.iter().max_by_key(|region| sum(&region["bytes"])).unwrap();
    assert!(sum(&largest["bytes"]) >= 64 << 20 && largest["bytes"][0] == sum(&largest["bytes"]), "{largest}");
    let regions = client.ask(json!({"request": "regions", "pid": pid}));
    let is_largest = |region: &Value| region["start"] == largest["start"] && region["end"] == largest["end"];
    assert!(regions["regions"]["regions"].as_array().unwrap().iter().any(is_largest), "{regions}");

    let (start, end) = (&largest["start"], &largest["end"]);
    let moved = |place: &str| json!({"request": "migrate", "pid": pid, "start": start, "end": end, "to": place});
    let told = client.ask(moved("far"));
    assert!(told["migrate"]["pages_moved"].as_u64().unwrap() >= 16384 && told["migrate"]["next"].is_null(), "{told}");
    let told = client.ask(statistics());
    assert!(told["statistics"]["places"][1]["used_bytes"].as_u64().unwrap() >= 64 << 20, "{told}");
    let there = client.ask(json!({"request": "residency", "pid": pid, "from": start}));
    let region = &there["residency"]["regions"][0];
    assert!(region["start"] == *start && region["bytes"][1].as_u64() >= Some(64 << 20), "{region}");
    client.ask(moved("near"));
    let told =
        client.ask_until(&statistics(), |told| told["statistics"]["places"][0]["used_bytes"].as_u64() < Some(64 << 20));
    assert!(told["statistics"]["places"][2]["used_bytes"].as_u64().unwrap() >= 64 << 20, "{told}");

    let say = |advice: &str| json!({"request": "advise", "pid": pid, "start": start, "end": end, "advice": advice});
    assert_eq!(client.ask(say("pin"))["advise"]["unmanaged"], Value::Null);
    assert_eq!(client.ask(moved("far"))["migrate"]["pages_moved"], 0, "they stay");
    client.ask(say("unpin"));
    client.ask(say("soon"));
    let all_home = |told: &Value| told["statistics"]["places"][2]["used_bytes"] == 0;
    client.ask_until(&statistics(), all_home);
    let range = format!("{}-{}", start.as_str().unwrap(), end.as_str().unwrap());
    let advise = |pid: u64, advice: &str| output(&mut run.hetmem(&["advise", &pid.to_string(), &range, advice]));
    for of in [pid, u64::from(run.child.id())] {
        let said = advise(of, "prefer=near");
        assert_eq!(stdout(&said), format!("process {pid}: said\n"), "{}", stderr(&said));
    }
    advise(pid, "soon");
    client.ask_until(&statistics(), |told| told["statistics"]["places"][2]["used_bytes"].as_u64() >= Some(64 << 20));
    let refused = advise(1, "pin");
    assert!(stderr(&refused).contains("process 1 is of no run"), "{}", stderr(&refused));
    let refused = output(&mut run.hetmem(&["advise", &pid.to_string(), "1000-2000", "pin"]));
    assert!(stderr(&refused).contains("1000-2000 is not managed"), "{}", stderr(&refused));

    let migrate = |args: &[&str]| output(&mut run.hetmem(&[&["migrate", &pid.to_string()], args].concat()));
    let home = migrate(&["all", "system"]);
    let told = stdout(&home);
    assert_eq!((status(&home), stderr(&home)), (0, String::new()));
    assert!(told.starts_with(&format!("process {pid}: ")) && told.contains(" pages to system, "), "{told}");
    let told = client.ask(json!({"request": "residency", "pid": pid}));
    let all = told["residency"]["regions"].as_array().unwrap();
    assert!(all.iter().all(|region| region["bytes"][1] == 0 && region["bytes"][2] == 0), "{told}");
    let told: Value = serde_json::from_slice(&migrate(&[&range, "far", "--json"]).stdout).unwrap();
    assert!(told["pages_moved"].as_u64() >= Some(16384) && told["to"] == "far" && told["pid"] == pid, "{told}");
    for (args, code, part) in [
        (&["all", "moon"][..], 125, "`moon` is no place of this run; they are system, far, near"),
        (&["1000-2000", "far"], 125, "nothing there is managed"),
        (&["everything", "far"], 2, "`everything` is no range, such as 7f0012345000-7f0012347000; nor is it `all`"),
    ] {
        let refused = migrate(args);
        assert_eq!((status(&refused), stderr(&refused).contains(part)), (code, true), "{}", stderr(&refused));
    }

    let heat = client.ask(json!({"request": "heat", "pid": pid, "cells": 10}));
    assert_eq!(heat["heat"]["cells"].as_array().unwrap().len(), 10, "{heat}");
    for (request, part) in [
        (moved("moon"), "`moon` is no place of this run; they are system, far, near"),
        (json!({"request": "migrate", "pid": pid, "start": end, "end": start, "to": "far"}), "ends before it begins"),
        (say("preferred_location"), "`to` is missing"),
        (say("discard"), "unknown variant `discard`"),
        (json!({"request": "residency", "pid": 1}), "no process 1 of this run is managed here"),
        (json!({"request": "heat", "pid": pid, "cells": 0}), "0 cells can't be told"),
        (json!({"request": "set", "system_limit_bytes": 1 << 20}), "policy manual has no limit"),
        (json!({"request": "subscribe", "interval_ms": 1}), "100 to 3600000 milliseconds"),
    ] {
        let told = client.ask(request);
        assert!(told["error"].as_str().is_some_and(|error| error.contains(part)), "{part}: {told}");
    }
    // The program finds all that it has written.
    run.end();
}

#[test]
fn a_limit_that_is_set_holds_from_then_on() {
    for policy in ["limit", "clock"] {
        a_limit_is_set(policy);
    }
}

fn a_limit_is_set(policy: &str) {
    let told = format!("{policy}=1G");
    let options = ["--policy", &told, "--stock", "4M", "--device", "private:emulated,size=128M"];
    let Some(run) = Run::with_memory(&options) else { return eprintln!("skipped: no /usr/bin/python3") };
    let mut client = Client::of(&run);
    let told = client
        .ask_until(&statistics(), |told| told["statistics"]["places"][0]["used_bytes"].as_u64() >= Some(64 << 20));
    assert_eq!(told["statistics"]["places"][1]["used_bytes"], 0);
    for (limit, part) in [
        (0_u64, "the limit is zero"),
        (5000, "not a multiple of the page"),
        (4 << 20, "the stock of 4 MiB leaves nothing"),
        (1 << 50, "larger than this machine's memory"),
    ] {
        let told = client.ask(json!({"request": "set", "system_limit_bytes": limit}));
        assert!(told["error"].as_str().is_some_and(|error| error.contains(part)), "{part}: {told}");
    }
    assert_eq!(
        client.ask(json!({"request": "set", "system_limit_bytes": 32 << 20}))["set"]["system_limit_bytes"],
        32 << 20
    );
    let told = client.ask_until(&statistics(), |told| {
        let places = &told["statistics"]["places"];
        places[0]["used_bytes"].as_u64() <= Some(32 << 20) && places[1]["used_bytes"].as_u64() >= Some(32 << 20)
    });
    assert_eq!(told["statistics"]["run"]["system_limit_bytes"], 32 << 20);
    assert!(run.end().contains(&format!("policy {policy}=32M")));
}

#[test]
fn bad_requests_get_an_error_each_and_long_ones_are_hung_up_on() {
    let run = Run::start(&["-q"], "echo ready; read x; true");
    let mut client = Client::of(&run);
    let write = |client: &mut Client, text: &[u8]| client.0.get_mut().write_all(text).unwrap();
    for (text, part) in [
        (&b"\n"[..], "not JSON"),
        (b"hello\n", "not JSON"),
        (b"\xff\xfe\n", "not JSON"),
        (b"[]\n", "a request is an object"),
        (b"{\"request\":\"run\"}\n", "`format` is missing"),
        (b"{\"format\":1,\"request\":\"fly\"}\n", "unknown variant `fly`"),
        (b"{\"format\":1,\"request\":\"run\",\"more\":1}\n", "unknown field `more`"),
    ] {
        write(&mut client, text);
        let told = client.read();
        assert!(told["error"].as_str().is_some_and(|error| error.contains(part)), "{part}: {told}");
    }
    // Several at once, and one in pieces.
    write(&mut client, b"{\"format\":1,\"request\":\"run\"}\n{\"format\":1,\"request\":\"run\"}\n{\"format\":1,");
    assert!(client.read()["run"].is_object() && client.read()["run"].is_object());
    write(&mut client, b"\"request\":\"run\"}\n");
    assert!(client.read()["run"].is_object());
    // Deeply nested.
    write(&mut client, format!("{}\n", "[".repeat(4000)).as_bytes());
    assert!(client.read()["error"].is_string());
    let long = vec![b'x'; 1 << 20];
    // It is hung up on while it is still being sent, perhaps.
    let _ = client.0.get_mut().write_all(&long);
    let said = client.rest();
    assert!(said.is_empty() || said.contains("at most 4096 bytes"), "{said}");
    // Who says no more is answered, and then hung up on.
    let mut client = Client::of(&run);
    client.send(json!({"request": "run"}));
    client.0.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.rest().lines().count(), 1);
    assert!(Client::of(&run).ask(json!({"request": "run"}))["run"].is_object());
    run.end();
}

#[test]
fn many_who_ask_are_told_and_who_hangs_up_makes_room() {
    let run = Run::start(&["-q"], "echo ready; read x; true");
    let mut clients: Vec<Client> = (0..16).map(|_| Client::of(&run)).collect();
    clients.iter_mut().for_each(|client| assert!(client.ask(json!({"request": "run"}))["run"].is_object()));
    let said = Client::of(&run).rest();
    assert!(said.contains("too many ask at once"), "{said}");
    // Some leave with an answer under way.
    for mut client in clients.drain(..8) {
        client.send(statistics());
        client.send(json!({"request": "subscribe", "interval_ms": 100}));
    }
    let until = Instant::now() + LONG;
    loop {
        let mut client = Client::of(&run);
        // Hung up on before it was heard, perhaps.
        let _ = client.0.get_mut().write_all(b"{\"format\":1,\"request\":\"run\"}\n");
        if client.0.get_ref().shutdown(std::net::Shutdown::Write).is_ok() && client.rest().contains("\"run\":") {
            break;
        }
        assert!(Instant::now() < until, "there is no room again");
    }
    run.end();
}

#[test]
fn who_does_not_read_delays_nobody() {
    let run = Run::start(&["-q"], "echo ready; read x; true");
    let mut slow = Client::of(&run);
    let request = b"{\"format\":1,\"request\":\"statistics\"}\n".repeat(100);
    // Until nothing more is taken from it: answers are not read, so that requests are not either.
    slow.0.get_mut().set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    while slow.0.get_mut().write_all(&request).is_ok() {}
    let began = Instant::now();
    assert!(Client::of(&run).ask(json!({"request": "run"}))["run"].is_object());
    assert!(began.elapsed() < LONG);
    // And the run ends all the same.
    run.end();
}

#[test]
fn another_user_is_refused() {
    let run = Run::start(&["-q"], "echo ready; read x; true");
    assert!(Client::of(&run).ask(json!({"request": "run"}))["run"].is_object());
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: only root can be somebody else");
    }
    // Even where the names let him in.
    for (path, mode) in [(run.folder.path(), 0o755), (&run.folder.path().join("hetmem"), 0o755), (&run.socket(), 0o666)]
    {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let script =
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.makefile().read())";
    let mut other = Command::new("/usr/bin/python3");
    let other = other.arg("-c").arg(script).arg(run.socket()).uid(12345).gid(12345);
    match other.output() {
        Ok(said) => assert!(stdout(&said).contains("only the user of this run, and root"), "{said:?}"),
        Err(_) => eprintln!("skipped: no /usr/bin/python3"),
    }
    run.end();
}

#[test]
fn a_subscription_goes_on_over_forks_and_execs_until_the_run_ends() {
    let script = "echo ready; for i in 1 2 3 4 5 6 7 8; do (exit 3); sh -c 'exit 4'; done; echo forked; read x; \
                  exec sh -c 'echo executed; read x; true'";
    let mut run = Run::start(&["-q", "--policy", "chaos=1", "--device", "private:emulated,size=64M"], script);
    let mut client = Client::of(&run);
    let mut messages = vec![client.ask(json!({"request": "subscribe", "interval_ms": 100}))];
    run.wait_for("forked");
    messages.push(client.read());
    messages.push(client.read());
    run.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    run.wait_for("executed");
    // What was told before is read first.
    let until = Instant::now() + LONG;
    let tells_all = |message: &Value| message["statistics"]["processes_total"].as_u64() >= Some(9);
    while !messages.last().is_some_and(tells_all) {
        assert!(Instant::now() < until, "{messages:?}");
        messages.push(client.read());
    }
    let pid = messages[0]["statistics"]["run"]["program_pid"].as_u64().unwrap();
    let mut total = 0;
    for (at, message) in messages.iter().enumerate() {
        let told = &message["statistics"];
        assert_eq!(told["interval"].is_null(), at == 0, "{told}");
        assert!(told["processes"].as_array().unwrap().iter().any(|process| process["pid"] == pid), "{told}");
        let so_far = told["processes_total"].as_u64().unwrap();
        assert!(so_far >= total, "{told}");
        total = so_far;
    }
    // While it is told, others are too, and it may ask.
    client.send(json!({"request": "run"}));
    while !client.read()["run"].is_object() {}
    run.end();
    // Whatever was said last, the end is the end.
    client.rest();
}

#[test]
fn the_limit_and_sizes_are_told_once_for_a_run_or_for_each_of_its_processes() {
    for (option, times, policy) in [(None, 1, "limit=64M "), (Some("--per-process"), 2, "limit=64M each ")] {
        let options = ["-q", "--policy", "limit=64M", "--device", "private:emulated,size=128M"];
        let options: Vec<&str> = options.into_iter().chain(option).collect();
        let run = Run::start(&options, "echo ready; (read x; true); true");
        let both = |told: &Value| told["statistics"]["processes"].as_array().unwrap().len() == 2;
        let told = Client::of(&run).ask_until(&statistics(), both);
        let places = told["statistics"]["places"].as_array().unwrap();
        let sizes: Vec<u64> = places.iter().map(|place| place["capacity_bytes"].as_u64().unwrap()).collect();
        assert_eq!(sizes, [times * (64 << 20), times * (128 << 20)], "{told}");
        assert_eq!(told["statistics"]["run"]["per_process"], option.is_some());
        let listed = stdout(&output(&mut run.hetmem(&["ps"])));
        assert!(listed.contains(policy), "{listed}");
        run.end();
    }
}

#[test]
fn a_program_that_is_stopped_hangs_nobody() {
    let mut run = Run::start(&["-q"], "echo ready; read x; kill -STOP $$; echo continued");
    let mut client = Client::of(&run);
    let told = client.ask_until(&statistics(), |told| !told["statistics"]["processes"][0]["system_bytes"].is_null());
    let pid = told["statistics"]["run"]["program_pid"].as_u64().unwrap();
    drop(run.child.stdin.take());
    let is_stopped = |told: &Value| told["statistics"]["processes"][0]["state"] == "stopped";
    let told = client.ask_until(&statistics(), is_stopped);
    assert!(told["statistics"]["processes"][0]["system_bytes"].is_u64(), "what it has counted last: {told}");
    let told = client.ask(json!({"request": "residency", "pid": pid}));
    assert!(told["error"].as_str().unwrap().contains("is stopped"), "{told}");
    let listed = output(&mut run.hetmem(&["ps"]));
    assert!(stdout(&listed).contains("sh "), "{}", stdout(&listed));
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::CONT).unwrap();
    run.wait_for("continued");
    run.end();
}

#[test]
fn runs_are_listed_and_those_that_were_killed_are_forgotten() {
    let run = Run::start(&["-q", "--policy", "limit=64M"], "echo ready; read x; true");
    Client::of(&run);
    let listed = output(&mut run.hetmem(&["ps", "--json"]));
    let runs: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let own = runs["runs"].as_array().unwrap().iter().find(|found| found["pid"] == run.child.id()).unwrap();
    assert_eq!((&own["program"], &own["policy"], &own["processes"]), (&json!("sh"), &json!("limit=64M"), &json!(1)));
    // hetmem stopped, its program not: it is listed as one that doesn't answer.
    kill_process(run.pid(), Signal::STOP).unwrap();
    let text = stdout(&output(&mut run.hetmem(&["ps"])));
    let row = text.lines().find(|line| line.trim_start().starts_with(&run.child.id().to_string())).unwrap();
    assert!(row.contains("does not answer"), "{text}");
    kill_process(run.pid(), Signal::CONT).unwrap();
    let socket = run.socket();
    let Run { mut child, folder, output: _output } = run;
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(socket.exists());
    let listed = output(hetmem().args(["ps", "--json"]).env("XDG_RUNTIME_DIR", folder.path()));
    assert_eq!(status(&listed), 0);
    let pid = format!("\"pid\":{}", child.id());
    assert!(!stdout(&listed).contains(&pid) && !socket.exists(), "{}", stdout(&listed));
}

#[test]
fn runs_are_named_by_their_process_or_their_programs() {
    let run = Run::start(&["-q", "--policy", "limit=64M"], "echo ready; read x; true");
    let program = Client::of(&run).ask(json!({"request": "run"}))["run"]["program_pid"].to_string();
    let own = run.child.id().to_string();
    for pid in [&own, &program] {
        let set = output(&mut run.hetmem(&["set", pid, "system-limit=32M"]));
        assert_eq!((status(&set), stdout(&set)), (0, format!("run {own}: system-limit=32M\n")), "{}", stderr(&set));
    }
    for (pid, setting, code, part) in [
        (own.as_str(), "system-limit=5000", 2, "a limit is a positive multiple of 4K"),
        ("1", "system-limit=32M", 125, "process 1 is no run of hetmem's"),
        (&own, "system-limit=1GB", 2, "unknown unit `GB`"),
        (&own, "colour=red", 2, "only system-limit=SIZE can be set"),
        ("x", "system-limit=32M", 2, "invalid value 'x'"),
    ] {
        let refused = output(&mut run.hetmem(&["set", pid, setting]));
        let said = stderr(&refused);
        assert_eq!((status(&refused), said.lines().count()), (code, 1), "{said}");
        assert!(said.starts_with("hetmem: ") && said.contains(part), "{said}");
    }
    run.end();
}

/// How often the threads of `hetmem run` have gone to sleep, by name.
fn naps(run: &Run) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", run.child.id())).unwrap();
    let nap = |task: PathBuf| {
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        (std::fs::read_to_string(task.join("comm")).unwrap(), line.to_owned())
    };
    let mut naps: Vec<_> = tasks.map(|task| nap(task.unwrap().path())).collect();
    naps.sort();
    naps
}

#[test]
fn while_nobody_asks_hetmem_run_sleeps() {
    let script = "echo ready; read x; sleep 1; echo first; sleep 1; echo second; read x; true";
    let mut run = Run::start(&["-q"], script);
    // Even if somebody has asked before.
    assert!(Client::of(&run).ask(json!({"request": "run"}))["run"].is_object());
    run.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    run.wait_for("first");
    let before = naps(&run);
    run.wait_for("second");
    assert_eq!(naps(&run), before);
    assert!(before.iter().any(|(name, _)| name == "control\n"), "{before:?}");
    run.end();
}

/// A run without a place for its socket is a run all the same, and says nothing of it.
#[test]
fn where_there_can_be_no_socket_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("x".repeat(200));
    std::fs::create_dir(&deep).unwrap();
    for place in [Path::new("/nonexistent"), &deep, Path::new("relative")] {
        let run = output(hetmem().args(["run", "-q", "--", "sh", "-c", "exit 3"]).env("XDG_RUNTIME_DIR", place));
        assert_eq!((status(&run), stderr(&run).as_str()), (3, ""), "{}", place.display());
    }
}

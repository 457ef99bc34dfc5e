//! `redis-server` under load, with a snapshot by a forked child in the middle. All clients are native.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use libtest_mimic::Trial;

use crate::compare::{check_stats, report, same};
use crate::launch::{Ended, LIMIT, Program, Running, Setting, help, wait_until};
use crate::{Length, Outcome, Problem, host};

/// Times that the end of a snapshot is asked for, each after a small load.
const MOST_QUESTIONS: usize = 2_000;

const SOCKET: &str = "redis.sock";

/// splitmix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A printable value of `length` bytes that depends on `seed`.
fn value(seed: u64, length: u64) -> String {
    let mut text = String::new();
    for i in 0..length.div_ceil(16) {
        let _ = write!(text, "{:016x}", mix(seed ^ (i << 32)));
    }
    text.truncate(usize::try_from(length).unwrap_or(text.len()));
    text
}

/// Commands that fill database 0 with `keys` keys of each kind; values of all kinds and of sizes from a few bytes to several pages.
fn first_script(keys: u64) -> String {
    let mut text = String::new();
    for i in 0..keys {
        let length = if i % 50 == 0 { 20_000 + i } else { 10 + mix(i) % 1_000 };
        let _ = write!(text, "SET s:{i} {}\r\n", value(i, length));
        let _ = write!(text, "HSET h:{} f{i} {}\r\n", i / 8, value(i + 1, 20));
        let _ = write!(text, "RPUSH l:{} {} {}\r\n", i / 30, value(i + 2, 40), i);
        let _ = write!(text, "SADD m:{} {}\r\n", i / 20, value(i + 3, 12));
        let _ = write!(text, "ZADD z:{} {} {}\r\n", i / 100, mix(i) % 1_000, value(i + 4, 16));
    }
    text
}

/// Commands that change database 0 while its snapshot is being written.
fn second_script(keys: u64) -> String {
    let mut text = String::new();
    for i in 0..keys {
        let _ = match i % 6 {
            0 => write!(text, "SET s:{i} {}\r\n", value(i + 10, mix(i) % 2_000 + 1)),
            1 => write!(text, "APPEND s:{i} {}\r\n", value(i + 11, 100)),
            2 => write!(text, "DEL s:{i}\r\n"),
            3 => write!(text, "HSET h:{} g{i} {}\r\n", i / 8, value(i + 12, 200)),
            4 => write!(text, "LPOP l:{}\r\nRPUSH l:{} {}\r\n", i / 30, i / 60, value(i + 13, 300)),
            _ => write!(text, "ZINCRBY z:{} 7 {}\r\n", i / 100, value(i + 4, 16)),
        };
    }
    text
}

/// Commands that read back every value, in an order that doesn't depend on the server's hash seed.
fn reading_script(keys: u64) -> String {
    let mut text = String::new();
    for i in 0..keys {
        let _ = writeln!(text, "GET s:{i}");
        let _ = writeln!(text, "HMGET h:{} f{i} g{i}", i / 8);
    }
    for i in 0..=keys / 20 {
        let _ = writeln!(text, "LRANGE l:{i} 0 -1\nSORT m:{i} ALPHA\nZRANGE z:{i} 0 -1 WITHSCORES");
    }
    text
}

/// A running server and the tools that talk to it.
struct Server {
    running: Running,
    cli: std::path::PathBuf,
    benchmark: std::path::PathBuf,
}

impl Server {
    /// Starts a server on the snapshot at `snapshot`, if there is one, and waits until it accepts connections.
    fn start(setting: Option<Setting>, snapshot: Option<&Path>) -> Outcome<Self> {
        let folder = host::folder()?;
        if let Some(from) = snapshot {
            std::fs::copy(from, folder.path().join("dump.rdb"))?;
        }
        let (cli, benchmark) = (host::program("redis-cli")?, host::program("redis-benchmark")?);
        let options =
            format!("--port 0 --unixsocket {SOCKET} --appendonly no --daemonize no --enable-debug-command yes --save");
        let program = Program::new(host::program("redis-server")?).arguments(options.split(' ')).arguments([""]);
        let mut running = program.start_in(folder, setting, Some(Stdio::piped()))?;
        let output = running.child.stdout.take().ok_or_else(|| "no standard output".to_owned())?;
        let (sender, lines) = mpsc::channel();
        // Reads to the end, so that the server never waits for a reader; the end comes with the server's.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Nobody listens any more once the server is ready.
                let _ = sender.send(line);
            }
        });
        let mut log = String::new();
        loop {
            match lines.recv_timeout(LIMIT) {
                Ok(line) if line.contains("eady to accept connections") => break,
                Ok(line) => log += &(line + "\n"),
                Err(error) => return Err(running.stuck(&format!("{log}did not get ready ({error})")).into()),
            }
        }
        Ok(Self { running, cli, benchmark })
    }

    fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.cli);
        command.args(["-s", SOCKET]).args(arguments).current_dir(self.running.folder.path());
        command
    }

    /// The load on database 1: its keys and their order are random.
    fn load(&self, requests: u32) -> Command {
        let mut command = Command::new(&self.benchmark);
        let requests = requests.to_string();
        let options = ["-s", SOCKET, "--dbnum", "1", "-c", "20", "-P", "4", "-r", "10000", "-d", "300", "-q"];
        command.args(options).args(["-t", "set,get,incr,lpush,hset,spop", "-n", &requests]);
        command.current_dir(self.running.folder.path());
        command
    }

    fn ask(&mut self, arguments: &[&str]) -> Outcome<String> {
        let mut command = self.client(arguments);
        let answer = help(&mut command, None, &mut self.running)?;
        if answer.starts_with("ERR") || answer.starts_with("MISCONF") {
            return Err(Problem::Wrong(format!("redis answers {arguments:?} with {answer}")));
        }
        Ok(answer.trim().to_owned())
    }

    /// Sends the whole script in one pipe.
    fn pipe(&mut self, script: &str) -> Outcome {
        let mut command = self.client(&["--pipe"]);
        let answer = help(&mut command, Some(script.as_bytes()), &mut self.running)?;
        if answer.contains("errors: 0") { Ok(()) } else { Err(Problem::Wrong(format!("redis-cli --pipe: {answer}"))) }
    }

    /// A digest over all keys and values, whatever their order.
    fn digest(&mut self) -> Outcome<String> {
        self.ask(&["DEBUG", "DIGEST"])
    }

    /// Saves and ends.
    fn shut_down(mut self) -> Outcome<Ended> {
        self.ask(&["SHUTDOWN", "SAVE"])?;
        self.running.wait()
    }
}

/// What a server held, in the middle and at the end, by its own word and by that of another that loaded its snapshots.
struct Found {
    middle: String,
    end: String,
    middle_reloaded: String,
    end_reloaded: String,
    values: String,
    ended: Ended,
}

/// The digest that a native server finds in a snapshot; database 1 is left out.
fn reloaded(snapshot: &Path) -> Outcome<String> {
    let mut server = Server::start(None, Some(snapshot))?;
    server.ask(&["-n", "1", "FLUSHDB"])?;
    let digest = server.digest()?;
    server.shut_down()?;
    Ok(digest)
}

/// A server with `keys` keys of each kind, while clients send twice `requests` of each kind for others.
fn serve(setting: Option<Setting>, keys: u64, requests: u32) -> Outcome<Found> {
    let mut server = Server::start(setting, None)?;
    server.pipe(&first_script(keys))?;
    let middle = server.digest()?;
    let mut load = server.load(requests);
    help(&mut load, None, &mut server.running)?;

    let mut load = server.load(requests).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let saved = server.ask(&["BGSAVE"]).and_then(|_| server.pipe(&second_script(keys)));
    let ended = wait_until(&mut load, std::time::Instant::now() + LIMIT)?;
    if !ended.is_some_and(|status| status.success()) {
        load.kill()?;
        load.wait()?;
        return Err(server.running.stuck("did not serve redis-benchmark").into());
    }
    saved?;
    let mut questions = 0;
    while server.ask(&["INFO", "persistence"])?.contains("rdb_bgsave_in_progress:1") {
        questions += 1;
        if questions > MOST_QUESTIONS {
            return Err(server.running.stuck("did not finish its snapshot").into());
        }
        let mut load = server.load(100);
        help(&mut load, None, &mut server.running)?;
    }
    let persistence = server.ask(&["INFO", "persistence"])?;
    if !persistence.contains("rdb_last_bgsave_status:ok") {
        return Err(Problem::Wrong(format!("the snapshot failed: {persistence}")));
    }
    let snapshot = server.running.folder.path().join("middle.rdb");
    std::fs::rename(server.running.folder.path().join("dump.rdb"), &snapshot)?;

    server.ask(&["-n", "1", "FLUSHDB"])?;
    let end = server.digest()?;
    let mut reader = server.client(&[]);
    let values = help(&mut reader, Some(reading_script(keys).as_bytes()), &mut server.running)?;
    let ended = server.shut_down()?;
    let middle_reloaded = reloaded(&ended.folder.path().join("middle.rdb"))?;
    let end_reloaded = reloaded(&ended.folder.path().join("dump.rdb"))?;
    Ok(Found { middle, end, middle_reloaded, end_reloaded, values, ended })
}

fn redis(setting: Setting, keys: u64, requests: u32) -> Outcome {
    let native = serve(None, keys, requests)?;
    let managed = serve(Some(setting), keys, requests)?;
    report(&managed.ended, &native.ended);
    let run = &managed.ended;
    same("the data before the snapshot", native.middle.as_bytes(), managed.middle.as_bytes(), run)?;
    same("the data at the end", native.end.as_bytes(), managed.end.as_bytes(), run)?;
    same("the values read back", native.values.as_bytes(), managed.values.as_bytes(), run)?;
    same("the snapshot of the middle", native.middle.as_bytes(), managed.middle_reloaded.as_bytes(), run)?;
    same("the snapshot of the end", native.end.as_bytes(), managed.end_reloaded.as_bytes(), run)?;
    if native.middle_reloaded != native.middle || native.end_reloaded != native.end || native.middle == native.end {
        return Err(Problem::Wrong("the native server itself lost data: the test is wrong".to_owned()));
    }
    if run.code() != native.ended.code() {
        return Err(Problem::Wrong(format!(
            "{}\nended with {} instead of {}",
            run.what,
            run.code(),
            native.ended.code()
        )));
    }
    check_stats(run, setting.least_moved(100_000), true)
}

pub(crate) fn trials() -> Vec<Trial> {
    [Length::Short, Length::Long]
        .into_iter()
        .flat_map(|length| {
            let (keys, requests) = length.of((1_500, 4_000), (6_000, 20_000));
            [("chaos::redis", Setting::Chaos), ("compressed-chaos::redis", Setting::CompressedChaos)]
                .map(|(name, setting)| length.trial(name, move || redis(setting, keys, requests)))
        })
        .collect()
}

//! Mistakes that newcomers make: each answer is one line, which says what would be right. And what else makes a command friendly: help on one screen, no
//! colours where there is no terminal, JSON wherever there is a table.

#![expect(clippy::print_stderr, reason = "a test that can't run here says so")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use support::{built, hetmem, output, status, stderr, stdout};

/// Runs hetmem in `folder`, and checks its exit status, and that its one line has each of `parts`.
#[track_caller]
fn told(folder: &Path, args: &[&str], expected: i32, parts: &[&str]) {
    let run = output(hetmem().args(args).current_dir(folder).env("XDG_RUNTIME_DIR", folder));
    let said = stderr(&run);
    assert_eq!(status(&run), expected, "{args:?}: {said}");
    assert!(said.starts_with("hetmem: ") && said.lines().count() == 1, "{args:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{args:?}: no `{part}` in: {said}");
    }
}

#[test]
fn who_forgets_a_word_is_told_the_whole_line() {
    let here = tempfile::tempdir().unwrap();
    let told = |args: &[&str], parts: &[&str]| told(here.path(), args, 2, parts);
    told(&["python3", "x.py", "-v"], &["no command `python3`", "hetmem run -- python3 x.py -v"]);
    told(&["runn", "--", "ls"], &["'run'"]);
    told(&["help"], &["see `hetmem --help`"]);
    told(&["help", "run"], &["see `hetmem run --help`"]);
    told(&["run"], &["`hetmem run -- python3 script.py`"]);
    told(
        &["run", "--limit", "64M", "ls"],
        &["no option `--limit`", "--policy", "--system-limit", "`hetmem run --help`"],
    );
    told(&["run", "--divice=coherent:emulated", "ls"], &["'--device'"]);
    told(&["ps", "--all"], &["no option `--all`", "--json"]);
    told(&["set", "--limit", "64M"], &["no option `--limit`; there are --help, --manual; see"]);
    told(&["set", "64M"], &["`hetmem ps` lists the runs"]);
    told(&["set", "1", "64M"], &["system-limit=64M"]);
    told(&["set", "1", "system-limit=0"], &["a positive multiple of 4K, such as 256M"]);
    told(&["advise", "1", "0x1000", "soon"], &["such as 7f0012345000-7f0012347000"]);
    told(&["top"], &["--once"]);
}

#[test]
fn who_writes_a_value_wrongly_is_told_one_that_is_right() {
    let here = tempfile::tempdir().unwrap();
    let told = |args: &[&str], parts: &[&str]| told(here.path(), &[&["run"], args, &["ls"]].concat(), 2, parts);
    told(&["--device", "gpu"], &["for example coherent:emulated,size=1G"]);
    told(&["--device", "node=0"], &["TYPE:BACKEND"]);
    told(&["--device", "private:cuda"], &["emulated, node=N, dax=/dev/daxX.Y"]);
    told(&["--device", "private:emulated,size=1GB"], &["K, M, G or T"]);
    told(&["--device", "private:emulated,latency=5"], &["ns, us, ms or s"]);
    told(&["--device", "private:emulated,size=64"], &["4K would be"]);
    told(&["--device", "private:emulated,size=15T"], &["size 15 TiB is larger than this machine's memory"]);
    told(&["--device", "private:compressed,size=15T"], &["half of the size", "give memory=…, such as memory="]);
    told(&["--device", "private:file=swap,size=1G"], &["absolute path of a folder", "such as file=/var/tmp"]);
    told(&["--policy", "limit"], &["--system-limit SIZE, such as 256M"]);
    told(&["--policy", "lru"], &["manual, limit=SIZE"]);
    told(&["--policy", "limit=64MB"], &["K, M, G or T"]);
    told(&["--system-limit", "64M"], &["goes with --policy limit or clock only"]);
    told(&["--metrics", "9100"], &["127.0.0.1:9100", "./9100"]);
}

#[test]
fn who_names_no_program_is_told_what_may_have_been_meant() {
    let here = tempfile::tempdir().unwrap();
    let script = here.path().join("job.sh");
    std::fs::write(&script, "echo hi\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o644)).unwrap();
    let told = |program: &str, expected, part| told(here.path(), &["run", "--", program], expected, &[program, part]);
    told("job.sh", 127, "the file here is ./job.sh");
    told("./job.sh", 126, "chmod +x ./job.sh");
    told("ls -l", 127, "words of their own: hetmem run -- ls -l");
    told("DEBUG=1", 127, "DEBUG=… hetmem run");
    told("no-such-program", 127, "not found in PATH\n");
    told("./no-such-program", 127, "not found\n");
    told("/", 126, "it is a directory\n");
}

#[test]
fn who_asks_where_nothing_runs_is_told_how_something_would() {
    let here = tempfile::tempdir().unwrap();
    // Root is told of all users' runs, and there may be some: so somebody else asks, who must be able to execute it.
    let copy = here.path().join("hetmem");
    std::fs::copy(built("hetmem"), &copy).unwrap();
    std::fs::set_permissions(here.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    for args in [&["top", "--once"][..], &["heat"]] {
        let mut command = Command::new(&copy);
        if rustix::process::geteuid().is_root() {
            command.uid(12345).gid(12345);
        }
        let run = output(command.args(args).env("XDG_RUNTIME_DIR", here.path()));
        assert_eq!(status(&run), 125, "{}", stderr(&run));
        assert!(stderr(&run).contains("`hetmem run -- PROGRAM` begins one"), "{}", stderr(&run));
    }
    for args in [
        &["heat", "1"][..],
        &["set", "1", "system-limit=64M"],
        &["advise", "1", "1000-2000", "soon"],
        &["migrate", "1", "all", "system"],
    ] {
        told(here.path(), args, 125, &["process 1", "`hetmem ps`"]);
    }
    let trace = here.path().join("trace");
    std::fs::write(&trace, "hello\n").unwrap();
    told(here.path(), &["replay", "trace"], 125, &["lackey", "--format"]);
}

/// The commands that help lists.
fn commands() -> Vec<String> {
    let all = stdout(&output(hetmem().arg("--help").env("COLUMNS", "80")));
    assert!(all.lines().count() <= 24, "{all}");
    let commands = all.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // Others go on with what is said of one.
    let commands = commands.filter(|line| !line.starts_with("   "));
    let commands: Vec<String> = commands.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    assert!(commands.len() >= 10 && commands.contains(&"run".to_owned()), "{all}");
    commands
}

#[test]
fn help_is_one_screen_of_each_command_too_and_the_manual_says_more() {
    for command in commands() {
        let told = |option: &str| stdout(&output(hetmem().args([&command, option]).env("COLUMNS", "80")));
        let help = told("--help");
        assert!((5..=24).contains(&help.lines().count()), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
        assert_eq!(told("-h"), help);
        let (manual, usage) = (told("--manual"), format!("Usage: hetmem {command}"));
        assert!(manual.len() > help.len() && manual.contains(&usage) && help.contains(&usage), "{manual}");
    }
    assert!(stdout(&output(hetmem().args(["run", "--manual"]))).contains("Exit status:"));
}

#[test]
fn what_takes_long_shows_how_far_it_is_on_a_terminal_and_nowhere_else() {
    let here = tempfile::tempdir().unwrap();
    std::fs::write(here.path().join("trace"), " L 04222c40,8\n S 04223c40,8\n".repeat(1000)).unwrap();
    let args = ["replay", "trace", "--system-limit", "4K"];
    let plain = output(hetmem().args(args).current_dir(here.path()));
    assert!(status(&plain) == 0 && stderr(&plain).is_empty(), "{}", stderr(&plain));
    let mut script = Command::new("script");
    script.arg("-qec").arg(format!("{} {}", built("hetmem").display(), args.join(" "))).arg("/dev/null");
    let shown = stdout(&output(script.current_dir(here.path()).env("TERM", "xterm")));
    for part in ["reading: records", "simulating", "2000 touches of 2 pages"] {
        assert!(shown.contains(part), "{part}: {shown:?}");
    }
}

#[test]
fn there_are_colours_on_a_terminal_alone_and_none_where_they_are_not_wanted() {
    let escape = "\u{1b}[";
    assert!(!stdout(&output(hetmem().arg("--help"))).contains(escape));
    assert!(!stderr(&output(hetmem().arg("--nothing"))).contains(escape));
    let on_terminal = |no_colour: &str| {
        let mut script = Command::new("script");
        script.args(["-qec"]).arg(format!("{} --help", built("hetmem").display())).arg("/dev/null");
        // Whatever the tests themselves were started with.
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
            script.env_remove(name);
        }
        stdout(&output(script.env("TERM", "xterm").env("NO_COLOR", no_colour)))
    };
    let with = on_terminal("");
    assert!(with.contains("Usage:") && with.contains(escape), "{with:?}");
    let without = on_terminal("1");
    assert!(without.contains("Usage:") && !without.contains(escape), "{without:?}");
}

#[test]
fn what_is_told_as_a_table_is_told_as_json_too() {
    let here = tempfile::tempdir().unwrap();
    for args in [&["doctor", "--json"][..], &["ps", "--json"], &["topology", "--json"]] {
        let run = output(hetmem().args(args).env("XDG_RUNTIME_DIR", here.path()));
        let told: serde_json::Value = serde_json::from_str(&stdout(&run)).unwrap();
        assert!(told.is_object(), "{args:?}: {told}");
    }
    // Of the others, which need a run or a trace, that there is such an option; their own tests try it.
    for command in commands() {
        let option = match command.as_str() {
            // Beside its summary.
            "run" => "--stats",
            // They answer with a line.
            "set" | "advise" => continue,
            _ => "--json",
        };
        let help = stdout(&output(hetmem().args([&command, "--help"])));
        assert!(help.contains(option), "{help}");
    }
}

#[test]
fn a_reader_that_goes_away_has_seen_what_it_wanted() {
    let here = tempfile::tempdir().unwrap();
    std::fs::write(here.path().join("trace"), " L 04222c40,8\n".repeat(1000)).unwrap();
    for args in [
        "topology",
        "topology --svg /dev/stdout",
        "topology --json",
        "replay trace --system-limit 4K",
        "replay trace --system-limit 4K --svg /dev/stdout",
        "doctor",
        "ps",
        "bench --quick bookkeeping",
        "run --manual",
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = hetmem();
        command.args(args.split(' ')).current_dir(here.path()).env("XDG_RUNTIME_DIR", here.path()).stdout(writer);
        let run = command.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        assert!([0, 1].contains(&status(&run)) && stderr(&run).is_empty(), "{args}: {} {}", status(&run), stderr(&run));
    }
}

/// Everything that writes a file, where the disk is full: one line says which file, and what was there stays.
#[test]
fn a_full_disk_is_said_in_one_line_and_costs_nothing_that_was_there() {
    let here = tempfile::tempdir().unwrap();
    std::fs::write(here.path().join("trace"), " L 04222c40,8\n".repeat(1000)).unwrap();
    let script = r#"
mount -t tmpfs -o size=64k hetmem full || exit 99
for file in stats metrics record svg json; do echo old >full/$file; done
head -c 1M /dev/zero >full/rest 2>/dev/null
HETMEM ARGS
echo "status $?"
cat full/svg full/json full/stats
ls -A full | tr '\n' ' '
"#;
    let cases = [
        ("run --quiet --stats full/stats -- true", 125, "full/stats"),
        ("run --quiet --metrics full/metrics -- true", 125, "full/metrics"),
        ("run --quiet --record full/new --policy limit=8M -- true", 125, "full/new"),
        ("topology --svg full/svg", 125, "full/svg"),
        ("replay trace --system-limit 4K --svg full/svg", 125, "full/svg"),
        ("bench --quick bookkeeping --json full/json", 125, "full/json"),
        ("pages full/pages", 125, "full/pages"),
    ];
    for (args, expected, file) in cases {
        std::fs::create_dir_all(here.path().join("full")).unwrap();
        let script = script.replace("HETMEM", &built("hetmem").display().to_string()).replace("ARGS", args);
        // A disk of one's own, which nobody else sees.
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount", "bash", "-c", &script]).current_dir(here.path());
        let run = output(unshare.env("XDG_RUNTIME_DIR", here.path()));
        let (told, said) = (stdout(&run), stderr(&run));
        if told.is_empty() {
            eprintln!("not tried: no disk can be had here: {said}");
            return;
        }
        assert!(told.contains(&format!("status {expected}\n")), "{args}: {told}{said}");
        assert!(said.starts_with("hetmem: ") && said.lines().count() == 1 && said.contains(file), "{args}: {said}");
        assert!(told.contains("old\nold\nold\njson"), "what was there is gone: {args}: {told}");
        assert!(!told.contains(".tmp"), "{args}: {told}");
    }
}

/// The words of a line that are the same in every run.
fn words(line: &str) -> Vec<&str> {
    line.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| word.len() > 3).collect()
}

#[test]
fn the_readmes_sessions_work_as_pasted() {
    let (_, sessions) = include_str!("../../README.md").split_once("\n## Three sessions\n").unwrap();
    let (sessions, _) = sessions.split_once("\n## ").unwrap();
    let here = tempfile::tempdir().unwrap();
    let path = format!("{}:{}", built("hetmem").parent().unwrap().display(), std::env::var("PATH").unwrap());
    let blocks: Vec<&str> =
        sessions.split("```console\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 2);
    // The third is in two languages: that in Rust is tested with the crate's documentation, that in Python by `.ci/python`.
    assert!(["```rust\n", "```python\n>>> "].iter().all(|block| sessions.contains(block)));
    for block in blocks {
        let commands: Vec<&str> = block.lines().filter_map(|line| line.strip_prefix("$ ")).collect();
        let mut bash = Command::new("bash");
        bash.args(["-euo", "pipefail", "-c", &commands.join("\n")]).current_dir(here.path()).env("PATH", &path);
        let run = output(&mut bash);
        let told = stdout(&run) + &stderr(&run);
        assert_eq!(status(&run), 0, "{told}");
        for line in block.lines().filter(|line| !line.starts_with("$ ")) {
            let is_told = |word: &&str| told.contains(*word);
            // Why pages were kept is another matter in each run.
            let same = if line.starts_with("  kept") { 1 } else { usize::MAX };
            assert!(words(line).iter().take(same).all(is_told), "`{line}` is not like anything in: {told}");
        }
    }
}

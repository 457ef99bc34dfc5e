//! Programs of the host's packages, which know nothing of hetmem.

use std::fmt::Write as _;
use std::process::Command;

use libtest_mimic::Trial;

use crate::compare::{Expect, compare};
use crate::launch::{Ended, Program, Setting};
use crate::{Length, Outcome, Problem, host, trial};

fn python(setting: Setting, objects: &str) -> Outcome {
    let script = host::source("scripts/heap.py");
    let program = Program::new(host::program("python3")?).arguments([script]).arguments(["3", objects]);
    compare(&program, setting, &Expect::moved(100_000)).map(drop)
}

/// The database file must be the same, byte by byte, and pass the integrity checks of a native `sqlite3`.
fn sqlite(setting: Setting, rows: u32) -> Outcome {
    let sqlite = host::program("sqlite3")?;
    // In this order: a change of where temporary tables are drops them, and parameters are in one.
    let set = ["-cmd", "PRAGMA temp_store = MEMORY", "-cmd", &format!(".parameter set :rows {rows}")];
    let program = Program::new(&sqlite).arguments(["-batch"]).arguments(set).arguments(["events.db"]);
    let program = program.stdin(host::source("scripts/load.sql"));
    let expect = Expect { files: &["events.db"], ..Expect::moved(100_000) };
    let (_, managed) = compare(&program, setting, &expect)?;
    let check = Command::new(&sqlite)
        .args(["-batch", "events.db", "PRAGMA integrity_check"])
        .current_dir(managed.folder.path())
        .output()?;
    if check.stdout != b"ok\n" {
        return Err(Problem::Wrong(format!("a native sqlite3 finds {}", String::from_utf8_lossy(&check.stdout))));
    }
    Ok(())
}

/// It verifies what it writes. A worker that a signal killed it starts anew, and only says so.
fn stress_ng(operations: u32) -> Outcome {
    const BAD: &[&str] = &["fail:", "error:", "terminated on", "died", "restarting", "aborted", "skipped", "incorrect"];
    let options = "--vm 2 --vm-bytes 64M --vm-method all --verify --seed 7 --metrics-brief --verbose";
    let options = format!("{options} --vm-ops {operations}");
    let program = Program::new(host::program("stress-ng")?).arguments(options.split(' '));
    let expect = Expect { output: false, ..Expect::moved(100_000) };
    let (native, managed) = compare(&program, Setting::Chaos, &expect)?;
    let said = |run: &Ended| String::from_utf8_lossy(&[&run.stdout[..], &run.stderr].concat()).into_owned();
    let (native, managed) = (said(&native), said(&managed));
    let bad = managed.lines().find(|line| BAD.iter().any(|word| line.contains(word)));
    if let Some(line) = bad {
        return Err(Problem::Wrong(format!("stress-ng says: {line}\n{managed}")));
    }
    let operations = |text: &str| -> Option<u64> {
        text.lines().find_map(|line| line.split_once("] vm ")?.1.split_whitespace().next()?.parse().ok())
    };
    if operations(&managed).is_none() || operations(&managed) != operations(&native) {
        return Err(Problem::Wrong(format!("stress-ng did other work than natively:\n{managed}\nnatively:\n{native}")));
    }
    Ok(())
}

/// Its children unmap themselves, and it fails if they don't end by SIGSEGV.
fn stress_ng_unmaps(setting: Setting) -> Outcome {
    let options = "--vm-segv 1 --vm-segv-ops 20 --timeout 60 --verify --metrics-brief --verbose";
    let program = Program::new(host::program("stress-ng")?).arguments(options.split(' '));
    let expect = Expect { output: false, ..Expect::moved(0) };
    let (native, managed) = compare(&program, setting, &expect)?;
    for run in [&native, &managed] {
        let said = String::from_utf8_lossy(&[&run.stdout[..], &run.stderr].concat()).into_owned();
        if run.code() != 0 || said.contains("fail:") {
            return Err(Problem::Wrong(format!("{}: stress-ng says:\n{said}", run.what)));
        }
    }
    Ok(())
}

/// Programs that have no room for an agent run all the same, wherever it fails.
fn without_room(setting: Setting) -> Outcome {
    let limits: String = (1..40).map(|i| format!("(ulimit -v {}; exec /bin/echo {i})\n", i * 100_000)).collect();
    let program = Program::new(host::program("sh")?).arguments(["-c", &limits]);
    compare(&program, setting, &Expect { remarks: 1, ..Expect::moved(0) }).map(drop)
}

/// A program that is started by another, which has given up its ids, and kept what it needs to do so until then.
fn setpriv(setting: Setting) -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return Err(Problem::Refused("only root can change ids".to_owned()));
    }
    let change = ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--"];
    let program = Program::new(host::program("setpriv")?).arguments(change);
    let program = program.arguments(["sh", "-c", "id -u; id -G; exit 4"]);
    // Who has no permission for userfaultfd any more executes programs that are not managed: the shell, and two of `id`.
    compare(&program, setting, &Expect { remarks: 3, ..Expect::moved(0) }).map(drop)
}

/// A C program with so many functions that the compiler's heap is worth moving.
fn large_program(functions: usize) -> String {
    let mut text =
        String::from("#include <stdio.h>\n#include <string.h>\nstruct item { int a[8]; double d; char name[24]; };\n");
    for i in 0..functions {
        let (odd, shift) = (2 * i + 1, i % 7 + 1);
        let _ = write!(
            text,
            "static int f{i}(int x, struct item *it) {{\n  int sum = x;\n  for (int k = 0; k < {odd}; k++) {{\n    it->a[k % 8] += (k * {odd}) \
             ^ (sum >> {shift});\n    switch ((sum + k) % 5) {{\n    case 0: sum += it->a[{}]; break;\n    case 1: sum ^= k << {shift}; break;\n    \
             case 2: it->d *= 1.0 + 1.0 / (k + {odd}); break;\n    case 3: memset(it->name, 'a' + k % 26, sizeof it->name - 1); break;\n    \
             default: sum -= it->name[k % 24];\n    }}\n  }}\n  return sum + {};\n}}\n",
            i % 8,
            if i == 0 { "0".to_owned() } else { format!("(x & 1 ? f{}(x >> 1, it) : 0)", i - 1) },
        );
    }
    text.push_str("int main(void) {\n  struct item it = {0};\n  unsigned total = 0;\n");
    for i in 0..functions {
        let _ = writeln!(text, "  total = total * 31u + (unsigned)f{i}({i} & 1023, &it);");
    }
    text.push_str("  printf(\"%u\\n\", total);\n  return 0;\n}\n");
    text
}

/// Driver, compiler, assembler and linker are all managed; the executable must be the same, byte by byte.
fn c_compiler(functions: usize) -> Outcome {
    let inputs = host::folder()?;
    let source = inputs.path().join("large.c");
    std::fs::write(&source, large_program(functions))?;
    let program = Program::new(host::program("cc")?).arguments(["-O2", "-w", "-o", "large"]).arguments([source]);
    let expect = Expect { files: &["large"], ..Expect::moved(10_000) };
    compare(&program, Setting::Chaos, &expect).map(drop)
}

/// A shell, and a pipeline of programs that run side by side.
fn pipeline() -> Outcome {
    let script = "seq 1 400000 | sort -r | sort -n -k1.3 -s | gzip -3 | gzip -d | sha256sum; exit 5";
    let program = Program::new(host::program("sh")?).arguments(["-c", script]);
    host::program("gzip")?;
    compare(&program, Setting::Chaos, &Expect::moved(10_000)).map(drop)
}

/// The tests of the programs that are there in two lengths.
fn of_length(length: Length) -> [Trial; 4] {
    let objects = length.of("10000", "60000");
    let rows = length.of(40_000, 300_000);
    let functions = length.of(60, 250);
    let operations = length.of(20_000, 60_000);
    [
        length.trial("chaos::python", move || python(Setting::Chaos, objects)),
        length.trial("chaos::sqlite", move || sqlite(Setting::Chaos, rows)),
        length.trial("chaos::stress_ng", move || stress_ng(operations)),
        length.trial("chaos::c_compiler", move || c_compiler(functions)),
    ]
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        // More memory than the limit of 32 MiB.
        trial("limit::python", || python(Setting::Limit, "60000")),
        trial("compressed::python", || python(Setting::Compressed, "60000")),
        trial("compressed-chaos::python", || python(Setting::CompressedChaos, "10000")),
        trial("compressed-chaos::sqlite", || sqlite(Setting::CompressedChaos, 40_000)),
        trial("chaos::stress_ng_unmaps", || stress_ng_unmaps(Setting::Chaos)),
        trial("manual::stress_ng_unmaps", || stress_ng_unmaps(Setting::Manual)),
        trial("chaos::without_room", || without_room(Setting::Chaos)),
        trial("manual::without_room", || without_room(Setting::Manual)),
        trial("chaos::setpriv", || setpriv(Setting::Chaos)),
        trial("manual::setpriv", || setpriv(Setting::Manual)),
        trial("chaos::pipeline", pipeline),
    ];
    trials.extend(of_length(Length::Short));
    trials.extend(of_length(Length::Long));
    trials.push(Length::Long.trial("compressed::sqlite", || sqlite(Setting::Compressed, 300_000)));
    trials.push(Length::Long.trial("file::python", || python(Setting::File, "50000")));
    trials.push(Length::Long.trial("file-chaos::python", || python(Setting::FileChaos, "4000")));
    trials.push(Length::Long.trial("file::sqlite", || sqlite(Setting::File, 250_000)));
    trials.push(Length::Long.trial("file-chaos::sqlite", || sqlite(Setting::FileChaos, 40_000)));
    trials.push(Length::Long.trial("limit::sqlite", || sqlite(Setting::Limit, 300_000)));
    trials
}

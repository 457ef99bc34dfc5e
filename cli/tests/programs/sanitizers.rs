//! Programs with a runtime that must come first, maps most of the address space, and stands in front of the C library's functions itself; and
//! programs on a processor that knows nothing of userfaultfd. They may run unmanaged, if a line says why; what they do must be the same.

use libtest_mimic::Trial;

use crate::compare::{Expect, compare};
use crate::launch::{Program, Setting};
use crate::{Outcome, Problem, host, trial};

/// Name, compiler, flags.
const SANITIZERS: &[(&str, &str, &[&str])] = &[
    ("gcc_address", "gcc", &["-fsanitize=address"]),
    ("gcc_address_static", "gcc", &["-fsanitize=address", "-static-libasan"]),
    ("gcc_thread", "gcc", &["-fsanitize=thread"]),
    ("gcc_undefined", "gcc", &["-fsanitize=undefined"]),
    // Its runtime is a part of the program.
    ("clang_address", "clang", &["-fsanitize=address"]),
    ("clang_thread", "clang", &["-fsanitize=thread"]),
];

/// The program, and how much it does.
const PROGRAM: &str = "allocations";
const ROUNDS: &str = "5";
/// An error that each sanitizer of addresses finds.
const OVERFLOW: &str = "overflow";

fn sanitized(name: &str, compiler: &str, flags: &[&str], setting: Setting) -> Outcome {
    let compiler = host::program(compiler)?;
    let flags: Vec<&str> = ["-O1", "-g"].iter().chain(flags).copied().collect();
    let (binary, said) = host::compile(&compiler, &flags, PROGRAM, &format!("{PROGRAM}-{name}"))?;
    if !binary.is_file() {
        // The compiler is there, and its runtime is not, if the program compiles without it.
        host::compiled(PROGRAM)?;
        return Err(Problem::Missing(format!("{name}: {said}")));
    }
    let program = Program::new(&binary).arguments([ROUNDS]);
    let tried = program.start(None)?.wait()?;
    if tried.code() != 0 {
        return Err(Problem::Refused(format!("it does not run here: {}", String::from_utf8_lossy(&tried.stderr))));
    }
    let expect = Expect { remarks: 1, ..Expect::moved(0) };
    let (_, managed) = compare(&program, setting, &expect)?;
    let said = String::from_utf8_lossy(&managed.stderr);
    // Undefined behaviour is found without a second memory.
    if !name.contains("undefined") && !said.contains("ran unmanaged") {
        return Err(Problem::Wrong(format!("{}: no line says that it runs unmanaged:\n{said}", managed.what)));
    }
    if name.contains("address") {
        // What is found is told with addresses and process numbers, and ends the program with a status of its own.
        let expect = Expect { output: false, ..expect };
        let (native, managed) = compare(&Program::new(&binary).arguments([OVERFLOW]), setting, &expect)?;
        for run in [&native, &managed] {
            let said = String::from_utf8_lossy(&run.stderr);
            if !said.contains("heap-buffer-overflow") {
                return Err(Problem::Wrong(format!("{}: the error was not found:\n{said}", run.what)));
            }
        }
    }
    Ok(())
}

/// Under valgrind, which makes system calls for the program that it knows, and for threads it runs one at a time. What it says on standard error
/// has process numbers in it.
fn on_valgrind(tool: &'static str, setting: Setting) -> Outcome {
    let valgrind = host::program("valgrind")?;
    let program = Program::new(valgrind)
        .arguments(["-q".to_owned(), format!("--tool={tool}"), "--error-exitcode=99".to_owned()])
        .arguments([host::compiled(PROGRAM)?])
        .arguments(["2"]);
    let native = program.start(None)?.wait()?;
    let managed = program.start(Some(setting))?.wait()?;
    crate::compare::report(&managed, &native);
    crate::compare::same("standard output", &native.stdout, &managed.stdout, &managed)?;
    let said = String::from_utf8_lossy(&managed.stderr);
    for run in [&native, &managed] {
        if run.code() != 0 {
            let said = String::from_utf8_lossy(&run.stderr);
            return Err(Problem::Wrong(format!("{}\nended with {}:\n{said}", run.what, run.code())));
        }
    }
    let is_managed = managed.stats.as_ref().is_some_and(|stats| stats.adopted_bytes > 0);
    if is_managed || said.lines().any(|line| line.starts_with("hetmem: ")) {
        return Ok(());
    }
    Err(Problem::Wrong(format!("{}\nwas unmanaged, and no line says why:\n{said}", managed.what)))
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for setting in [Setting::Chaos, Setting::Manual] {
        for &(name, compiler, flags) in SANITIZERS {
            let body = move || sanitized(name, compiler, flags, setting);
            trials.push(trial(format!("{}::sanitizers::{name}", setting.name()), body));
        }
        for tool in ["none", "memcheck"] {
            let body = move || on_valgrind(tool, setting);
            trials.push(trial(format!("{}::valgrind::{tool}", setting.name()), body));
        }
    }
    trials
}

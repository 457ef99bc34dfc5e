//! Programs with a runtime that must come first, maps most of the address space, and stands in front of the C library's functions itself.
//! They may run unmanaged, if a line says why; what they do must be the same.

use libtest_mimic::Trial;

use crate::compare::{Expect, compare};
use crate::launch::{Program, Setting};
use crate::{Outcome, Problem, host, trial};

/// Name, compiler, flags.
const SANITIZERS: &[(&str, &str, &[&str])] = &[("gcc_undefined", "gcc", &["-fsanitize=undefined"])];

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
    compare(&program, setting, &expect)?;
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

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for setting in [Setting::Chaos, Setting::Manual] {
        for &(name, compiler, flags) in SANITIZERS {
            let body = move || sanitized(name, compiler, flags, setting);
            trials.push(trial(format!("{}::sanitizers::{name}", setting.name()), body));
        }
    }
    trials
}

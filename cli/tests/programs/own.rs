//! The project's own test programs, one for each way in which a program can use memory. Each checks itself, too.

use libtest_mimic::Trial;

use crate::compare::{Expect, compare};
use crate::launch::{Program, Setting};
use crate::{host, trial};

/// Name, arguments, and the pages that must move under chaos.
const PROGRAMS: &[(&str, &[&str], u64)] = &[
    ("threads", &["24"], 100_000),
    ("forks", &["40", "2048"], 10_000),
    ("spawns", &["6"], 1_000),
    ("mappings", &["2000"], 20_000),
    ("regrow", &["6000"], 100_000),
    ("syscalls", &["100"], 10_000),
    ("signals", &["2000"], 10_000),
    ("guards", &["4000"], 10_000),
    ("userfault", &["40"], 1_000),
    ("descriptors", &["40"], 1_000),
];

/// The ways to end that `endings` knows.
const ENDINGS: &[&str] = &[
    "return",
    "exit-with-threads",
    "last-thread",
    "immediate",
    "exec",
    "exec-with-threads",
    "abort",
    "null",
    "terminate",
    "killed",
];

fn own(name: &'static str, arguments: &'static [&'static str], setting: Setting, least_moved: u64) -> Trial {
    trial(format!("{}::{name}", setting.name()), move || {
        let program = Program::new(host::compiled(name)?).arguments(arguments.iter().copied());
        compare(&program, setting, &Expect::moved(least_moved)).map(drop)
    })
}

pub(crate) fn trials() -> Vec<Trial> {
    let under_chaos = PROGRAMS.iter().map(|&(name, arguments, least)| own(name, arguments, Setting::Chaos, least));
    // More memory than the limit of 32 MiB.
    let under_limit = [
        own("threads", &["12", "8", "16384"], Setting::Limit, 10_000),
        own("forks", &["6", "12288"], Setting::Limit, 10_000),
    ];
    let endings = trial("chaos::endings", || {
        let binary = host::compiled("endings")?;
        for how in ENDINGS {
            let program = Program::new(&binary).arguments([*how]);
            compare(&program, Setting::Chaos, &Expect::moved(0))?;
        }
        Ok(())
    });
    under_chaos.chain(under_limit).chain([endings]).collect()
}

//! The project's own test programs, one for each way in which a program can use memory. Each checks itself, too.

use libtest_mimic::Trial;

use crate::compare::{Expect, compare};
use crate::launch::{Program, Setting};
use crate::{Length, host, trial};

/// A program, its arguments, and the pages that must move at least.
type Run = (&'static str, &'static [&'static str], u64);

/// As long as it takes to move several times the pages that must move.
const UNDER_CHAOS: &[Run] = &[
    ("threads", &["6"], 100_000),
    ("forks", &["10", "2048"], 10_000),
    ("spawns", &["6"], 1_000),
    ("mappings", &["2000"], 20_000),
    ("regrow", &["3000"], 100_000),
    ("syscalls", &["100"], 10_000),
    ("signals", &["2000"], 10_000),
    ("guards", &["2000"], 10_000),
    ("userfault", &["40"], 1_000),
    ("descriptors", &["40"], 1_000),
];
/// With more memory than the limit of 32 MiB.
const UNDER_LIMIT: &[Run] = &[
    ("threads", &["3", "8", "16384"], 10_000),
    ("forks", &["3", "12288"], 10_000),
    // Of 32 MiB the stock has four.
    ("stocked", &["29"], 8_000),
];
/// With several times the limit of 16 MiB, which both kinds of devices share.
const UNDER_TIERS: &[Run] = &[("threads", &["3", "8", "16384"], 10_000), ("forks", &["3", "12288"], 10_000)];
/// On compressed memory, with more memory than the limit of 32 MiB.
const COMPRESSED: &[Run] = &[("threads", &["3", "8", "16384"], 100_000), ("forks", &["3", "12288"], 10_000)];
/// On compressed memory that is full most of the time.
const COMPRESSED_CHAOS: &[Run] = &[
    ("threads", &["4"], 100_000),
    ("forks", &["6", "2048"], 10_000),
    ("mappings", &["1000"], 10_000),
    ("regrow", &["1500"], 10_000),
    ("signals", &["1000"], 1_000),
];
/// In a file, with more memory than the limit of 32 MiB.
const FILE: &[Run] = &[("threads", &["1", "8", "16384"], 100_000)];
/// In a file, at random.
const FILE_CHAOS: &[Run] =
    &[("threads", &["2"], 10_000), ("forks", &["3", "1024"], 10_000), ("descriptors", &["8"], 1_000)];

/// The same for as long as an interleaving that is met seldom may need.
const LONG_UNDER_CHAOS: &[Run] = &[
    ("threads", &["24"], 100_000),
    ("forks", &["40", "2048"], 10_000),
    ("regrow", &["6000"], 100_000),
    ("guards", &["4000"], 10_000),
];
const LONG_UNDER_LIMIT: &[Run] = &[("threads", &["12", "8", "16384"], 10_000), ("forks", &["6", "12288"], 10_000)];
const LONG_FILE: &[Run] = &[("threads", &["6", "8", "16384"], 100_000), ("forks", &["3", "12288"], 10_000)];
const LONG_FILE_CHAOS: &[Run] = &[
    ("threads", &["12"], 100_000),
    ("forks", &["10", "2048"], 10_000),
    ("mappings", &["1000"], 10_000),
    ("regrow", &["1500"], 10_000),
    ("syscalls", &["100"], 1_000),
    ("signals", &["1000"], 1_000),
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

fn own(&(name, arguments, least_moved): &Run, setting: Setting, length: Length) -> Trial {
    length.trial(format!("{}::{name}", setting.name()), move || {
        let program = Program::new(host::compiled(name)?).arguments(arguments.iter().copied());
        compare(&program, setting, &Expect::moved(least_moved)).map(drop)
    })
}

pub(crate) fn trials() -> Vec<Trial> {
    let tables = [
        (UNDER_CHAOS, Setting::Chaos, Length::Short),
        (UNDER_LIMIT, Setting::Limit, Length::Short),
        (UNDER_TIERS, Setting::Tiers, Length::Short),
        (COMPRESSED, Setting::Compressed, Length::Short),
        (COMPRESSED_CHAOS, Setting::CompressedChaos, Length::Short),
        (FILE, Setting::File, Length::Short),
        (FILE_CHAOS, Setting::FileChaos, Length::Short),
        (LONG_UNDER_CHAOS, Setting::Chaos, Length::Long),
        (LONG_UNDER_LIMIT, Setting::Limit, Length::Long),
        (LONG_FILE, Setting::File, Length::Long),
        (LONG_FILE_CHAOS, Setting::FileChaos, Length::Long),
    ];
    let programs =
        tables.into_iter().flat_map(|(runs, setting, length)| runs.iter().map(move |run| own(run, setting, length)));
    let endings = trial("chaos::endings", || {
        let binary = host::compiled("endings")?;
        for how in ENDINGS {
            let program = Program::new(&binary).arguments([*how]);
            compare(&program, Setting::Chaos, &Expect::moved(0))?;
        }
        Ok(())
    });
    let budget = |mode: &'static str, setting: Setting, more: &'static [&str]| {
        trial(format!("{}::budget::{mode}", setting.name()), move || {
            let program = Program::new(host::compiled("budget")?).arguments([mode]).arguments(more.iter().copied());
            compare(&program, setting, &Expect::moved(0)).map(drop)
        })
    };
    let budgets = [
        budget("tree", Setting::Limit, &["32"]),
        budget("idle", Setting::Limit, &["32"]),
        budget("device", Setting::Small, &["16", "24"]),
        budget("short", Setting::Limit, &["32"]),
        budget("forked", Setting::Limit, &["32"]),
        budget("exec", Setting::Limit, &["32"]),
        budget("tree", Setting::Compressed, &["32"]),
    ];
    programs.chain([endings]).chain(budgets).collect()
}

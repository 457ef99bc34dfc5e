//! Programs of our own with a case for each kind of thing that programs do to themselves: end threads, change what they may do, ask for limits.
//! A trial a case, so that each kind has a name.

use libtest_mimic::Trial;

use crate::compare::{Expect, compare};
use crate::launch::{Program, Setting};
use crate::{Outcome, Problem, host, trial};

/// Exit status of a program whose check failed.
const FAILED: i32 = 1;

/// A program, its cases, and the settings that each is tried in.
struct Cases {
    program: &'static str,
    cases: &'static [&'static str],
    settings: &'static [Setting],
    expect: Expect,
}

const CHAOS: &[Setting] = &[Setting::Chaos];
/// What goes wrong with every policy goes wrong where no page moves, too.
const EVERY: &[Setting] = &[Setting::Chaos, Setting::Manual];

const PROGRAMS: &[Cases] = &[
    Cases {
        program: "cancel",
        cases: &["exit", "read", "send", "sendto", "sendmsg", "vmsplice", "ioctl", "async", "pending", "alive"],
        settings: EVERY,
        expect: Expect::moved(100),
    },
    Cases {
        program: "thread_ends",
        cases: &["clone", "set-address", "pool", "pool-words", "robust", "inheriting", "robust-inheriting"],
        settings: CHAOS,
        expect: Expect::moved(1_000),
    },
    Cases {
        program: "last_thread",
        cases: &[
            "last-returns",
            "last-exits",
            "only-exits",
            "last-ends-bare",
            "only-ends-bare",
            "last-is-killed",
            "only-is-killed",
            "child-is-killed",
            "child-returns",
        ],
        settings: EVERY,
        expect: Expect::moved(100),
    },
    Cases {
        program: "bare_child",
        cases: &["fork", "thread", "mremap", "system", "popen", "malloc", "madvise", "exec"],
        settings: EVERY,
        expect: Expect::moved(1_000),
    },
    Cases {
        program: "state",
        cases: &["keepcaps", "no-capabilities", "ids", "bounded", "ids-in-threads", "dumpable"],
        settings: EVERY,
        expect: Expect::moved(100),
    },
    Cases {
        program: "state",
        cases: &["ids-exec", "children-exec", "effective-ids"],
        settings: EVERY,
        // Who has no permission for userfaultfd any more executes programs, and has children, that are not managed.
        expect: Expect { remarks: 5, ..Expect::moved(100) },
    },
    Cases {
        program: "sandbox",
        cases: &["filter-worker", "filter-first", "filter-threads", "unshare-mount"],
        settings: EVERY,
        expect: Expect::moved(100),
    },
    Cases {
        program: "sandbox",
        // What the agent's threads are in the way of, or can't work without.
        cases: &[
            "filter-all",
            "filter-all-worker",
            "unshare-user",
            "unshare-user-mount",
            "setns-mount",
            "setns-user",
            "chroot",
        ],
        settings: EVERY,
        expect: Expect { managed_to_the_end: false, remarks: 1, ..Expect::moved(100) },
    },
    Cases {
        program: "limits",
        cases: &[
            "mlockall",
            "mlockall-fork",
            "data",
            "data-late",
            "data-exhausted",
            "address-space",
            "descriptors",
            "descriptors-late",
            "mappings",
        ],
        settings: EVERY,
        expect: Expect::moved(100),
    },
    Cases {
        program: "limits",
        cases: &["descriptors-fork"],
        settings: EVERY,
        // The children have no descriptor for an agent of their own.
        expect: Expect { remarks: 1, ..Expect::moved(100) },
    },
    Cases {
        program: "limits",
        cases: &["mlockall-user"],
        settings: EVERY,
        // It ends at once, and locked memory stays where it is.
        expect: Expect { managed_to_the_end: false, ..Expect::moved(0) },
    },
    Cases {
        program: "userfault_move",
        cases: &["whole", "holes", "to-a-hole", "copied", "back"],
        settings: EVERY,
        expect: Expect::moved(1_000),
    },
    Cases { program: "bad_pointers", cases: &["all"], settings: CHAOS, expect: Expect::moved(100) },
    Cases {
        program: "bad_pointers",
        cases: &["all"],
        settings: &[Setting::Manual],
        // It ends at once.
        expect: Expect { managed_to_the_end: false, ..Expect::moved(0) },
    },
    Cases { program: "dropped", cases: &["setns"], settings: CHAOS, expect: Expect::moved(100) },
    Cases { program: "interrupted", cases: &["calls", "setns", "jumps"], settings: EVERY, expect: Expect::moved(100) },
    Cases { program: "residency", cases: &["written", "pieces"], settings: EVERY, expect: Expect::moved(1_000) },
    Cases {
        program: "unmap_all",
        cases: &["at-once", "at-first", "one-by-one", "others", "traced", "parent"],
        settings: EVERY,
        expect: Expect::moved(100),
    },
    Cases {
        program: "wiped",
        cases: &["wiped", "unmapped", "dropped"],
        settings: &[Setting::Chaos, Setting::Limit],
        expect: Expect::moved(1_000),
    },
    // What moves is moved by the program half of the time: on a busy machine a look finds little.
    Cases { program: "movers", cases: &["about"], settings: EVERY, expect: Expect::moved(500) },
    Cases {
        program: "sharers",
        cases: &["outlives"],
        settings: EVERY,
        // Each parent is left alone.
        expect: Expect { remarks: 1, ..Expect::moved(100) },
    },
    Cases {
        program: "files",
        cases: &["kinds", "changes", "written"],
        settings: &[Setting::Files],
        expect: Expect::moved(2_000),
    },
    Cases {
        program: "files_kept",
        cases: &["locks", "leases", "signals", "shared", "bounds", "writes", "many", "locked", "filtered"],
        settings: &[Setting::Files],
        expect: Expect::moved(1_000),
    },
    Cases {
        program: "files_kept",
        // Its program ends at once.
        cases: &["exec"],
        settings: &[Setting::Files],
        expect: Expect { managed_to_the_end: false, ..Expect::moved(1) },
    },
    Cases { program: "files_race", cases: &["2000"], settings: &[Setting::Files], expect: Expect::moved(2_000) },
    Cases { program: "vdso", cases: &["moved"], settings: EVERY, expect: Expect::moved(100) },
];

/// Runs one case, if the host lets it be tried.
fn run(program: &str, case: &str, setting: Setting, expect: &Expect) -> Outcome {
    let program = Program::new(host::compiled(program)?).arguments([case]);
    let expect = Expect { least_moved: setting.least_moved(expect.least_moved), ..expect.clone() };
    let (native, _) = compare(&program, setting, &expect)?;
    if native.code() == FAILED {
        let said = String::from_utf8_lossy(&native.stderr).into_owned();
        return Err(Problem::Wrong(format!("{}: it fails natively, too:\n{said}", native.what)));
    }
    Ok(())
}

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for Cases { program, cases, settings, expect } in PROGRAMS {
        for case in *cases {
            for &setting in *settings {
                let body = move || run(program, case, setting, expect);
                trials.push(trial(format!("{}::{program}::{case}", setting.name()), body));
            }
        }
    }
    trials
}

//! What a program that doesn't end is doing: each process and thread of its tree, as `/proc` tells it. And the end of it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// Lines of a process's memory map that a report shows.
const MOST_MAPPINGS: usize = 300;
/// Rounds of killing: a process may have been forking while its parent was found.
const MOST_ROUNDS: usize = 8;

/// A process and its descendants, wherever they have moved themselves (sessions, groups).
fn tree(root: u32) -> BTreeSet<u32> {
    let parents: Vec<(u32, u32, u32)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name in parentheses may hold anything; the fields after it are state, parent, group.
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(1);
            Some((pid, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .collect();
    let mut found = BTreeSet::from([root]);
    loop {
        let before = found.len();
        found.extend(
            parents
                .iter()
                .filter(|(_, parent, group)| found.contains(parent) || *group == root)
                .map(|p| p.0)
                .collect::<Vec<_>>(),
        );
        if found.len() == before {
            return found;
        }
    }
}

/// Kills the process `root` and all that it started.
pub(crate) fn kill_all(root: u32) {
    let mut last = BTreeSet::new();
    for _ in 0..MOST_ROUNDS {
        let now = tree(root);
        if now == last {
            return;
        }
        for pid in now.iter().filter_map(|&pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            // One that has just ended by itself can't be killed, and need not be.
            let _ = kill_process(pid, Signal::KILL);
        }
        last = now;
    }
}

/// States, waits, system calls and kernel stacks of all threads of the tree of `root`, then the memory maps.
pub(crate) fn report(root: u32) -> String {
    let mut text = String::new();
    let processes = tree(root);
    for pid in &processes {
        let _ = writeln!(text, "--- process {pid} ({})", read(&format!("/proc/{pid}/comm")));
        let mut threads: Vec<u32> = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        threads.sort_unstable();
        for thread in threads {
            let of = format!("/proc/{pid}/task/{thread}");
            let state = read(&format!("{of}/stat"));
            let state = state.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next()).unwrap_or("?");
            let (name, wait) = (read(&format!("{of}/comm")), read(&format!("{of}/wchan")));
            let _ = writeln!(
                text,
                "thread {thread} ({name}) {state} in {wait}; system call {}",
                read(&format!("{of}/syscall"))
            );
            let _ = writeln!(text, "{}", read(&format!("{of}/stack")));
        }
    }
    // Last, as these reads take the lock that a stuck process may hold.
    for pid in &processes {
        let maps = read(&format!("/proc/{pid}/maps"));
        let lines = maps.lines().count();
        let _ = writeln!(text, "--- {lines} mappings of {pid}");
        for line in maps.lines().take(MOST_MAPPINGS) {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|error| format!("[{error}]"), |text| text.trim_end().to_owned())
}

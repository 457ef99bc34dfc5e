//! Manual pages and completions: all are there, `mandoc` and `man` find nothing wrong with them, and shells can read them.
#![expect(clippy::print_stderr, reason = "a test that can't run here says so")]

mod support;
#[path = "support/tools.rs"]
mod tools;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{hetmem, output, status, stderr, stdout};

fn written() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let run = output(hetmem().arg("pages").arg(folder.path()));
    assert_eq!(status(&run), 0, "{}", stderr(&run));
    folder
}

fn manual_pages(folder: &Path) -> Vec<PathBuf> {
    let sections = ["man1", "man3", "man7"].map(|section| folder.join("man").join(section));
    sections.iter().flat_map(|section| fs::read_dir(section).unwrap()).map(|entry| entry.unwrap().path()).collect()
}

/// The program, if it is there; in CI it must be.
fn tool(name: &str) -> Option<Command> {
    let found = tools::installed(name);
    if found.is_none() {
        assert!(!tools::is_set("CI"), "CI must have {name}");
        eprintln!("not tried: {name} is not installed");
    }
    found.map(Command::new)
}

#[test]
fn every_command_that_help_lists_has_a_page_and_so_have_devices_policies_and_the_library() {
    let folder = written();
    let help = stdout(&output(hetmem().arg("--help")));
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // Others go on with what is said of one.
    let commands = commands.filter(|line| !line.starts_with("   "));
    let mut expected: BTreeSet<String> =
        commands.map(|line| format!("hetmem-{}.1", line.split_whitespace().next().unwrap())).collect();
    assert!(expected.contains("hetmem-run.1"), "{help}");
    expected.extend(["hetmem.1", "hetmem-devices.7", "hetmem-policies.7", "libhetmem.3"].map(str::to_owned));
    let there: BTreeSet<String> =
        manual_pages(folder.path()).iter().map(|page| page.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(there, expected);
}

#[test]
fn the_librarys_page_has_every_function_and_name_of_the_headers() {
    let folder = written();
    let page = fs::read_to_string(folder.path().join("man/man3/libhetmem.3")).unwrap().replace("\\fB", " ");
    let words = |text: &str| -> BTreeSet<String> {
        let word = |word: &&str| word.starts_with("hetmem_") || word.starts_with("HETMEM_");
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(word).map(str::to_owned).collect()
    };
    for header in [include_str!("../../include/hetmem.h"), include_str!("../../include/hetmem_mirror.h")] {
        let mut missing: Vec<String> = words(header).difference(&words(&page)).cloned().collect();
        // What keeps a header from being read twice.
        missing.retain(|name| !["HETMEM_H", "HETMEM_MIRROR_H"].contains(&name.as_str()));
        assert!(missing.is_empty(), "{missing:?}");
    }
}

#[test]
fn the_page_of_devices_has_every_key() {
    let folder = written();
    let page = fs::read_to_string(folder.path().join("man/man7/hetmem-devices.7")).unwrap();
    // What is known is told to who writes another.
    let refused = stderr(&output(hetmem().args(["run", "--device", "coherent:emulated,nothing=1", "--", "true"])));
    let (_, keys) = refused.trim_end().split_once("known: ").unwrap();
    assert!(keys.contains("size"), "{refused}");
    for key in keys.split(", ") {
        assert!(page.contains(&format!("{key}=")), "{key}");
    }
}

#[test]
fn mandoc_finds_nothing_wrong() {
    let folder = written();
    let Some(mut mandoc) = tool("mandoc") else { return };
    let checked = output(mandoc.args(["-T", "lint", "-W", "warning"]).args(manual_pages(folder.path())));
    let said = stdout(&checked);
    // They have none.
    let found: Vec<&str> = said.lines().filter(|line| !line.contains("cannot parse date")).collect();
    assert!(found.is_empty(), "{found:#?}");
    assert!(said.lines().count() >= 10, "every page is looked at: {said}");
}

#[test]
fn shells_can_read_the_completions() {
    let folder = written();
    let shells = [("bash", "bash-completion/completions/hetmem"), ("zsh", "zsh/site-functions/_hetmem")];
    for (shell, file) in shells {
        let file = folder.path().join(file);
        let Some(found) = tools::installed(shell) else {
            eprintln!("not tried: {shell} is not installed");
            continue;
        };
        let checked = output(Command::new(found).arg("-n").arg(&file));
        assert_eq!(status(&checked), 0, "{}", stderr(&checked));
    }
    // What bash makes of `hetmem ru`.
    let script = format!(
        "source {}; COMP_WORDS=(hetmem ru); COMP_CWORD=1; _hetmem hetmem ru hetmem; echo ${{COMPREPLY[@]}}",
        folder.path().join(shells[0].1).display()
    );
    let completed = output(Command::new("bash").args(["--norc", "-c", &script]));
    assert_eq!(stdout(&completed), "run\n", "{}", stderr(&completed));
    for file in
        ["bash-completion/completions/hetmem", "zsh/site-functions/_hetmem", "fish/vendor_completions.d/hetmem.fish"]
    {
        let text = fs::read_to_string(folder.path().join(file)).unwrap();
        assert!(text.contains("topology") && !text.contains("bench-target"), "{file}");
    }
    assert!(
        fs::read_to_string(folder.path().join("fish/vendor_completions.d/hetmem.fish")).unwrap().contains("-a \"run\"")
    );
}

#[test]
fn a_folder_that_cant_be_written_is_named_in_one_line() {
    let run = output(hetmem().args(["pages", "/proc/nowhere"]));
    assert_eq!(status(&run), 125);
    let said = stderr(&run);
    assert!(said.starts_with("hetmem: /proc/nowhere/man/") && said.lines().count() == 1, "{said}");
}

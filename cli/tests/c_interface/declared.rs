//! The header against the library: what is declared is what is exported, and numbers mean the same.

use std::collections::BTreeSet;

use elf::ElfBytes;
use elf::endian::AnyEndian;
use hetmem::KeptReason;

use super::{Checked, Problem, expect, installed};

/// What the library puts in front of the C library's, besides the interface.
const INTERPOSED: [&str; 30] = [
    "_Fork",
    "__sigaction",
    "__sysv_signal",
    "bsd_signal",
    "clone",
    "daemon",
    "fork",
    "ioctl",
    "madvise",
    "mincore",
    "mlockall",
    "mremap",
    "munmap",
    "prctl",
    "process_madvise",
    "pthread_create",
    "pthread_mutex_init",
    "send",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setns",
    "sigaction",
    "signal",
    "sigset",
    "ssignal",
    "syscall",
    "sysv_signal",
    "unshare",
    "vmsplice",
];

fn wrong(error: impl std::fmt::Display) -> Problem {
    Problem::Wrong(error.to_string())
}

/// All that is declared, in both files.
fn header() -> Checked<String> {
    let read = |name: &str| std::fs::read_to_string(installed().join("include").join(name)).map_err(wrong);
    Ok(read("hetmem.h")? + &read("hetmem_mirror.h")?)
}

/// The header without its comments.
fn code(header: &str) -> String {
    let parts = header.split("/*").enumerate();
    parts.map(|(i, part)| if i == 0 { part } else { part.split_once("*/").map_or("", |(_, rest)| rest) }).collect()
}

/// The functions that the header declares: a name before a parenthesis, outside comments and macros.
fn functions(header: &str) -> BTreeSet<String> {
    let code = code(header);
    let lines = code.lines().filter(|line| !line.starts_with('#'));
    let before_parenthesis = lines.filter_map(|line| line.split_once('('));
    let words = before_parenthesis.filter_map(|(before, _)| before.rsplit([' ', '*']).next());
    words.filter(|word| word.starts_with("hetmem_")).map(str::to_owned).collect()
}

fn exported() -> Checked<BTreeSet<String>> {
    let library = std::fs::read(installed().join("lib/libhetmem.so")).map_err(wrong)?;
    let elf = ElfBytes::<AnyEndian>::minimal_parse(&library).map_err(wrong)?;
    let (symbols, names) =
        elf.dynamic_symbol_table().map_err(wrong)?.ok_or_else(|| wrong("the library exports nothing"))?;
    let exported = symbols.iter().filter(|symbol| !symbol.is_undefined() && symbol.st_bind() != elf::abi::STB_LOCAL);
    exported
        .map(|s| usize::try_from(s.st_name).map_err(wrong).and_then(|at| names.get(at).map_err(wrong)))
        .map(|n| n.map(str::to_owned))
        .collect()
}

pub(crate) fn symbols() -> Checked {
    let mut declared = functions(&header()?);
    expect(declared.len() > 20, || format!("only these functions were found in the header: {declared:?}"))?;
    declared.extend(INTERPOSED.map(str::to_owned));
    let exported = exported()?;
    expect(declared == exported, || {
        format!(
            "declared and not exported: {:?}; exported and not declared: {:?}",
            declared.difference(&exported).collect::<Vec<_>>(),
            exported.difference(&declared).collect::<Vec<_>>()
        )
    })
}

/// A thread that is cancelled is unwound through what is interposed.
pub(crate) fn landing_pads() -> Checked {
    let (all, mut padded) =
        crate::landing_pads::exported(&installed().join("lib/libhetmem.so")).map_err(Problem::Wrong)?;
    // The interface's own functions are not to be called in a thread that may be cancelled at any time.
    padded.retain(|name| !name.starts_with("hetmem_"));
    expect(INTERPOSED.iter().all(|name| all.iter().any(|other| other == name)), || {
        format!("only {all:?} is exported")
    })?;
    expect(padded.is_empty(), || format!("these have landing pads: {padded:?}"))
}

/// The value of a constant of an enum.
fn constant(code: &str, name: &str) -> Option<usize> {
    let (_, after) = code.split_once(&format!("{name} = "))?;
    after.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

pub(crate) fn outcomes() -> Checked {
    let code = code(&header()?);
    expect(constant(&code, "HETMEM_MOVED") == Some(0), || "HETMEM_MOVED is not 0".to_owned())?;
    expect(code.matches("HETMEM_KEPT_").count() == KeptReason::ALL.len(), || {
        "the header has not as many reasons as there are".to_owned()
    })?;
    for reason in KeptReason::ALL {
        let name = format!("HETMEM_KEPT_{}", reason.label().to_uppercase());
        let (found, wanted) = (constant(&code, &name), reason.index() + 1);
        expect(found == Some(wanted), || format!("{name} is {found:?}, not {wanted}"))?;
    }
    Ok(())
}

pub(crate) fn versions() -> Checked {
    let header = header()?;
    let part = |name: &str| {
        let line = header.lines().find_map(|line| line.strip_prefix(&format!("#define HETMEM_VERSION_{name} ")));
        line.unwrap_or_default().to_owned()
    };
    let version = [part("MAJOR"), part("MINOR"), part("PATCH")].join(".");
    expect(version == env!("CARGO_PKG_VERSION"), || format!("the header is of {version}"))?;
    let pc = std::fs::read_to_string(installed().join("lib/pkgconfig/hetmem.pc")).map_err(wrong)?;
    expect(pc.lines().any(|line| line == format!("Version: {version}")), || pc)
}

//! `hetmem doctor`: each thing that hetmem can use on this host, whether it is there, and what would fix it.

mod checks;

use std::fmt;

use hetmem_sys::probe::Capabilities;
use serde::Serialize;

use crate::args::DoctorArgs;
use crate::failure::Failure;
use crate::host;
use crate::shown;

/// Exit status when `hetmem run` can't work here.
const CANNOT_RUN: u8 = 1;

/// Whether a thing can be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// All of it.
    Present,
    /// In part.
    Limited,
    /// Not at all.
    Absent,
}

impl State {
    const fn label(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Limited => "limited",
            Self::Absent => "absent",
        }
    }
}

/// One thing that hetmem can use.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    /// Whether `hetmem run` can't work without it.
    required: bool,
    detail: String,
    /// What would make it present.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Findings {
    /// Whether `hetmem run` can work.
    can_run: bool,
    checks: Vec<Check>,
}

/// Looks at the host and prints what was found; the result is the exit status.
pub(crate) fn run(args: &DoctorArgs) -> Result<u8, Failure> {
    let found = Capabilities::probe();
    let checks = checks::all(&found);
    let required = checks.iter().all(|check| !check.required || check.state != State::Absent);
    let findings = Findings { can_run: required && host::obstacle(&found).is_none(), checks };
    let text = if args.json {
        let mut text = serde_json::to_string_pretty(&findings).expect("strings and booleans are JSON");
        text.push('\n');
        text
    } else {
        findings.to_string()
    };
    shown::print(&text, "the findings")?;
    Ok(if findings.can_run { 0 } else { CANNOT_RUN })
}

/// A table, and the conclusion.
impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        for check in &self.checks {
            writeln!(f, "{:<width$}  {:<7}  {}", check.name, check.state.label(), check.detail)?;
            if let Some(fix) = &check.fix {
                writeln!(f, "{:<width$}  {:<7}  -> {fix}", "", "")?;
            }
        }
        let conclusion = if self.can_run { "hetmem run can work here." } else { "hetmem run can't work here." };
        writeln!(f, "\n{conclusion}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_fixes_stand_below() {
        let check = |name, state, fix| Check { name, state, required: true, detail: "detail".into(), fix };
        let findings = Findings {
            can_run: false,
            checks: vec![check("a", State::Present, None), check("long name", State::Absent, Some("do it".into()))],
        };
        assert_eq!(
            findings.to_string(),
            "a          present  detail\n\
             long name  absent   detail\n\
             \x20                   -> do it\n\
             \nhetmem run can't work here.\n"
        );
    }
}

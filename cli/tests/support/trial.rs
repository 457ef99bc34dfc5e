//! Trials of C programs, and what becomes of them. What the host doesn't have makes one *ignored*, with the reason beside it; with `CI` set, it makes
//! it fail.

use std::path::Path;

use libtest_mimic::{Completion, Failed, Trial};

use crate::landing_pads;

/// A failed expectation, or what is missing for the test.
pub(crate) enum Problem {
    Missing(String),
    Wrong(String),
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self::Wrong(text)
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Self::Wrong(error.to_string())
    }
}

pub(crate) type Checked<T = ()> = Result<T, Problem>;

/// Makes `body` a test of the harness.
pub(crate) fn trial(name: impl Into<String>, body: impl FnOnce() -> Checked + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match body() {
        Ok(()) => Ok(Completion::Completed),
        Err(Problem::Missing(what)) if std::env::var_os("CI").is_some() => {
            Err(Failed::from(format!("CI must have everything: {what}")))
        }
        Err(Problem::Missing(what)) => Ok(Completion::ignored_with(what)),
        Err(Problem::Wrong(what)) => Err(Failed::from(what)),
    })
}

/// Fails unless `holds`, saying `what`.
pub(crate) fn expect(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Problem::Wrong(what())) }
}

/// A thread that is cancelled is unwound through what `library` puts in front of the C library's. Functions of the interface are not to be called in
/// a thread that may be cancelled at any time.
pub(crate) fn interposed_can_be_unwound(library: &Path) -> Checked {
    let (all, mut padded) = landing_pads::exported(library)?;
    padded.retain(|name| !name.starts_with("hetmem_"));
    expect(all.iter().any(|name| name == "ioctl"), || format!("only {all:?} is exported"))?;
    expect(padded.is_empty(), || format!("these have landing pads: {padded:?}"))
}

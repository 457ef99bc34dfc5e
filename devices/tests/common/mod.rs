//! What the tests of several backends share.

use std::io::Write as _;

/// Says on the real standard error, which the harness doesn't catch, why the calling test does not run.
pub(crate) fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    // A standard error that is gone is no reason to fail.
    let _ = std::io::stderr().write_all(format!("skipped {test}: {why}\n").as_bytes());
}

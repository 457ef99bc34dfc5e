//! `valgrind --tool=lackey --trace-mem=yes`: a line for each access.
//!
//! ```text
//! I  04000ac0,3       instruction fetch: code is file-backed, and left out
//!  L 1ffeffe7e,8      load
//!  S 1ffeffe7e,8      store
//!  M 0421c8a8,4       modify: load and store
//! ==12345== …         valgrind's own lines, passed over
//! ```
//!
//! *Limits:* it has no times: an access is taken to last [`ACCESS`] nanoseconds. What the program itself prints among the lines is an error where it
//! looks like none of them; valgrind writes them to a file with `--log-file`.

use std::io::{BufRead, Read as _};

use hetmem_core::units::PAGE_SHIFT;

use super::Batches;
use crate::error::TraceError;

/// Nanoseconds from one access to the next.
const ACCESS: u64 = 1;
/// Longer than any line of lackey's.
const LONGEST: u64 = 4096;

/// Whether a file that begins so may be one of lackey's.
pub(crate) fn is_one(beginning: &[u8]) -> bool {
    let line = beginning.split(|byte| *byte == b'\n').find(|line| !line.is_empty()).unwrap_or_default();
    is_of_valgrind(line) || access(line).is_some()
}

/// A line that valgrind writes about itself.
fn is_of_valgrind(line: &[u8]) -> bool {
    line.starts_with(b"==") || line.starts_with(b"--")
}

/// What a line says: kind, address, length.
fn access(line: &[u8]) -> Option<(u8, u64, u64)> {
    let (kind, rest) = match line {
        [b'I', b' ', b' ', rest @ ..] => (b'I', rest),
        [b' ', kind @ (b'L' | b'S' | b'M'), b' ', rest @ ..] => (*kind, rest),
        _ => return None,
    };
    let (mut address, mut digits, mut rest) = (0_u64, 0, rest);
    while let [byte, after @ ..] = rest
        && let Some(digit) = char::from(*byte).to_digit(16)
    {
        (address, digits, rest) = (address << 4 | u64::from(digit), digits + 1, after);
    }
    let [b',', length @ ..] = rest else { return None };
    if !(1..=16).contains(&digits) || length.is_empty() || length.len() > 6 {
        return None;
    }
    let length = length
        .iter()
        .try_fold(0, |length, byte| byte.is_ascii_digit().then(|| length * 10 + u64::from(byte - b'0')))?;
    Some((kind, address, length))
}

/// Reads all of it.
pub(crate) fn read(mut from: impl BufRead, into: &mut Batches<'_>) -> Result<(), TraceError> {
    let (mut line, mut time) = (Vec::new(), 0);
    for number in 1.. {
        line.clear();
        if (&mut from).take(LONGEST).read_until(b'\n', &mut line).map_err(TraceError::Read)? == 0 {
            break;
        }
        let is_whole = line.pop_if(|last| *last == b'\n').is_some();
        line.pop_if(|last| *last == b'\r');
        if line.is_empty() || is_of_valgrind(&line) {
            continue;
        }
        let Some((kind, address, length)) = access(&line) else {
            // The program was killed in the middle of it.
            if !is_whole && (line.len() as u64) < LONGEST && number > 1 {
                break;
            }
            let text = String::from_utf8_lossy(&line[..line.len().min(40)]).into_owned();
            return Err(TraceError::Line { line: number, text });
        };
        if kind == b'I' {
            continue;
        }
        let last = address.saturating_add(length.saturating_sub(1));
        for page in address >> PAGE_SHIFT..=last >> PAGE_SHIFT {
            into.touch(page & (hetmem_core::record::MOST_PAGES - 1), kind != b'L', time);
        }
        time += ACCESS;
    }
    Ok(())
}

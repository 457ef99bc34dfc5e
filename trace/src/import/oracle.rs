//! oracleGeneral of libCacheSim: 24 bytes for each request, little endian.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0–3 | time in seconds |
//! | 4–11 | the object |
//! | 12–15 | its size in bytes |
//! | 16–23 | when it is requested next, as a number of requests, signed; -1 or 2^63-1 for never |
//!
//! *Limits:* each object is taken for one page, whatever its size. Requests of one second come a microsecond after one another. Objects whose
//! number has more than 48 bits get another one, by a hash. Numbers that are hashes have nearly every object in a block of its own; then hetmem's
//! policies, which go round by blocks, take a time for each miss that grows with the number of objects.

use std::io::BufRead;

use hetmem_core::record::MOST_PAGES;

use super::Batches;
use crate::error::TraceError;
use crate::format::read_up_to;
use crate::space::mix;

const REQUEST: usize = 24;
/// Nanoseconds from a request to the next of the same second.
const REQUEST_TIME: u64 = 1000;

fn word<const N: usize>(request: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|byte| request[at + byte])
}

/// Whether a file that begins so may be one: nothing names the format, so times must not go back, nor sizes be out of the ordinary, nor a next
/// request be in the past.
pub(crate) fn is_one(beginning: &[u8]) -> bool {
    let requests = beginning.chunks_exact(REQUEST);
    let mut last = 0;
    let fits = |(number, request): (usize, &[u8])| {
        let time = u32::from_le_bytes(word(request, 0));
        let size = u32::from_le_bytes(word(request, 12));
        let next = i64::from_le_bytes(word(request, 16));
        let in_order = time >= last && (number == 0 || time - last < 1 << 24);
        last = time;
        in_order && size < 1 << 30 && (next < 0 || next > i64::try_from(number).unwrap_or(i64::MAX))
    };
    beginning.len() >= REQUEST && requests.enumerate().all(fits)
}

/// Reads all of it.
pub(crate) fn read(mut from: impl BufRead, into: &mut Batches<'_>) -> Result<(), TraceError> {
    const SECOND: u64 = 1_000_000_000;
    // As many as fill a page of memory each.
    let mut buffer = vec![0; REQUEST * 4096];
    let (mut record, mut first, mut now) = (0, None, 0);
    loop {
        let filled = read_up_to(&mut from, &mut buffer)?;
        for request in buffer[..filled].chunks_exact(REQUEST) {
            record += 1;
            let time = u64::from(u32::from_le_bytes(word(request, 0)));
            let object = u64::from_le_bytes(word(request, 4));
            let page = if object < MOST_PAGES { object } else { mix(object) % MOST_PAGES };
            // A second has many requests, one after the other.
            now = (time.saturating_sub(*first.get_or_insert(time)) * SECOND).max(now + REQUEST_TIME);
            into.touch(page, false, now);
        }
        let rest = filled % REQUEST;
        if rest != 0 {
            return Err(TraceError::CutOff { record: record + 1, bytes: rest });
        }
        if filled < buffer.len() {
            return Ok(());
        }
    }
}

//! Why a trace can't be read or written.

use std::io;

use thiserror::Error;

use crate::format::VERSION;

/// What is wrong with a trace, and where.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file can't be read.
    #[error("it can't be read")]
    Read(#[source] io::Error),
    /// It is a trace of another version of hetmem's format.
    #[error("it is a trace of format {found}, and this hetmem reads format {VERSION}")]
    Version {
        /// Its format.
        found: u32,
    },
    /// Something in it is not what was written.
    #[error("{what} at byte {at} of the file; the {records} records before it are sound")]
    Damaged {
        /// What.
        what: &'static str,
        /// Where it begins.
        at: u64,
        /// How many whole records there are before.
        records: u64,
    },
    /// What describes a recording is not what was written.
    #[error("what it says of its recording is damaged: {0}")]
    Header(#[source] serde_json::Error),
    /// Nothing by which it could be known.
    #[error(
        "it is no trace that is known: neither one of hetmem, nor lackey's text, nor damo's JSON, nor oracleGeneral's \
         records; --format says which it is"
    )]
    Unknown,
    /// A line of a text is not what it should be.
    #[error("line {line} is not one of lackey: `{text}`; a line of it is like ` L 1ffeffe7e,8`")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// Its beginning.
        text: String,
    },
    /// The JSON is not damo's.
    #[error("it is not what `damo report access --json` writes")]
    Json(#[source] serde_json::Error),
    /// Something in damo's JSON makes no sense.
    #[error("damo's snapshot {snapshot} has {what}")]
    Snapshot {
        /// Its number, from 1.
        snapshot: u64,
        /// What.
        what: String,
    },
    /// It ends in the middle of a record.
    #[error("record {record} is cut off: oracleGeneral has 24 bytes for each, and {bytes} are left")]
    CutOff {
        /// Its number, from 1.
        record: u64,
        /// What is left.
        bytes: usize,
    },
}

//! A file with a trace, whoever recorded it.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::str::FromStr;

use hetmem_core::record::Record;

use crate::error::TraceError;
use crate::format::{self, Ending, Reader, Recording};
use crate::import::{Batches, damo, lackey, oracle};

/// Who recorded a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// hetmem's own ([`crate::format`]).
    Hetmem,
    /// `valgrind --tool=lackey --trace-mem=yes`.
    Lackey,
    /// libCacheSim: its oracleGeneral.
    Oracle,
    /// `damo report access --json`.
    Damo,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Hetmem, Self::Lackey, Self::Oracle, Self::Damo];

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hetmem => "hetmem",
            Self::Lackey => "lackey",
            Self::Oracle => "oracleGeneral",
            Self::Damo => "damo",
        }
    }

    fn of(beginning: &[u8]) -> Option<Self> {
        let fits = |format: &Self| match format {
            Self::Hetmem => format::is_ours(beginning),
            Self::Lackey => lackey::is_one(beginning),
            Self::Damo => damo::is_one(beginning),
            Self::Oracle => oracle::is_one(beginning),
        };
        // The one that is known by nothing but its numbers comes last.
        [Self::Hetmem, Self::Lackey, Self::Damo, Self::Oracle].into_iter().find(fits)
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|format| format.name() == text);
        found.ok_or_else(|| format!("unknown format `{text}`; the formats are {names}"))
    }
}

/// What is known of a trace besides its records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Played {
    /// Who recorded it.
    pub format: Format,
    /// What was recorded, of hetmem's own.
    pub recording: Option<Recording>,
    /// How it ended.
    pub ending: Ending,
}

/// As much of a file is looked at to find out what it is.
const BEGINNING: u64 = 4096;
const ZSTD: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// Reads the trace in the file at `path`, and hands all of its records to `sink`, batch after batch. A file that zstd has
/// compressed is decompressed.
///
/// # Errors
///
/// If it can't be read, or is not what it should be. What came before was handed to `sink`.
pub fn play(path: &Path, format: Option<Format>, sink: &mut dyn FnMut(&[Record])) -> Result<Played, TraceError> {
    let mut file = BufReader::with_capacity(1 << 17, File::open(path).map_err(TraceError::Read)?);
    if file.fill_buf().map_err(TraceError::Read)?.starts_with(&ZSTD) {
        let plain = zstd::stream::read::Decoder::with_buffer(file).map_err(TraceError::Read)?;
        play_plain(BufReader::with_capacity(1 << 17, plain), format, sink)
    } else {
        play_plain(file, format, sink)
    }
}

fn play_plain(
    mut from: impl BufRead,
    format: Option<Format>,
    sink: &mut dyn FnMut(&[Record]),
) -> Result<Played, TraceError> {
    let mut beginning = Vec::new();
    from.by_ref().take(BEGINNING).read_to_end(&mut beginning).map_err(TraceError::Read)?;
    let format = format.or_else(|| Format::of(&beginning)).ok_or(TraceError::Unknown)?;
    let from = Cursor::new(beginning).chain(from);
    let (mut recording, mut ending) = (None, Ending::Whole);
    match format {
        Format::Hetmem => {
            let mut reader = Reader::begin(from)?;
            recording = Some(reader.recording().clone());
            let mut records = Vec::with_capacity(format::FRAME_RECORDS);
            ending = loop {
                match reader.read(&mut records)? {
                    Some(ending) => break ending,
                    None => sink(&records),
                }
            };
        }
        Format::Lackey => lackey::read(from, &mut Batches::new(sink))?,
        Format::Oracle => oracle::read(from, &mut Batches::new(sink))?,
        Format::Damo => damo::read(from, &mut Batches::new(sink))?,
    }
    Ok(Played { format, recording, ending })
}

//! hetmem's own traces: a stream of zstd frames.
//!
//! ```text
//! skippable frame   "hetmem-trace", the format's number, what was recorded (JSON)
//! skippable frame   how long the frame behind it is, how many records it has
//! frame             records of 16 bytes, little endian; with a checksum
//! …                 pairs of these
//! ```
//!
//! So `zstd -dc` makes the records of a trace. [`Writer`] writes a frame when it is full, or when it is told to: what is lost when it is killed is
//! the frame that it was at. [`Reader`] reads up to that.
//!
//! *Limits:* the writer buffers one frame (1 MiB), and so does the reader.

use std::io::{self, BufRead, Read, Write};

use hetmem_core::record::Record;
use serde::{Deserialize, Serialize};
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{CParameter, compress_bound};

use crate::error::TraceError;

/// Changes whenever older readers would misread the records.
pub const VERSION: u32 = 1;
/// Bytes of a record.
pub const RECORD: usize = 16;
/// Records of a frame at most.
pub const FRAME_RECORDS: usize = 1 << 16;

const MAGIC: &[u8; 12] = b"hetmem-trace";
/// The magic numbers of the skippable frames: two of the sixteen that zstd reserves.
const HEADER_FRAME: u32 = 0x184D_2A5A;
const LENGTH_FRAME: u32 = 0x184D_2A5B;
/// More than what describes any recording takes.
const MOST_HEADER: usize = 1 << 20;
/// Fast: a writer runs beside the program.
const LEVEL: i32 = 1;

/// What was recorded.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Recording {
    /// The hetmem that recorded.
    pub hetmem: String,
    /// The program's name.
    pub program: String,
    /// The policy, as on the command line.
    pub policy: String,
    /// The devices, as on the command line, in order.
    pub devices: Vec<String>,
    /// Populated system memory that each process keeps for pages on their way home, in bytes.
    pub stock_bytes: u64,
}

/// Writes a trace.
pub struct Writer<W: Write> {
    to: W,
    compressor: Compressor<'static>,
    /// Records of the frame to come.
    raw: Vec<u8>,
    compressed: Vec<u8>,
    written: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a trace of `recording`.
    ///
    /// # Errors
    ///
    /// If it can't be written.
    pub fn begin(mut to: W, recording: &Recording) -> io::Result<Self> {
        let mut payload = MAGIC.to_vec();
        payload.extend(VERSION.to_le_bytes());
        payload.extend(serde_json::to_vec(recording)?);
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut frame = HEADER_FRAME.to_le_bytes().to_vec();
        frame.extend(length.to_le_bytes());
        frame.extend(payload);
        to.write_all(&frame)?;
        let mut compressor = Compressor::new(LEVEL)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true))?;
        let (raw, compressed) = (Vec::with_capacity(FRAME_RECORDS * RECORD), Vec::new());
        Ok(Self { to, compressor, raw, compressed, written: frame.len() as u64 })
    }

    /// Adds a record; writes a frame if it is full.
    ///
    /// # Errors
    ///
    /// If it can't be written. The trace ends at its last whole frame then.
    pub fn push(&mut self, words: [u64; 2]) -> io::Result<()> {
        words.iter().for_each(|word| self.raw.extend(word.to_le_bytes()));
        if self.raw.len() < FRAME_RECORDS * RECORD { Ok(()) } else { self.flush() }
    }

    /// Whether records wait for their frame to be written.
    pub fn has_unwritten(&self) -> bool {
        !self.raw.is_empty()
    }

    /// How many bytes were written.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// How many bytes [`flush`](Writer::flush) writes at most.
    pub fn pending(&self) -> u64 {
        (compress_bound(self.raw.len()) + 16) as u64
    }

    /// What is written to.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.to
    }

    /// Writes what there is as a frame.
    ///
    /// # Errors
    ///
    /// If it can't be written.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let records = u32::try_from(self.raw.len() / RECORD).map_err(io::Error::other)?;
        self.compressed.clear();
        self.compressed.reserve(compress_bound(self.raw.len()));
        let length = self.compressor.compress_to_buffer(&self.raw, &mut self.compressed)?;
        self.raw.clear();
        let length = u32::try_from(length).map_err(io::Error::other)?;
        let mut head = [0; 16];
        for (place, word) in head.chunks_exact_mut(4).zip([LENGTH_FRAME, 8, length, records]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        self.to.write_all(&head)?;
        self.to.write_all(&self.compressed)?;
        self.written += (head.len() + self.compressed.len()) as u64;
        self.to.flush()
    }
}

/// How a trace ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// As it was meant to.
    Whole,
    /// It was cut off: it ends with its last whole frame.
    CutOff,
}

/// Reads a trace, frame by frame.
pub struct Reader<R> {
    from: R,
    recording: Recording,
    decompressor: Decompressor<'static>,
    compressed: Vec<u8>,
    raw: Vec<u8>,
    at: u64,
    records: u64,
    ended: bool,
}

/// Whether a file that begins so is a trace of hetmem.
pub(crate) fn is_ours(beginning: &[u8]) -> bool {
    beginning.starts_with(&HEADER_FRAME.to_le_bytes()) && beginning.get(8..20) == Some(MAGIC)
}

impl<R: BufRead> Reader<R> {
    /// Reads what was recorded.
    ///
    /// # Errors
    ///
    /// If this is no trace, or one of another format.
    pub fn begin(mut from: R) -> Result<Self, TraceError> {
        let mut head = [0; 24];
        if read_up_to(&mut from, &mut head)? < head.len() || !is_ours(&head) {
            return Err(TraceError::Unknown);
        }
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| head[at + byte]));
        if word(20) != VERSION {
            return Err(TraceError::Version { found: word(20) });
        }
        let damaged = TraceError::Damaged { what: "the length of the header is damaged", at: 4, records: 0 };
        let Some(length) = (word(4) as usize).checked_sub(16).filter(|length| *length <= MOST_HEADER) else {
            return Err(damaged);
        };
        let mut json = vec![0; length];
        if read_up_to(&mut from, &mut json)? < length {
            return Err(damaged);
        }
        let recording = serde_json::from_slice(&json).map_err(TraceError::Header)?;
        let decompressor = Decompressor::new().map_err(TraceError::Read)?;
        let at = (head.len() + length) as u64;
        let (compressed, raw) = (Vec::new(), Vec::with_capacity(FRAME_RECORDS * RECORD));
        Ok(Self { from, recording, decompressor, compressed, raw, at, records: 0, ended: false })
    }

    /// What was recorded.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// Reads the records of the next frame into `records`, which loses what it had; `None` if there are more, or how it ended.
    ///
    /// # Errors
    ///
    /// If something is not as it was written. All records before were.
    pub fn read(&mut self, records: &mut Vec<Record>) -> Result<Option<Ending>, TraceError> {
        records.clear();
        let mut head = [0; 16];
        match read_up_to(&mut self.from, &mut head)? {
            0 if self.ended => return Ok(Some(Ending::Whole)),
            16 => {}
            _ => return Ok(Some(Ending::CutOff)),
        }
        let [magic, size, length, count] =
            std::array::from_fn(|word| u32::from_le_bytes(std::array::from_fn(|byte| head[word * 4 + byte])));
        let damaged = |what, at, records| Err(TraceError::Damaged { what, at, records });
        let bytes = count as usize * RECORD;
        if magic != LENGTH_FRAME
            || size != 8
            || count as usize > FRAME_RECORDS
            || length as usize > compress_bound(bytes)
        {
            return damaged("the head of a frame is damaged", self.at, self.records);
        }
        self.compressed.resize(length as usize, 0);
        if read_up_to(&mut self.from, &mut self.compressed)? < self.compressed.len() {
            return Ok(Some(Ending::CutOff));
        }
        self.raw.clear();
        self.raw.reserve(bytes);
        match self.decompressor.decompress_to_buffer(&self.compressed[..], &mut self.raw) {
            Ok(got) if got == bytes => {}
            _ => return damaged("a frame is damaged", self.at, self.records),
        }
        for record in self.raw.chunks_exact(RECORD) {
            let words =
                std::array::from_fn(|word| u64::from_le_bytes(std::array::from_fn(|byte| record[word * 8 + byte])));
            let Some(record) = Record::decode(words) else {
                return damaged("a frame has something that is no record", self.at, self.records);
            };
            self.ended = matches!(record, Record::End { .. });
            records.push(record);
        }
        self.at += (head.len() + self.compressed.len()) as u64;
        self.records += records.len() as u64;
        Ok(None)
    }
}

/// Fills `place` as far as there is something to read; how far.
pub(crate) fn read_up_to(from: &mut impl Read, place: &mut [u8]) -> Result<usize, TraceError> {
    let mut filled = 0;
    while filled < place.len() {
        match from.read(&mut place[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(TraceError::Read(error)),
        }
    }
    Ok(filled)
}

//! hetmem's own traces: what is written is read, what is cut off ends with its last whole frame, and what is damaged is said.

use std::path::PathBuf;

use hetmem_core::record::Record;
use hetmem_core::units::{PAGE_SIZE, PageCount, VirtAddr};
use hetmem_trace::format::{Ending, FRAME_RECORDS, Reader, Recording, VERSION, Writer};
use hetmem_trace::{Format, TraceError, play};
use proptest::prelude::*;

fn recording() -> Recording {
    Recording {
        hetmem: "0.1.0".into(),
        program: "a program".into(),
        policy: "limit=1M".into(),
        devices: vec!["private:emulated,size=64M,name=d".into()],
        stock_bytes: 4096,
    }
}

fn fault(number: u64) -> Record {
    Record::Fault { page: VirtAddr::new(number % 1000 * PAGE_SIZE), pages: 1, time: number * 1000 }
}

/// A trace of frames with so many records each, and where each frame ends.
fn trace(frames: &[usize], ends: bool) -> (Vec<u8>, Vec<usize>, Vec<Record>) {
    let (mut bytes, mut bounds, mut records) = (Vec::new(), Vec::new(), Vec::new());
    let mut writer = Writer::begin(&mut bytes, &recording()).unwrap();
    bounds.push(usize::try_from(writer.written()).unwrap());
    for (at, frame) in frames.iter().enumerate() {
        let mut all: Vec<Record> = (0..*frame as u64).map(|number| fault(number + records.len() as u64)).collect();
        if ends && at + 1 == frames.len() {
            all.push(Record::End { time: 9 });
        }
        all.iter().for_each(|record| writer.push(record.encode()).unwrap());
        writer.flush().unwrap();
        bounds.push(usize::try_from(writer.written()).unwrap());
        records.extend(all);
    }
    drop(writer);
    assert_eq!(bounds.last(), Some(&bytes.len()));
    (bytes, bounds, records)
}

fn read(bytes: &[u8]) -> (Vec<Record>, Result<Ending, TraceError>) {
    let mut all = Vec::new();
    let mut reader = match Reader::begin(bytes) {
        Ok(reader) => reader,
        Err(error) => return (all, Err(error)),
    };
    let mut records = Vec::new();
    loop {
        match reader.read(&mut records) {
            Ok(None) => all.append(&mut records),
            Ok(Some(ending)) => return (all, Ok(ending)),
            Err(error) => return (all, Err(error)),
        }
    }
}

#[test]
fn what_is_written_is_read() {
    let (bytes, _, records) = trace(&[3, FRAME_RECORDS - 1, 1, 7], true);
    let reader = Reader::begin(&bytes[..]).unwrap();
    assert_eq!(reader.recording(), &recording());
    let (found, ending) = read(&bytes);
    assert!(found == records);
    assert_eq!(ending.unwrap(), Ending::Whole);
}

#[test]
fn a_frame_is_written_when_it_is_full() {
    let mut bytes = Vec::new();
    let mut writer = Writer::begin(&mut bytes, &recording()).unwrap();
    let before = writer.written();
    (0..FRAME_RECORDS as u64 - 1).for_each(|number| writer.push(fault(number).encode()).unwrap());
    assert_eq!(writer.written(), before);
    assert!(writer.has_unwritten());
    let pending = writer.pending();
    writer.push(fault(1).encode()).unwrap();
    assert!(writer.written() > before && writer.written() - before <= pending + 32 && !writer.has_unwritten());
}

#[test]
fn a_trace_that_is_cut_off_anywhere_ends_with_its_last_whole_frame() {
    let (bytes, bounds, records) = trace(&[5, 40, 3], true);
    let ends = [0, 5, 45, 49];
    for length in 0..bytes.len() {
        let (found, ending) = read(&bytes[..length]);
        match bounds.iter().rposition(|bound| *bound <= length) {
            None => assert!(ending.is_err(), "{length}: it says of nothing what it is"),
            Some(whole) => {
                assert!(found == records[..ends[whole]], "{length}");
                assert_eq!(ending.unwrap(), Ending::CutOff, "{length}");
            }
        }
    }
}

#[test]
fn a_recording_without_an_end_was_cut_off() {
    let (bytes, _, records) = trace(&[5, 3], false);
    let (found, ending) = read(&bytes);
    assert!(found == records);
    assert_eq!(ending.unwrap(), Ending::CutOff);
}

/// One clear line, or what is before it.
#[test]
fn any_bit_may_be_wrong() {
    let (bytes, _, records) = trace(&[5, 40, 3], true);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            let (found, ending) = read(&damaged);
            assert!(records.starts_with(&found), "{at} {bit}: what is handed on is what was written");
            match ending {
                Err(error) => {
                    let message = error.to_string();
                    assert!(!message.is_empty() && !message.contains('\n'), "{message}");
                }
                // Some bits of a frame's head say nothing.
                Ok(Ending::Whole) => assert!(found == records, "{at} {bit}: it is not noticed"),
                Ok(Ending::CutOff) => {}
            }
        }
    }
}

#[test]
fn another_version_is_named() {
    let (mut bytes, ..) = trace(&[1], true);
    bytes[20..24].copy_from_slice(&(VERSION + 1).to_le_bytes());
    let (_, ending) = read(&bytes);
    let message = ending.unwrap_err().to_string();
    assert_eq!(message, format!("it is a trace of format {}, and this hetmem reads format {VERSION}", VERSION + 1));
}

fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn a_trace_is_known_by_what_is_in_it_compressed_once_more_or_not() {
    let (bytes, _, records) = trace(&[50, 3], true);
    for bytes in [bytes.clone(), zstd::encode_all(&bytes[..], 1).unwrap()] {
        let (_folder, path) = file(&bytes);
        let mut found = Vec::new();
        let played = play(&path, None, &mut |some| found.extend_from_slice(some)).unwrap();
        assert_eq!((played.format, played.ending), (Format::Hetmem, Ending::Whole));
        assert_eq!(played.recording, Some(recording()));
        assert!(found == records);
    }
    let (_folder, path) = file(&bytes);
    let raw = zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap();
    assert_eq!(raw.len(), records.len() * 16, "zstd makes the records of it");
}

#[test]
fn what_is_no_trace_is_said_to_be_none() {
    for bytes in [&b""[..], b"x", b"hello, world\n", &[0xff; 100]] {
        let (_folder, path) = file(bytes);
        let error = play(&path, None, &mut |_| panic!("there are no records")).unwrap_err();
        assert!(matches!(error, TraceError::Unknown), "{error}");
    }
    let (_folder, path) = file(b"hello");
    assert!(play(&path, Some(Format::Hetmem), &mut |_| {}).is_err());
    assert!(matches!(play(&path.join("no"), None, &mut |_| {}), Err(TraceError::Read(_))));
}

proptest! {
    #[test]
    fn any_records_are_read_as_they_were_written(
        words in prop::collection::vec((1..14_u64, any::<u64>(), any::<u64>()), 0..500),
        frame in 1..100_usize,
    ) {
        let records: Vec<Record> = words
            .iter()
            .filter_map(|(kind, first, second)| Record::decode([first & !0xff | kind, *second]))
            .filter(|record| !matches!(record, Record::End { .. }))
            .chain([Record::Tick { anonymous: PageCount::ONE, time: 1 }, Record::End { time: 2 }])
            .collect();
        let mut bytes = Vec::new();
        let mut writer = Writer::begin(&mut bytes, &Recording::default()).unwrap();
        for records in records.chunks(frame) {
            records.iter().for_each(|record| writer.push(record.encode()).unwrap());
            writer.flush().unwrap();
        }
        drop(writer);
        let (found, ending) = read(&bytes);
        prop_assert_eq!(found, records);
        prop_assert_eq!(ending.unwrap(), Ending::Whole);
    }

    #[test]
    fn whatever_is_in_a_file_it_is_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        beginning in 0..6_usize,
    ) {
        let beginnings: [&[u8]; 6] =
            [b"", b" L 1ffeffe7e,8\n", b"[{\"snapshots\": [", b"[", &[0x28, 0xB5, 0x2F, 0xFD], b"==1== "];
        let (_folder, path) = file(&[beginnings[beginning], &bytes].concat());
        for format in [None].into_iter().chain(Format::ALL.map(Some)) {
            if let Err(error) = play(&path, format, &mut |_| {}) {
                let message = error.to_string();
                prop_assert!(!message.contains('\n'), "{}", message);
            }
        }
    }
}

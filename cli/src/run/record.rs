//! `--record`: a thread takes what the processes of the run leave in their rings, and writes it down.
//!
//! It looks ten times a second, oftener where much is left, and has a frame written a second after its first record at the latest. It is in no hurry: the
//! program comes before it. What can't be written is said once; the recording ends then, and the program goes on. So it does if hetmem is killed: the
//! trace ends with its last whole frame.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hetmem_agent::recording::{RINGS, Rings};
use hetmem_core::record::{PLACES, Record};
use hetmem_sys::thread::time_since_boot;
use hetmem_trace::format::{Recording, Writer};

use crate::failure;

/// How often the rings are looked at, where little is left and where much is. One that is full after the shorter time has six million records a second.
const SELDOM: Duration = Duration::from_millis(100);
const OFTEN: Duration = Duration::from_millis(10);
/// Much.
const MUCH: usize = PLACES / 16;
/// By how much the thread is nicer than the program.
const NICER: i32 = 10;
/// How long a frame may wait.
const FRAME: Duration = Duration::from_secs(1);
/// A place that stays empty for so long was left by a thread that has ended.
const PATIENCE: Duration = Duration::from_secs(2);

/// A recording under way.
pub(super) struct Recorder {
    rings: Arc<Rings>,
    thread: Option<(mpsc::Sender<()>, JoinHandle<u64>)>,
}

/// The thread's.
struct Writing {
    path: PathBuf,
    rings: Arc<Rings>,
    /// `None` when no more can be written.
    writer: Option<Writer<File>>,
    last: Option<u32>,
    flushed: Instant,
    dropped: u64,
    /// Since when a ring has something that can't be taken.
    stuck: Option<Instant>,
}

impl Recorder {
    /// Begins to record what `recording` says into the file at `path`, which is made, or emptied.
    pub(super) fn begin(path: &Path, recording: &Recording) -> io::Result<Self> {
        // To open one waits for who reads.
        if std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) {
            return Err(io::Error::other("it is a named pipe"));
        }
        let rings = Arc::new(Rings::create()?);
        let writer = Writer::begin(File::create(path)?, recording)?;
        let mut writing = Writing {
            path: path.to_owned(),
            rings: rings.clone(),
            writer: Some(writer),
            last: None,
            flushed: Instant::now(),
            dropped: 0,
            stuck: None,
        };
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(move || {
            be_nice();
            let mut nap = OFTEN;
            while stopped.recv_timeout(nap) == Err(RecvTimeoutError::Timeout) {
                nap = writing.look(false);
            }
            writing.end()
        })?;
        Ok(Self { rings, thread: Some((stop, thread)) })
    }

    /// Where agents find their rings.
    pub(super) fn rings(&self) -> Option<PathBuf> {
        self.rings.path()
    }

    /// Writes what there still is, and says what is missing in it.
    pub(super) fn end(mut self) {
        let Some((stop, thread)) = self.thread.take() else { return };
        drop(stop);
        let Ok(dropped) = thread.join() else { return };
        if dropped > 0 {
            failure::tell(&format!("the trace lacks {dropped} records, for which there was no room in time"));
        }
        let unrecorded = self.rings.unrecorded();
        if unrecorded > 0 {
            failure::tell(&format!("the trace lacks {unrecorded} processes: too many were there at one time"));
        }
    }
}

impl Writing {
    /// Takes what is in the rings; at the `end`, also what is behind places that stay empty. How soon to look again.
    fn look(&mut self, end: bool) -> Duration {
        let rings = self.rings.clone();
        let (mut is_stuck, mut most, mut processes) = (false, 0, 0);
        for owned in rings.owned() {
            processes += 1;
            // Asked first: what it has left by then is all.
            let has_ended = owned.has_ended();
            if !owned.ring().is_empty() {
                if self.last != Some(owned.pid()) {
                    self.last = Some(owned.pid());
                    self.write(Record::Process { pid: owned.pid() }.encode());
                }
                let pass_over = end || has_ended || self.stuck.is_some_and(|since| since.elapsed() > PATIENCE);
                let taken = owned.ring().drain(pass_over, |words| self.write(words));
                is_stuck |= taken == 0 && !owned.ring().is_empty();
                most = most.max(taken);
                let dropped = owned.ring().take_dropped();
                if dropped > 0 {
                    self.dropped = self.dropped.saturating_add(dropped);
                    self.write(Record::Dropped { records: dropped }.encode());
                }
            }
            if has_ended {
                owned.free();
            }
        }
        self.stuck = is_stuck.then(|| self.stuck.unwrap_or_else(Instant::now));
        if self.flushed.elapsed() >= FRAME {
            self.flush();
        }
        // Where most rings are taken, those of processes that have ended are needed soon.
        if most > MUCH || processes > RINGS / 2 { OFTEN } else { SELDOM }
    }

    fn write(&mut self, words: [u64; 2]) {
        // What a process leaves may be anything: a reader must not find it.
        if Record::decode(words).is_none() {
            return;
        }
        let Some(writer) = &mut self.writer else { return };
        let before = writer.written();
        let result = writer.push(words);
        if writer.written() != before {
            self.flushed = Instant::now();
        }
        self.settle(result);
    }

    fn flush(&mut self) {
        self.flushed = Instant::now();
        let Some(writer) = self.writer.as_mut().filter(|writer| writer.has_unwritten()) else { return };
        let result = writer.flush();
        self.settle(result);
    }

    /// After a failure nothing more is recorded.
    fn settle(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.rings.close();
            self.writer = None;
            failure::tell(&format!("the trace {} ends here: it can't be written: {error}", self.path.display()));
        }
    }

    /// Writes the rest; how many records are missing.
    fn end(mut self) -> u64 {
        self.look(true);
        // Those that go on without the program leave no more.
        self.rings.close();
        let time = u64::try_from(time_since_boot().as_nanos()).unwrap_or(u64::MAX);
        self.write(Record::End { time }.encode());
        self.flush();
        self.dropped
    }
}

/// Lets the program come before this thread.
fn be_nice() {
    // Of process 0, and so of the calling thread alone (setpriority(2)). If it can't be, it costs the program a little more.
    let _ = rustix::process::getpriority_process(None)
        .and_then(|now| rustix::process::setpriority_process(None, now.saturating_add(NICER)));
}

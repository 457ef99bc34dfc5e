//! `damo report access --json` (and `--json --raw_number`): what DAMON saw, region by region.
//!
//! A snapshot says of each region how many of so many looks found it accessed. All pages of it are taken to be touched in as many rounds, spread
//! over the time of the snapshot: what is simulated is no more than what DAMON assumes.
//!
//! *Limits:* targets count as one address space each, of which the first has its own addresses; they come one after another, as in the file, and
//! not at the same time. One snapshot is in memory at a time. A region of which shares alone are known (`percent`) has one round for each ten of a
//! hundred.

use std::fmt;
use std::io::BufRead;

use hetmem_core::record::MOST_PAGES;
use hetmem_core::units::PAGE_SIZE;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Batches;
use crate::error::TraceError;
use crate::space::of_process;

/// More looks than a snapshot has: DAMON looks once in a microsecond at most, and makes several snapshots a second.
const MOST_ROUNDS: u64 = 1_000_000;

/// Whether a file that begins so may be one.
pub(crate) fn is_one(beginning: &[u8]) -> bool {
    let mut text = beginning.iter().filter(|byte| !byte.is_ascii_whitespace());
    text.next() == Some(&b'[') && matches!(text.next(), None | Some(b'{' | b']'))
}

/// A number, as JSON's or as damo's text: `123`, `4,096`, `1 m 2 s 30 ms`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Whole(u64),
    Broken(f64),
    Text(String),
}

impl Number {
    /// The number; with units, nanoseconds.
    fn get(&self) -> Option<u64> {
        match self {
            Self::Whole(number) => Some(*number),
            // As serde_json has it, it is finite; what is beyond the ends is at them.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a share of a whole: less than one is none"
            )]
            Self::Broken(number) => Some(*number as u64),
            Self::Text(text) => number(text),
        }
    }
}

fn number(text: &str) -> Option<u64> {
    let plain = text.replace(',', "");
    let words: Vec<&str> = plain.split_whitespace().collect();
    match &words[..] {
        [one] => one.parse().ok(),
        [share, "%"] => share.split('.').next()?.parse().ok(),
        _ => words.chunks(2).try_fold(0_u64, |sum, pair| {
            let [count, unit] = pair else { return None };
            let nanoseconds = match *unit {
                "ns" => 1,
                "us" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                "m" => 60_000_000_000,
                "h" => 3_600_000_000_000,
                "d" => 86_400_000_000_000,
                _ => return None,
            };
            sum.checked_add(count.parse::<u64>().ok()?.checked_mul(nanoseconds)?)
        }),
    }
}

#[derive(Deserialize)]
struct Snapshot {
    start_time: Number,
    end_time: Number,
    regions: Vec<Region>,
}

#[derive(Deserialize)]
struct Region {
    start: Number,
    end: Number,
    nr_accesses: Option<Accesses>,
}

#[derive(Deserialize)]
struct Accesses {
    samples: Option<Number>,
    percent: Option<Number>,
}

/// Reads all of it.
pub(crate) fn read(from: impl BufRead, into: &mut Batches<'_>) -> Result<(), TraceError> {
    let mut reading = Reading { into, snapshots: 0, target: 0, first: None, wrong: None };
    let mut deserializer = serde_json::Deserializer::from_reader(from);
    let read = Targets(&mut reading).deserialize(&mut deserializer).and_then(|()| deserializer.end());
    match (reading.wrong.take(), read) {
        (Some(what), _) => Err(TraceError::Snapshot { snapshot: reading.snapshots, what }),
        (None, read) => read.map_err(TraceError::Json),
    }
}

struct Reading<'a, 'b> {
    into: &'a mut Batches<'b>,
    snapshots: u64,
    target: u64,
    /// When the first snapshot began.
    first: Option<u64>,
    /// What a snapshot has that makes no sense.
    wrong: Option<String>,
}

impl Reading<'_, '_> {
    fn snapshot(&mut self, snapshot: &Snapshot) -> Result<(), String> {
        self.snapshots += 1;
        let times = || Some((snapshot.start_time.get()?, snapshot.end_time.get()?));
        let (start, end) = times().ok_or("a time that is none")?;
        let first = *self.first.get_or_insert(start);
        let (start, end) = (start.saturating_sub(first), end.saturating_sub(first));
        let mut regions = Vec::with_capacity(snapshot.regions.len());
        for region in &snapshot.regions {
            let bounds = || Some((region.start.get()?, region.end.get()?));
            let (from, to) = bounds().ok_or("a region whose addresses are none")?;
            let pages = from / PAGE_SIZE..to.div_ceil(PAGE_SIZE);
            if pages.start > pages.end || pages.end > MOST_PAGES {
                return Err(format!("a region from {from:#x} to {to:#x}"));
            }
            let rounds = region.nr_accesses.as_ref().map_or(Some(0), |accesses| {
                let samples = accesses.samples.as_ref().map(Number::get);
                samples
                    .or_else(|| accesses.percent.as_ref().map(|share| share.get().map(|share| share.div_ceil(10))))?
            });
            let rounds = rounds.ok_or("a region of which it is not known how often it was accessed")?;
            if rounds > MOST_ROUNDS {
                return Err(format!("a region that was found accessed {rounds} times, more than {MOST_ROUNDS}"));
            }
            regions.push((pages, rounds));
        }
        let most = regions.iter().map(|(_, rounds)| *rounds).max().unwrap_or(0);
        for round in 0..most {
            let time = start + end.saturating_sub(start) / most * round;
            for (pages, rounds) in &regions {
                if *rounds > round {
                    pages.clone().for_each(|page| self.into.touch(of_process(page, self.target), false, time));
                }
            }
        }
        Ok(())
    }
}

/// A list of targets, each with its snapshots.
struct Targets<'r, 'a, 'b>(&'r mut Reading<'a, 'b>);
/// One of them.
struct Target<'r, 'a, 'b>(&'r mut Reading<'a, 'b>);
/// Its snapshots.
struct Snapshots<'r, 'a, 'b>(&'r mut Reading<'a, 'b>);

impl<'de> DeserializeSeed<'de> for Targets<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Targets<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of records, one for each target")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut targets: A) -> Result<(), A::Error> {
        while targets.next_element_seed(Target(&mut *self.0))?.is_some() {
            self.0.target += 1;
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Target<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Target<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record with `snapshots`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut record: A) -> Result<(), A::Error> {
        let mut found = false;
        while let Some(key) = record.next_key::<String>()? {
            if key == "snapshots" {
                found = true;
                record.next_value_seed(Snapshots(&mut *self.0))?;
            } else {
                record.next_value::<IgnoredAny>()?;
            }
        }
        if found { Ok(()) } else { Err(serde::de::Error::missing_field("snapshots")) }
    }
}

impl<'de> DeserializeSeed<'de> for Snapshots<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Snapshots<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of snapshots")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut snapshots: A) -> Result<(), A::Error> {
        while let Some(snapshot) = snapshots.next_element::<Snapshot>()? {
            if let Err(what) = self.0.snapshot(&snapshot) {
                self.0.wrong = Some(what);
                return Err(serde::de::Error::custom("a snapshot makes no sense"));
            }
        }
        Ok(())
    }
}

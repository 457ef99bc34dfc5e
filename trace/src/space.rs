//! Which pages of a trace are simulated, and by which numbers.
//!
//! A trace may have more pages than can be simulated. Then a part of its memory is, chosen by a hash of the address (as SHARDS does): all touches
//! of a block of 2 MiB, or none. Limits shrink by the same factor. [`Survey`] finds out how large the part may be, and [`Numbers`] numbers what is
//! in it.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::ops::Range;

use hetmem_core::record::{CHUNK, MOST_PAGES, Record};
use hetmem_core::units::{BLOCK_PAGES, PAGE_SHIFT, VirtAddr};

/// As many parts are told apart to find out by how much a sample errs.
pub(crate) const GROUPS: usize = 64;
/// The pages of a chunk, as many as a word has bits.
const PLACES: usize = u64::BITS as usize;
const _: () = assert!(PLACES as u64 == CHUNK, "a chunk's pages are the bits of a word");
/// No number.
pub(crate) const NONE: u32 = u32::MAX;
/// A process's memory begins so many pages after that of the one before: 48 bits of addresses.
pub(crate) const PROCESS_PAGES: u64 = 1 << 36;

/// A number as random as its argument is not (the end of SplitMix64).
#[inline]
pub(crate) const fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// A page of the `process`th process, from 0, in one space for all of them.
#[inline]
pub(crate) const fn of_process(page: u64, process: u64) -> u64 {
    (page + process.wrapping_mul(PROCESS_PAGES)) % MOST_PAGES
}

/// The number of a page.
#[inline]
pub(crate) const fn number(page: VirtAddr) -> u64 {
    page.get() >> PAGE_SHIFT
}

/// A hasher for numbers.
#[derive(Clone, Copy, Default)]
pub(crate) struct Mix;

pub(crate) struct MixHasher(u64);

impl BuildHasher for Mix {
    type Hasher = MixHasher;

    fn build_hasher(&self) -> MixHasher {
        MixHasher(0)
    }
}

impl Hasher for MixHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = mix(self.0 ^ number);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The part of all blocks that is simulated: those whose hash is below a threshold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sampling {
    /// Of 2^32; 2^32 is all.
    threshold: u64,
    /// How large a part of the trace's memory that is in fact, of 2^32.
    share: u64,
}

impl Sampling {
    const WHOLE: u64 = 1 << 32;
    /// All of them.
    pub const ALL: Self = Self { threshold: Self::WHOLE, share: Self::WHOLE };

    /// One in `many`; of 0 all.
    #[must_use]
    pub const fn one_in(many: u32) -> Self {
        let threshold = if many == 0 { Self::WHOLE } else { Self::WHOLE / many as u64 };
        Self { threshold, share: threshold }
    }

    /// How large the part is, from 0 to 1.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "33 bits are not too many")]
    pub fn rate(self) -> f64 {
        self.share as f64 / Self::WHOLE as f64
    }

    /// Whether it is all of them.
    #[must_use]
    pub const fn is_all(self) -> bool {
        self.threshold == Self::WHOLE
    }

    /// So many of `pages` pages are as large a part, one at least.
    #[must_use]
    pub const fn of(self, pages: u64) -> u64 {
        let part = (pages as u128 * self.share as u128) >> 32;
        // No more than all.
        #[expect(clippy::cast_possible_truncation, reason = "not larger than `pages`")]
        let part = part as u64;
        if part == 0 { 1 } else { part }
    }

    #[inline]
    pub(crate) const fn has(self, page: u64) -> bool {
        self.threshold == Self::WHOLE || mix(page / BLOCK_PAGES) >> 32 < self.threshold
    }

    const fn half(self) -> Self {
        Self { threshold: self.threshold / 2, share: self.share / 2 }
    }
}

/// What is in a trace, found out by one look at it in bounded memory.
#[derive(Debug)]
pub struct Survey {
    /// Bytes that the simulation may take.
    most: u64,
    bytes_by_page: u64,
    sampling: Sampling,
    /// The pages that were touched, of each chunk that is in the sample.
    chunks: HashMap<u64, u64, Mix>,
    pages: u64,
    blocks: Distinct,
    process: u64,
    /// Records of all kinds.
    pub records: u64,
    /// Touches that brought pages home.
    pub faults: u64,
    /// Pages that came home with them.
    pub home: u64,
    /// Pages that moved to devices.
    pub moved: u64,
    /// Records that are missing, as there was no room for them.
    pub dropped: u64,
    /// Processes.
    pub processes: u64,
    /// Nanoseconds between the first record with a time and the last.
    pub duration: u64,
    first: Option<u64>,
    known: HashMap<u32, u64, Mix>,
}

/// Bytes of a chunk's numbers, its place in the table, and what policies keep of it.
const CHUNK_BYTES: u64 = 512;

impl Survey {
    /// A simulation that takes `bytes_by_page` for each page, may take `most` bytes, and takes no more than `sampling` has.
    #[must_use]
    pub fn new(sampling: Sampling, most: u64, bytes_by_page: u64) -> Self {
        Self {
            most,
            bytes_by_page,
            sampling,
            chunks: HashMap::default(),
            pages: 0,
            blocks: Distinct::default(),
            process: 0,
            records: 0,
            faults: 0,
            home: 0,
            moved: 0,
            dropped: 0,
            processes: 1,
            duration: 0,
            first: None,
            known: HashMap::default(),
        }
    }

    /// Looks at some records.
    pub fn look(&mut self, records: &[Record]) {
        self.records += records.len() as u64;
        for record in records {
            match *record {
                Record::Touch { page, time, .. } => self.touch(page, 1, time),
                Record::Sample { page, time, .. } => self.touch(page, 1, time),
                Record::Fault { page, pages, time } => {
                    (self.faults, self.home) = (self.faults + 1, self.home + u64::from(pages));
                    self.touch(page, u64::from(pages), time);
                }
                Record::Moved { chunk, pages, to } => {
                    if to != hetmem_core::migrate::Target::System {
                        self.moved += u64::from(pages.count_ones());
                    }
                    self.see(of_process(number(chunk), self.process), pages);
                }
                Record::Present { chunk, pages } => self.see(of_process(number(chunk), self.process), pages),
                Record::Tick { time, .. } | Record::End { time } => self.time(time),
                Record::Process { pid } => self.process = process(&mut self.known, pid),
                Record::Dropped { records } => self.dropped += records,
                Record::Managed(_)
                | Record::Forgotten(_)
                | Record::Gone(_)
                | Record::Renamed { .. }
                | Record::Began => {}
            }
        }
        self.processes = self.processes.max(self.known.len() as u64);
    }

    fn time(&mut self, time: u64) {
        let first = *self.first.get_or_insert(time);
        self.duration = self.duration.max(time.saturating_sub(first));
    }

    #[inline]
    fn touch(&mut self, page: VirtAddr, pages: u64, time: u64) {
        self.time(time);
        let first = number(page);
        for page in first..first + pages {
            let page = of_process(page, self.process);
            self.see(page / CHUNK * CHUNK, 1 << (page % CHUNK));
        }
    }

    #[inline]
    fn see(&mut self, chunk: u64, pages: u64) {
        self.blocks.see(chunk / BLOCK_PAGES);
        if !self.sampling.has(chunk) {
            return;
        }
        let seen = self.chunks.entry(chunk).or_default();
        self.pages += u64::from((pages & !*seen).count_ones());
        *seen |= pages;
        while self.pages * self.bytes_by_page + self.chunks.len() as u64 * CHUNK_BYTES > self.most {
            self.sampling = self.sampling.half();
            let sampling = self.sampling;
            self.chunks.retain(|chunk, _| sampling.has(*chunk));
            self.pages = self.chunks.values().map(|pages| u64::from(pages.count_ones())).sum();
        }
    }

    /// The part that can be simulated, and how large it is.
    #[must_use]
    pub fn sampling(&self) -> Sampling {
        let blocks: HashSet<u64, Mix> = self.chunks.keys().map(|chunk| chunk / BLOCK_PAGES).collect();
        let (part, all) = (blocks.len() as u64, self.blocks.count());
        if self.sampling.is_all() || part == 0 || part >= all {
            return self.sampling;
        }
        Sampling { share: (part << 32) / all, ..self.sampling }
    }

    /// How many pages of that part the trace has.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }
}

/// How many different numbers were seen: exactly up to a bound, and within a hundredth beyond it, by how many there are of those with the smallest
/// hashes.
#[derive(Debug)]
struct Distinct {
    /// Hashes below the bound.
    hashes: HashSet<u64, Mix>,
    bound: u64,
    last: u64,
}

impl Default for Distinct {
    fn default() -> Self {
        Self { hashes: HashSet::default(), bound: u64::MAX, last: u64::MAX }
    }
}

impl Distinct {
    const MOST: usize = 1 << 17;

    #[inline]
    fn see(&mut self, number: u64) {
        if number == self.last {
            return;
        }
        self.last = number;
        // Others than those by which the part is chosen.
        let hash = mix(number ^ u64::from(u32::MAX));
        if hash < self.bound && self.hashes.insert(hash) && self.hashes.len() > Self::MOST {
            self.bound /= 2;
            let bound = self.bound;
            self.hashes.retain(|hash| *hash < bound);
        }
    }

    fn count(&self) -> u64 {
        let scale = (u128::from(u64::MAX) + 1) / (u128::from(self.bound) + 1);
        u64::try_from(self.hashes.len() as u128 * scale).unwrap_or(u64::MAX)
    }
}

/// The number of process `pid`, from 0.
pub(crate) fn process(known: &mut HashMap<u32, u64, Mix>, pid: u32) -> u64 {
    let next = known.len() as u64;
    *known.entry(pid).or_insert(next)
}

/// Numbers, from 0 on, of the pages that are simulated, and of their chunks.
#[derive(Debug)]
pub(crate) struct Numbers {
    sampling: Sampling,
    chunks: HashMap<u64, u32, Mix>,
    /// The numbers of each chunk's pages.
    pages: Vec<[u32; PLACES]>,
    /// Which of them are known to have something in them.
    seen: Vec<u64>,
    groups: Vec<u8>,
    /// Where in memory each is, as a number of chunks.
    places: Vec<u64>,
    /// The chunk that was asked for last, and its number.
    last: (u64, u32),
    next: u32,
}

/// A page that is simulated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    pub(crate) number: u32,
    pub(crate) chunk: u32,
    /// Its place in the chunk.
    pub(crate) bit: u8,
    pub(crate) group: u8,
    /// Whether nothing was known of it.
    pub(crate) is_new: bool,
}

impl Numbers {
    pub(crate) fn new(sampling: Sampling) -> Self {
        let chunks = HashMap::default();
        Self {
            sampling,
            chunks,
            pages: vec![],
            seen: vec![],
            groups: vec![],
            places: vec![],
            last: (u64::MAX, 0),
            next: 0,
        }
    }

    /// The number of a chunk that has been seen, by its first page or any other.
    pub(crate) fn chunk_of(&self, page: u64) -> Option<u32> {
        self.chunks.get(&(page / CHUNK)).copied()
    }

    /// Those of the chunks `of` memory that have been seen.
    pub(crate) fn seen_of(&self, of: Range<u64>) -> Vec<u64> {
        if of.end.saturating_sub(of.start) > self.places.len() as u64 {
            return self.places.iter().copied().filter(|chunk| of.contains(chunk)).collect();
        }
        of.filter(|chunk| self.chunks.contains_key(chunk)).collect()
    }

    /// The first page of chunk `chunk`.
    #[inline]
    pub(crate) fn first_of(&self, chunk: u32) -> u64 {
        self.places[chunk as usize] * CHUNK
    }

    /// How many chunks there are.
    pub(crate) fn chunks(&self) -> usize {
        self.pages.len()
    }

    /// How many pages have numbers.
    pub(crate) const fn pages(&self) -> u64 {
        self.next as u64
    }

    /// Page number `page` of the trace, if it is simulated. It has something in it from now on.
    #[inline]
    pub(crate) fn page(&mut self, page: u64) -> Option<Page> {
        let chunk = page / CHUNK;
        if self.last.0 != chunk {
            if !self.sampling.has(page) {
                return None;
            }
            self.last = (chunk, self.find(chunk));
        }
        let (at, bit) = (self.last.1, page % CHUNK);
        let index = at as usize;
        let place = &mut self.pages[index][usize::try_from(bit).unwrap_or_default()];
        if *place == NONE {
            // More would have been too many for the survey.
            *place = self.next;
            self.next += 1;
        }
        let is_new = self.seen[index] >> bit & 1 == 0;
        self.seen[index] |= 1 << bit;
        let bit = u8::try_from(bit).unwrap_or_default();
        Some(Page { number: *place, chunk: at, bit, group: self.groups[index], is_new })
    }

    fn find(&mut self, chunk: u64) -> u32 {
        let next = u32::try_from(self.pages.len()).unwrap_or(NONE);
        let at = *self.chunks.entry(chunk).or_insert(next);
        if at == next {
            self.pages.push([NONE; PLACES]);
            self.seen.push(0);
            self.places.push(chunk);
            let [group, ..] = mix(chunk * CHUNK / BLOCK_PAGES).to_le_bytes();
            self.groups.push(group % GROUPS.to_le_bytes()[0]);
        }
        at
    }

    /// Nothing is known to be in page number `page` any more; what it was, if it is simulated and was known.
    pub(crate) fn forget(&mut self, page: u64) -> Option<Page> {
        let chunk = self.chunk_of(page)?;
        let index = chunk as usize;
        let bit = u8::try_from(page % CHUNK).unwrap_or_default();
        if self.seen[index] >> bit & 1 == 0 {
            return None;
        }
        self.seen[index] &= !(1 << bit);
        let number = self.pages[index][usize::from(bit)];
        Some(Page { number, chunk, bit, group: self.groups[index], is_new: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touches(pages: impl Iterator<Item = u64>) -> Vec<Record> {
        pages.map(|page| Record::Touch { page: VirtAddr::new(page << PAGE_SHIFT), write: false, time: page }).collect()
    }

    #[test]
    fn a_survey_takes_as_large_a_part_as_may_be() {
        let mut all = Survey::new(Sampling::ALL, 1 << 30, 100);
        all.look(&touches(0..100_000));
        assert!(all.sampling().is_all());
        assert_eq!((all.pages(), all.records, all.duration), (100_000, 100_000, 99_999));
        let most = 1 << 20;
        let mut part = Survey::new(Sampling::ALL, most, 100);
        part.look(&touches(0..1_000_000));
        let rate = part.sampling().rate();
        // A hundred million bytes in one million: no more, and not less than half without need.
        assert!((0.002..0.0105).contains(&rate), "{rate}");
        assert!(part.pages() * 100 <= most);
        let given = Survey::new(Sampling::one_in(8), u64::MAX / 2, 1);
        assert!((given.sampling().rate() - 0.125).abs() < 1e-9);
        assert_eq!((given.sampling().of(800), given.sampling().of(1), Sampling::ALL.of(7)), (100, 1, 7));
    }

    #[test]
    fn different_numbers_are_counted_exactly_and_many_nearly() {
        for (numbers, off) in [(0, 0), (1000, 0), (Distinct::MOST as u64, 0), (3_000_000, 30_000)] {
            let mut distinct = Distinct::default();
            (0..numbers).chain(0..numbers / 2).for_each(|number| distinct.see(number));
            assert!(distinct.count().abs_diff(numbers) <= off, "{numbers}: {}", distinct.count());
        }
    }

    #[test]
    fn pages_have_numbers_in_order_of_their_first_touch_and_keep_them() {
        let mut numbers = Numbers::new(Sampling::ALL);
        for (page, number, is_new) in [(7, 0, true), (1 << 40, 1, true), (8, 2, true), (7, 0, false)] {
            let found = numbers.page(page).unwrap();
            assert_eq!((found.number, found.is_new), (number, is_new));
        }
        assert_eq!(numbers.forget(7).unwrap().number, 0);
        assert!(numbers.forget(7).is_none() && numbers.forget(9).is_none() && numbers.forget(1 << 30).is_none());
        assert!(numbers.page(7).unwrap().is_new);
        numbers.page(5 * CHUNK);
        for (of, seen) in [(0..1, vec![0]), (5..6, vec![5]), (1..5, vec![]), (0..1000, vec![0, 5])] {
            assert_eq!(numbers.seen_of(of), seen);
        }
    }

    #[test]
    fn all_of_a_block_is_simulated_or_nothing() {
        let sampling = Sampling::one_in(4);
        let mut numbers = Numbers::new(sampling);
        let blocks = 4000;
        let found = (0..blocks).filter(|block| {
            let first = block * BLOCK_PAGES;
            let all: Vec<bool> = (first..first + BLOCK_PAGES).map(|page| numbers.page(page).is_some()).collect();
            assert!(all.iter().all(|is| *is == all[0]));
            all[0]
        });
        let found = found.count();
        assert!((900..1100).contains(&found), "{found}");
    }
}

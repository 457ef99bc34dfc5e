//! A set of frame numbers that hands out runs: the free frames of a device, and both sides of the system pool.
//!
//! Frames are kept as bits in chunks of 512, one chunk to a huge page. A chunk that small pages have used is *divided*: its memory is mapped page by
//! page from then on, and a huge page that is moved there is divided, too. So small pages stay among divided chunks as long as there are any, in the
//! one that was touched last, whose memory is warm; and [`RunSet::take_whole`] gives chunks to huge pages that are not divided.
//!
//! A frame that a page has left *rests*, with the page's bytes, until it is taken or cleared. It is cleared once it is old: once [`RunSet::age`] was
//! called while it rested.
//!
//! *Limits:* a run never crosses a chunk, so it is at most 512 frames long.

use super::run::FrameRun;
use crate::units::{BLOCK_PAGES, FrameIndex, PageCount};

const WORDS: usize = 8;
#[expect(clippy::cast_possible_truncation, reason = "a block has a few pages")]
const CHUNK: u32 = BLOCK_PAGES as u32;
const BITS: usize = CHUNK as usize;
const _: () = assert!(BITS == WORDS * 64);

#[derive(Clone)]
struct Chunk {
    bits: [u64; WORDS],
    /// Of those, the ones that rest, and are not old.
    young: [u64; WORDS],
    /// Those that are.
    old: [u64; WORDS],
    count: u32,
    divided: bool,
}

const EMPTY: Chunk = Chunk { bits: [0; WORDS], young: [0; WORDS], old: [0; WORDS], count: 0, divided: false };

/// Free frames, and what is known of them by chunks.
#[derive(Clone)]
pub struct RunSet {
    // Invariants: each chunk's `count` is the number of its set bits; `len` is the sum of the counts; `whole` and `divided_whole` say of the chunks
    // with all their frames what they say, and `divided` is the number of divided chunks with a frame. `young` and `old` are the numbers of frames
    // that rest.
    chunks: Vec<Chunk>,
    len: u64,
    young: u64,
    old: u64,
    /// Frames that are being cleared.
    claimed: u64,
    /// No chunk before this has an old frame.
    sweep: usize,
    /// No other chunk has a young one.
    fresh: std::ops::Range<usize>,
    whole: Kind,
    divided_whole: Kind,
    divided: usize,
    recent: usize,
}

/// What is known of the chunks of a kind, so that nobody looks in vain, or long.
#[derive(Clone, Copy, Default)]
struct Kind {
    count: usize,
    /// None is below this.
    lowest: usize,
}

impl Kind {
    fn gains(&mut self, chunk: usize) {
        self.lowest = if self.count == 0 { chunk } else { self.lowest.min(chunk) };
        self.count += 1;
    }
}

impl RunSet {
    /// The empty set of frames below `capacity`.
    #[must_use]
    pub fn empty(capacity: PageCount) -> Self {
        let chunks = vec![EMPTY; capacity.as_usize().div_ceil(CHUNK as usize)];
        let (whole, divided_whole) = (Kind::default(), Kind::default());
        Self {
            chunks,
            len: 0,
            young: 0,
            old: 0,
            claimed: 0,
            sweep: 0,
            fresh: 0..0,
            whole,
            divided_whole,
            divided: 0,
            recent: 0,
        }
    }

    /// The set of all frames below `capacity`.
    #[must_use]
    pub fn full(capacity: PageCount) -> Self {
        let mut set = Self::empty(capacity);
        set.insert_all(PageCount::ZERO, capacity);
        set
    }

    /// The same set, whose books need not be moved until it is [extended](Self::extend) beyond `capacity`.
    #[must_use]
    pub fn with_room_for(mut self, capacity: PageCount) -> Self {
        let chunks = capacity.as_usize().div_ceil(CHUNK as usize);
        self.chunks.reserve_exact(chunks.saturating_sub(self.chunks.len()));
        self
    }

    /// Makes books for the frames below `capacity`, if there are none yet. None of them is in the set.
    pub fn extend(&mut self, capacity: PageCount) {
        let chunks = capacity.as_usize().div_ceil(CHUNK as usize);
        if self.chunks.len() < chunks {
            self.chunks.resize(chunks, EMPTY);
        }
    }

    /// Adds the frames from number `from` on and below `to`, chunk by chunk.
    pub fn insert_all(&mut self, from: PageCount, to: PageCount) {
        let recent = self.recent;
        let mut first = from.get();
        while first < to.get() {
            let end = to.get().min((first / BLOCK_PAGES + 1) * BLOCK_PAGES);
            let index = u32::try_from(first).expect("a device has at most 2^32 frames");
            self.insert(FrameRun { first: FrameIndex::new(index), pages: PageCount::new(end - first) });
            first = end;
        }
        self.recent = recent;
    }

    /// How many frames the set holds, with those that are being cleared.
    #[must_use]
    pub const fn len(&self) -> PageCount {
        PageCount::new(self.len + self.claimed)
    }

    /// Whether the set holds no frame.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len().is_zero()
    }

    /// Adds the frames of `run`, which must not be in the set, with nothing of a page in them. A part of a chunk divides it.
    ///
    /// # Panics
    ///
    /// If a frame of `run` is in the set already: a frame was given back twice.
    pub fn insert(&mut self, run: FrameRun) {
        self.add(run, run.pages.get() < BLOCK_PAGES, |_, _, _| ());
        self.recent = run.first.index() / CHUNK as usize;
    }

    /// Adds the frames of `run`, which must not be in the set, and rest there. A part of a chunk divides it.
    ///
    /// # Panics
    ///
    /// As [`RunSet::insert`].
    pub fn insert_resting(&mut self, run: FrameRun) {
        self.add(run, run.pages.get() < BLOCK_PAGES, |c, word, mask| c.young[word] |= mask);
        self.recent = run.first.index() / CHUNK as usize;
        self.young += run.pages.get();
        let (first, end) = (self.recent, (run.first.index() + run.pages.as_usize()).div_ceil(CHUNK as usize));
        self.fresh =
            if self.fresh.is_empty() { first..end } else { self.fresh.start.min(first)..self.fresh.end.max(end) };
    }

    /// Adds frames, by `also` in each word.
    fn add(&mut self, run: FrameRun, divides: bool, also: impl Fn(&mut Chunk, usize, u64)) {
        let mut at = run.first.index();
        let end = at + run.pages.as_usize();
        while at < end {
            let (chunk, word, bit) = (at / BITS, at / 64 % WORDS, at % 64);
            let n = (64 - bit).min(end - at);
            let mask = mask(bit, n);
            self.change(chunk, |c| {
                assert_eq!(c.bits[word] & mask, 0, "a frame is given back once");
                c.bits[word] |= mask;
                c.count += mask.count_ones();
                c.divided |= divides;
                also(c, word, mask);
            });
            at += n;
        }
        self.len += run.pages.get();
    }

    /// Whether a frame rests.
    #[must_use]
    pub const fn has_resting(&self) -> bool {
        self.young + self.old > 0
    }

    /// Whether one that rests is old.
    #[must_use]
    pub const fn has_old(&self) -> bool {
        self.old > 0
    }

    /// Whether frames are out to be cleared.
    #[must_use]
    pub const fn has_claimed(&self) -> bool {
        self.claimed > 0
    }

    /// Makes all frames that rest old.
    pub fn age(&mut self) {
        if self.young == 0 {
            return;
        }
        for c in &mut self.chunks[std::mem::take(&mut self.fresh)] {
            for (old, young) in c.old.iter_mut().zip(&mut c.young) {
                *old |= std::mem::take(young);
            }
        }
        self.old += std::mem::take(&mut self.young);
        self.sweep = 0;
    }

    /// Takes a run of at most `most` old frames out, to be cleared and given back by [`RunSet::give_cleared`]; `None` if there is none. Huge pages
    /// stay whole.
    pub fn claim_old(&mut self, most: PageCount) -> Option<FrameRun> {
        if self.old == 0 {
            return None;
        }
        let has_old = |c: &Chunk| c.old != [0; WORDS];
        let chunk = self.sweep + self.chunks[self.sweep..].iter().position(has_old)?;
        self.sweep = chunk;
        let (start, n) = longest_run(&self.chunks[chunk].old, most.as_usize());
        self.claimed += n as u64;
        Some(self.take_from(chunk, start, n))
    }

    /// Gives frames back that [`RunSet::claim_old`] took, and that hold nothing of a page any more.
    pub fn give_cleared(&mut self, run: FrameRun) {
        self.add(run, false, |_, _, _| ());
        self.claimed -= run.pages.get();
    }

    /// Takes a run of at most `want` frames out of the set; `None` if the set is empty.
    ///
    /// The run is shorter than `want` where no longer one is at hand; ask again for the rest.
    ///
    /// # Panics
    ///
    /// If `want` is zero.
    pub fn take(&mut self, want: PageCount) -> Option<FrameRun> {
        assert!(!want.is_zero(), "a run has at least one frame");
        if self.len == 0 {
            return None;
        }
        let want = want.as_usize().min(CHUNK as usize);
        let whole = (want == CHUNK as usize).then(|| self.take_chunk()).flatten();
        if whole.is_some() {
            return whole;
        }
        let small = if self.divided > 0 { self.find(|c| c.count > 0 && c.divided) } else { None };
        let chunk = small.or_else(|| self.find(|c| c.count > 0))?;
        self.recent = chunk;
        self.change(chunk, |c| c.divided = true);
        let (start, n) = longest_run(&self.chunks[chunk].bits, want);
        Some(self.take_from(chunk, start, n))
    }

    /// Takes a run with at most `want` frames of this set out of it, and what lies between them out of `other`; `None` if this set is empty.
    ///
    /// # Panics
    ///
    /// If `want` is zero.
    pub fn take_with(&mut self, other: &mut Self, want: PageCount) -> Option<FrameRun> {
        let first = self.take(want)?;
        if first.pages == PageCount::BLOCK {
            return Some(first);
        }
        let (chunk, first_bit) = (self.recent, first.first.index() % BITS);
        let is_in = |set: &Self, at: usize| set.chunks[chunk].bits[at / 64] >> (at % 64) & 1 == 1;
        let (mut end, mut taken) = (first_bit + first.pages.as_usize(), first.pages.as_usize());
        let mut at = end;
        while at < BITS && taken < want.as_usize() {
            if is_in(self, at) {
                (taken, end) = (taken + 1, at + 1);
            } else if !is_in(other, at) {
                break;
            }
            at += 1;
        }
        let rest = first_bit + first.pages.as_usize();
        self.take_from(chunk, rest, end - rest);
        other.take_from(chunk, rest, end - rest);
        other.change(chunk, |c| c.divided = true);
        Some(FrameRun { first: first.first, pages: PageCount::new((end - first_bit) as u64) })
    }

    /// Takes a whole chunk, for small pages; `None` if there is none.
    pub fn take_chunk(&mut self) -> Option<FrameRun> {
        let chunk = self.find_whole(true).or_else(|| self.find_whole(false))?;
        self.recent = chunk;
        self.change(chunk, |c| c.divided = true);
        Some(self.take_from(chunk, 0, CHUNK as usize))
    }

    /// Takes a whole chunk that is not divided, for a huge page; `None` if there is none.
    pub fn take_whole(&mut self) -> Option<FrameRun> {
        let chunk = self.find_whole(false)?;
        Some(self.take_from(chunk, 0, CHUNK as usize))
    }

    /// Whether small pages have used the chunk of `frame`.
    #[must_use]
    pub fn is_divided(&self, frame: FrameIndex) -> bool {
        self.chunks[frame.index() / CHUNK as usize].divided
    }

    /// Says that small pages have used the chunk of `frame`.
    pub fn divide(&mut self, frame: FrameIndex) {
        self.change(frame.index() / CHUNK as usize, |c| c.divided = true);
    }

    /// Says that small pages have not used the chunk of `frame`, or that a huge page has taken their place.
    pub fn unite(&mut self, frame: FrameIndex) {
        self.change(frame.index() / CHUNK as usize, |c| c.divided = false);
    }

    /// Takes those of `n` frames of a chunk, from number `start` of it on, out of the set that are in it.
    fn take_from(&mut self, chunk: usize, start: usize, n: usize) -> FrameRun {
        let first = u32::try_from(chunk * CHUNK as usize + start).expect("a device has at most 2^32 frames");
        let run = FrameRun { first: FrameIndex::new(first), pages: PageCount::new(n as u64) };
        let (mut taken, mut young, mut old) = (0, 0, 0);
        self.change(chunk, |c| {
            let mut at = start;
            while at < start + n {
                let (word, bit) = (at / 64, at % 64);
                let step = (64 - bit).min(start + n - at);
                let mask = mask(bit, step);
                taken += (c.bits[word] & mask).count_ones();
                c.bits[word] &= !mask;
                young += u64::from((c.young[word] & mask).count_ones());
                old += u64::from((c.old[word] & mask).count_ones());
                c.young[word] &= !mask;
                c.old[word] &= !mask;
                at += step;
            }
            c.count -= taken;
        });
        self.len -= u64::from(taken);
        self.young -= young;
        self.old -= old;
        run
    }

    /// Changes a chunk, and what is known of its kinds.
    fn change(&mut self, chunk: usize, change: impl FnOnce(&mut Chunk)) {
        let kinds = |c: &Chunk| (c.count == CHUNK, c.divided, c.count > 0 && c.divided);
        let c = &mut self.chunks[chunk];
        let (was_whole, was_divided, had_small) = kinds(c);
        change(c);
        let (is_whole, is_divided, has_small) = kinds(c);
        if was_whole {
            self.wholes(was_divided).count -= 1;
        }
        if is_whole {
            self.wholes(is_divided).gains(chunk);
        }
        self.divided = self.divided - usize::from(had_small) + usize::from(has_small);
    }

    fn wholes(&mut self, divided: bool) -> &mut Kind {
        if divided { &mut self.divided_whole } else { &mut self.whole }
    }

    /// The lowest whole chunk that is divided, or that is not: it has memory behind it, as it was used before, and those after it may have none.
    fn find_whole(&mut self, divided: bool) -> Option<usize> {
        let Kind { count: 1.., lowest } = *self.wholes(divided) else { return None };
        let chunk = (lowest..self.chunks.len()).find(|&i| {
            let c = &self.chunks[i];
            c.count == CHUNK && c.divided == divided
        })?;
        self.wholes(divided).lowest = chunk;
        Some(chunk)
    }

    /// The first chunk that is as `is` says, from the one that was touched last on, around the end.
    fn find(&self, is: impl Fn(&Chunk) -> bool) -> Option<usize> {
        let n = self.chunks.len();
        (0..n).map(|i| (self.recent + i) % n).find(|&i| is(&self.chunks[i]))
    }

    /// Checks the invariants.
    ///
    /// # Panics
    ///
    /// If one does not hold.
    pub fn check(&self) {
        let ones = |words: &[u64; WORDS]| words.iter().map(|w| w.count_ones()).sum::<u32>();
        for c in &self.chunks {
            assert_eq!(c.count, ones(&c.bits));
            for ((bits, young), old) in c.bits.iter().zip(&c.young).zip(&c.old) {
                assert_eq!((young & old, (young | old) & !bits), (0, 0), "what rests is in the set, young or old");
            }
        }
        assert_eq!(self.young, self.chunks.iter().map(|c| u64::from(ones(&c.young))).sum::<u64>());
        assert_eq!(self.old, self.chunks.iter().map(|c| u64::from(ones(&c.old))).sum::<u64>());
        let in_fresh = |chunk: usize| self.fresh.contains(&chunk);
        assert!((0..self.chunks.len()).all(|i| in_fresh(i) || self.chunks[i].young == [0; WORDS]));
        let first_old = self.chunks.iter().position(|c| c.old != [0; WORDS]);
        assert!(first_old.is_none_or(|first| first >= self.sweep), "no old frame is passed over");
        assert_eq!(self.len, self.chunks.iter().map(|c| u64::from(c.count)).sum::<u64>());
        for (kind, divided) in [(self.whole, false), (self.divided_whole, true)] {
            let whole = |c: &Chunk| c.count == CHUNK && c.divided == divided;
            assert_eq!(kind.count, self.chunks.iter().filter(|c| whole(c)).count());
            assert!(self.chunks.iter().position(whole).is_none_or(|lowest| lowest >= kind.lowest));
        }
        assert_eq!(self.divided, self.chunks.iter().filter(|c| c.divided && c.count > 0).count());
    }
}

const fn mask(bit: usize, n: usize) -> u64 {
    if n == 64 { u64::MAX } else { ((1 << n) - 1) << bit }
}

/// The start and length of the first run of `want` set bits, or of the longest one if none is that long.
fn longest_run(bits: &[u64; WORDS], want: usize) -> (usize, usize) {
    let (mut best, mut at) = ((0, 0), 0);
    while at < BITS {
        let word = bits[at / 64] >> (at % 64);
        if word == 0 {
            at = (at / 64 + 1) * 64;
            continue;
        }
        at += word.trailing_zeros() as usize;
        let start = at;
        while at < BITS && at - start < want {
            let ones = (!(bits[at / 64] >> (at % 64))).trailing_zeros() as usize;
            let ones = ones.min(64 - at % 64);
            at += ones;
            if !at.is_multiple_of(64) || ones == 0 {
                break;
            }
        }
        let n = (at - start).min(want);
        if n == want {
            return (start, n);
        }
        if n > best.1 {
            best = (start, n);
        }
    }
    best
}

#[cfg(test)]
mod tests;

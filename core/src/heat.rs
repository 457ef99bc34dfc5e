//! How warm pages are: what is known of when each was used last, and how often.
//!
//! A page's [`Heat`] is a byte of two numbers, both by powers of two of a [tick](TICK_MICROS):
//!
//! | | what | of a page of which nothing is known |
//! | --- | --- | --- |
//! | [interval](Heat::interval) | how long it is from one touch to the next, a decaying average | the longest |
//! | [age](Heat::age) | how long it has not been seen: since its last touch that was seen, or since it was taken out | the longest |
//!
//! A page that is away, or that is out as a sample ([`Engine::sample`]), shows its next touch, which is a fault: what it was away for is an interval.
//! A page in use shows nothing; its age says how old what is known of it has become.
//!
//! A block has a [`BlockHeat`], under its lock, from when something of it is first taken out as a sample, or is to leave without
//! ([`Engine::expect_heat`]): other memory has none.
//! Pages of a huge page have one heat together. Ages are brought up to date by whoever looks, not by touches: that of a page which is touched counts
//! from the last look before.
//!
//! Beside it each block has a [`Warmth`], a bit for each chunk ([`CHUNK_PAGES`]) that says whether a touch brought something of it home since this
//! was asked last: what `clock` goes by.
//!
//! A source of heat is who calls `BlockState::note_touch` or `BlockState::note_use`, with the block locked, and has a row here, and a name ([`Source`]):
//!
//! | source | is | sees |
//! | --- | --- | --- |
//! | `faults` | [`Engine::fault`] and its like, by `BlockState::note_touch` | touches of pages in private frames |
//! | `samples` | the same, of a page in a frame with an address | touches of pages that are out as samples |
//!
//! *Limits:* intervals of less than a tick, and of more than 2^14 of them (a minute), are alike. The clock is who calls [`Engine::set_tick`].

mod sources;

#[cfg(doc)]
use crate::engine::Engine;
use crate::space::Space;
use crate::units::{BLOCK_PAGES, PageCount, PageRange};

pub use sources::{Source, Sources, SourcesError};

/// The pages of a chunk (256 KiB), of which it is known whether something was brought home.
pub const CHUNK_PAGES: u64 = BLOCK_PAGES / 8;

/// Microseconds of a tick.
pub const TICK_MICROS: u64 = 4096;

/// The largest of the powers.
const MOST: u8 = 15;

/// The tick at a time in microseconds. It wraps round after half a year.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "ticks wrap round")]
pub const fn tick(micros: u64) -> u32 {
    (micros / TICK_MICROS) as u32
}

/// By which power of two `ticks` is described: 0 for none, n for less than 2^n.
fn power(ticks: u32) -> u8 {
    u8::try_from(u32::BITS - ticks.leading_zeros()).map_or(MOST, |power| power.min(MOST))
}

/// About how many ticks a power stands for.
const fn ticks(power: u8) -> u32 {
    match power {
        0 => 0,
        1 => 1,
        _ => 3 << (power - 2),
    }
}

/// After how many ticks what is described by a power is described by the next.
const fn span(power: u8) -> u32 {
    if power == 0 { 1 } else { 1 << (power - 1) }
}

/// Of which chunks of a block touches have brought something home.
#[derive(Clone, Copy, Debug, Default)]
pub struct Warmth(u8);

impl Warmth {
    /// Notes that a touch brought page `index` (0 to 511) home.
    pub(crate) fn touch(&mut self, index: usize) {
        self.0 |= bit(index);
    }

    /// Whether something of the chunk that holds page `index` was touched since that was last taken.
    pub(crate) fn is_warm(self, index: usize) -> bool {
        self.0 & bit(index) != 0
    }

    /// Whether something of the chunk that holds page `index` was touched since this was asked last.
    pub(crate) fn take(&mut self, index: usize) -> bool {
        let was = self.0 & bit(index) != 0;
        self.0 &= !bit(index);
        was
    }
}

const fn bit(index: usize) -> u8 {
    1 << (index as u64 / CHUNK_PAGES)
}

impl Space {
    /// How warm `chunk`, which lies in one chunk, is, for people who look on: 0 (cold, or unknown) to 255, by its warmest page. Nothing is forgotten.
    #[must_use]
    pub fn warmth(&self, chunk: PageRange) -> u8 {
        let index = chunk.start().index_in_block();
        let Some(block) = self.existing_block(chunk.start().block()) else { return 0 };
        let state = block.lock();
        match &state.heat {
            Some(heat) => chunk.iter().map(|page| heat.page(page.index_in_block()).warmth()).max().unwrap_or(0),
            None if state.warmth.is_warm(index) => u8::MAX,
            None => 0,
        }
    }

    /// Whether something of `chunk`, which lies in one chunk, was touched since this was asked last.
    #[must_use]
    pub fn take_warmth(&self, chunk: PageRange) -> bool {
        let index = chunk.start().index_in_block();
        self.existing_block(chunk.start().block()).is_some_and(|block| block.lock().warmth.take(index))
    }
}

/// How warm a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heat(u8);

impl Default for Heat {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

impl Heat {
    /// Of a page that was never seen.
    pub const UNKNOWN: Self = Self(u8::MAX);
    /// Of a page that is about as warm as one gets, and was seen just now.
    pub const IN_USE: Self = Self(0);

    /// A page with these powers, each 15 at most.
    #[must_use]
    pub fn new(interval: u8, age: u8) -> Self {
        Self(interval.min(MOST) << 4 | age.min(MOST))
    }

    /// From one touch to the next it is less than 2 to this power ticks, and not much less; 15 is that or more.
    #[must_use]
    pub const fn interval(self) -> u8 {
        self.0 >> 4
    }

    /// It has not been seen for less than 2 to this power ticks, and not for much less; 15 is that or more.
    #[must_use]
    pub const fn age(self) -> u8 {
        self.0 & MOST
    }

    /// From 0, cold or unknown, to 255.
    #[must_use]
    const fn warmth(self) -> u8 {
        (MOST - self.interval()) * (u8::MAX / MOST)
    }

    /// How long it was not seen, `since` ticks after its age was told.
    fn away(self, since: u32) -> u8 {
        match self.age() {
            MOST => MOST,
            age => power(ticks(age).saturating_add(since)),
        }
    }

    /// It was touched, after it was not seen for so long.
    #[must_use]
    fn touched(self, away: u8) -> Self {
        let interval = match self.interval() {
            MOST => away,
            known if away > known => (known + away).div_ceil(2),
            known => u8::midpoint(known, away),
        };
        Self::new(interval, 0)
    }

    /// It was taken out: what is known of it stays, and its age counts from now on.
    #[must_use]
    fn taken_out(self) -> Self {
        Self::new(self.interval(), 0)
    }

    /// It was put back, untouched. What that says is that it is not touched more often.
    #[must_use]
    fn put_back(self) -> Self {
        let known = self.interval();
        Self::new(if known < self.age() { (known + self.age()).div_ceil(2) } else { known }, 0)
    }
}

/// What is known of the pages of one block.
#[derive(Debug)]
pub struct BlockHeat {
    /// The tick at which the ages were right.
    at: u32,
    /// Of all pages, while `each` is missing.
    whole: Heat,
    each: Option<Box<[Heat; PageCount::BLOCK.as_usize()]>>,
}

impl BlockHeat {
    /// Of a block of which nothing is known.
    #[must_use]
    pub const fn new(now: u32) -> Self {
        Self { at: now, whole: Heat::UNKNOWN, each: None }
    }

    /// Whether all pages are known as one.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.each.is_none()
    }

    /// The pages are known each by itself from now on.
    pub fn divide(&mut self) {
        let whole = self.whole;
        self.each.get_or_insert_with(|| Box::new([whole; PageCount::BLOCK.as_usize()]));
    }

    /// Brings the ages up to date.
    pub fn look(&mut self, now: u32) {
        if now == self.at {
            return;
        }
        let mut older: [u8; 16] = std::array::from_fn(|age| u8::try_from(age).unwrap_or(MOST));
        for age in &mut older {
            let mut at = u64::from(self.at);
            // A tick that has wrapped round is later, too.
            let end = at + u64::from(now.wrapping_sub(self.at));
            while *age < MOST {
                let span = u64::from(span(*age));
                at = (at / span + 1) * span;
                if at > end {
                    break;
                }
                *age += 1;
            }
        }
        let look = |heat: &mut Heat| heat.0 = heat.0 & !MOST | older[usize::from(heat.0 & MOST)];
        look(&mut self.whole);
        self.each.iter_mut().flat_map(|each| each.iter_mut()).for_each(look);
        self.at = now;
    }

    /// How warm page `index` (0 to 511) was when somebody [looked](Self::look).
    #[must_use]
    pub fn page(&self, index: usize) -> Heat {
        self.each.as_ref().map_or(self.whole, |each| each[index])
    }

    fn of(&mut self, index: usize) -> &mut Heat {
        match &mut self.each {
            Some(each) => &mut each[index],
            None => &mut self.whole,
        }
    }

    /// Page `index` was touched now; whether it was seen less than a minute before. Allocates nothing.
    pub fn touched(&mut self, index: usize, now: u32) -> bool {
        let since = now.wrapping_sub(self.at);
        let heat = self.of(index);
        let away = heat.away(since);
        *heat = heat.touched(away);
        away < MOST
    }

    /// Page `index` was taken out now.
    pub fn taken_out(&mut self, index: usize) {
        let heat = self.of(index);
        *heat = heat.taken_out();
    }

    /// The pages of `range`, which lies in the block, are this warm by what somebody says who should know.
    pub fn set(&mut self, range: PageRange, heat: Heat) {
        if range.pages() < PageCount::BLOCK {
            self.divide();
        }
        range.iter().for_each(|page| *self.of(page.index_in_block()) = heat);
    }

    /// Page `index` could not be taken out: it is treated as a hot one.
    pub fn refused(&mut self, index: usize) {
        *self.of(index) = Heat::IN_USE;
    }

    /// Page `index` was put back untouched.
    pub fn put_back(&mut self, index: usize) {
        let heat = self.of(index);
        *heat = heat.put_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BlockNo;

    /// A block of which page 7 was taken out at tick 1000.
    fn taken_out() -> BlockHeat {
        let mut block = BlockHeat::new(1000);
        block.divide();
        block.taken_out(7);
        block
    }

    #[test]
    fn a_touch_warms_its_chunk_until_that_is_asked() {
        for index in [0, 63, 64, 300, 511] {
            let mut warmth = Warmth::default();
            warmth.touch(index);
            let warm: Vec<usize> = (0..8).filter(|chunk| warmth.take(chunk * 64 + 5)).collect();
            assert_eq!(warm, [index / 64]);
            assert!((0..512).all(|index| !warmth.take(index)), "what was asked is forgotten");
        }
    }

    #[test]
    fn what_was_never_migrated_is_cold_and_costs_no_block() {
        let space = Space::default();
        let chunk = BlockNo::new(7).range().slice(PageCount::new(64), PageCount::new(CHUNK_PAGES));
        assert!(!space.take_warmth(chunk) && space.blocks().is_empty());
        space.block(BlockNo::new(7)).lock().warmth.touch(65);
        assert_eq!((space.warmth(chunk), space.warmth(chunk)), (255, 255), "a look on forgets nothing");
        assert!(space.take_warmth(chunk) && !space.take_warmth(chunk));
        assert_eq!(space.warmth(chunk), 0);
    }

    #[test]
    fn what_a_page_was_away_for_is_its_interval() {
        for (away, power) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1000, 10), (1 << 20, 15)] {
            let mut block = taken_out();
            assert_eq!(block.touched(7, 1000 + away), power < 15);
            assert_eq!(block.page(7), Heat::new(power, 0), "{away}");
            assert_eq!(block.page(8), Heat::UNKNOWN);
        }
    }

    #[test]
    fn ages_are_right_within_a_power_however_often_somebody_looks() {
        for step in [1, 2, 3, 7, 50, 1000] {
            let mut block = taken_out();
            for now in (1000..5000).step_by(step) {
                block.look(u32::try_from(now).unwrap());
                let right = power(u32::try_from(now - 1000).unwrap());
                assert!(block.page(7).age().abs_diff(right) <= 1, "{step} {now}: {:?}", block.page(7));
            }
        }
    }

    #[test]
    fn intervals_decay_towards_what_is_seen() {
        let mut block = taken_out();
        let mut now = 1000;
        let mut seen = Vec::new();
        for away in [1000, 1000, 2, 2, 2, 1000, 1000] {
            block.look(now);
            block.taken_out(7);
            now += away;
            block.touched(7, now);
            seen.push(block.page(7).interval());
        }
        assert_eq!(seen, [10, 10, 6, 4, 3, 7, 9]);
    }

    #[test]
    fn a_page_that_is_put_back_untouched_is_not_warmer_than_that_and_has_been_seen() {
        for (known, window, then) in [(0, 16, 3), (9, 16, 9), (15, 16, 15)] {
            let mut block = taken_out();
            *block.of(7) = Heat::new(known, 0);
            block.look(1000 + window);
            block.put_back(7);
            assert_eq!(block.page(7), Heat::new(then, 0));
        }
    }

    #[test]
    fn pages_of_a_huge_page_are_as_warm_as_it_until_they_are_divided() {
        let mut block = BlockHeat::new(u32::MAX);
        block.taken_out(0);
        block.touched(300, 1);
        assert_eq!(block.page(511), Heat::new(2, 0), "and ticks wrap round");
        block.divide();
        block.look(9);
        let ages = [300, 511].map(|page| block.page(page).age());
        assert!(ages[0] == ages[1] && ages[0].abs_diff(4) <= 1, "{ages:?}");
        block.touched(300, 9);
        assert_eq!([300, 511].map(|page| block.page(page).age()), [0, ages[1]]);
    }
}

//! The slots of one block, in as little as will do.
//!
//! ```text
//! One   the page that is not the system's, if there is one            nothing beyond the block
//! Few   at most 32 such pages, in order                               8 bytes each, and up to as much again
//! Near  a short word for each of the 512 pages ([`Near`])             1 KiB
//! Any   a word for each of them, whatever the frames                  3 KiB
//! ```
//!
//! They grow as pages leave the system ([`Slots::set`], [`Slots::expect`]), which is what migrations and events do, and shrink where a migration ends
//! ([`Slots::shrink`]). Touches bring pages home, or change what is said of them: that neither allocates nor frees, whatever the form.

use super::near::Near;
use crate::slot::{Slot, SlotWord};
use crate::units::PageCount;

/// As many pages are kept in a list: with more of them a table of frames that are near costs about as many bytes a page.
const FEW: usize = 32;
/// A table that has no more is made a list. Far less than [`FEW`], so that a block does not go to and fro.
const FEW_AGAIN: usize = FEW / 4;

/// The states of a block's pages.
pub(super) enum Slots {
    /// Of one page at most; `System` is none.
    One(Entry),
    Few(Box<Few>),
    Near(Box<Near>),
    Any(Box<Table>),
}

/// The state of one page.
#[derive(Clone, Copy, Default)]
pub(super) struct Entry {
    page: u16,
    word: SlotWord,
}

#[derive(Default)]
pub(super) struct Few {
    /// Those of pages that are not the system's, by page.
    entries: Vec<Entry>,
    counts: Counts,
}

pub(super) struct Table {
    words: [SlotWord; PageCount::BLOCK.as_usize()],
    counts: Counts,
    /// Pages that do not go on where those before them end.
    breaks: u16,
}

/// How many words from the first on go on where those before them end.
pub(super) fn run_of<T: Copy>(words: &[T], goes_on: impl Fn(T, T) -> bool) -> usize {
    1 + words.windows(2).take_while(|pair| goes_on(pair[0], pair[1])).count()
}

/// How many of page `index` and the one behind it do not go on where the page before them ends.
#[inline]
pub(super) fn breaks_around<T: Copy>(words: &[T], index: usize, goes_on: impl Fn(T, T) -> bool) -> u16 {
    let around = &words[index.saturating_sub(1)..words.len().min(index + 2)];
    around.windows(2).map(|pair| u16::from(!goes_on(pair[0], pair[1]))).sum()
}

/// How many of all pages do not.
pub(super) fn breaks_in<T: Copy>(words: &[T], goes_on: impl Fn(T, T) -> bool) -> u16 {
    words.windows(2).map(|pair| u16::from(!goes_on(pair[0], pair[1]))).sum()
}

/// How many pages are not the system's: 16 bits each for the mapped ones, the unmapped ones and the busy ones of those, to be changed at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counts(u64);

const BUSY: u64 = 1;
const UNMAPPED: u64 = 1 << 16;
const MAPPED: u64 = 1 << 32;

impl Counts {
    /// A page in `slot`.
    #[inline]
    const fn one(slot: Slot) -> u64 {
        match slot {
            Slot::System => 0,
            Slot::Mapped(_) => MAPPED,
            Slot::Unmapped { busy: false, .. } => UNMAPPED,
            Slot::Unmapped { busy: true, .. } => UNMAPPED + BUSY,
        }
    }

    /// Counts a page that was in one state and is in the other.
    #[inline]
    pub(super) fn change(&mut self, was: Slot, slot: Slot) {
        self.change_all(was, slot, PageCount::ONE);
    }

    /// Counts so many of them.
    #[inline]
    pub(super) fn change_all(&mut self, was: Slot, slot: Slot, pages: PageCount) {
        self.0 = self.0 + Self::one(slot) * pages.get() - Self::one(was) * pages.get();
    }

    pub(super) const fn busy(self) -> u16 {
        self.lane(BUSY)
    }

    pub(super) const fn unmapped(self) -> u16 {
        self.lane(UNMAPPED)
    }

    pub(super) const fn mapped(self) -> u16 {
        self.lane(MAPPED)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the 16 bits are cut out on purpose")]
    const fn lane(self, one: u64) -> u16 {
        (self.0 / one) as u16
    }

    const fn all(self) -> usize {
        self.unmapped() as usize + self.mapped() as usize
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self::One(Entry::default())
    }
}

impl Slots {
    /// The state of page `index`.
    #[expect(
        clippy::inline_always,
        reason = "called for each page of a block: by itself a call costs as much as what it does"
    )]
    #[inline(always)]
    pub(super) fn get(&self, index: usize) -> Slot {
        match self {
            Self::Near(near) => near.get(index),
            Self::Any(table) => table.words[index].get(),
            Self::One(entry) if entry.is_of(index) => entry.word.get(),
            Self::One(_) => Slot::System,
            Self::Few(few) => few.get(index),
        }
    }

    /// Sets the state of page `index`, which was `was`.
    #[expect(
        clippy::inline_always,
        reason = "called for each page of a block: by itself a call costs as much as what it does"
    )]
    #[inline(always)]
    pub(super) fn set(&mut self, index: usize, was: Slot, slot: Slot) {
        let is_set = if let Self::Near(near) = self { near.set(index, was, slot) } else { false };
        if !is_set {
            self.set_otherwise(index, was, slot);
        }
    }

    /// Sets the states of the `pages` pages from `index` on to those of a run that begins with `slot`; they were one that began with `was`.
    pub(super) fn set_run(&mut self, index: usize, pages: PageCount, was: Slot, slot: Slot) {
        if pages > PageCount::ONE
            && let Self::Near(near) = self
            && near.set_run(index, pages, was, slot)
        {
            return;
        }
        for (i, page) in (index..index + pages.as_usize()).enumerate() {
            let behind = PageCount::new(i as u64);
            self.set(page, was.behind(behind), slot.behind(behind));
        }
    }

    /// [`Slots::set`] where it is not the most frequent case.
    #[inline(never)]
    fn set_otherwise(&mut self, index: usize, was: Slot, slot: Slot) {
        let is_set = match self {
            Self::Near(_) => false,
            Self::Any(table) => table.set(index, was, slot),
            Self::Few(few) => few.set(index, was, slot),
            Self::One(entry) => entry.set(index, slot),
        };
        if !is_set {
            self.grow();
            self.set(index, was, slot);
        }
    }

    /// As many pages as `more` are about to leave the system.
    pub(super) fn expect(&mut self, more: usize) {
        if matches!(self, Self::One(_) | Self::Few(_)) && self.counts().all() + more > FEW {
            self.make_table();
        }
    }

    /// Takes the least form, unless a larger one is likely to be needed again soon.
    pub(super) fn shrink(&mut self) {
        let pages = self.counts().all();
        match self {
            Self::One(_) => {}
            Self::Few(_) | Self::Near(_) | Self::Any(_) if pages <= 1 => {
                let last = self.entries().next().unwrap_or_default();
                *self = Self::One(last);
            }
            Self::Near(_) | Self::Any(_) if pages <= FEW_AGAIN => self.make_few(),
            Self::Any(_) => _ = self.make_near(),
            Self::Few(_) | Self::Near(_) => {}
        }
    }

    pub(super) fn counts(&self) -> Counts {
        match self {
            Self::Near(near) => near.counts(),
            Self::Any(table) => table.counts,
            Self::Few(few) => few.counts,
            Self::One(entry) => Counts(Counts::one(entry.word.get())),
        }
    }

    /// Whether all pages are one run: each goes on where the one before it ends ([`SlotWord::goes_on_with`]).
    #[inline]
    pub(super) fn is_one_run(&self) -> bool {
        match self {
            Self::Near(near) => near.breaks() == 0,
            Self::Any(table) => table.breaks == 0,
            // A few are never all.
            Self::One(_) | Self::Few(_) => self.counts() == Counts::default(),
        }
    }

    /// How many of the `pages` pages from index `first` on are one run.
    pub(super) fn run(&self, first: usize, pages: usize) -> usize {
        match self {
            Self::Near(near) => near.run(first, pages),
            Self::Any(table) => run_of(&table.words[first..][..pages], SlotWord::goes_on_with),
            Self::Few(few) => few.run(first, pages),
            Self::One(entry) if entry.is_of(first) && entry.word != SlotWord::default() => 1,
            Self::One(entry) => entry.none_before(first, pages),
        }
    }

    /// Takes the next larger form.
    #[cold]
    fn grow(&mut self) {
        match self {
            Self::One(_) => self.make_few(),
            Self::Few(_) => self.make_table(),
            Self::Near(_) | Self::Any(_) => self.make_any(),
        }
    }

    fn make_few(&mut self) {
        *self = Self::Few(Box::new(Few { entries: self.entries().collect(), counts: self.counts() }));
    }

    fn make_table(&mut self) {
        if !self.make_near() {
            self.make_any();
        }
    }

    /// `false` if the frames are too far from one another.
    fn make_near(&mut self) -> bool {
        let mut near = Box::new(Near::new());
        let fit = self.entries().all(|entry| near.set(usize::from(entry.page), Slot::System, entry.word.get()));
        if fit {
            *self = Self::Near(near);
        }
        fit
    }

    fn make_any(&mut self) {
        let mut words = [SlotWord::default(); PageCount::BLOCK.as_usize()];
        self.entries().for_each(|entry| words[usize::from(entry.page)] = entry.word);
        let breaks = breaks_in(&words, SlotWord::goes_on_with);
        *self = Self::Any(Box::new(Table { words, counts: self.counts(), breaks }));
    }

    /// Those of the pages that are not the system's, by page.
    fn entries(&self) -> impl Iterator<Item = Entry> {
        let (listed, pages) = match self {
            Self::One(entry) => (std::slice::from_ref(entry), 0),
            Self::Few(few) => (few.entries.as_slice(), 0),
            Self::Near(_) | Self::Any(_) => ([].as_slice(), PageCount::BLOCK.as_usize()),
        };
        let of_table = (0..pages).map(|index| Entry::new(index, self.get(index)));
        listed.iter().copied().chain(of_table).filter(|entry| entry.word != SlotWord::default())
    }

    /// Checks what is counted and in which order.
    ///
    /// # Panics
    ///
    /// If it disagrees with the slots.
    pub(super) fn check(&self) {
        let counts = Counts(self.entries().map(|entry| Counts::one(entry.word.get())).sum());
        assert_eq!(self.counts(), counts, "counts match the slots");
        match self {
            Self::Few(few) => {
                assert!(few.entries.is_sorted_by(|a, b| a.page < b.page), "pages are listed once each, in order");
                assert_eq!(few.entries.len(), counts.all(), "none is listed that is the system's");
            }
            Self::Any(table) => {
                assert_eq!(table.breaks, breaks_in(&table.words, SlotWord::goes_on_with), "so do the runs");
            }
            Self::Near(near) => near.check(),
            Self::One(_) => {}
        }
    }
}

impl Entry {
    fn new(index: usize, slot: Slot) -> Self {
        Self { page: u16::try_from(index).expect("a block has 512 pages"), word: SlotWord::new(slot) }
    }

    fn is_of(&self, index: usize) -> bool {
        usize::from(self.page) == index
    }

    /// How many of the `pages` pages from `first` on come before this one, unless it is the system's, too. It is not the first.
    fn none_before(&self, first: usize, pages: usize) -> usize {
        match usize::from(self.page).checked_sub(first) {
            Some(before) if self.word != SlotWord::default() => before.min(pages),
            Some(_) | None => pages,
        }
    }

    /// `false` if there is no room for one more page.
    fn set(&mut self, index: usize, slot: Slot) -> bool {
        let has_room = self.is_of(index) || self.word == SlotWord::default();
        if has_room {
            *self = Self::new(index, slot);
        }
        has_room || slot == Slot::System
    }
}

impl Few {
    /// Where page `index` is listed, or belongs.
    fn find(&self, index: usize) -> Result<usize, usize> {
        // Who makes or reads a list goes forward, mostly.
        if self.entries.last().is_none_or(|last| usize::from(last.page) < index) {
            return Err(self.entries.len());
        }
        self.entries.binary_search_by_key(&index, |entry| usize::from(entry.page))
    }

    /// As [`Slots::run`]: from one listed page to the next, however many of the system's are between them.
    fn run(&self, first: usize, pages: usize) -> usize {
        match self.find(first) {
            Ok(at) => {
                let goes_on = |a: Entry, b: Entry| a.page + 1 == b.page && a.word.goes_on_with(b.word);
                run_of(&self.entries[at..], goes_on).min(pages)
            }
            Err(at) => self.entries.get(at).map_or(pages, |next| next.none_before(first, pages)),
        }
    }

    // Apart from those of the other forms, which are a few instructions.
    #[inline(never)]
    fn get(&self, index: usize) -> Slot {
        self.find(index).map_or(Slot::System, |at| self.entries[at].word.get())
    }

    /// `false` if there is no room for one more page.
    #[inline(never)]
    fn set(&mut self, index: usize, was: Slot, slot: Slot) -> bool {
        match (self.find(index), slot) {
            (Ok(at), Slot::System) => _ = self.entries.remove(at),
            (Ok(at), _) => self.entries[at].word = SlotWord::new(slot),
            (Err(_), Slot::System) => {}
            (Err(_), _) if self.entries.len() == FEW => return false,
            (Err(at), _) => self.entries.insert(at, Entry::new(index, slot)),
        }
        self.counts.change(was, slot);
        true
    }
}

impl Table {
    /// There is room for every page.
    #[inline]
    fn set(&mut self, index: usize, was: Slot, slot: Slot) -> bool {
        self.counts.change(was, slot);
        self.breaks -= breaks_around(&self.words, index, SlotWord::goes_on_with);
        self.words[index] = SlotWord::new(slot);
        self.breaks += breaks_around(&self.words, index, SlotWord::goes_on_with);
        true
    }
}

#[cfg(test)]
mod tests;

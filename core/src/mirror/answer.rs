//! What is answered: of a page ([`MirrorPage`]), and of pages that are alike ([`MirrorRun`]).

use crate::slot::Frame;
use crate::units::{DeviceId, FrameIndex, PageCount, PageRange, VirtAddr};

/// Where a page is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Place {
    /// In system memory.
    System,
    /// Nowhere: it reads as zeros until it is written.
    Zero,
    /// In a device's frame. A coherent one's is used at the page's address, and a private one's on its device only.
    Device(Frame),
}

/// One page's answer, in a word of the kernel's form (`HMM_PFN_*`): valid, writable and error in bits 63 to 61, the order in bits 56 to
/// 60, below it the place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct MirrorPage(u64);

const VALID: u64 = 1 << 63;
const WRITE: u64 = 1 << 62;
const ERROR: u64 = 1 << 61;
const ORDER_SHIFT: u32 = 56;
const ZERO: u64 = 1 << 55;
const DEVICE: u64 = 1 << 54;
/// The mapping allows writes; kept for the permission check.
const MAPPED_FOR_WRITE: u64 = 1 << 53;
/// The frame is a private device's.
const PRIVATE: u64 = 1 << 52;

impl MirrorPage {
    /// Nothing can be there.
    pub(super) const ERROR: Self = Self(ERROR);

    /// Nothing is there, of a mapping that can be read.
    pub(super) const fn missing(mapped_for_write: bool) -> Self {
        Self(if mapped_for_write { MAPPED_FOR_WRITE } else { 0 })
    }

    /// The page is there, in system memory for all that is known.
    pub(super) const fn present(self, writable: bool, zero: bool, order: u8) -> Self {
        let write = if writable && self.allows_write() { WRITE } else { 0 };
        let zero = if zero { ZERO } else { 0 };
        Self(self.0 & MAPPED_FOR_WRITE | VALID | write | zero | ((order & 0x1F) as u64) << ORDER_SHIFT)
    }

    /// The page is not there after all.
    pub(super) const fn away(self) -> Self {
        Self(self.0 & MAPPED_FOR_WRITE)
    }

    /// The page is in `frame` of a private device, which may be used as far as the mapping allows.
    pub(super) const fn in_private(self, frame: Frame) -> Self {
        Self(self.away().0 | VALID | PRIVATE).granted().at(frame)
    }

    /// The page is in `frame`, which changes nothing else of the answer.
    pub(super) const fn at(self, frame: Frame) -> Self {
        Self(
            self.0 & !(ZERO | 0xFF_FFFF_FFFF) | DEVICE | (frame.device.index() as u64) << 32 | frame.index.get() as u64,
        )
    }

    /// The page may be written, if it is there and its mapping allows it.
    pub(super) const fn granted(self) -> Self {
        Self(if self.is_valid() && self.allows_write() { self.0 | WRITE } else { self.0 })
    }

    pub(super) const fn allows_write(self) -> bool {
        self.0 & MAPPED_FOR_WRITE != 0
    }

    /// How much the word grows from one page of a run to the next.
    const fn step(self) -> u64 {
        if self.0 & DEVICE != 0 { 1 } else { 0 }
    }

    /// Whether there is a page, which can be read.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// Whether it can be written, too.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.0 & WRITE != 0
    }

    /// Whether nothing can be there: no mapping, or none that can be read.
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 & ERROR != 0
    }

    /// The page is part of 2^order pages that are mapped as one; they may reach beyond what was asked for.
    #[must_use]
    pub const fn order(self) -> u8 {
        (self.0 >> ORDER_SHIFT & 0x1F) as u8
    }

    /// Where it is, if it is valid.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the fields are cut out of the word on purpose")]
    pub const fn place(self) -> Option<Place> {
        if !self.is_valid() {
            return None;
        }
        if self.0 & DEVICE != 0 {
            let device = DeviceId::new((self.0 >> 32) as u8);
            return Some(Place::Device(Frame { device, index: FrameIndex::new(self.0 as u32) }));
        }
        Some(if self.0 & ZERO != 0 { Place::Zero } else { Place::System })
    }

    /// Whether it is in a frame that only its device can use.
    #[must_use]
    pub const fn is_private(self) -> bool {
        self.is_valid() && self.0 & PRIVATE != 0
    }
}

impl std::fmt::Debug for MirrorPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.place() {
            None if self.is_error() => write!(f, "error"),
            None => write!(f, "none"),
            Some(place) => {
                let access = if self.is_writable() { "writable" } else { "readable" };
                write!(f, "{access} {place:?} order {}", self.order())
            }
        }
    }
}

/// Pages that follow one another and are answered alike: in all but their frames, if they are in a device's, and those follow one another, too.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MirrorRun {
    /// The pages; there is one at least.
    pub range: PageRange,
    /// The answer of the first of them.
    pub first: MirrorPage,
}

impl MirrorRun {
    /// The answer of the page that is `after` pages behind the first.
    #[inline]
    #[must_use]
    pub const fn page(&self, after: PageCount) -> MirrorPage {
        MirrorPage(self.first.0 + self.first.step() * after.get())
    }

    /// Each page and its answer, in order.
    #[inline]
    pub fn pages(self) -> impl Iterator<Item = (VirtAddr, MirrorPage)> {
        self.range.iter().zip(0..).map(move |(page, after)| (page, self.page(PageCount::new(after))))
    }

    /// Writes the answers to the first of `places`, which has those behind them then.
    #[inline]
    pub(super) fn write_to(&self, places: &mut &mut [MirrorPage]) {
        let (here, behind) = std::mem::take(places).split_at_mut(self.range.pages().as_usize());
        *places = behind;
        if let [one] = here {
            *one = self.first;
        } else if self.first.step() == 0 {
            here.fill(self.first);
        } else {
            for (place, after) in here.iter_mut().zip(0..self.range.pages().get()) {
                *place = MirrorPage(self.first.0.wrapping_add(after));
            }
        }
    }

    /// At most `take` of the pages, from `skip` on.
    #[inline]
    pub(super) fn slice(self, skip: PageCount, take: PageCount) -> Self {
        Self { range: self.range.slice(skip, take), first: self.page(skip.min(self.range.pages())) }
    }

    /// What lies before `page`; maybe nothing.
    #[inline]
    pub(super) fn before(self, page: VirtAddr) -> Self {
        let pages = page.max(self.range.start()).pages_since(self.range.start());
        self.slice(PageCount::ZERO, pages)
    }

    /// What lies from `page` on; maybe nothing.
    #[inline]
    pub(super) fn from(self, page: VirtAddr) -> Self {
        let pages = page.max(self.range.start()).pages_since(self.range.start());
        self.slice(pages, self.range.pages())
    }

    /// Whether pages from `range` on, the first of which is answered by `first`, go on where this run ends, and as it does.
    #[inline]
    fn goes_on_with(&self, range: PageRange, first: MirrorPage) -> bool {
        self.range.end() == range.start() && self.page(self.range.pages()) == first
    }
}

/// Appends the pages of `range`, if there are any, the first of which is answered by `first`, and joins them with what they go on with. (They are
/// named in two parts, which the compiler hands over in registers: a range on a device may have as many runs as pages.)
#[inline]
pub(super) fn append(runs: &mut Vec<MirrorRun>, range: PageRange, first: MirrorPage) {
    if range.is_empty() {
        return;
    }
    if let Some(last) = runs.last_mut()
        && last.goes_on_with(range, first)
        && let Some(both) = PageRange::between(last.range.start(), range.end())
    {
        last.range = both;
    } else {
        runs.push(MirrorRun { range, first });
    }
}

/// How many of `runs` lie before `page`, all of them.
pub(super) fn count_before(runs: &[MirrorRun], page: VirtAddr) -> usize {
    runs.partition_point(|run| run.range.end() <= page)
}

/// Takes away what `runs` have from `page` on.
pub(super) fn truncate(runs: &mut Vec<MirrorRun>, page: VirtAddr) {
    runs.truncate(runs.partition_point(|run| run.range.start() < page));
    if let Some(last) = runs.last_mut() {
        *last = last.before(page);
    }
}

/// Says of the pages of `granted` that they can be written, as far as they are there.
pub(super) fn grant(runs: &mut Vec<MirrorRun>, granted: PageRange) {
    for run in runs.split_off(count_before(runs, granted.start())) {
        let inside = run.from(granted.start()).before(granted.end());
        let (before, behind) = (run.before(granted.start()), run.from(granted.end()));
        append(runs, before.range, before.first);
        append(runs, inside.range, inside.first.granted());
        append(runs, behind.range, behind.first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first_page: u64, pages: u64, first: MirrorPage) -> MirrorRun {
        let start = VirtAddr::new(0).add_pages(PageCount::new(first_page));
        MirrorRun { range: PageRange::new(start, PageCount::new(pages)).unwrap(), first }
    }

    fn framed(device: u8, index: u32) -> MirrorPage {
        let frame = Frame { device: DeviceId::new(device), index: FrameIndex::new(index) };
        MirrorPage::missing(true).in_private(frame)
    }

    #[test]
    fn what_is_alike_and_goes_on_is_one_run() {
        let system = MirrorPage::missing(true).present(true, false, 0);
        let pieces = [
            (run(0, 2, system), 1),
            (run(2, 3, system), 1),
            (run(6, 1, system), 2),
            (run(7, 1, system.present(true, false, 9)), 3),
            (run(8, 2, framed(1, 40)), 4),
            (run(10, 5, framed(1, 42)), 4),
            (run(15, 1, framed(1, 48)), 5),
            (run(16, 1, framed(2, 49)), 6),
            (run(17, 0, system), 6),
            (run(17, 1, MirrorPage::ERROR), 7),
        ];
        let mut runs = Vec::new();
        for (piece, expected) in pieces {
            append(&mut runs, piece.range, piece.first);
            assert_eq!(runs.len(), expected, "after {piece:?}");
        }
        let expanded = |runs: &[MirrorRun]| runs.iter().flat_map(|run| run.pages()).collect::<Vec<_>>();
        let all: Vec<MirrorRun> = pieces.iter().map(|(piece, _)| *piece).collect();
        assert_eq!(expanded(&runs), expanded(&all));
        let expected: Vec<MirrorPage> = expanded(&runs).into_iter().map(|(_, page)| page).collect();
        let mut places = vec![MirrorPage::default(); expected.len()];
        let mut left = &mut places[..];
        runs.iter().for_each(|run| run.write_to(&mut left));
        assert!(left.is_empty());
        assert_eq!(places, expected);
    }

    #[test]
    fn runs_are_cut_anywhere() {
        for at in 0..12 {
            let page = VirtAddr::new(0).add_pages(PageCount::new(at));
            let all = [run(2, 4, framed(3, 7)), run(6, 4, MirrorPage::missing(true))];
            let mut runs = all.to_vec();
            truncate(&mut runs, page);
            let kept = runs.iter().flat_map(|run| run.pages());
            let expected = all.iter().flat_map(|run| run.pages()).filter(|(other, _)| *other < page);
            assert!(kept.eq(expected), "before {page}: {runs:?}");
            for run in all {
                assert!(run.before(page).pages().chain(run.from(page).pages()).eq(run.pages()), "{run:?} at {page}");
            }
        }
    }

    #[test]
    fn what_was_granted_can_be_written_where_it_is() {
        let (open, closed) = (MirrorPage::missing(true), MirrorPage::missing(false));
        let mut runs =
            vec![run(0, 4, open.present(false, false, 0)), run(4, 1, open), run(5, 3, closed.present(true, false, 0))];
        grant(&mut runs, run(2, 5, open).range);
        let writable = runs.iter().flat_map(|run| run.pages()).map(|(_, page)| page.is_writable());
        assert!(writable.eq([false, false, true, true, false, false, false, false]), "{runs:?}");
    }
}

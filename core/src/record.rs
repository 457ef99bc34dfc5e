//! What is recorded of a run, so that it can be replayed: records of 16 bytes, and the ring in which a process leaves them to who writes them down.
//!
//! A record is two words: its kind, a detail and a page in the first, a value in the second. What each kind has in them is in the table of
//! docs/traces.md, and nowhere else than in [`Record::encode`] and [`Record::decode`].

mod ring;

use crate::migrate::Target;
use crate::units::{DeviceId, PAGE_SHIFT, PageCount, PageRange, VirtAddr};

pub use ring::{PLACES, Ring};

/// The pages of a chunk: as many as a word has bits.
pub const CHUNK: u64 = 64;
/// Page numbers below this can be recorded.
pub const MOST_PAGES: u64 = 1 << (64 - PAGE_AT);
/// Pages that a [`Record::Renamed`] names at most.
pub const MOST_RENAMED: PageCount = PageCount::new((1 << RENAMED_BITS) - 1);

const DETAIL_AT: u32 = 8;
const PAGE_AT: u32 = 16;
const RENAMED_BITS: u32 = 16;

/// Something that happened. Times are nanoseconds, of the machine's monotonic clock or from some beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// A page was touched. Nobody sees that of a program that runs by itself: other tools do.
    Touch {
        /// The page.
        page: VirtAddr,
        /// Whether it was written.
        write: bool,
        /// When.
        time: u64,
    },
    /// A touch found its page away, and it came home.
    Fault {
        /// The page.
        page: VirtAddr,
        /// How many came home, from this one on: 1 to 255.
        pages: u8,
        /// When.
        time: u64,
    },
    /// A page was out as a sample for a while.
    Sample {
        /// The page.
        page: VirtAddr,
        /// How many pages were out as one, from this one on, as a power of two.
        order: u8,
        /// Whether it was touched.
        touched: bool,
        /// When that was over.
        time: u64,
    },
    /// Pages of a chunk have moved.
    Moved {
        /// The chunk's first page.
        chunk: VirtAddr,
        /// Where they are now.
        to: Target,
        /// Which of the chunk, the first as the lowest bit.
        pages: u64,
    },
    /// Pages of a chunk were seen to be there.
    Present {
        /// The chunk's first page.
        chunk: VirtAddr,
        /// Which of the chunk, the first as the lowest bit.
        pages: u64,
    },
    /// A range is managed from now on.
    Managed(PageRange),
    /// A range is managed no longer; its pages may be there.
    Forgotten(PageRange),
    /// The pages of a range are gone: unmapped, or discarded.
    Gone(PageRange),
    /// Pages have another address now.
    Renamed {
        /// Where they were: at most [`MOST_RENAMED`].
        from: PageRange,
        /// Where the first of them is.
        to: VirtAddr,
    },
    /// The policy has been asked.
    Tick {
        /// How much anonymous memory the process has.
        anonymous: PageCount,
        /// When.
        time: u64,
    },
    /// What follows is of this process.
    Process {
        /// Its id.
        pid: u32,
    },
    /// Records are missing here, as there was no room for them.
    Dropped {
        /// How many.
        records: u64,
    },
    /// The process begins, or executes another program: nothing is managed, or there.
    Began,
    /// The recording ended here, and was not cut off.
    End {
        /// When.
        time: u64,
    },
}

/// The kinds, as they are written. 0 is none, so that an empty place of a ring is told from a record.
mod kind {
    pub(super) const TOUCH: u8 = 1;
    pub(super) const FAULT: u8 = 2;
    pub(super) const SAMPLE: u8 = 3;
    pub(super) const MOVED: u8 = 4;
    pub(super) const PRESENT: u8 = 5;
    pub(super) const MANAGED: u8 = 6;
    pub(super) const FORGOTTEN: u8 = 7;
    pub(super) const GONE: u8 = 8;
    pub(super) const RENAMED: u8 = 9;
    pub(super) const TICK: u8 = 10;
    pub(super) const PROCESS: u8 = 11;
    pub(super) const DROPPED: u8 = 12;
    pub(super) const END: u8 = 13;
    pub(super) const BEGAN: u8 = 14;
}

/// In the detail of a move, system memory; a device is its number.
const HOME: u8 = u8::MAX;
/// In the detail of a sample: it was touched. The bits below are the order.
const TOUCHED: u8 = 1 << 7;

impl Record {
    /// The two words. A page that can't be recorded ([`MOST_PAGES`]) loses its highest bits.
    #[must_use]
    #[inline]
    pub fn encode(self) -> [u64; 2] {
        let number = |page: VirtAddr| page.get() >> PAGE_SHIFT;
        let of_range = |kind, range: PageRange| (kind, 0, number(range.start()), range.pages().get());
        let (kind, detail, page, value) = match self {
            Self::Touch { page, write, time } => (kind::TOUCH, u8::from(write), number(page), time),
            Self::Fault { page, pages, time } => (kind::FAULT, pages, number(page), time),
            Self::Sample { page, order, touched, time } => {
                (kind::SAMPLE, order & !TOUCHED | if touched { TOUCHED } else { 0 }, number(page), time)
            }
            Self::Moved { chunk, to, pages } => {
                let to = match to {
                    Target::System => HOME,
                    Target::Device(id) => id.get(),
                };
                (kind::MOVED, to, number(chunk), pages)
            }
            Self::Present { chunk, pages } => (kind::PRESENT, 0, number(chunk), pages),
            Self::Managed(range) => of_range(kind::MANAGED, range),
            Self::Forgotten(range) => of_range(kind::FORGOTTEN, range),
            Self::Gone(range) => of_range(kind::GONE, range),
            Self::Renamed { from, to } => {
                let pages = from.pages().min(MOST_RENAMED).get();
                (kind::RENAMED, 0, number(from.start()), number(to) << RENAMED_BITS | pages)
            }
            Self::Tick { anonymous, time } => (kind::TICK, 0, anonymous.get(), time),
            Self::Process { pid } => (kind::PROCESS, 0, 0, u64::from(pid)),
            Self::Dropped { records } => (kind::DROPPED, 0, 0, records),
            Self::End { time } => (kind::END, 0, 0, time),
            Self::Began => (kind::BEGAN, 0, 0, 0),
        };
        [u64::from(kind) | u64::from(detail) << DETAIL_AT | page << PAGE_AT, value]
    }

    /// The record that two words are; `None` if they are none.
    #[must_use]
    #[inline]
    pub fn decode([first, value]: [u64; 2]) -> Option<Self> {
        let [kind, detail, ..] = first.to_le_bytes();
        let page = VirtAddr::new(first >> PAGE_AT << PAGE_SHIFT);
        let range = || PageRange::new(page, PageCount::new(value));
        let chunk = || (page.get() >> PAGE_SHIFT).is_multiple_of(CHUNK).then_some(page);
        Some(match kind {
            kind::TOUCH => Self::Touch { page, write: detail != 0, time: value },
            kind::FAULT if detail > 0 => Self::Fault { page, pages: detail, time: value },
            kind::SAMPLE => {
                Self::Sample { page, order: detail & !TOUCHED, touched: detail & TOUCHED != 0, time: value }
            }
            kind::MOVED => {
                let to = if detail == HOME { Target::System } else { Target::Device(DeviceId::new(detail)) };
                Self::Moved { chunk: chunk()?, to, pages: value }
            }
            kind::PRESENT => Self::Present { chunk: chunk()?, pages: value },
            kind::MANAGED => Self::Managed(range()?),
            kind::FORGOTTEN => Self::Forgotten(range()?),
            kind::GONE => Self::Gone(range()?),
            kind::RENAMED => {
                let pages = PageCount::new(value & MOST_RENAMED.get());
                Self::Renamed {
                    from: PageRange::new(page, pages)?,
                    to: VirtAddr::new(value >> RENAMED_BITS << PAGE_SHIFT),
                }
            }
            kind::TICK => Self::Tick { anonymous: PageCount::new(first >> PAGE_AT), time: value },
            kind::PROCESS => Self::Process { pid: u32::try_from(value).ok()? },
            kind::DROPPED => Self::Dropped { records: value },
            kind::END => Self::End { time: value },
            kind::BEGAN => Self::Began,
            _ => return None,
        })
    }
}

/// Pages of `range` by chunks, where `is_in` says so of the page of that place in the range: the first page of each chunk that has any, and which.
pub fn by_chunks(range: PageRange, is_in: impl Fn(usize) -> bool) -> impl Iterator<Item = (VirtAddr, u64)> {
    let first = range.start().get() >> PAGE_SHIFT;
    let end = first + range.pages().get();
    let chunks = first / CHUNK..end.div_ceil(CHUNK);
    chunks.filter_map(move |chunk| {
        let start = chunk * CHUNK;
        let inside = start.max(first)..(start + CHUNK).min(end);
        let at = |page: u64| PageCount::new(page - first).as_usize();
        let pages = inside.filter(|page| is_in(at(*page))).fold(0, |pages, page| pages | 1 << (page - start));
        (pages != 0).then(|| (VirtAddr::new(start << PAGE_SHIFT), pages))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PAGE_SIZE;
    use proptest::prelude::*;

    fn page() -> impl Strategy<Value = VirtAddr> {
        (0..MOST_PAGES).prop_map(|page| VirtAddr::new(page * PAGE_SIZE))
    }

    fn range() -> impl Strategy<Value = PageRange> {
        let range = |(first, pages): (VirtAddr, u64)| PageRange::new(first, PageCount::new(pages)).unwrap();
        (page(), 0..1_u64 << 40).prop_map(range)
    }

    fn chunk() -> impl Strategy<Value = VirtAddr> {
        (0..MOST_PAGES / CHUNK).prop_map(|chunk| VirtAddr::new(chunk * CHUNK * PAGE_SIZE))
    }

    fn target() -> impl Strategy<Value = Target> {
        (0..=u8::MAX).prop_map(|id| if id == HOME { Target::System } else { Target::Device(DeviceId::new(id)) })
    }

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            (page(), any::<bool>(), any::<u64>()).prop_map(|(page, write, time)| Record::Touch { page, write, time }),
            (page(), 1..=u8::MAX, any::<u64>()).prop_map(|(page, pages, time)| Record::Fault { page, pages, time }),
            (page(), 0..64_u8, any::<bool>(), any::<u64>()).prop_map(|(page, order, touched, time)| Record::Sample {
                page,
                order,
                touched,
                time
            }),
            (chunk(), target(), any::<u64>()).prop_map(|(chunk, to, pages)| Record::Moved { chunk, to, pages }),
            (chunk(), any::<u64>()).prop_map(|(chunk, pages)| Record::Present { chunk, pages }),
            range().prop_map(Record::Managed),
            range().prop_map(Record::Forgotten),
            range().prop_map(Record::Gone),
            (range(), 0..=MOST_RENAMED.get(), page()).prop_map(|(from, pages, to)| {
                Record::Renamed { from: PageRange::new(from.start(), PageCount::new(pages)).unwrap(), to }
            }),
            (0..MOST_PAGES, any::<u64>())
                .prop_map(|(pages, time)| Record::Tick { anonymous: PageCount::new(pages), time }),
            any::<u32>().prop_map(|pid| Record::Process { pid }),
            any::<u64>().prop_map(|records| Record::Dropped { records }),
            any::<u64>().prop_map(|time| Record::End { time }),
            Just(Record::Began),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(record in record()) {
            prop_assert_ne!(record.encode()[0], 0, "an empty place is told from it");
            prop_assert_eq!(Record::decode(record.encode()), Some(record));
        }

        #[test]
        fn any_two_words_are_a_record_or_none(words in any::<[u64; 2]>(), kind in 0..20_u64) {
            let _ = Record::decode(words);
            if let Some(record) = Record::decode([words[0] & !0xff | kind, words[1]]) {
                prop_assert_eq!(Record::decode(record.encode()), Some(record));
            }
        }

        #[test]
        fn pages_are_found_in_their_chunks(first in 0..200_u64, pages in 0..300_u64, seed: u64) {
            let range = PageRange::new(VirtAddr::new(first * PAGE_SIZE), PageCount::new(pages)).unwrap();
            let is_in = |at: usize| seed >> (at % 64) & 1 == 1;
            let found: Vec<u64> = by_chunks(range, is_in)
                .flat_map(|(chunk, which)| {
                    let first = chunk.get() / PAGE_SIZE;
                    (0..CHUNK).filter(move |bit| which >> bit & 1 == 1).map(move |bit| first + bit)
                })
                .collect();
            let expected: Vec<u64> =
                (0..pages).filter(|at| is_in(usize::try_from(*at).unwrap())).map(|at| first + at).collect();
            prop_assert_eq!(found, expected);
        }
    }
}

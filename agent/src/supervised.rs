//! What the worker does for the supervisor while somebody looks at the run: counts, answers, takes another limit.
//!
//! It looks at a few words of the statistics memory each time that it wakes from a nap, and is woken by nobody: so an answer takes as long as its
//! longest nap, a quarter of a second, and as long as nobody asks all this costs nothing.

use std::time::Instant;

use hetmem_core::advice::{Advice, AdviceError};
use hetmem_core::migrate::{Request as Migration, Target};
use hetmem_core::units::{BLOCK_PAGES, ByteLen, PAGE_SHIFT, PageCount, PageRange, VirtAddr};

use hetmem_sys::thread::processor_time;

use super::advice::Advised;
use super::budget::Membership;
use super::housekeeping::Housekeeping;
use super::ledger::Seat;
use super::requests::{ANSWER_WORDS, Request};
use hetmem::for_agent::Managed;

/// How much is migrated for one request (16 MiB): the program's threads may ask for something meanwhile.
const MIGRATED: PageCount = PageCount::new(8 * BLOCK_PAGES);
/// How much is looked at for one request (16 GiB).
const LOOKED_AT: PageCount = PageCount::new(8192 * BLOCK_PAGES);
/// At most 2 % of a processor is spent on counting: the time from one count to the next is what one takes, times this.
const COUNTING: u32 = 50;
/// The most parts that heat is told in.
const MOST_CELLS: u32 = 1024;

/// What the supervisor has had of this process.
pub(super) struct Supervised {
    /// `None` where there is no statistics memory, or no room in it.
    seat: Option<Seat<'static>>,
    /// The process that it was forked from, which counts what both share while it lives.
    parent: Option<Membership>,
    /// The number of the last request that was attended to.
    attended: u64,
    /// The last look for which was counted.
    looked: u64,
    /// When it may be counted again.
    counts_from: Instant,
    limit: ByteLen,
}

impl Supervised {
    pub(super) fn new(seat: Option<Seat<'static>>, parent: Option<Membership>) -> Self {
        // What was asked of the program that this process executed before, nobody waits for.
        let (attended, looked) = seat.map_or((0, 0), |seat| (seat.request_number(), 0));
        Self { seat, parent, attended, looked, counts_from: Instant::now(), limit: ByteLen::new(0) }
    }

    /// Whether there is something to attend to now.
    pub(super) fn is_asked(&self) -> bool {
        let Some(seat) = self.seat else { return false };
        let number = seat.request_number();
        (number != 0 && number != self.attended)
            || seat.system_limit() != self.limit
            || (seat.looks() != self.looked && Instant::now() >= self.counts_from)
    }

    /// The limit that holds from now on, if it is another than before.
    pub(super) fn new_limit(&mut self) -> Option<PageCount> {
        let limit = self.seat?.system_limit();
        let is_new = limit != self.limit;
        self.limit = limit;
        // Anything may be written there.
        Some(limit.pages_down()).filter(|pages| is_new && !pages.is_zero())
    }

    /// Does what is wanted; whether there was anything.
    pub(super) fn attend(&mut self, managed: &Managed, house: &mut Housekeeping<'_>, advised: &mut Advised) -> bool {
        let Some(seat) = self.seat else { return false };
        let (look, number) = (seat.looks(), seat.request_number());
        let is_wanted = look != self.looked && Instant::now() >= self.counts_from;
        if is_wanted {
            self.looked = look;
            let began = processor_time();
            let ranges = managed.regions();
            let is_apart = self.parent.is_some_and(|parent| parent.is_alive());
            let pages = if is_apart { managed.count_own(&ranges) } else { managed.count_resident(&ranges) };
            managed.look_at_packing();
            seat.tell_resident(pages, look);
            self.counts_from = Instant::now() + processor_time().saturating_sub(began) * COUNTING;
        }
        let is_asked = number != 0 && number != self.attended;
        if is_asked {
            let request = seat.request(number);
            // If another request came meanwhile, that one is attended to next.
            if seat.request_number() == number {
                self.attended = number;
            }
            if let Some(request) = request {
                let (words, next) = answer(managed, house, advised, request);
                seat.answer(number, &words, next);
            }
        }
        is_wanted || is_asked
    }
}

/// The words of an answer, and where to go on.
fn answer(
    managed: &Managed,
    house: &mut Housekeeping<'_>,
    advised: &mut Advised,
    request: Request,
) -> (Vec<u64>, Option<VirtAddr>) {
    match request {
        Request::Regions { from } => {
            rows(managed, from, PageRange::ALL.pages(), 2, |part| vec![number_of(part.start()), part.pages().get()])
        }
        Request::Residency { from } => rows(managed, from, LOOKED_AT, 3 + managed.devices().len(), |part| {
            let there = managed.places(part);
            [number_of(part.start()), part.pages().get()]
                .into_iter()
                .chain(there.iter().map(|pages| pages.get()))
                .collect()
        }),
        Request::Heat { cells } => (heat(managed, cells.min(MOST_CELLS)), None),
        Request::Migrate { range, to } => migrate(managed, range, to),
        Request::Advise { range, advice } => (advise(managed, house, advised, range, advice), None),
    }
}

/// Takes advice; what of the range is not managed.
fn advise(
    managed: &Managed,
    house: &mut Housekeeping<'_>,
    advised: &mut Advised,
    range: PageRange,
    advice: Advice,
) -> Vec<u64> {
    match advised.take(managed, house, range, Some(advice)) {
        Err(AdviceError::Unmanaged(part)) => vec![number_of(part.start()), part.pages().get()],
        // Whoever asks knows which devices there are.
        Ok(()) | Err(AdviceError::NoDevice { .. }) => vec![0, 0],
    }
}

const fn number_of(page: VirtAddr) -> u64 {
    page.get() >> PAGE_SHIFT
}

/// A row of `width` words for each region from `from` on, until the answer is full or has told of `pages` pages.
fn rows(
    managed: &Managed,
    from: VirtAddr,
    pages: PageCount,
    width: usize,
    row: impl Fn(PageRange) -> Vec<u64>,
) -> (Vec<u64>, Option<VirtAddr>) {
    let (mut words, mut left) = (Vec::new(), pages);
    for region in managed.regions() {
        let Some(part) = PageRange::between(from.max(region.start()), region.end()).filter(|part| !part.is_empty())
        else {
            continue;
        };
        if left.is_zero() || words.len() + width > ANSWER_WORDS {
            return (words, Some(part.start()));
        }
        let told = part.slice(PageCount::ZERO, left);
        words.extend(row(told));
        left = left - told.pages();
        if told != part {
            return (words, Some(told.end()));
        }
    }
    (words, None)
}

/// How warm what is managed is, in `cells` parts of one size: the mean of the chunks in each.
fn heat(managed: &Managed, cells: u32) -> Vec<u64> {
    let regions = managed.regions();
    let all: PageCount = regions.iter().map(|region| region.pages()).sum();
    let size = all.get().div_ceil(u64::from(cells)).max(1);
    let mut words = Vec::new();
    // Where the cell under way begins, its pages, and the sum of their heat.
    let (mut first, mut pages, mut sum) = (None, 0, 0);
    for region in regions {
        let mut at = region;
        while !at.is_empty() {
            let part = at.slice(PageCount::ZERO, PageCount::new(size - pages));
            at = at.slice(part.pages(), at.pages());
            let start = *first.get_or_insert(part.start());
            pages += part.pages().get();
            sum += managed.warmth(part);
            if pages == size {
                words.extend([number_of(start), pages, sum / pages]);
                (first, pages, sum) = (None, 0, 0);
            }
        }
    }
    if let Some(start) = first {
        words.extend([number_of(start), pages, sum / pages]);
    }
    words
}

/// Migrates what is managed at the beginning of `range`.
fn migrate(managed: &Managed, range: PageRange, to: Target) -> (Vec<u64>, Option<VirtAddr>) {
    let (mut moved, mut kept, mut left) = (PageCount::ZERO, PageCount::ZERO, MIGRATED);
    if let Target::Device(device) = to
        && managed.device(device).is_none()
    {
        return (vec![0, 0], None);
    }
    for region in managed.regions() {
        let Some(part) = range.intersect(region).filter(|part| !part.is_empty()) else { continue };
        if left.is_zero() {
            return (vec![moved.get(), kept.get()], Some(part.start()));
        }
        let part = part.slice(PageCount::ZERO, left);
        let outcomes = managed.migrate(part, Migration::all_to(to));
        moved += outcomes.moved();
        kept += part.pages() - outcomes.moved().min(part.pages());
        left = left - part.pages();
        if left.is_zero() && part.end() < range.end() {
            return (vec![moved.get(), kept.get()], Some(part.end()));
        }
    }
    (vec![moved.get(), kept.get()], None)
}

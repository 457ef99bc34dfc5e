//! What the supervisor asks of one process through the statistics memory, and what that answers: one request at a time, by whoever has the turn there.
//!
//! ```text
//! supervisor                        worker of process P
//! ----------                        -------------------
//! ask(P, request): its words,
//! then its number ────────────────► sees the number when it wakes from its nap
//!                                   writes rows, then the number of what it answered
//! reply(number)   ◄────────────────
//! ```
//!
//! Nobody waits for anybody here: who asks gives up when he likes, and asks the next. So a process that was stopped in the middle of an answer may go
//! on with it when another is answered. Therefore each word of an answer says which request it belongs to; one that is mixed is none, and is asked for
//! again. Whatever else a process writes there, itself or another is told of wrongly or not at all as long as it goes on with that, and no
//! more.
//!
//! *Limits:* the mark of an answer is 16 bits wide, and what is told 48: numbers of pages fit.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU64, fence};

use hetmem_core::advice::Advice;
use hetmem_core::migrate::Target;
use hetmem_core::units::{DeviceId, PAGE_SHIFT, PageCount, PageRange, VirtAddr};

/// Words that an answer may have.
pub const ANSWER_WORDS: usize = 8192;
/// Words of a request: what, and three arguments.
const WORDS: usize = 4;
/// The words before those that are told: how many, and where to go on.
const HEAD: usize = 2;
/// Bits of what is told in a word; above them is the mark.
const TOLD: u32 = 48;

/// What can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// What is managed from an address on. Answered by rows of two words: first page, number of pages.
    Regions {
        /// Where to begin.
        from: VirtAddr,
    },
    /// Where the pages of what is managed are, from an address on. Answered by rows: first page, number of pages, how many of them are in system
    /// memory, and on each device. What is on its way, or nowhere yet, is in neither.
    Residency {
        /// Where to begin.
        from: VirtAddr,
    },
    /// How warm all that is managed is, in so many parts of one size. Answered by rows: first page, number of pages, heat (0 to 255).
    Heat {
        /// How many parts.
        cells: u32,
    },
    /// Pages are to move. Answered by one row: how many have moved, how many were kept.
    Migrate {
        /// Which.
        range: PageRange,
        /// Whereto.
        to: Target,
    },
    /// Something is said of the use of a range. Answered by one row: first page and number of pages of its first part that is not managed, 0 pages if all
    /// is.
    Advise {
        /// Which.
        range: PageRange,
        /// What.
        advice: Advice,
    },
}

const REGIONS: u64 = 1;
const RESIDENCY: u64 = 2;
const HEAT: u64 = 3;
const MIGRATE: u64 = 4;
const ADVISE: u64 = 5;

/// Advice, by its number; [`Advice::PreferredLocation`] is all above.
const ADVICE: [Advice; 6] =
    [Advice::Pin, Advice::Unpin, Advice::ReadMostly, Advice::NoPreference, Advice::Soon, Advice::NotSoon];

fn number_of(advice: Advice) -> u64 {
    let known = ADVICE.iter().position(|known| *known == advice);
    let number = if let Advice::PreferredLocation(device) = advice {
        ADVICE.len() + device.index()
    } else {
        known.expect("the others are in the table")
    };
    number as u64
}

fn advice_of(number: u64) -> Option<Advice> {
    let number = usize::try_from(number).ok()?;
    let device = || u8::try_from(number.checked_sub(ADVICE.len())?).ok().map(DeviceId::new);
    ADVICE.get(number).copied().or_else(|| device().map(Advice::PreferredLocation))
}
/// [`Target::System`], among the numbers of devices.
const SYSTEM: u64 = u64::MAX;

impl Request {
    fn encode(self) -> [u64; WORDS] {
        match self {
            Self::Regions { from } => [REGIONS, from.get(), 0, 0],
            Self::Residency { from } => [RESIDENCY, from.get(), 0, 0],
            Self::Heat { cells } => [HEAT, u64::from(cells), 0, 0],
            Self::Migrate { range, to } => {
                let to = match to {
                    Target::System => SYSTEM,
                    Target::Device(device) => device.index() as u64,
                };
                [MIGRATE, range.start().get(), range.pages().get(), to]
            }
            Self::Advise { range, advice } => [ADVISE, range.start().get(), range.pages().get(), number_of(advice)],
        }
    }

    fn decode([what, first, second, third]: [u64; WORDS]) -> Option<Self> {
        let from = VirtAddr::new(first).page_down();
        match what {
            REGIONS => Some(Self::Regions { from }),
            RESIDENCY => Some(Self::Residency { from }),
            HEAT => Some(Self::Heat { cells: u32::try_from(first).ok().filter(|cells| *cells > 0)? }),
            MIGRATE => {
                let range = PageRange::new(VirtAddr::new(first), PageCount::new(second))?;
                let device = |number| u8::try_from(number).ok().map(|id| Target::Device(DeviceId::new(id)));
                Some(Self::Migrate { range, to: if third == SYSTEM { Target::System } else { device(third)? } })
            }
            ADVISE => {
                let range = PageRange::new(VirtAddr::new(first), PageCount::new(second))?;
                Some(Self::Advise { range, advice: advice_of(third)? })
            }
            _ => None,
        }
    }
}

/// What a process has answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// Its rows, one behind the other.
    pub words: Vec<u64>,
    /// Where to go on, if that is not all.
    pub next: Option<VirtAddr>,
}

/// What has come of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum State {
    /// No answer yet.
    Waiting,
    /// The answer.
    Answered(Reply),
    /// An answer into which somebody else has written.
    Mixed,
}

/// A part of the statistics memory. All zeros: nobody was asked anything.
#[repr(C)]
#[derive(Debug)]
pub(super) struct RequestArea {
    /// The number of the last request, which is never 0.
    asked: AtomicU64,
    /// The process that is asked, by its key; 0 while the request is written.
    process: AtomicU64,
    request: [AtomicU64; WORDS],
    /// The number of the last request that was answered, 0 if there is none since the last was asked; raised (Release) after the answer, and loaded
    /// (Acquire) before it.
    answered: AtomicU64,
    answer: [AtomicU64; HEAD + ANSWER_WORDS],
}

/// The supervisor's side.
impl RequestArea {
    /// Asks the process with this key; the number of the request. Whatever was asked before is answered no more.
    pub(super) fn ask(&self, process: u64, request: Request) -> u64 {
        let number = self.asked.load(Relaxed).wrapping_add(1).max(1);
        // Nobody is asked while the words change. The fence pairs with the one in `read`.
        self.process.store(0, Relaxed);
        fence(Release);
        self.request.iter().zip(request.encode()).for_each(|(to, word)| to.store(word, Relaxed));
        // Anything may have been written there, and it is only ever raised.
        self.answered.store(0, Relaxed);
        // Release, both: pair with the loads in `number_for`.
        self.asked.store(number, Release);
        self.process.store(process, Release);
        number
    }

    /// What has come of request `number`.
    pub(super) fn state(&self, number: u64) -> State {
        // Acquire: pairs with `answer`.
        if self.answered.load(Acquire) != number {
            return State::Waiting;
        }
        let word = |at: usize| told(number, self.answer[at].load(Relaxed));
        let read = || {
            let length = usize::try_from(word(0)?).ok().filter(|length| *length <= ANSWER_WORDS)?;
            let next = word(1)?;
            let words = (HEAD..HEAD + length).map(word).collect::<Option<Vec<u64>>>()?;
            Some(Reply { words, next: (next != 0).then(|| VirtAddr::new(next << PAGE_SHIFT)) })
        };
        read().map_or(State::Mixed, State::Answered)
    }
}

/// The side of the process that is asked.
impl RequestArea {
    /// The number of the last request, if it is for the process with this key.
    pub(super) fn number_for(&self, process: u64) -> u64 {
        // Acquire, both: who sees the process sees the number, and who sees that sees the words.
        if self.process.load(Acquire) == process { self.asked.load(Acquire) } else { 0 }
    }

    /// The request `number` for the process with this key; `None` if there is another by now, or it can't be read.
    pub(super) fn read(&self, number: u64, process: u64) -> Option<Request> {
        let words = std::array::from_fn(|at| self.request[at].load(Relaxed));
        fence(Acquire);
        // What was read is whole if nobody has begun the next meanwhile.
        (self.number_for(process) == number).then(|| Request::decode(words)).flatten()
    }

    /// Answers request `number`. No more than [`ANSWER_WORDS`] words, and no word of more than 48 bits.
    pub(super) fn answer(&self, number: u64, words: &[u64], next: Option<VirtAddr>) {
        let next = next.map_or(0, |next| next.get() >> PAGE_SHIFT);
        let length = words.len().min(ANSWER_WORDS);
        let head = [length as u64, next];
        let marked = head.iter().chain(&words[..length]).map(|word| marked(number, *word));
        self.answer.iter().zip(marked).for_each(|(to, word)| to.store(word, Relaxed));
        // Release: pairs with the load in `state`. Who comes late with an older answer does not hide a newer one.
        self.answered.fetch_max(number, Release);
    }
}

const fn marked(number: u64, word: u64) -> u64 {
    number << TOLD | word & ((1 << TOLD) - 1)
}

/// What `word` tells, if it belongs to the answer of request `number`.
fn told(number: u64, word: u64) -> Option<u64> {
    (word >> TOLD == number & 0xFFFF).then_some(word & ((1 << TOLD) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area() -> Box<RequestArea> {
        Box::new(RequestArea {
            asked: AtomicU64::new(0),
            process: AtomicU64::new(0),
            request: Default::default(),
            answered: AtomicU64::new(0),
            answer: std::array::from_fn(|_| AtomicU64::new(0)),
        })
    }

    const FROM: VirtAddr = VirtAddr::new(0x7fff_0000_1000);

    #[test]
    fn what_is_asked_is_read_and_what_is_answered_too() {
        let area = area();
        let range = PageRange::new(FROM, PageCount::new(3)).unwrap();
        for request in [
            Request::Regions { from: FROM },
            Request::Residency { from: VirtAddr::new(0) },
            Request::Heat { cells: 80 },
            Request::Migrate { range, to: Target::System },
            Request::Migrate { range, to: Target::Device(DeviceId::new(15)) },
            Request::Advise { range, advice: Advice::Pin },
            Request::Advise { range, advice: Advice::Unpin },
            Request::Advise { range, advice: Advice::ReadMostly },
            Request::Advise { range, advice: Advice::NoPreference },
            Request::Advise { range, advice: Advice::Soon },
            Request::Advise { range, advice: Advice::NotSoon },
            Request::Advise { range, advice: Advice::PreferredLocation(DeviceId::new(0)) },
            Request::Advise { range, advice: Advice::PreferredLocation(DeviceId::new(15)) },
        ] {
            let number = area.ask(7, request);
            assert_eq!(area.state(number), State::Waiting);
            assert_eq!(area.number_for(8), 0, "for another");
            assert_eq!(area.number_for(7), number);
            assert_eq!(area.read(number, 7), Some(request));
            area.answer(number, &[1, (1 << 48) - 1], Some(FROM));
            let reply = Reply { words: vec![1, (1 << 48) - 1], next: Some(FROM) };
            assert_eq!(area.state(number), State::Answered(reply));
        }
    }

    #[test]
    fn who_comes_late_does_not_answer_for_another() {
        let area = area();
        let first = area.ask(7, Request::Heat { cells: 2 });
        let second = area.ask(8, Request::Heat { cells: 2 });
        assert_eq!(area.read(first, 7), None, "nobody waits for it");
        area.answer(first, &[5, 5], None);
        assert_eq!(area.state(second), State::Waiting);
        area.answer(second, &[6, 6, 6], None);
        assert!(matches!(area.state(second), State::Answered(_)));
        area.answer(first, &[5, 5], None);
        assert_eq!(area.state(second), State::Mixed);
    }

    #[test]
    fn whatever_is_written_there_it_can_be_read() {
        let area = area();
        let number = area.ask(7, Request::Heat { cells: 2 });
        for word in [0, u64::MAX, marked(number, u64::MAX)] {
            area.answer.iter().for_each(|to| to.store(word, Relaxed));
            area.answered.store(number, Relaxed);
            assert_eq!(area.state(number), State::Mixed);
        }
        area.request.iter().for_each(|to| to.store(u64::MAX, Relaxed));
        assert_eq!(area.read(number, 7), None);
        area.answered.store(u64::MAX, Relaxed);
        assert_eq!(area.state(number), State::Waiting);
        let next = area.ask(8, Request::Heat { cells: 2 });
        area.answer(next, &[6, 6, 6], None);
        assert!(matches!(area.state(next), State::Answered(_)), "it outlasts no request");
        area.asked.store(u64::MAX, Relaxed);
        assert_eq!(area.ask(7, Request::Heat { cells: 2 }), 1);
    }
}

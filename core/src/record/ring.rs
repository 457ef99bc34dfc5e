//! The ring in which a process leaves records to who writes them down, which may be another process.
//!
//! ```text
//! threads of the process                    who reads
//! ----------------------                    ---------
//! head + 1, if there is room                looks at the place behind the tail
//! second word, then the first               empty: somebody is about to write there; looked at again later
//!                                           a record: it is taken, the place emptied, tail + 1
//! ```
//!
//! Nobody waits: where there is no room the record is dropped, and counted. All-zero memory is an empty ring, and of what is in it nothing is
//! trusted, as other processes may write it.
//!
//! *Limits:* a thread that ends between its two steps leaves a place empty for ever. Who reads says when it is to be passed over.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::Record;

/// Records that a ring holds.
pub const PLACES: usize = 1 << 16;

/// Records on their way. 1 MiB, which is there as far as it was used.
#[repr(C)]
#[derive(Debug)]
pub struct Ring {
    /// How many places were ever taken.
    head: AtomicU64,
    /// How many of them were emptied.
    tail: AtomicU64,
    dropped: AtomicU64,
    /// Not 0 when nobody reads any more.
    closed: AtomicU64,
    places: [[AtomicU64; 2]; PLACES],
}

/// The place of number `number`.
#[expect(clippy::cast_possible_truncation, reason = "what is cut off is the number of the round")]
const fn place(number: u64) -> usize {
    number as usize % PLACES
}

impl Ring {
    /// Leaves `record` to who reads, or counts that there is no room for it. Waits for nobody, and allocates nothing.
    #[inline]
    pub fn push(&self, record: Record) {
        if self.closed.load(Relaxed) != 0 {
            return;
        }
        let [first, second] = record.encode();
        // Acquire pairs with the release in `drain`: a place that is free is empty.
        let mut head = self.head.load(Relaxed);
        loop {
            if head.wrapping_sub(self.tail.load(Acquire)) >= PLACES as u64 {
                self.dropped.fetch_add(1, Relaxed);
                return;
            }
            match self.head.compare_exchange_weak(head, head.wrapping_add(1), Relaxed, Relaxed) {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        let [at_first, at_second] = &self.places[place(head)];
        at_second.store(second, Relaxed);
        // Release: who sees the first word, in `drain`, sees the second.
        at_first.store(first, Release);
    }

    /// Takes what is there, in the order in which places were taken, and hands it to `take`: up to the first place that is taken and still empty,
    /// or, with `pass_over`, without those. Says how many there were. One thread at a time.
    pub fn drain(&self, pass_over: bool, mut take: impl FnMut([u64; 2])) -> usize {
        let head = self.head.load(Relaxed);
        let mut tail = self.tail.load(Relaxed);
        let mut taken = 0;
        // Whatever the two say, once round is enough.
        for _ in 0..PLACES {
            if tail == head {
                break;
            }
            let [at_first, at_second] = &self.places[place(tail)];
            // Acquire pairs with the release in `push`.
            let first = at_first.load(Acquire);
            if first == 0 && !pass_over {
                break;
            }
            if first != 0 {
                take([first, at_second.load(Relaxed)]);
                at_first.store(0, Relaxed);
                taken += 1;
            }
            tail = tail.wrapping_add(1);
            // Release: the place is empty for who takes it next.
            self.tail.store(tail, Release);
        }
        taken
    }

    /// Records are left by nobody from now on.
    pub fn close(&self) {
        self.closed.store(1, Relaxed);
    }

    /// How many records there was no room for since this was asked last.
    pub fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Relaxed)
    }

    /// Whether half of the places are taken, or more.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        self.head.load(Relaxed).wrapping_sub(self.tail.load(Relaxed)) >= PLACES as u64 / 2
    }

    /// Whether no place is taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.load(Relaxed) == self.tail.load(Relaxed)
    }
}

impl Default for Ring {
    fn default() -> Self {
        Self {
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            places: [const { [const { AtomicU64::new(0) }; 2] }; PLACES],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(ring: &Ring, pass_over: bool) -> Vec<u64> {
        let mut times = Vec::new();
        ring.drain(pass_over, |words| match Record::decode(words) {
            Some(Record::End { time }) => times.push(time),
            other => panic!("{other:?}"),
        });
        times
    }

    #[test]
    fn records_come_out_as_they_went_in_round_and_round() {
        let ring = Box::<Ring>::default();
        let mut expected = 0..;
        for round in 0..5 {
            let many = PLACES as u64 * 2 / 3;
            (round * many..(round + 1) * many).for_each(|time| ring.push(Record::End { time }));
            assert!(drain(&ring, false).into_iter().eq(expected.by_ref().take(PLACES * 2 / 3)));
            assert!(ring.is_empty());
        }
        assert_eq!(ring.take_dropped(), 0);
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let ring = Box::<Ring>::default();
        (0..PLACES as u64 + 7).for_each(|time| ring.push(Record::End { time }));
        assert!(drain(&ring, false).into_iter().eq(0..PLACES as u64));
        assert_eq!((ring.take_dropped(), ring.take_dropped()), (7, 0));
        ring.close();
        ring.push(Record::End { time: 0 });
        assert!(ring.is_empty() && ring.take_dropped() == 0, "nobody wants to know any more");
    }

    #[test]
    fn a_place_that_stays_empty_is_waited_for_or_passed_over() {
        let ring = Box::<Ring>::default();
        ring.push(Record::End { time: 1 });
        // A thread that was killed.
        ring.head.fetch_add(1, Relaxed);
        ring.push(Record::End { time: 3 });
        assert_eq!(drain(&ring, false), [1]);
        assert_eq!(drain(&ring, false), [0; 0]);
        assert_eq!(drain(&ring, true), [3]);
        assert!(ring.is_empty());
    }

    #[test]
    fn nothing_is_lost_or_doubled_between_threads() {
        const THREADS: usize = 4;
        const EACH: u64 = 100_000;
        let ring = Box::<Ring>::default();
        let (ring, ended) = (&*ring, AtomicU64::new(0));
        let ended = &ended;
        let mut last = [None; THREADS];
        let mut seen = 0;
        std::thread::scope(|scope| {
            for thread in 0..THREADS as u64 {
                scope.spawn(move || {
                    (0..EACH).for_each(|number| ring.push(Record::End { time: thread << 32 | number }));
                    ended.fetch_add(1, Release);
                });
            }
            loop {
                let all = ended.load(Acquire) == THREADS as u64;
                let times = drain(ring, false);
                for time in &times {
                    let thread = usize::try_from(time >> 32).unwrap();
                    let number = time & u64::from(u32::MAX);
                    assert!(last[thread].is_none_or(|last| last < number));
                    last[thread] = Some(number);
                }
                seen += times.len() as u64;
                if all && times.is_empty() {
                    break;
                }
            }
        });
        assert_eq!(seen + ring.take_dropped(), THREADS as u64 * EACH);
        assert!(ring.is_empty());
    }

    #[test]
    fn whatever_is_in_it_can_be_read() {
        let ring = Box::<Ring>::default();
        for (head, tail) in [(u64::MAX, 0), (0, 5), (3, u64::MAX - 1), (1 << 63, 7)] {
            ring.head.store(head, Relaxed);
            ring.tail.store(tail, Relaxed);
            ring.places.iter().flatten().for_each(|word| word.store(u64::MAX, Relaxed));
            assert!(ring.drain(true, |_| {}) <= PLACES);
            ring.push(Record::End { time: 0 });
        }
    }
}

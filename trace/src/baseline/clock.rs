//! CLOCK: pages in a ring, each with a bit that a touch sets; the hand takes the first without it, and clears those that it passes.

use super::{Baseline, Misses, Op, What, reach};
use crate::space::NONE;

pub(crate) struct Clock {
    limit: usize,
    /// The pages, and whether they were touched.
    ring: Vec<(u32, bool)>,
    /// Where each page is in it.
    places: Vec<u32>,
    /// Places that are free.
    free: Vec<u32>,
    hand: usize,
    misses: Misses,
}

impl Clock {
    pub(crate) const fn new(limit: usize) -> Self {
        Self { limit, ring: Vec::new(), places: Vec::new(), free: Vec::new(), hand: 0, misses: Misses::NONE }
    }

    /// A place for one more page.
    fn make_room(&mut self) -> usize {
        if let Some(place) = self.free.pop() {
            return place as usize;
        }
        if self.ring.len() < self.limit {
            self.ring.push((NONE, false));
            return self.ring.len() - 1;
        }
        loop {
            let at = self.hand;
            self.hand = (at + 1) % self.limit;
            let (page, touched) = &mut self.ring[at];
            if !std::mem::take(touched) {
                // Free places were taken first, so somebody is here.
                self.places[*page as usize] = NONE;
                return at;
            }
        }
    }
}

impl Baseline for Clock {
    fn run(&mut self, ops: &[Op]) {
        for op in ops {
            let at = reach(&mut self.places, op.page, NONE);
            let place = self.places[at];
            if op.what == What::Forget {
                if place != NONE {
                    self.places[at] = NONE;
                    self.ring[place as usize] = (NONE, false);
                    self.free.push(place);
                }
                continue;
            }
            if place != NONE {
                self.ring[place as usize].1 |= op.what != What::Along;
                continue;
            }
            self.misses.count(*op);
            let place = self.make_room();
            self.ring[place] = (op.page, false);
            self.places[at] = u32::try_from(place).unwrap_or(NONE);
        }
    }

    fn misses(&self) -> &Misses {
        &self.misses
    }
}

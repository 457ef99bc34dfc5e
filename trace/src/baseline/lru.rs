//! LRU: pages in a list, the one touched last in front.

use super::{Baseline, Misses, Op, What, reach};
use crate::space::NONE;

/// The neighbours of a page in the list; [`OUT`] if it is not in it.
#[derive(Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

/// Before a page that is not there.
const OUT: u32 = NONE - 1;

pub(crate) struct Lru {
    limit: usize,
    links: Vec<Link>,
    first: u32,
    last: u32,
    resident: usize,
    misses: Misses,
}

impl Lru {
    pub(crate) const fn new(limit: usize) -> Self {
        Self { limit, links: Vec::new(), first: NONE, last: NONE, resident: 0, misses: Misses::NONE }
    }

    fn unlink(&mut self, page: u32) {
        let Link { before, after } = self.links[page as usize];
        match before {
            NONE => self.first = after,
            before => self.links[before as usize].after = after,
        }
        match after {
            NONE => self.last = before,
            after => self.links[after as usize].before = before,
        }
        self.links[page as usize].before = OUT;
    }

    fn link_first(&mut self, page: u32) {
        self.links[page as usize] = Link { before: NONE, after: self.first };
        match self.first {
            NONE => self.last = page,
            first => self.links[first as usize].before = page,
        }
        self.first = page;
    }
}

impl Baseline for Lru {
    fn run(&mut self, ops: &[Op]) {
        for op in ops {
            let at = reach(&mut self.links, op.page, Link { before: OUT, after: NONE });
            let is_in = self.links[at].before != OUT;
            if op.what == What::Forget {
                if is_in {
                    self.unlink(op.page);
                    self.resident -= 1;
                }
                continue;
            }
            if is_in {
                if self.first != op.page {
                    self.unlink(op.page);
                    self.link_first(op.page);
                }
                continue;
            }
            self.misses.count(*op);
            if self.resident == self.limit {
                self.unlink(self.last);
            } else {
                self.resident += 1;
            }
            self.link_first(op.page);
        }
    }

    fn misses(&self) -> &Misses {
        &self.misses
    }
}

//! S3-FIFO (Yang and others, SOSP 2023): a tenth of the memory for new pages, the rest for those that were touched again, and the numbers of as
//! many as nine tenths that have left.
//!
//! What is not said there, is as in libCacheSim, where its authors implemented it: pages go to the main queue that were touched twice in the small
//! one; at first, until a page has to leave, new pages go to the main queue when the small one is full.

use std::collections::VecDeque;

use super::{Baseline, Misses, Op, What, reach};

/// Touches in the small queue after which a page is not new any more.
const TO_MAIN: u8 = 2;
/// Touches are counted up to this.
const MOST: u8 = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    Out,
    Small,
    Main,
}

#[derive(Clone, Copy)]
struct State {
    place: Where,
    touches: u8,
    /// By which an entry of a queue is told from one of an earlier time.
    entry: u32,
    /// As among those that have left; 0 for not.
    ghost: u32,
}

const NEW: State = State { place: Where::Out, touches: 0, entry: 0, ghost: 0 };

/// A queue of pages, from which some are taken out of the middle: they stay until their turn comes, and count no more.
#[derive(Default)]
struct Queue {
    entries: VecDeque<(u32, u32)>,
    pages: usize,
}

pub(crate) struct S3Fifo {
    small_limit: usize,
    main_limit: usize,
    ghost_limit: usize,
    small: Queue,
    main: Queue,
    ghost: Queue,
    states: Vec<State>,
    entries: u32,
    has_evicted: bool,
    misses: Misses,
}

impl S3Fifo {
    pub(crate) fn new(limit: usize) -> Self {
        let small_limit = limit / 10;
        Self {
            small_limit,
            main_limit: limit - small_limit,
            ghost_limit: limit * 9 / 10,
            small: Queue::default(),
            main: Queue::default(),
            ghost: Queue::default(),
            states: Vec::new(),
            entries: 0,
            has_evicted: false,
            misses: Misses::NONE,
        }
    }

    fn insert(&mut self, page: u32, place: Where, touches: u8) {
        self.entries = self.entries.wrapping_add(1).max(1);
        let state = &mut self.states[page as usize];
        (state.place, state.touches, state.entry) = (place, touches, self.entries);
        let queue = if place == Where::Small { &mut self.small } else { &mut self.main };
        queue.entries.push_back((page, self.entries));
        queue.pages += 1;
    }

    /// Takes the page in front of the small queue or the main one.
    fn take(&mut self, place: Where) -> Option<u32> {
        let queue = if place == Where::Small { &mut self.small } else { &mut self.main };
        loop {
            let (page, entry) = queue.entries.pop_front()?;
            let state = &mut self.states[page as usize];
            if state.place == place && state.entry == entry {
                queue.pages -= 1;
                state.place = Where::Out;
                return Some(page);
            }
        }
    }

    fn leave_a_ghost(&mut self, page: u32) {
        if self.ghost_limit == 0 {
            return;
        }
        while self.ghost.pages >= self.ghost_limit {
            let Some((page, entry)) = self.ghost.entries.pop_front() else { break };
            let state = &mut self.states[page as usize];
            if state.ghost == entry {
                state.ghost = 0;
                self.ghost.pages -= 1;
            }
        }
        self.entries = self.entries.wrapping_add(1).max(1);
        self.states[page as usize].ghost = self.entries;
        self.ghost.entries.push_back((page, self.entries));
        self.ghost.pages += 1;
    }

    /// Has one page leave.
    fn evict(&mut self) {
        self.has_evicted = true;
        if self.main.pages <= self.main_limit && self.small.pages > 0 {
            while let Some(page) = self.take(Where::Small) {
                if self.states[page as usize].touches >= TO_MAIN {
                    self.insert(page, Where::Main, 0);
                } else {
                    return self.leave_a_ghost(page);
                }
            }
            return;
        }
        while let Some(page) = self.take(Where::Main) {
            let touches = self.states[page as usize].touches;
            if touches == 0 {
                return;
            }
            self.insert(page, Where::Main, touches.min(MOST) - 1);
        }
    }
}

impl Baseline for S3Fifo {
    fn run(&mut self, ops: &[Op]) {
        for op in ops {
            let at = reach(&mut self.states, op.page, NEW);
            let state = &mut self.states[at];
            if op.what == What::Forget {
                match state.place {
                    Where::Out => {}
                    Where::Small => self.small.pages -= 1,
                    Where::Main => self.main.pages -= 1,
                }
                self.ghost.pages -= usize::from(state.ghost != 0);
                *state = NEW;
                continue;
            }
            if state.place != Where::Out {
                state.touches = (state.touches + u8::from(op.what != What::Along)).min(MOST);
                continue;
            }
            self.misses.count(*op);
            let has_left = std::mem::take(&mut state.ghost) != 0;
            self.ghost.pages -= usize::from(has_left);
            while self.small.pages + self.main.pages >= self.small_limit + self.main_limit {
                self.evict();
            }
            let is_first_filling = !self.has_evicted && self.small.pages >= self.small_limit;
            let place = if has_left || is_first_filling || self.small_limit == 0 { Where::Main } else { Where::Small };
            self.insert(op.page, place, 0);
        }
    }

    fn misses(&self) -> &Misses {
        &self.misses
    }
}

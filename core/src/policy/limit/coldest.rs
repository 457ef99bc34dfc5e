//! Which pages of system memory are the coldest, found by a hand that goes round.
//!
//! A page's *score* is twice its [interval](Heat::interval), and its [age](Heat::age): the colder it was when it was seen last, and the longer ago that
//! is. So what is known to be hot is asked again, too, but seldom. One of so many pages ([`PART`]) under the hand is taken, those whose score is among
//! the highest by what the hand has seen lately.

use crate::heat::Heat;
use crate::migrate::{Place, Seen, Survey};
use crate::policy::View;
use crate::policy::hand::Hand;
use crate::units::{BLOCK_PAGES, BLOCK_SIZE, PageCount, PageRange};

/// One of so many pages under the hand is taken.
const PART: u64 = 16;
const SCORES: usize = 46;
/// Of so many pages the scores are known before older ones count half.
const SEEN: u64 = 1 << 12;

/// The hand, and what it has seen.
#[derive(Debug)]
pub(super) struct Coldest {
    hand: Hand,
    /// How many pages had which score.
    scores: [u64; SCORES],
    seen: u64,
    survey: Survey,
}

impl Default for Coldest {
    fn default() -> Self {
        Self { hand: Hand::default(), scores: [0; SCORES], seen: 0, survey: Survey::default() }
    }
}

fn score(heat: Heat) -> usize {
    usize::from(heat.interval()) * 2 + usize::from(heat.age())
}

impl Coldest {
    /// As many blocks are looked at before the policy lets others have their turn.
    pub(super) const AT_ONCE: u64 = 128;

    /// How many parts of blocks come under the hand in a round.
    pub(super) fn parts(&self, view: &dyn View) -> u64 {
        let parts = |range: &PageRange| range.end().get().div_ceil(BLOCK_SIZE) - range.start().get() / BLOCK_SIZE;
        view.ranges().iter().map(parts).sum()
    }

    /// What was seen is of no use any more.
    pub(super) fn forget(&mut self) {
        (self.scores, self.seen) = ([0; SCORES], 0);
    }

    /// The lowest score that is taken.
    fn threshold(&self) -> usize {
        let mut above = 0;
        for score in (0..SCORES).rev() {
            above += self.scores[score];
            if above * PART >= self.seen.max(1) {
                return score;
            }
        }
        0
    }

    /// The coldest pages of the block under the hand, about `most` at most, and the hand goes on; `None` if there is no block.
    pub(super) fn next(&mut self, view: &mut dyn View, most: PageCount) -> Option<Vec<PageRange>> {
        let part = self.hand.next(view.ranges(), BLOCK_PAGES)?;
        view.survey(part, &mut self.survey);
        let pages = &self.survey.pages;
        // What is out still could not leave, or go back.
        let is_system = |page: &Seen| matches!(page.place, Place::System | Place::Sampled);
        for page in pages.iter().filter(|page| is_system(page)) {
            self.scores[score(page.heat)] += 1;
            self.seen += 1;
        }
        let threshold = self.threshold();
        let is_taken = |page: usize| is_system(&pages[page]) && score(pages[page].heat) >= threshold;
        let mut found: Vec<PageRange> = Vec::new();
        if self.survey.huge {
            found.extend(Some(part).filter(|_| is_taken(0)));
        } else {
            let (mut page, mut taken) = (0, 0);
            while page < pages.len() && taken < most.as_usize() {
                let run = (page..pages.len()).take_while(|page| is_taken(*page)).count().min(most.as_usize() - taken);
                if run > 0 {
                    found.push(part.slice(PageCount::new(page as u64), PageCount::new(run as u64)));
                }
                taken += run;
                page += run.max(1);
            }
        }
        if self.seen > SEEN {
            self.scores.iter_mut().for_each(|count| *count /= 2);
            self.seen = self.scores.iter().sum();
        }
        Some(found)
    }
}

//! Each policy against the plainest that could be written, over generated touches.

use proptest::prelude::*;

use super::{BASELINES, Op, What};

fn op(page: u32, what: What) -> Op {
    Op { page, group: u8::try_from(page % 64).unwrap(), what }
}

/// Touches of pages, as the simulation has them: the first of each is one.
fn touches(pages: &[u32]) -> Vec<Op> {
    let mut seen = std::collections::HashSet::new();
    pages.iter().map(|page| op(*page, if seen.insert(*page) { What::First } else { What::Touch })).collect()
}

fn misses(name: &str, limit: usize, ops: &[Op]) -> u64 {
    let (_, make, _) = BASELINES.iter().find(|(known, ..)| *known == name).unwrap();
    let mut baseline = make(limit);
    // In pieces, as it is in life.
    ops.chunks(7).for_each(|ops| baseline.run(ops));
    baseline.misses().sum()
}

/// Misses but for first touches where `victim` chooses who leaves: the place in a list of pages, each with when it was touched last, and the future.
fn plainly(limit: usize, pages: &[u32], victim: impl Fn(&[(u32, usize)], &[u32]) -> usize) -> u64 {
    let (mut resident, mut seen, mut misses) = (Vec::new(), std::collections::HashSet::new(), 0);
    for (time, page) in pages.iter().enumerate() {
        match resident.iter_mut().find(|(known, _)| known == page) {
            Some((_, last)) => *last = time,
            None => {
                misses += u64::from(!seen.insert(*page));
                if resident.len() == limit {
                    let victim = victim(&resident, &pages[time..]);
                    resident.remove(victim);
                }
                resident.push((*page, time));
            }
        }
    }
    misses
}

fn least_recent(resident: &[(u32, usize)], _: &[u32]) -> usize {
    (0..resident.len()).min_by_key(|at| resident[*at].1).unwrap()
}

fn farthest(resident: &[(u32, usize)], future: &[u32]) -> usize {
    let next = |page: u32| future.iter().position(|touched| *touched == page).unwrap_or(usize::MAX);
    (0..resident.len()).max_by_key(|at| next(resident[*at].0)).unwrap()
}

proptest! {
    #[test]
    fn lru_has_the_misses_of_lru(pages in prop::collection::vec(0..30_u32, 1..400), limit in 1..35_usize) {
        prop_assert_eq!(misses("LRU", limit, &touches(&pages)), plainly(limit, &pages, least_recent));
    }

    #[test]
    fn belady_has_the_fewest_misses(pages in prop::collection::vec(0..30_u32, 1..400), limit in 1..35_usize) {
        let fewest = misses("Belady", limit, &touches(&pages));
        prop_assert_eq!(fewest, plainly(limit, &pages, farthest));
        for (name, ..) in BASELINES {
            prop_assert!(misses(name, limit, &touches(&pages)) >= fewest, "{}", name);
        }
    }

    #[test]
    fn nothing_is_missed_where_all_fits(pages in prop::collection::vec(0..30_u32, 1..200)) {
        for (name, ..) in BASELINES {
            prop_assert_eq!(misses(name, 40, &touches(&pages)), 0, "{}", name);
        }
    }

    #[test]
    fn pages_that_go_leave_their_place(
        ops in prop::collection::vec((0..30_u32, 0..4_u8), 1..400),
        limit in 1..20_usize,
    ) {
        let ops: Vec<Op> = ops.into_iter().map(|(page, what)| {
            op(page, [What::Touch, What::First, What::Along, What::Forget][usize::from(what)])
        }).collect();
        for (name, make, _) in BASELINES {
            let mut baseline = make(limit);
            baseline.run(&ops);
            // When all have gone, as many as fit come, and stay.
            let all: Vec<Op> = (0..30).map(|page| op(page, What::Forget)).collect();
            baseline.run(&all);
            let before = baseline.misses().sum();
            let few: Vec<u32> = (0..u32::try_from(limit).unwrap()).collect();
            baseline.run(&touches(&[&few[..], &few].concat()));
            prop_assert_eq!(baseline.misses().sum(), before, "{}", name);
        }
    }
}

/// Longer than there are times before they are numbered anew.
#[test]
fn belady_stays_right_when_times_run_out() {
    const PAGES: u32 = 100;
    let mut number = 1_u64;
    let pages: Vec<u32> = (0..2_500_000)
        .map(|_| {
            number = crate::space::mix(number.wrapping_add(0x9e37_79b9_7f4a_7c15));
            u32::try_from(number % u64::from(PAGES)).unwrap()
        })
        .collect();
    let ops = touches(&pages);
    let at_once = misses("Belady", 10, &ops);
    // Whatever happens, with N pages of which all are equally likely the optimum is between none and LRU; and in pieces of their own, each of which
    // begins with nothing in memory, it misses at most a memory's worth more and none less.
    let pieces: u64 = pages
        .chunks(100_000)
        .map(|piece| misses("Belady", 10, &piece.iter().map(|page| op(*page, What::Touch)).collect::<Vec<_>>()))
        .sum();
    let first = u64::from(PAGES);
    assert!(at_once <= pieces && pieces <= at_once + first + 25 * 10, "{at_once} {pieces}");
}

//! What the set hands out, piece by piece and against a plain set of numbers.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

#[test]
fn a_whole_chunk_is_preferred_for_a_huge_page() {
    let mut set = RunSet::full(PageCount::new(1024));
    let one = set.take(PageCount::ONE).unwrap();
    assert_eq!(one.first.get(), 0);
    let huge = set.take(PageCount::new(512)).unwrap();
    assert_eq!((huge.first.get(), huge.pages.get()), (512, 512));
}

#[test]
fn small_pages_stay_among_themselves_and_huge_pages_get_chunks_that_none_has_used() {
    let mut set = RunSet::full(PageCount::new(4 * 512));
    let small = set.take(PageCount::new(512)).unwrap();
    set.insert(small);
    let huge: Vec<FrameRun> = std::iter::from_fn(|| set.take_whole()).collect();
    assert_eq!(huge.len(), 3, "one is divided");
    assert!(huge.iter().all(|run| run.pages.get() == 512 && run.first != small.first));
    huge.into_iter().for_each(|run| set.insert(run));
    for _ in 0..512 {
        assert_eq!(set.take(PageCount::ONE).unwrap().first.get() / 512, small.first.get() / 512);
    }
    // With no other left they take one more.
    assert_ne!(set.take(PageCount::ONE).unwrap().first.get() / 512, small.first.get() / 512);
    assert_eq!(std::iter::from_fn(|| set.take_whole()).count(), 2);
    set.check();
}

#[test]
fn chunks_that_were_used_are_used_again() {
    let mut set = RunSet::full(PageCount::new(8 * 512));
    for _ in 0..5 {
        let taken: Vec<FrameRun> = (0..3).filter_map(|_| set.take_whole()).collect();
        assert_eq!(taken.iter().map(|run| run.first.get() / 512).collect::<Vec<_>>(), [0, 1, 2]);
        taken.into_iter().for_each(|run| set.insert(run));
    }
}

#[test]
#[should_panic(expected = "given back once")]
fn giving_a_frame_back_twice_is_caught() {
    let mut set = RunSet::full(PageCount::new(8));
    set.insert(FrameRun::single(FrameIndex::new(3)));
}

#[test]
fn a_chunk_that_is_cleared_piece_by_piece_stays_whole() {
    let mut set = RunSet::full(PageCount::new(2 * 512));
    let huge = set.take_whole().unwrap();
    set.insert_resting(huge);
    assert_eq!(set.claim_old(PageCount::new(16)), None, "it is young");
    set.age();
    let mut cleared = PageCount::ZERO;
    while let Some(run) = set.claim_old(PageCount::new(16)) {
        cleared += run.pages;
        assert_eq!((run.pages.get(), set.len().get()), (16, 2 * 512));
        set.give_cleared(run);
        set.check();
    }
    assert_eq!((cleared, set.has_resting()), (huge.pages, false));
    assert_eq!(std::iter::from_fn(|| set.take_whole()).count(), 2);
}

#[test]
fn what_is_taken_with_others_is_one_run_up_to_what_is_in_use() {
    let set = |of: &[u32]| {
        let mut set = RunSet::empty(PageCount::new(1024));
        of.iter().for_each(|frame| set.insert(FrameRun::single(FrameIndex::new(*frame))));
        set
    };
    let taken = |want: u64| {
        let (mut stocked, mut empty) = (set(&[3, 4, 7, 9, 11, 600]), set(&[2, 5, 6, 8, 12]));
        // 10 is in use.
        stocked.recent = 0;
        let run = stocked.take_with(&mut empty, PageCount::new(want)).unwrap();
        stocked.check();
        empty.check();
        (run.first.get(), run.pages.get(), stocked.len().get(), empty.len().get())
    };
    assert_eq!(taken(1), (3, 1, 5, 5));
    assert_eq!(taken(2), (3, 2, 4, 5));
    assert_eq!(taken(3), (3, 5, 3, 3));
    assert_eq!(taken(512), (3, 7, 2, 2));
    let (mut whole, mut none) = (RunSet::full(PageCount::new(512)), RunSet::empty(PageCount::new(512)));
    assert_eq!(whole.take_with(&mut none, PageCount::new(512)).unwrap().pages, PageCount::BLOCK);
    assert_eq!(whole.take_with(&mut none, PageCount::ONE), None);
}

proptest! {
    /// Against a plain set of numbers: what is taken was in the set and is consecutive, what rests is cleared once it is old, and nothing else
    /// changes.
    #[test]
    fn behaves_like_a_set(cap in 1u64..1500, ops in prop::collection::vec((any::<bool>(), 1u64..600), 1..200)) {
        let mut set = RunSet::full(PageCount::new(cap));
        let mut oracle: BTreeSet<u32> = (0..u32::try_from(cap).unwrap()).collect();
        let (mut young, mut old): (BTreeSet<u32>, BTreeSet<u32>) = Default::default();
        let mut out: Vec<FrameRun> = Vec::new();
        for (take, n) in ops {
            if take && n > 550 {
                if let Some(run) = set.take_whole() {
                    prop_assert!(run.pages.get() == 512 && !set.is_divided(run.first));
                    for f in run.iter() {
                        prop_assert!(oracle.remove(&f.get()));
                        let _ = (young.remove(&f.get()), old.remove(&f.get()));
                    }
                    out.push(run);
                }
            } else if take && n < 20 {
                set.age();
                old.append(&mut young);
            } else if take && n < 60 {
                match set.claim_old(PageCount::new(n)) {
                    None => prop_assert!(old.is_empty()),
                    Some(run) => {
                        for f in run.iter() { prop_assert!(old.remove(&f.get())); }
                        prop_assert!(run.pages.get() <= n);
                        prop_assert_eq!(set.len().get(), oracle.len() as u64, "what is being cleared counts");
                        set.give_cleared(run);
                    }
                }
            } else if take {
                match set.take(PageCount::new(n)) {
                    None => prop_assert!(oracle.is_empty()),
                    Some(run) => {
                        prop_assert!(run.pages.get() >= 1 && run.pages.get() <= n.min(512));
                        for f in run.iter() {
                            prop_assert!(oracle.remove(&f.get()));
                            let _ = (young.remove(&f.get()), old.remove(&f.get()));
                        }
                        out.push(run);
                    }
                }
            } else if !out.is_empty() {
                let i = usize::try_from(n).unwrap() % out.len();
                let run = out.swap_remove(i);
                for f in run.iter() { oracle.insert(f.get()); }
                if n % 3 == 0 {
                    set.insert(run);
                } else {
                    set.insert_resting(run);
                    young.extend(run.iter().map(FrameIndex::get));
                }
            }
            prop_assert_eq!(set.has_resting(), !young.is_empty() || !old.is_empty());
            set.check();
            prop_assert_eq!(set.len().get(), oracle.len() as u64);
        }
    }
}

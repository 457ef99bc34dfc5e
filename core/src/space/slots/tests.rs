use super::*;
use crate::policy::Random;
use crate::slot::{Frame, SYSTEM_POOL};
use crate::units::{DeviceId, FrameIndex};

const PAGES: usize = PageCount::BLOCK.as_usize();

fn rest(index: u32) -> Slot {
    Slot::Unmapped { frame: Frame { device: DeviceId::new(0), index: FrameIndex::new(index) }, busy: false }
}

fn form(slots: &Slots) -> &'static str {
    match slots {
        Slots::One(_) => "one",
        Slots::Few(_) => "few",
        Slots::Near(_) => "near",
        Slots::Any(_) => "any",
    }
}

fn set(slots: &mut Slots, index: usize, slot: Slot) {
    slots.set(index, slots.get(index), slot);
    assert_eq!(slots.get(index), slot);
}

#[test]
fn slots_take_the_form_that_their_number_and_frames_ask_for_and_grow_by_themselves() {
    for (apart, many) in [(1, "near"), (100_000, "any")] {
        let mut slots = Slots::default();
        for n in 0..PAGES {
            // In no order.
            set(&mut slots, n * 37 % PAGES, rest(u32::try_from(n).unwrap() * apart));
            slots.check();
            let expected = match n {
                0 => "one",
                1..FEW => "few",
                _ => many,
            };
            assert_eq!(form(&slots), expected, "{} pages", n + 1);
        }
    }
}

/// Whatever the form, and however frames are apart: of each kind of run that there is, in any place, as page by page.
#[test]
fn a_run_is_set_as_its_pages_are_one_by_one() {
    let mut random = Random::new(11);
    let mut below = |most: usize| usize::try_from(random.below(most as u64)).unwrap();
    for _ in 0..200 {
        let [mut by_run, mut by_page] = [Slots::default(), Slots::default()];
        for _ in 0..40 {
            let first = below(PAGES);
            let most = [4, PAGES][below(2)].min(PAGES - first);
            let pages = 1 + below(most);
            // Ends of windows, and others of them, are among these.
            let (base, device) =
                ([0, 7, 8192 - 100, 8192, 40_000][below(5)], [SYSTEM_POOL, DeviceId::new(0)][below(2)]);
            let frame = Frame { device, index: FrameIndex::new(u32::try_from(base + below(3)).unwrap()) };
            let slot = match below(4) {
                0 => Slot::System,
                1 => Slot::Mapped(frame),
                which => Slot::Unmapped { frame, busy: which == 2 },
            };
            let mut at = 0;
            while at < pages {
                let n = PageCount::new(by_run.run(first + at, pages - at) as u64);
                let was = by_run.get(first + at);
                by_run.set_run(first + at, n, was, slot.behind(PageCount::new(at as u64)));
                at += n.as_usize();
            }
            (0..pages).for_each(|page| set(&mut by_page, first + page, slot.behind(PageCount::new(page as u64))));
            by_run.check();
            assert!((0..PAGES).all(|page| by_run.get(page) == by_page.get(page)));
            assert_eq!(by_run.counts(), by_page.counts());
            assert_eq!(by_run.run(first, PAGES - first), by_page.run(first, PAGES - first));
            if below(8) == 0 {
                by_run.shrink();
                by_page.shrink();
            }
        }
    }
}

#[test]
fn slots_shrink_when_they_are_asked_to_and_not_by_themselves() {
    // What becomes of a list and of tables where so many pages are left.
    let cases = [
        (0, ["one"; 3]),
        (1, ["one"; 3]),
        (2, ["few"; 3]),
        (FEW_AGAIN, ["few"; 3]),
        (FEW_AGAIN + 1, ["few", "near", "any"]),
    ];
    for (left, become_) in cases {
        for ((from, apart), becomes) in [(FEW, 1), (PAGES, 1), (PAGES, 100_000)].into_iter().zip(become_) {
            let mut slots = Slots::default();
            let of = |page: usize| rest(u32::try_from(page).unwrap() * apart);
            (0..from).for_each(|page| set(&mut slots, page, of(page)));
            let was = form(&slots);
            (left..from).for_each(|page| set(&mut slots, page, Slot::System));
            assert_eq!(form(&slots), was);
            slots.shrink();
            slots.check();
            assert_eq!((form(&slots), slots.counts().all()), (becomes, left), "{was}, then {left} pages");
            assert!((0..PAGES).all(|page| slots.get(page) == if page < left { of(page) } else { Slot::System }));
        }
    }
}

#[test]
fn a_table_of_any_frames_becomes_one_of_near_frames_when_the_others_have_left() {
    let mut slots = Slots::default();
    let far = |page: usize| if page.is_multiple_of(2) { rest(7) } else { rest(u32::try_from(page).unwrap() * 100_000) };
    (0..PAGES).for_each(|page| set(&mut slots, page, far(page)));
    (1..PAGES).step_by(2).for_each(|page| set(&mut slots, page, Slot::System));
    assert_eq!(form(&slots), "any");
    slots.shrink();
    slots.check();
    assert_eq!((form(&slots), slots.get(2), slots.get(3)), ("near", rest(7), Slot::System));
}

#[test]
fn what_is_expected_gets_its_room_at_once() {
    let mut slots = Slots::default();
    set(&mut slots, 3, rest(1));
    slots.expect(FEW - 1);
    assert_eq!(form(&slots), "one");
    slots.expect(FEW);
    assert_eq!((form(&slots), slots.get(3)), ("near", rest(1)));
}

/// How many of the pages from `first` on are a run, looked at one after the other.
fn run_in(array: &[Slot], first: usize, pages: usize) -> usize {
    run_of(&array[first..][..pages], |a, b| SlotWord::new(a).goes_on_with(SlotWord::new(b)))
}

#[test]
fn every_form_finds_the_runs_that_an_array_has() {
    let cases = [
        (0, 0, 1, "one"),
        (1, 0, 1, "one"),
        (1, 150, 1, "one"),
        (20, 100, 1, "few"),
        (200, 100, 1, "near"),
        (200, 100, 20_000, "any"),
    ];
    for (pages, start, apart, expected) in cases {
        let (mut slots, mut array) = (Slots::default(), [Slot::System; PAGES]);
        for page in (0..pages).map(|n| start + n + n / 7) {
            // The frames break every five pages, and the pages every seven.
            let frame = u32::try_from(page).unwrap() + u32::try_from(page / 5).unwrap() * apart;
            array[page] = rest(frame);
            set(&mut slots, page, array[page]);
        }
        assert_eq!(form(&slots), expected);
        for first in 0..PAGES {
            for pages in [1, 2, 50, PAGES].map(|pages| pages.min(PAGES - first)) {
                assert_eq!(slots.run(first, pages), run_in(&array, first, pages), "{pages} from {first}, {expected}");
            }
        }
    }
}

#[test]
fn every_form_says_what_an_array_would() {
    let mut random = Random::new(1);
    let mut below = |n: usize| usize::try_from(random.below(n as u64)).unwrap();
    let (mut slots, mut array) = (Slots::default(), [Slot::System; PAGES]);
    for round in 0..40_000 {
        // Rounds that fill take turns with rounds that empty, and frames that are near with others.
        let (fills, far) = (round / 1000 % 2 == 0, round / 2000 % 2 == 0);
        let page = below(PAGES);
        let frame =
            rest(u32::try_from(page * if far && below(20) == 0 { 12_345 } else { 3 }).unwrap()).frame().unwrap();
        let slot = match below(8) {
            0..3 => Slot::System,
            _ if !fills => Slot::System,
            3 => Slot::Mapped(frame),
            4 => Slot::Unmapped { frame, busy: true },
            _ => Slot::Unmapped { frame, busy: false },
        };
        set(&mut slots, page, slot);
        array[page] = slot;
        if round % 10 == 0 {
            slots.shrink();
            slots.check();
            assert!((0..PAGES).all(|page| slots.get(page) == array[page]));
            let words = array.map(SlotWord::new);
            assert_eq!(slots.is_one_run(), breaks_in(&words, SlotWord::goes_on_with) == 0);
            let (first, pages) = (below(PAGES - 20), 1 + below(20));
            assert_eq!(slots.run(first, pages), run_of(&words[first..][..pages], SlotWord::goes_on_with));
        }
    }
}

use proptest::prelude::*;

use super::*;

fn claim(held: u64, wanted: u64, pressure: u64) -> Claim {
    let (held, wanted) = (PageCount::new(held), PageCount::new(wanted));
    let cold = PageCount::ZERO;
    Claim { standing: Standing::Answers, held, wanted, cold, pressure, share: Share::default() }
}

fn targets(claims: &[Claim]) -> Vec<u64> {
    claims.iter().map(|claim| claim.share.target.get()).collect()
}

fn granted(claims: &[Claim]) -> Vec<u64> {
    claims.iter().map(|claim| claim.share.granted.get()).collect()
}

fn turn(limit: u64, claims: &mut [Claim]) {
    share_out(PageCount::new(limit), claims);
}

/// A process whose pages are used in a way: how many it misses in a second, by how many it has.
#[derive(Clone, Debug)]
struct Model {
    pages: u64,
    rate: u64,
    /// Whether it misses everything as soon as it lacks a page, as a loop does, and not in proportion.
    cliff: bool,
    /// Whether it does nothing.
    sleeps: bool,
}

impl Model {
    fn misses(&self, held: u64) -> u64 {
        match self.pages.saturating_sub(held) {
            0 => 0,
            _ if self.sleeps => 0,
            _ if self.cliff => self.rate,
            lacking => part(self.rate, lacking, self.pages),
        }
    }
}

/// Runs `turns` turns of processes that do as they are told, each evicting and bringing home at most `speed` pages a turn. `look` sees what was
/// granted and held in each.
fn run(limit: u64, models: &[Model], turns: usize, speed: u64, mut look: impl FnMut(usize, &[Claim])) {
    let cold = |model: &Model| PageCount::new(if model.sleeps { model.pages } else { 0 });
    let begins = |model: &Model| Claim { cold: cold(model), ..claim(0, model.pages, 0) };
    let mut claims: Vec<Claim> = models.iter().map(begins).collect();
    for at in 0..turns {
        turn(limit, &mut claims);
        look(at, &claims);
        for (claim, model) in claims.iter_mut().zip(models) {
            let (held, may) = (claim.held.get(), claim.share.granted.get().min(model.pages));
            let held = if may < held { may.max(held.saturating_sub(speed)) } else { may.min(held + speed) };
            claim.held = PageCount::new(held);
            // What was seen of late counts for more.
            claim.pressure = (claim.pressure * 7 + model.misses(held)) / 8;
        }
    }
}

#[test]
fn who_is_alone_has_all_of_it() {
    for wanted in [0, 10, 1000, 5000] {
        let mut claims = [claim(wanted.min(1000), wanted, 0)];
        turn(1000, &mut claims);
        assert!(granted(&claims)[0] >= 999, "{wanted}: {claims:?}");
    }
}

#[test]
fn where_all_fits_each_has_what_it_wants_and_room_to_grow() {
    let mut claims = [claim(100, 100, 0), claim(300, 300, 9999), claim(0, 0, 0)];
    turn(1000, &mut claims);
    assert!(granted(&claims).iter().zip([100, 300, 0]).all(|(granted, wanted)| *granted >= wanted), "{claims:?}");
    assert!(granted(&claims)[1] > 700, "{claims:?}");
}

#[test]
fn who_comes_in_begins_with_an_equal_part_and_gets_it_as_others_let_go() {
    let mut claims = [claim(1000, 1000, 0), claim(0, 0, 0)];
    turn(1000, &mut claims);
    claims[1].wanted = PageCount::new(800);
    claims[1].share = Share::default();
    turn(1000, &mut claims);
    let aimed = targets(&claims);
    assert!(aimed.iter().sum::<u64>() <= 1000 && aimed[1] >= 333, "{aimed:?}");
    assert_eq!(granted(&claims)[1], 1000 / 4 / 2, "nothing is free yet but what nobody is denied");
    assert_eq!(granted(&claims)[0], aimed[0]);
    claims[0].held = PageCount::new(aimed[0]);
    turn(1000, &mut claims);
    assert!(granted(&claims)[1] >= aimed[1] - 2, "{claims:?}");
}

fn even(pages: u64, rate: u64) -> Model {
    Model { pages, rate, cliff: false, sleeps: false }
}

fn cliff(pages: u64, rate: u64) -> Model {
    Model { cliff: true, ..even(pages, rate) }
}

fn sleeper(pages: u64) -> Model {
    Model { sleeps: true, ..even(pages, 0) }
}

#[test]
fn who_misses_much_is_given_what_others_do_not_miss() {
    let mut last = Vec::new();
    run(1000, &[even(1000, 0), even(1000, 50_000)], 600, 50, |_, claims| last = granted(claims));
    assert!(last[1] > 800 && last[0] >= 1000 / 2 / 4, "{last:?}");
}

/// However many are busy, and alike.
#[test]
fn who_sleeps_gives_to_those_who_are_busy_within_a_second() {
    for busy in 1..6_u64 {
        let mut models = vec![even(1000, 10_000); usize::try_from(busy).unwrap()];
        models.push(sleeper(1000));
        let mut last = Vec::new();
        run(1000, &models, 40, 1000, |_, claims| last = granted(claims));
        let sleeps = last.pop().unwrap();
        assert!((250 / (busy + 1)..260 / (busy + 1) + 10).contains(&sleeps), "{busy}: {sleeps}");
        assert!(last.iter().all(|granted| *granted >= 700 / busy), "{busy}: {last:?}");
    }
}

#[test]
fn what_is_not_used_goes_before_what_is_not_missed() {
    let mut before = Vec::new();
    let models = [even(300, 10), sleeper(600), even(1000, 90_000)];
    run(1000, &models, 600, 1000, |at, claims| {
        let now = targets(claims);
        if at > 0 && now[0] < before[0] {
            assert!(before[1] < 83 + COLD_STEP, "in turn {at} it was {before:?}");
        }
        before = now;
    });
    // A quarter of an equal part, and what is too little to be given.
    assert!(before[1] < 83 + COLD_STEP, "{before:?}");
}

#[test]
fn what_is_in_use_is_not_what_is_given_at_once() {
    let mut claims = [Claim { cold: PageCount::new(700), ..claim(500, 1000, 0) }, claim(500, 1000, 9000)];
    claims.iter_mut().for_each(|claim| claim.share.target = PageCount::new(500));
    for _ in 0..PATIENCE - 1 {
        turn(1000, &mut claims);
        claims[0].held = claims[0].share.granted;
        claims[1].held = claims[1].share.granted;
    }
    let given = targets(&claims);
    assert!(
        (300..300 + COLD_STEP).contains(&given[0]) && given[1] == 1000 - given[0],
        "all but what is in use: {given:?}"
    );
}

#[test]
fn who_is_new_takes_nothing_from_others_and_has_a_floor() {
    let mut claims = [claim(1000, 1000, 0), claim(500, 500, 0), claim(0, 0, 0)];
    claims[1].standing = Standing::New;
    claims[2].standing = Standing::New;
    turn(1000, &mut claims);
    assert!(granted(&claims)[0] >= 999, "{claims:?}");
    assert_eq!(granted(&claims)[1..], [83, 83]);
    let mut alone = [claim(300, 300, 0)];
    alone[0].standing = Standing::New;
    turn(1000, &mut alone);
    assert_eq!(granted(&alone), [1000], "who is alone has all of it from the start");
}

#[test]
fn who_does_not_answer_keeps_what_it_holds_and_no_more() {
    let mut claims = [claim(600, 600, 0), claim(100, 2000, 50)];
    turn(1000, &mut claims);
    claims[0].standing = Standing::Silent;
    turn(1000, &mut claims);
    assert_eq!(granted(&claims), [600, 400]);
    claims[0].held = PageCount::new(1000);
    turn(1000, &mut claims);
    assert_eq!(granted(&claims), [750, 250], "a quarter is left to those who answer");
}

#[test]
fn shares_come_to_rest_also_where_a_page_less_makes_all_the_difference() {
    let models = [cliff(500, 3000), cliff(480, 2000), cliff(400, 90_000)];
    let (mut before, mut changes) = (Vec::new(), vec![0; 16]);
    run(1000, &models, 16_000, 100, |at, claims| {
        changes[at / 1000] += u64::from(before != targets(claims));
        before = targets(claims);
    });
    assert!(changes[8..].iter().all(|changes| *changes < 200), "{changes:?}");
}

fn any_model() -> impl Strategy<Value = Model> {
    (1..3000_u64, 0..100_000_u64, any::<bool>(), prop::bool::weighted(0.2))
        .prop_map(|(pages, rate, cliff, sleeps)| Model { pages, rate, cliff, sleeps })
}

fn any_claim() -> impl Strategy<Value = Claim> {
    let standing = prop_oneof![Just(Standing::New), Just(Standing::Answers), Just(Standing::Silent)];
    let pages = || prop_oneof![4 => 0..5000_u64, 1 => any::<u64>()];
    (standing, pages(), pages(), pages(), any::<u64>(), pages(), any::<u64>(), any::<u64>()).prop_map(
        |(standing, held, wanted, cold, pressure, target, quiet, patience)| {
            let share = Share { target: PageCount::new(target), granted: PageCount::ZERO, quiet, patience };
            Claim { standing, share, cold: PageCount::new(cold), ..claim(held, wanted, pressure) }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is claimed.
    #[test]
    fn no_more_is_granted_than_there_is_and_nobody_is_denied_a_floor(
        limit in 0..20_000_u64,
        mut claims in prop::collection::vec(any_claim(), 0..40),
    ) {
        turn(limit, &mut claims);
        let old: Vec<&Claim> = claims.iter().filter(|claim| claim.standing != Standing::New).collect();
        for of in [|share: &Share| share.target, |share: &Share| share.granted] {
            let all = old.iter().map(|claim| u128::from(of(&claim.share).get())).sum::<u128>();
            prop_assert!(all <= u128::from(limit), "{all} of {limit}");
        }
        let new = claims.iter().filter(|claim| claim.standing == Standing::New).count() as u64;
        let answering = old.iter().filter(|claim| claim.standing == Standing::Answers).count() as u64;
        for claim in &claims {
            let least = match claim.standing {
                Standing::New => limit / 16 / (answering + new),
                Standing::Answers => claim.wanted.get().min(limit / 16 / answering),
                Standing::Silent => 0,
            };
            prop_assert!(claim.share.granted.get() >= least, "{least}: {claim:?}");
            prop_assert!(claim.share.granted.get() <= limit);
        }
    }

    /// Processes that do as they are told, though they need time for it.
    #[test]
    fn shares_come_to_rest_and_meanwhile_no_more_is_held_than_there_is(
        models in prop::collection::vec(any_model(), 1..12),
        limit in 64..8000_u64,
        speed in 5..500_u64,
    ) {
        let (mut before, mut moved) = (Vec::new(), 0);
        let floors = limit / 4;
        let mut failed = None;
        run(limit, &models, 12_000, speed, |at, claims| {
            let now = targets(claims);
            if at > 8000 {
                moved += now.iter().zip(&before).map(|(now, before): (&u64, &u64)| now.abs_diff(*before)).sum::<u64>();
            }
            before = now;
            let held: u64 = claims.iter().map(|claim| claim.held.get()).sum();
            if held > limit + floors {
                failed = Some(held);
            }
        });
        prop_assert_eq!(failed, None);
        prop_assert!(moved <= 2 * limit, "{moved} of {limit} moved in 4000 turns");
    }

    /// Nobody's memory shrinks for processes that come and go at once.
    #[test]
    fn processes_that_end_soon_cost_nothing(limit in 100..5000_u64, children in 1..50_usize) {
        let mut claims = vec![claim(limit, 2 * limit, 500)];
        turn(limit, &mut claims);
        let before = claims[0].share.granted;
        claims.extend((0..children).map(|_| Claim { standing: Standing::New, ..claim(limit / 2, limit, 9) }));
        for _ in 0..100 {
            turn(limit, &mut claims);
            prop_assert_eq!(claims[0].share.granted, before);
        }
    }
}

//! Simulations: textbook policies against libCacheSim's, the real ones over a model, a part against the whole.

use hetmem_core::physmap::MemoryType;
use hetmem_core::policy::{Argument, POLICIES};
use hetmem_core::record::Record;
use hetmem_core::units::{PAGE_SIZE, PageCount, PageRange, VirtAddr};
use hetmem_trace::{Outcome, Outcomes, Replay, Sampling, Setup, SimulatedDevice, Survey};

/// As `from_libcachesim.py` draws them.
struct Draws(u64);

impl Draws {
    fn draw(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (number ^ (number >> 31)) % below
    }
}

/// The trace of `from_libcachesim.py`.
fn pages(touches: u64) -> Vec<u64> {
    let mut draws = Draws(1);
    let mut page = |number: u64| {
        if number / 10_000 % 4 == 3 {
            return 10_000 + number % 30_000;
        }
        let first = draws.draw(10_000);
        let second = draws.draw(first + 1);
        draws.draw(second + 1)
    };
    (0..touches).map(&mut page).collect()
}

fn touch(page: u64, time: u64) -> Record {
    Record::Touch { page: VirtAddr::new(page * PAGE_SIZE), write: false, time }
}

fn setup(policies: &[&str], limits: &[u64]) -> Setup {
    Setup {
        policies: policies.iter().map(|policy| policy.parse().unwrap()).collect(),
        limits: limits.iter().map(|pages| PageCount::new(*pages)).collect(),
        devices: vec![SimulatedDevice {
            memory_type: MemoryType::DevicePrivate,
            pages: PageCount::new(1 << 40),
            is_readable: true,
        }],
        stock: PageCount::ZERO,
        sampling: Sampling::ALL,
        is_recorded: false,
    }
}

fn replay(setup: &Setup, records: &[Record]) -> Outcomes {
    let mut replay = Replay::new(setup).unwrap();
    records.chunks(5000).for_each(|records| replay.feed(records));
    replay.finish()
}

fn of<'a>(outcomes: &'a Outcomes, policy: &str) -> Vec<&'a Outcome> {
    outcomes.all.iter().filter(|outcome| outcome.policy == policy).collect()
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn textbook_policies_miss_as_often_as_libcachesims() {
    let expected: serde_json::Value = serde_json::from_str(include_str!("from_libcachesim.json")).unwrap();
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let limits: Vec<u64> = expected["limits"].as_array().unwrap().iter().map(number).collect();
    let touched = pages(number(&expected["touches"]));
    let records: Vec<Record> = (0..).zip(&touched).map(|(time, page)| touch(*page, time * 1000)).collect();
    let outcomes = replay(&setup(&[], &limits), &records);
    let first = number(&expected["pages"]);
    assert_eq!((outcomes.touches, outcomes.first_touches), (number(&expected["touches"]), first as f64));
    for name in ["LRU", "CLOCK", "S3-FIFO", "Belady"] {
        let found: Vec<f64> = of(&outcomes, name).iter().map(|outcome| outcome.misses).collect();
        // It counts the first touch of a page as a miss.
        let misses = expected["misses"][name].as_array().unwrap();
        let misses: Vec<f64> = misses.iter().map(|misses| (number(misses) - first) as f64).collect();
        assert_eq!(found, misses, "{name}");
    }
}

/// Policies that hold a limit, as the table has them.
fn policies() -> Vec<&'static str> {
    let holds = POLICIES.iter().filter(|entry| entry.argument == Argument::Limit);
    holds.map(|entry| entry.name).collect()
}

#[test]
fn the_real_policies_miss_what_they_sent_away_and_never_less_than_the_optimum() {
    let records: Vec<Record> = (0..).zip(pages(200_000)).map(|(time, page)| touch(page, time * 1000)).collect();
    let limits = [2048, 4096, 8192];
    let outcomes = replay(&setup(&policies(), &limits), &records);
    for name in policies() {
        for (outcome, best) in of(&outcomes, name).iter().zip(of(&outcomes, "Belady")) {
            let (out, home) = outcome.moved.unwrap();
            assert!(outcome.misses > 0.0 && outcome.misses <= out && home >= outcome.misses, "{outcome:?}");
            // A limit is overstepped by what comes until the policy is asked.
            assert!(outcome.misses >= best.misses * 0.9, "{outcome:?} {best:?}");
            assert_eq!((outcome.error, outcome.is_real), (0.0, true));
        }
    }
}

#[test]
fn where_all_fits_nothing_is_missed_and_nothing_moves() {
    let records: Vec<Record> = (0..).zip(pages(50_000)).map(|(time, page)| touch(page, time * 1000)).collect();
    let outcomes = replay(&setup(&policies(), &[1 << 20]), &records);
    assert!(outcomes.all.iter().all(|outcome| outcome.misses == 0.0), "{outcomes:?}");
    assert!(policies().iter().all(|name| of(&outcomes, name)[0].moved == Some((0.0, 0.0))));
}

#[test]
fn pages_on_a_coherent_device_are_missed_where_they_are() {
    let mut setup = setup(&["clock"], &[512]);
    setup.devices[0].memory_type = MemoryType::DeviceCoherent;
    // Twice through four times the limit: what is on the device stays there.
    let records: Vec<Record> = (0..4096).map(|number| touch(number % 2048, number * 1000)).collect();
    let outcomes = replay(&setup, &records);
    let clock = of(&outcomes, "clock")[0];
    let (out, home) = clock.moved.unwrap();
    assert_eq!(home, 0.0);
    assert!(clock.misses >= 1024.0 && out >= 1024.0, "{clock:?}");
}

fn range(page: u64, pages: u64) -> PageRange {
    PageRange::new(VirtAddr::new(page * PAGE_SIZE), PageCount::new(pages)).unwrap()
}

/// A recording says what is managed, what is there, when the policy was asked, and what was discarded or has moved.
#[test]
fn a_recording_is_followed() {
    let (base, pages, limit) = (1 << 20, 1024, 512);
    let mut time = 0;
    let mut tick = |records: &mut Vec<Record>| {
        for _ in 0..4 {
            time += 20_000_000;
            records.push(Record::Tick { anonymous: PageCount::new(pages), time });
        }
    };
    let mut records = vec![Record::Process { pid: 7 }, Record::Managed(range(base, pages))];
    let present =
        (0..pages / 64).map(|chunk| Record::Present { chunk: range(base + chunk * 64, 1).start(), pages: u64::MAX });
    records.extend(present);
    tick(&mut records);
    let fault = |page: u64, pages: u8| Record::Fault { page: range(page, 1).start(), pages, time: 0 };
    // All once, sixteen at a time: half of them are away.
    records.extend((0..pages / 16).map(|step| fault(base + step * 16, 16)));
    let mut setup = setup(&["clock"], &[limit]);
    setup.is_recorded = true;
    let outcomes = replay(&setup, &records);
    let clock = of(&outcomes, "clock")[0];
    assert_eq!((clock.misses, clock.moved), (32.0, Some((512.0, 512.0))));
    assert_eq!(outcomes.first_touches, 0.0);
    // What is gone is not missed, and what has another address is there.
    let mut gone = records[..records.len() - usize::try_from(pages / 16).unwrap()].to_vec();
    gone.push(Record::Gone(range(base, 512)));
    gone.push(Record::Renamed { from: range(base + 512, 512), to: range(base + 4096, 1).start() });
    gone.extend((0..512).map(|page| fault(base + page, 1)));
    gone.extend((0..512).map(|page| fault(base + 4096 + page, 1)));
    let outcomes = replay(&setup, &gone);
    let clock = of(&outcomes, "clock")[0];
    let (_, home) = clock.moved.unwrap();
    assert_eq!((outcomes.first_touches, clock.misses), (512.0, home));
    assert!(clock.misses <= 512.0);
    // The same pages of another process are others.
    let mut other = records.clone();
    other.push(Record::Process { pid: 8 });
    other.push(fault(base, 1));
    assert_eq!(replay(&setup, &other).first_touches, 1.0);
    // Of a process that executes another program nothing is there, and none of the others is concerned.
    let mut anew = records.clone();
    anew.extend([Record::Process { pid: 8 }, Record::Began, Record::Process { pid: 7 }]);
    assert_eq!(of(&replay(&setup, &anew), "clock")[0].misses, 32.0);
    anew.extend([Record::Began, fault(base, 1), fault(base + 1023, 1)]);
    let outcomes = replay(&setup, &anew);
    assert_eq!((outcomes.first_touches, of(&outcomes, "clock")[0].misses), (2.0, 32.0));
}

#[test]
fn a_part_of_the_memory_says_what_the_whole_does_within_the_error_that_it_names() {
    // Many blocks, of which some are touched more often.
    let mut draws = Draws(3);
    let records: Vec<Record> = (0..600_000)
        .map(|time| {
            let block = draws.draw(2000);
            let block = draws.draw(block + 1);
            touch(block * 512 + draws.draw(16), time * 1000)
        })
        .collect();
    let limits = [4000, 16_000];
    let whole = replay(&setup(&["clock"], &limits), &records);
    let mut part = setup(&["clock"], &limits);
    let mut survey = Survey::new(Sampling::one_in(4), u64::MAX / 2, 1);
    survey.look(&records);
    part.sampling = survey.sampling();
    let part = replay(&part, &records);
    assert_eq!(part.touches, whole.touches);
    let pages = (part.pages - whole.pages) / whole.pages;
    assert!(pages.abs() < 0.1, "{pages}");
    for (part, whole) in part.all.iter().zip(&whole.all) {
        assert!(part.error > 0.0 && part.error < whole.misses / 5.0, "{part:?} {whole:?}");
        // Two standard errors, and one more, as this is one draw of many. A part has few chunks, by which the real policies go.
        let most = if part.is_real { whole.misses / 10.0 } else { part.error * 1.5 };
        assert!((part.misses - whole.misses).abs() <= most, "{part:?} {whole:?}");
    }
}

/// Addresses of eight tebibytes, in what a small simulation may take.
#[test]
fn a_trace_of_more_memory_than_can_be_simulated_is_simulated_in_part() {
    let mut draws = Draws(5);
    let records: Vec<Record> = (0..2_000_000).map(|time| touch(draws.draw(1 << 31), time)).collect();
    let most = 4 << 20;
    let mut survey = Survey::new(Sampling::ALL, most, Setup::bytes_by_page(1, 1));
    records.chunks(5000).for_each(|records| survey.look(records));
    assert!(survey.sampling().rate() < 0.01 && survey.pages() > 100);
    let mut setup = setup(&["clock"], &[1 << 29]);
    setup.sampling = survey.sampling();
    let outcomes = replay(&setup, &records);
    assert!((outcomes.pages / 2_000_000.0 - 1.0).abs() < 0.2, "{}", outcomes.pages);
}

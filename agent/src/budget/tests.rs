use std::sync::Barrier;
use std::sync::mpsc::{Receiver, Sender, channel};

use hetmem_sys::mapping::SharedMemory;
use hetmem_sys::thread::yield_now;

use super::*;

fn members() -> &'static Members {
    let (memory, _fd) = SharedMemory::<Members>::create(c"hetmem-test").unwrap();
    Box::leak(Box::new(memory))
}

/// A process, as far as the others see it: a thread that has joined. It ends when this is dropped.
struct Process {
    part: Part,
    thread: Option<std::thread::JoinHandle<()>>,
    ends: Option<Sender<()>>,
}

impl Process {
    fn begin(members: &'static Members) -> Self {
        let (ends, ended): (_, Receiver<()>) = channel();
        let (tell, told) = channel();
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        let thread = thread.spawn(move || {
            // SAFETY: a thread that uses no robust mutex.
            tell.send(unsafe { members.join() }).unwrap();
            let _ = ended.recv();
        });
        Self { part: told.recv().unwrap(), thread: Some(thread.unwrap()), ends: Some(ends) }
    }

    fn membership(&self) -> Membership {
        self.part.membership().unwrap()
    }

    fn say(&self, held: u64, wanted: u64) -> u64 {
        let [limit, held, wanted] = [LIMIT, held, wanted].map(PageCount::new);
        self.membership().say(limit, Need { held, wanted, cold: PageCount::ZERO }, 0).get()
    }

    fn frames(&self, capacity: u64) -> Shared {
        Shared::new(self.part, Good::Frames(DeviceId::new(3)), PageCount::new(capacity))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.ends = None;
        self.thread.take().unwrap().join().unwrap();
        // `join` returns when the kernel has cleared the thread's word, which is just before it looks at others.
        if let Some(membership) = self.part.membership() {
            while membership.is_alive() {
                yield_now();
            }
        }
    }
}

const LIMIT: u64 = 100_000;

/// Has all say the same until nothing new is said to any of them for some turns.
fn settle(members: &Members, say: impl Fn() -> Vec<u64>) -> Vec<u64> {
    let mut before = say();
    let mut since = members.turns.load(Relaxed);
    while members.turns.load(Relaxed) - since < 2 * NEW {
        let now = say();
        if now != before {
            (before, since) = (now, members.turns.load(Relaxed));
        }
        yield_now();
    }
    before
}

#[test]
fn two_share_what_one_has_again_when_the_other_has_ended() {
    let members = members();
    let (first, second) = (Process::begin(members), Process::begin(members));
    // Each holds what it may.
    let held = [LIMIT, 0].map(AtomicU64::new);
    let hold = |process: &Process, held: &AtomicU64| {
        let may = process.say(held.load(Relaxed), LIMIT);
        held.store(may.min(LIMIT), Relaxed);
        may
    };
    let both = settle(members, || vec![hold(&first, &held[0]), hold(&second, &held[1])]);
    assert!(both.iter().sum::<u64>() <= LIMIT && both.iter().all(|share| *share >= LIMIT / 4), "{both:?}");
    drop(second);
    let one = settle(members, || vec![hold(&first, &held[0])]);
    assert!(one[0] >= LIMIT - 1, "{one:?}");
}

#[test]
fn who_grows_between_two_turns_is_asked_for_nothing_while_all_fits() {
    let members = members();
    let (first, second) = (Process::begin(members), Process::begin(members));
    let told = |holds: u64, wants: u64, other: u64| {
        let said = [(&first, holds, wants), (&second, other, other)];
        for (process, held, wanted) in said {
            let member = process.membership().member();
            // As the last turn left it, in which both had just begun.
            member.granted.store(LIMIT / 2, Relaxed);
            member.held.store(held, Relaxed);
            member.wanted.store(wanted, Relaxed);
        }
        first.membership().told(PageCount::new(LIMIT), PageCount::new(holds)).get()
    };
    let most = LIMIT * 3 / 4;
    assert_eq!(told(most, most, 1), most);
    assert_eq!(told(1, LIMIT, 1), LIMIT / 2, "what it may grow to is for the turn to say");
    assert_eq!(told(most, LIMIT, 1), LIMIT / 2, "with what it has away it wants more than there is");
    assert_eq!(told(most, most, LIMIT / 2), LIMIT / 2, "there is not enough for both");
    assert_eq!(told(most, most, u64::MAX), LIMIT / 2, "nothing is trusted");
}

#[test]
fn who_comes_to_a_place_is_not_who_had_it() {
    let members = members();
    let first = Process::begin(members);
    let before = first.membership();
    assert!(before.is_alive());
    drop(first);
    assert!(!before.is_alive());
    let second = Process::begin(members);
    assert_eq!(second.membership().at, before.at);
    assert!(!before.is_alive() && second.membership().is_alive());
}

#[test]
fn of_frames_no_more_are_taken_than_there_are_and_who_ends_gives_all_back() {
    const CAPACITY: u64 = 3000;
    let members = members();
    let taken = AtomicU64::new(0);
    let most = AtomicU64::new(0);
    let all_here = Barrier::new(4);
    std::thread::scope(|scope| {
        for seed in 1..=4_u64 {
            let (taken, most, all_here) = (&taken, &most, &all_here);
            scope.spawn(move || {
                let process = Process::begin(members);
                let frames = process.frames(CAPACITY);
                all_here.wait();
                let (mut random, mut own) = (seed, 0);
                for _ in 0..20_000 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let pages = random >> 54;
                    if random & 1 << 40 == 0 {
                        let got = frames.take(PageCount::new(pages)).get();
                        own += got;
                        most.fetch_max(taken.fetch_add(got, SeqCst) + got, SeqCst);
                    } else {
                        let back = pages.min(own);
                        taken.fetch_sub(back, SeqCst);
                        frames.give(PageCount::new(back));
                        own -= back;
                    }
                }
                // It ends with what it has.
                all_here.wait();
                taken.fetch_sub(own, SeqCst);
                drop(process);
            });
        }
    });
    assert!(most.load(SeqCst) <= CAPACITY && most.load(SeqCst) > CAPACITY / 2, "{most:?}");
    assert!(
        members.peak(Good::Frames(DeviceId::new(3))).get() >= most.load(SeqCst)
            && members.peak(Good::Frames(DeviceId::new(3))).get() <= CAPACITY
    );
    let next = Process::begin(members);
    let frames = next.frames(CAPACITY);
    assert_eq!(frames.left().get(), CAPACITY);
    assert_eq!(frames.take(PageCount::new(2 * CAPACITY)).get(), CAPACITY);
    assert!(frames.take(PageCount::ONE).is_zero() && frames.left().is_zero());
}

#[test]
fn what_is_given_back_others_can_have() {
    let members = members();
    let (first, second) = (Process::begin(members), Process::begin(members));
    let (one, two) = (first.frames(64), second.frames(64));
    assert_eq!(one.take(PageCount::new(64)).get(), 64);
    assert!(two.take(PageCount::ONE).is_zero());
    one.give(PageCount::new(64));
    let got = two.take(PageCount::new(64)).get();
    assert!(got >= 62, "{got}: but for a batch that the first keeps");
}

#[test]
fn who_finds_no_place_has_no_frames_and_little_of_the_limit() {
    let members = members();
    let all: Vec<Process> = (0..MEMBERS).map(|_| Process::begin(members)).collect();
    assert!(all.iter().all(|process| process.part.membership().is_some()));
    let last = Process::begin(members);
    assert!(last.part.membership().is_none());
    assert!(last.frames(64).take(PageCount::ONE).is_zero() && last.frames(64).left().is_zero());
    let share = Budget::new(last.part).share(
        PageCount::new(LIMIT),
        Need { held: PageCount::ONE, wanted: PageCount::ONE, cold: PageCount::ZERO },
        0,
    );
    assert_eq!(share.get(), LIMIT / MEMBERS as u64 / 4);
    drop(all);
    assert!(Process::begin(members).part.membership().is_some());
}

#[test]
fn misses_are_those_of_late() {
    let mut misses = Misses { touches: 0, at: None, rate: 0 };
    let mut now = Duration::from_secs(1);
    assert_eq!(misses.rate(5_000_000, now), 0, "what was before it is looked at is not counted");
    let mut touches = 5_000_000;
    let mut seconds = |of: u64, touches_in_each: u64| {
        let mut rate = 0;
        for _ in 0..of * 100 {
            now += Duration::from_millis(10);
            touches += touches_in_each / 100;
            rate = misses.rate(touches, now);
        }
        rate
    };
    let busy = seconds(3, 1000);
    assert!((900..=1000).contains(&busy), "{busy}");
    let idle = seconds(3, 0);
    assert!(idle < 10, "{idle}");
}

use hetmem_core::frames::Quota as _;
use hetmem_core::units::DeviceId;

use super::*;
use crate::budget::{Good, Shared};

#[test]
fn processes_that_open_it_by_path_count_in_one_place() {
    let parent = Ledger::create().unwrap();
    let agent = Ledger::open(&parent.path().unwrap()).unwrap();
    agent.claim(7).cpu_faults.fetch_add(3, Relaxed);
    Ledger::open(&parent.path().unwrap()).unwrap().claim(8).cpu_faults.fetch_add(4, Relaxed);
    assert_eq!(parent.sum().cpu_faults.load(Relaxed), 7);
    assert_eq!(parent.counters_of(7).unwrap().cpu_faults.load(Relaxed), 3);
    assert!(parent.counters_of(9).is_none());
    assert_eq!(parent.processes(), 2);
}

#[test]
fn a_process_that_claims_again_keeps_its_sums_and_loses_what_it_held() {
    let ledger = Ledger::create().unwrap();
    let before = ledger.claim(7);
    before.adopted_bytes.store(4096, Relaxed);
    before.devices[0].add(8192);
    before.errors.fetch_add(1, Relaxed);
    let after = ledger.claim(7);
    assert!(std::ptr::eq(before, after));
    assert_eq!(after.adopted_bytes.load(Relaxed), 0);
    assert_eq!(after.devices[0].used_bytes.load(Relaxed), 0);
    assert_eq!(after.devices[0].peak_used_bytes.load(Relaxed), 8192);
    assert_eq!(after.errors.load(Relaxed), 1);
    assert_eq!(ledger.processes(), 1);
}

#[test]
fn processes_beyond_the_last_slot_share_it() {
    let ledger = Ledger::create().unwrap();
    let slots = u32::try_from(SLOTS).unwrap();
    for pid in 1..=slots + 5 {
        ledger.claim(pid).errors.fetch_add(1, Relaxed);
    }
    assert_eq!(ledger.processes(), SLOTS as u64 + 5);
    assert_eq!(ledger.sum().errors.load(Relaxed), SLOTS as u64 + 5);
    assert_eq!(ledger.counters_of(slots).unwrap().errors.load(Relaxed), 6);
}

#[test]
fn concurrent_claims_get_slots_of_their_own() {
    let ledger = Ledger::create().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8_u32 {
            let ledger = &ledger;
            scope.spawn(move || {
                for i in 0..100 {
                    ledger.claim(1 + thread * 100 + i).errors.fetch_add(1, Relaxed);
                }
            });
        }
    });
    assert_eq!(ledger.processes(), 800);
    assert!((1..=800).all(|pid| ledger.counters_of(pid).unwrap().errors.load(Relaxed) == 1));
}

#[test]
fn what_the_supervisor_wants_reaches_its_process_and_no_other() {
    let ledger = Ledger::create().unwrap();
    let agent = Ledger::open(&ledger.path().unwrap()).unwrap();
    assert!(agent.seat(7).is_none());
    let _ = agent.claim(7);
    let _ = agent.claim(8);
    let (seat, other) = (agent.seat(7).unwrap(), agent.seat(8).unwrap());
    let look = ledger.look();
    assert_eq!((seat.looks(), other.looks()), (look, look));
    seat.tell_resident(PageCount::new(5), look);
    let seen: Vec<_> = ledger.each_process().map(|process| (process.pid, process.is_here, process.resident)).collect();
    assert_eq!(seen, [(7, true, Some((PageCount::new(5), look))), (8, true, None)]);
    let _ = agent.claim(7);
    assert_eq!(ledger.each_process().next().unwrap().resident, None, "it executes another program");
    let request = Request::Heat { cells: 3 };
    let number = ledger.ask(8, request);
    assert_eq!((seat.request_number(), other.request_number()), (0, number));
    assert_eq!(other.request(number), Some(request));
    other.answer(number, &[9], None);
    assert!(matches!(ledger.state(number), State::Answered(_)));
    assert_eq!(ledger.system_limit(), None);
    ledger.set_system_limit(ByteLen::new(4096));
    assert_eq!(seat.system_limit(), ByteLen::new(4096));
    assert_eq!(ledger.system_limit(), Some(ByteLen::new(4096)));
}

#[test]
fn of_devices_that_are_shared_those_who_have_ended_use_nothing() {
    let ledger: &'static Ledger = Box::leak(Box::new(Ledger::create().unwrap()));
    for pid in [7, 8] {
        let counters = ledger.claim(pid);
        counters.devices.iter().take(2).for_each(|device| device.add(8192));
    }
    // SAFETY: this thread has no robust mutex.
    let part = unsafe { ledger.join() };
    let frames = Shared::new(part, Good::Frames(DeviceId::new(0)), PageCount::new(100));
    assert_eq!(frames.take(PageCount::new(3)).get(), 3);
    let sum = ledger.sum_at_end(7, std::iter::once(0));
    let of = |device: usize| {
        let counters = &sum.devices[device];
        (counters.used_bytes.load(Relaxed), counters.peak_used_bytes.load(Relaxed))
    };
    assert_eq!((of(0), of(1)), ((3 * 4096, 3 * 4096), (16384, 16384)));
}

#[test]
fn the_first_refusal_is_kept_whole() {
    let ledger = Ledger::create().unwrap();
    assert_eq!(ledger.refusal(), None);
    ledger.refuse(5, "no permission for userfaultfd");
    ledger.refuse(6, "another reason");
    assert_eq!(ledger.refusals(), 2);
    assert_eq!(ledger.refusal(), Some(Refusal { pid: 5, message: "no permission for userfaultfd".into() }));
    let long = Ledger::create().unwrap();
    long.refuse(5, &"x".repeat(MESSAGE_BYTES + 1));
    assert_eq!(long.refusal().unwrap().message.len(), MESSAGE_BYTES);
}

#[test]
fn other_files_are_refused() {
    let (_memory, fd) = SharedMemory::<Area>::create(c"something-else").unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    assert_eq!(Ledger::open(&path).unwrap_err(), LedgerError::Foreign(path));
    // Of the right name, and something else inside.
    let (_memory, fd) = SharedMemory::<Area>::create(NAME).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    assert_eq!(Ledger::open(&path).unwrap_err(), LedgerError::Foreign(path));
    assert!(matches!(Ledger::open(Path::new("/nonexistent")), Err(LedgerError::Open { source: Errno::NOENT, .. })));
}

//! Forks by the C library while everybody is at work: a fork is one of the whole process, so this test has one of its own.
#![expect(unsafe_code, reason = "forks")]
#![expect(clippy::print_stderr, reason = "says what can't be tried here")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{COHERENT, PRIVATE, Raw, builder, fill, map, runtime, to, verify, wrong_page};
use hetmem::{Builder, ErrorKind, FaultPath, Request, Residency, Runtime, Target};
use hetmem_core::units::PageCount;
use hetmem_sys::probe::Capabilities;

/// Of each thread that forks.
const ROUNDS: usize = 150;
const FORKERS: usize = 2;

/// The tests fork, and who counts on where pages are wants no other's fork meanwhile.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forks past the C library. Of the calls that do, the one that every architecture has.
///
/// # Safety
///
/// The child does what it may after a fork of a process with threads, and ends.
unsafe fn bare_fork() -> i32 {
    // SAFETY: without a stack of its own the child goes on here, on a copy of this one.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0_usize, 0_usize, 0_usize, 0_usize) };
    i32::try_from(child).unwrap()
}

/// Migrates, maps and unmaps, each of which allocates, and touches what is away, until told to stop.
fn work(runtime: &Runtime, over: &AtomicBool) {
    while !over.load(Relaxed) {
        let mapping = map(runtime, 64, FaultPath::Thread);
        fill(&mapping);
        for target in [to(PRIVATE), to(COHERENT), to(PRIVATE), Request::all_to(Target::System)] {
            // Where a page is kept, a fork has just shared it, or is under way.
            let _outcomes = runtime.migrate(mapping.range(), target);
            verify(&mapping);
        }
    }
}

/// What `fork(3)` says. A child that waits for ever is ended by a signal.
fn fork() -> i32 {
    // SAFETY: the child reads memory, makes system calls, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        // SAFETY: ends the child.
        unsafe { libc::alarm(60) };
    }
    child
}

/// Ends as a child, with the status that says whether `good` is so.
fn end(good: bool) -> ! {
    // SAFETY: ends the child at once.
    unsafe { libc::_exit(i32::from(!good)) }
}

fn status_of(child: i32) -> i32 {
    let mut status = -1;
    // SAFETY: the child is this test's own.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// A runtime started by a thread that has not the privilege to be told of forks; `None` where such a thread gets no userfaultfd.
fn unprivileged(builder: Builder) -> Option<Runtime> {
    let mut sets = rustix::thread::capabilities(None).unwrap();
    sets.effective.remove(rustix::thread::CapabilitySet::SYS_PTRACE);
    rustix::thread::set_capabilities(None, sets).unwrap();
    match builder.start() {
        Ok(runtime) => Some(runtime),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::HostRefuses, "{error}");
            eprintln!("skipped: a runtime without CAP_SYS_PTRACE ({error})");
            None
        }
    }
}

/// Forks in several threads while others migrate; each child, and each child of a child, finds what was away.
fn children_find_everything(runtime: &Runtime, rounds: usize) {
    let over = AtomicBool::new(false);
    let was_away = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| work(runtime, &over));
        }
        let fork_often = || {
            let mapping = map(runtime, 128, FaultPath::Thread);
            fill(&mapping);
            let away = mapping.range().slice(PageCount::ZERO, PageCount::new(64));
            for round in 0..rounds {
                // Kept where another's fork is under way.
                let _outcomes = runtime.migrate(away, to(PRIVATE));
                let places = runtime.residency(away);
                was_away.fetch_add(places.iter().filter(|at| **at == Residency::Device(PRIVATE)).count(), Relaxed);
                let child = fork();
                if child == 0 {
                    let good = wrong_page(&mapping).is_none();
                    if round % 8 != 0 {
                        end(good);
                    }
                    let grandchild = fork();
                    if grandchild == 0 {
                        end(wrong_page(&mapping).is_none());
                    }
                    end(good && status_of(grandchild) == 0);
                }
                assert_eq!(status_of(child), 0, "round {round}: the child reads what its parent wrote");
            }
            verify(&mapping);
        };
        let forkers: Vec<_> = (0..FORKERS).map(|_| scope.spawn(fork_often)).collect();
        let ended: Vec<_> = forkers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        over.store(true, Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    assert!(was_away.load(Relaxed) > rounds, "the forks found something to do");
    runtime.check();
}

#[test]
fn forks_wait_for_nobody_who_waits_for_the_allocator() {
    let _alone = alone();
    children_find_everything(&runtime(), ROUNDS);
}

/// The kernel makes a descriptor for each fork of what is registered, and has it wait until that is read.
#[test]
fn a_fork_ends_where_there_is_no_room_for_a_descriptor() {
    let _alone = alone();
    let runtime = runtime();
    let mapping = map(&runtime, 64, FaultPath::Thread);
    fill(&mapping);
    let resource = rustix::process::Resource::Nofile;
    let before = rustix::process::getrlimit(resource);
    rustix::process::setrlimit(resource, rustix::process::Rlimit { current: Some(128), ..before }).unwrap();
    let fillers: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    assert!(!fillers.is_empty());
    for _ in 0..20 {
        assert_eq!(runtime.migrate(mapping.range(), to(PRIVATE)).moved(), mapping.range().pages());
        let child = fork();
        if child == 0 {
            end(wrong_page(&mapping).is_none());
        }
        assert_eq!(status_of(child), 0, "the child reads what its parent wrote");
        verify(&mapping);
    }
    drop(fillers);
    rustix::process::setrlimit(resource, before).unwrap();
}

/// Touches are under way when the process forks.
#[test]
fn children_find_what_a_slow_device_is_about_to_give_back() {
    let _alone = alone();
    let devices = ["private:emulated,size=64M,latency=300us", "coherent:emulated,size=64M"];
    let builder = devices.iter().fold(Runtime::builder(), |builder, spec| builder.device(spec.parse().unwrap()));
    children_find_everything(&builder.start().unwrap(), ROUNDS / 10);
}

#[test]
fn without_the_privilege_children_find_everything_too() {
    let _alone = alone();
    let Some(runtime) = unprivileged(builder()) else { return };
    children_find_everything(&runtime, ROUNDS);
    // What a fork has brought home may leave again.
    let mapping = map(&runtime, 16, FaultPath::Thread);
    fill(&mapping);
    assert_eq!(runtime.migrate(mapping.range(), to(PRIVATE)).moved(), PageCount::new(16));
    let child = fork();
    if child == 0 {
        end(wrong_page(&mapping).is_none());
    }
    assert_eq!(status_of(child), 0);
    assert_eq!(runtime.residency(mapping.range()), [Residency::System; 16]);
    verify(&mapping);
}

#[test]
fn who_forks_only_to_execute_has_nothing_brought_home() {
    let _alone = alone();
    let Some(runtime) = unprivileged(builder().forks_exec_at_once()) else { return };
    let mapping = map(&runtime, 16, FaultPath::Thread);
    fill(&mapping);
    assert_eq!(runtime.migrate(mapping.range(), to(PRIVATE)).moved(), PageCount::new(16));
    let child = fork();
    if child == 0 {
        end(true);
    }
    assert_eq!(status_of(child), 0);
    assert_eq!(runtime.residency(mapping.range()), [Residency::Device(PRIVATE); 16]);
    verify(&mapping);
}

/// It knows of its parent's runtime, and must not wait for a handler thread that it does not have.
#[test]
fn a_child_made_past_the_c_library_can_fork() {
    let _alone = alone();
    let runtime = runtime();
    let mapping = map(&runtime, 16, FaultPath::Thread);
    fill(&mapping);
    runtime.migrate(mapping.range(), to(COHERENT));
    // SAFETY: the child reads memory, makes system calls, and ends.
    let child = unsafe { bare_fork() };
    if child == 0 {
        // SAFETY: ends the child if it waits for ever.
        unsafe { libc::alarm(60) };
        let grandchild = fork();
        if grandchild == 0 {
            end(wrong_page(&mapping).is_none());
        }
        end(status_of(grandchild) == 0);
    }
    assert_eq!(status_of(child), 0);
    verify(&mapping);
}

/// It runs from the moment on at which its fork is known, and is given its pages wherever it has put them by then.
#[test]
fn a_child_made_past_the_c_library_may_change_its_mappings_at_once() {
    const PAGES: u64 = 8192;
    let _alone = alone();
    let runtime = runtime();
    if Capabilities::probe().fork_event.is_err() {
        return eprintln!("skipped: forks past the C library with pages away (no CAP_SYS_PTRACE)");
    }
    let (memory, place) = (Raw::anonymous(PAGES), Raw::anonymous(PAGES));
    memory.fill();
    // SAFETY: the test's own memory, which no system call is given.
    unsafe { runtime.adopt(memory.range(), FaultPath::Thread) }.unwrap();
    for _ in 0..8 {
        assert_eq!(runtime.migrate(memory.range(), to(PRIVATE)).moved(), PageCount::new(PAGES));
        // SAFETY: the child reads memory, makes system calls, and ends.
        let child = unsafe { bare_fork() };
        if child == 0 {
            // SAFETY: ends the child if it waits for ever.
            unsafe { libc::alarm(60) };
            memory.discard(PAGES - 8, 4);
            let moved = memory.remap_to(place);
            let dropped = |i: u64| (PAGES - 8..PAGES - 4).contains(&i);
            let expected = |i| if dropped(i) { 0 } else { i % 251 + 1 };
            end((0..PAGES).all(|i| moved.get(i) == expected(i)));
        }
        assert_eq!(status_of(child), 0);
        memory.verify();
    }
    runtime.release(memory.range()).unwrap();
}

/// Its descriptors name the parent's memory.
#[test]
fn a_child_changes_nothing_of_its_parents() {
    let _alone = alone();
    let runtime = runtime();
    let mapping = map(&runtime, 16, FaultPath::Thread);
    fill(&mapping);
    runtime.migrate(mapping.range(), to(COHERENT));
    let before = runtime.residency(mapping.range());
    let child = fork();
    if child == 0 {
        let moved = runtime.migrate(mapping.range(), to(PRIVATE)).moved();
        let released = runtime.release(mapping.range()).is_ok();
        drop(mapping);
        drop(runtime);
        end(moved.is_zero() && !released);
    }
    assert_eq!(status_of(child), 0);
    assert_eq!(runtime.residency(mapping.range()), before);
    verify(&mapping);
}

/// It has the descriptors of its parent's contexts, which nobody reads when the parent's runtime has ended.
#[test]
fn a_runtime_ends_while_a_child_lives() {
    let _alone = alone();
    let memory = Raw::anonymous(16);
    memory.fill();
    let over = Raw::anywhere(1, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
    let runtime = runtime();
    // SAFETY: the test's own memory, which no system call is given.
    unsafe { runtime.adopt(memory.range(), FaultPath::Thread) }.unwrap();
    let mapping = map(&runtime, 16, FaultPath::Sigbus);
    fill(&mapping);
    for (range, device) in [(memory.range(), PRIVATE), (mapping.range(), COHERENT)] {
        assert_eq!(runtime.migrate(range, to(device)).moved(), PageCount::new(16));
    }
    let child = fork();
    if child == 0 {
        while over.get(0) == 0 {
            std::thread::yield_now();
        }
        end(wrong_page(&mapping).is_none());
    }
    drop(mapping);
    drop(runtime);
    memory.verify();
    memory.unmap(4, 4);
    over.set(0, 1);
    assert_eq!(status_of(child), 0);
}

#[test]
fn a_child_has_what_its_parent_discards_after_the_fork() {
    let _alone = alone();
    for target in [Target::System, Target::Device(PRIVATE), Target::Device(COHERENT)] {
        let runtime = runtime();
        let over = Raw::anywhere(1, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1);
        let mapping = map(&runtime, 16, FaultPath::Thread);
        fill(&mapping);
        runtime.migrate(mapping.range(), Request::all_to(target));
        let child = fork();
        if child == 0 {
            while over.get(0) == 0 {
                std::thread::yield_now();
            }
            end(wrong_page(&mapping).is_none());
        }
        // SAFETY: the test's own memory, whose contents it gives up.
        unsafe { runtime.discard(mapping.range().slice(PageCount::new(3), PageCount::new(13))) }.unwrap();
        over.set(0, 1);
        assert_eq!(wrong_page(&mapping), Some(3));
        assert!(mapping.words()[3 * 512..].iter().all(|word| word.load(Relaxed) == 0));
        assert_eq!(status_of(child), 0, "the child has its own copy");
    }
}

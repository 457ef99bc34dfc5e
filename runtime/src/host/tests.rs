#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

use hetmem_core::units::BLOCK_SIZE;
use hetmem_sys::maps::MapsFile;

use super::*;

fn arena(pages: u64) -> Arena {
    let options = ArenaOptions { huge_pages: HugePages::Never, ..ArenaOptions::default() };
    Arena::reserve(PageCount::new(pages), &options).expect("address space is plenty")
}

/// `None`, with the reason said, where the host has no userfaultfd for this process.
fn memory() -> Option<UserMemory> {
    match Contexts::open(false, MapsFile::open().unwrap()) {
        Ok(contexts) => {
            Some(UserMemory::new(contexts, arena(512), |why| panic!("{why}")).expect("the page map can be read"))
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

#[test]
fn only_one_mapping_registered_for_missing_pages_counts_as_trapped() {
    let Some(memory) = memory() else { return };
    let trapped = |range| memory.trapped(FaultPath::Thread, range);
    let uffd = &memory.contexts.thread;
    let (program, n) = (arena(8), PageCount::new);
    let range = program.range();
    assert_eq!(trapped(range), Err(KeptReason::Unsupported), "not registered");
    uffd.register(range, Mode::WP).unwrap();
    assert_eq!(trapped(range), Err(KeptReason::Raced), "watched");
    uffd.unregister(range).unwrap();
    uffd.register(range, Mode::MISSING).unwrap();
    assert_eq!(trapped(range), Ok(n(8)), "trapped, of holes");
    uffd.unregister(range).unwrap();
    program.populate(range).unwrap();
    uffd.register(range, Mode::MISSING).unwrap();
    assert_eq!(trapped(range), Ok(n(8)), "trapped, of pages");
    uffd.unregister(range.slice(n(4), n(4))).unwrap();
    assert_eq!(trapped(range), Ok(n(4)), "one part of it");
    assert_eq!(trapped(range.slice(n(4), n(4))), Err(KeptReason::Unsupported), "the other part");
    uffd.unregister(range).unwrap();
}

/// What is mapped there a moment later is nobody's business, and its pages would be taken out behind its back.
#[test]
fn where_nothing_is_mapped_nothing_is_trapped() {
    let Some(memory) = memory() else { return };
    let uffd = &memory.contexts.thread;
    let program = arena(8);
    uffd.register(program.range(), Mode::MISSING).unwrap();
    // Below all that programs map.
    let nothing = PageRange::new(VirtAddr::new(BLOCK_SIZE), PageCount::new(4)).unwrap();
    assert!(!is_mapped(nothing));
    for pages in [1, 4] {
        let nothing = nothing.slice(PageCount::ZERO, PageCount::new(pages));
        assert_eq!(memory.trapped(FaultPath::Thread, nothing), Err(KeptReason::Raced), "{pages} pages");
    }
    uffd.unregister(program.range()).unwrap();
}

/// The kernel has refused to put a page in, as something was there. Where that is gone, it was a guard marker: nothing else comes and goes there.
#[test]
fn what_was_in_the_way_and_is_gone_was_a_guard() {
    let Some(memory) = memory() else { return };
    let program = arena(2);
    let page = program.range().start();
    assert_eq!(memory.install_stop(FaultPath::Thread, page, Errno::EXIST), InstallStop::Guarded, "nothing");
    program.populate(program.range()).unwrap();
    assert_eq!(memory.install_stop(FaultPath::Thread, page, Errno::EXIST), InstallStop::Occupied, "a page");
    // SAFETY: the test's own memory, whose contents it gives up.
    match unsafe { hetmem_sys::mapping::guard(page.get(), 4096, hetmem_sys::mapping::Guard::Install) } {
        Ok(()) => {
            assert_eq!(memory.install_stop(FaultPath::Thread, page, Errno::EXIST), InstallStop::Guarded, "a marker")
        }
        Err(errno) => eprintln!("skipped: {errno}"),
    }
}

/// After a `chroot` to an empty folder nobody can see which threads are in the middle of a removal. The test is run again in a process of its own, as
/// a process has one root.
#[test]
fn without_proc_no_removal_is_over() {
    const CHILD: &str = "HETMEM_TEST_WITHOUT_PROC";
    if std::env::var_os(CHILD).is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "host::tests::without_proc_no_removal_is_over", "--nocapture"])
            .env(CHILD, "1")
            .status()
            .unwrap();
        return assert!(child.success(), "{child}");
    }
    let Some(memory) = memory() else { return };
    let (first, second) = (arena(8), arena(8));
    // Begun while the threads can be seen, one of which is running.
    let running = AtomicBool::new(true);
    let over = std::thread::scope(|scope| {
        scope.spawn(|| {
            while running.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
        });
        let _ = memory.removal_is_over(first.range(), 0);
        let changed = std::os::unix::fs::chroot("/proc/self/fdinfo");
        let asked = [(first.range(), 1), (second.range(), 0), (second.range(), 1)];
        let over = asked.map(|(range, looks)| memory.removal_is_over(range, looks));
        running.store(false, Ordering::SeqCst);
        changed.map(|()| over)
    });
    match over {
        Ok(over) => assert_eq!(over, [false; 3], "begun before; and after, asked twice"),
        Err(error) => eprintln!("skipped: chroot: {error}"),
    }
}

/// Where the kernel had no memory to register it again when it was emptied.
#[test]
fn a_place_that_is_not_registered_refuses_one_page_and_no_more() {
    let Some(memory) = memory() else { return };
    let program = arena(2);
    program.populate(program.range()).unwrap();
    memory.contexts.thread.register(program.range(), Mode::MISSING).unwrap();
    let place = memory.pool.range().slice(PageCount::ZERO, PageCount::ONE);
    memory.pool.open(place).unwrap();
    let page = program.range().slice(PageCount::ZERO, PageCount::ONE);
    let take = || memory.take_out(FaultPath::Thread, page, place.start());
    let (first, second) = (take(), take());
    let emptied = memory.discard(place.start(), PageCount::ONE);
    memory.contexts.thread.unregister(program.range()).unwrap();
    program.populate(program.range()).unwrap();
    memory.contexts.thread.register(program.range(), Mode::MISSING).unwrap();
    let third = take();
    // Nobody reads that they end.
    for range in [program.range(), place] {
        memory.contexts.thread.unregister(range).unwrap();
    }
    assert_eq!(first.stop, Some((KeptReason::Unsupported, PageCount::ONE)));
    assert_eq!(second.pages, PageCount::ONE);
    assert!(emptied);
    assert_eq!(third.pages, PageCount::ONE, "an emptied place is registered as before");
}

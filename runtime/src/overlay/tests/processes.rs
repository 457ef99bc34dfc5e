//! What needs other processes: forks, and states of a process that would disturb other tests.

use super::*;

/// Ends as a forked child, with the status that says whether `good` is so.
fn end(good: bool) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(i32::from(!good)) }
}

fn status_of(child: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: writes the status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

#[test]
fn a_forked_child_has_its_own_copy() {
    let _alone = FORKS.write().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        let mapping = scene.map(2 * BLOCK_PAGES, FaultPath::Thread);
        fill(&mapping, 9);
        for _ in 0..5 {
            scene.place(&mapping, Target::Device(LAID));
            let words = mapping.words();
            // SAFETY: the child touches its memory and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let same = words.iter().enumerate().all(|(i, word)| word.load(Relaxed) == i as u64 ^ 9);
                words.iter().for_each(|word| word.store(0, Relaxed));
                end(same);
            }
            assert_eq!(status_of(child), 0, "the child has what was there");
            verify(&mapping, 9);
        }
        scene.runtime.check();
    }
}

/// Announced to nobody, a fork leaves the child without the blocks: it must not share them.
#[test]
fn a_fork_past_the_c_library_shares_nothing() {
    let _alone = FORKS.write().unwrap_or_else(PoisonError::into_inner);
    for scene in scenes() {
        let mapping = scene.map(BLOCK_PAGES, FaultPath::Thread);
        fill(&mapping, 10);
        scene.place(&mapping, Target::Device(LAID));
        let word = mapping.as_ptr().cast::<u64>();
        // SAFETY: the child touches memory and ends.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0_usize, 0_usize, 0_usize, 0_usize) };
        if child == 0 {
            // SAFETY: of the child's, if it is there.
            unsafe { word.write_volatile(77) };
            end(false);
        }
        let status = status_of(libc::pid_t::try_from(child).unwrap());
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
        verify(&mapping, 10);
    }
}

/// Runs an ignored test of this module in a process of its own.
fn in_its_own_process(name: &str, path: &str) -> std::process::Output {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", &format!("overlay::tests::processes::{name}")])
        .env("HETMEM_TEST_PATH", path)
        .output()
        .unwrap()
}

/// How the test's own process serves faults; `None` where nobody has started it as that.
fn own_process() -> Option<FaultPath> {
    let path = std::env::var("HETMEM_TEST_PATH").ok()?;
    // SAFETY: changes when the process ends. No core is wanted, and no endless round.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 }) };
    // SAFETY: as above.
    unsafe { libc::alarm(60) };
    Some(if path == "sigbus" { FaultPath::Sigbus } else { FaultPath::Thread })
}

/// The touch ends the program by its signal, as that of any mapping of the device would, and does not come round for ever.
#[test]
fn a_touch_of_a_device_that_is_gone_is_the_programs_to_see() {
    for path in ["thread", "sigbus"] {
        let ended = in_its_own_process("touches_a_device_that_is_gone", path);
        let signal = std::os::unix::process::ExitStatusExt::signal(&ended.status);
        assert_eq!(signal, Some(libc::SIGBUS), "{path}: {ended:?}");
    }
}

#[test]
#[ignore = "is run by a_touch_of_a_device_that_is_gone_is_the_programs_to_see"]
fn touches_a_device_that_is_gone() {
    let Some(path) = own_process() else { return };
    let scene = scenes().remove(0);
    let mapping = scene.map(BLOCK_PAGES, path);
    fill(&mapping, 15);
    scene.place(&mapping, Target::Device(LAID));
    rustix::fs::ftruncate(scene.keeps.0.as_ref().unwrap(), 0).unwrap();
    mapping.words()[0].load(Relaxed);
}

#[test]
fn without_room_for_mappings_blocks_stay_where_they_are() {
    for path in ["thread", "sigbus"] {
        let ended = in_its_own_process("runs_out_of_mappings", path);
        let passed = String::from_utf8_lossy(&ended.stdout).contains("1 passed");
        assert!(ended.status.success() && passed, "{path}: {ended:?}");
    }
}

/// As many mappings as the kernel allows; the last few can be given back.
struct Crowd {
    pages: PageRange,
    split: u64,
}

impl Crowd {
    fn gather() -> Self {
        let pages = PageCount::new(1 << 18);
        let access = rustix::mm::ProtFlags::empty();
        let flags = rustix::mm::MapFlags::PRIVATE | rustix::mm::MapFlags::NORESERVE;
        // SAFETY: without MAP_FIXED the kernel chooses a range that nothing uses.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), pages.bytes().as_usize(), access, flags) }
                .unwrap();
        let start = VirtAddr::new(start.expose_provenance() as u64);
        let mut crowd = Self { pages: PageRange::new(start, pages).unwrap(), split: 0 };
        crowd.grow();
        crowd
    }

    fn protect(&self, page: u64, access: rustix::mm::MprotectFlags) -> bool {
        let at = self.pages.start().add_pages(PageCount::new(page)).get();
        let at = std::ptr::with_exposed_provenance_mut(usize::try_from(at).unwrap());
        // SAFETY: memory of the test's own, which nobody touches.
        unsafe { rustix::mm::mprotect(at, PageCount::ONE.bytes().as_usize(), access) }.is_ok()
    }

    /// Makes mappings of every second page until there may be no more.
    fn grow(&mut self) {
        while self.protect(2 * self.split + 1, rustix::mm::MprotectFlags::READ) {
            self.split += 1;
        }
    }

    fn shrink(&mut self, by: u64) {
        for _ in 0..by {
            self.split -= 1;
            assert!(self.protect(2 * self.split + 1, rustix::mm::MprotectFlags::empty()));
        }
    }
}

#[test]
#[ignore = "is run by without_room_for_mappings_blocks_stay_where_they_are"]
fn runs_out_of_mappings() {
    let Some(path) = own_process() else { return };
    let scene = scenes().remove(0);
    let mapping = scene.map(3 * BLOCK_PAGES, path);
    fill(&mapping, 16);
    let all = mapping.range().pages();
    let middle = block(&mapping, 1);
    let migrate = |range, target| scene.runtime.migrate(range, Request::all_to(target));
    // Laying the middle block divides a mapping in three.
    let mut crowd = Crowd::gather();
    let outcomes = migrate(middle, Target::Device(LAID));
    assert_eq!(outcomes.kept(KeptReason::NoMemory), PageCount::new(BLOCK_PAGES), "{outcomes:?}");
    verify(&mapping, 16);
    assert_eq!(scene.laid_in(mapping.range()), 0);
    for room in 1..12 {
        crowd.shrink(room);
        migrate(mapping.range(), Target::Device(LAID));
        verify(&mapping, 16);
        crowd.grow();
        migrate(mapping.range(), Target::System);
        verify(&mapping, 16);
        scene.runtime.check();
    }
    crowd.shrink(40);
    let outcomes = migrate(mapping.range(), Target::Device(LAID));
    assert_eq!(outcomes.moved() + outcomes.kept(KeptReason::AlreadyThere), all, "{outcomes:?}");
    crowd.grow();
    // A spare is one more.
    let outcomes = migrate(middle, Target::System);
    assert_eq!(outcomes.kept(KeptReason::NoMemory), PageCount::new(BLOCK_PAGES), "{outcomes:?}");
    assert!(scene.is_all(&mapping, Residency::Device(LAID)));
    verify(&mapping, 16);
    crowd.shrink(40);
    scene.place(&mapping, Target::System);
    verify(&mapping, 16);
    scene.runtime.check();
}

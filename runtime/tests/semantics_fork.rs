//! The kernel's tables, as far as they are about a fork: one of the whole process, so the rows are tried one after the other in a process
//! of their own. The children are made past the C library, whose `fork(3)` holds locks that the handler thread may need.
#![expect(unsafe_code, reason = "forks, and maps and touches memory by address")]
#![expect(clippy::print_stderr, reason = "a row that can't run here says so")]

#[path = "semantics/case.rs"]
mod case;
mod common;

use case::{Case, PAGES, part};
use hetmem::accelerator::{InPlace, Options};
use hetmem::mirror::{Event, MirrorPage, Place, RangeFault, Want};
use hetmem::{PageOutcome, Request, Residency, Target};
use hetmem_core::units::PageRange;
use std::sync::{Arc, Mutex};

/// A child that compares all pages of `memory` with what was filled in, then waits to be told to write and compare again, and ends.
struct Child {
    pid: i32,
    go: [i32; 2],
}

impl Child {
    fn of(memory: &common::Raw) -> Self {
        let mut go = [0; 2];
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::pipe(go.as_mut_ptr()) }, 0);
        // SAFETY: the child does nothing but look at its own memory and end.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if pid == 0 {
            let mut byte = [0u8];
            // SAFETY: one byte, from the parent.
            let told = unsafe { libc::read(go[0], byte.as_mut_ptr().cast(), 1) };
            let pages = memory.range().pages().get();
            let kept = (0..pages).all(|i| memory.get(i) == i % 251 + 1);
            (0..pages).for_each(|i| memory.set(i, u64::MAX));
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(told != 1 || !kept)) };
        }
        Self { pid: i32::try_from(pid).unwrap(), go }
    }

    /// Lets it look, and says whether it found everything.
    fn found_everything(self) -> bool {
        // SAFETY: one byte, to the child.
        assert_eq!(unsafe { libc::write(self.go[1], [1u8].as_ptr().cast(), 1) }, 1);
        let mut status = 0;
        // SAFETY: the child is this test's own.
        assert_eq!(unsafe { libc::waitpid(self.pid, &raw mut status, 0) }, self.pid);
        // SAFETY: the test's own descriptors.
        self.go.iter().for_each(|fd| assert_eq!(unsafe { libc::close(*fd) }, 0));
        libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }
}

/// Whether forks are announced to this process; else the rows that need that are left out.
fn forks_are_told() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.split_once("CapEff:").and_then(|(_, rest)| rest.split_ascii_whitespace().next());
    let told = effective.and_then(|caps| u64::from_str_radix(caps, 16).ok()).is_some_and(|caps| caps & (1 << 19) != 0);
    if !told {
        eprintln!("skipped: forks with pages away (no CAP_SYS_PTRACE)");
    }
    told
}

#[test]
fn forks() {
    shared_pages_are_made_ones_own_and_move();
    a_shared_page_counts_as_writable_and_is_copied_when_it_is_held_exclusively();
    if forks_are_told() {
        a_child_finds_pages_that_are_on_a_device();
        a_child_finds_pages_that_are_held_exclusively();
        mirrors_are_told_of_the_protection();
    }
}

/// The kernel unmaps them in all processes; user space moves its own, and the child keeps what it had.
fn shared_pages_are_made_ones_own_and_move() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        let child = Child::of(&memory);
        assert_eq!(memory.migrate(case.there()), PageOutcome::Moved);
        assert!(memory.is_at(Residency::Device(case.device)));
        (0..PAGES).for_each(|i| memory.set(i, 7));
        memory.fill();
        assert!(child.found_everything());
        memory.verify();
        // After its end pages count as shared until they are written.
        let child = Child::of(&memory);
        assert!(child.found_everything());
        assert_eq!(memory.migrate(Request::all_to(Target::Device(case.other()))), PageOutcome::Moved);
        memory.verify();
    });
}

fn looked_at(runtime: &hetmem::Runtime, range: PageRange, want: Want) -> Vec<MirrorPage> {
    let mut out = vec![MirrorPage::default(); range.pages().as_usize()];
    runtime.range_fault(range, RangeFault { want, ..RangeFault::default() }, &mut out).unwrap();
    out
}

/// In the kernel it is not writable, and a fault for writing copies it: that a page is shared does not show in user space.
fn a_shared_page_counts_as_writable_and_is_copied_when_it_is_held_exclusively() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        let child = Child::of(&memory);
        for want in [Want::Snapshot, Want::Write] {
            let pages = looked_at(runtime, memory.range(), want);
            assert!(pages.iter().all(|page| page.place() == Some(Place::System) && page.is_writable()));
        }
        let options = Options { workers: 1, in_place: InPlace::Checked };
        // SAFETY: memory of the test, which no reference is to.
        let device = unsafe { runtime.accelerator(case.device, memory.range(), options) }.unwrap();
        let few = part(memory.range(), 500, 16);
        device.make_exclusive(few).unwrap();
        few.iter().for_each(|page| assert!(device.view().fetch_add(page, 1).is_ok()));
        // In place, by the kernel's copy on write.
        device.view().store(memory.page(0), 9).unwrap();
        assert!(child.found_everything(), "nothing of it reaches the child");
        assert_eq!((memory.get(0), memory.get(500)), (9, 500 % 251 + 2));
    });
}

fn a_child_finds_pages_that_are_on_a_device() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        memory.place(case);
        let child = Child::of(&memory);
        assert!(memory.is_at(Residency::Device(case.device)), "the parent's stay there");
        (0..PAGES).for_each(|i| memory.set(i, 7));
        assert!(child.found_everything());
        assert!((0..PAGES).all(|i| memory.get(i) == 7), "nothing of the child's reaches the parent");
    });
}

/// The kernel restores them first; here the child gets copies.
fn a_child_finds_pages_that_are_held_exclusively() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        let options = Options { workers: 1, in_place: InPlace::Checked };
        // SAFETY: memory of the test, which no reference is to.
        let device = unsafe { runtime.accelerator(case.device, memory.range(), options) }.unwrap();
        device.make_exclusive(part(memory.range(), 500, 16)).unwrap();
        let child = Child::of(&memory);
        assert!(child.found_everything());
        memory.verify();
    });
}

fn mirrors_are_told_of_the_protection() {
    Case::each(|case, runtime| {
        let memory = case.managed(runtime);
        memory.place(case);
        let events: Arc<Mutex<Vec<(PageRange, Event)>>> = Arc::default();
        let log = Arc::clone(&events);
        let callback = move |notice: &hetmem::mirror::Notice<'_>| {
            notice.set_seq();
            log.lock().unwrap().push((notice.range(), notice.event()));
        };
        let subscription = runtime.subscribe(memory.range(), callback).unwrap();
        let seq = subscription.read_begin();
        let child = Child::of(&memory);
        // Whatever was read is applied before anybody is answered.
        let _ = runtime.residency(memory.range());
        let told = std::mem::take(&mut *events.lock().unwrap());
        assert!(subscription.read_retry(seq) && !told.is_empty());
        assert!(told.iter().all(|event| *event == (memory.range(), Event::ProtectionPage)), "{told:?}");
        assert!(child.found_everything());
    });
}

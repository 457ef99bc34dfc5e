//! UFFDIO_COPY, ZEROPAGE, POISON and WRITEPROTECT.
#![allow(unsafe_code, reason = "fills pages named by number")]

mod common;

use common::{
    MOVES, check, entries, fill, next_event, open, page, pages, populated_pages, present, protect, read, write,
};
use hetmem_core::units::{PageCount, PageRange, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::uffd::{
    CopyFlags, Event, EventBuffer, FaultFlags, Features, Mode, Progress, Userfaultfd, Wake, WriteProtect,
};
use rustix::mm::MprotectFlags;

/// Copies all of `src` to the start of `dst`.
fn copy(uffd: &Userfaultfd, dst: PageRange, src: PageRange, flags: CopyFlags) -> Progress {
    // SAFETY: the tests fill holes of their own arenas and hold no references into them.
    unsafe { uffd.copy(dst.start(), src.start(), src.pages(), flags) }
}

fn zero(uffd: &Userfaultfd, range: PageRange) -> Progress {
    // SAFETY: as for `copy`; holes of anonymous memory are zeros.
    unsafe { uffd.zeropage(range, Wake::Now) }
}

fn stopped(done: u64, errno: Errno) -> Progress {
    Progress { done: PageCount::new(done), stop: Some(errno) }
}

fn complete(done: u64) -> Progress {
    Progress { done: PageCount::new(done), stop: None }
}

/// What a system call that reads `addr` says: the kernel reports a page that can't be read and doesn't raise a signal.
fn readable(addr: VirtAddr) -> Result<usize, Errno> {
    let (_reader, writer) = rustix::pipe::pipe().unwrap();
    let there: *const u8 = std::ptr::with_exposed_provenance(usize::try_from(addr.get()).unwrap());
    // SAFETY: mapped memory of the test's own; only the kernel reads it.
    rustix::io::write(writer, unsafe { std::slice::from_raw_parts(there, 8) })
}

#[test]
fn copies_fill_holes_and_stop_at_a_page_that_is_there() {
    let Some(uffd) = open(MOVES) else { return };
    let (memory, source) = (pages(8), populated_pages(8));
    fill(source.range(), 3);
    memory.populate(page(memory.range(), 6)).unwrap();
    uffd.register(memory.range(), Mode::MISSING).unwrap();
    assert_eq!(copy(&uffd, memory.range(), source.range(), CopyFlags::NONE), stopped(6, Errno::EXIST));
    check(memory.range().slice(PageCount::ZERO, PageCount::new(6)), 3);
    let outside = page(source.range(), 0);
    assert_eq!(copy(&uffd, outside, page(source.range(), 1), CopyFlags::NONE), stopped(0, Errno::NOENT));
}

#[test]
fn copies_and_zero_pages_fill_memory_of_any_protection() {
    let Some(uffd) = open(MOVES) else { return };
    let source = populated_pages(4);
    fill(source.range(), 4);
    for flags in [MprotectFlags::READ, MprotectFlags::empty(), MprotectFlags::READ | MprotectFlags::EXEC] {
        for mode in [Mode::MISSING, Mode::WP] {
            let memory = pages(5);
            protect(memory.range(), flags);
            uffd.register(memory.range(), mode).unwrap();
            let (first, last) = (memory.range().slice(PageCount::ZERO, PageCount::new(4)), page(memory.range(), 4));
            assert_eq!(copy(&uffd, first, source.range(), CopyFlags::NONE), complete(4), "{flags:?} {mode}");
            assert_eq!(zero(&uffd, last), complete(1), "{flags:?} {mode}");
            protect(memory.range(), MprotectFlags::READ | MprotectFlags::WRITE);
            check(first, 4);
            assert_eq!(read(last.start()), 0);
        }
    }
}

#[test]
fn zero_pages_fill_holes_and_stop_at_a_page_that_is_there() {
    let Some(uffd) = open(MOVES) else { return };
    let memory = pages(8);
    memory.populate(page(memory.range(), 2)).unwrap();
    uffd.register(memory.range(), Mode::MISSING).unwrap();
    assert_eq!(zero(&uffd, memory.range()), stopped(2, Errno::EXIST));
    assert_eq!(present(memory.range()), [true, true, true, false, false, false, false, false]);
    // A write to a zero page makes a page of its own with no event.
    write(memory.range().start(), 9);
    assert_eq!(read(memory.range().start()), 9);
}

#[test]
fn a_poisoned_page_fails_whoever_touches_it() {
    let Some(uffd) = open(MOVES | Features::POISON) else { return };
    let memory = pages(3);
    uffd.register(memory.range(), Mode::MISSING).unwrap();
    memory.populate(PageRange::new(memory.range().start(), PageCount::ZERO).unwrap()).unwrap();
    assert_eq!(zero(&uffd, page(memory.range(), 2)), complete(1));
    // SAFETY: nobody touches the test's own memory but the system call below.
    assert_eq!(unsafe { uffd.poison(memory.range()) }, stopped(2, Errno::EXIST));
    assert_eq!(readable(memory.range().start()), Err(Errno::FAULT));
    assert_eq!(readable(page(memory.range(), 2).start()), Ok(8));
}

#[test]
fn a_write_to_a_protected_page_waits_and_reads_go_on() {
    let Some(uffd) = open(MOVES | Features::THREAD_ID) else { return };
    let memory = populated_pages(4);
    fill(memory.range(), 5);
    uffd.register(memory.range(), Mode::WP).unwrap();
    uffd.write_protect(memory.range(), WriteProtect::Protect).unwrap();
    check(memory.range(), 5);
    assert!(entries(memory.range()).iter().all(|entry| entry.is_uffd_write_protected()));
    let touched = page(memory.range(), 1);
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel();
        let writer = scope.spawn(move || {
            sender.send(hetmem_sys::thread::current_tid()).unwrap();
            write(touched.start(), 11);
        });
        let Event::PageFault { addr, flags, thread } = next_event(&uffd, &mut EventBuffer::new()) else {
            panic!("a page fault")
        };
        assert_eq!((addr, flags), (touched.start(), FaultFlags::WRITE | FaultFlags::WP));
        assert_eq!(thread, receiver.recv().unwrap());
        uffd.write_protect(touched, WriteProtect::ResolveNoWake).unwrap();
        uffd.wake(touched).unwrap();
        writer.join().unwrap();
    });
    assert_eq!(read(touched.start()), 11);
    let still: Vec<_> = entries(memory.range()).iter().map(|entry| entry.is_uffd_write_protected()).collect();
    assert_eq!(still, [true, false, true, true]);
    uffd.write_protect(memory.range(), WriteProtect::Resolve).unwrap();
    memory.range().iter().for_each(|page| write(page, 1));
}

#[test]
fn a_copy_can_arrive_write_protected() {
    let Some(uffd) = open(MOVES) else { return };
    let (memory, source) = (pages(2), populated_pages(2));
    uffd.register(memory.range(), Mode::MISSING | Mode::WP).unwrap();
    assert_eq!(copy(&uffd, memory.range(), source.range(), CopyFlags::WRITE_PROTECT), complete(2));
    assert!(entries(memory.range()).iter().all(|entry| entry.is_uffd_write_protected()));
}

#[test]
fn write_protection_needs_a_registration_for_it() {
    let Some(uffd) = open(MOVES) else { return };
    let memory = populated_pages(2);
    assert_eq!(uffd.write_protect(memory.range(), WriteProtect::Protect), Err(Errno::NOENT));
    uffd.register(memory.range(), Mode::MISSING).unwrap();
    assert_eq!(uffd.write_protect(memory.range(), WriteProtect::Protect), Err(Errno::NOENT));
}

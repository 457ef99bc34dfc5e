//! After a fork, a page that is said to be on a node's device is on that node, whoever wrote to it: the kernel copies what parent and
//! child share, and puts the copy where the writer's policy says. Asked of the kernel for each page. A fork is one of the whole process, so
//! this test has one of its own.
#![expect(unsafe_code, reason = "forks, and tests touch mapped memory")]

use std::os::fd::OwnedFd;

use hetmem::{FaultPath, Mapping, Request, Residency, Runtime, Target};
use hetmem_core::units::{ByteLen, DeviceId, PageCount, PageRange};
use hetmem_devices::spec::parse_all;
use hetmem_sys::numa::{Node, Place, keep_from_balancing, nodes_of, nodes_with_memory};

const PAGES: usize = 1024;
const ROUNDS: u64 = 24;

fn word(mapping: &Mapping, page: usize) -> *mut u64 {
    mapping.as_ptr().wrapping_add(page * 4096 + (page % 500) * 8).cast()
}

fn write(mapping: &Mapping, page: usize, value: u64) {
    // SAFETY: inside the mapping.
    unsafe { word(mapping, page).write_volatile(value) };
}

/// The first page that does not hold what it should.
fn wrong(mapping: &Mapping, expected: impl Fn(usize) -> u64) -> Option<usize> {
    // SAFETY: inside the mapping.
    (0..PAGES).find(|page| unsafe { word(mapping, *page).read_volatile() } != expected(*page))
}

/// Waits until the other end has a byte or is closed.
fn wait_for(end: &OwnedFd) {
    let mut byte = [0];
    while rustix::io::read(end, &mut byte) == Err(rustix::io::Errno::INTR) {}
}

/// By the system call itself, which no handler of the C library notices, and which holds no lock of its allocator: the runtime's handler
/// thread, which uses the same one here, might wait for it before it reads of the fork.
fn fork() -> i32 {
    // SAFETY: as a fork; the child uses memory and system calls only, and ends.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    i32::try_from(pid).unwrap()
}

/// Pages that are said to be on each device, every one of which is on the device's node.
fn on_devices(runtime: &Runtime, nodes: &[Node], range: PageRange) -> Vec<usize> {
    let residency = runtime.residency(range);
    let mut found = vec![0; nodes.len()];
    nodes_of(range, |page, place| {
        if let Residency::Device(device) = residency[page.pages_since(range.start()).as_usize()] {
            assert_eq!(place, Place::On(nodes[device.index()]), "page {page}");
            found[device.index()] += 1;
        }
    })
    .unwrap();
    found
}

#[test]
fn pages_that_are_said_to_be_on_a_node_are_there_after_every_fork() {
    // As `hetmem run` does for its program. Copies are of the node of whoever writes.
    keep_from_balancing().unwrap();
    let nodes = nodes_with_memory();
    let texts: Vec<String> = nodes.iter().map(|node| format!("coherent:node={node},size=32M")).collect();
    let specs = parse_all(&texts, ByteLen::new(1 << 40)).unwrap();
    let runtime = specs.into_iter().fold(Runtime::builder(), hetmem::Builder::device).start().unwrap();
    let mapping = runtime.map(ByteLen::new(PAGES as u64 * 4096), FaultPath::Thread).unwrap();
    let range = mapping.range();
    let mut lost = 0;
    for round in 0..ROUNDS {
        // Never zero: a page of zeros becomes everybody's where the kernel divides a huge page.
        let first = move |page: usize| page as u64 | round << 20 | 1 << 60;
        (0..PAGES).for_each(|page| write(&mapping, page, first(page)));
        for (index, chunk) in (0_u64..).zip((0..PAGES as u64).step_by(96)) {
            let device = u8::try_from((index + round) % nodes.len() as u64).unwrap();
            let part =
                range.slice(PageCount::new(chunk), PageCount::new(96).min(range.pages() - PageCount::new(chunk)));
            let _outcomes = runtime.migrate(part, Request::all_to(Target::Device(DeviceId::new(device))));
        }
        let before: usize = on_devices(&runtime, &nodes, range).iter().sum();
        assert_eq!(before, PAGES, "round {round}: all pages are on devices");

        let (wait, go) = rustix::pipe::pipe().unwrap();
        let child = fork();
        assert!(child >= 0);
        // Each has pages that it writes first, and there are pages that nobody writes.
        let of_parent = |page: usize| page.is_multiple_of(3);
        let of_child = |page: usize| page % 4 < 2;
        if child == 0 {
            drop(go);
            if round % 3 != 0 {
                wait_for(&wait);
            }
            (0..PAGES).filter(|page| of_child(*page)).for_each(|page| write(&mapping, page, !first(page)));
            let right = wrong(&mapping, |page| if of_child(page) { !first(page) } else { first(page) }).is_none();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(if right { 0 } else { 1 }) };
        }
        (0..PAGES).filter(|page| of_parent(*page)).for_each(|page| write(&mapping, page, first(page) | 1 << 50));
        let after: usize = on_devices(&runtime, &nodes, range).iter().sum();
        lost += before - after;
        drop(go);
        let mut status = 0;
        // SAFETY: the child is this test's own.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "round {round}: the child found other contents than its own");
        let _found = on_devices(&runtime, &nodes, range);
        let second = move |page: usize| if of_parent(page) { first(page) | 1 << 50 } else { first(page) };
        assert_eq!(wrong(&mapping, second), None, "round {round}");

        // Whoever asks for them to be there has them there, wherever they went.
        let device = u8::try_from(round % nodes.len() as u64).unwrap();
        let _outcomes = runtime.migrate(range, Request::all_to(Target::Device(DeviceId::new(device))));
        assert_eq!(on_devices(&runtime, &nodes, range)[usize::from(device)], PAGES, "round {round}");
        assert_eq!(wrong(&mapping, second), None, "round {round}");
        runtime.check();
    }
    // With one node every copy is on it.
    assert!(lost > 0 || nodes.len() == 1, "no page was copied elsewhere: nothing was tested");
}

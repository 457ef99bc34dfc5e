//! A process that has changed its root to an empty folder, where `/proc` can't be read: what it drops stays dropped, and what it writes stays.
//! In a test program of its own, as a process has one root.
#![expect(unsafe_code, reason = "tests map and touch memory by address")]
#![expect(clippy::print_stderr, reason = "a test that can't run here says so")]

mod common;

use common::{PRIVATE, Raw, runtime, to, while_migrating};
use hetmem::{FaultPath, Request, Target};
use hetmem_core::units::PageRange;
use hetmem_sys::maps::Perms;

const PAGES: u64 = 32;

#[test]
fn without_proc_what_is_dropped_stays_dropped() {
    let runtime = runtime();
    let memory = Raw::anonymous(PAGES);
    memory.advise(libc::MADV_NOHUGEPAGE);
    memory.fill();
    // SAFETY: no allocator and no thread uses it.
    unsafe { runtime.adopt(memory.range(), FaultPath::Thread) }.unwrap();
    let name = format!("hetmem-chroot-{}", std::process::id());
    let empty = std::env::temp_dir().join(&name);
    let parent = std::fs::File::open(std::env::temp_dir()).unwrap();
    std::fs::create_dir(&empty).unwrap();
    let changed = std::os::unix::fs::chroot(&empty).and_then(|()| std::env::set_current_dir("/"));
    rustix::fs::unlinkat(&parent, &name, rustix::fs::AtFlags::REMOVEDIR).unwrap();
    if let Err(error) = changed {
        return eprintln!("skipped: chroot: {error}");
    }
    assert!(std::fs::read_dir("/proc").is_err(), "the root is empty");
    assert!(hetmem::mappings::eligible(PageRange::ALL, Perms::READ, &[]).is_empty(), "nothing is adopted unseen");
    assert_eq!(hetmem::mappings::behind_files(|_| true), [PageRange::ALL], "all is left alone");

    while_migrating(&runtime, memory.range(), &[to(PRIVATE), Request::all_to(Target::System)], || {
        for round in 0..20_000_u64 {
            let first = round * 5 % (PAGES - 4);
            memory.discard(first, 4);
            for page in first..first + 4 {
                assert_eq!(memory.get(page), 0, "round {round}: page {page} came back");
                memory.set(page, round + 1);
            }
            assert_eq!(memory.get(first + 3), round + 1);
        }
    });
    runtime.release(memory.range()).unwrap();
}

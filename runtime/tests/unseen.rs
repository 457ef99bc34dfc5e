//! What a program can do to pages, or to the page table's entries, that raises no event of userfaultfd, or might be thought not to: no page is lost
//! by it, and none comes back (docs/semantics.md, "What goes unseen").
#![expect(unsafe_code, reason = "tests map and touch memory by address")]
#![expect(clippy::print_stderr, reason = "a way that this kernel does not have says so")]

mod common;

use common::{COHERENT, PRIVATE, Raw, runtime, to};
use hetmem::{FaultPath, Request, Runtime, Target};
use hetmem_core::units::{DeviceId, PageCount};

const PAGES: u64 = 512;

/// Managed memory, written, with all its pages on `device`.
fn placed(runtime: &Runtime, device: DeviceId) -> Raw {
    let memory = Raw::aligned(PAGES);
    memory.advise(libc::MADV_NOHUGEPAGE);
    memory.fill();
    // SAFETY: no allocator and no thread uses it.
    unsafe { runtime.adopt(memory.range(), FaultPath::Thread) }.unwrap();
    assert_eq!(runtime.migrate(memory.range(), to(device)).moved(), PageCount::new(PAGES));
    memory
}

/// Each of these, with the pages on a device, some of them touched before, and moved again afterwards.
#[test]
fn advice_that_keeps_contents_loses_none() {
    const ADVICES: [(&str, i32); 10] = [
        ("MADV_COLD", libc::MADV_COLD),
        ("MADV_PAGEOUT", libc::MADV_PAGEOUT),
        ("MADV_HUGEPAGE", libc::MADV_HUGEPAGE),
        // Refused while pages are missing, as it must be.
        ("MADV_COLLAPSE", 25),
        ("MADV_MERGEABLE", libc::MADV_MERGEABLE),
        ("MADV_DONTFORK", libc::MADV_DONTFORK),
        ("MADV_WIPEONFORK", libc::MADV_WIPEONFORK),
        ("MADV_WILLNEED", libc::MADV_WILLNEED),
        ("MADV_POPULATE_READ", 22),
        ("MADV_POPULATE_WRITE", 23),
    ];
    let mut accepted = 0;
    for (name, advice) in ADVICES {
        for device in [PRIVATE, COHERENT] {
            let runtime = runtime();
            let memory = placed(&runtime, device);
            assert!((0..PAGES).step_by(5).all(|page| memory.get(page) == page % 251 + 1));
            // SAFETY: contents stay as they are.
            match unsafe { libc::madvise(memory.pointer(0).cast(), common::bytes(PAGES), advice) } {
                0 => accepted += 1,
                _ => eprintln!("{name}: {}", std::io::Error::last_os_error()),
            }
            let _ = runtime.migrate(memory.range(), to(PRIVATE));
            let _ = runtime.migrate(memory.range(), Request::all_to(Target::System));
            memory.verify();
            runtime.check();
            runtime.release(memory.range()).unwrap();
        }
    }
    // Of every kernel, on both devices: MADV_COLD, MADV_DONTFORK, MADV_WIPEONFORK, MADV_WILLNEED.
    assert!(accepted >= 8, "{accepted} were accepted");
}

#[test]
fn protection_and_seals_lose_nothing() {
    for device in [PRIVATE, COHERENT] {
        for prot in [libc::PROT_NONE, libc::PROT_READ, libc::PROT_READ | libc::PROT_EXEC] {
            let runtime = runtime();
            let memory = placed(&runtime, device);
            memory.protect(0, PAGES, prot);
            let _ = runtime.migrate(memory.range(), Request::all_to(Target::System));
            let _ = runtime.migrate(memory.range(), to(PRIVATE));
            memory.protect(0, PAGES, libc::PROT_READ | libc::PROT_WRITE);
            memory.verify();
            runtime.check();
            runtime.release(memory.range()).unwrap();
        }
    }
    let runtime = runtime();
    let memory = std::mem::ManuallyDrop::new(placed(&runtime, PRIVATE));
    // SAFETY: seals the test's own mapping, which stays until the process ends.
    if unsafe { libc::syscall(462, memory.pointer(0), common::bytes(PAGES), 0) } != 0 {
        return eprintln!("skipped: mseal: {}", std::io::Error::last_os_error());
    }
    let _ = runtime.migrate(memory.range(), Request::all_to(Target::System));
    let _ = runtime.migrate(memory.range(), to(COHERENT));
    memory.verify();
    runtime.release(memory.range()).unwrap();
}

/// A mapping over another is told as any end of a mapping, and what `MREMAP_DONTUNMAP` leaves behind is empty.
#[test]
fn a_mapping_over_another_and_what_a_remap_leaves_behind_have_nothing_of_the_old_pages() {
    for device in [PRIVATE, COHERENT] {
        let runtime = runtime();
        let memory = placed(&runtime, device);
        memory.remap_anew();
        assert!((0..PAGES).all(|page| memory.get(page) == 0), "a mapping over another");
        let _ = runtime.release(memory.range());

        let memory = placed(&runtime, device);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_DONTUNMAP;
        let bytes = common::bytes(PAGES);
        // SAFETY: the test's own memory.
        let at = unsafe { libc::mremap(memory.pointer(0).cast(), bytes, bytes, flags, std::ptr::null_mut::<u8>()) };
        assert_ne!(at, libc::MAP_FAILED);
        let start = hetmem_core::units::VirtAddr::new(at.expose_provenance() as u64);
        let moved = Raw::borrowed(hetmem_core::units::PageRange::new(start, PageCount::new(PAGES)).unwrap());
        moved.verify();
        assert!((0..PAGES).all(|page| memory.get(page) == 0), "what is left behind is empty");
        let _ = runtime.release(moved.range());
        moved.unmap(0, PAGES);
        runtime.check();
    }
}

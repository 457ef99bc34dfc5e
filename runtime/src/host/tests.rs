#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

use hetmem_core::units::BLOCK_SIZE;

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

//! Arenas in a process that locks what it will map: `mlockall(2)` with `MCL_FUTURE`, which is of the whole process, and so alone in its file.
#![allow(unsafe_code, reason = "mlockall")]

mod common;

use common::{present, skip};
use hetmem_core::units::PageCount;
use hetmem_sys::mapping::{Access, Arena, ArenaOptions};

#[test]
fn arenas_are_not_locked_with_what_the_program_maps() {
    // SAFETY: locks memory.
    if unsafe { libc::mlockall(libc::MCL_FUTURE) } != 0 {
        return skip(&std::io::Error::last_os_error());
    }
    let whole = Arena::reserve(PageCount::new(8), &ArenaOptions::default()).unwrap();
    assert_eq!(present(whole.range()), [false; 8]);
    let options = ArenaOptions { access: Access::AsOpened, ..ArenaOptions::default() };
    let opened = Arena::reserve(PageCount::new(1024), &options).unwrap();
    let part = opened.range().slice(PageCount::ZERO, PageCount::new(4));
    opened.open(part).unwrap();
    assert_eq!(present(part), [false; 4]);
    whole.discard(whole.range()).unwrap();
}

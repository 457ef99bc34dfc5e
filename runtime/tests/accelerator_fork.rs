//! A fork is one of the whole process, so this test has one of its own.
#![expect(unsafe_code, reason = "forks, and kernels use memory by address")]

mod common;
mod counting;

use common::{PRIVATE, to};
use counting::counting;
use hetmem::FaultPath;
use hetmem::accelerator::InPlace;

#[test]
fn no_count_is_lost_while_the_program_forks() {
    counting(FaultPath::Thread, InPlace::Direct, &[PRIVATE], |runtime, mapping, round| {
        if round % 4 == 0 {
            // SAFETY: the child does nothing but end.
            match unsafe { libc::fork() } {
                // SAFETY: ends the child at once.
                0 => unsafe { libc::_exit(0) },
                // SAFETY: the child is this test's own.
                child => assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child),
            }
        }
        runtime.migrate(mapping.range(), to(PRIVATE));
    });
}

//! A fork is one of the whole process, so this test has one of its own.
#![expect(unsafe_code, reason = "forks")]

mod common;

use common::{COHERENT, fill, map, runtime, to, verify};
use hetmem::FaultPath;

#[test]
fn a_fork_at_the_start_waits_for_nobody_who_waits_for_it() {
    for _ in 0..300 {
        let runtime = runtime();
        let mapping = map(&runtime, 1, FaultPath::Thread);
        fill(&mapping);
        // Registered from now on, so that the handler thread has to read the fork's event, if it may have such events.
        assert_eq!(runtime.migrate(mapping.range(), to(COHERENT)).moved().get(), 1);
        // SAFETY: the child does nothing but end.
        match unsafe { libc::fork() } {
            // SAFETY: ends the child at once.
            0 => unsafe { libc::_exit(0) },
            // SAFETY: the child is this test's own.
            child => assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child),
        }
        verify(&mapping);
    }
}

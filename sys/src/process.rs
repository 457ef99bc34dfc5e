//! Ending the process.
#![expect(unsafe_code, reason = "changes the disposition of a signal")]

/// Ends the process with SIGABRT at once: the program's own handler for it, if any, does not run, as it might touch memory
/// that is no longer whole.
pub fn die() -> ! {
    // SAFETY: no handler of the program's is to run any more, which is all that this changes.
    unsafe { libc::signal(libc::SIGABRT, libc::SIG_DFL) };
    std::process::abort()
}

//! `RLIMIT_FSIZE` (`ulimit -f`) is for the program, which gets it unchanged: hetmem's own memory and files are made with as much of it as may be had.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::SIGXFSZ;

use super::supervise::ignored;

/// Has files that can't grow be an error that can be told, and not the end of hetmem by SIGXFSZ. Programs that are started have the signal at its
/// default, or ignored, as hetmem was started with.
pub(crate) fn have_limits_told() {
    if ignored() >> (SIGXFSZ - 1) & 1 == 0 {
        // Where no handler can be had the signal does what it does.
        let _ = signal_hook::flag::register(SIGXFSZ, std::sync::Arc::default());
    }
}

/// Runs `f`, which makes or writes a file of hetmem's own, with the limit as high as this process may have it.
pub(crate) fn with_all_there_is<R>(f: impl FnOnce() -> R) -> R {
    let before = getrlimit(Resource::Fsize);
    // Above the hard limit with CAP_SYS_RESOURCE only.
    let _ = setrlimit(Resource::Fsize, Rlimit { current: before.maximum, maximum: before.maximum });
    let _ = setrlimit(Resource::Fsize, Rlimit { current: None, maximum: None });
    let result = f();
    let _ = setrlimit(Resource::Fsize, before);
    result
}

/// How large a file may become, in bytes; `None` where there is no limit.
pub(crate) fn largest_file() -> Option<u64> {
    getrlimit(Resource::Fsize).current
}

//! `RLIMIT_FSIZE` (`ulimit -f`) is for the program, which gets it unchanged: hetmem's own memory and files are made with as much of it as may be had. Of
//! `RLIMIT_DATA` (`ulimit -d`) both have all: where hetmem would not get by with it, no program is started.

use std::io;

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

/// What hetmem needs beside a program: stacks of threads, what the standard library and the C library need for those, and a little more.
const BESIDE: usize = 1 << 20;

/// Whether hetmem can have the memory that it needs beside a program. A thread that finds none while it begins ends all of hetmem.
pub(crate) fn beside_a_program() -> io::Result<()> {
    let mut memory = Vec::<u8>::new();
    let had = memory.try_reserve_exact(BESIDE);
    // Memory that nobody looks at would not be asked for.
    std::hint::black_box(&memory);
    had.map_err(|_| io::ErrorKind::OutOfMemory.into())
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

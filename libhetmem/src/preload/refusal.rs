//! Programs that can't be managed, and who is told.

use std::ffi::CStr;
use std::ops::ControlFlow;

use agent::config::Config;
use hetmem_sys::maps;

/// What the sanitizers' runtimes define, and what a program that has one was built with.
const SANITIZERS: &[(&CStr, &str)] = &[
    (c"__asan_init", "AddressSanitizer"),
    (c"__hwasan_init", "HWAddressSanitizer"),
    (c"__lsan_init", "LeakSanitizer"),
    (c"__msan_init", "MemorySanitizer"),
    (c"__tsan_init", "ThreadSanitizer"),
    (c"__dfsan_init", "DataFlowSanitizer"),
    (c"__nsan_init", "NumericalStabilitySanitizer"),
    (c"__rtsan_init", "RealtimeSanitizer"),
];

/// Why this process must be left alone, in words that follow its name, if so.
pub(super) fn obstacle() -> Option<String> {
    for (symbol, sanitizer) in SANITIZERS {
        // SAFETY: looks a name up.
        if !unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) }.is_null() {
            // It knows every mapping and every thread, stands in front of the C library, and stops all threads to look for leaks.
            return Some(format!("ran unmanaged: it was built with {sanitizer}"));
        }
    }
    if address_space_is_taken() {
        return Some(
            "ran unmanaged: most of its address space was taken before it began, as by a sanitizer".to_owned(),
        );
    }
    // It makes system calls in the program's place, and has none for userfaultfd.
    on_valgrind().then(|| "ran unmanaged: it is run by valgrind".to_owned())
}

/// Whether there is a mapping of such a size as only shadow memory has: the runtime of a sanitizer may be a part of the executable, which need not
/// export its names (GCC's `-static-libasan`), and it begins before any library does, by `DT_PREINIT_ARRAY`. Without `/proc` there is nothing to tell
/// by.
fn address_space_is_taken() -> bool {
    const SHADOW_BYTES: u64 = 1 << 40;
    let mut is_taken = false;
    let _ = maps::for_each_mapping(&mut [0; maps::BUFFER_SIZE], |mapping| {
        is_taken = mapping.range.pages().bytes().get() >= SHADOW_BYTES;
        if is_taken { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    is_taken
}

/// Whether valgrind runs this program: its "client request" `RUNNING_ON_VALGRIND`, an instruction sequence that does nothing on a processor
/// (valgrind's manual, "The Client Request mechanism").
fn on_valgrind() -> bool {
    const RUNNING_ON_VALGRIND: usize = 0x1001;
    let arguments = [RUNNING_ON_VALGRIND, 0, 0, 0, 0, 0];
    let mut answer = 0_usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: four rotations that add up to none, and an exchange of a register with itself.
    unsafe {
        std::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            inout("rdx") answer,
            in("rax") &raw const arguments,
            inout("rdi") 0 => _,
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: four rotations that add up to none, and a register or-ed with itself.
    unsafe {
        std::arch::asm!(
            "ror x12, x12, 3",
            "ror x12, x12, 13",
            "ror x12, x12, 51",
            "ror x12, x12, 61",
            "orr x10, x10, x10",
            inout("x3") answer,
            in("x4") &raw const arguments,
            inout("x12") 0 => _,
        );
    }
    answer != 0
}

/// Tells the supervisor that there is no agent here. The program that it started does not run then; any other goes on unmanaged: a child, and a
/// program that the first one has executed in its place, perhaps with less privilege.
pub(super) fn refuse(config: &Config, message: &str, is_first: bool) {
    agent::note(config, &format!("could not be managed: {message}"));
    if std::os::unix::process::parent_id() == config.supervisor && is_first {
        // SAFETY: ends the process; nothing of the program's has run yet.
        unsafe { libc::_exit(125) };
    }
}

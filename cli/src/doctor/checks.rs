//! The checks of `hetmem doctor`, in the order in which they are printed.

use hetmem_core::heat::Source;
use hetmem_core::units::PAGE_SIZE;
use hetmem_sys::probe::{Capabilities, Limit, MoveTrialError};
use hetmem_sys::uffd::{Features, OLDEST, Route};

use super::{Check, State};
use crate::failure::chain;
use crate::host;

/// What lets a user trap faults in system calls as well.
const PERMISSION: &str = "set sysctl vm.unprivileged_userfaultfd=1, or grant read and write access to /dev/userfaultfd, \
                          or run with CAP_SYS_PTRACE";
/// What has all that [`OLDEST`] says.
const NEWER: &str = if cfg!(target_arch = "aarch64") { "use Linux 6.10 or newer" } else { "use Linux 6.8 or newer" };
/// Below this, programs with many mappings of their own may run into the limit.
const MAPPINGS_DEFAULT: u64 = 65530;

/// The userfaultfd features that hetmem needs.
const NEEDED: [(Features, &str); 5] = [
    (Features::MOVE, "MOVE"),
    (Features::PAGEFAULT_FLAG_WP, "PAGEFAULT_FLAG_WP"),
    (Features::EVENT_REMAP, "EVENT_REMAP"),
    (Features::EVENT_REMOVE, "EVENT_REMOVE"),
    (Features::EVENT_UNMAP, "EVENT_UNMAP"),
];

/// What is found to be missing where pages are of another size than hetmem asks for.
const BY_PAGES: [&str; 6] = ["userfaultfd", "page move", "heat", "fork events", "populate", "page map scan"];

/// Everything, on a host with these capabilities.
pub(super) fn all(found: &Capabilities) -> Vec<Check> {
    let mut checks = each(found);
    if found.page_size as u64 != PAGE_SIZE {
        for check in checks.iter_mut().filter(|check| BY_PAGES.contains(&check.name) && check.fix.is_some()) {
            check.fix = Some("see page size above".to_owned());
        }
    }
    checks
}

fn each(found: &Capabilities) -> Vec<Check> {
    vec![
        kernel(found),
        page_size(found),
        permission(found),
        features(found),
        page_move(found),
        fork_events(found),
        simple(
            "populate",
            true,
            found
                .populate_write
                .as_ref()
                .map(|()| "MADV_POPULATE_WRITE works".to_owned())
                .map_err(|e| (format!("MADV_POPULATE_WRITE: {e}"), "use Linux 5.14 or newer")),
        ),
        simple(
            "page map scan",
            false,
            found
                .pagemap_scan
                .as_ref()
                .map(|()| "PAGEMAP_SCAN works".to_owned())
                .map_err(|e| (format!("PAGEMAP_SCAN: {e}"), "use Linux 6.7 or newer, with CONFIG_PROC_PAGE_MONITOR")),
        ),
        heat(found),
        agent(),
        huge_pages(found),
        numa(found),
        devdax(found),
        memory(found),
        mappings(found),
        address_space(found.address_space),
        locked_memory(found.locked_memory),
    ]
}

fn simple(name: &'static str, required: bool, found: Result<String, (String, &str)>) -> Check {
    match found {
        Ok(detail) => Check { name, state: State::Present, required, detail, fix: None },
        Err((detail, fix)) => Check { name, state: State::Absent, required, detail, fix: Some(fix.to_owned()) },
    }
}

fn kernel(found: &Capabilities) -> Check {
    let (major, minor) = OLDEST;
    let detail = format!("Linux {}", found.kernel.text);
    let new_enough = found.kernel.is_at_least(major, minor);
    let result = if new_enough { Ok(detail) } else { Err((detail, NEWER)) };
    simple("kernel", true, result)
}

fn page_size(found: &Capabilities) -> Check {
    let detail = format!("{} bytes", found.page_size);
    let right = found.page_size as u64 == PAGE_SIZE;
    simple("page size", true, if right { Ok(detail) } else { Err((detail, "boot a kernel with 4 KiB pages")) })
}

fn permission(found: &Capabilities) -> Check {
    let (name, required) = ("userfaultfd", true);
    let error = match &found.full_access {
        Ok(route) => {
            let way = match route {
                Route::SystemCall => "by the system call",
                Route::DeviceNode => "by /dev/userfaultfd",
            };
            let detail = format!("permitted, {way}, for touches in system calls too");
            return Check { name, state: State::Present, required, detail, fix: None };
        }
        Err(error) => error,
    };
    let detail = match &found.user_mode_access {
        Ok(_) => "permitted for the program's own touches only; a system call on a missing page would fail".to_owned(),
        Err(_) => chain(error),
    };
    Check { name, state: State::Absent, required, detail, fix: Some(PERMISSION.to_owned()) }
}

fn features(found: &Capabilities) -> Check {
    let (name, required) = ("userfaultfd features", true);
    let missing: Vec<_> =
        NEEDED.iter().filter(|(feature, _)| !found.features.contains(*feature)).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        let detail = found.features.names().collect::<Vec<_>>().join(" ");
        return Check { name, state: State::Present, required, detail, fix: None };
    }
    let fix = if found.features == Features::NONE { "see userfaultfd above" } else { NEWER };
    let detail = format!("lacks {}", missing.join(" "));
    Check { name, state: State::Absent, required, detail, fix: Some(fix.to_owned()) }
}

fn page_move(found: &Capabilities) -> Check {
    let result = match &found.page_move {
        Ok(()) => Ok("a page was moved there and back (UFFDIO_MOVE)".to_owned()),
        Err(error @ MoveTrialError::Open(_)) => Err((chain(error), "see userfaultfd above")),
        Err(error) => Err((chain(error), NEWER)),
    };
    simple("page move", true, result)
}

fn heat(found: &Capabilities) -> Check {
    let names = Source::ALL.map(Source::name).join(", ");
    match &found.page_move {
        Ok(()) => simple("heat", true, Ok(format!("{names}: `hetmem run --heat` chooses"))),
        Err(_) => simple("heat", true, Err((format!("none of {names}: pages can't move"), "see page move above"))),
    }
}

fn fork_events(found: &Capabilities) -> Check {
    let (name, required) = ("fork events", false);
    match &found.fork_event {
        Ok(()) => {
            let detail = "a child's touches of device pages are served".to_owned();
            Check { name, state: State::Present, required, detail, fix: None }
        }
        Err(error) => {
            let detail = format!("private pages are brought home before each fork: {}", chain(error));
            let fix = Some("run with CAP_SYS_PTRACE".to_owned());
            Check { name, state: State::Limited, required, detail, fix }
        }
    }
}

fn agent() -> Check {
    let result = match host::library() {
        Ok(path) => Ok(path.display().to_string()),
        Err(failure) => Err((failure.to_string(), "install libhetmem.so beside hetmem, as packaging/install.sh does")),
    };
    simple("agent library", true, result)
}

fn huge_pages(found: &Capabilities) -> Check {
    let (name, required) = ("huge pages", false);
    let shared = found.shmem_huge_pages.as_deref().unwrap_or("none");
    match found.huge_pages.as_deref() {
        Some(mode @ ("always" | "madvise")) => {
            let detail = format!("{mode} (shared memory: {shared})");
            Check { name, state: State::Present, required, detail, fix: None }
        }
        Some(mode) => {
            let fix = Some("echo madvise > /sys/kernel/mm/transparent_hugepage/enabled".to_owned());
            let detail = format!("{mode}: pages move one by one, which is slower");
            Check { name, state: State::Limited, required, detail, fix }
        }
        None => {
            let fix = Some("use a kernel with CONFIG_TRANSPARENT_HUGEPAGE".to_owned());
            let detail = "the kernel has none: pages move one by one, which is slower".to_owned();
            Check { name, state: State::Absent, required, detail, fix }
        }
    }
}

fn numa(found: &Capabilities) -> Check {
    let (name, required) = ("NUMA nodes", false);
    let nodes = found.numa_nodes;
    let (state, detail) = if nodes > 1 {
        (State::Present, format!("{nodes}"))
    } else {
        (State::Limited, "1: its memory can be a device's, and is no other than the system's".to_owned())
    };
    Check { name, state, required, detail, fix: None }
}

fn devdax(found: &Capabilities) -> Check {
    let (name, required) = ("devdax", false);
    if found.devdax.is_empty() {
        let detail = "no /dev/dax*: no memory is set aside for direct access; emulated devices need none".to_owned();
        return Check { name, state: State::Absent, required, detail, fix: None };
    }
    let paths: Vec<_> = found.devdax.iter().map(|path| path.display().to_string()).collect();
    Check { name, state: State::Present, required, detail: paths.join(" "), fix: None }
}

fn memory(found: &Capabilities) -> Check {
    let (name, required) = ("memory", true);
    let mib = |key| host::meminfo(key).map(|bytes| bytes.get() >> 20);
    let (Some(total), Some(free)) = (mib("MemTotal"), mib("MemAvailable")) else {
        let fix = Some("mount /proc".to_owned());
        let detail = "/proc/meminfo can't be read".to_owned();
        return Check { name, state: State::Absent, required, detail, fix };
    };
    let mode = match found.overcommit_memory {
        Some(0) => "heuristic",
        Some(1) => "always",
        Some(2) => "strict",
        _ => "unknown",
    };
    let detail = format!("{total} MiB, {free} MiB available, overcommit {mode}");
    if found.overcommit_memory == Some(2) {
        let fix = Some("set sysctl vm.overcommit_memory=0, or use small devices: their size is committed".to_owned());
        return Check { name, state: State::Limited, required, detail, fix };
    }
    Check { name, state: State::Present, required, detail, fix: None }
}

fn mappings(found: &Capabilities) -> Check {
    let (name, required) = ("mappings limit", false);
    let Some(limit) = found.max_map_count else {
        let detail = "vm.max_map_count can't be read".to_owned();
        return Check { name, state: State::Limited, required, detail, fix: Some("mount /proc".to_owned()) };
    };
    let detail = format!("vm.max_map_count is {limit}");
    if limit >= MAPPINGS_DEFAULT {
        return Check { name, state: State::Present, required, detail, fix: None };
    }
    let fix = Some(format!("set sysctl vm.max_map_count={MAPPINGS_DEFAULT} or more"));
    Check { name, state: State::Limited, required, detail, fix }
}

fn address_space(limit: Limit) -> Check {
    let fix = "ulimit -v unlimited: devices and the agent's memory count";
    limited_by("address space", "RLIMIT_AS", limit, Some(fix))
}

/// Nothing needs it today; it explains a program's own `mlock` that fails, and pages kept as locked.
fn locked_memory(limit: Limit) -> Check {
    limited_by("locked memory", "RLIMIT_MEMLOCK", limit, None)
}

fn limited_by(name: &'static str, resource: &str, limit: Limit, fix: Option<&str>) -> Check {
    let (state, soft) = match limit.soft {
        None => (State::Present, "unlimited".to_owned()),
        Some(bytes) => (if fix.is_some() { State::Limited } else { State::Present }, bytes.to_string()),
    };
    let fix = if state == State::Limited { fix.map(str::to_owned) } else { None };
    Check { name, state, required: false, detail: format!("{resource} is {soft}"), fix }
}

#[cfg(test)]
mod tests {
    use hetmem_sys::errno::Errno;
    use hetmem_sys::uffd::OpenError;

    use super::*;

    /// As was found on a kernel with pages of 16 KiB.
    #[test]
    fn pages_of_another_size_are_the_only_thing_to_mend() {
        let refused = OpenError::PageSize(16384);
        let found = Capabilities {
            page_size: 16384,
            full_access: Err(refused),
            user_mode_access: Err(refused),
            fork_event: Err(refused),
            page_move: Err(MoveTrialError::Open(refused)),
            populate_write: Err(Errno::INVAL),
            pagemap_scan: Err(Errno::INVAL),
            ..Capabilities::probe()
        };
        let fix_of = |name| {
            let check = all(&found).into_iter().find(|check| check.name == name).unwrap();
            assert_ne!(check.state, State::Present, "{name}");
            check.fix.unwrap()
        };
        assert_eq!(fix_of("page size"), "boot a kernel with 4 KiB pages");
        BY_PAGES.into_iter().for_each(|name| assert_eq!(fix_of(name), "see page size above", "{name}"));
    }
}

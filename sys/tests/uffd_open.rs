//! Opening a context: what each lack of permission or feature is reported as.
#![allow(unsafe_code, reason = "gives up privileges of a process of its own")]

mod common;

use common::{in_own_process, open, skip};
use hetmem_sys::uffd::{Access, Features, OLDEST, OpenError, Route, Userfaultfd};
use rustix::io::{FdFlags, fcntl_getfd};
use rustix::thread::CapabilitySet;

#[test]
fn a_context_is_closed_on_exec_and_never_blocks() {
    let Some(uffd) = open(Features::NONE) else { return };
    assert!(fcntl_getfd(&uffd).unwrap().contains(FdFlags::CLOEXEC));
    assert!(rustix::fs::fcntl_getfl(&uffd).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    assert_eq!(uffd.read_events(&mut hetmem_sys::uffd::EventBuffer::new()), Ok(0));
}

#[test]
fn features_that_the_kernel_lacks_are_named() {
    let unknown = Features::from_bits(1 << 50);
    if open(Features::NONE).is_none() {
        return;
    }
    let error = Userfaultfd::open(unknown | Features::EVENT_REMAP, Access::Full).unwrap_err();
    assert_eq!(error, OpenError::MissingFeatures(unknown));
    assert!(error.to_string().contains(&format!("Linux {}.{}", OLDEST.0, OLDEST.1)), "{error}");
}

#[test]
fn a_process_without_any_privilege_is_told_the_cures() {
    let status = in_own_process("a_process_without_any_privilege_is_told_the_cures", || {
        if std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|text| text.trim() != "0") {
            return skip(&"everybody may use userfaultfd here");
        }
        // SAFETY: changes this process's identity for good, and the process is this test's own.
        if unsafe { libc::setresuid(65534, 65534, 65534) } != 0 {
            return skip(&"the test has no privilege to give up");
        }
        let error = match Userfaultfd::open(Features::NONE, Access::Full) {
            Ok(_) => return skip(&"everybody may open /dev/userfaultfd here"),
            Err(error) => error,
        };
        assert_eq!(error, OpenError::NotPermitted);
        for cure in ["vm.unprivileged_userfaultfd=1", "/dev/userfaultfd", "CAP_SYS_PTRACE"] {
            assert!(error.to_string().contains(cure), "{error}");
        }
        assert!(Userfaultfd::open(Features::NONE, Access::UserModeOnly).is_ok());
        assert_eq!(
            Userfaultfd::open(Features::EVENT_FORK, Access::UserModeOnly).unwrap_err(),
            OpenError::ForkEventNotPermitted
        );
    });
    assert!(status.success());
}

#[test]
fn without_the_capability_the_device_node_still_gives_full_access_but_no_fork_events() {
    let name = "without_the_capability_the_device_node_still_gives_full_access_but_no_fork_events";
    let status = in_own_process(name, || {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::SYS_PTRACE);
        rustix::thread::set_capabilities(None, sets).unwrap();
        match Userfaultfd::open_with_route(Features::MOVE, Access::Full) {
            Ok((_, route)) if std::path::Path::new("/dev/userfaultfd").exists() => {
                let open_to_all = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd")
                    .is_ok_and(|text| text.trim() == "1");
                assert_eq!(route, if open_to_all { Route::SystemCall } else { Route::DeviceNode });
            }
            Ok(_) => {}
            Err(error) => return skip(&error),
        }
        assert_eq!(
            Userfaultfd::open(Features::EVENT_FORK, Access::Full).unwrap_err(),
            OpenError::ForkEventNotPermitted
        );
    });
    assert!(status.success());
}

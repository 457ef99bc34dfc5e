//! Threads on given stacks.
#![allow(unsafe_code, reason = "starts threads on memory named by number")]

mod common;

use std::ffi::c_void;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use common::in_own_process;
use hetmem_core::units::{PageCount, VirtAddr};
use hetmem_sys::errno::Errno;
use hetmem_sys::mapping::SharedMemory;
use hetmem_sys::thread::{
    Lease, Stack, confine, current_tid, futex_wait, futex_wake, give_up_privileges, is_dumpable, thread_exists,
    unshare_directories, unshare_files, unused_id,
};

thread_local! {
    static VARIABLE: std::cell::Cell<u64> = const { std::cell::Cell::new(42) };
}

/// What a thread on a given stack found out about itself.
#[derive(Default)]
struct Findings {
    tid: AtomicU32,
    stack_word: AtomicU64,
    blocked_signals: AtomicU64,
    variable: AtomicU64,
    errno: AtomicI32,
    descriptor: AtomicU32,
    saw_descriptor: AtomicU32,
}

fn stack() -> &'static Stack {
    Box::leak(Box::new(Stack::new(PageCount::new(64)).unwrap()))
}

/// Runs `entry` on `stack` until the thread has ended.
fn run(stack: &'static Stack, entry: extern "C" fn(*mut c_void), findings: &Findings) {
    let arg = std::ptr::from_ref(findings).cast_mut().cast();
    // SAFETY: the findings outlive the thread, whose end is awaited; the entries here take findings.
    let tid = unsafe { stack.start(entry, arg) }.unwrap();
    stack.wait_ended();
    assert!(!thread_exists(tid));
}

/// The findings behind the argument of an entry.
fn findings<'a>(arg: *mut c_void) -> &'a Findings {
    // SAFETY: `run` passes findings that outlive the thread.
    unsafe { &*arg.cast::<Findings>() }
}

/// A field of the calling thread's status.
fn status(field: &str) -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned()
}

extern "C" fn look_around(arg: *mut c_void) {
    let found = findings(arg);
    let on_stack = 0u64;
    found.tid.store(current_tid(), Ordering::Relaxed);
    found.stack_word.store(std::ptr::from_ref(&on_stack).expose_provenance() as u64, Ordering::Relaxed);
    found.blocked_signals.store(u64::from_str_radix(&status("SigBlk:"), 16).unwrap(), Ordering::Relaxed);
    // Its storage is its own, and begins as it does in every thread.
    found.variable.store(VARIABLE.replace(7), Ordering::Relaxed);
    // SAFETY: a descriptor that nobody has.
    unsafe { libc::close(-1) };
    found.errno.store(std::io::Error::last_os_error().raw_os_error().unwrap(), Ordering::Relaxed);
}

#[test]
fn a_thread_runs_on_its_stack_with_all_signals_blocked_and_leaves_the_mask_here_alone() {
    let stack = stack();
    let before = status("SigBlk:");
    VARIABLE.set(1);
    for begins in [42, 7, 7] {
        let found = Findings::default();
        run(stack, look_around, &found);
        assert_eq!(status("SigBlk:"), before);
        assert!(stack.range().contains(VirtAddr::new(found.stack_word.load(Ordering::Relaxed))));
        // All but SIGKILL and SIGSTOP, which can't be.
        let open = [9, 19].map(|signal: u64| 1 << (signal - 1)).into_iter().sum::<u64>();
        assert_eq!(found.blocked_signals.load(Ordering::Relaxed), !open);
        assert_eq!(found.errno.load(Ordering::Relaxed), libc::EBADF);
        // The storage is used again by the next thread on the stack, as it was left.
        assert_eq!(found.variable.load(Ordering::Relaxed), begins);
    }
    assert_eq!(VARIABLE.get(), 1);
}

extern "C" fn wait_for_release(arg: *mut c_void) {
    let found = findings(arg);
    while found.descriptor.load(Ordering::Acquire) == 0 {
        let _woken = futex_wait(&found.descriptor, 0, None);
    }
}

fn release(findings: &Findings) {
    findings.descriptor.store(1, Ordering::Release);
    futex_wake(&findings.descriptor, 1).unwrap();
}

#[test]
fn one_thread_is_on_a_stack_at_a_time() {
    let (stack, found) = (stack(), Findings::default());
    let arg = std::ptr::from_ref(&found).cast_mut().cast();
    // SAFETY: the findings outlive the thread, whose end is awaited.
    unsafe { stack.start(wait_for_release, arg) }.unwrap();
    // SAFETY: as above, if it started.
    assert_eq!(unsafe { stack.start(wait_for_release, arg) }, Err(Errno::BUSY));
    release(&found);
    stack.wait_ended();
    run(stack, look_around, &Findings::default());
}

#[test]
fn the_c_library_counts_no_such_thread_and_asks_none_to_change_its_ids() {
    let status = in_own_process("the_c_library_counts_no_such_thread_and_asks_none_to_change_its_ids", || {
        let (stack, found) = (stack(), Findings::default());
        let arg = std::ptr::from_ref(&found).cast_mut().cast();
        // SAFETY: the findings outlive the thread, whose end is awaited.
        unsafe { stack.start(wait_for_release, arg) }.unwrap();
        let own = rustix::process::getuid().as_raw();
        // SAFETY: sets what is set already.
        assert_eq!(unsafe { libc::setuid(own) }, 0);
        release(&found);
        stack.wait_ended();
    });
    assert!(status.success());
}

extern "C" fn leave_the_table(arg: *mut c_void) {
    let found = findings(arg);
    // SAFETY: this thread has nothing open.
    unsafe { unshare_files(None) }.unwrap();
    unshare_directories().unwrap();
    let number = i32::try_from(found.descriptor.load(Ordering::Acquire)).unwrap();
    // SAFETY: only asked about.
    let theirs = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    found.saw_descriptor.store(u32::from(rustix::io::fcntl_getfd(theirs).is_ok()), Ordering::Relaxed);
    // What this thread opens gets the lowest number of an empty table.
    let own = rustix::fs::open(c"/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
    found.descriptor.store(u32::try_from(own.as_raw_fd()).unwrap(), Ordering::Relaxed);
    // The program can't be seen through a path either, but its memory can.
    assert!(hetmem_sys::pagemap::PagemapScanner::open().is_ok());
    rustix::process::chdir(c"/proc").unwrap();
}

#[test]
fn a_thread_with_tables_of_its_own_shares_neither_descriptors_nor_directories_with_the_program() {
    let kept = std::fs::File::open("/dev/null").unwrap();
    let directory = std::env::current_dir().unwrap();
    let findings = Findings::default();
    findings.descriptor.store(u32::try_from(kept.as_raw_fd()).unwrap(), Ordering::Release);
    run(stack(), leave_the_table, &findings);
    assert_eq!(findings.saw_descriptor.load(Ordering::Relaxed), 0);
    assert_eq!(findings.descriptor.load(Ordering::Relaxed), 0);
    // Here everything is as it was.
    assert!(rustix::io::fcntl_getfd(&kept).is_ok());
    assert_eq!(std::env::current_dir().unwrap(), directory);
}

extern "C" fn give_up(arg: *mut c_void) {
    let found = findings(arg);
    let tasks = hetmem_sys::thread::Tasks::open().unwrap();
    give_up_privileges(unused_id(), is_dumpable());
    let capabilities = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"];
    let left = capabilities.map(|set| u64::from_str_radix(&status(set), 16).unwrap());
    assert_eq!(left, [0; 4]);
    if status("Uid:").starts_with(['0', '6']) {
        // Only where no other id is known (a user namespace of one user).
        found.descriptor.store(1, Ordering::Relaxed);
    }
    confine(&[]).unwrap();
    // What the agent does is possible.
    assert!(tasks.list().unwrap().contains(&current_tid()));
    let read =
        rustix::fs::openat(rustix::fs::CWD, c"/proc/version", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    assert_eq!(read.map(drop), Ok(()));
    found.saw_descriptor.store(1, Ordering::Relaxed);
}

#[test]
fn a_thread_gives_up_what_it_may_do_and_the_others_keep_it() {
    let fields = ["Uid:", "Gid:", "Groups:", "CapEff:", "Seccomp:", "NoNewPrivs:"];
    let before = fields.map(status);
    // SAFETY: asks for a number.
    let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
    let found = Findings::default();
    run(stack(), give_up, &found);
    assert_eq!(found.saw_descriptor.load(Ordering::Relaxed), 1, "all was tried");
    assert_eq!(found.descriptor.load(Ordering::Relaxed), 0, "it is not root");
    assert_eq!(fields.map(status), before);
    // SAFETY: asks for a number.
    assert_eq!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE) }, dumpable);
}

#[test]
fn one_descriptor_can_be_kept() {
    let status = in_own_process("one_descriptor_can_be_kept", || {
        let kept = std::fs::File::open("/dev/null").unwrap();
        let other = std::fs::File::open("/dev/null").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                use std::os::fd::AsFd;
                // SAFETY: this thread uses the kept descriptor and asks about the other.
                unsafe { unshare_files(Some(kept.as_fd())) }.unwrap();
                assert!(rustix::io::fcntl_getfd(&kept).is_ok());
                assert_eq!(rustix::io::fcntl_getfd(&other), Err(Errno::BADF));
            });
        });
        assert!(rustix::io::fcntl_getfd(&other).is_ok());
    });
    assert!(status.success());
}

extern "C" fn open_for_writing(_: *mut c_void) {
    confine(&[]).unwrap();
    let flags = rustix::fs::OFlags::WRONLY;
    drop(rustix::fs::openat(rustix::fs::CWD, c"/dev/null", flags, rustix::fs::Mode::empty()));
}

extern "C" fn make_a_socket(_: *mut c_void) {
    confine(&[]).unwrap();
    // SAFETY: asks for a socket.
    unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
}

extern "C" fn map_code(_: *mut c_void) {
    confine(&[]).unwrap();
    // SAFETY: asks for a mapping that could be executed.
    unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
}

/// A confined thread that does what no agent does ends its process.
fn ends_the_process(test: &str, entry: extern "C" fn(*mut c_void)) {
    use std::os::unix::process::ExitStatusExt;
    let status = in_own_process(test, || run(stack(), entry, &Findings::default()));
    assert_eq!(status.signal(), Some(libc::SIGSYS));
}

#[test]
fn a_confined_thread_opens_nothing_for_writing() {
    ends_the_process("a_confined_thread_opens_nothing_for_writing", open_for_writing);
}

#[test]
fn a_confined_thread_makes_no_socket() {
    ends_the_process("a_confined_thread_makes_no_socket", make_a_socket);
}

#[test]
fn a_confined_thread_maps_no_code() {
    ends_the_process("a_confined_thread_maps_no_code", map_code);
}

/// A lease in memory that forked children share, with a thread of none of the C library's in it that takes it and stays.
#[test]
fn a_lease_is_given_back_however_its_thread_ends() {
    extern "C" fn take(arg: *mut c_void) {
        // SAFETY: the test's, which stays.
        let (lease, ends) = unsafe { *arg.cast_const().cast::<(&'static Lease, bool)>() };
        // SAFETY: this thread is none of the C library's.
        assert_eq!(unsafe { lease.take() }, Ok(true));
        if !ends {
            loop {
                hetmem_sys::thread::backoff_sleep(999_999_999);
            }
        }
    }
    let status = in_own_process("a_lease_is_given_back_however_its_thread_ends", || {
        let (memory, _fd) = SharedMemory::<Lease>::create(c"hetmem-test").unwrap();
        let lease: &'static Lease = Box::leak(Box::new(memory));
        assert!(!lease.is_held());
        let begin = |ends: bool| {
            let stack = stack();
            let arg = std::ptr::from_mut(Box::leak(Box::new((lease, ends))));
            // SAFETY: `take` expects this.
            unsafe { stack.start(take, arg.cast()) }.unwrap();
            stack
        };
        begin(true).wait_ended();
        assert!(!lease.is_held(), "the thread has ended");
        // Killed, and gone by exec, with the thread in the middle of its sleep.
        for exec in [false, true] {
            // SAFETY: the child calls nothing that another thread's lock could block: there is no other.
            let child = unsafe { libc::fork() };
            assert!(child >= 0);
            if child == 0 {
                begin(false);
                while !lease.is_held() {
                    hetmem_sys::thread::yield_now();
                }
                if exec {
                    let arguments = [c"sh", c"-c", c"kill -STOP $$"].map(std::ffi::CStr::as_ptr);
                    let arguments = [arguments[0], arguments[1], arguments[2], std::ptr::null()];
                    // SAFETY: a program and its arguments.
                    unsafe { libc::execvp(c"sh".as_ptr(), arguments.as_ptr()) };
                }
                loop {
                    hetmem_sys::thread::backoff_sleep(999_999_999);
                }
            }
            let pid = rustix::process::Pid::from_raw(child);
            if !exec {
                while !lease.is_held() {
                    hetmem_sys::thread::yield_now();
                }
                // SAFETY: the test's child.
                unsafe { libc::kill(child, libc::SIGKILL) };
            }
            // What was executed stops.
            rustix::process::waitpid(pid, rustix::process::WaitOptions::UNTRACED).unwrap();
            assert!(!lease.is_held(), "exec: {exec}");
            // SAFETY: the test's child, or nobody, as it was waited for and no other was made.
            unsafe { libc::kill(child, libc::SIGKILL) };
        }
        // Who is gone is in nobody's way.
        begin(false);
        while !lease.is_held() {
            hetmem_sys::thread::yield_now();
        }
        // SAFETY: no lease is taken.
        assert_eq!(unsafe { lease.take() }, Ok(false), "one at a time");
    });
    assert!(status.success());
}

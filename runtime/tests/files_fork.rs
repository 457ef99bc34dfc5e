//! Files whose pages are on devices when the process forks. A fork is one of the whole process, so these tests have one of their own.
#![expect(unsafe_code, reason = "forks")]
#![expect(clippy::print_stderr, reason = "a test that can't run here says so")]

mod common;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Mutex;
use std::time::Instant;

use common::file::{PAGES, all_moved, file, is_page, map, read, verify};
use common::{COHERENT, PRIVATE, builder, runtime, to};
use hetmem::{KeptReason, PAGE_SIZE};

/// One at a time: a child, or a copy of the table of descriptors, has what another test has open for writing.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn a_forked_child_has_the_file() {
    let _alone = ALONE.lock().unwrap();
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    for device in [COHERENT, PRIVATE] {
        all_moved(&runtime.migrate(mapping.range(), to(device)));
        // SAFETY: the child reads, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let right = (0..PAGES).all(|page| is_page(&mapping, page, 0));
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!right)) };
        }
        let mut status = -1;
        // SAFETY: waits for the child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "the child reads the file");
        verify(&mapping, 0);
        runtime.check();
    }
}

#[test]
fn a_child_that_lives_on_keeps_no_writer_waiting() {
    let _alone = ALONE.lock().unwrap();
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    let (gate, open) = std::io::pipe().unwrap();
    // SAFETY: the child waits, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(open);
        let _ = std::io::Read::read(&mut &gate, &mut [0]);
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    drop(gate);
    all_moved(&runtime.migrate(mapping.range(), to(PRIVATE)));
    let began = Instant::now();
    drop(OpenOptions::new().write(true).open(&path).unwrap());
    assert!(began.elapsed().as_secs() < 20, "the lease was given up, not taken");
    all_moved(&runtime.migrate(mapping.range(), to(PRIVATE)));
    drop(mapping);
    let began = Instant::now();
    drop(OpenOptions::new().write(true).open(&path).unwrap());
    assert!(began.elapsed().as_secs() < 20, "nor does the end of the mapping leave it behind");
    drop(open);
    // SAFETY: waits for the child.
    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
}

/// Runs `f` in a child that has one thread; how it ended.
fn in_a_child(f: impl FnOnce() -> bool) -> libc::c_int {
    // SAFETY: the child goes on in this thread, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: this process's alarm, by which it ends if it waits for ever.
        unsafe { libc::alarm(100) };
        let right = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(false);
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(!right)) };
    }
    let mut status = -1;
    // SAFETY: waits for the child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}

/// Opens the file for writing, within less than leases are waited for.
#[track_caller]
fn open_soon(path: &std::path::Path) -> File {
    let began = Instant::now();
    let file = OpenOptions::new().write(true).open(path).unwrap();
    assert!(began.elapsed().as_secs() < 20, "the lease was given up, not taken");
    file
}

#[test]
fn a_child_of_one_that_has_died_keeps_no_writer_waiting() {
    let _alone = ALONE.lock().unwrap();
    let path = file();
    let (gate, open) = std::io::pipe().unwrap();
    let status = in_a_child(|| {
        // SAFETY: this process's copy of it, which it does not use.
        unsafe { libc::close(open.as_raw_fd()) };
        let runtime = builder().start().unwrap();
        let mapping = map(&runtime, &path);
        all_moved(&runtime.migrate(mapping.range(), to(PRIVATE)));
        // Past the C library: nobody knows of it.
        // SAFETY: the child waits, by system calls alone, and ends.
        if unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } == 0 {
            let mut byte = 0_u8;
            // SAFETY: reads a byte to this frame.
            unsafe { libc::read(gate.as_raw_fd(), (&raw mut byte).cast(), 1) };
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        // SAFETY: ends this process.
        unsafe { libc::raise(libc::SIGKILL) };
        false
    });
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL, "{status:x}");
    open_soon(&path);
    drop(open);
}

#[test]
fn who_may_have_leases_no_longer_gives_up_what_there_is() {
    let _alone = ALONE.lock().unwrap();
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        return eprintln!("skipped: only root can be nobody");
    }
    let path = file();
    let status = in_a_child(|| {
        let runtime = builder().start().unwrap();
        let mapping = map(&runtime, &path);
        all_moved(&runtime.migrate(mapping.range(), to(COHERENT)));
        let (gate, open) = std::io::pipe().unwrap();
        // SAFETY: the child writes the file, and ends.
        let writer = unsafe { libc::fork() };
        if writer == 0 {
            // SAFETY: this process's copy of it, which it does not use.
            unsafe { libc::close(open.as_raw_fd()) };
            let _ = std::io::Read::read(&mut &gate, &mut [0]);
            let _ = open_soon(&path);
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        drop(gate);
        all_moved(&runtime.migrate(mapping.range(), to(COHERENT)));
        // SAFETY: changes the ids of all threads of this process.
        assert_eq!(unsafe { libc::setresuid(65534, 65534, 65534) }, 0);
        drop(open);
        let mut status = -1;
        // SAFETY: waits for the child.
        assert_eq!(unsafe { libc::waitpid(writer, &raw mut status, 0) }, writer);
        assert_eq!(status, 0);
        let kept = runtime.migrate(mapping.range(), to(COHERENT));
        verify(&mapping, 0);
        kept.kept(KeptReason::NoLease).get() == PAGES as u64
    });
    assert_eq!(status, 0);
}

#[test]
fn a_sandbox_that_forbids_reads_of_processes_keeps_no_page_home() {
    let _alone = ALONE.lock().unwrap();
    let path = file();
    let status = in_a_child(|| {
        let call = u32::try_from(libc::SYS_process_vm_readv).unwrap();
        let step = |code: u32, jt, jf, k| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
        let mut filter = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned()),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
        // SAFETY: asks for what no program needs.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        // SAFETY: the kernel reads the filter.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) }, 0);
        let runtime = builder().start().unwrap();
        let mapping = map(&runtime, &path);
        for device in [COHERENT, PRIVATE] {
            all_moved(&runtime.migrate(mapping.range(), to(device)));
            verify(&mapping, 0);
        }
        true
    });
    assert_eq!(status, 0);
}

#[test]
fn a_thread_with_descriptors_of_its_own_maps_what_it_has_open() {
    let _alone = ALONE.lock().unwrap();
    let (runtime, path) = (runtime(), file());
    let (runtime, path) = (&runtime, &path);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // SAFETY: this thread has what it opens from now on.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
            let mapping = map(runtime, path);
            all_moved(&runtime.migrate(mapping.range(), to(COHERENT)));
            verify(&mapping, 0);
        });
    });
}

#[test]
fn a_process_whose_first_thread_has_ended_has_its_files_moved() {
    let _alone = ALONE.lock().unwrap();
    let path = file();
    let status = in_a_child(|| {
        let moves = || {
            let runtime = builder().start().unwrap();
            let mapping = map(&runtime, &path);
            [COHERENT, PRIVATE].into_iter().for_each(|device| {
                all_moved(&runtime.migrate(mapping.range(), to(device)));
                verify(&mapping, 0);
            });
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while std::fs::read_to_string("/proc/self/stat").is_ok_and(|stat| !stat.contains(") Z ")) {
                    std::thread::yield_now();
                }
                let moved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(moves));
                // SAFETY: ends the child.
                unsafe { libc::_exit(i32::from(moved.is_err())) };
            });
            // SAFETY: ends this thread, and nothing else.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        });
        false
    });
    assert_eq!(status, 0);
}

/// Who has a POSIX lock on the file by which it could not be locked for writing, seen from another process; 0 if nobody.
fn holder(fd: RawFd) -> libc::pid_t {
    let (mut seen, shown) = std::io::pipe().unwrap();
    // SAFETY: the child asks, says so and ends.
    if unsafe { libc::fork() } == 0 {
        // SAFETY: zeros are a lock of the whole file.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = libc::c_short::try_from(libc::F_WRLCK).unwrap();
        // SAFETY: the lock is the kernel's to write meanwhile.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETLK, &raw mut lock) }, 0);
        let held = if lock.l_type == libc::c_short::try_from(libc::F_UNLCK).unwrap() { 0 } else { lock.l_pid };
        std::io::Write::write_all(&mut &shown, &held.to_ne_bytes()).unwrap();
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    let mut bytes = [0; 4];
    std::io::Read::read_exact(&mut seen, &mut bytes).unwrap();
    i32::from_ne_bytes(bytes)
}

#[test]
fn the_locks_of_the_process_stay() {
    let _alone = ALONE.lock().unwrap();
    let (runtime, path) = (runtime(), file());
    let own = File::open(&path).unwrap();
    let fd = own.as_raw_fd();
    // SAFETY: zeros are a lock of the whole file.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::c_short::try_from(libc::F_RDLCK).unwrap();
    // SAFETY: asks for a lock.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_SETLK, &raw const lock) }, 0);
    // SAFETY: asks for a number.
    let this = unsafe { libc::getpid() };
    assert_eq!(holder(fd), this);
    let mapping = runtime.map_file(&own, 0, hetmem::ByteLen::new(PAGES as u64 * PAGE_SIZE)).unwrap();
    assert_eq!(holder(fd), this, "though it is mapped");
    for device in [COHERENT, PRIVATE] {
        all_moved(&runtime.migrate(mapping.range(), to(device)));
        verify(&mapping, 0);
        open_soon_elsewhere(&path);
        assert_eq!(holder(fd), this, "though somebody has written it");
    }
    drop(mapping);
    assert_eq!(holder(fd), this, "though it is mapped no more");
    drop(runtime);
    assert_eq!(holder(fd), this);
}

/// [`open_soon`] of another process, which has no lock that would end by that.
fn open_soon_elsewhere(path: &std::path::Path) {
    assert_eq!(in_a_child(|| open_soon(path).metadata().is_ok()), 0);
}

#[test]
fn a_file_that_shrinks_raises_the_signal_that_it_always_has() {
    let _alone = ALONE.lock().unwrap();
    let path = file();
    // SAFETY: the child has one thread and a runtime of its own, and ends by the signal.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let runtime = builder().start().unwrap();
        let mapping = map(&runtime, &path);
        let moved = runtime.migrate(mapping.range(), to(COHERENT)).moved().get();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(PAGE_SIZE * 600).unwrap();
        let right = moved == PAGES as u64 && (0..600).all(|page| is_page(&mapping, page, 0));
        let kept = runtime.migrate(mapping.range(), to(COHERENT));
        let unreadable = kept.kept(KeptReason::FileUnreadable).get();
        if !right || (kept.moved().get(), unreadable) != (512, PAGES as u64 - 512) || !is_page(&mapping, 599, 0) {
            // SAFETY: ends the child.
            unsafe { libc::_exit(1) };
        }
        read(&mapping, 600);
        // SAFETY: ends the child.
        unsafe { libc::_exit(2) };
    }
    let mut status = -1;
    // SAFETY: waits for the child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS, "{status:x}");
}

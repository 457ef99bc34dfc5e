//! Files that are mapped to be read: their pages go to devices and home, nobody who writes them waits longer than for that, and nobody reads what a file
//! no longer has.
#![expect(unsafe_code, reason = "tests touch mapped memory")]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::file::{HOME, PAGES, all_moved, bytes, file, map, read, verify, word};
use common::{COHERENT, PAGE, PRIVATE, runtime, to};
use hetmem::{ByteLen, KeptReason, PAGE_SIZE, PageCount, PageRange, Residency, Runtime};

fn all_at(runtime: &Runtime, range: PageRange, place: Residency) -> bool {
    runtime.residency(range).into_iter().all(|page| page == place)
}

/// What `/proc/self/maps` says of `range`.
fn maps_of(range: PageRange) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let inside = |line: &&str| {
        let start = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        range.start().get() <= start && start < range.end().get()
    };
    maps.lines().filter(inside).map(str::to_owned).collect()
}

#[test]
fn pages_go_to_devices_and_home_and_read_as_the_file() {
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    let before = maps_of(mapping.range());
    assert_eq!(before.len(), 1);
    verify(&mapping, 0);
    for device in [COHERENT, PRIVATE, COHERENT] {
        all_moved(&runtime.migrate(mapping.range(), to(device)));
        assert!(all_at(&runtime, mapping.range(), Residency::Device(device)));
        runtime.check();
        verify(&mapping, 0);
        runtime.check();
        let again = runtime.migrate(mapping.range(), to(device));
        assert_eq!(again.moved().get() + again.kept(KeptReason::AlreadyThere).get(), PAGES as u64);
        all_moved(&runtime.migrate(mapping.range(), HOME));
        assert!(all_at(&runtime, mapping.range(), Residency::System));
        assert_eq!(maps_of(mapping.range()), before, "the mapping is the file's, and one");
        verify(&mapping, 0);
        runtime.check();
    }
    let unchanged = runtime.migrate(mapping.range(), HOME);
    assert_eq!(unchanged.kept(KeptReason::AlreadyThere).get(), PAGES as u64);
}

#[test]
fn pages_go_from_device_to_device() {
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    for device in [PRIVATE, COHERENT, PRIVATE, PRIVATE] {
        let outcomes = runtime.migrate(mapping.range(), to(device));
        assert_eq!(outcomes.moved().get() + outcomes.kept(KeptReason::AlreadyThere).get(), PAGES as u64);
        assert!(all_at(&runtime, mapping.range(), Residency::Device(device)));
        verify(&mapping, 0);
        runtime.check();
    }
}

#[test]
fn a_part_takes_its_block_along() {
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    let page = mapping.range().slice(PageCount::new(700), PageCount::ONE);
    assert_eq!(runtime.migrate(page, to(COHERENT)).moved(), PageCount::ONE);
    let second = mapping.range().slice(PageCount::new(512), PageCount::new(512));
    assert!(all_at(&runtime, second, Residency::Device(COHERENT)));
    assert!(all_at(&runtime, mapping.range().slice(PageCount::ZERO, PageCount::new(512)), Residency::System));
    verify(&mapping, 0);
    assert_eq!(runtime.migrate(page, HOME).moved(), PageCount::ONE);
    assert!(all_at(&runtime, second, Residency::System));
    runtime.check();
}

#[test]
fn a_page_on_a_coherent_device_is_read_in_place_and_whole_blocks_are_huge() {
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    all_moved(&runtime.migrate(mapping.range(), to(COHERENT)));
    let before = runtime.statistics().cpu_faults;
    verify(&mapping, 0);
    assert_eq!(runtime.statistics().cpu_faults, before);
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{:x}-", mapping.range().start().get());
    let huge =
        smaps.lines().skip_while(|line| !line.starts_with(&start)).find(|line| line.starts_with("AnonHugePages"));
    assert!(huge.unwrap().contains("2048 kB"), "{huge:?}");
}

#[test]
fn who_opens_the_file_for_writing_waits_for_its_pages_to_come_home_and_is_read_at_once() {
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    for (version, device) in (1..).zip([COHERENT, PRIVATE, COHERENT]) {
        all_moved(&runtime.migrate(mapping.range(), to(device)));
        let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
        assert!(all_at(&runtime, mapping.range(), Residency::System), "nothing of it is away when the writer has it");
        writer.write_all(&bytes(version)).unwrap();
        verify(&mapping, version);
        let kept = runtime.migrate(mapping.range(), to(device));
        assert_eq!(kept.kept(KeptReason::FileOpenForWriting).get(), PAGES as u64, "{kept:?}");
        drop(writer);
        all_moved(&runtime.migrate(mapping.range(), to(device)));
        verify(&mapping, version);
        let _ = runtime.migrate(mapping.range(), HOME);
        assert!(all_at(&runtime, mapping.range(), Residency::System));
        assert_eq!(maps_of(mapping.range()).len(), 1, "also what touches have brought home is the file's again");
        runtime.check();
    }
}

#[test]
fn who_opens_without_waiting_is_told_so_and_can_soon() {
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    all_moved(&runtime.migrate(mapping.range(), to(PRIVATE)));
    let open = || OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
    assert_eq!(open().unwrap_err().raw_os_error(), Some(libc::EWOULDBLOCK));
    let writer = std::iter::repeat_with(open).find_map(Result::ok).unwrap();
    writer.write_all_at(&bytes(3), 0).unwrap();
    verify(&mapping, 3);
}

#[test]
fn a_file_that_is_open_for_writing_stays() {
    let (runtime, path) = (runtime(), file());
    let writer = OpenOptions::new().write(true).open(&path).unwrap();
    let mapping = map(&runtime, &path);
    let kept = runtime.migrate(mapping.range(), to(PRIVATE));
    assert_eq!(kept.kept(KeptReason::FileOpenForWriting).get(), PAGES as u64, "{kept:?}");
    writer.write_all_at(&bytes(9), 0).unwrap();
    verify(&mapping, 9);
    drop(writer);
    all_moved(&runtime.migrate(mapping.range(), to(PRIVATE)));
    verify(&mapping, 9);
}

#[test]
fn the_last_page_ends_in_zeros_and_a_deleted_file_is_one_still() {
    let (runtime, path) = (runtime(), file());
    let len = (PAGES * PAGE - 5000) as u64;
    OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
    let opened = File::open(&path).unwrap();
    drop(path);
    let mapping = runtime.map_file(&opened, PAGE_SIZE, ByteLen::new(len - PAGE_SIZE)).unwrap();
    for device in [COHERENT, PRIVATE] {
        let outcomes = runtime.migrate(mapping.range(), to(device));
        assert_eq!(outcomes.moved(), mapping.range().pages(), "{outcomes:?}");
        // SAFETY: inside the mapping, the end of its last page included.
        let seen = unsafe {
            std::slice::from_raw_parts(
                mapping.as_ptr(),
                usize::try_from(mapping.range().pages().bytes().get()).unwrap(),
            )
        };
        let file = &bytes(0)[PAGE..PAGES * PAGE - 5000];
        assert!(seen[..file.len()] == *file && seen[file.len()..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn what_can_not_be_mapped_is_refused_with_the_reason() {
    let (runtime, path) = (runtime(), file());
    let file = File::open(&path).unwrap();
    let refused = |offset, len| runtime.map_file(&file, offset, ByteLen::new(len)).unwrap_err().to_string();
    assert!(refused(100, 4096).contains("not a multiple of the page"));
    assert!(refused(0, 0).contains("not in the file"));
    assert!(refused(4096, (PAGES * PAGE) as u64).contains("not in the file"));
    let directory = runtime.map_file(File::open("/").unwrap(), 0, ByteLen::new(4096)).unwrap_err().to_string();
    assert!(directory.contains("only regular files"), "{directory}");
    let written = OpenOptions::new().write(true).open(&path).unwrap();
    let unread = runtime.map_file(written, 0, ByteLen::new(4096)).unwrap_err().to_string();
    assert!(unread.contains("not open to be read"), "{unread}");
    let proc = File::open("/proc/version").unwrap();
    assert!(runtime.map_file(proc, 0, ByteLen::new(1)).is_err());
}

#[test]
fn a_lease_of_the_program_s_own_stays() {
    const SET: libc::c_int = 1024;
    const GET: libc::c_int = 1025;
    let (runtime, path) = (runtime(), file());
    let file = File::open(&path).unwrap();
    for kind in [libc::F_WRLCK, libc::F_RDLCK] {
        // SAFETY: asks for a lease, and gives it up.
        let lease = |command, kind: libc::c_int| unsafe { libc::fcntl(file.as_raw_fd(), command, kind) };
        assert_eq!(lease(SET, kind), 0);
        let mapped = runtime.map_file(&file, 0, ByteLen::new(4096));
        assert_eq!(mapped.is_ok(), kind == libc::F_RDLCK, "{mapped:?}");
        assert_eq!(lease(GET, 0), kind);
        if let Err(error) = mapped {
            assert!(error.to_string().contains("a lease for writing"), "{error}");
        }
        assert_eq!(lease(SET, libc::F_UNLCK), 0);
    }
}

#[test]
fn no_descriptor_of_the_program_s_is_used() {
    let (runtime, path) = (runtime(), file());
    let open = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap();
        all.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()).filter(|to| *to == *path).count()
    };
    let mapping = map(&runtime, &path);
    all_moved(&runtime.migrate(mapping.range(), to(COHERENT)));
    assert_eq!(open(), 0);
    drop(mapping);
    assert_eq!(open(), 0);
}

#[test]
fn readers_find_the_file_whatever_moves_and_whoever_writes() {
    let (runtime, path) = (runtime(), file());
    let mapping = map(&runtime, &path);
    let (done, version, reads) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 1..3_u64 {
            let (mapping, done, version, reads) = (&mapping, &done, &version, &reads);
            scope.spawn(move || {
                let mut random = seed;
                while !done.load(Ordering::SeqCst) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let page = usize::try_from(random >> 33).unwrap() % PAGES;
                    // Pages are written from the first to the last: what is read is of no older version than was complete before.
                    let before = version.load(Ordering::SeqCst);
                    let (first, _) = read(mapping, page);
                    let after = version.load(Ordering::SeqCst);
                    let known = (before..=after + 1).any(|version| first == word(page, version));
                    assert!(known, "page {page} has {first:x}, of no version from {before} to {}", after + 1);
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let end = scope.spawn(|| {
            for round in 1..20 {
                let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
                writer.seek(SeekFrom::Start(0)).unwrap();
                writer.write_all(&bytes(round)).unwrap();
                drop(writer);
                version.store(round, Ordering::SeqCst);
                let before = reads.load(Ordering::SeqCst);
                while reads.load(Ordering::SeqCst) < before + 2000 {
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::SeqCst);
        });
        let mut moved = 0;
        for request in [to(COHERENT), HOME, to(PRIVATE), to(COHERENT), to(PRIVATE), HOME].iter().cycle() {
            moved += runtime.migrate(mapping.range(), *request).moved().get();
            if end.is_finished() {
                break;
            }
        }
        assert!(moved > 0);
    });
    runtime.check();
    verify(&mapping, 19);
}

#[test]
fn mappings_come_and_go_and_leave_no_lease_behind() {
    let (runtime, path) = (runtime(), file());
    for round in 0..20 {
        let (one, other) = (map(&runtime, &path), map(&runtime, &path));
        all_moved(&runtime.migrate(one.range(), to(if round % 2 == 0 { COHERENT } else { PRIVATE })));
        drop(other);
        verify(&one, 0);
        drop(one);
        runtime.check();
    }
    let writer = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
    assert!(writer.is_ok(), "nobody has a lease: {writer:?}");
    drop(runtime);
}

#[test]
fn the_end_of_a_runtime_leaves_none_either() {
    let path = file();
    let (first, mapping) = {
        let runtime = runtime();
        let mapping = map(&runtime, &path);
        all_moved(&runtime.migrate(mapping.range(), to(COHERENT)));
        (runtime, mapping)
    };
    drop(first);
    verify(&mapping, 0);
    drop(mapping);
    assert!(OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path).is_ok());
}

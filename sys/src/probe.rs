//! What this kernel lets this process do, found out by trying.
//!
//! The result is plain data: what `hetmem doctor` prints, and what the floors above choose their ways by. Nothing that
//! is missing is an error here; each answer carries its own reason.
#![expect(unsafe_code, reason = "a trial move of pages of its own")]

use std::path::{Path, PathBuf};

use hetmem_core::units::{ByteLen, PageCount, PageRange, VirtAddr};
use rustix::process::Resource;

use crate::copy::address;
use crate::errno::Errno;
use crate::mapping::{Arena, ArenaOptions, Prefault};
use crate::pagemap::{Categories, PagemapScanner, Region, ScanQuery};
use crate::uffd::{Access, Features, Mode, MoveFlags, OpenError, Route, Userfaultfd, check_page_size};

/// The version of the running kernel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KernelRelease {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The whole text, as `uname -r` prints it.
    pub text: String,
}

impl KernelRelease {
    /// Reads a release such as `6.8.0-31-generic`; what can't be read counts as 0.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
        let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        Self { major, minor, text: text.to_owned() }
    }

    /// Whether the kernel is `major.minor` or newer.
    #[must_use]
    pub fn is_at_least(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

/// A limit of the process in bytes; `None` is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limit {
    /// What holds now.
    pub soft: Option<ByteLen>,
    /// What an unprivileged process can raise it to.
    pub hard: Option<ByteLen>,
}

/// Why the trial move of a page failed.
#[derive(thiserror::Error, Clone, Copy, PartialEq, Eq, Debug)]
pub enum MoveTrialError {
    /// No userfaultfd to try it with.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No memory to try it on.
    #[error("memory for the trial could not be mapped")]
    Memory(#[source] Errno),
    /// The trial memory could not be registered.
    #[error("memory could not be registered for write protection")]
    Register(#[source] Errno),
    /// The kernel refused.
    #[error("the kernel refused to move a page (UFFDIO_MOVE, Linux 6.8)")]
    Refused(#[source] Errno),
    /// The page arrived with other bytes.
    #[error("a moved page arrived with other contents")]
    Contents,
}

/// What the kernel and the permissions of this process allow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// The kernel's version.
    pub kernel: KernelRelease,
    /// The base page in bytes; hetmem needs 4096.
    pub page_size: usize,
    /// Whether every touch can be trapped, those in system calls included, and by which way.
    pub full_access: Result<Route, OpenError>,
    /// Whether at least the program's own touches can be trapped, and by which way.
    pub user_mode_access: Result<Route, OpenError>,
    /// The userfaultfd features that the kernel has.
    pub features: Features,
    /// Whether forks are reported.
    pub fork_event: Result<(), OpenError>,
    /// Whether `PAGEMAP_SCAN` works (Linux 6.7).
    pub pagemap_scan: Result<(), Errno>,
    /// Whether a page was moved there and back in a trial.
    pub page_move: Result<(), MoveTrialError>,
    /// Whether pages can be made present (`MADV_POPULATE_WRITE`, Linux 5.14).
    pub populate_write: Result<(), Errno>,
    /// Huge pages for anonymous memory: `always`, `madvise` or `never`; `None` if the kernel has none.
    pub huge_pages: Option<String>,
    /// Huge pages for shared memory: `always`, `within_size`, `advise`, `never`, `deny` or `force`.
    pub shmem_huge_pages: Option<String>,
    /// NUMA nodes.
    pub numa_nodes: usize,
    /// Device-DAX devices.
    pub devdax: Vec<PathBuf>,
    /// `vm.max_map_count`.
    pub max_map_count: Option<u64>,
    /// `vm.overcommit_memory`.
    pub overcommit_memory: Option<u64>,
    /// `vm.unprivileged_userfaultfd`.
    pub unprivileged_userfaultfd: Option<u64>,
    /// `RLIMIT_MEMLOCK`.
    pub locked_memory: Limit,
    /// `RLIMIT_AS`.
    pub address_space: Limit,
}

impl Capabilities {
    /// Tries everything once, on memory of its own.
    #[must_use]
    pub fn probe() -> Self {
        let route = |access| Userfaultfd::open_with_route(Features::NONE, access).map(|(_, route)| route);
        let full_access = route(Access::Full);
        let access = if full_access.is_ok() { Access::Full } else { Access::UserModeOnly };
        Self {
            kernel: kernel_release(),
            page_size: rustix::param::page_size(),
            full_access,
            user_mode_access: route(Access::UserModeOnly),
            features: Userfaultfd::available(access).unwrap_or_default(),
            fork_event: Userfaultfd::open(Features::EVENT_FORK, access).map(|_| ()),
            pagemap_scan: try_pagemap_scan(),
            page_move: try_move(access),
            populate_write: try_populate(),
            huge_pages: chosen(Path::new("/sys/kernel/mm/transparent_hugepage/enabled")),
            shmem_huge_pages: chosen(Path::new("/sys/kernel/mm/transparent_hugepage/shmem_enabled")),
            numa_nodes: entries("/sys/devices/system/node", |name| is_numbered(name, "node")).len().max(1),
            devdax: entries("/dev", |name| name.starts_with("dax") && name != "dax"),
            max_map_count: sysctl("max_map_count"),
            overcommit_memory: sysctl("overcommit_memory"),
            unprivileged_userfaultfd: sysctl("unprivileged_userfaultfd"),
            locked_memory: limit(Resource::Memlock),
            address_space: limit(Resource::As),
        }
    }
}

fn one_page() -> Result<Arena, Errno> {
    // With larger ones no arena of one page can be made.
    check_page_size().map_err(|_| Errno::INVAL)?;
    Arena::reserve(PageCount::ONE, &ArenaOptions { prefault: Prefault::All, ..ArenaOptions::default() })
}

fn try_populate() -> Result<(), Errno> {
    one_page().map(|_| ())
}

fn try_pagemap_scan() -> Result<(), Errno> {
    let page = one_page()?;
    let query = ScanQuery { all_of: Categories::PRESENT, report: Categories::PRESENT, ..ScanQuery::default() };
    let mut found = [Region::default()];
    let (count, _) = PagemapScanner::open()?.scan(page.range(), query, &mut found)?;
    if count == 1 && found[0].range() == page.range() { Ok(()) } else { Err(Errno::NODATA) }
}

/// Moves a page with known contents to another place and back.
fn try_move(access: Access) -> Result<(), MoveTrialError> {
    let uffd = Userfaultfd::open(Features::MOVE | Features::PAGEFAULT_FLAG_WP, access)?;
    let here = one_page().map_err(MoveTrialError::Memory)?;
    let there = one_page().map_err(MoveTrialError::Memory)?;
    there.discard(there.range()).map_err(MoveTrialError::Memory)?;
    for arena in [&here, &there] {
        uffd.register(arena.range(), Mode::WP).map_err(MoveTrialError::Register)?;
    }
    let (here, there) = (here.range(), there.range());
    for (i, word) in words(here) {
        // SAFETY: inside a page of an arena of this function's own.
        unsafe { word.write(i) };
    }
    move_one(&uffd, there, here)?;
    expect_words(there)?;
    move_one(&uffd, here, there)?;
    expect_words(here)
}

fn move_one(uffd: &Userfaultfd, dst: PageRange, src: PageRange) -> Result<(), MoveTrialError> {
    // SAFETY: pages of the trial's own arenas, to which there are no references.
    let progress = unsafe { uffd.move_pages(dst.start(), src.start(), src.pages(), MoveFlags::NONE) };
    progress.stop.map_or(Ok(()), |errno| Err(MoveTrialError::Refused(errno)))
}

fn expect_words(page: PageRange) -> Result<(), MoveTrialError> {
    // SAFETY: inside a page of an arena of the trial's own.
    let same = words(page).all(|(i, word)| unsafe { word.read() } == i);
    if same { Ok(()) } else { Err(MoveTrialError::Contents) }
}

/// The words of a page, each with a number that no other word has.
fn words(page: PageRange) -> impl Iterator<Item = (u64, *mut u64)> {
    let word = move |i: u64| VirtAddr::new(page.start().get() + i * 8);
    (0..512).map(move |i| (!i, std::ptr::with_exposed_provenance_mut(address(word(i)))))
}

/// The word in brackets of a file such as `always [madvise] never`.
fn chosen(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

/// What `uname(2)` says, which needs no `/proc`.
pub(crate) fn kernel_release() -> KernelRelease {
    KernelRelease::parse(&rustix::system::uname().release().to_string_lossy())
}

fn sysctl(name: &str) -> Option<u64> {
    std::fs::read_to_string(Path::new("/proc/sys/vm").join(name)).ok()?.trim().parse().ok()
}

fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// The entries of `folder` whose name `wanted` accepts, in order.
fn entries(folder: &str, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(found) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = found
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

fn limit(resource: Resource) -> Limit {
    let found = rustix::process::getrlimit(resource);
    Limit { soft: found.current.map(ByteLen::new), hard: found.maximum.map(ByteLen::new) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_up_to_its_second_number() {
        for (text, major, minor) in [("6.8.0-31-generic", 6, 8), ("6.18", 6, 18), ("7.0-rc1", 7, 0), ("odd", 0, 0)] {
            let release = KernelRelease::parse(text);
            assert_eq!((release.major, release.minor, release.text.as_str()), (major, minor, text));
        }
        assert!(KernelRelease::parse("6.18.2").is_at_least(6, 8));
        assert!(!KernelRelease::parse("6.1.2").is_at_least(6, 8));
        assert!(KernelRelease::parse("7.0").is_at_least(6, 8));
    }

    #[test]
    fn numbered_names_are_told_from_others() {
        assert!(is_numbered("node12", "node") && !is_numbered("node", "node") && !is_numbered("node1x", "node"));
    }

    #[test]
    fn a_probe_agrees_with_itself() {
        let found = Capabilities::probe();
        assert_eq!(found.page_size, 4096);
        assert!(found.numa_nodes >= 1);
        // A kernel with MOVE and somebody who may use it: then the trial succeeds.
        if found.features.contains(Features::MOVE) && found.user_mode_access.is_ok() {
            assert_eq!(found.page_move, Ok(()));
        }
        assert!(found.fork_event.is_err() || found.full_access.is_ok());
    }
}

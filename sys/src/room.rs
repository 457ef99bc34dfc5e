//! How much memory there is left for the process: of the machine (`/proc/meminfo`), and of its control groups (cgroups(7); in the kernel
//! `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/memory.rst`).
//!
//! The files are opened once: who asks later may be a thread of a program that has changed its root, or may open nothing any more. Asking allocates
//! nothing.
//!
//! *Limits:* control groups are those in which the process was when the files were opened, as far as they have a limit then and are found below
//! `/sys/fs/cgroup`.

use std::os::fd::OwnedFd;
use std::path::Path;

use hetmem_core::units::ByteLen;
use rustix::fs::{Mode, OFlags};

/// Where the control groups of both versions are.
const GROUPS: &str = "/sys/fs/cgroup";

/// Files that say how much memory is left, kept open.
#[derive(Debug)]
pub struct Room {
    meminfo: Option<OwnedFd>,
    groups: Vec<Group>,
}

/// A control group that had a limit when its files were opened.
#[derive(Debug)]
struct Group {
    limit: OwnedFd,
    usage: OwnedFd,
    /// Of which the kernel takes the page cache first; only in version 2.
    statistics: Option<OwnedFd>,
}

impl Room {
    /// Opens what there is.
    #[must_use]
    pub fn open() -> Self {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self { meminfo: open(Path::new("/proc/meminfo")), groups: limited_groups(Path::new(GROUPS), &groups) }
    }

    /// What can be had without swapping, as far as the kernel knows (`MemAvailable`) and the control groups allow; `None` if nobody says.
    #[must_use]
    pub fn left(&self) -> Option<ByteLen> {
        let mut text = [0; 2048];
        let meminfo = read(self.meminfo.as_ref()?, &mut text)?;
        let machine = figure(meminfo, "MemAvailable:")? << 10;
        let groups = self.groups.iter().filter_map(Group::left);
        Some(ByteLen::new(groups.fold(machine, u64::min)))
    }
}

impl Group {
    /// The group in `folder`, if it has a limit. Its files have these names.
    fn open(folder: &Path, limit: &str, usage: &str) -> Option<Self> {
        let this = Self {
            limit: open(&folder.join(limit))?,
            usage: open(&folder.join(usage))?,
            statistics: if limit == "memory.max" { open(&folder.join("memory.stat")) } else { None },
        };
        this.left().map(|_| this)
    }

    /// What is left to its limit, in bytes; `None` if there is no limit.
    fn left(&self) -> Option<u64> {
        let number = |file| read(file, &mut [0; 64]).and_then(|text| text.trim_ascii_end().parse::<u64>().ok());
        // Version 1 says of no limit that it is the largest multiple of the page.
        let limit = number(&self.limit).filter(|limit| limit >> 60 == 0)?;
        let mut text = [0; 4096];
        let statistics = self.statistics.as_ref().and_then(|file| read(file, &mut text));
        let cache = statistics.and_then(|text| figure(text, "inactive_file")).unwrap_or(0);
        Some((limit + cache).saturating_sub(number(&self.usage)?))
    }
}

/// The groups below `root` that `groups` names, in the form of `/proc/self/cgroup`, and those around them, as far as they have a limit.
fn limited_groups(root: &Path, groups: &str) -> Vec<Group> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, limit, usage) = if controllers.is_empty() {
            (root.to_owned(), "memory.max", "memory.current")
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else {
            continue;
        };
        let here = root.join(path.trim_start_matches('/'));
        let around = here.ancestors().take_while(|folder| folder.starts_with(&root));
        found.extend(around.filter_map(|folder| Group::open(folder, limit, usage)));
    }
    found
}

fn open(path: &Path) -> Option<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

pub(crate) fn read<'a>(file: &OwnedFd, text: &'a mut [u8]) -> Option<&'a str> {
    let n = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *text, 0)).ok()?;
    std::str::from_utf8(&text[..n]).ok()
}

/// The number in the line of `text` that begins with `name`.
pub(crate) fn figure(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_some_and_no_more_than_there_is() {
        let left = Room::open().left().expect("the machine has /proc");
        assert!(left.get() > 0 && left <= crate::process::machine_memory(), "{left}");
    }

    #[test]
    fn the_nearest_limit_of_a_group_or_one_around_it_counts() {
        let root = std::env::temp_dir().join(format!("hetmem-room-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        };
        let left = |groups: &str| {
            let mut left: Vec<u64> = limited_groups(&root, groups).iter().filter_map(Group::left).collect();
            left.sort_unstable();
            left
        };
        write("a/memory.max", "5000000\n");
        write("a/memory.current", "1000000\n");
        write("a/memory.stat", "anon 7\ninactive_file 300000\n");
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "12\n");
        write("a/b/c/memory.max", "2000\n");
        write("a/b/c/memory.current", "3000\n");
        write("memory/x/memory.limit_in_bytes", "9000\n");
        write("memory/x/memory.usage_in_bytes", "2000\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/memory.usage_in_bytes", "2000\n");
        assert_eq!(left("0::/a/b\n"), [4_300_000]);
        assert_eq!(left("0::/a/b/c\n"), [0, 4_300_000], "what is above its limit has nothing left");
        assert_eq!(left("4:cpu,memory:/x\n3:pids:/a\n"), [7000]);
        assert_eq!(left("0::/nowhere\nnonsense\n"), [0_u64; 0]);
        std::fs::remove_dir_all(root).expect("the test's own folder");
    }
}

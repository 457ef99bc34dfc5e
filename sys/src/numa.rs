//! NUMA nodes: what a node has, which node pages are on, and on which they are to be.
//!
//! A mapping *prefers* a node here and is never *bound* to it (`MPOL_BIND`): a bound mapping whose node is full brings in the kernel's
//! out-of-memory killer at the touch of a page, and a preferred one gets a page of another node, which [`nodes_of`] shows and
//! [`Node::bring`] mends or refuses. What is preferred is kept through changes of the process's cpuset.
//!
//! *Limits:* nodes below [`MAX_NODES`], as in the kernel's widest configuration.
#![expect(unsafe_code, reason = "system calls on memory that is named by number")]

use std::fmt;
use std::path::PathBuf;

use hetmem_core::units::{ByteLen, PageCount, PageRange, VirtAddr};

use crate::copy::address;
use crate::errno::Errno;
use crate::raw;

/// The most nodes that a kernel can be configured for.
pub const MAX_NODES: u32 = 1024;

/// Where nodes are described.
const NODES: &str = "/sys/devices/system/node";

/// Pages that are asked for in one system call.
const CHUNK: usize = 128;

/// Of `mbind(2)` and `move_pages(2)`: pages are moved.
const MPOL_MF_MOVE: usize = 1 << 1;

const WORDS: usize = (MAX_NODES / u64::BITS) as usize;

/// The number of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Node(u32);

/// Why a node can't hold pages of this process.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum NodeError {
    /// There is none of that number.
    #[error("there is no node {node}; this machine has {have}")]
    Absent {
        /// The number.
        node: Node,
        /// The nodes with memory.
        have: String,
    },
    /// It has processors or nothing, but no memory.
    #[error("node {node} has no memory; nodes with memory: {have}")]
    NoMemory {
        /// The node.
        node: Node,
        /// The nodes with memory.
        have: String,
    },
    /// A cpuset keeps this process off it.
    #[error("this process may not use memory of node {node}; its cpuset allows {allowed} (Mems_allowed_list)")]
    NotAllowed {
        /// The node.
        node: Node,
        /// What it may use.
        allowed: String,
    },
}

impl Node {
    /// Node `number`; `None` if no kernel can have that many.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number < MAX_NODES { Some(Self(number)) } else { None }
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Its number, as lists of nodes have it.
    #[must_use]
    pub fn signed(self) -> i32 {
        i32::try_from(self.0).unwrap_or(i32::MAX)
    }

    fn mask(self) -> [u64; WORDS] {
        let mut mask = [0; WORDS];
        mask[(self.0 / u64::BITS) as usize] = 1 << (self.0 % u64::BITS);
        mask
    }

    /// How much memory it has, if this process may use it.
    ///
    /// # Errors
    ///
    /// What keeps this process from using it.
    pub fn memory(self) -> Result<ByteLen, NodeError> {
        let have = || list("has_memory").unwrap_or_else(|| "0".to_owned());
        let meminfo = std::fs::read_to_string(PathBuf::from(NODES).join(format!("node{self}/meminfo")));
        // A kernel without NUMA has one node, and doesn't describe it.
        let total = match meminfo {
            Ok(text) => total(&text),
            Err(_) if self.0 == 0 && list("has_memory").is_none() => machine_total(),
            Err(_) => return Err(NodeError::Absent { node: self, have: have() }),
        };
        let total =
            total.filter(|total| total.get() != 0).ok_or_else(|| NodeError::NoMemory { node: self, have: have() })?;
        if let Some(allowed) = mems_allowed()
            && !contains(&allowed, self.0)
        {
            return Err(NodeError::NotAllowed { node: self, allowed });
        }
        Ok(total)
    }

    /// Lets pages that `range` gets from now on be of this node as long as it has any (`MPOL_PREFERRED`). Without
    /// `MPOL_F_MOF` in the policy, NUMA balancing leaves the range alone. `EINVAL` if there is no such node, or if a cpuset forbids it.
    pub fn prefer_for(self, range: PageRange) -> Result<(), Errno> {
        const MPOL_PREFERRED: usize = 1;
        const MPOL_F_STATIC_NODES: usize = 1 << 15;
        self.mbind(range, MPOL_PREFERRED | MPOL_F_STATIC_NODES, 0)
    }

    /// Binds `range` to this node (`MPOL_BIND`) and moves its pages there, as far as the kernel can: what hetmem is measured against.
    pub fn claim(self, range: PageRange) -> Result<(), Errno> {
        const MPOL_BIND: usize = 2;
        self.mbind(range, MPOL_BIND, MPOL_MF_MOVE)
    }

    fn mbind(self, range: PageRange, mode: usize, flags: usize) -> Result<(), Errno> {
        let mask = self.mask();
        let args = [
            address(range.start()),
            range.pages().as_usize() * 4096,
            mode,
            mask.as_ptr().expose_provenance(),
            // The kernel reads one bit fewer than it is told.
            MAX_NODES as usize + 1,
            flags,
        ];
        // SAFETY: reads the mask, which lives through the call and is as long as told; pages keep addresses and contents.
        match unsafe { raw::syscall6(libc::SYS_mbind, args) } {
            // A kernel without NUMA has one node.
            Err(Errno::NOSYS) if self.0 == 0 => Ok(()),
            other => other.map(drop),
        }
    }

    /// Moves those of `pages` that are of another node to this one (`move_pages(2)`), as far as it has room; pages that are not there are
    /// passed over. What became of them is seen when it is asked where they are.
    pub fn bring(self, pages: &[VirtAddr]) -> Result<(), Errno> {
        for chunk in pages.chunks(CHUNK) {
            move_pages(chunk.iter().copied(), Some(self), &mut [0; CHUNK])?;
        }
        Ok(())
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Where a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// On this node.
    On(Node),
    /// There is no page.
    Hole,
    /// It is the zero page, which is everybody's; or nothing is mapped there.
    Zero,
    /// The kernel doesn't say.
    Unknown(Errno),
}

/// Calls `visit` with each page of `range`, in order, and where it is. Nothing is touched, faulted in or allocated.
pub fn nodes_of(range: PageRange, mut visit: impl FnMut(VirtAddr, Place)) -> Result<(), Errno> {
    let mut at = PageCount::ZERO;
    while at < range.pages() {
        let part = range.slice(at, (range.pages() - at).min(PageCount::new(CHUNK as u64)));
        let mut status = [0; CHUNK];
        match move_pages(part.iter(), None, &mut status) {
            Ok(()) => {}
            // A kernel without NUMA has one node, and no such call.
            Err(Errno::NOSYS) => status = [0; CHUNK],
            Err(errno) => return Err(errno),
        }
        for (page, status) in part.iter().zip(status) {
            let place = match u32::try_from(status) {
                Ok(node) => Place::On(Node(node)),
                Err(_) if -status == Errno::NOENT.raw_os_error() => Place::Hole,
                Err(_) if -status == Errno::FAULT.raw_os_error() => Place::Zero,
                Err(_) => Place::Unknown(Errno::from_raw_os_error(-status)),
            };
            visit(page, place);
        }
        at += part.pages();
    }
    Ok(())
}

/// `move_pages(2)` of at most [`CHUNK`] pages of this process's: to `target`, or nowhere.
fn move_pages(
    pages: impl Iterator<Item = VirtAddr>,
    target: Option<Node>,
    status: &mut [i32; CHUNK],
) -> Result<(), Errno> {
    let mut addresses = [0_u64; CHUNK];
    let mut count = 0;
    for (place, page) in addresses.iter_mut().zip(pages) {
        *place = page.get();
        count += 1;
    }
    let targets = target.map(|node| [node.signed(); CHUNK]);
    move_list(&addresses[..count], targets.as_ref().map(|targets| &targets[..count]), &mut status[..count])
}

/// `move_pages(2)` of this process's pages at `addresses`: each to its node of `targets`; without targets it only asks. What became
/// of each is in `status`: its node, or an errno below zero.
///
/// # Panics
///
/// If the lists are not of one length.
pub fn move_list(addresses: &[u64], targets: Option<&[i32]>, status: &mut [i32]) -> Result<(), Errno> {
    assert!(status.len() == addresses.len() && targets.is_none_or(|targets| targets.len() == addresses.len()));
    let args = [
        0,
        addresses.len(),
        addresses.as_ptr().expose_provenance(),
        targets.map_or(0, |targets| targets.as_ptr().expose_provenance()),
        status.as_mut_ptr().expose_provenance(),
        if targets.is_some() { MPOL_MF_MOVE } else { 0 },
    ];
    // SAFETY: all lists live through the call and are as long as told; the kernel writes numbers to `status`, and a page that it
    // moves keeps its address and contents.
    unsafe { raw::syscall6(libc::SYS_move_pages, args) }.map(drop)
}

/// Keeps NUMA balancing from moving pages of the calling thread, of threads and processes that it starts, and of programs that these
/// execute: gives the thread the policy "local" if it has the default one. Pages are allocated as before; but the kernel balances
/// only memory of the default policy (`vma_policy_mof`). A policy of the program's own stays. Says whether it changed anything.
pub fn keep_from_balancing() -> Result<bool, Errno> {
    const MPOL_DEFAULT: i32 = 0;
    const MPOL_LOCAL: usize = 4;
    let mut mode = -1_i32;
    let args = [std::ptr::from_mut(&mut mode).expose_provenance(), 0, 0, 0, 0];
    // SAFETY: writes the mode, one int.
    match unsafe { raw::syscall5(libc::SYS_get_mempolicy, args) } {
        Err(Errno::NOSYS) => return Ok(false),
        result => result?,
    };
    if mode != MPOL_DEFAULT {
        return Ok(false);
    }
    // SAFETY: reads no mask, as the policy has none; no page is changed.
    unsafe { raw::syscall5(libc::SYS_set_mempolicy, [MPOL_LOCAL, 0, 0, 0, 0]) }?;
    Ok(true)
}

/// The nodes of which `file` speaks (`has_memory`, `has_cpu`, `online`), as the kernel writes them: `0-1,3`.
fn list(file: &str) -> Option<String> {
    Some(std::fs::read_to_string(PathBuf::from(NODES).join(file)).ok()?.trim().to_owned())
}

/// The nodes with memory, in order; node 0 alone where the kernel knows of none.
#[must_use]
pub fn nodes_with_memory() -> Vec<Node> {
    let list = list("has_memory").unwrap_or_else(|| "0".to_owned());
    (0..MAX_NODES).filter(|node| contains(&list, *node)).map(Node).collect()
}

/// Whether the kernel's list `0-1,3` has `number`.
fn contains(list: &str, number: u32) -> bool {
    list.split(',').any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        matches!((first.trim().parse::<u32>(), last.trim().parse::<u32>()), (Ok(a), Ok(b)) if (a..=b).contains(&number))
    })
}

fn mems_allowed() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix("Mems_allowed_list:"))?.trim().to_owned())
}

fn machine_total() -> Option<ByteLen> {
    total(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// The figure of `MemTotal`, in the machine's `meminfo` (`MemTotal: 5 kB`) and in a node's (`Node 0 MemTotal: 5 kB`).
fn total(meminfo: &str) -> Option<ByteLen> {
    let rest = meminfo.lines().find_map(|line| Some(line.split_once("MemTotal:")?.1))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024).map(ByteLen::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_figures_are_read_as_the_kernel_writes_them() {
        assert!(contains("0-1,3", 1) && contains("0-1,3", 3) && contains("5\n", 5));
        assert!(!contains("0-1,3", 2) && !contains("", 0));
        assert_eq!(total("Node 1 MemTotal:         16 kB\nNode 1 MemFree: 4 kB\n"), Some(ByteLen::new(16384)));
        assert_eq!(total("MemTotal:       8 kB\n"), Some(ByteLen::new(8192)));
        assert_eq!(total("MemFree:       8 kB\n"), None);
    }

    #[test]
    fn a_node_that_cannot_be_is_named_with_those_that_can() {
        assert_eq!(Node::new(MAX_NODES), None);
        let absent = Node::new(MAX_NODES - 1).unwrap();
        assert!(matches!(absent.memory(), Err(NodeError::Absent { .. })));
        assert!(nodes_with_memory()[0].memory().unwrap().get() > 0);
    }
}
